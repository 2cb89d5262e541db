"""Reactions to faults, in ticks of simulated time: the simulated robot, every stage, real bytes.

Ids are those of the fault table. A fault between stages meets the same checks as on the bus.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.driver import DriverFault
from drivers.sim import SimDriver
from robot import control
from robot.bus import Outbox
from robot.messages import (
    Ask,
    LowCmd,
    LowState,
    Mode,
    PolicyInfo,
    PolicyInput,
    Request,
    Status,
    Target,
    Truth,
)
from robot.model import Robot, load_robot
from robot.modes import BIT
from robot.pilot import load_pilot
from robot.runs import load_run
from robot.topics import make_codecs, source_index
from sim2real.lockstep import Lockstep, LockstepOptions

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
MS = 1_000_000
SHORT = {"stand": (0.04, 0.02), "policy": (0.04, 0.02)}  # s; a robot on its feet needs no more
FOREVER = 1 << 62
Frames = Iterable[bytes]


# --- faults between stages ------------------------------------------------------------------------


class Fault:
    """One fault on one topic from `begin` on, in the words of the fault table.

    Args:
        kind: off, stuck, garbage, wrong, slow, delayed, intermittent, duplicate or reorder.
        change: what garbage and wrong make of a frame.
        period: every how many frames slow and intermittent let one pass.
    """

    def __init__(
        self,
        kind: str,
        topic: str,
        change: Callable[[bytes], bytes] = bytes,
        period: int = 2,
    ) -> None:
        self.kind, self.topic, self.change, self.period = kind, topic, change, period
        self.begin_ns, self.end_ns = FOREVER, FOREVER
        self._last, self._count, self._kept = b"", 0, deque[bytes]()

    def __call__(self, topic: str, frame: bytes, now_ns: int) -> Frames:
        if topic != self.topic:
            return (frame,)
        if not self.begin_ns <= now_ns < self.end_ns:
            self._last = frame
            return (frame,)
        self._count += 1
        return self._spoil(frame)

    def _spoil(self, frame: bytes) -> Frames:
        turn = self._count % self.period == 0
        match self.kind:
            case "off":
                return ()
            case "stuck":
                return (self._last,)
            case "garbage" | "wrong":
                return (self.change(frame),)
            case "slow":
                return (frame,) if turn else ()
            case "intermittent":
                return () if turn else (frame,)
            case "delayed":
                self._kept.append(frame)
                return (self._kept.popleft(),) if len(self._kept) > self.period else ()
            case "duplicate":
                return (frame, frame)
            case "reorder":
                if not turn:
                    self._kept.append(frame)
                    return ()
                return (frame, self._kept.popleft())
        raise AssertionError(self.kind)


def patched(field: str, value: float, index: int = 0) -> Callable[[bytes], bytes]:
    """Puts a number into an array of a target."""
    slot = next(slot for slot in CODECS["target"].slots if slot.name == field)

    def change(frame: bytes) -> bytes:
        spoilt = bytearray(frame)
        struct.pack_into("<d", spoilt, 4 + slot.offset + 8 * index, value)
        return bytes(spoilt)

    return change


def header(offset: int, value: int) -> Callable[[bytes], bytes]:
    """Puts a number into the common header: 4 schema, 12 robot, 20 instance, 28 seq."""
    return lambda frame: frame[:offset] + struct.pack("<Q", value) + frame[offset + 8 :]


# --- the robot on its feet ------------------------------------------------------------------------


class Standing(SimDriver):
    """The simulated robot on its feet, off the gantry, with faults in its sensors."""

    def __init__(self, run: Any, robot: Robot) -> None:
        super().__init__(robot, run.sim, run.period_ns, run.seed)
        self.gantry.released = True
        self.spoil: Callable[[LowState], object] | None = None
        self.last: LowState = CODECS["low_state"].new()
        self.worst = 0.0  # largest |torque| sent, as a share of what motor or damping may give

    def read(self, state: LowState) -> None:
        super().read(state)
        self.last.copy_from(state)
        if self.spoil:
            self.spoil(state)

    def write(self, cmd: LowCmd) -> None:
        error = cmd.joint_pos_target - self.last.joint_pos
        braked = cmd.damping * self.last.joint_vel
        active = cmd.stiffness * error + cmd.damping * cmd.joint_vel_target + cmd.effort_ff
        most = np.maximum(self.robot.effort_limit, np.abs(braked))
        share = np.abs(active - braked) / most
        # A refused state hides from the filter what this driver knows.
        self.worst = max(self.worst, float(share.max()) if self.spoil is None else 0.0)
        super().write(cmd)

    def truth(self, truth: Truth) -> bool:
        told = super().truth(truth)
        truth.hanging = 1  # nobody waits for people at the gantry
        return told


class StandingPilot:
    """Answers everything with the stand pose and the robot's stand gains."""

    def __init__(self) -> None:
        self.info: PolicyInfo = CODECS["policy_info"].new()
        self.info.policy_id, self.info.step_ns = 99, 20 * MS
        self.info.velocity_min[:], self.info.velocity_max[:] = -1.0, 1.0
        self.info.default_joint_pos[:] = ROBOT.stand_joint_pos
        self.target: Target = CODECS["target"].new()
        self.target.joint_pos_target[:] = ROBOT.stand_joint_pos
        self.target.stiffness[:], self.target.damping[:] = (
            ROBOT.stand_stiffness,
            ROBOT.stand_damping,
        )

    def step(self, given: PolicyInput, now_ns: int) -> Target:
        out = self.target
        out.now_ns, out.policy_id = now_ns, self.info.policy_id
        out.input_instance, out.input_seq = given.instance, given.seq
        out.episode, out.step = given.episode, given.step
        return out

    def locate(self, given: PolicyInput, now_ns: int) -> None:
        """It does not know where it is."""

    def remember(self, now_ns: int) -> None:
        """It carries nothing from step to step."""


class Case:
    """A run in lockstep that is brought into a mode and then disturbed."""

    def __init__(
        self,
        fault: Fault | None = None,
        pilot: Any = None,
        velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
        delay_ticks: int = 0,
    ) -> None:
        run = load_run("sim", {"timing_factor": 1.0})
        self.fault, self.driver = fault, Standing(run, ROBOT)
        options = LockstepOptions(delay_ticks, tap=fault, stream=False)
        self.lockstep = Lockstep(
            run, pilot or StandingPilot(), velocity, options, driver=self.driver, robot=ROBOT
        )
        self.control = self.lockstep.control
        self.stranger: dict[int, Outbox] = {}

    def reach(self, mode: Mode) -> Case:
        assert self.lockstep.run_until(mode, 3.0), self.reason
        self.lockstep.run_for(0.2)
        assert self.mode == mode, self.reason
        self.driver.worst = 0.0
        return self

    def start_fault(self) -> None:
        assert self.fault is not None
        self.fault.begin_ns = self.lockstep.now_ns

    def ms_until(self, *modes: Mode, most_ms: int) -> int:
        """Simulated ms until one of the modes is reached; damping must go out in that tick."""
        begin = self.lockstep.now_ns
        while self.mode not in modes:
            assert self.lockstep.now_ns - begin < most_ms * MS, f"still {self.mode.name}"
            self.lockstep.step()
        return (self.lockstep.now_ns - begin) // MS

    def asks(self, ask: Ask, source: str = "script", lease: int = 0) -> tuple[bool, str]:
        """Ask as the operator (or as another) and step; what is answered."""
        message: Request = CODECS[f"request.{source}"].new()
        own = self.lockstep.teleop._nonce
        message.ask, message.lease, message.source = ask, lease or own, source_index(source)
        self.lockstep.post(f"request.{source}", message)
        self.lockstep.step()
        status = self.status
        assert status.answer_ask == ask
        return bool(status.answer_ok), status.reason

    def frame(self, topic: str, **fields: Any) -> bytes:
        """A frame by a stranger."""
        message = CODECS[topic].new()
        for name, value in fields.items():
            if isinstance(getattr(message, name), np.ndarray):
                getattr(message, name)[:] = value
            else:
                setattr(message, name, value)
        codec = CODECS[topic]
        box = self.stranger.setdefault(codec.schema_hash, Outbox(codec, 999))
        box.stamp(message, fields.get("stamp_ns", self.lockstep.now_ns))
        return bytes(message.payload)

    def assert_damped(self, reason: str) -> None:
        """FAULT, damping and nothing else on the way to the motors, named, and it stays so."""
        assert self.reason.startswith(f"{reason}: "), self.reason
        for _ in range(5):
            cmd = self.control.cmd
            assert (self.mode, cmd.mode) == (Mode.FAULT, Mode.FAULT)
            assert not (cmd.stiffness.any() or cmd.effort_ff.any() or cmd.joint_vel_target.any())
            assert np.array_equal(cmd.damping, ROBOT.damp_damping)
            self.lockstep.step()
        assert np.isfinite(self.control.cmd.joint_pos_target).all()
        self.assert_within_motors()

    def assert_within_motors(self) -> None:
        assert self.driver.worst <= 1.0 + 1e-9
        effort = self.driver.last.joint_effort
        assert (np.abs(effort) <= ROBOT.effort_limit + 1e-9).all()

    @property
    def mode(self) -> Mode:
        return self.control.machine.mode

    @property
    def status(self) -> Status:
        status = self.lockstep._status
        assert status is not None
        return status

    @property
    def reason(self) -> str:
        return self.status.reason

    @property
    def drops(self) -> Counter[str]:
        return self.lockstep._others.drops + self.lockstep._targets.drops


@pytest.fixture(autouse=True)
def short_ramps(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, seconds in SHORT.items():
        monkeypatch.setitem(control.RAMP_S, source, seconds)


@pytest.fixture
def walking() -> Case:
    return Case().reach(Mode.POLICY)


def test_without_a_fault_it_stands_in_policy_and_nothing_is_dropped(walking):
    walking.lockstep.run_for(1.0)
    assert walking.mode == Mode.POLICY and not walking.drops and not walking.status.blocked
    assert not walking.lockstep.summary.faults
    walking.assert_within_motors()


# --- sensors --------------------------------------------------------------------------------------

NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("field", ["joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro"])
def test_s1_s2_s3_a_measurement_that_is_no_number(walking, field, value):
    walking.driver.spoil = lambda state: getattr(state, field).__setitem__(2, value)
    good = walking.control.state.tick
    walking.lockstep.step()
    assert walking.mode == Mode.POLICY and walking.control.cmd.state_tick == good
    assert walking.ms_until(Mode.FAULT, most_ms=20) == 8  # the fifth bad sample
    walking.assert_damped("state_invalid")


@pytest.mark.parametrize("field", ["joint_pos", "joint_vel"])
def test_s1_s2_one_bad_sample_is_counted_and_forgotten(walking, field):
    walking.driver.spoil = lambda state: getattr(state, field).__setitem__(2, np.nan)
    walking.lockstep.step()
    walking.driver.spoil = None
    walking.lockstep.run_for(0.1)
    assert walking.mode == Mode.POLICY and walking.status.blocked == 1
    walking.assert_within_motors()


@pytest.mark.parametrize("scale", [1.05, 0.95, 0.0])
def test_s3_a_quaternion_of_another_length(walking, scale):
    walking.driver.spoil = lambda state: np.multiply(
        state.imu_quat_wxyz, scale, out=state.imu_quat_wxyz
    )
    assert walking.ms_until(Mode.FAULT, most_ms=20) == 10
    walking.assert_damped("state_invalid")


@pytest.mark.parametrize("mode", [Mode.STAND, Mode.POLICY])
def test_a_no_state_at_all(mode):
    case = Case().reach(Mode.POLICY) if mode == Mode.POLICY else Case(Fault("off", "policy_info"))
    if mode == Mode.STAND:
        assert case.fault is not None
        case.fault.begin_ns = 0
        case.reach(Mode.STAND)

    def gone(state: LowState) -> None:
        raise DriverFault("bus 1 does not answer")

    case.driver.spoil = gone
    assert case.ms_until(Mode.FAULT, most_ms=20) == 2
    case.assert_damped("driver_fault")
    assert "bus 1 does not answer" in case.reason


# --- policy and pilot -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("field", ["joint_pos_target", "stiffness"])
def test_p1_a_target_that_is_no_number(field, value):
    case = Case(Fault("garbage", "target", patched(field, value, 7))).reach(Mode.POLICY)
    good = case.control.target.seq
    case.start_fault()
    assert 40 <= case.ms_until(Mode.FAULT, most_ms=100) <= 62  # the third bad one of a 50 Hz source
    assert case.control.target.seq == good and case.status.blocked == 3
    case.assert_damped("target_invalid")


def test_p1_two_bad_targets_are_survived():
    case = Case(Fault("garbage", "target", patched("effort_ff", np.inf))).reach(Mode.POLICY)
    assert case.fault is not None
    case.start_fault()
    case.fault.end_ns = case.fault.begin_ns + 40 * MS
    case.lockstep.run_for(0.3)
    assert case.mode == Mode.POLICY and case.status.blocked == 2
    case.assert_within_motors()


def test_p2_output_at_maximum_stops_softly():
    fault = Fault("wrong", "target", patched("joint_pos_target", 30.0, 3))
    case = Case(fault).reach(Mode.POLICY)
    case.start_fault()
    assert case.ms_until(Mode.SOFT_STOP, Mode.FAULT, most_ms=600) <= 500
    assert case.mode == Mode.SOFT_STOP and case.reason.startswith("clipping_hard: ")
    case.assert_within_motors()


@pytest.mark.parametrize("kind", ["off", "dead"])
def test_p3_p5_p6_a_silent_pilot(kind):
    case = Case(Fault("off", "target")).reach(Mode.POLICY)
    seen, begin = {}, case.control._asked_ns[case.control._asked_seq % 16]
    held = case.control.cmd.joint_pos_target.copy()
    if kind == "off":
        case.start_fault()
    else:
        case.lockstep.pilot_alive = False
    while case.mode == Mode.POLICY:
        case.lockstep.step()
        age = (case.lockstep.now_ns - 2 * MS - begin) // MS
        for name in ("target_late", "target_lost"):
            if case.status.faults & BIT[name]:
                seen.setdefault(name, age)
        if case.mode == Mode.POLICY:
            assert np.array_equal(case.control.cmd.joint_pos_target, held)
    assert seen == {"target_late": 60, "target_lost": 100}
    case.assert_damped("target_lost")


@pytest.mark.parametrize("begin", [Mode.POLICY, Mode.HOLD])
def test_p5_a_pilot_that_is_back_at_once_moves_nothing_until_somebody_engages(begin):
    """However fast a new process answers, the episode belongs to the one that began it."""
    case = Case().reach(Mode.POLICY)
    if begin == Mode.HOLD:
        assert case.asks(Ask.HOLD)[0]
    old, held = case.control.target.instance, case.control.cmd.joint_pos_target.copy()
    case.lockstep._outboxes["target"] = Outbox(CODECS["target"], old + 1)
    case.lockstep.pilot.target.joint_pos_target[:] += 0.1
    for _ in range(51):
        case.lockstep.step()
        if case.mode == begin:
            assert case.control.target.instance == old
            assert np.array_equal(case.control.cmd.joint_pos_target, held)
    case.assert_damped("target_lost")


def test_p4_a_slow_pilot_is_warned_of_and_its_targets_are_used():
    """30 ms per step at 50 Hz: every second input is answered, 30 ms late."""
    case = Case(Fault("slow", "policy_input"), delay_ticks=15).reach(Mode.POLICY)
    case.start_fault()
    used = set()
    for _ in range(500):
        case.lockstep.step()
        used.add(case.control.target.seq)
    assert case.mode == Mode.POLICY and 24 <= len(used) <= 27
    assert case.lockstep.summary.faults == ["target_late"]
    case.assert_within_motors()


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda frame: b"",
    "short": lambda frame: frame[:-1],
    "long": lambda frame: frame + b"\0",
    "other schema": header(4, 12345),
    "noise": lambda frame: np.random.default_rng(1).bytes(len(frame)),
    "a megabyte": lambda frame: b"\1" * 1_000_000,
    "other endianness": lambda frame: b"\0\0\0\0" + frame[4:],
    "other joint count": lambda frame: frame.replace(
        struct.pack("<I", 29), struct.pack("<I", 23)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_p8_n3_n4_a_malformed_target_damps_in_the_next_tick(what):
    case = Case(Fault("garbage", "target", MALFORMED[what])).reach(Mode.POLICY)
    case.start_fault()
    while not case.drops:
        case.lockstep.step()
        assert case.mode == Mode.POLICY
    case.lockstep.step()
    case.assert_damped("target_malformed")
    assert case.drops.total() == 1


def test_p9_swinging_targets_stay_within_motors_and_limits():
    case = Case(Fault("wrong", "target")).reach(Mode.POLICY)
    assert case.fault is not None
    signs = iter(np.tile([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], 1000))

    def swing(frame: bytes) -> bytes:
        spoilt = next(signs)
        for joint in range(29):
            frame = patched("joint_pos_target", spoilt, joint)(frame)
        return frame

    case.fault.change = swing
    case.start_fault()
    stopped = (Mode.SOFT_STOP, Mode.HOLD, Mode.FAULT)
    assert case.ms_until(*stopped, most_ms=1000) <= 500
    case.lockstep.run_for(0.2)
    assert case.mode in (Mode.SOFT_STOP, Mode.FAULT)
    case.assert_within_motors()


def test_a_target_that_answers_an_old_input_is_as_old_as_that():
    case = Case(Fault("delayed", "target", period=6)).reach(Mode.POLICY)
    case.start_fault()
    assert case.ms_until(Mode.FAULT, most_ms=200) <= 100
    case.assert_damped("target_lost")


def test_frozen_repeated_targets_are_old_news_and_the_pilot_counts_as_lost():
    case = Case(Fault("stuck", "target")).reach(Mode.POLICY)
    case.start_fault()
    assert case.ms_until(Mode.FAULT, most_ms=200) <= 100
    assert set(case.drops) == {"old"}
    case.assert_damped("target_lost")


def test_targets_of_another_robot_are_ignored_and_ours_counts_as_lost():
    case = Case(Fault("wrong", "target", header(12, ROBOT.robot_id ^ 1))).reach(Mode.POLICY)
    case.start_fault()
    assert case.ms_until(Mode.FAULT, most_ms=200) <= 100
    assert set(case.drops) == {"robot"} and case.drops["robot"] >= 4
    case.assert_damped("target_lost")


@pytest.mark.parametrize("kind", ["duplicate", "reorder"])
@pytest.mark.parametrize("topic", ["target", "command.script", "heartbeat"])
def test_n_doubled_and_swapped_frames_are_dropped_by_their_sequence(kind, topic):
    case = Case(Fault(kind, topic)).reach(Mode.POLICY)
    case.start_fault()
    case.lockstep.run_for(0.3)
    assert case.mode == Mode.POLICY and set(case.drops) == {"old"}
    assert case.drops["old"] >= 2
    case.assert_within_motors()


@pytest.mark.parametrize("topic", ["target", "command.script", "heartbeat", "policy_input"])
def test_every_third_frame_lost_is_survived(topic):
    case = Case(Fault("intermittent", topic, period=3)).reach(Mode.POLICY)
    case.start_fault()
    case.lockstep.run_for(0.5)
    assert case.mode == Mode.POLICY and not case.lockstep.summary.faults
    case.assert_within_motors()


# --- manager, computer and time -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["off", "killed"])
def test_c3_a_lost_manager(kind):
    case = Case(Fault("off", "heartbeat")).reach(Mode.POLICY)
    begin = case.control._heartbeat_ns
    assert begin is not None
    if kind == "off":
        case.start_fault()
    else:
        case.lockstep.heartbeats = False
    case.ms_until(Mode.FAULT, most_ms=120)
    assert case.lockstep.now_ns - 2 * MS - begin == 100 * MS
    case.assert_damped("manager_lost")


@pytest.mark.parametrize(
    ("gap_ms", "trips"),
    [(10, False), (12, True), (50, True), (3_600_000, True), (36_000_000, True)],
)
@pytest.mark.parametrize("mode", [Mode.POLICY, Mode.HOLD])
def test_c4_c5_c7_a_gap_in_time_is_seen_by_the_first_tick(mode, gap_ms, trips):
    case = Case().reach(Mode.POLICY)
    if mode == Mode.HOLD:
        assert case.asks(Ask.HOLD) == (True, "")
    case.lockstep.now_ns += (gap_ms - 2) * MS
    case.lockstep.step()
    if trips:
        case.assert_damped("tick_gap")
    else:
        assert case.mode == mode


# --- operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["off", "gone"])
def test_o1_o3_without_an_operator_it_holds_until_somebody_engages(kind):
    case = Case(Fault("off", "command.script"), velocity=(0.2, 0.0, 0.0)).reach(Mode.POLICY)
    assert case.status.velocity[0] == pytest.approx(0.2)
    begin = case.control.authority.command_ns
    if kind == "off":
        case.start_fault()
    else:
        case.lockstep.operator_present = False
    case.ms_until(Mode.HOLD, most_ms=220)
    assert case.lockstep.now_ns - 2 * MS - begin == 202 * MS
    assert case.reason == "command_stale: 200 ms without the operator's command"
    assert case.control.ramp.done, "one source: no ramp, no stiff pose"
    while case.control.authority.holder:
        case.lockstep.step()
    # The holder is heard in the tick after its command, which is the lease's sign of life.
    assert 500 * MS < case.lockstep.now_ns - 2 * MS - begin <= 504 * MS
    case.lockstep.operator_present = False
    case.lockstep.run_for(1.0)
    assert case.mode == Mode.HOLD and case.status.velocity.tolist() == [0, 0, 0]
    # Back again: nothing moves without lease and engage.
    ok, reason = case.asks(Ask.ENGAGE)
    assert not ok and reason.endswith("acquire it first")
    assert case.fault is not None
    case.fault.end_ns = 0
    case.lockstep.operator_present = True
    case.lockstep.run_for(0.3)
    assert case.mode == Mode.HOLD and case.status.lease == case.lockstep.teleop._nonce
    assert case.asks(Ask.ENGAGE) == (True, "") and case.mode == Mode.POLICY
    case.assert_within_motors()


def test_o2_commands_that_come_300_ms_late_are_not_obeyed():
    case = Case(Fault("delayed", "command.script", period=6)).reach(Mode.POLICY)
    case.start_fault()
    case.lockstep.run_for(1.0)
    assert case.mode == Mode.HOLD and case.control.authority.refused > 5


def test_o4_of_two_operators_the_second_is_refused_and_the_higher_takes_over(walking):
    ok, reason = walking.asks(Ask.ACQUIRE, lease=4242)
    assert not ok
    assert reason == "ACQUIRE is refused: script drives, and its rank is not below yours"
    assert walking.mode == Mode.POLICY
    assert walking.asks(Ask.ACQUIRE, "keyboard", lease=4242) == (True, "")
    assert walking.status.lease == 4242
    walking.ms_until(Mode.HOLD, most_ms=10)  # until the new one commands
    ok, reason = walking.asks(Ask.ENGAGE)
    assert not ok and reason.endswith("acquire it first")
    walking.assert_within_motors()


@pytest.mark.parametrize("mode", list(Mode))
def test_o9_an_estop_in_every_mode_takes_one_tick_and_latches(mode):
    case = Case(Fault("off", "policy_info"))
    if mode in (Mode.POLICY, Mode.HOLD):
        case.reach(Mode.POLICY)
    elif mode not in (Mode.PASSIVE, Mode.DAMP, Mode.STANDUP):
        assert case.fault is not None
        case.fault.begin_ns = 0
        case.reach(Mode.STAND)
    ask = {Mode.HOLD: Ask.HOLD, Mode.SOFT_STOP: Ask.SOFT_STOP, Mode.ESTOP: Ask.ESTOP}.get(mode)
    if ask:
        case.asks(ask)
    elif mode == Mode.FAULT:
        case.lockstep.now_ns += 50 * MS
        case.lockstep.step()
    else:
        case.lockstep.run_until(mode, 2.0)
    assert case.mode == mode
    for _ in range(2):
        assert case.asks(Ask.ESTOP, "keyboard", lease=31) == (True, ""), "anyone may"
        cmd = case.control.cmd
        assert (case.mode, cmd.mode) == (Mode.ESTOP, Mode.ESTOP)
        assert not cmd.stiffness.any() and np.array_equal(cmd.damping, ROBOT.damp_damping)
    case.lockstep.run_for(0.1)
    for refused in (Ask.ARM, Ask.STAND_UP, Ask.START_POLICY, Ask.ENGAGE, Ask.DISARM):
        assert not case.asks(refused)[0] and case.mode == Mode.ESTOP
    assert not case.lockstep.teleop.automatic
    case.assert_within_motors()


# --- strangers ------------------------------------------------------------------------------------


def test_x1_commands_without_the_lease_change_nothing(walking):
    before, refused = walking.control.authority.command.seq, walking.control.authority.refused
    for source in ("script", "keyboard"):
        for lease in (0, 31):
            frame = walking.frame(
                f"command.{source}", velocity=9.0, valid=1, lease=lease, source=source_index(source)
            )
            walking.lockstep.post_frame(f"command.{source}", frame)
    walking.lockstep.step()
    assert walking.control.authority.refused == refused + 4
    assert walking.control.authority.command.seq in (before, before + 1)
    walking.lockstep.run_for(0.1)
    assert walking.mode == Mode.POLICY and walking.status.velocity.tolist() == [0, 0, 0]


@pytest.mark.parametrize("ask", [Ask.ESTOP, Ask.SOFT_STOP, Ask.HOLD, Ask.RELEASE])
def test_x8_what_is_said_to_another_robot_is_not_for_us(walking, ask):
    frame = walking.frame("request.keyboard", ask=ask, lease=31, source=1)
    walking.lockstep.post_frame("request.keyboard", header(12, 1)(frame))
    walking.lockstep.run_for(0.05)
    assert walking.mode == Mode.POLICY and walking.drops == {"robot": 1}


def test_x3_a_command_that_is_replayed_is_dropped_as_old():
    case = Case(Fault("stuck", "command.script")).reach(Mode.POLICY)
    case.start_fault()
    assert case.ms_until(Mode.HOLD, most_ms=220) >= 140
    assert set(case.drops) == {"old"}


def test_n2_a_backlog_of_two_seconds_is_dropped_by_age(walking):
    lease, refused = walking.lockstep.teleop._nonce, walking.control.authority.refused
    for age_ms in range(2000, 250, -50):
        frame = walking.frame(
            "command.script", velocity=1.0, valid=1, lease=lease,
            stamp_ns=walking.lockstep.now_ns - age_ms * MS,
        )  # fmt: skip
        walking.lockstep.post_frame("command.script", frame)
    walking.lockstep.step()
    assert walking.control.authority.refused == refused + 35
    walking.lockstep.run_for(0.1)
    assert walking.status.velocity.tolist() == [0, 0, 0] and walking.mode == Mode.POLICY


@pytest.mark.parametrize(
    "topic", ["command.script", "request.keyboard", "heartbeat", "policy_info"]
)
def test_n3_n4_malformed_frames_on_other_topics_are_counted_and_harmless(walking, topic):
    good = walking.frame(topic)
    for change in MALFORMED.values():
        if (frame := change(good)) != good:
            walking.lockstep.post_frame(topic, frame)
    rng = np.random.default_rng(5)
    for _ in range(200):
        noise = bytearray(good)
        noise[rng.integers(20)] ^= 1 << int(rng.integers(8))  # in what says what this is
        walking.lockstep.post_frame(topic, bytes(noise))
    walking.lockstep.run_for(0.1)
    assert walking.mode == Mode.POLICY and walking.drops.total() >= 205
    walking.assert_within_motors()


# --- a public policy that walks -------------------------------------------------------------------


@pytest.fixture(scope="module")
def walker(public_policy: Callable[[str], Path]) -> Any:
    run = load_run("sim", {"policy": public_policy("ppo"), "timing_factor": 1.0})
    return load_pilot(run, ROBOT)


def walk(fault: Fault | None, pilot: Any) -> Case:
    """The public policy at 0.5 m/s, in mid-step."""
    case = Case(fault, pilot, velocity=(0.5, 0.0, 0.0))
    assert case.lockstep.run_until(Mode.POLICY, 3.0), case.reason
    case.lockstep.run_for(2.0)
    assert case.mode == Mode.POLICY and not case.lockstep.summary.fell, case.reason
    assert case.driver.data.qvel[0] > 0.2
    case.driver.worst = 0.0
    return case


def test_walking_without_an_operator_it_stops_and_keeps_its_balance(walker):
    case = walk(Fault("off", "command.script"), walker)
    case.start_fault()
    case.ms_until(Mode.HOLD, most_ms=220)
    case.lockstep.run_for(1.5)
    assert case.mode == Mode.HOLD and not case.lockstep.summary.fell
    assert abs(case.driver.data.qvel[0]) < 0.2
    case.assert_within_motors()


@pytest.mark.parametrize(
    ("kind", "change", "most_ms", "reason"),
    [
        ("off", bytes, 100, "target_lost"),
        ("garbage", patched("joint_pos_target", np.nan), 62, "target_invalid"),
        ("garbage", MALFORMED["short"], 24, "target_malformed"),
    ],
)
def test_walking_with_a_broken_pilot_it_is_damped_in_time(walker, kind, change, most_ms, reason):
    case = walk(Fault(kind, "target", change), walker)
    case.start_fault()
    assert case.ms_until(Mode.FAULT, most_ms=120) <= most_ms
    case.assert_damped(reason)
    case.lockstep.run_for(0.3)
    case.assert_within_motors()
