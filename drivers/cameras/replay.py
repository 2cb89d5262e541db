"""The frames of a log, shown again at their own pace, over and over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from robot.calibration import Calibration
from robot.config import UserError
from robot.log import Log
from robot.messages import Codec, Frame, FrameSource, Truth
from robot.model import Robot
from robot.runs import RunConfig

PAUSE_NS = 200_000_000  # between the last frame and the first one again
POLL_S = 0.004
TIMES = ("t_sof_ns", "t_mid_ns", "t_eof_ns", "t_recv_ns")


class ReplayCamera:
    """A camera whose pictures were taken before.

    Its times are the log's, moved so that ages are what they were; calibration and pixels stay.

    Args:
        run: names the log.
        robot: gives the layout that the log's frames must have.
        calibration: of the camera whose frames are shown.
        truths: not asked.
        now: the clock, ns.

    Raises:
        UserError: there is no such log, or it holds no frames of this layout.
    """

    def __init__(
        self,
        run: RunConfig,
        robot: Robot,
        calibration: Calibration,
        truths: Callable[[], Iterable[Truth]],
        now: Callable[[], int],
    ) -> None:
        path, topic = run.camera.log, f"frame.{calibration.file.name}"
        assert path is not None, "a run file without camera.log is refused"
        log = Log(path)
        if topic not in log.topics or not log.topics[topic].count:
            raise UserError(f"{path}: got no {topic}, expected a log of a run with a camera")
        frames, codec = log[topic], Codec(Frame, robot.dims, robot.robot_id)
        if frames.dtype != codec.dtype:
            raise UserError(
                f"{path}: {topic}: frames of {frames.dtype.itemsize} bytes, expected "
                f"{codec.dtype.itemsize} as of {calibration.path.name}"
            )
        self._bytes = frames.view(np.uint8).reshape(len(frames), codec.body_size)
        self._received: list[int] = frames["t_recv_ns"].tolist()
        ids = frames["frame_id"]
        self._ids = int(ids.max() - ids.min()) + 1  # what a turn adds to frame_id
        self._path, self._now = path, now
        self._at = self._turn = 0
        self._shift_ns: int | None = None

    def open(self) -> None:
        """From the first frame on."""
        self._at, self._shift_ns = 0, None

    def describe(self) -> str:
        """The log and how much is in it."""
        seconds = (self._received[-1] - self._received[0]) * 1e-9
        return f"{len(self._received)} frames of {self._path}, {seconds:.1f} s, over and over"

    def read(self, frame: Frame, timeout_ms: int) -> bool:
        """The next frame, when as much time has passed as between it and the first one."""
        if self._shift_ns is None:
            self._shift_ns = self._now() - self._received[0]
        due = self._received[self._at] + self._shift_ns
        deadline = time.monotonic() + timeout_ms * 1e-3
        while (remaining_ns := due - self._now()) > 0:
            left = deadline - time.monotonic()
            if left <= 0.0:
                return False
            time.sleep(min(remaining_ns * 1e-9, left, POLL_S))
        self._fill(frame)
        return True

    def _fill(self, frame: Frame) -> None:
        assert self._shift_ns is not None
        frame.buffer[8:] = self._bytes[self._at]
        for name in TIMES:
            setattr(frame, name, getattr(frame, name) + self._shift_ns)
        frame.frame_id += self._turn * self._ids
        frame.source = int(FrameSource.REPLAY)
        self._at += 1
        if self._at == len(self._received):
            self._at, self._turn = 0, self._turn + 1
            self._shift_ns += self._received[-1] - self._received[0] + PAUSE_NS

    def close(self) -> None:
        """Nothing to let go."""
