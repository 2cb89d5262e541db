"""The hardware edge of cameras: a few methods that every camera, real or simulated, implements.

`tests/test_cameras.py` holds the behaviour that every camera inherits.
"""

from __future__ import annotations

from typing import Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.calibration import Calibration
from robot.messages import Encoding, Frame, FrameSource


class CameraFault(Exception):
    """The camera is gone or gives nothing that can be used; the text names it."""


class Camera(Protocol):
    """A camera. One process alone owns it, and calls everything from one thread."""

    def open(self) -> None:
        """Connect.

        Raises:
            UserError: it cannot work here: a package is missing, or the settings are wrong.
            CameraFault: it is not there now; it may be later.
        """
        ...

    def describe(self) -> str:
        """One line: device, formats and rate as they were got."""
        ...

    def read(self, frame: Frame, timeout_ms: int) -> bool:
        """Wait for the next picture and fill `frame` with it (all but stamp and t_pub_ns).

        Returns:
            False if none came within `timeout_ms`; `frame` is left as it was.

        Raises:
            CameraFault: none will come until it is opened again.
        """
        ...

    def close(self) -> None:
        """Let go; may be called twice."""
        ...


class Eye(Protocol):
    """What a simulated camera sees of the world."""

    def describe(self) -> str:
        """What it sees and by what means."""
        ...

    def see(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """The bytes of a picture; mj_kinematics was done."""
        ...


def describe_frame(frame: Frame, calibration: Calibration, source: FrameSource) -> None:
    """Fill what is the same in every frame of a camera."""
    file = calibration.file
    frame.camera_id = file.name
    frame.calib_hash = calibration.calib_hash
    frame.width, frame.height, frame.stride = file.width, file.height, file.stride
    frame.size = 0 if calibration.encoding == Encoding.JPEG else file.frame_bytes
    frame.encoding, frame.depth_kind = int(calibration.encoding), int(calibration.depth_kind)
    frame.depth_scale_m, frame.source = file.depth_scale_m, int(source)
    frame.intrinsics[:] = calibration.intrinsics
    frame.camera_pos[:] = calibration.position
    frame.camera_quat_wxyz[:] = file.T_link_cam.quat_wxyz


def depth_of(frame: Frame) -> np.ndarray:
    """(height, width) float32 m of a z16 frame; 0 where there is none."""
    count = frame.width * frame.height
    pixels = frame.data[: 2 * count].view("<u2").reshape(frame.height, frame.width)
    return pixels * np.float32(frame.depth_scale_m)
