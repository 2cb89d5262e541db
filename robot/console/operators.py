"""The console's operators as a stage: who drives, whether they hold on, what control is asked.

Samples of sticks, buttons, status and time in; commands and requests out. One request is under way
at a time, as control answers the newest: a stop takes the place of any other. The robot moves only
while a key, stick or button is physically held (teleop.md 6); letting go is a HOLD in the same
message, and after anything that a person did not do, letting go once comes before driving on.
It knows no socket, no page and no cookie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robot.console.access import Role
from robot.console.arms import ArmWish
from robot.console.wire import Drive
from robot.messages import (
    VALID_ARMS,
    VALID_VELOCITY,
    Ask,
    Codec,
    Command,
    Message,
    Mode,
    PolicyInfo,
    Request,
    Status,
)
from robot.modes import LATCHED, TRANSITIONS
from robot.topics import SOURCES, source_index

MS = 1_000_000  # ns
RESEND_NS = 50 * MS  # an unanswered request is sent again, unchanged
PATIENCE_NS = 2_000 * MS  # then it is given up; a stop is not
RETRY_NS = 100 * MS  # between two tries to engage while the deadman is held
DEADMAN_NS = 250 * MS  # faults.md 5: no sample for so long is a deadman released
# Age of a sample at which its speed begins to shrink, and is 0.
FULL_NS, ZERO_NS = 80 * MS, 200 * MS

SOURCE = "console"
STOPS = frozenset({Ask.ESTOP, Ask.SOFT_STOP, Ask.HOLD})
# Least role for each request. Everybody may stop.
ROLE = {
    Ask.ESTOP: Role.OBSERVE, Ask.SOFT_STOP: Role.OBSERVE, Ask.HOLD: Role.OBSERVE,
    Ask.ACQUIRE: Role.DRIVE, Ask.RELEASE: Role.DRIVE, Ask.ENGAGE: Role.DRIVE,
    Ask.STAND: Role.DRIVE, Ask.ARM: Role.ARM, Ask.DISARM: Role.ARM, Ask.STAND_UP: Role.ARM,
    Ask.START_POLICY: Role.ARM, Ask.RESET: Role.ARM,
}  # fmt: skip


class Out(NamedTuple):
    """Something to publish.

    Attributes:
        stamp_ns: when its content was decided or, of a command, captured; robot's clock.
        again: a repetition, to be sent unchanged.
    """

    topic: str
    message: Message
    stamp_ns: int
    again: bool = False


@dataclass
class Operator:
    """One open page.

    Attributes:
        nonce: names it in commands and requests.
        seq: of its newest sample.
        sampled_ns: when that arrived.
        age_ns: how old it was then.
        neutral: it has been seen with the deadman released since anything else happened.
        engaged: the deadman is held, and counts.
        stop_ms: from pressing STOP to control's answer; -1: not tried yet. This is the stop drill.
        note: why its last request was refused.
        refused: samples of it that were dropped.
        watches: its view shows a replay; nobody drives by looking at another time.
    """

    name: str
    role: Role
    nonce: int
    seq: int = 0
    sampled_ns: int = 0
    age_ns: int = 0
    neutral: bool = False
    engaged: bool = False
    stop_ms: float = -1.0
    note: str = ""
    refused: int = 0
    watches: bool = False


@dataclass
class Asked:
    """The request under way."""

    message: Request
    by: list[tuple[Operator, int]]  # who asked, and when they pressed it, robot's clock
    since_ns: int
    last_ns: int


class Operators:
    """The stage.

    Args:
        codecs: topic name to layout.
        timing_factor: multiplies age limits, as control's; 1 on hardware.
        arms: where the driver wants them.
    """

    def __init__(self, codecs: dict[str, Codec], timing_factor: float, arms: ArmWish) -> None:
        self.factor, self.arms = timing_factor, arms
        self.pages: list[Operator] = []
        self.driver: Operator | None = None
        self.mode = Mode.PASSIVE
        self.holder = self.holder_source = 0
        self.heard = False  # control has spoken
        self.changing = False  # another policy is being loaded (picks.py): none is started
        self.answered: list[tuple[Operator, Ask, bool, str, float]] = []  # ok, reason, ms; to tell
        self._asked: Asked | None = None
        self._retry_ns = 0
        self._instance = 0  # of control
        self._policy_id = 0  # announced by the pilot
        self._velocity_max = np.zeros(3)
        self._velocity_min = np.zeros(3)
        self._request_codec = codecs[f"request.{SOURCE}"]
        self._command: Command = codecs[f"command.{SOURCE}"].new()
        self._command.source = source_index(SOURCE)

    def join(self, name: str, role: Role, nonce: int) -> Operator:
        """A page was opened."""
        operator = Operator(name, role, nonce)
        self.pages.append(operator)
        return operator

    def leave(self, operator: Operator, now_ns: int) -> Iterator[Out]:
        """A page is gone: if it drove, the robot holds; the lease runs out by itself."""
        self.pages.remove(operator)
        if operator is self.driver:
            self.driver = None
            yield from self._let_go(operator, now_ns)

    # --- driving --------------------------------------------------------------------------------

    def sample(
        self, operator: Operator, drive: Drive, captured_ns: int, now_ns: int
    ) -> Iterator[Out]:
        """Take a sample of an operator's sticks; only the driver's counts, each once, while young.

        Args:
            captured_ns: when it was taken, robot's clock.
        """
        age_ns = max(0, now_ns - captured_ns)
        replayed = drive.seq <= operator.seq
        late = age_ns > ZERO_NS * self.factor
        if operator is not self.driver or operator.watches or replayed or late:
            operator.refused += 1
            return
        operator.seq, operator.sampled_ns, operator.age_ns = drive.seq, now_ns, age_ns
        operator.neutral |= not drive.deadman
        held = drive.deadman and operator.neutral and self.mode not in LATCHED
        self._fill(operator, drive if held else None, age_ns, now_ns)
        yield Out(f"command.{SOURCE}", self._command, min(captured_ns, now_ns))
        if held and not operator.engaged:
            operator.engaged = True
            yield from self._engage(operator, now_ns)
        elif operator.engaged and not held:
            yield from self._let_go(operator, now_ns)

    def _fill(self, operator: Operator, drive: Drive | None, age_ns: int, now_ns: int) -> None:
        command, fast = self._command, self.speed_share(age_ns)
        command.lease, command.valid = operator.nonce, VALID_VELOCITY
        command.velocity[:] = 0.0
        if drive is not None:
            share = np.array([drive.x, drive.y, drive.yaw])
            limit = np.where(share >= 0.0, self._velocity_max, -self._velocity_min)
            command.velocity[:] = share * limit * fast
        # Without their bit arms stay where control has them.
        wish = self.arms.step(drive.arms if drive else None, fast, now_ns)
        if wish is not None:
            command.valid |= VALID_ARMS
            command.arm_joint_pos[:] = wish

    def speed_share(self, age_ns: int) -> float:
        """Share of the speed that a sample of this age may ask for: 1 while young, then less, 0."""
        full, zero = FULL_NS * self.factor, ZERO_NS * self.factor
        return float(np.clip((zero - age_ns) / (zero - full), 0.0, 1.0))

    def _engage(self, operator: Operator, now_ns: int) -> Iterator[Out]:
        self._retry_ns = now_ns + int(RETRY_NS * self.factor)
        if self.mode == Mode.HOLD and self._asked is None:
            yield self._ask(operator, Ask.ENGAGE, now_ns, now_ns)

    def _let_go(self, operator: Operator, now_ns: int) -> Iterator[Out]:
        engaged, operator.engaged = operator.engaged, False
        under_way = self.under_way
        # An ENGAGE that control has not answered may yet be obeyed: the HOLD goes after it.
        walking = self.mode == Mode.POLICY or under_way in (Ask.ENGAGE, Ask.START_POLICY)
        if engaged and walking and under_way != Ask.ESTOP:
            yield self._ask(operator, Ask.HOLD, now_ns, now_ns)

    def watch(self, operator: Operator, replay: bool) -> None:
        """A page looks at a replay, or at the robot again; whoever drives cannot look away."""
        if replay and operator is self.driver:
            operator.note = "release control first: a replay shows another time"
        else:
            operator.watches = replay

    # --- asking ---------------------------------------------------------------------------------

    def ask(self, operator: Operator, ask: Ask, pressed_ns: int, now_ns: int) -> Iterator[Out]:
        """A button was pressed; what is not allowed becomes the operator's note."""
        if reason := self.why_not(operator, ask):
            operator.note = reason
            self.answered.append((operator, ask, False, reason, 0.0))
            return
        under_way = self._asked
        if ask == Ask.ESTOP and under_way and under_way.message.ask == Ask.ESTOP:
            # Pressed again, or come by the second way: the same stop, said once more.
            under_way.by.append((operator, pressed_ns))
            yield Out(f"request.{SOURCE}", under_way.message, now_ns, again=True)
            return
        yield self._ask(operator, ask, pressed_ns, now_ns)

    def why_not(self, operator: Operator, ask: Ask) -> str:
        """Why this page may not ask this now: one sentence, or "". Control judges again."""
        if operator.role < ROLE[ask]:
            return f"this page may {operator.role.name.lower()} only"
        if ask == Ask.ESTOP:
            return ""
        if operator.watches and ask not in STOPS:
            return "this page shows a replay"
        if not self.heard:
            return "no word from control yet"
        if self._asked is not None and (self._asked.message.ask == Ask.ESTOP or ask not in STOPS):
            return f"control has not answered {Ask(self._asked.message.ask).name} yet"
        if ask == Ask.START_POLICY and self.changing:
            return "a policy is being loaded"
        drives = operator is self.driver
        if ask == Ask.RELEASE:
            return "" if drives else "this page does not drive"
        if ask == Ask.ACQUIRE:
            return self._why_not_acquire(operator)
        rows = [t for t in TRANSITIONS if t.ask == ask]
        row = next((t for t in rows if self.mode in t.source), None)
        if row is None:
            return "possible in " + ", ".join(sorted(m.name for t in rows for m in t.source))
        if "lease" in row.guards and not drives:
            return "take control first"
        if ask == Ask.ARM and operator.stop_ms < 0.0:
            return "press STOP once first: the stop drill"
        if ask == Ask.ENGAGE and not operator.engaged:
            return "hold a drive key or stick"
        return ""

    def _why_not_acquire(self, operator: Operator) -> str:
        if operator is self.driver:
            return "this page drives"
        if self.holder == 0:
            return ""
        other = SOURCES[self.holder_source]
        if other.rank < SOURCES[source_index(SOURCE)].rank:
            return ""
        if other.name == SOURCE:
            name = self.driver.name if self.driver else "another page"
            return f"{name} drives; it must release control first"
        return f"{other.name} drives; press c there to hand over"

    def _ask(self, operator: Operator, ask: Ask, pressed_ns: int, now_ns: int) -> Out:
        message: Request = self._request_codec.new()
        message.source, message.lease, message.ask = source_index(SOURCE), operator.nonce, ask
        if ask == Ask.START_POLICY:  # the one that pages show, and no other
            message.policy_id = self._policy_id
        self._asked = Asked(message, [(operator, pressed_ns)], now_ns, now_ns)
        operator.note = ""
        return Out(f"request.{SOURCE}", message, now_ns)

    @property
    def under_way(self) -> Ask:
        """What control has not answered yet; NONE if nothing is."""
        return Ask(self._asked.message.ask) if self._asked else Ask.NONE

    # --- time and control's word ------------------------------------------------------------------

    def step(self, now_ns: int) -> Iterator[Out]:
        """What time brings: a silent driver has let go, an unanswered request is repeated."""
        driver = self.driver
        if driver and now_ns - driver.sampled_ns > DEADMAN_NS * self.factor:
            driver.neutral = False
            yield from self._let_go(driver, now_ns)
        asked = self._asked
        if asked is None:
            if driver and driver.engaged and now_ns >= self._retry_ns:
                yield from self._engage(driver, now_ns)
            return
        if asked.message.ask != Ask.ESTOP and now_ns - asked.since_ns > PATIENCE_NS:
            self._close(asked, False, "no answer from control", now_ns)
        elif now_ns - asked.last_ns >= RESEND_NS:
            asked.last_ns = now_ns
            yield Out(f"request.{SOURCE}", asked.message, now_ns, again=True)

    def hear_policy(self, info: PolicyInfo) -> None:
        """Which policy a start would start, and the ranges that a full stick means."""
        self._policy_id = info.policy_id
        self._velocity_min[:], self._velocity_max[:] = info.velocity_min, info.velocity_max

    def hear(self, status: Status, now_ns: int) -> None:
        """Control's word: the mode, who drives, the answer to what we asked."""
        restarted = self._instance not in (0, status.instance)
        mode, self._instance, self.heard = Mode(status.mode), status.instance, True
        asked = self._asked
        if asked and (status.answer_instance, status.answer_seq) == (
            asked.message.instance, asked.message.seq,
        ):  # fmt: skip
            reason = "" if status.answer_ok else status.reason
            self._close(asked, bool(status.answer_ok), reason, now_ns)
        self.holder, self.holder_source = status.lease, status.source
        driver = next((page for page in self.pages if page.nonce == status.lease), None)
        if driver is not self.driver or restarted:
            self._start_again(driver, now_ns)
        change = self.mode, mode
        by_us = change == (Mode.HOLD, Mode.POLICY)
        # Whoever had let go before the hold came has let go: the next press counts.
        by_us |= change == (Mode.POLICY, Mode.HOLD) and not (self.driver and self.driver.engaged)
        if mode != self.mode and not by_us and self.driver:
            # A hold, a stop, a start: whoever holds the deadman lets go before driving on.
            self.driver.neutral = self.driver.engaged = False
        self.mode = mode

    def _start_again(self, driver: Operator | None, now_ns: int) -> None:
        for page in self.pages:
            page.neutral = page.engaged = False
        self.driver = driver
        if driver:
            driver.sampled_ns = now_ns

    def _close(self, asked: Asked, ok: bool, reason: str, now_ns: int) -> None:
        """The request is answered, or given up."""
        ask, self._asked = Ask(asked.message.ask), None
        for operator, pressed_ns in asked.by:
            ms = (now_ns - pressed_ns) / MS
            operator.note = reason
            if ok and ask == Ask.ESTOP:
                operator.stop_ms = ms
            self.answered.append((operator, ask, ok, reason, ms))
