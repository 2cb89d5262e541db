"""Depth pictures by casting a ray per pixel: needs no GL, and equals MuJoCo's renderer."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.calibration import Calibration
from robot.messages import DepthKind

# Geom groups: terrain (0, 1) and the robot's own visible shapes (2), as the renderer shows them.
SEEN_GROUPS = (1, 1, 1, 0, 0, 0)
OWN_GROUPS = (0, 0, 1, 0, 0, 0)
FARTHEST_M = 50.0  # beyond it nothing is looked for, and a z16 pixel of 1 mm still holds it


class DepthRays:
    """The rays of one camera in one scene.

    Args:
        model: the scene, with the link that carries the camera.
        calibration: where each pixel looks, and whether depth is z or range.
        groups: geoms of which groups are seen.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        calibration: Calibration,
        groups: tuple[int, ...] = SEEN_GROUPS,
    ) -> None:
        self._model, self._link = model, model.body(calibration.file.link).id
        self.shape = calibration.shape
        self._rotation, self._position = calibration.rotation, calibration.position
        height, width = self.shape
        fx, fy, cx, cy = calibration.intrinsics
        rays = np.ones((height, width, 3))
        rays[..., 0] = (np.arange(width) + 0.5 - cx) / fx
        rays[..., 1] = ((np.arange(height) + 0.5 - cy) / fy)[:, None]
        length = np.linalg.norm(rays, axis=2)
        self._rays = (rays / length[..., None]).reshape(-1, 3)  # unit, so that distances are in m
        ranged = calibration.depth_kind == DepthKind.RANGE
        self._per_range = np.ones(height * width) if ranged else 1.0 / length.ravel()
        self._groups = np.array(groups, np.uint8)
        self._geom = np.zeros(height * width, np.int32)
        self._distance = np.zeros(height * width)

    def depth(self, data: mujoco.MjData) -> NDArray[np.float32]:
        """(height, width) m as the calibration's depth_kind says; 0 where nothing is seen.

        `data` needs mj_kinematics only. The link that carries the camera is not seen: it looks out
        of a housing, and a camera misplaced by a centimetre would be inside of it.
        """
        turn = data.xmat[self._link].reshape(3, 3)
        eye = data.xpos[self._link] + turn @ self._position
        rays = self._rays @ (turn @ self._rotation).T
        mujoco.mj_multiRay(
            self._model, data, eye, rays.ravel(), self._groups, True, self._link,
            self._geom, self._distance, None, len(rays), FARTHEST_M,
        )  # fmt: skip
        depth = np.where(self._distance < 0.0, 0.0, self._distance * self._per_range)
        return depth.reshape(self.shape).astype(np.float32)
