"""The robot as pages draw it: its primitives and its ground once, then poses of its bodies."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.messages import LowState, Truth
from robot.model import Robot, compile_model
from robot.terrain import FLAT, Terrain

VISUAL_GROUP = 2  # of geoms, as g1.xml says
DARK = np.array([0.10, 0.12, 0.145])  # of the ground's colours: pages are dark, and a little blue
FIXED_HEIGHT = 0.8  # m, of the pelvis where nothing tells it
FORMS = {
    mujoco.mjtGeom.mjGEOM_SPHERE: "sphere", mujoco.mjtGeom.mjGEOM_CAPSULE: "capsule",
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: "sphere", mujoco.mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mujoco.mjtGeom.mjGEOM_BOX: "box",
}  # fmt: skip


class Shapes:
    """Forward kinematics of one robot, for pictures.

    Args:
        robot: gives the MJCF. Visual geoms that are no primitives are left out.
        terrain: what it walks on.
    """

    def __init__(self, robot: Robot, terrain: Terrain = FLAT) -> None:
        self._model = compile_model(robot, terrain=terrain)
        self._data = mujoco.MjData(self._model)
        self._out = np.zeros((self._model.nbody - 1, 7), np.float32)

    @property
    def numbers(self) -> int:
        """How many numbers the poses of all bodies are."""
        return self._out.size

    def geoms(self) -> list[dict[str, Any]]:
        """One row per visual primitive: body (row of `poses`; -1: the world), form, pose in
        the body, size, rgb.

        `size` is the half extent on each axis, without the half spheres at the ends of a capsule;
        `ends` is half the length between them.
        """
        model, rows = self._model, []
        for i in range(model.ngeom):
            form = FORMS.get(mujoco.mjtGeom(model.geom_type[i]))
            ground = model.geom_bodyid[i] == 0
            if form is None or (model.geom_group[i] != VISUAL_GROUP and not ground):
                continue
            a, b, c = model.geom_size[i].tolist()
            kind = mujoco.mjtGeom(model.geom_type[i])
            size, ends = {
                mujoco.mjtGeom.mjGEOM_SPHERE: ([a, a, a], 0.0),
                mujoco.mjtGeom.mjGEOM_CAPSULE: ([a, a, a], b),
                mujoco.mjtGeom.mjGEOM_CYLINDER: ([a, a, b], 0.0),
            }.get(kind, ([a, b, c], 0.0))
            rgba = model.geom_rgba[i] if model.geom_matid[i] < 0 else self._material(i)
            rgb = rgba[:3] * DARK if ground else rgba[:3]
            rows.append({
                "body": int(model.geom_bodyid[i]) - 1, "form": form,
                "pos": _short(model.geom_pos[i]), "quat": _short(model.geom_quat[i]),
                "size": _short(size), "ends": round(ends, 5), "rgb": _short(rgb),
            })  # fmt: skip
        return rows

    def _material(self, geom: int) -> NDArray[Any]:
        return self._model.mat_rgba[self._model.geom_matid[geom]]

    def poses(self, message: Truth | LowState) -> bytes:
        """(bodies, 7) float32: position in m and orientation as wxyz of every body, world frame.

        Of a real robot only joints and the IMU are known: it is drawn at one place.
        """
        if isinstance(message, Truth):
            place = message.base_pos_w, message.base_quat_wxyz
        else:
            place = (0.0, 0.0, FIXED_HEIGHT), message.imu_quat_wxyz
        return self.place(*place, message.joint_pos).tobytes()

    def place(self, base_pos: Any, base_quat: Any, joint_pos: Any) -> NDArray[np.float32]:
        """(bodies, 7) as `poses`; the memory is used again.

        Args:
            base_pos: (3,) m, world.
            base_quat: (4,) wxyz.
            joint_pos: (joints,) rad.
        """
        data = self._data
        data.qpos[:3], data.qpos[3:7], data.qpos[7:] = base_pos, base_quat, joint_pos
        mujoco.mj_kinematics(self._model, data)
        self._out[:, :3] = data.xpos[1:]
        self._out[:, 3:] = data.xquat[1:]
        return self._out


def _short(values: Any) -> list[float]:
    return [round(float(v), 5) for v in values]
