"""Colour pictures of the simulated world, by MuJoCo's renderer off screen (EGL), as JPEG.

GL is asked for by EGL and nothing else, whatever MUJOCO_GL says: a node has no window. Without a
graphics processor Mesa draws on the processor, which `describe` shows by the renderer's name.
"""

from __future__ import annotations

import io
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robot.calibration import Calibration, aim_camera, mjcf_size
from robot.config import UserError
from robot.raycast import SEEN_GROUPS

QUALITIES = (80, 50, 20)  # of JPEG; the first one that fits a frame is taken
MAX_GEOMS = 2000
# What costs most without a graphics processor, and shows least.
FLAT = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
ROUND = (14, 8)  # facets of a capsule around and along


class ColourEye:
    """Sees colour.

    Args:
        model: the scene, in which the camera has its calibration's name; it is aimed anew.
        calibration: where the camera really is.

    Raises:
        UserError: there is no GL here; says why.
    """

    def __init__(self, model: mujoco.MjModel, calibration: Calibration) -> None:
        file = calibration.file
        self._model, self._room, self._shape = model, file.frame_bytes, calibration.shape
        wide, high = mjcf_size(file)
        # Where the frame begins in MuJoCo's image, whose centre is the camera's axis.
        self._left, self._top = round(wide / 2 - file.cx), round(high / 2 - file.cy)
        aim_camera(model, calibration)
        model.vis.quality.offsamples = 0
        model.vis.quality.numslices, model.vis.quality.numstacks = ROUND
        self._context, self.renderer = _gl(wide, high)
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        for flag in FLAT:
            self._scene.flags[flag] = False
        self._drawer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._drawer)
        self._camera, self._option = mujoco.MjvCamera(), mujoco.MjvOption()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(file.name).id
        self._option.geomgroup[:] = SEEN_GROUPS
        self._rect = mujoco.MjrRect(0, 0, wide, high)
        self._image = np.zeros((high, wide, 3), np.uint8)

    def describe(self) -> str:
        """What it sees and who draws it."""
        return f"colour, drawn by {self.renderer}"

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """(height, width, 3) RGB, row 0 on top; `data` needs mj_kinematics only."""
        model = self._model
        mujoco.mj_comPos(model, data)  # lights follow the robot
        mujoco.mj_camlight(model, data)
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )  # fmt: skip
        mujoco.mjr_render(self._rect, self._scene, self._drawer)
        mujoco.mjr_readPixels(self._image, None, self._rect, self._drawer)
        height, width = self._shape
        return self._image[::-1][self._top : self._top + height, self._left : self._left + width]

    def see(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """A JPEG picture of the scene that fits into a frame."""
        image = Image.fromarray(np.ascontiguousarray(self.render(data)))
        jpeg = b""
        for quality in QUALITIES:
            memory = io.BytesIO()
            image.save(memory, "JPEG", quality=quality)
            jpeg = memory.getvalue()
            if len(jpeg) <= self._room:
                break
        return np.frombuffer(jpeg, np.uint8)[: self._room]


def _gl(width: int, height: int) -> tuple[Any, str]:
    """A current context for this thread, and the name of what draws."""
    try:
        from mujoco.egl import GLContext
        from OpenGL import GL

        context = GLContext(width, height)
        context.make_current()
        return context, bytes(GL.glGetString(GL.GL_RENDERER) or b"unknown").decode()
    # PyOpenGL without a library of the system behind it fails with AttributeError.
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"no GL for drawing off screen by EGL ({reason})") from None
