"""The rope a simulated robot hangs on until it stands by itself, as people do with the real one."""

from __future__ import annotations

import mujoco
import numpy as np

from robot.messages import Mode
from robot.model import Robot

HANG_CLEARANCE = 0.03  # m, soles above the floor in the stand pose
LOWER_SPEED = 0.04  # m/s
HOIST_SPEED = 0.25  # m/s
HOIST_AFTER_S = 1.0  # in PASSIVE, before people would pull the robot up again
RELEASE_SHARE = 0.05  # of the weight: below this the rope is slack
RELEASE_AFTER_S = 0.5  # slack for so long
CALM_S = 1.0  # at full height before people would call the robot hung
SWING_DAMPING = 8.0  # N m s/rad, hands that keep the torso from swinging


class Gantry:
    """A spring and damper from a point of the torso to a moving hook; pulls upwards only.

    Args:
        robot: where it is attached, stiffness and damping.
        model: the compiled robot.
        data: in the stand pose, soles on the floor.
        period_s: time between two calls of `apply`.
    """

    def __init__(
        self, robot: Robot, model: mujoco.MjModel, data: mujoco.MjData, period_s: float
    ) -> None:
        gantry = robot.gantry
        self._data, self._period_s = data, period_s
        self._body = model.body(gantry.body).id
        self._point_b = np.array(gantry.point)  # (3,) m, in the torso's frame
        self.stiffness, self.damping = gantry.stiffness, gantry.damping
        self.weight = float(model.body_mass.sum() * -model.opt.gravity[2])  # N
        sag = self.weight / self.stiffness
        self.hang_height = float(self._point_w()[2]) + HANG_CLEARANCE + sag
        self.hook = self._point_w().copy()  # (3,) m, world
        self.hook[2] = self.hang_height
        self.released = False
        self.release_time_s = -1.0
        self.support_force = 0.0  # N, upwards
        self._last = self._point_w().copy()
        self._slack_s = self._passive_s = 0.0
        self._calm_s = CALM_S

    @property
    def hanging(self) -> bool:
        """True if the robot hangs at full height and has come to rest there for a moment."""
        return self._calm_s >= CALM_S

    def apply(self, mode: int, time_s: float) -> None:
        """Move the hook as the mode asks and pull; call once per control period."""
        if self.released and mode != Mode.PASSIVE:
            self._passive_s = 0.0
            return
        point = self._point_w()
        velocity = (point - self._last) / self._period_s
        self._last = point
        self._operate(mode, point, time_s)
        force = self._data.xfrc_applied[self._body]
        if self.released:
            force[:] = 0.0
            return
        pull = self.stiffness * (self.hook - point) - self.damping * velocity
        pull[2] = max(0.0, pull[2])
        self.support_force = float(pull[2])
        force[:3] = pull
        spin = self._data.cvel[self._body, :3]  # rad/s, world
        force[3:] = np.cross(point - self._data.xipos[self._body], pull) - SWING_DAMPING * spin

    def _operate(self, mode: int, point: np.ndarray, time_s: float) -> None:
        """What the person at the winch does."""
        dt = self._period_s
        self._passive_s = self._passive_s + dt if mode == Mode.PASSIVE else 0.0
        if self.released and self._passive_s > HOIST_AFTER_S:
            self.released = False
            self.hook, self._last = point.copy(), point
        if not self.released and mode in (Mode.PASSIVE, Mode.DAMP, Mode.STANDUP):
            self.hook[2] = min(self.hang_height, self.hook[2] + HOIST_SPEED * dt)
        up = not self.released and self.hook[2] >= self.hang_height
        self._calm_s = self._calm_s + dt if up else 0.0
        if self.released or mode not in (Mode.STAND, Mode.POLICY, Mode.HOLD):
            self._slack_s = 0.0
            return
        self.hook[2] -= LOWER_SPEED * dt
        slack = self.support_force < RELEASE_SHARE * self.weight
        self._slack_s = self._slack_s + dt if slack else 0.0
        if self._slack_s >= RELEASE_AFTER_S:
            self.released, self.release_time_s, self.support_force = True, time_s, 0.0

    def _point_w(self) -> np.ndarray:
        data, body = self._data, self._body
        return data.xpos[body] + data.xmat[body].reshape(3, 3) @ self._point_b
