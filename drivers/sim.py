"""The robot in MuJoCo: motors with delay and torque-speed limits, sensors with noise, a gantry.

One control period of physics per write, never more: late ticks do not make the robot catch up.
Motor gains are integrated implicitly (implicitfast), as a drive's own fast loop would act.
"""

from __future__ import annotations

import math
import time

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.gantry import Gantry
from robot.config import UserError
from robot.messages import Health, LowCmd, LowState, Truth
from robot.model import Robot, compile_model
from robot.runs import SimConfig
from robot.safety import block
from robot.terrain import terrain_of

FREE_POS, FREE_VEL = 7, 6  # the floating base comes first in qpos and qvel
NOISE_TICKS = 64  # sensor noise is drawn for so many ticks at once


class SimDriver:
    """A simulated robot.

    Args:
        robot: joints, limits, gantry.
        config: noise, delay, limits, collisions.
        period_ns: control period, a whole number of physics steps.
        seed: of the sensor noise.

    Raises:
        UserError: low_state of this robot carries another IMU than the pelvis'.
    """

    simulated = True

    def __init__(self, robot: Robot, config: SimConfig, period_ns: int, seed: int) -> None:
        if robot.imu != "pelvis":
            raise UserError(f"{robot.path}: imu: {robot.imu!r}; this driver simulates the pelvis'")
        self.robot, self.config = robot, config
        self.physics_cpu_ns = 0
        self.model = compile_model(robot, config.collisions, terrain_of(config.terrain))
        self.model.opt.timestep = config.physics_dt
        self.data = mujoco.MjData(self.model)
        self._period_ns, self._time_ns = period_ns, 0
        self._steps = round(period_ns * 1e-9 / config.physics_dt)
        self._rng = np.random.default_rng(seed)
        n = robot.num_joints
        noise = config.noise
        sizes = [n, n, 3, 3, 4]
        self._sigma = np.repeat(
            [noise.joint_pos, noise.joint_vel, noise.imu_gyro, noise.imu_accel, noise.imu_quat / 2],
            sizes,
        )
        self._noise = np.zeros((NOISE_TICKS, len(self._sigma)))
        self._noise_views = [np.split(row, np.cumsum(sizes)[:-1]) for row in self._noise]
        self._ticks = 0
        # Views, since each access of an attribute of MjData makes a new array.
        data = self.data
        self._pos, self._vel = data.qpos[FREE_POS:], data.qvel[FREE_VEL:]
        self._quat, self._gyro = data.qpos[3:FREE_POS], data.qvel[3:FREE_VEL]
        self._accel = data.sensor("pelvis_accel").data
        self._effort, self._ctrl = data.qfrc_actuator[FREE_VEL:], data.ctrl
        self._inverse_speed = 1.0 / robot.velocity_limit
        self._share = np.zeros(n)  # (N,) speed over the velocity limit
        self._derated = True
        self._applied = b""  # all but the position targets, as applied last
        self._seen: tuple[LowCmd, NDArray] | None = None
        delay_ticks = round(config.actuator_delay_ms * 1e6 / period_ns)
        self._delayed: list[NDArray] = [np.zeros(5 * n + 4) for _ in range(delay_ticks + 1)]
        self._place()
        self.gantry = Gantry(robot, self.model, self.data, period_ns * 1e-9)

    def _place(self) -> None:
        """Stand pose with the soles on the floor."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:FREE_POS] = (0, 0, 1, 1, 0, 0, 0)
        self._pos[:] = self.robot.stand_joint_pos
        mujoco.mj_forward(self.model, self.data)
        self.data.qpos[2] -= lowest_foot_point(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    def open(self) -> None:
        """Nothing to connect to."""

    def read(self, state: LowState) -> None:
        """Measurements with noise; joint torques as the motors estimate them."""
        at = self._ticks % NOISE_TICKS
        if at == 0:
            noise = self._rng.standard_normal(out=self._noise)
            np.multiply(noise, self._sigma, out=noise)
        self._ticks += 1
        pos, vel, gyro, accel, quat = self._noise_views[at]
        state.robot_time_ns = self._time_ns
        np.add(self._pos, pos, out=state.joint_pos)
        np.add(self._vel, vel, out=state.joint_vel)
        state.joint_effort[:] = self._effort
        np.add(self._gyro, gyro, out=state.imu_gyro)
        np.add(self._accel, accel, out=state.imu_accel)
        np.add(self._quat, quat, out=quat)
        np.divide(quat, math.sqrt(quat.dot(quat)), out=state.imu_quat_wxyz)

    def write(self, cmd: LowCmd) -> None:
        """Apply the command that the delay lets through, and advance physics by one period."""
        begin = time.thread_time_ns()
        newest = self._delayed.pop()
        newest[:] = self._block_of(cmd)
        self._delayed.insert(0, newest)
        self._drive(self._delayed[-1])
        self.gantry.apply(cmd.mode, self._time_ns * 1e-9)
        for _ in range(self._steps):
            mujoco.mj_step(self.model, self.data)
        self._time_ns += self._period_ns
        self.physics_cpu_ns += time.thread_time_ns() - begin

    def _block_of(self, cmd: LowCmd) -> NDArray:
        """The five arrays of a command as one view."""
        if self._seen is None or self._seen[0] is not cmd:
            self._seen = cmd, block(cmd, "joint_pos_target", "damping")
        return self._seen[1]

    def _drive(self, values: NDArray) -> None:
        """Motor torque = kp (q* - q) + kd (dq* - dq) + ff within the torque-speed curve."""
        n = self.robot.num_joints
        self._ctrl[:] = values[:n]
        raw = values[n:].tobytes()
        if raw != self._applied:
            self._applied = raw
            # Behind each array of n numbers lies one count word.
            velocity, effort, stiffness, damping = values[n:].reshape(4, n + 1)[:, 1:]
            self.model.actuator_gainprm[:, 0] = stiffness
            self.model.actuator_biasprm[:, 1] = -stiffness
            self.model.actuator_biasprm[:, 2] = -damping
            self.model.actuator_biasprm[:, 0] = damping * velocity + effort
        self._limit_torque()

    def _limit_torque(self) -> None:
        """Above the corner speed, torque in the direction of motion falls to 0 at the limit."""
        share = np.multiply(self._vel, self._inverse_speed, out=self._share)
        corner = self.config.corner_speed
        if share.dot(share) < corner * corner and not self._derated:
            return  # surely none is that fast
        fast = bool(np.abs(share).max() > corner)
        if not fast and not self._derated:
            return
        self._derated = fast
        limit, fall = self.robot.effort_limit, 1.0 / (1.0 - self.config.corner_speed + 1e-9)
        ranges = self.model.actuator_forcerange
        ranges[:, 1] = limit * np.minimum(np.maximum((1.0 - share) * fall, 0.0), 1.0)
        ranges[:, 0] = -limit * np.minimum(np.maximum((1.0 + share) * fall, 0.0), 1.0)

    def health(self, health: Health) -> bool:
        """Nothing ever ails it."""
        return False

    def truth(self, truth: Truth) -> bool:
        """The world as it is, without noise."""
        data = self.data
        truth.sim_time_ns = self._time_ns
        truth.support_force = self.gantry.support_force
        truth.released, truth.hanging = self.gantry.released, self.gantry.hanging
        truth.base_pos_w[:] = data.qpos[:3]
        truth.base_quat_wxyz[:] = data.qpos[3:7]
        truth.base_lin_vel_w[:] = data.qvel[:3]
        truth.base_ang_vel_b[:] = data.qvel[3:6]
        truth.joint_pos[:] = self._pos
        return True

    def close(self) -> None:
        """Nothing to let go."""


def lowest_foot_point(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Height of the lowest point of all foot capsules above the world's origin, in m."""
    lowest = np.inf
    for i in range(model.ngeom):
        if "foot" not in model.geom(i).name or model.geom_type[i] != mujoco.mjtGeom.mjGEOM_CAPSULE:
            continue
        radius, half = model.geom_size[i, :2]
        axis_z = data.geom_xmat[i].reshape(3, 3)[2, 2]
        lowest = min(lowest, data.geom_xpos[i, 2] - radius - half * abs(axis_z))
    return float(lowest)
