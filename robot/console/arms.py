"""Where the driver wants the arms: a wish that moves to slider, pose or point while that is held.

It begins where control has the arms, is no faster than control lets them be, and never runs ahead
of control; let go, it is forgotten, and the arms stay. What a step may do is in hands.py.
"""

from __future__ import annotations

from typing import Any

from robot.console.hands import Hands
from robot.console.poses import load_arms
from robot.console.wire import ToJoints, ToPoint, ToPose
from robot.messages import VALID_ARMS, PolicyInput
from robot.model import FloatArray, Robot

SPEED = 0.8  # rad/s; control's own bound is 1 rad/s (control.ARM_SPEED)
LEAD = 0.2  # rad that the wish is ahead of what control has accepted, at most
STEP_S = 0.02  # samples that come faster cost no step each
PAUSE_S = 0.15  # a longer gap between two samples moves the arms no further than this one
Goal = ToJoints | ToPose | ToPoint


class ArmWish:
    """The stage: what is held and control's word in, arm targets out.

    Args:
        robot: joints and limits; its hands and poses are read beside its file.

    Raises:
        UserError: the robot's arms.yaml has a mistake.
    """

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        given = load_arms(robot)
        self.poses = given.poses
        self.hand_names = tuple(given.hands)
        self.hands = Hands(robot, tuple(given.hands.values()))
        self.in_force: FloatArray | None = None  # (A,) rad, what control tells the policy
        self._wish: FloatArray | None = None
        self._at_ns = 0

    def hear(self, told: PolicyInput) -> None:
        """Control's word: where the arms are told to be, or else where they are measured."""
        measured = told.joint_pos[self._robot.arm_joints]
        self.in_force = told.arm_joint_pos if told.command_valid & VALID_ARMS else measured
        self.hands.see(told.joint_pos)

    def step(self, goal: Goal | None, fast: float, now_ns: int) -> FloatArray | None:
        """The arms' targets now, (A,) rad; None: nobody moves them.

        Args:
            goal: what is held; None if nothing is.
            fast: share of the speed that an operator's samples may ask for.
        """
        if goal is None or self.in_force is None:
            self._wish = None
            return None
        if self._wish is None:
            self._wish, self._at_ns = self.in_force.copy(), now_ns
        passed_s = (now_ns - self._at_ns) * 1e-9
        if passed_s < STEP_S:
            return self._wish
        self._at_ns = now_ns
        most = SPEED * fast * min(passed_s, PAUSE_S)
        if most > 0.0 and abs(self._wish - self.in_force).max() <= LEAD:
            self._wish = self._move(self._wish, goal, most)
        return self._wish

    def _move(self, arms: FloatArray, goal: Goal, most: float) -> FloatArray:
        """One step; a row that this robot does not have moves nothing."""
        if isinstance(goal, ToPoint):
            known = goal.hand < len(self.hand_names)
            return self.hands.reach(arms, goal.hand, goal.at, most) if known else arms
        if isinstance(goal, ToPose):
            known = goal.pose < len(self.poses)
            wish = self.poses[goal.pose].arm_joint_pos if known else arms
            return self.hands.toward(arms, wish, most)
        wish = arms.copy()
        for row, value in goal.joints:
            if row < len(wish):
                wish[row] = value
        return self.hands.toward(arms, wish, most)

    def hello(self) -> dict[str, Any]:
        """What pages need to know once: rows of the arm joints, hands and poses."""
        return {
            "rows": self._robot.arm_joints.tolist(),
            "hands": self.hands.places(self.hand_names),
            "poses": [{"name": pose.name, "doc": pose.doc} for pose in self.poses],
        }

    def told(self) -> list[float] | None:
        """Where control has the arms, for pages."""
        return None if self.in_force is None else [round(float(v), 3) for v in self.in_force]
