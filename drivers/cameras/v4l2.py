"""A camera of Linux (Video4Linux), by OpenCV: its newest picture, and how surely that is timed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.cameras.camera import CameraFault, describe_frame
from robot.calibration import Calibration, apply_chain
from robot.config import UserError, without_extra
from robot.messages import Encoding, Frame, FrameClock, FrameSource, Truth
from robot.model import Robot
from robot.runs import RunConfig

FOURCC = {Encoding.JPEG: "MJPG", Encoding.Z16: "Z16 "}  # others: whatever OpenCV turns into BGR
# A driver's own stamp is believed if it is no older than that; else there is only the time of
# receipt, and exposure, transfer and queue hide in it.
PLAUSIBLE_NS = 1_000_000_000
HIDDEN_NS = 100_000_000
CLOSE_S = 2.0


class V4l2Camera:
    """A device /dev/video*, read by a thread of its own that keeps the newest picture.

    Args:
        run: names the device.
        robot: not asked.
        calibration: size, rate and encoding that the device must give.
        truths: not asked.
        now: the clock, ns.
    """

    def __init__(
        self,
        run: RunConfig,
        robot: Robot,
        calibration: Calibration,
        truths: Callable[[], Iterable[Truth]],
        now: Callable[[], int],
    ) -> None:
        self.device, self._calibration, self._now = run.camera.device, calibration, now
        self._period_ns = round(1e9 / calibration.file.rate_hz)
        self._got = "not open"
        self._ready = threading.Condition()
        self._newest: tuple[int, NDArray[Any], float, int] | None = None
        self._fault = ""
        self._count = self._dropped = 0
        self._thread: threading.Thread | None = None
        self._leaving = False

    def open(self) -> None:
        """Ask for the calibration's format, and see what is got."""
        if self._thread is not None:
            return
        try:
            import cv2
        except ImportError as error:
            raise without_extra(error, "camera", "a v4l2 camera") from None
        capture = self.connect(cv2)
        file = self._calibration.file
        wide, high = file.sensor
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, wide), (cv2.CAP_PROP_FRAME_HEIGHT, high),
            (cv2.CAP_PROP_FPS, file.rate_hz), (cv2.CAP_PROP_BUFFERSIZE, 1),
        ):  # fmt: skip
            capture.set(key, value)
        if letters := FOURCC.get(self._calibration.encoding):
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*letters))
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        got = [int(capture.get(k)) for k in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        rate = capture.get(cv2.CAP_PROP_FPS)
        letters = code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ")
        self._got = f"{self.device}: {got[0]} x {got[1]} {letters} at {rate:g} Hz"
        if got != [wide, high]:
            capture.release()
            raise UserError(
                f"{self._got}; expected {wide} x {high} at {file.rate_hz:g} Hz as of "
                f"{self._calibration.path}"
            )
        self._fault, self._leaving, self._newest = "", False, None
        self._thread = threading.Thread(target=self._listen, args=(cv2, capture), daemon=True)
        self._thread.start()

    def connect(self, cv2: Any) -> Any:
        """An open cv2.VideoCapture.

        Raises:
            UserError: the device's name is none of Video4Linux.
            CameraFault: there is no such device now, or it does not open.
        """
        path = Path(self.device)
        number = re.fullmatch(r"video(\d+)", path.resolve().name)
        if not path.exists():
            found = sorted(str(p) for p in Path("/dev").glob("video*"))
            raise CameraFault(f"{path}: no such device; available: {', '.join(found) or 'nothing'}")
        if number is None:
            raise UserError(f"{path}: expected a device of Video4Linux, such as /dev/video0")
        capture = cv2.VideoCapture(int(number[1]), cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraFault(f"{path}: does not open; another program may have it")
        return capture

    def describe(self) -> str:
        """Device, size, format and rate that were got."""
        return self._got

    def _listen(self, cv2: Any, capture: Any) -> None:
        """The thread: keep the newest picture until told to leave, or until none comes."""
        while not self._leaving:
            ok, image = capture.read()
            received = self._now()
            stamp_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
            with self._ready:
                if ok:
                    self._count += 1
                    self._dropped += self._newest is not None
                    self._newest = self._count, image, stamp_ms, received
                else:
                    self._fault = f"{self.device}: gives no pictures any more"
                self._ready.notify()
            if not ok:
                break
        capture.release()

    def read(self, frame: Frame, timeout_ms: int) -> bool:
        """The newest picture; older ones that were not read are counted as dropped."""
        with self._ready:
            there = self._ready.wait_for(
                lambda: self._newest is not None or bool(self._fault), timeout_ms * 1e-3
            )
            newest, self._newest = self._newest, None
        if newest is not None:
            return self._fill(frame, *newest)
        if there:
            raise CameraFault(self._fault)
        return False

    def _fill(
        self, frame: Frame, number: int, image: NDArray[Any], stamp_ms: float, received: int
    ) -> bool:
        pixels = self._pixels(image)
        if pixels is None or pixels.nbytes > len(frame.data):
            self._dropped += 1
            return False
        describe_frame(frame, self._calibration, FrameSource.REAL)
        frame.frame_id, frame.dropped, frame.size = number, self._dropped, pixels.nbytes
        frame.data[: frame.size] = pixels.reshape(-1).view(np.uint8)
        stamp = round(stamp_ms * 1e6)
        known = 0 <= received - stamp < PLAUSIBLE_NS
        # Exposure is not told: at most a period, which ended at the stamp.
        frame.t_eof_ns = stamp if known else received
        frame.t_sof_ns = frame.t_eof_ns - self._period_ns
        frame.t_mid_ns = frame.t_eof_ns - self._period_ns // 2
        frame.t_recv_ns, frame.clock = received, int(FrameClock.MONOTONIC)
        frame.clock_err_ns = self._period_ns // 2 + (0 if known else HIDDEN_NS)
        return True

    def _pixels(self, image: NDArray[Any]) -> NDArray[Any] | None:
        """What goes into the frame; None if the device gave something else than it said."""
        encoding, (wide, high) = self._calibration.encoding, self._calibration.file.sensor
        if encoding == Encoding.JPEG:
            return np.ascontiguousarray(image).reshape(-1)
        if encoding == Encoding.Z16:
            if image.nbytes != 2 * wide * high:
                return None
            image = np.ascontiguousarray(image).view("<u2").reshape(high, wide)
        elif image.shape != (high, wide, 3):
            return None
        elif encoding == Encoding.RGB8:
            image = image[:, :, ::-1]  # OpenCV's order is BGR
        elif encoding == Encoding.GRAY8:
            weights = np.array([0.114, 0.587, 0.299])  # blue, green, red (BT.601)
            image = np.round(image @ weights).astype(np.uint8)
        return apply_chain(image, self._calibration.file.chain)

    def close(self) -> None:
        """Let the device go."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._leaving = True
            thread.join(CLOSE_S)
