"""The robot as pages draw it: the visual primitives of its MJCF once, then poses of its bodies."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.messages import LowState, Truth
from robot.model import Robot, compile_model

VISUAL_GROUP = 2  # of geoms, as g1.xml says
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
    """

    def __init__(self, robot: Robot) -> None:
        self._model = compile_model(robot)
        self._data = mujoco.MjData(self._model)
        self._out = np.zeros((self._model.nbody - 1, 7), np.float32)

    @property
    def numbers(self) -> int:
        """How many numbers the poses of all bodies are."""
        return self._out.size

    def geoms(self) -> list[dict[str, Any]]:
        """One row per visual primitive: body (row of `poses`), form, pose in the body, size, rgb.

        `size` is the half extent on each axis, without the half spheres at the ends of a capsule;
        `ends` is half the length between them.
        """
        model, rows = self._model, []
        for i in range(model.ngeom):
            form = FORMS.get(mujoco.mjtGeom(model.geom_type[i]))
            if model.geom_group[i] != VISUAL_GROUP or form is None or model.geom_bodyid[i] == 0:
                continue
            a, b, c = model.geom_size[i].tolist()
            kind = mujoco.mjtGeom(model.geom_type[i])
            size, ends = {
                mujoco.mjtGeom.mjGEOM_SPHERE: ([a, a, a], 0.0),
                mujoco.mjtGeom.mjGEOM_CAPSULE: ([a, a, a], b),
                mujoco.mjtGeom.mjGEOM_CYLINDER: ([a, a, b], 0.0),
            }.get(kind, ([a, b, c], 0.0))
            rgba = model.geom_rgba[i] if model.geom_matid[i] < 0 else self._material(i)
            rows.append({
                "body": int(model.geom_bodyid[i]) - 1, "form": form,
                "pos": _short(model.geom_pos[i]), "quat": _short(model.geom_quat[i]),
                "size": _short(size), "ends": round(ends, 5), "rgb": _short(rgba[:3]),
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
