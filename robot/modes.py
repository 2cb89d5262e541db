"""The mode machine: tables of faults and transitions, and one pure function over them.

Source of every row: faults.md sections 2, 3 and 5. Rows that are not implemented are not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from robot.messages import Ask, Mode

NS_PER_S = 1_000_000_000
NO_CAUSE = 255  # status.cause when no fault led to the mode

DRIVEN = frozenset({Mode.STANDUP, Mode.STAND, Mode.POLICY, Mode.HOLD, Mode.SOFT_STOP})
ARMED = DRIVEN | {Mode.DAMP}
WALKING = frozenset({Mode.POLICY, Mode.HOLD})
LATCHED = frozenset({Mode.FAULT, Mode.ESTOP})


class Action(IntEnum):
    """Reactions, ordered: the most severe active one wins."""

    NONE = 0
    WARN = 1
    HOLD = 2
    SOFT_STOP = 3
    DAMP = 4


class Clear(IntEnum):
    """When a reaction ends."""

    AUTO = 0  # when the fault does
    ENGAGE = 1  # when the operator engages again
    RESET = 2  # latched: cause gone, operator's reset, then arm


@dataclass(frozen=True)
class Fault:
    """One row of the fault table.

    Attributes:
        when: modes in which the reaction applies.
        no_entry: while active it also refuses arming and starting a policy.
        escalate_s: a HOLD that lasts this long becomes SOFT_STOP; None: never.
    """

    name: str
    action: Action
    clear: Clear
    when: frozenset[Mode]
    no_entry: bool
    doc: str
    escalate_s: float | None = None


FAULTS: tuple[Fault, ...] = (
    Fault("internal_error", Action.DAMP, Clear.RESET, ARMED, True, "an exception in the tick"),
    Fault("driver_fault", Action.DAMP, Clear.RESET, ARMED, True, "the driver reports a fault"),
    Fault("state_invalid", Action.DAMP, Clear.RESET, ARMED, True, "impossible measurements"),
    Fault("state_stale", Action.DAMP, Clear.RESET, ARMED, True, "the state is 20 ms old"),
    Fault("tick_gap", Action.DAMP, Clear.RESET, ARMED, False, "10 ms without a tick"),
    Fault("manager_lost", Action.DAMP, Clear.RESET, ARMED, True, "100 ms without heartbeat"),
    Fault("target_malformed", Action.DAMP, Clear.RESET, WALKING, False, "a target of wrong form"),
    Fault("target_invalid", Action.DAMP, Clear.RESET, WALKING, False, "impossible targets"),
    Fault("target_lost", Action.DAMP, Clear.RESET, WALKING, False, "the target is 100 ms old"),
    Fault("fallen", Action.DAMP, Clear.RESET, DRIVEN, True, "roll or pitch beyond the limit"),
    Fault("clipping_hard", Action.SOFT_STOP, Clear.RESET, DRIVEN - {Mode.SOFT_STOP}, False,
          "over 20 % of ticks clipped for 0.5 s"),
    Fault("standup_failed", Action.SOFT_STOP, Clear.RESET, frozenset({Mode.STANDUP}), False,
          "the stand pose was not reached"),
    Fault("tilt", Action.HOLD, Clear.AUTO, DRIVEN - {Mode.SOFT_STOP}, True,
          "tilted beyond the limit", escalate_s=0.5),
    Fault("command_stale", Action.HOLD, Clear.ENGAGE, frozenset({Mode.POLICY}), False,
          "200 ms without the operator's command"),
    Fault("target_late", Action.WARN, Clear.AUTO, WALKING, False, "the target is 60 ms old"),
    Fault("clipping", Action.WARN, Clear.AUTO, DRIVEN, False, "over 5 % of ticks clipped for 1 s"),
    Fault("overrun", Action.WARN, Clear.AUTO, ARMED, False,
          "three ticks late in a row, or over 1 % of a second's ticks"),
    # Rows that a driver finds out about its robot (`Driver.health`). Their places are their bits in
    # logs, so new ones come last.
    Fault("remote_stop", Action.DAMP, Clear.RESET, ARMED, True, "L2+B on the robot's own remote"),
    Fault("motor_overheated", Action.SOFT_STOP, Clear.RESET, DRIVEN - {Mode.SOFT_STOP}, True,
          "a motor is at its temperature limit"),
    Fault("battery_empty", Action.SOFT_STOP, Clear.RESET, DRIVEN - {Mode.SOFT_STOP}, True,
          "8 % of charge or less"),
    Fault("state_late", Action.WARN, Clear.AUTO, ARMED, False,
          "three periods without news from the robot"),
    Fault("motor_hot", Action.WARN, Clear.AUTO, ARMED, True,
          "a motor is within 10 degrees of its limit: its torque is taken back"),
    Fault("temperature_unknown", Action.WARN, Clear.AUTO, ARMED, True,
          "a motor's temperature is no temperature"),
    Fault("battery_entry", Action.WARN, Clear.AUTO, ARMED, True, "15 % of charge or less"),
    Fault("battery_low", Action.WARN, Clear.AUTO, ARMED, False, "25 % of charge or less"),
    Fault("battery_unknown", Action.WARN, Clear.AUTO, ARMED, False, "the battery does not report"),
    Fault("motor_late", Action.WARN, Clear.AUTO, ARMED, False,
          "a motor has said nothing new for three periods"),
    Fault("timeout_unknown", Action.WARN, Clear.AUTO, ARMED, True,
          "the motors were not seen to notice that commands stop"),
    Fault("imu_doubtful", Action.WARN, Clear.AUTO, ARMED, True,
          "the IMU feels gravity elsewhere than its orientation says"),
    Fault("imu_wrong", Action.HOLD, Clear.AUTO, DRIVEN - {Mode.SOFT_STOP}, True,
          "the IMU feels gravity elsewhere for 0.3 s", escalate_s=0.5),
    Fault("gyro_doubtful", Action.WARN, Clear.AUTO, ARMED, False,
          "the gyro says another turning than the orientation"),
    Fault("imu_off_legs", Action.WARN, Clear.AUTO, ARMED, True,
          "the sole of the leg that bears is steep, if the IMU is right"),
    Fault("imu_against_legs", Action.HOLD, Clear.AUTO, WALKING, True,
          "that sole is steep for 0.15 s", escalate_s=0.5),
)  # fmt: skip
# Rows that act on the mode; a WARN is only told.
ACTING = sum(1 << i for i, fault in enumerate(FAULTS) if fault.action > Action.WARN)
FAULT = {fault.name: i for i, fault in enumerate(FAULTS)}
BIT = {fault.name: 1 << i for i, fault in enumerate(FAULTS)}


@dataclass(frozen=True)
class Transition:
    """One row: what is asked, from where, to where, and which guards must hold."""

    ask: Ask
    source: frozenset[Mode]
    to: Mode
    guards: tuple[str, ...] = ()


TRANSITIONS: tuple[Transition, ...] = (
    Transition(Ask.ESTOP, frozenset(Mode), Mode.ESTOP),
    Transition(Ask.SOFT_STOP, DRIVEN - {Mode.SOFT_STOP}, Mode.SOFT_STOP),
    Transition(Ask.HOLD, frozenset({Mode.POLICY, Mode.HOLD}), Mode.HOLD),
    Transition(Ask.ARM, frozenset({Mode.PASSIVE}), Mode.DAMP, ("lease", "no_entry")),
    Transition(Ask.STAND_UP, frozenset({Mode.DAMP}), Mode.STANDUP,
               ("lease", "no_entry", "upright")),
    Transition(Ask.START_POLICY, frozenset({Mode.STAND}), Mode.POLICY,
               ("lease", "no_entry", "blended", "policy_ready", "near_start", "fresh_command")),
    Transition(Ask.ENGAGE, frozenset({Mode.HOLD}), Mode.POLICY,
               ("lease", "no_entry", "fresh_command")),
    Transition(Ask.STAND, frozenset({Mode.HOLD}), Mode.STAND, ("lease", "quiet")),
    Transition(Ask.DISARM, frozenset({Mode.DAMP}), Mode.PASSIVE),
    Transition(Ask.DISARM, DRIVEN, Mode.SOFT_STOP),
    Transition(Ask.RESET, LATCHED, Mode.PASSIVE, ("lease", "cause_gone")),
)  # fmt: skip

# What a request is told when its guard does not hold.
GUARDS: dict[str, str] = {
    "lease": "this source does not hold the lease; acquire it first",
    "no_entry": "a fault forbids it",
    "upright": "the robot is tilted; set it upright or hang it on the gantry",
    "blended": "still blending into the stand pose; wait",
    "policy_ready": "no policy is ready; is the pilot running and its target fresh?",
    "near_start": "a joint is more than 0.5 rad from the policy's first pose",
    "fresh_command": "no fresh command stream from the lease holder",
    "quiet": "the robot still moves",
    "cause_gone": "the cause is still there",
}


@dataclass(frozen=True)
class ModeState:
    """All that the machine remembers."""

    mode: Mode = Mode.PASSIVE
    since_ns: int = 0
    cause: int = NO_CAUSE  # row of FAULTS that led here
    disarming: bool = False  # SOFT_STOP, DAMP, PASSIVE in this order, on request
    until_engaged: bool = False  # a HOLD by a fault that stays a HOLD when the fault is gone


@dataclass(frozen=True)
class Conditions:
    """What is true in this tick. Control finds out, the machine decides.

    Attributes:
        faults: active rows of FAULTS as bits.
        held: names of the GUARDS that hold.
        blend_done: the ramp of the current source has ended.
        stand_reached: joints are near the stand pose.
        quiet: no joint moves faster than a slow one.
    """

    faults: int
    held: frozenset[str]
    blend_done: bool
    stand_reached: bool
    quiet: bool


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    ask: Ask
    ok: bool
    reason: str


def step(
    state: ModeState, asks: tuple[Ask, ...], now: Conditions, now_ns: int
) -> tuple[ModeState, tuple[Answer, ...]]:
    """Advance the machine by one tick: operators first, then faults, then time.

    Args:
        state: where it was.
        asks: requests of this tick, in order of arrival; an ESTOP among them always wins.
        now: what is true in this tick.
        now_ns: time of the tick.

    Returns:
        The new state, and one answer per request.
    """
    answers = []
    for ask in asks:
        state, answer = _ask(state, ask, now, now_ns)
        answers.append(answer)
    if Ask.ESTOP in asks:
        state = _go(state, Mode.ESTOP, now_ns)
    else:
        state = _time(_react(state, now, now_ns), now, now_ns)
    return state, tuple(answers)


def severity(mode: Mode, faults: int) -> Action:
    """The most severe action that `faults` ask for in `mode`."""
    active = (f.action for i, f in enumerate(FAULTS) if faults >> i & 1 and mode in f.when)
    return max(active, default=Action.NONE)


def forbids_entry(faults: int) -> list[str]:
    """Names of the active faults that refuse arming."""
    return [f.name for i, f in enumerate(FAULTS) if faults >> i & 1 and f.no_entry]


def fault_names(faults: int) -> list[str]:
    """Names of the rows whose bit is set."""
    return [f.name for i, f in enumerate(FAULTS) if faults >> i & 1]


def _go(state: ModeState, mode: Mode, now_ns: int, cause: int = NO_CAUSE) -> ModeState:
    if mode == state.mode:
        return state
    return ModeState(mode, now_ns, cause)


def _ask(state: ModeState, ask: Ask, now: Conditions, now_ns: int) -> tuple[ModeState, Answer]:
    rows = [t for t in TRANSITIONS if t.ask == ask]
    row = next((t for t in rows if state.mode in t.source), None)
    if row is None:
        where = sorted(mode.name for t in rows for mode in t.source)
        reason = f"{ask.name} is refused in {state.mode.name}; it is possible in {', '.join(where)}"
        return state, Answer(ask, False, reason)
    for guard in row.guards:
        if guard not in now.held:
            detail = ", ".join(forbids_entry(now.faults)) if guard == "no_entry" else ""
            reason = f"{ask.name} is refused: {GUARDS[guard]}{': ' + detail if detail else ''}"
            return state, Answer(ask, False, reason)
    new = _go(state, row.to, now_ns)
    if ask == Ask.HOLD and state.mode == Mode.HOLD and state.cause != NO_CAUSE:
        new = replace(state, until_engaged=True)
    if ask == Ask.DISARM and row.to == Mode.SOFT_STOP:
        new = replace(new, disarming=True)
    return new, Answer(ask, True, "")


def _react(state: ModeState, now: Conditions, now_ns: int) -> ModeState:
    """Apply the most severe active fault of this mode."""
    action = severity(state.mode, now.faults)
    if action <= Action.WARN:
        return _release_hold(state, now, now_ns)
    cause = next(
        i for i, f in enumerate(FAULTS)
        if now.faults >> i & 1 and state.mode in f.when and f.action == action
    )  # fmt: skip
    if action == Action.DAMP:
        return _go(state, Mode.FAULT, now_ns, cause)
    if action == Action.HOLD and state.mode in WALKING:
        if state.mode == Mode.POLICY:
            return _go(state, Mode.HOLD, now_ns, cause)
        # A HOLD that meets a fault becomes the fault's, and its time starts; but where it waited
        # for the operator to engage, it goes on waiting afterwards.
        if state.cause != cause:
            waits = state.until_engaged or _waits(state)
            return replace(state, cause=cause, since_ns=now_ns, until_engaged=waits)
        limit = FAULTS[cause].escalate_s
        if limit is None or now_ns - state.since_ns < limit * NS_PER_S:
            return state
    # HOLD needs a policy that balances: without one, the next more severe action applies.
    return _go(state, Mode.SOFT_STOP, now_ns, cause)


def _release_hold(state: ModeState, now: Conditions, now_ns: int) -> ModeState:
    """HOLD by a fault that clears by itself goes back to POLICY, if the operator is there."""
    if state.mode != Mode.HOLD or state.cause == NO_CAUSE:
        return state
    if FAULTS[state.cause].clear != Clear.AUTO:
        return state
    if state.until_engaged:
        return ModeState(Mode.HOLD, now_ns)
    if "fresh_command" in now.held:
        return _go(state, Mode.POLICY, now_ns)
    return replace(state, cause=FAULT["command_stale"])


def _waits(state: ModeState) -> bool:
    """True for a HOLD that only the operator ends."""
    return state.cause == NO_CAUSE or FAULTS[state.cause].clear == Clear.ENGAGE


def _time(state: ModeState, now: Conditions, now_ns: int) -> ModeState:
    """Transitions that nobody asks for: a ramp has ended."""
    if state.since_ns == now_ns or not now.blend_done:
        return state
    if state.mode == Mode.STANDUP:
        if now.stand_reached:
            return _go(state, Mode.STAND, now_ns)
        return _go(state, Mode.SOFT_STOP, now_ns, FAULT["standup_failed"])
    if state.mode == Mode.SOFT_STOP:
        if state.cause != NO_CAUSE:
            return _go(state, Mode.FAULT, now_ns, state.cause)
        return replace(_go(state, Mode.DAMP, now_ns), disarming=state.disarming)
    if state.mode == Mode.DAMP and state.disarming and now.quiet:
        return _go(state, Mode.PASSIVE, now_ns)
    return state
