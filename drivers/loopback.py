"""A perfect robot without physics: each joint is at once where it was told to be."""

from __future__ import annotations

import numpy as np

from robot.messages import Health, LowCmd, LowState, Truth
from robot.model import Robot


class LoopbackDriver:
    """Obeys every command in one period; stands upright for ever.

    Args:
        robot: the pose it starts in is the stand pose.
        period_ns: control period; its clock advances by one per write.
    """

    simulated = True
    physics_cpu_ns = 0

    def __init__(self, robot: Robot, period_ns: int) -> None:
        self._period_ns = period_ns
        self._time_ns = 0
        self._joint_pos = robot.stand_joint_pos.copy()  # (N,) rad
        self._low, self._high = robot.position_limit.T  # (N,) rad each
        self._upright = np.array([1.0, 0.0, 0.0, 0.0])
        self._standing = np.array([0.0, 0.0, 9.81])  # m/s^2, what the IMU feels

    def open(self) -> None:
        """Nothing to connect to."""

    def read(self, state: LowState) -> None:
        """Report the pose that was commanded last."""
        state.robot_time_ns = self._time_ns
        state.joint_pos[:] = self._joint_pos
        state.joint_vel.fill(0.0)
        state.joint_effort.fill(0.0)
        state.imu_quat_wxyz[:] = self._upright
        state.imu_gyro.fill(0.0)
        state.imu_accel[:] = self._standing

    def write(self, cmd: LowCmd) -> None:
        """Joints with stiffness go to their target, or to their limit, within this period."""
        pos = self._joint_pos
        np.copyto(pos, cmd.joint_pos_target, where=cmd.stiffness > 0.0)
        np.minimum(np.maximum(pos, self._low, out=pos), self._high, out=pos)
        self._time_ns += self._period_ns

    def health(self, health: Health) -> bool:
        """Nothing ever ails it."""
        return False

    def truth(self, truth: Truth) -> bool:
        """There is no world to tell about."""
        return False

    def close(self) -> None:
        """Nothing to let go."""
