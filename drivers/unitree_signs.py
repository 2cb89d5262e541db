"""The commissioning move of a G1 that hangs: does each joint turn the way its torque pushes (S13)?

A pure stage: told what the joints do, it says which torque they get. A joint or two at a time are
pushed towards the middle of their range, ever more, until they have moved a little. Most that can
happen to a joint whose sign is wrong is that little, the other way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robot.model import Robot

MOVED = 0.02  # rad: enough to be no swaying
MOST, PUSH_S = 0.15, 0.6  # share of a motor's torque, reached after so long
REST, SETTLE_S, PATIENCE_S = 0.004, 0.15, 8.0  # rad of motion in so long; given up after so long
LEG, WAIST, ARM = 6, 3, 7  # joints, in the order of the motors: two legs, waist, two arms
# Both sides at once, else one by one: what one joint does sways its neighbours.
ROUNDS = (
    *((i, LEG + i) for i in range(LEG)),
    *((2 * LEG + i,) for i in range(WAIST)),
    *((2 * LEG + WAIST + i, 2 * LEG + WAIST + ARM + i) for i in range(ARM)),
)


class SignTrial:
    """The whole move.

    Args:
        robot: limits of torque and range, names.

    Attributes:
        complaint: what is wrong, "" while nothing is.
    """

    def __init__(self, robot: Robot) -> None:
        self.robot, self.complaint = robot, ""
        self._middle = robot.position_limit.mean(axis=1)
        self._rounds = list(ROUNDS)
        self._passed_s = self._still_s = 0.0
        self._begin = np.full(len(self._middle), np.nan)  # (N,) rad, where joints came to rest
        self._left: list[int] = []  # joints that are pushed and have not moved yet

    def step(self, pos: NDArray, dt: float) -> NDArray[np.float64] | None:
        """(N,) N m to give next; None when it is over.

        Args:
            pos: (N,) rad.
            dt: s since the last call.
        """
        torque = np.zeros(len(self._middle))
        self._passed_s += dt
        if self._left:
            self._push(pos, torque)
        else:
            self._settle(pos, dt)
        return None if self.complaint or not self._rounds else torque

    def _settle(self, pos: NDArray, dt: float) -> None:
        """No joint is pushed before it is at rest."""
        joints = list(self._rounds[0])
        moved = np.abs(pos[joints] - self._begin[joints])
        self._still_s += dt
        if not moved.max() < REST:  # nor is it by what is not known yet
            self._begin, self._still_s = np.array(pos, float), 0.0
        if self._still_s >= SETTLE_S:
            self._left, self._passed_s = joints, 0.0
        elif self._passed_s > PATIENCE_S:
            name = self.robot.joint_names[joints[int(moved.argmax())]]
            self.complaint = f"{name} did not come to rest in {PATIENCE_S:.0f} s"

    def _push(self, pos: NDArray, torque: NDArray[np.float64]) -> None:
        begin = self._begin
        for joint in list(self._left):
            name = self.robot.joint_names[joint]
            way = 1.0 if begin[joint] < self._middle[joint] else -1.0
            push = min(1.0, self._passed_s / PUSH_S) * MOST * self.robot.effort_limit[joint]
            moved = way * (pos[joint] - begin[joint])
            if moved <= -MOVED:
                self.complaint = f"{name} turned against its torque: its sign is wrong"
            elif moved >= MOVED:
                self._left.remove(joint)
            elif self._passed_s > PUSH_S:
                self.complaint = f"{name} did not move under {push:.1f} N m"
            else:
                torque[joint] = way * push
        if not self._left:
            self._rounds.pop(0)
            self._begin[:], self._passed_s = np.nan, 0.0
