"""Bounds every command before it reaches a motor; the last link of the chain, with no other job.

Order within a tick (faults.md 4): finite, gains, target step, motion into limits, torque.
Impossible input is refused by `Gate`; bounded excess is clipped by `SafetyFilter`, which returns
what it changed. Age and authority are judged by control, shapes by the bus.

A target beyond a position limit is legal: soft gains ask for torque that way. What is bounded is
motion and torque *into* the limit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot.messages import LowCmd, LowState, Message, Target
from robot.model import Robot

LIMITERS = ("gain", "step", "position", "torque")
GAIN, STEP, POSITION, TORQUE = (1 << i for i in range(4))

QUAT_TOLERANCE = 0.02  # length of a measured quaternion against 1 (S3)
SOFTEST = 1.0  # N m/rad; below it a torque bound moves feed-forward instead of the target
MOST_EFFORT, MOST_SPEED = 1e4, 1e3  # N m, rad/s; far beyond any motor
BOX = 0.1  # of the way to a limit: how far the quick test's box reaches
DERATE_BAND = 10.0  # K below a motor's limit, in which its torque is taken back (S14)
DERATE_LEAST = 0.5  # share of torque that is left at the limit: a crouch must be held
BUCKET_STATE = 5  # bad states in the leaky bucket until DAMP (S1, opendbc)
CLIPPED, CLIPPED_HARD = 0.05, 0.2  # share of the last second's, half second's ticks
BUCKET_TARGET = 3  # bad targets until DAMP (P1)


class Clip(NamedTuple):
    """What the filter changed in one tick: all limiters as bits, and the joint changed most."""

    limiters: int
    limiter: int  # row of LIMITERS
    joint: int
    before: float
    after: float


class LeakyBucket:
    """+1 for bad, -1 for good; trips at `size`, recovers when empty."""

    def __init__(self, size: int) -> None:
        self.size, self.level, self.total, self.tripped = size, 0, 0, False

    def count(self, good: bool) -> None:
        """Account for one item."""
        if good:
            self.level = max(0, self.level - 1)
            self.tripped = self.tripped and self.level > 0
            return
        self.total += 1
        self.level = min(self.size, self.level + 1)
        self.tripped = self.tripped or self.level >= self.size


def block(message: Message, first: str, last: str) -> NDArray[np.float64]:
    """All float64 arrays from field `first` to field `last` as one flat view.

    Between two sequences lie eight bytes of count and padding; read as float64 they are tiny
    numbers in our own messages, and in a foreign one they fail the finite test, which is right.
    """
    slots = {slot.name: slot for slot in message.codec.slots}
    start = 8 + slots[first].offset
    end = 8 + slots[last].offset + slots[last].nbytes
    return message.buffer[start:end].view(np.float64)


def rows(message: Message, first: str, last: str) -> NDArray[np.float64]:
    """(K, N) view of the K neighbouring float64 sequences of N from field `first` to `last`."""
    slots = {slot.name: slot for slot in message.codec.slots}
    start, n = slots[first].offset, slots[first].count
    stride = 8 * (n + 1)  # a count word and padding lie between two of them
    k = (slots[last].offset - start) // stride + 1
    return np.ndarray((k, n), np.float64, message.memory, 8 + start, (stride, 8))


class _Check(NamedTuple):
    """A message, kept so that its id is nobody else's; its numbers; room for an answer on each."""

    message: Message
    values: NDArray[np.float64]
    flags: bytearray  # searching bytes costs a tenth of reducing an array of booleans
    finite: NDArray[np.bool_]  # the same memory

    @classmethod
    def of(cls, message: Message, first: str, last: str) -> _Check:
        values = block(message, first, last)
        flags = bytearray(len(values))
        return cls(message, values, flags, np.frombuffer(flags, np.bool_))


class Gate:
    """Refuses impossible content: not finite, or a quaternion that is none. Counts it.

    A sum compared with itself would miss a single infinity; isfinite does not.
    """

    def __init__(self, first: str, last: str, bucket: int) -> None:
        self.first, self.last = first, last
        self.bucket = LeakyBucket(bucket)
        self._checks: dict[int, _Check] = {}  # by message

    def admits(self, message: Message) -> bool:
        """True if every number is finite and gains are not negative; counts either way."""
        good = self._good(message)
        if self.bucket.level or not good:  # nothing leaks out of an empty bucket
            self.bucket.count(good)
        return good

    def _good(self, message: Message) -> bool:
        check = self._checks.get(id(message))
        if check is None:
            check = self._checks[id(message)] = _Check.of(message, self.first, self.last)
        np.isfinite(check.values, check.finite)
        if 0 in check.flags:
            return False
        if isinstance(message, LowState):
            w, x, y, z = message.imu_quat_wxyz.tolist()
            return abs(math.sqrt(w * w + x * x + y * y + z * z) - 1.0) <= QUAT_TOLERANCE
        if isinstance(message, Target):
            least = min(np.minimum.reduce(message.stiffness), np.minimum.reduce(message.damping))
            return bool(least >= 0.0)
        return True


class _Views(NamedTuple):
    """Blocks of a command or a state, found once per message."""

    message: Message  # kept, so that its id is nobody else's
    whole: NDArray[np.float64]  # a command's five arrays
    motion: NDArray[np.float64]  # positions, count word, velocities
    gains: NDArray[np.float64]  # stiffness, count word, damping; of a state: its motion

    @classmethod
    def of(cls, message: LowCmd | LowState) -> _Views:
        if isinstance(message, LowState):
            motion = block(message, "joint_pos", "joint_vel")
            return cls(message, motion, motion, motion)
        return cls(
            message,
            block(message, "joint_pos_target", "damping"),
            block(message, "joint_pos_target", "joint_vel_target"),
            block(message, "stiffness", "damping"),
        )


class QuickTest:
    """Says True only where the torque bound would surely change nothing, in six array operations.

    Room: a joint may move at any speed that it could brake before the limit it moves to. Tested is
    a box of positions and speeds, laid around the motion whenever it has left the last one; who is
    in it could brake from its corner. Torque: the squares of all shares of the motors' torque add
    up to less than 1.

    Args:
        robot: limits per joint.
    """

    def __init__(self, robot: Robot) -> None:
        n = robot.num_joints
        low, high = robot.position_limit.T
        self._range = high - low
        self._ends = np.stack([low, -high])  # (2, N) rad, towards each end as negative
        self._twice_braking = 2.0 * robot.safety.braking_acceleration * (1.0 - BOX)
        self._band = robot.safety.braking_band
        # The first box is empty. Between positions and speeds lies a count word, a tiny number.
        self._least, self._most = np.full(2 * n + 1, np.inf), np.ones(2 * n + 1)
        self._least[n] = 0.0
        self._flags = bytearray(2 * (2 * n + 1))
        self._above, self._below = np.frombuffer(self._flags, np.bool_).reshape(2, -1)
        self.limit_effort(robot.effort_limit)
        self._weights, self._motion = np.zeros((2, 2 * n + 1))
        self._rest = np.zeros(n)  # (N,) shares of torque that do not depend on the state
        self._motion_pos, self._motion_vel = self._motion[:n], self._motion[n + 1 :]
        self._share = np.empty(n)

    def limit_effort(self, effort: NDArray[np.float64]) -> None:
        """Judge by motors that give (N,) N m at most, from the next command on."""
        self._inverse_effort = 1.0 / effort
        self._inverse_twice = np.concatenate([self._inverse_effort, [0.0], self._inverse_effort])

    def prepare(self, cmd: LowCmd, views: _Views) -> None:
        """Take in a command that is within all bounds that need no state."""
        np.multiply(views.gains, self._inverse_twice, out=self._weights)
        np.multiply(self._weights, views.motion, out=self._motion)
        np.add(self._motion_pos, self._motion_vel, out=self._rest)
        np.multiply(cmd.effort_ff, self._inverse_effort, out=self._share)
        np.add(self._rest, self._share, out=self._rest)

    def passes(self, motion: NDArray[np.float64]) -> bool:
        """True if the command prepared last needs no bound at this state's `motion` (2N + 1,)."""
        if not self._in_box(motion):
            self._lay_box(motion)
            if not self._in_box(motion):
                return False
        moved, share = self._motion, self._share
        np.multiply(motion, self._weights, moved)
        np.add(self._motion_pos, self._motion_vel, share)
        np.subtract(self._rest, share, share)
        return bool(share.dot(share) < 1.0)

    def _in_box(self, motion: NDArray[np.float64]) -> bool:
        np.less_equal(self._least, motion, self._above)
        np.less_equal(motion, self._most, self._below)
        return 0 not in self._flags

    def _lay_box(self, motion: NDArray[np.float64]) -> None:
        """From each position a share of the way to either limit; speeds that its ends allow."""
        n = len(self._rest)
        way = np.stack([motion[:n], -motion[:n]]) - self._ends  # (2, N) rad to the ends
        way = np.minimum(np.maximum(way, 0.0), self._range)  # absurd ones must not overflow
        speed = np.sqrt(self._twice_braking * way) - self._band  # (2, N) rad/s
        self._least[:n], self._most[:n] = motion[:n] - BOX * way[0], motion[:n] + BOX * way[1]
        self._least[n + 1 :], self._most[n + 1 :] = -speed[0], speed[1]


class SafetyFilter:
    """Clips a command in place so that it cannot drive a joint into its limits or over its torque.

    Args:
        robot: limits per joint.
        enabled: False lets everything pass (lockstep comparison only; hardware refuses it).
    """

    def __init__(self, robot: Robot, enabled: bool = True) -> None:
        n = robot.num_joints
        self.enabled = enabled
        self.effort_limit = self._cold_effort = robot.effort_limit
        self.step_limit = robot.safety.target_step_limit
        # The first half looks towards the upper limits, the second towards the lower, as positive.
        low, high = robot.position_limit[:, 0], robot.position_limit[:, 1]
        self.limit = np.concatenate([high, -low])  # (2N,) rad
        self.twice_braking = 2.0 * robot.safety.braking_acceleration
        self.braking_band = robot.safety.braking_band
        self._gain_max = (robot.stiffness_max, robot.damping_max)
        self._views: dict[int, _Views] = {}  # by message: blocks of commands and states
        self._passed = b""  # the last command that needed no bound on gain and step, as bytes
        self._quick = QuickTest(robot)
        self.previous = np.full(n, np.nan)  # (N,) rad, position target sent last
        self.room, self.bound = np.empty((2, 2 * n))  # (2N,) scratch each
        self.tau, self.rest, self.error, self.braked = np.empty((4, n))  # (N,) scratch each

    def derate(self, margin: NDArray[Any] | None) -> None:
        """Take torque back from hot motors, linearly; None: all are cool.

        Args:
            margin: (N,) K from each motor's temperature to its limit; what is no number is hot.
        """
        if margin is None:
            self.effort_limit = self._cold_effort
        else:
            share = np.minimum(np.fmax(margin / DERATE_BAND, 0.0), 1.0)
            self.effort_limit = self._cold_effort * (DERATE_LEAST + (1.0 - DERATE_LEAST) * share)
        self._quick.limit_effort(self.effort_limit)
        self._passed = b""  # what passed with more torque must be judged again

    def apply(self, cmd: LowCmd, state: LowState) -> Clip | None:
        """Bound `cmd` against `state`, in place; returns what was changed, if anything was."""
        if not self.enabled:
            self.previous[:] = cmd.joint_pos_target
            return None
        clip = None
        views = self._views.get(id(cmd)) or self._view(cmd)
        motion = (self._views.get(id(state)) or self._view(state)).motion
        raw = views.whole.tobytes()
        # A policy's target stays for ten ticks: what has passed need not be judged again.
        if raw != self._passed:
            absurd = self._bound_absurd(cmd)
            clip = self._bound_gains(cmd)
            clip = self._bound_step(cmd, state, clip) or clip
            self._passed = raw if clip is None and not absurd else b""
            # Judged is what was asked: the torque bound below may move a soft target far.
            self.previous[:] = cmd.joint_pos_target
            self._quick.prepare(cmd, views)
        if self._quick.passes(motion):
            return clip
        return self._bound_torque(cmd, state, clip) or clip

    def _view(self, message: LowCmd | LowState) -> _Views:
        views = self._views[id(message)] = _Views.of(message)
        return views

    def _bound_absurd(self, cmd: LowCmd) -> bool:
        """Cut what is so large that digits would go missing below; the torque bound counts it."""
        changed = False
        for values, most in ((cmd.effort_ff, MOST_EFFORT), (cmd.joint_vel_target, MOST_SPEED)):
            if max(values.max(), -values.min()) > most:
                np.clip(values, -most, most, out=values)
                changed = True
        return changed

    def _bound_gains(self, cmd: LowCmd) -> Clip | None:
        for row, gains in enumerate((cmd.stiffness, cmd.damping)):
            np.subtract(gains, self._gain_max[row], out=self.rest)
            if self.rest.max() > 0.0:
                at = int(self.rest.argmax())
                before = float(gains[at])
                np.minimum(cmd.stiffness, self._gain_max[0], out=cmd.stiffness)
                np.minimum(cmd.damping, self._gain_max[1], out=cmd.damping)
                return Clip(GAIN, 0, at, before, float(gains[at]))
        return None

    def _bound_step(self, cmd: LowCmd, state: LowState, clip: Clip | None) -> Clip | None:
        """Jumps of the target from one tick to the next (faults.md 4, step 5)."""
        if math.isnan(self.previous[0]):
            self.previous[:] = state.joint_pos
        target = cmd.joint_pos_target
        np.subtract(target, self.previous, out=self.error)
        np.abs(self.error, out=self.rest)
        if self.rest.max() <= self.step_limit:
            return None
        worst = int(self.rest.argmax())
        before = float(target[worst])
        np.clip(self.error, -self.step_limit, self.step_limit, out=self.error)
        np.add(self.previous, self.error, out=target)
        bits = (clip.limiters if clip else 0) | STEP
        return Clip(bits, 1, worst, before, float(target[worst]))

    def _bound_torque(self, cmd: LowCmd, state: LowState, clip: Clip | None) -> Clip | None:
        """Torque between what the motor has and what the way to the limit leaves (steps 4, 7)."""
        tau, error, braked, rest = self.tau, self.error, self.braked, self.rest
        np.subtract(cmd.joint_pos_target, state.joint_pos, out=error)
        np.multiply(cmd.stiffness, error, out=tau)
        np.multiply(cmd.damping, cmd.joint_vel_target, out=error)
        np.add(tau, error, out=tau)
        np.add(tau, cmd.effort_ff, out=tau)  # active torque; the damping term comes on top
        np.multiply(cmd.damping, state.joint_vel, out=braked)
        n = len(tau)
        bound = self._active_bound(state)
        np.minimum(tau, bound[:n], out=rest)
        np.maximum(rest, np.negative(bound[n:]), out=rest)
        np.subtract(rest, tau, out=rest)  # what has to be added to stay inside
        if not rest.any():
            return None
        worst = int(np.abs(rest).argmax())
        at_limit = bool(self.room[worst + (0 if rest[worst] < 0.0 else n)] < 1.0)
        self._shift(cmd, rest)
        bits = (clip.limiters if clip else 0) | (POSITION if at_limit else TORQUE)
        before = float(tau[worst])
        return Clip(bits, 2 if at_limit else 3, worst, before, before + float(rest[worst]))

    def _active_bound(self, state: LowState) -> NDArray[np.float64]:
        """(2N,) N m: greatest active torque towards the upper, then towards the lower limits.

        Speed towards a position limit may be sqrt(2 a distance); a band below that, torque into the
        limit fades to 0. With damping the torque stays within the motor's limit. No active torque
        at all is always legal: damping only brakes, and cancelling it one tick late would excite.
        `self.room` holds the shares in [0, 1] on return.
        """
        room, bound, n = self.room, self.bound, len(self.tau)
        np.copyto(room[:n], state.joint_pos)
        np.negative(state.joint_pos, out=room[n:])
        np.subtract(self.limit, room, out=room)
        np.maximum(room, 0.0, out=room)
        np.multiply(room, self.twice_braking, out=room)
        np.sqrt(room, out=room)
        np.subtract(room[:n], state.joint_vel, out=room[:n])
        np.add(room[n:], state.joint_vel, out=room[n:])
        np.divide(room, self.braking_band, out=room)
        np.maximum(room, 0.0, out=room)
        np.minimum(room, 1.0, out=room)
        np.add(self.effort_limit, self.braked, out=bound[:n])
        np.subtract(self.effort_limit, self.braked, out=bound[n:])
        np.maximum(bound, 0.0, out=bound)
        np.multiply(bound, room, out=bound)
        return bound

    def _shift(self, cmd: LowCmd, rest: NDArray[np.float64]) -> None:
        """Add `rest` N m: by moving the target where there is stiffness, else by feed-forward."""
        stiff = cmd.stiffness >= SOFTEST
        moved = np.divide(rest, cmd.stiffness, out=np.zeros_like(rest), where=stiff)
        np.add(cmd.joint_pos_target, moved, out=cmd.joint_pos_target)
        np.add(cmd.effort_ff, np.where(stiff, 0.0, rest), out=cmd.effort_ff)


class ClipShare:
    """Share of ticks that were clipped, over a window of the last ticks.

    Args:
        ticks: length of the window.
    """

    def __init__(self, ticks: int) -> None:
        self.ring = bytearray(ticks)
        self.at = self.sum = 0

    def count(self, clipped: bool) -> float:
        """Account for one tick; returns the share in [0, 1]."""
        if not clipped and not self.sum:
            return 0.0  # a ring of zeros has no position
        self.sum += clipped - self.ring[self.at]
        self.ring[self.at] = clipped
        self.at = (self.at + 1) % len(self.ring)
        return self.sum / len(self.ring)

    def reset(self) -> None:
        """Forget the past."""
        self.ring[:] = bytes(len(self.ring))
        self.at = self.sum = 0


def orientation(quat_wxyz: NDArray[Any]) -> tuple[float, float, float]:
    """Roll, pitch and tilt (angle between body z and world z) of a unit quaternion, in rad."""
    w, x, y, z = quat_wxyz.tolist()
    roll = math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2.0 * (w * y - z * x))))
    tilt = math.acos(max(-1.0, min(1.0, 1.0 - 2.0 * (x * x + y * y))))
    return roll, pitch, tilt
