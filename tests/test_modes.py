"""The mode machine against what is promised of it, written down a second time and independently."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from robot.messages import Ask, Mode
from robot.modes import (
    ACTING,
    BIT,
    FAULT,
    FAULTS,
    GUARDS,
    NO_CAUSE,
    TRANSITIONS,
    Action,
    Answer,
    Clear,
    Conditions,
    ModeState,
    fault_names,
    forbids_entry,
    severity,
    step,
)

S = 1_000_000_000
MS = 1_000_000
DRIVEN = {Mode.STANDUP, Mode.STAND, Mode.POLICY, Mode.HOLD, Mode.SOFT_STOP}
WALKING = {Mode.POLICY, Mode.HOLD}
LATCHED = {Mode.FAULT, Mode.ESTOP}
ARMED = {Mode.DAMP} | DRIVEN
ALL_GUARDS = frozenset(GUARDS)

# What each ask does in each mode; a mode that is missing refuses it.
ASKS: dict[Ask, dict[Mode, Mode]] = {
    Ask.NONE: {},
    Ask.ACQUIRE: {},  # the lease is authority's business
    Ask.RELEASE: {},
    Ask.ARM: {Mode.PASSIVE: Mode.DAMP},
    Ask.DISARM: {
        Mode.DAMP: Mode.PASSIVE, Mode.STANDUP: Mode.SOFT_STOP, Mode.STAND: Mode.SOFT_STOP,
        Mode.POLICY: Mode.SOFT_STOP, Mode.HOLD: Mode.SOFT_STOP, Mode.SOFT_STOP: Mode.SOFT_STOP,
    },
    Ask.STAND_UP: {Mode.DAMP: Mode.STANDUP},
    Ask.START_POLICY: {Mode.STAND: Mode.POLICY},
    Ask.HOLD: {Mode.POLICY: Mode.HOLD, Mode.HOLD: Mode.HOLD},
    Ask.ENGAGE: {Mode.HOLD: Mode.POLICY},
    Ask.STAND: {Mode.HOLD: Mode.STAND},
    Ask.SOFT_STOP: {
        Mode.STANDUP: Mode.SOFT_STOP, Mode.STAND: Mode.SOFT_STOP, Mode.POLICY: Mode.SOFT_STOP,
        Mode.HOLD: Mode.SOFT_STOP,
    },
    Ask.ESTOP: dict.fromkeys(Mode, Mode.ESTOP),
    Ask.RESET: {Mode.FAULT: Mode.PASSIVE, Mode.ESTOP: Mode.PASSIVE},
}  # fmt: skip

# What must hold for an ask, apart from the mode. Asking for less motion needs nothing.
NEEDS: dict[Ask, set[str]] = {
    Ask.ARM: {"lease", "no_entry"},
    Ask.STAND_UP: {"lease", "no_entry", "upright"},
    Ask.START_POLICY: {
        "lease", "no_entry", "blended", "policy_ready", "near_start", "fresh_command",
    },
    Ask.ENGAGE: {"lease", "no_entry", "fresh_command"},
    Ask.STAND: {"lease", "quiet"},
    Ask.RESET: {"lease", "cause_gone"},
}  # fmt: skip

# Where each fault leads, by the mode that it meets.
DAMPS_ARMED = (
    "internal_error", "driver_fault", "state_invalid", "state_stale", "tick_gap", "manager_lost",
    "remote_stop",
)  # fmt: skip
DAMPS_WALKING = ("target_malformed", "target_invalid", "target_lost")
REACTIONS: dict[str, dict[Mode, Mode]] = {
    **{name: dict.fromkeys(ARMED, Mode.FAULT) for name in DAMPS_ARMED},
    **{name: dict.fromkeys(WALKING, Mode.FAULT) for name in DAMPS_WALKING},
    "fallen": dict.fromkeys(DRIVEN, Mode.FAULT),
    "clipping_hard": dict.fromkeys(DRIVEN, Mode.SOFT_STOP),
    "motor_overheated": dict.fromkeys(DRIVEN, Mode.SOFT_STOP),
    "battery_empty": dict.fromkeys(DRIVEN, Mode.SOFT_STOP),
    "standup_failed": {Mode.STANDUP: Mode.SOFT_STOP},
    # Without a policy that balances there is no HOLD: the next more severe reaction applies.
    "tilt": {
        Mode.POLICY: Mode.HOLD, Mode.HOLD: Mode.HOLD, Mode.STAND: Mode.SOFT_STOP,
        Mode.STANDUP: Mode.SOFT_STOP,
    },
    "command_stale": {Mode.POLICY: Mode.HOLD},
    "target_late": {},
    "clipping": {},
    "overrun": {},
    "state_late": {},
    "motor_hot": {},
    "temperature_unknown": {},
    "battery_entry": {},
    "battery_low": {},
    "battery_unknown": {},
    "motor_late": {},
    "timeout_unknown": {},
    "imu_doubtful": {},
    "imu_wrong": {
        Mode.POLICY: Mode.HOLD, Mode.HOLD: Mode.HOLD, Mode.STAND: Mode.SOFT_STOP,
        Mode.STANDUP: Mode.SOFT_STOP,
    },
    "gyro_doubtful": {},
    "imu_off_legs": {},
    "imu_against_legs": {Mode.POLICY: Mode.HOLD, Mode.HOLD: Mode.HOLD},
}  # fmt: skip
NO_ENTRY = {
    "internal_error", "driver_fault", "state_invalid", "state_stale", "manager_lost", "fallen",
    "tilt", "remote_stop", "motor_overheated", "battery_empty", "motor_hot", "temperature_unknown",
    "battery_entry", "timeout_unknown", "imu_doubtful", "imu_wrong",
    "imu_off_legs", "imu_against_legs",
}  # fmt: skip


def conditions(
    *faults: str,
    held: frozenset[str] = ALL_GUARDS,
    blend_done: bool = False,
    stand_reached: bool = True,
    quiet: bool = True,
) -> Conditions:
    bits = sum(BIT[name] for name in set(faults))
    return Conditions(bits, held, blend_done, stand_reached, quiet)


def begin(mode: Mode) -> ModeState:
    """The machine long after it entered a mode."""
    return ModeState(mode, 0, FAULT["tick_gap"] if mode == Mode.FAULT else NO_CAUSE)


def run(state: ModeState, now: Conditions, now_ns: int, *asks: Ask) -> ModeState:
    return step(state, asks, now, now_ns)[0]


def test_every_row_of_the_fault_table_has_an_expectation_here():
    assert set(REACTIONS) == {fault.name for fault in FAULTS}
    assert set(ASKS) == set(Ask)
    assert {f.name for f in FAULTS if f.no_entry} == NO_ENTRY
    assert list(FAULT.values()) == list(range(len(FAULTS)))
    assert [BIT[fault.name] for fault in FAULTS] == [1 << i for i in range(len(FAULTS))]


@pytest.mark.parametrize("mode", list(Mode))
def test_full_product_of_modes_asks_faults_and_missing_guards(mode):
    fault_rows = [(), *((name,) for name in REACTIONS)]
    guards = [ALL_GUARDS, frozenset(), *(ALL_GUARDS - {name} for name in GUARDS)]
    for ask in Ask:
        for faults in fault_rows:
            for held in guards:
                now = conditions(*faults, held=held)
                after, (answer,) = step(begin(mode), (ask,), now, 100 * MS)
                where = f"{mode.name}, {ask.name}, {faults}, without {set(GUARDS) - held}"
                allowed = mode in ASKS[ask] and NEEDS.get(ask, set()) <= held
                assert (answer.ask, answer.ok) == (ask, allowed), where
                asked = ASKS[ask][mode] if allowed else mode
                expected = asked
                for name in faults if ask != Ask.ESTOP else ():
                    expected = REACTIONS[name].get(asked, asked)
                if faults == ("clipping_hard",) and asked == Mode.SOFT_STOP:
                    expected = Mode.SOFT_STOP
                assert after.mode == expected, where
                assert bool(answer.reason) != allowed, where
                if not allowed and not faults:
                    assert after == begin(mode), where


def test_a_refusal_in_the_wrong_mode_says_where_it_is_possible():
    _, (answer,) = step(begin(Mode.POLICY), (Ask.ARM,), conditions(), 1)
    assert answer == Answer(Ask.ARM, False, "ARM is refused in POLICY; it is possible in PASSIVE")
    _, (answer,) = step(begin(Mode.DAMP), (Ask.HOLD,), conditions(), 1)
    assert answer.reason == "HOLD is refused in DAMP; it is possible in HOLD, POLICY"


@pytest.mark.parametrize(("ask", "guard"), [(a, g) for a in NEEDS for g in sorted(NEEDS[a])])
def test_a_refusal_by_a_guard_says_which(ask, guard):
    mode = next(iter(ASKS[ask]))
    state, (answer,) = step(begin(mode), (ask,), conditions(held=ALL_GUARDS - {guard}), 1)
    assert state == begin(mode)
    assert answer == Answer(ask, False, f"{ask.name} is refused: {GUARDS[guard]}")


def test_a_refused_arming_lists_the_faults_that_forbid_it():
    now = conditions("state_stale", "tick_gap", "tilt", held=ALL_GUARDS - {"no_entry"})
    _, (answer,) = step(begin(Mode.PASSIVE), (Ask.ARM,), now, 1)
    assert answer.reason == "ARM is refused: a fault forbids it: state_stale, tilt"


def test_names_and_entries_of_several_faults():
    bits = BIT["internal_error"] | BIT["tick_gap"] | BIT["overrun"]
    assert fault_names(bits) == ["internal_error", "tick_gap", "overrun"]
    assert forbids_entry(bits) == ["internal_error"]
    assert fault_names(0) == forbids_entry(0) == []


def test_numbers_that_logs_and_other_programs_read():
    assert {a.name: a.value for a in Action} == {
        "NONE": 0, "WARN": 1, "HOLD": 2, "SOFT_STOP": 3, "DAMP": 4,
    }  # fmt: skip
    assert {c.name: c.value for c in Clear} == {"AUTO": 0, "ENGAGE": 1, "RESET": 2}
    assert NO_CAUSE == 255
    # Faults that are more than a warning: without one the machine need not step.
    assert fault_names(ACTING) == [name for name in FAULT if REACTIONS[name]]
    assert 1 << len(FAULTS) > ACTING
    assert ModeState() == ModeState(Mode.PASSIVE, since_ns=0, cause=255, disarming=False)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (FAULTS[0], "action"),
        (TRANSITIONS[0], "to"),
        (ModeState(), "mode"),
        (conditions(), "faults"),
        (Answer(Ask.ARM, True, ""), "ok"),
    ],
)
def test_nobody_changes_a_table_or_a_state_in_place(row, field):
    with pytest.raises(FrozenInstanceError):
        setattr(row, field, None)


def test_the_most_severe_active_fault_wins():
    assert list(Action) == sorted(Action)
    assert severity(Mode.POLICY, 0) == Action.NONE
    everything = (1 << len(FAULTS)) - 1
    assert severity(Mode.PASSIVE, everything) == Action.NONE
    assert severity(Mode.FAULT, everything) == Action.NONE
    assert severity(Mode.POLICY, BIT["overrun"]) == Action.WARN
    assert severity(Mode.POLICY, BIT["overrun"] | BIT["tilt"]) == Action.HOLD
    assert severity(Mode.POLICY, BIT["clipping_hard"] | BIT["tilt"]) == Action.SOFT_STOP
    assert severity(Mode.POLICY, everything) == Action.DAMP


def test_of_two_faults_the_more_severe_one_reacts_and_gives_the_cause():
    acting = {n: FAULTS[FAULT[n]].action for n in REACTIONS if Mode.POLICY in REACTIONS[n]}
    for first in acting:
        for second in acting:
            after = run(begin(Mode.POLICY), conditions(first, second), 1)
            worst = max(acting[first], acting[second])
            cause = min(FAULT[n] for n in (first, second) if acting[n] == worst)
            assert after.cause == cause, (first, second)
            assert after.mode == REACTIONS[FAULTS[cause].name][Mode.POLICY]


@pytest.mark.parametrize("mode", list(Mode))
def test_estop_takes_one_step_from_every_mode_whatever_else_is_true(mode):
    everything = Conditions((1 << len(FAULTS)) - 1, frozenset(), True, False, False)
    for now in (conditions(), conditions(blend_done=True), everything):
        for asks in ((Ask.ESTOP,), (Ask.ESTOP, Ask.RESET), (Ask.RESET, Ask.ESTOP, Ask.ARM)):
            after, answers = step(begin(mode), asks, now, 5)
            assert after.mode == Mode.ESTOP
            assert answers[asks.index(Ask.ESTOP)] == Answer(Ask.ESTOP, True, "")
    assert run(ModeState(Mode.ESTOP, 3), conditions(), 9, Ask.ESTOP) == ModeState(Mode.ESTOP, 3)


@pytest.mark.parametrize("name", [*DAMPS_ARMED, *DAMPS_WALKING, "fallen"])
def test_a_damp_fault_latches_and_severity_does_not_fall_when_it_goes(name):
    state = run(begin(Mode.POLICY), conditions(name), 7)
    assert state == ModeState(Mode.FAULT, 7, FAULT[name])
    for now in (conditions(name), conditions(blend_done=True), conditions(held=frozenset())):
        for ask in set(Ask) - {Ask.RESET, Ask.ESTOP}:
            assert run(state, now, 2 * S, ask) == state
    refused, (answer,) = step(state, (Ask.RESET,), conditions(held=ALL_GUARDS - {"cause_gone"}), 9)
    assert refused == state and answer.reason == "RESET is refused: the cause is still there"
    assert run(state, conditions(), 9, Ask.RESET) == ModeState(Mode.PASSIVE, 9)


def test_reset_never_arms():
    for mode in LATCHED:
        state = run(begin(mode), conditions(blend_done=True), 1, Ask.RESET)
        for tick in range(2, 100):
            state = run(state, conditions(blend_done=True), tick)
            assert state.mode == Mode.PASSIVE


@pytest.mark.parametrize("mode", sorted(DRIVEN))
def test_disarm_goes_through_soft_stop_and_damp_to_passive(mode):
    state, (answer,) = step(begin(mode), (Ask.DISARM,), conditions(), 1 * MS)
    assert answer.ok and state.mode == Mode.SOFT_STOP and state.disarming
    state = run(state, conditions(), 2 * MS)
    assert state.mode == Mode.SOFT_STOP, "the crouch is still blending"
    state = run(state, conditions(blend_done=True), 3 * MS)
    assert state == ModeState(Mode.DAMP, 3 * MS, NO_CAUSE, disarming=True)
    state = run(state, conditions(blend_done=True, quiet=False), 4 * MS)
    assert state.mode == Mode.DAMP, "limbs still move"
    assert run(state, conditions(quiet=True), 5 * MS).mode == Mode.DAMP, "not in force yet"
    state = run(state, conditions(blend_done=True), 5 * MS)
    assert state == ModeState(Mode.PASSIVE, 5 * MS)


def test_a_soft_stop_on_request_ends_in_damp_and_stays_there():
    state = run(begin(Mode.STAND), conditions(blend_done=True), 5, Ask.SOFT_STOP)
    assert state == ModeState(Mode.SOFT_STOP, 5), "a mode lasts until the next tick at least"
    state = run(state, conditions(blend_done=True), 6)
    assert state == ModeState(Mode.DAMP, 6)
    assert run(state, conditions(blend_done=True), 7) == state


def test_a_soft_stop_by_a_fault_ends_latched():
    state = run(begin(Mode.POLICY), conditions("clipping_hard"), 5)
    assert state == ModeState(Mode.SOFT_STOP, 5, FAULT["clipping_hard"])
    assert run(state, conditions("clipping_hard"), 6) == state
    assert run(state, conditions("tilt"), 6) == state, "crouching is the reaction already"
    after = run(state, conditions(blend_done=True), 6)
    assert after == ModeState(Mode.FAULT, 6, FAULT["clipping_hard"])
    disarming = run(state, conditions(), 6, Ask.DISARM)
    assert run(disarming, conditions(blend_done=True), 7).mode == Mode.FAULT


def test_standup_ends_in_stand_or_softly_stops():
    start = begin(Mode.STANDUP)
    assert run(start, conditions(), 5) == start
    assert run(start, conditions(blend_done=True), 5) == ModeState(Mode.STAND, 5)
    failed = run(start, conditions(blend_done=True, stand_reached=False), 5)
    assert failed == ModeState(Mode.SOFT_STOP, 5, FAULT["standup_failed"])


@pytest.mark.parametrize("mode", [Mode.PASSIVE, Mode.DAMP, Mode.STAND, Mode.POLICY, Mode.HOLD])
def test_nothing_happens_by_itself_in_a_mode_that_is_not_a_way_to_another(mode):
    for blend_done in (False, True):
        for quiet in (False, True):
            now = conditions(blend_done=blend_done, quiet=quiet)
            assert run(begin(mode), now, 10 * S) == begin(mode)


# --- HOLD -----------------------------------------------------------------------------------------


def test_hold_by_tilt_goes_back_by_itself_only_with_a_fresh_command():
    hold = run(begin(Mode.POLICY), conditions("tilt"), 10 * MS)
    assert hold == ModeState(Mode.HOLD, 10 * MS, FAULT["tilt"])
    assert run(hold, conditions("tilt", "overrun"), 12 * MS) == hold
    assert run(hold, conditions(), 14 * MS) == ModeState(Mode.POLICY, 14 * MS)
    assert run(hold, conditions("overrun"), 14 * MS).mode == Mode.POLICY, "a warning is no reason"
    stale = run(hold, conditions(held=ALL_GUARDS - {"fresh_command"}), 14 * MS)
    assert stale == replace(hold, cause=FAULT["command_stale"])
    assert run(stale, conditions(), 16 * MS) == stale, "the operator must engage now"
    assert run(stale, conditions(), 16 * MS, Ask.ENGAGE) == ModeState(Mode.POLICY, 16 * MS)


@pytest.mark.parametrize("fault", ["tilt", "imu_wrong", "imu_against_legs"])
def test_hold_by_tilt_or_imu_becomes_a_soft_stop_after_half_a_second(fault):
    hold = run(begin(Mode.POLICY), conditions(fault), 1 * S)
    assert run(hold, conditions(fault), 1_499_999_999) == hold
    for now_ns in (1_500_000_000, 1_500_000_001):
        after = run(hold, conditions(fault), now_ns)
        assert after == ModeState(Mode.SOFT_STOP, now_ns, FAULT[fault])
    assert run(hold, conditions(), 3 * S).mode == Mode.POLICY, "it cleared in time"


def test_hold_of_an_operator_that_meets_a_tilt_counts_from_the_tilt():
    for cause in (NO_CAUSE, FAULT["command_stale"]):
        tilted = run(ModeState(Mode.HOLD, 1 * S, cause), conditions("tilt"), 9 * S)
        assert (tilted.mode, tilted.since_ns, tilted.cause) == (Mode.HOLD, 9 * S, FAULT["tilt"])
        assert run(tilted, conditions("tilt"), 9_499_999_999) == tilted
        assert run(tilted, conditions("tilt"), 9_500_000_000).mode == Mode.SOFT_STOP


@pytest.mark.parametrize("now_ns", [200 * MS, 500 * MS, 3600 * S])
def test_hold_without_an_operator_lasts_until_engage_and_never_escalates(now_ns):
    hold = run(begin(Mode.POLICY), conditions("command_stale"), 100 * MS)
    assert hold == ModeState(Mode.HOLD, 100 * MS, FAULT["command_stale"])
    for now in (conditions(), conditions("command_stale"), conditions("overrun")):
        assert run(hold, now, now_ns) == hold
    assert run(hold, conditions(), now_ns, Ask.ENGAGE).mode == Mode.POLICY


def test_hold_on_request_lasts_until_engage_and_never_escalates():
    hold = run(begin(Mode.POLICY), conditions(), 100 * MS, Ask.HOLD)
    assert hold == ModeState(Mode.HOLD, 100 * MS)
    assert run(hold, conditions(), 3600 * S) == hold
    assert run(hold, conditions(), 3600 * S, Ask.HOLD) == hold
    assert run(hold, conditions(), 3600 * S, Ask.ENGAGE) == ModeState(Mode.POLICY, 3600 * S)
    assert run(hold, conditions(), 3600 * S, Ask.STAND) == ModeState(Mode.STAND, 3600 * S)


@pytest.mark.parametrize("cause", [NO_CAUSE, FAULT["command_stale"]])
def test_hold_that_needs_engage_still_does_after_a_tilt_came_and_went(cause):
    hold = run(ModeState(Mode.HOLD, 0, cause), conditions("tilt"), 10 * MS)
    assert run(hold, conditions(), 12 * MS).mode == Mode.HOLD


def test_hold_asked_for_during_a_tilt_outlasts_it():
    hold = run(begin(Mode.POLICY), conditions("tilt"), 10 * MS)
    asked, (answer,) = step(hold, (Ask.HOLD,), conditions("tilt"), 12 * MS)
    assert answer.ok
    assert run(asked, conditions(), 14 * MS).mode == Mode.HOLD


def test_every_clear_condition_of_a_hold_is_one_that_the_machine_knows():
    assert {f.name: f.clear for f in FAULTS if f.action == Action.HOLD} == {
        "tilt": Clear.AUTO,
        "imu_wrong": Clear.AUTO,
        "imu_against_legs": Clear.AUTO,
        "command_stale": Clear.ENGAGE,
    }
    assert {f.name: f.escalate_s for f in FAULTS if f.escalate_s} == {
        "tilt": 0.5,
        "imu_wrong": 0.5,
        "imu_against_legs": 0.5,
    }
    latches = {f.clear for f in FAULTS if f.action > Action.HOLD}
    assert latches == {Clear.RESET}


# --- a random walk --------------------------------------------------------------------------------


class RandomOperator(RuleBasedStateMachine):
    """Anybody asks anything, anything breaks and mends; three promises hold at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now_ns = ModeState(), 0
        self.faults: set[str] = set()
        self.missing: set[str] = set()
        self.way_out = 3  # after a latch: 0 latched, 1 reset, 2 armed; 3 never latched

    @rule(ask=st.sampled_from(Ask), blend=st.booleans(), reached=st.booleans(), quiet=st.booleans())
    def ask(self, ask: Ask, blend: bool, reached: bool, quiet: bool) -> None:
        self.tick((ask,), blend, reached, quiet)

    @rule(blend=st.booleans(), reached=st.booleans(), quiet=st.booleans())
    def wait(self, blend: bool, reached: bool, quiet: bool) -> None:
        self.tick((), blend, reached, quiet)

    @rule(seconds=st.floats(0.001, 2.0))
    def pause(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)

    @rule(name=st.sampled_from(sorted(REACTIONS)))
    def break_or_mend(self, name: str) -> None:
        self.faults ^= {name}

    @rule()
    def mend_all(self) -> None:
        self.faults.clear()
        self.missing.clear()

    @rule(guard=st.sampled_from(sorted(GUARDS)))
    def miss_or_meet(self, guard: str) -> None:
        self.missing ^= {guard}

    def tick(self, asks: tuple[Ask, ...], blend: bool, reached: bool, quiet: bool) -> None:
        self.now_ns += 2 * MS
        before = self.state
        held = ALL_GUARDS - self.missing
        now = conditions(
            *self.faults, held=held, blend_done=blend, stand_reached=reached, quiet=quiet
        )
        self.state, answers = step(before, asks, now, self.now_ns)
        mode = self.state.mode
        if Ask.ESTOP in asks:
            assert mode == Mode.ESTOP
        assert all(bool(answer.reason) != answer.ok for answer in answers)
        # A latch is left by reset alone, and reset leads nowhere but to PASSIVE.
        if before.mode in LATCHED and mode not in LATCHED:
            assert asks == (Ask.RESET,) and mode == Mode.PASSIVE
            self.way_out = 1
        if before.mode == Mode.PASSIVE and mode == Mode.DAMP:
            assert asks == (Ask.ARM,)
            self.way_out = 2 if self.way_out == 1 else self.way_out
        if mode in LATCHED:
            self.way_out = 0
        if mode in DRIVEN:
            assert self.way_out >= 2, "driven after a latch without reset and arm"
        # While a DAMP fault is active nothing drives.
        for name in self.faults & set(DAMPS_ARMED):
            assert mode not in ARMED, f"{mode.name} with {name}"
        if self.faults & set(DAMPS_WALKING):
            assert mode not in WALKING
        if "fallen" in self.faults:
            assert mode not in DRIVEN
        # A mode is new exactly when its time is.
        if mode != before.mode:
            assert self.state.since_ns == self.now_ns
        assert (mode != Mode.FAULT) or self.state.cause != NO_CAUSE


RandomOperator.TestCase.settings = settings(
    max_examples=40, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
TestRandomWalk = RandomOperator.TestCase
