"""An operator on this computer: keys or a fixed command, and in simulation the way to the walk.

The stage turns keys, status and time into commands and requests; the process owns the terminal.
A terminal shows no key release, so a key is a velocity step that runs out; never a deadman.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from robot.messages import (
    VALID_ARMS,
    VALID_VELOCITY,
    Ask,
    Codec,
    Command,
    Message,
    Mode,
    Request,
    Status,
    Truth,
)
from robot.model import Robot
from robot.topics import source_index

COMMAND_PERIOD_NS = 50_000_000  # 20 Hz
RESEND_NS = 50_000_000  # an unanswered request is sent again, unchanged
RETRY_NS = 300_000_000  # a refused step of the start procedure is tried again
KEY_LIFE_NS = 1_000_000_000  # then a key's velocity has run out
PATIENCE_NS = 2_000_000_000  # an unanswered request of a key is given up; an e-stop never is

STEP = np.array([0.1, 0.1, 0.2])  # m/s, m/s, rad/s per key press
KEY_LIMIT = np.array([1.0, 0.5, 1.0])  # control clamps further, to the policy's ranges


@dataclass(frozen=True)
class Key:
    """What one key does: a velocity step, a request, or leaving."""

    label: str
    doc: str
    direction: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ask: Ask = Ask.NONE
    go: bool = False
    quit: bool = False


KEYS: dict[str, Key] = {
    "\x1b[A": Key("up", "faster forward", (1, 0, 0)),
    "\x1b[B": Key("down", "slower, backward", (-1, 0, 0)),
    "\x1b[D": Key("left", "turn left", (0, 0, 1)),
    "\x1b[C": Key("right", "turn right", (0, 0, -1)),
    "a": Key("a", "sidestep left", (0, 1, 0)),
    "d": Key("d", "sidestep right", (0, -1, 0)),
    " ": Key("space", "E-STOP: damping, the robot sinks", ask=Ask.ESTOP),
    "h": Key("h", "hold: balance in place", ask=Ask.HOLD),
    "e": Key("e", "engage again after a hold", ask=Ask.ENGAGE),
    "s": Key("s", "stop softly: crouch, then damping", ask=Ask.SOFT_STOP),
    "r": Key("r", "reset a fault or e-stop; does not arm", ask=Ask.RESET),
    "g": Key("g", "go: arm, stand up, walk; on a robot one step a time", go=True),
    "c": Key("c", "hand over to the console in the browser", ask=Ask.RELEASE),
    "q": Key("q", "quit", quit=True),
}

# rad around the standing pose by the end of a joint's name; left and right arm swing in turn.
ARM_SWING = {"shoulder_pitch_joint": 0.4, "elbow_joint": 0.3}
ARM_PERIOD_NS = 2_800_000_000  # at 0.4 rad a joint is no faster than control lets arms be, 1 rad/s

# The way to the walk, one request per mode. Arming by itself exists in simulation only.
PROCEDURE = {
    Mode.PASSIVE: Ask.ARM,
    Mode.DAMP: Ask.STAND_UP,
    Mode.STAND: Ask.START_POLICY,
}


@dataclass
class Sent:
    """A request under way."""

    message: Request
    since_ns: int
    last_ns: int


@dataclass
class Velocity:
    """(3,) vx, vy, yaw rate that keys have added up to, and until when it counts."""

    value: np.ndarray = field(default_factory=lambda: np.zeros(3))
    until_ns: int = 0


class ArmSwing:
    """Arm joints that swing around the standing pose, as a function of time.

    Args:
        robot: its arm joints and standing pose.
    """

    def __init__(self, robot: Robot) -> None:
        names = [robot.joint_names[row] for row in robot.arm_joints]
        self._middle = robot.stand_joint_pos[robot.arm_joints]
        self._amplitude = np.array([
            sum(rad for end, rad in ARM_SWING.items() if name.endswith(end))
            * (-1.0 if name.startswith("right_") else 1.0)
            for name in names
        ])  # fmt: skip

    def at(self, now_ns: int) -> np.ndarray:
        """(arm joints,) rad."""
        turn = 2 * np.pi * (now_ns % ARM_PERIOD_NS) / ARM_PERIOD_NS
        return self._middle + self._amplitude * np.sin(turn)


class Teleop:
    """The stage: keys, status and truth in; commands and requests out.

    Args:
        codecs: topic name to layout.
        source: "script" or "keyboard", a name in topics.SOURCES.
        velocity: (vx, vy, yaw rate) to send all the time; None: what keys say.
        automatic: go through PROCEDURE without being told (simulation only).
        walk: whether the procedure goes on from STAND into the policy.
        nonce: identifies this operator; random if not given.
        arms: what to command the arms; None: nothing.
        stepwise: go takes one step of PROCEDURE and no more, as it must on a robot.
    """

    def __init__(
        self,
        codecs: dict[str, Codec],
        source: str,
        velocity: tuple[float, float, float] | None,
        automatic: bool,
        walk: bool,
        nonce: int | None = None,
        arms: ArmSwing | None = None,
        stepwise: bool = False,
    ) -> None:
        self.source, self.arms, self.stepwise = source, arms, stepwise
        self.constant = None if velocity is None else np.array(velocity)
        self.automatic, self.walk = automatic, walk
        self.note = ""  # why the last request was refused
        self._nonce = nonce or (secrets.randbits(63) | 1)
        self._command: Command = codecs[f"command.{source}"].new()
        self._request_codec = codecs[f"request.{source}"]
        self._command.source = source_index(source)
        self._command.lease = self._nonce
        self._keys = Velocity()
        self._asked: Sent | None = None
        self._retry_ns = self._next_command_ns = 0
        self._control = 0  # instance of the control process that we know
        self._mode = Mode.PASSIVE  # as control told it last
        self._away = False  # handed over: the lease is somebody else's to take
        self.done = False  # the operator wants to quit

    def press(self, key: Key, now_ns: int) -> Request | None:
        """Take a key; returns the request it makes, if any."""
        if any(key.direction):
            held = self._keys.value if now_ns < self._keys.until_ns else np.zeros(3)
            value = np.clip(held + STEP * key.direction, -KEY_LIMIT, KEY_LIMIT)
            self._keys = Velocity(value, now_ns + KEY_LIFE_NS)
        if key.ask in (Ask.ESTOP, Ask.SOFT_STOP, Ask.RELEASE):
            self.automatic = False
        # A stop needs no lease; any other key means that somebody is here again.
        if key.ask not in (Ask.ESTOP, Ask.SOFT_STOP, Ask.HOLD):
            self._away = key.ask == Ask.RELEASE
        self.done = self.done or key.quit
        if key.go and self.stepwise:
            ask = PROCEDURE.get(self._mode, Ask.NONE)
            can = ask != Ask.NONE and (self.walk or ask != Ask.START_POLICY)
            return self._ask(ask, now_ns) if can else None
        self.automatic = self.automatic or key.go
        return self._ask(key.ask, now_ns) if key.ask != Ask.NONE else None

    def velocity(self, now_ns: int) -> np.ndarray:
        """(3,) what is commanded now."""
        if self.constant is not None:
            return self.constant
        return self._keys.value if now_ns < self._keys.until_ns else np.zeros(3)

    def step(
        self, status: Status | None, truth: Truth | None, now_ns: int
    ) -> Iterator[tuple[str, Message, bool]]:
        """What to send now: (topic, message, whether it is a repetition to send unchanged)."""
        if now_ns >= self._next_command_ns:
            # On a grid of its own, whatever the caller's; after a pause the grid begins anew.
            behind = now_ns - self._next_command_ns
            begin = now_ns if behind > COMMAND_PERIOD_NS else self._next_command_ns
            self._next_command_ns = begin + COMMAND_PERIOD_NS
            self._command.valid = VALID_VELOCITY
            self._command.velocity[:] = self.velocity(now_ns)
            if self.arms is not None:
                self._command.valid |= VALID_ARMS
                self._command.arm_joint_pos[:] = self.arms.at(now_ns)
            yield f"command.{self.source}", self._command, False
        if status is None:
            return
        self._hear(status, now_ns)
        if self._asked is not None:
            yield from self._insist(self._asked, now_ns)
        elif now_ns >= self._retry_ns and (ask := self._next(status, truth)) != Ask.NONE:
            yield f"request.{self.source}", self._ask(ask, now_ns), False

    def _ask(self, ask: Ask, now_ns: int) -> Request:
        message: Request = self._request_codec.new()
        message.source, message.lease, message.ask = source_index(self.source), self._nonce, ask
        self._asked = Sent(message, now_ns, now_ns)
        return message

    def _insist(self, asked: Sent, now_ns: int) -> Iterator[tuple[str, Message, bool]]:
        if asked.message.ask != Ask.ESTOP and now_ns - asked.since_ns > PATIENCE_NS:
            self.note = f"{Ask(asked.message.ask).name}: no answer from control"
            self._asked = None
        elif now_ns - asked.last_ns >= RESEND_NS:
            asked.last_ns = now_ns
            yield f"request.{self.source}", asked.message, True

    def _hear(self, status: Status, now_ns: int) -> None:
        """Is this the answer to what we asked?"""
        self._mode = Mode(status.mode)
        restarted = self._control not in (0, status.instance)
        self._control = status.instance
        if restarted or status.mode in (Mode.FAULT, Mode.ESTOP):
            self.automatic = False  # a person must reset and say go
        if status.lease not in (0, self._nonce):
            self.automatic = False  # somebody else drives: what they leave behind stays as it is
        asked = self._asked
        if asked is None or status.answer_instance != asked.message.instance:
            return
        if status.answer_seq == asked.message.seq:
            self._asked = None
            self.note = "" if status.answer_ok else status.reason
            self._retry_ns = now_ns + (0 if status.answer_ok else RETRY_NS)

    def _next(self, status: Status, truth: Truth | None) -> Ask:
        """The next step of the procedure, or NONE."""
        if status.lease != self._nonce:
            return Ask.ACQUIRE if status.lease == 0 and not self._away else Ask.NONE
        ask = PROCEDURE.get(Mode(status.mode), Ask.NONE) if self.automatic else Ask.NONE
        # Where there is a gantry, its people are waited for.
        if ask == Ask.ARM and truth is not None and not truth.hanging:
            return Ask.NONE
        if ask == Ask.START_POLICY:
            held = truth is not None and not truth.released
            return Ask.NONE if held or not self.walk else ask
        return ask
