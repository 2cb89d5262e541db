"""Faults of the G1 through its emulator, stepped on simulated time: reaction, time, peaks, record.

The robot hangs, armed and under a policy's targets, or walks, with every stage and real bytes in
between; ids are those of the fault table. Budgets are counted from the first faulty state that was
sent. Rows that this wire cannot carry are named at the end of drivers/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds")

from drivers.unitree_wire import MOTOR_FAULTS, motor_fault_names
from robot import control
from robot.config import UserError
from robot.log import Log
from robot.log_writer import open_log
from robot.messages import Mode, Truth
from robot.modes import BIT, FAULT
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.safety import LIMITERS
from sim2real.emulator_faults import Faults
from sim2real.lockstep import START_NS, Lockstep, LockstepOptions
from sim2real.replay import ControlReplay
from tests.test_faults import SHORT, StandingPilot
from tests.unitree_rig import CODECS, MS, ROBOT, SteppedDriver, SteppedEmulator

KNEE = ROBOT.joint_names.index("left_knee_joint")
# Shares of the motors' limits that are not passed after a fault. One that hangs in its pose gives
# 0.18 before any; no motor gives more than it has, so one that was told to shows as exactly 1.
PEAK_TORQUE, PEAK_SPEED = 0.25, 0.1
MOTOR = 0.999, 0.999


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppedEmulator]:
    made = SteppedEmulator(tmp_path_factory.mktemp("emulator"), "--service", "none")
    yield made
    made.close()


class HangingDriver(SteppedDriver):
    """The robot stays on its rope, and nobody waits for it to be let down."""

    def truth(self, truth: Truth) -> bool:
        told = super().truth(truth)
        truth.hanging = truth.released = 1
        return told


class Case:
    """A run in lockstep through DDS, in POLICY unless another mode is to be reached, with a log.

    A StandingPilot thinks, or with `walk` the shipped policy at this velocity. It hangs for good,
    or is let down first.
    """

    def __init__(
        self,
        emulator: SteppedEmulator,
        folder: Path,
        reach: Mode | None = Mode.POLICY,
        walk: tuple[float, float, float] | None = None,
        hangs: bool = True,
        **options: Any,
    ) -> None:
        self.emulator = emulator
        given = {
            "timing_factor": 1.0,
            "unitree.domain": emulator.domain,
            "policy": "walk",
            "unsigned_policy": True,
        }
        run = load_run("g1-emulator", given)
        pilot = load_pilot(run, ROBOT) if walk else StandingPilot()
        self.run = run
        self.driver = (HangingDriver if hangs else SteppedDriver)(emulator, **options)
        log = open_log(
            run.model_copy(update={"log": run.log.model_copy(update={"folder": folder})}),
            ROBOT, CODECS, now_ns=START_NS, epoch_ns=0,
        )  # fmt: skip
        self.log = log
        self.lockstep = Lockstep(
            run, pilot, walk or (0.0, 0.0, 0.0), LockstepOptions(stream=False, log=log),
            self.driver, ROBOT,
        )  # fmt: skip
        self.control = self.lockstep.control
        if reach is None:
            return
        assert self.lockstep.run_until(reach, 3.0 if hangs else 15.0), self.reason
        self.lockstep.run_for(2.0 if walk else 0.2)
        assert self.mode == reach and not self.lockstep.summary.faults, self.reason

    def throw(self, name: str, **values: Any) -> None:
        self.emulator.order(fault={name: values}, reset=True)
        self.begin_ns = self.lockstep.now_ns

    def ms_until(self, *modes: Mode, most_ms: int) -> int:
        """Simulated ms from the first faulty state to the tick that reached one of the modes."""
        return self.ms_until_true(lambda: self.mode in modes, most_ms)

    def ms_until_told(self, fault: str, most_ms: int) -> int:
        """The same, to the tick in which the fault is active."""
        return self.ms_until_true(lambda: bool(self.faults & BIT[fault]), most_ms)

    def ms_until_true(self, check: Callable[[], bool], most_ms: int) -> int:
        while not check():
            passed_ms = (self.lockstep.now_ns - self.begin_ns) // MS - 4
            assert passed_ms <= most_ms, f"still {self.mode.name}: {self.reason}"
            self.lockstep.step()
        # Sent at the end of the fault's tick, read in the next; the last tick's time is over, too.
        return (self.lockstep.now_ns - self.begin_ns) // MS - 4

    @property
    def mode(self) -> Mode:
        return self.control.machine.mode

    @property
    def reason(self) -> str:
        status = self.lockstep._status
        return status.reason if status else "no status"

    @property
    def faults(self) -> int:
        return self.control._faults

    def assert_damped(self, words: str) -> None:
        """FAULT and damping, told in words, within the motors' limits, and in the log."""
        assert self.mode == Mode.FAULT and words in self.reason, self.reason
        for _ in range(20):
            cmd = self.control.cmd
            assert not (cmd.stiffness.any() or cmd.effort_ff.any() or cmd.joint_vel_target.any())
            np.testing.assert_allclose(cmd.damping, ROBOT.damp_damping)
            self.lockstep.step()
        self.assert_peaks()
        log = self.assert_logged(words)
        last = log["status"][-1]
        assert (last["mode"], last["cause"]) == (Mode.FAULT, self.control.machine.cause)

    def assert_peaks(self, torque: float = PEAK_TORQUE, speed: float = PEAK_SPEED) -> None:
        peaks = self.emulator.order()
        assert peaks["peak_torque"] < torque and peaks["peak_speed"] < speed, peaks

    def assert_logged(self, words: str = "", fault: str = "", counter: str = "") -> Log:
        """The log names what happened: in the reason, in the row's bit, in the robot's health."""
        self.log.close("done")
        log = Log(self.log.folder)
        if words:
            reasons = {text.decode().rstrip() for text in log["status"]["reason"]}
            assert any(words in text for text in reasons), reasons
        assert not fault or BIT[fault] & np.bitwise_or.reduce(log["status"]["faults"])
        assert not counter or log["health"][counter].max() >= 1
        return log


@pytest.fixture
def case(emulator: SteppedEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for source, seconds in SHORT.items():
        monkeypatch.setitem(control.RAMP_S, source, seconds)
    made: list[Case] = []

    def make(**options: Any) -> Case:
        made.append(Case(emulator, tmp_path / "logs", **options))
        return made[-1]

    yield make
    for each in made:
        each.driver.close()
        each.log.close("done")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("imu_lost", {}, "fault 'imu_lost' is unknown; available: imu_frozen"),
        ("off", {"joint": 3}, "fault 'off' takes no 'joint'; available: nothing"),
        ("motor_off", {"joint": 29}, "fault 'motor_off': got joint 29, expected 0 to 28"),
        ("imu_mounted", {"axis": -1}, "fault 'imu_mounted': got axis -1, expected 0 to 2"),
    ],
)
def test_a_fault_that_there_is_not_is_one_sentence(name: str, values: dict[str, Any], said: str):
    with pytest.raises(UserError) as error:
        Faults().throw(name, values)
    assert str(error.value).startswith(said)


# Fault, values, budget in ms from the first faulty state, words of the reason.
DAMPED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "S1 position is no number": ("encoder_nan", {}, 10, "state_invalid"),
    "S2 velocity is no number": ("velocity_nan", {}, 10, "state_invalid"),
    "S3 quaternion is no number": ("imu_nan", {}, 20, "state_invalid"),
    "S3 quaternion of another length": ("imu_scale", {}, 20, "state_invalid"),
    "S4 IMU frozen": ("imu_frozen", {}, 50, "the IMU repeats itself for 10 samples"),
    "S5 the robot's clock stands": ("tick_stuck", {}, 20, "no state from the robot for 20 ms"),
    "S8 gyro saturated": ("gyro_saturated", {}, 60, "a rate of the IMU is at full scale"),
    "S9 encoder jumps for good": ("encoder_jump", {"samples": 99}, 6, "left_knee_joint jumped by"),
    # Joints of a G1 reach nowhere near the end of their numbers: a wrap is a jump like any other.
    "S10 encoder off by a range": ("encoder_jump", {"rad": 25.0, "samples": 99}, 6, "by 25.00 rad"),
    "S11 encoder stuck under torque": ("encoder_stuck", {}, 200, "left_knee_joint"),
    "A1 a motor is silent": ("motor_silent", {}, 20, "left_knee_joint repeats itself"),
    "A2 no state at all": ("off", {}, 20, "no state from the robot for 20 ms"),
    "A5 states 30 ms late": ("delayed", {"ms": 30}, 30, "no state from the robot for"),
    "A7 every CRC wrong": ("garbage", {}, 20, "no state from the robot for 20 ms"),
    "A12 a motor without power": ("motor_off", {}, 50, "left_knee_joint was disabled by itself"),
    "A17 commands have no effect": ("deaf", {}, 500, "motor lost the computer"),
    "A18 a second writer": ("second_writer", {}, 20, "somebody else commands this robot"),
    "F5 another robot answers": ("mode_machine", {}, 2, "of kind 4 now"),
}  # fmt: skip


@pytest.mark.parametrize("row", DAMPED)
def test_the_robot_is_damped_in_time_and_the_reason_is_told_and_logged(case: Any, row: str):
    name, values, budget_ms, words = DAMPED[row]
    got = case()
    got.throw(name, **values)
    took = got.ms_until(Mode.FAULT, most_ms=budget_ms + 100)
    assert took <= budget_ms, f"{took} ms, {got.reason}"
    got.assert_damped(words)


@pytest.mark.parametrize("bits", [*list(MOTOR_FAULTS)[::4], 1 << 20])  # the rest is its table
def test_a3_a_motor_fault_is_latched_and_named(case: Any, bits: int):
    got = case()
    got.throw("motor_fault", joint=KNEE, bits=bits)
    assert got.ms_until(Mode.FAULT, most_ms=50) <= 2
    got.emulator.order(fault={"motor_fault": None})
    got.assert_damped(f"left_knee_joint: {motor_fault_names(bits)[0]}")
    assert got.mode == Mode.FAULT, "it stays, though the motor has forgotten"


# Fault, values, counter of the robot's health and row that tell of it, ms until they do. Four in a
# row of what is lost by a fifth come soon, but not at a time that is known.
SURVIVED: dict[str, tuple[str, dict[str, Any], str, str, int]] = {
    "A4 every fifth state lost": ("lost", {"share": 0.2}, "lost", "", 50),
    "A5 states 10 ms late": ("delayed", {"ms": 10}, "", "state_late", 30),
    "A6 every state twice": ("duplicate", {}, "repeated", "", 2),
    "A6 states swapped": ("reorder", {}, "repeated", "", 4),
    "A7 every fifth CRC wrong": ("garbage", {"share": 0.2}, "refused", "", 50),
    "S9 an encoder jumps once": ("encoder_jump", {}, "implausible", "", 2),
}  # fmt: skip


@pytest.mark.parametrize("row", SURVIVED)
def test_the_robot_goes_on_and_what_was_refused_is_counted(case: Any, row: str):
    name, values, counter, warned, budget_ms = SURVIVED[row]
    got = case()
    before = getattr(got.driver.watch.counts, counter) if counter else 0
    got.throw(name, **values)
    if counter:
        counts = got.driver.watch.counts
        got.ms_until_true(lambda: getattr(counts, counter) > before, budget_ms)
    if warned:
        got.ms_until_told(warned, budget_ms)
    got.lockstep.run_for(0.5)
    assert got.mode == Mode.POLICY, got.reason
    assert set(got.lockstep.summary.faults) <= {"state_late"}
    got.assert_peaks()
    got.assert_logged(fault=warned, counter=counter)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["encoder_nan", "velocity_nan"])
def test_s1_s2_one_sample_that_is_no_number_is_refused_and_the_last_good_one_used(
    case: Any, name: str, value: float
):
    """A joint at infinity has jumped (S9), before anybody asks whether that is a number."""
    got = case()
    gate, counts = got.control._gate_state.bucket, got.driver.watch.counts
    before = counts.implausible
    got.throw(name, value=value, samples=1)
    got.ms_until_true(lambda: gate.total + counts.implausible - before == 1, 2)
    state = got.control.state
    assert np.isfinite(state.joint_pos).all() and np.isfinite(state.joint_vel).all()
    assert got.control.cmd.stiffness.all()
    got.lockstep.run_for(0.1)
    assert got.mode == Mode.POLICY and gate.total + counts.implausible - before == 1
    got.assert_peaks()
    log = got.assert_logged()
    told = log["status"]["blocked"].max(), log["health"]["implausible"].max() - before
    assert told == (gate.total, counts.implausible - before)


def test_s8_a_gyro_that_is_saturated_for_40_ms_is_survived(case: Any):
    got = case()
    got.throw("gyro_saturated")
    got.lockstep.run_for(0.04)
    got.emulator.order(fault={"gyro_saturated": None})
    got.lockstep.run_for(0.1)
    assert got.mode == Mode.POLICY, got.reason
    got.assert_peaks()


def test_a4_after_three_lost_states_in_a_row_it_is_warned_and_goes_on(case: Any):
    got = case()
    got.throw("off")
    # Of the first one that is lost nobody knows before the next is due.
    assert 4 <= got.ms_until_told("state_late", 8) <= 6
    got.emulator.order(fault={"off": None})
    got.lockstep.run_for(0.1)
    assert got.mode == Mode.POLICY and not got.faults
    got.assert_peaks()
    got.assert_logged(fault="state_late", counter="lost")


def test_a10_commands_that_cannot_be_sent_damp_after_three(case: Any):
    """The motors hear nothing any more: whether they damp is theirs to decide, as with C1."""
    got = case()
    got.emulator.order(reset=True)
    assert got.driver._commands is not None
    got.driver._commands.close()  # as after the loss of an interface
    for _ in range(4):  # three ticks cannot send; the next one, 6 ms after the first, knows
        assert got.mode == Mode.POLICY
        got.lockstep.step()
    assert got.mode == Mode.FAULT
    got.lockstep.run_for(0.1)
    assert got.emulator.last["timed_out"]
    got.assert_damped("commands in a row could not be sent")
    got.assert_logged(counter="unsent")


STOPPED: dict[str, tuple[str, dict[str, Any], str]] = {
    "S14 a motor is too hot": ("temperature", {"degrees": 125}, "motor_overheated"),
    "S16 the battery is empty": ("battery", {"percent": 5}, "battery_empty"),
}


@pytest.mark.parametrize("row", STOPPED)
def test_the_robot_stops_softly_within_a_second(case: Any, row: str):
    name, values, fault = STOPPED[row]
    got = case()
    got.throw(name, **values)
    assert got.ms_until(Mode.SOFT_STOP, Mode.FAULT, most_ms=1100) <= 1000
    assert got.mode == Mode.SOFT_STOP
    got.lockstep.run_for(0.1)
    got.assert_peaks()
    got.assert_logged(fault)


def test_s14_a_hot_motor_gives_less_torque_and_is_then_stopped_softly(case: Any):
    """5 K from the casing's limit: three quarters of the torque; at the limit the crouch."""
    got = case()
    got.throw("temperature", joint=KNEE, degrees=80)
    while not got.faults & BIT["motor_hot"]:
        got.lockstep.step()
        assert got.lockstep.now_ns - got.begin_ns < 100 * MS
    got.lockstep.pilot.target.joint_pos_target[KNEE] += 0.6  # asks for 180 of 139 N m
    most = 0.75 * ROBOT.effort_limit[KNEE]
    asked, begin_ns = 0.0, got.lockstep.now_ns
    while got.lockstep.now_ns - begin_ns < 60 * MS:
        got.lockstep.step()
        cmd, state = got.control.cmd, got.control.state
        active = cmd.stiffness[KNEE] * (cmd.joint_pos_target[KNEE] - state.joint_pos[KNEE])
        braked = cmd.damping[KNEE] * state.joint_vel[KNEE]
        assert active - braked <= most * (1 + 1e-5)  # sent in single precision
        asked = max(asked, float(active - braked))
    assert asked == pytest.approx(most, rel=1e-4), "it was bounded, and by the heat"
    assert got.control.health.heat_margin[KNEE] == 5.0
    assert got.mode == Mode.POLICY
    got.emulator.order(fault={"temperature": {"joint": KNEE, "degrees": 90}})
    assert got.ms_until(Mode.SOFT_STOP, Mode.FAULT, most_ms=1100) <= 1000
    assert got.mode == Mode.SOFT_STOP
    got.assert_peaks(*MOTOR)  # it was told to swing a leg
    got.assert_logged("motor_overheated")
    log = Log(got.log.folder)
    limited = log["intervention"][log["intervention"]["joint"] == KNEE]
    assert LIMITERS[limited["limiter"][0]] == "torque"


WARNED: dict[str, tuple[str, dict[str, Any], str]] = {
    "S14 a motor is nearly too hot": ("temperature", {"degrees": 80}, "motor_hot"),
    "S15 a temperature of 0": ("temperature", {"degrees": 0}, "temperature_unknown"),
    "S15 a temperature of 255": ("temperature", {"degrees": 255}, "temperature_unknown"),
    "S16 15 % of charge": ("battery", {"percent": 14}, "battery_entry"),
    "S16 25 % of charge": ("battery", {"percent": 22}, "battery_low"),
}


@pytest.mark.parametrize("row", WARNED)
def test_the_robot_walks_on_warned_and_is_not_armed_anew(case: Any, row: str):
    name, values, fault = WARNED[row]
    got = case()
    got.throw(name, **values)
    assert got.ms_until_told(fault, 1000) <= 1000
    got.lockstep.run_for(0.2)
    assert got.mode == Mode.POLICY and got.faults & BIT[fault]
    entry = fault != "battery_low"
    assert ("no_entry" not in got.control._conditions(True, got.lockstep.now_ns).held) is entry
    got.assert_peaks()
    got.assert_logged(fault=fault)


def test_a1_a_silent_motor_is_warned_of_after_three_periods_and_damps_after_ten(case: Any):
    got = case()
    got.throw("motor_silent", joint=KNEE)
    warned = None
    while got.mode != Mode.FAULT:
        got.lockstep.step()
        passed = (got.lockstep.now_ns - got.begin_ns) // MS - 4
        if got.faults & BIT["motor_late"] and warned is None:
            warned = passed
        assert passed <= 20
    # The first silent word is one like any other; the third that repeats it is warned of.
    assert warned is not None and 4 <= warned <= 6
    got.assert_damped("left_knee_joint repeats itself for 10 samples")
    assert BIT["motor_late"] & np.bitwise_or.reduce(Log(got.log.folder)["status"]["faults"])


def test_s6_an_imu_that_contradicts_itself_is_warned_of_then_held_then_stopped(case: Any):
    got = case()
    got.throw("imu_turned")
    while not got.faults & BIT["imu_doubtful"]:
        got.lockstep.step()
        assert got.lockstep.now_ns - got.begin_ns < 150 * MS
    assert got.mode == Mode.POLICY, "warned first"
    assert 300 <= got.ms_until(Mode.HOLD, most_ms=600) <= 500
    assert got.ms_until(Mode.SOFT_STOP, most_ms=1200) <= 1000
    got.lockstep.run_for(0.1)
    got.assert_peaks()
    got.assert_logged("imu_wrong")


@pytest.mark.parametrize(("axis", "degrees"), [(0, 35.0), (1, -35.0)])
def test_s6_an_imu_that_is_turned_against_the_legs_is_warned_of_then_held(
    case: Any, axis: int, degrees: float
):
    """It agrees with itself; the sole of the leg that bears does not agree with it.

    From 40 degrees on the tilt that it shows is a reason to hold, too.
    """
    got = case(hangs=False)
    got.throw("imu_mounted", axis=axis, degrees=degrees)
    warned = got.ms_until_told("imu_off_legs", 500)
    assert got.mode == Mode.POLICY
    held = got.ms_until(Mode.HOLD, most_ms=500)
    assert got.control.machine.cause == FAULT["imu_against_legs"]
    assert warned + 130 <= held <= 500
    assert got.ms_until(Mode.SOFT_STOP, most_ms=held + 502) >= held + 500
    got.lockstep.run_for(0.1)
    got.assert_peaks(*MOTOR)
    got.assert_logged("imu_against_legs", fault="imu_off_legs")


@pytest.mark.parametrize(("axis", "degrees"), [(1, -35.0), (0, 90.0)])
def test_s6_a_walk_with_an_imu_that_is_turned_is_held_or_stopped_in_time(
    case: Any, axis: int, degrees: float
):
    """The policy believes it and lashes out: tilt or clipping may be quicker than the legs."""
    got = case(walk=(0.6, 0.0, 0.0), hangs=False)
    got.throw("imu_mounted", axis=axis, degrees=degrees)
    got.ms_until_told("imu_off_legs", 500)
    assert got.ms_until(Mode.HOLD, Mode.SOFT_STOP, Mode.FAULT, most_ms=500) <= 500
    got.ms_until_told("imu_against_legs", 500)
    got.lockstep.run_for(0.1)
    got.assert_peaks(*MOTOR)
    got.assert_logged(fault="imu_against_legs")


def test_s6_an_imu_that_is_turned_from_the_start_on_lets_no_policy_begin(
    emulator: SteppedEmulator, tmp_path: Path
):
    start = {"fault": {"imu_mounted": {"axis": 1, "degrees": 35}}}
    got = Case(emulator, tmp_path, reach=None, hangs=False, start=start)
    try:
        assert got.lockstep.run_until(Mode.STAND, 5.0), "hanging legs tell nothing"
        assert not got.lockstep.run_until(Mode.POLICY, 6.0)
        assert got.mode == Mode.STAND
        words = "START_POLICY is refused: a fault forbids it: imu_off_legs, imu_against_legs"
        assert got.reason == words
        got.assert_peaks(*MOTOR)
        got.assert_logged(words)
    finally:
        got.driver.close()
        got.log.close("done")


def test_s7_a_biased_gyro_is_survived_and_reported(case: Any):
    got = case()
    got.throw("gyro_bias", bias=0.3)
    while not got.faults & BIT["gyro_doubtful"]:
        got.lockstep.step()
        assert got.lockstep.now_ns - got.begin_ns < 500 * MS
    got.lockstep.run_for(0.2)
    assert got.mode == Mode.POLICY
    got.assert_peaks()
    got.log.close("done")
    assert BIT["gyro_doubtful"] & np.bitwise_or.reduce(Log(got.log.folder)["status"]["faults"])


# What is thrown before anybody arms: the row that then refuses it.
REFUSED: dict[str, tuple[str, str]] = {
    "S6 the IMU's axes are turned": ("imu_turned", "imu_doubtful, imu_wrong"),
    "A13 motors that never time out": ("no_timeout", "timeout_unknown"),
    "A13 motors that do not hear": ("deaf", "timeout_unknown"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_it_is_not_armed_and_the_reason_is_told(
    emulator: SteppedEmulator, tmp_path: Path, row: str
):
    fault, words = REFUSED[row]
    got = Case(emulator, tmp_path, reach=None, start={"fault": {fault: {}}})
    try:
        assert not got.lockstep.run_until(Mode.DAMP, 0.5)
        assert got.mode == Mode.PASSIVE
        assert got.reason == f"ARM is refused: a fault forbids it: {words}"
        assert not got.control.cmd.damping.any()
        got.assert_peaks(speed=0.3)  # limp, it sways
        got.assert_logged(words)
    finally:
        got.driver.close()
        got.log.close("done")


def test_c3_without_its_manager_it_damps_and_goes_on_damping(case: Any):
    got = case()
    begin_ns = got.control._heartbeat_ns
    got.lockstep.heartbeats = False
    got.emulator.order(reset=True)
    got.begin_ns = got.lockstep.now_ns
    got.ms_until(Mode.FAULT, most_ms=120)
    assert got.lockstep.now_ns - 2 * MS - begin_ns == 100 * MS
    got.lockstep.run_for(0.2)
    assert not got.emulator.last["timed_out"], "the motors are still spoken to"
    got.assert_damped("manager_lost")


@pytest.mark.parametrize(
    ("gap_ms", "times", "fault"),
    [(8, 3, "overrun"), (12, 1, "tick_gap"), (50, 1, "tick_gap"), (1000, 1, "tick_gap")],
)
def test_c4_c5_c7_a_control_that_was_kept_tells_what_it_missed_and_damps_after_10_ms(
    case: Any, gap_ms: int, times: int, fault: str
):
    """Starved, collecting garbage, suspended: its first tick knows.

    Late three times in a row is warned of; a gap of more than 10 ms damps.
    """
    got, missed = case(), (gap_ms - 2) // 2
    got.emulator.order(reset=True)
    for _ in range(times):
        got.driver.step(2 * missed)  # nobody ticked meanwhile
        got.lockstep.now_ns += 2 * missed * MS
        got.control.note_late(missed)
        got.lockstep.step()
    assert got.faults & BIT[fault]
    assert got.mode == (Mode.FAULT if fault == "tick_gap" else Mode.POLICY)
    if fault == "tick_gap":  # motors that waited for 50 ms have something to say, too
        got.assert_damped("driver_fault" if gap_ms > 50 else fault)
    got.assert_peaks()
    told = got.assert_logged(fault=fault)["consumed"]["skipped"]
    assert told[told > 0].tolist() == [missed] * times


@pytest.mark.parametrize(("pause_ms", "warned"), [(50, True), (200, False)])
def test_c5_a_pilot_that_pauses_is_warned_of_and_lost_after_100_ms(
    case: Any, pause_ms: int, warned: bool
):
    """A pause of 50 ms makes the newest target up to 70 old: the age of 60 is warned of."""
    got = case()
    got.emulator.order(reset=True)
    while got.control._target_age_ns(got.lockstep.now_ns) > 2 * MS:
        got.lockstep.step()
    got.begin_ns, got.lockstep.pilot_alive = got.lockstep.now_ns, False
    if warned:
        got.lockstep.run_for(pause_ms * 1e-3)
        got.lockstep.pilot_alive = True
        got.lockstep.run_for(0.1)
        assert got.mode == Mode.POLICY and not got.faults
        got.assert_peaks()
        got.assert_logged(fault="target_late")
        return
    assert got.ms_until_told("target_late", 62) >= 50
    assert got.ms_until(Mode.FAULT, most_ms=100) <= 100
    got.assert_damped("target_lost")


def test_the_remote_stops_the_robot_in_one_tick_and_it_stays_so(case: Any):
    got = case()
    got.throw("remote", keys=0x0220)
    assert got.ms_until(Mode.FAULT, most_ms=50) <= 2
    got.emulator.order(fault={"remote": None})
    got.assert_damped("remote_stop: L2+B on the robot's own remote")


def test_c1_c2_without_control_the_motors_damp_by_themselves(case: Any):
    """What is left of a killed or frozen control: nothing. The motors' own time-out must do."""
    got = case()
    got.emulator.order(reset=True)
    assert got.emulator.order(step=48)["timed_out"] is False
    assert got.emulator.order(step=4)["timed_out"] is True
    got.driver._baseline = None  # nobody listened meanwhile
    end = got.emulator.order(step=500)
    assert end["peak_torque"] < PEAK_TORQUE and end["peak_speed"] < PEAK_SPEED


def test_a_log_of_a_fault_replays_to_the_byte(case: Any):
    got = case()
    got.throw("battery", percent=14)
    got.lockstep.run_for(0.6)
    got.throw("motor_fault", joint=KNEE, bits=1)
    got.ms_until(Mode.FAULT, most_ms=50)
    got.lockstep.run_for(0.1)
    got.log.close("done")
    log = Log(got.log.folder)
    again = ControlReplay(log, got.run, ROBOT)
    found = again()
    assert found.different == 0 and found.incomplete == 0, list(found.firsts.values())
    assert found.steps > 300 and {"POLICY", "FAULT"} <= again.modes
    assert len(log["health"]) >= 4 and set(log["health"]["alerts"].tolist()) > {0}
