"""Judges whether a G1's IMU agrees with itself and with the leg that bears the robot.

Pure stages over samples. `ImuWatch` holds gravity against orientation and rates against turning: it
tells an axis that is swapped or a gyro that drifts. `LegWatch` tells an IMU that is wholly turned
and says so consistently, but not one that is turned about the vertical. Ids are rows of the fault
table.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.estimator import FEET, make_legs
from robot.model import Robot

GRAVITY = 9.81  # m/s^2
SMOOTH_MS = 200.0  # steps and shakes of a walk are over in less
OFF_GRAVITY = 0.6  # share of gravity, felt beside what is called up (S6)
OFF_RATE = 0.15  # rad/s between the gyro and the orientation's turning (S7)
GAP_MS = 100  # between two samples: what happened meanwhile is not known; SMOOTH_MS at most

# A walk on the flat tips the sole that bears by 12 degrees, one that is pushed or climbs by 24 for
# a moment before it falls (S6); DECISIONS has the table.
OFF_LEGS = 0.5  # rad between what the IMU calls up and the sole that bears, smoothed
LEGS_MS, LEGS_SMOOTH_MS = 20, 100.0  # between two looks; a foot that rolls over an edge is over it
BEARS = 3.0  # N m in a knee: a leg that hangs limp has less, one that stands more
KNEES = ("left_knee_joint", "right_knee_joint")


class ImuWatch:
    """Differences that should be zero, smoothed.

    Attributes:
        off_gravity: (3,) share of gravity, body frame: felt acceleration less the way up.
        off_rate: (3,) rad/s, body frame: the gyro less the turning of the orientation.
        doubted_ms: for how long gravity has been off by more than OFF_GRAVITY.
    """

    def __init__(self) -> None:
        self.off_gravity, self.off_rate = [0.0] * 3, [0.0] * 3
        self.doubted_ms = 0
        self._quat: tuple[float, float, float, float] | None = None

    def hear(self, quat: NDArray, gyro: NDArray, accel: NDArray, passed_ms: int) -> None:
        """Take a sample.

        Args:
            quat: (4,) w x y z.
            gyro: (3,) rad/s, body frame.
            accel: (3,) m/s^2, body frame.
            passed_ms: since the sample before.
        """
        w, x, y, z = now = tuple(quat.tolist())
        rates, felt = gyro.tolist(), accel.tolist()
        if not math.isfinite(w + x + y + z + sum(rates) + sum(felt)):
            return  # such a state is refused elsewhere
        before, self._quat = self._quat, now
        if before is None or not 0 < passed_ms < GAP_MS:
            return
        up = (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y))
        turned, share = turning(before, now, passed_ms * 1e-3), passed_ms / SMOOTH_MS
        for axis in range(3):
            off = felt[axis] / GRAVITY - up[axis] - self.off_gravity[axis]
            self.off_gravity[axis] += share * off
            off = rates[axis] - turned[axis] - self.off_rate[axis]
            self.off_rate[axis] += share * off
        doubted = math.hypot(*self.off_gravity) > OFF_GRAVITY
        self.doubted_ms = self.doubted_ms + passed_ms if doubted else 0

    @property
    def drifts(self) -> bool:
        """True if the gyro says another turning than the orientation."""
        return math.hypot(*self.off_rate) > OFF_RATE


class LegWatch:
    """The angle between what the IMU calls up and the sole of the leg that bears, smoothed.

    Soles lie flat on what carries them, so that is the ground's slope if the IMU is right. Where
    neither leg bears, as in the air, nothing is off.

    Args:
        robot: its legs.

    Attributes:
        off: rad.
        doubted_ms: for how long it has been more than OFF_LEGS.
    """

    def __init__(self, robot: Robot) -> None:
        model, _ = make_legs(robot)
        self._model, data = model, mujoco.MjData(model)
        data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)  # all is seen from the pelvis
        names = [model.joint(i).name for i in range(1, model.njnt)]
        self._rows = np.array([robot.joint_names.index(name) for name in names])
        self._knees = [robot.joint_names.index(name) for name in KNEES]
        self._data, self._joints = data, data.qpos[7:]
        # Views: the way up of each sole, in the pelvis frame.
        self._ups = [data.xmat[model.site(name).bodyid[0]][2::3] for name in FEET]
        self.off, self.doubted_ms, self._passed_ms = 0.0, 0, 0

    def hear(self, quat: NDArray, pos: NDArray, torque: NDArray, passed_ms: int) -> None:
        """Take a sample; most are passed over.

        Args:
            quat: (4,) w x y z.
            pos: (N,) rad, joints.
            torque: (N,) N m, as the motors estimate it.
            passed_ms: since the sample before.
        """
        self._passed_ms += passed_ms
        if self._passed_ms < LEGS_MS:
            return
        passed_ms, self._passed_ms = min(self._passed_ms, GAP_MS), 0
        angle = self._angle(quat, pos, torque)
        if not math.isfinite(angle):
            return  # such a state is refused elsewhere
        self.off += min(1.0, passed_ms / LEGS_SMOOTH_MS) * (angle - self.off)
        self.doubted_ms = self.doubted_ms + passed_ms if self.off > OFF_LEGS else 0

    def _angle(self, quat: NDArray, pos: NDArray, torque: NDArray) -> float:
        left, right = (abs(float(torque[knee])) for knee in self._knees)
        if max(left, right) < BEARS:
            return 0.0
        self._joints[:] = pos[self._rows]
        mujoco.mj_kinematics(self._model, self._data)
        sole = self._ups[left < right].tolist()
        w, x, y, z = quat.tolist()
        up = (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y))
        return math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(sole, up, strict=True)))))


def turning(
    before: tuple[float, float, float, float], after: tuple[float, float, float, float], dt: float
) -> tuple[float, float, float]:
    """Mean rate in rad/s, body frame, between two orientations (w x y z) that are `dt` s apart."""
    a, b, c, d = before
    w, x, y, z = after
    cosine = a * w + b * x + c * y + d * z
    twice = math.copysign(2.0 / dt, cosine)  # q and -q are one orientation
    return (
        twice * (a * x - b * w - c * z + d * y),
        twice * (a * y + b * z - c * w - d * x),
        twice * (a * z - b * y + c * x - d * w),
    )
