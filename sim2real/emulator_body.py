"""The emulated G1's motors and the people at its gantry: what has mass and what holds it.

Of drives the documents say little: what is chosen here for want of knowledge is marked so.
"""

from __future__ import annotations

import mujoco
import numpy as np

from drivers.gantry import Gantry
from robot.messages import Mode
from robot.model import Robot
from sim2real import emulator_wire as wire

JOINTS = 29
TICK_MS = 1  # motors and physics
STATE_MS = 2  # LowState
TIMEOUT_MS = 50  # chosen: the robot has one, its length is not published
TIMEOUT_DAMPING = 3.0  # N m s/rad; chosen: what the motors do then is not published either
STIFF = 10.0  # N m/rad: from here on people see that the motors hold the robot
LOWER_AFTER_S = 4.5  # stiff for so long, and people let it down
AMBIENT, HEAT, COOLING_S = 30.0, 2.0, 120.0  # degrees, degrees per s at full torque, s; chosen


class Motors:
    """29 drives: what they were told, their own time-out, their heat.

    Args:
        robot: limits.
        model: gets the gains.
        data: is driven.
    """

    def __init__(self, robot: Robot, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.robot, self.model, self.data = robot, model, data
        self.timeout_ms = TIMEOUT_MS
        self.winding = np.full(JOINTS, AMBIENT)
        self.command = np.zeros((JOINTS, 6))  # mode, q, dq, tau, kp, kd
        self.off: int | None = None  # a motor without power
        self.silent_ms = 0
        self.ever = self.timed_out = False
        self._ctrl = data.ctrl

    def obey(self, motors: list[wire.MotorCommand]) -> None:
        """A command for all."""
        self.command[:] = motors[:JOINTS]
        self.silent_ms, self.ever, self.timed_out = 0, True, False
        self._engage()

    def limp(self) -> None:
        """No torque, and nothing to wait for."""
        self.command[:] = 0.0
        self.ever = self.timed_out = False
        self._engage()

    def damp(self) -> None:
        """What the vendor's service does while it owns the robot, and motors left alone; chosen."""
        self.command[:] = (1.0, 0.0, 0.0, 0.0, 0.0, TIMEOUT_DAMPING)
        self.ever = False
        self._engage()

    def pass_time(self, off: int | None, watchful: bool) -> None:
        """One millisecond: has somebody spoken lately? A motor that is not watchful never asks."""
        if off != self.off:
            self.off = off
            self._engage()
        if not (self.ever and watchful):
            return
        self.silent_ms += TICK_MS
        if self.silent_ms > self.timeout_ms and not self.timed_out:
            self.damp()
            self.ever = self.timed_out = True

    def _engage(self) -> None:
        """Torque = tau + kp (q* - q) + kd (dq* - dq), as MuJoCo's actuators say it."""
        finite = np.isfinite(self.command).all(axis=1, keepdims=True)
        command = np.where(finite, self.command, 0.0)
        on = (command[:, 0] == 1.0).astype(float)
        if self.off is not None:
            on[self.off] = 0.0
        _, q, dq, tau, kp, kd = command.T
        model = self.model
        self._ctrl[:] = q
        model.actuator_gainprm[:, 0] = kp * on
        model.actuator_biasprm[:, 1] = -kp * on
        model.actuator_biasprm[:, 2] = -kd * on
        model.actuator_biasprm[:, 0] = (kd * dq + tau) * on

    def heat(self, torque: np.ndarray) -> None:
        """Two milliseconds: windings warm with the square of torque and cool towards the air.

        Of their own torque: a knee that carries the robot is built for it.
        """
        dt, share = STATE_MS * 1e-3, torque / self.robot.effort_limit
        self.winding += dt * (HEAT * share * share - (self.winding - AMBIENT) / COOLING_S)

    @property
    def stiff(self) -> bool:
        """True if they hold the robot in a pose."""
        return bool(self.command[:, 4].mean() > STIFF)


class Crew:
    """The people at the gantry, who see only what the robot does.

    Args:
        gantry: what they work with.
    """

    def __init__(self, gantry: Gantry) -> None:
        self.gantry = gantry
        self._stiff_s = 0.0

    def work(self, stiff: bool, time_s: float, dt: float) -> None:
        """Let a robot down that has held itself for a while; pull up one that does not."""
        self._stiff_s = self._stiff_s + dt if stiff else 0.0
        if stiff:
            mode = Mode.STAND if self._stiff_s > LOWER_AFTER_S else Mode.STANDUP
        else:
            mode = Mode.PASSIVE if self.gantry.released else Mode.DAMP
        self.gantry.apply(mode, time_s)
