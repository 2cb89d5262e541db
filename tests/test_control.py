"""Control with a driver and ports that do as they are told: sources, ramps, targets, commands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drivers.driver import DriverFault
from robot.bus import Outbox
from robot.control import RAMP_S, Control, tick
from robot.messages import (
    Ask,
    Command,
    Health,
    LowCmd,
    LowState,
    Message,
    Mode,
    PolicyInfo,
    PolicyInput,
    Request,
    Status,
    Target,
    Truth,
)
from robot.model import load_robot
from robot.modes import FAULT, ModeState
from robot.topics import make_codecs, source_index

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
MS = 1_000_000
PERIOD_NS = 2 * MS
ME, POLICY_ID = 5, 77


class FakeDriver:
    """Joints stand where they are put, the clock runs with writes."""

    simulated, physics_cpu_ns = True, 0

    def __init__(self) -> None:
        self.state: LowState = CODECS["low_state"].new()
        self.state.joint_pos[:] = ROBOT.stand_joint_pos
        self.state.imu_quat_wxyz[:] = (1, 0, 0, 0)
        self.raises: Exception | None = None
        self.written: list[LowCmd] = []

    def open(self) -> None: ...

    def close(self) -> None: ...

    def health(self, health: Health) -> bool:
        return False

    def truth(self, truth: Truth) -> bool:
        return False

    def read(self, state: LowState) -> None:
        if self.raises:
            raise self.raises
        state.copy_from(self.state)

    def write(self, cmd: LowCmd) -> None:
        self.written.append(cmd.copy())
        self.state.robot_time_ns += PERIOD_NS


class Rig:
    """Control with driver and ports; an operator and a manager that stay, a pilot that stands."""

    def __init__(self) -> None:
        self.control, self.driver = Control(ROBOT, CODECS, PERIOD_NS), FakeDriver()
        self.now_ns = 1_000 * MS
        self.sent: dict[str, list[Any]] = defaultdict(list)
        self.boxes = {
            name: Outbox(codec, 100 + i) for i, (name, codec) in enumerate(CODECS.items())
        }
        self.heard: list[Message] = []
        self.counts = (0, 0)
        self.operator = self.manager = True
        self.velocity, self.valid = (0.0, 0.0, 0.0), 1
        self.height, self.arms = 0.0, np.zeros(14)
        self.pilot: Callable[[Target], Target | None] = lambda target: target
        self.pose = ROBOT.stand_joint_pos + 0.1  # what the policy wants
        self.newest: Target | None = None
        self.info: PolicyInfo = CODECS["policy_info"].new()
        self.info.policy_id, self.info.step_ns = POLICY_ID, 20 * MS
        self.info.velocity_min[:], self.info.velocity_max[:] = (-0.5, -0.3, -1.0), (1.0, 0.3, 1.0)
        self.info.default_joint_pos[:] = ROBOT.stand_joint_pos
        self.say("policy_info", self.info)

    # what control sees

    def receive(self) -> list[Message]:
        heard, self.heard = self.heard, []
        return heard

    def target(self, asked_seq: int | None) -> Target | None:
        newest, self.newest = self.newest, None
        return newest

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        seq = self.boxes[topic].stamp(message, stamp_ns)
        self.sent[topic].append(message.copy())
        if topic == "policy_input":
            self.newest = self.pilot(self.answer(self.sent[topic][-1]))
        return seq

    def drops(self) -> tuple[int, int]:
        return self.counts

    # what the test does

    def answer(self, given: PolicyInput) -> Target:
        target: Target = CODECS["target"].new()
        target.input_instance, target.input_seq = given.instance, given.seq
        target.policy_id, target.episode, target.step = POLICY_ID, given.episode, given.step
        target.joint_pos_target[:] = self.pose
        target.stiffness[:], target.damping[:] = 40.0, 2.0
        self.boxes["target"].stamp(target, self.now_ns)
        return target

    def say(self, topic: str, message: Message, stamp_ns: int | None = None) -> Any:
        stamp = self.now_ns if stamp_ns is None else stamp_ns
        self.boxes[topic].stamp(message, stamp)
        self.heard.append(message.copy())
        return message

    def ask(self, ask: int, **fields: int) -> Request:
        message: Request = CODECS["request.script"].new()
        message.ask, message.lease, message.source = ask, ME, source_index("script")
        for name, value in fields.items():
            setattr(message, name, value)
        return self.say("request.script", message)

    def step(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            if self.manager:
                self.say("heartbeat", CODECS["heartbeat"].new())
            if self.operator:
                command: Command = CODECS["command.script"].new()
                command.lease, command.source = ME, source_index("script")
                command.valid, command.velocity[:] = self.valid, self.velocity
                command.base_height[:], command.arm_joint_pos[:] = self.height, self.arms
                self.say("command.script", command)
            tick(self.control, self.driver, self, lambda: self.now_ns)
            self.now_ns += PERIOD_NS

    def demand(self, *asks: Ask) -> None:
        """Ask for one thing after another; each must be granted."""
        for ask in asks:
            self.ask(ask)
            self.step()
            assert self.status.answer_ok, self.status.reason

    def reach(self, mode: Mode) -> None:
        """Go the ordinary way, with ramps cut to what is left of them."""
        way = {
            Mode.DAMP: (Ask.ACQUIRE, Ask.ARM), Mode.STANDUP: (Ask.STAND_UP,), Mode.STAND: (),
            Mode.POLICY: (Ask.START_POLICY,), Mode.HOLD: (Ask.HOLD,),
        }  # fmt: skip
        self.step()
        for stop, asks in way.items():
            self.demand(*asks)
            if stop in (Mode.STAND, Mode.POLICY):
                self.finish_ramp()
                self.step(3)
            assert self.mode == stop
            if stop == mode:
                return

    def finish_ramp(self) -> None:
        self.step()
        self.control.ramp.ticks = 1 << 30

    @property
    def mode(self) -> Mode:
        return self.control.machine.mode

    @property
    def status(self) -> Status:
        return self.sent["status"][-1]

    @property
    def cmd(self) -> LowCmd:
        return self.sent["low_cmd"][-1]

    @property
    def asked(self) -> PolicyInput:
        return self.sent["policy_input"][-1]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def damping(cmd: LowCmd) -> bool:
    """Nothing but damping is sent."""
    still = not (cmd.stiffness.any() or cmd.effort_ff.any() or cmd.joint_vel_target.any())
    return still and np.array_equal(cmd.damping, ROBOT.damp_damping)


# --- what each mode sends -------------------------------------------------------------------------


def test_passive_sends_nothing_and_damp_sends_damping(rig):
    rig.step(5)
    assert rig.mode == Mode.PASSIVE
    assert not (rig.cmd.stiffness.any() or rig.cmd.damping.any() or rig.cmd.effort_ff.any())
    rig.reach(Mode.DAMP)
    assert damping(rig.cmd) and rig.cmd.mode == Mode.DAMP
    assert np.array_equal(rig.cmd.joint_pos_target, rig.driver.state.joint_pos)


def test_what_was_written_is_what_is_published_every_tick(rig):
    rig.reach(Mode.STAND)
    assert len(rig.sent["low_cmd"]) == len(rig.driver.written) == rig.control.tick
    assert len(rig.sent["low_state"]) == rig.control.tick
    for published, written in zip(rig.sent["low_cmd"], rig.driver.written, strict=True):
        assert np.array_equal(published.joint_pos_target, written.joint_pos_target)
        assert np.array_equal(published.stiffness, written.stiffness)
    assert [cmd.tick for cmd in rig.sent["low_cmd"]] == list(range(1, rig.control.tick + 1))
    assert rig.cmd.state_tick == rig.sent["low_state"][-1].tick == rig.control.tick


def test_a_change_of_source_ramps_from_what_is_in_force(rig):
    rig.driver.state.joint_pos[:] += 0.05
    rig.reach(Mode.DAMP)
    rig.demand(Ask.STAND_UP)
    # Out of DAMP: from the measured pose, with a share of the stiffness.
    assert rig.control.ramp.target_ticks == RAMP_S["stand"][0] * 500
    assert rig.cmd.joint_pos_target == pytest.approx(rig.driver.state.joint_pos, abs=1e-4)
    assert rig.cmd.stiffness == pytest.approx(0.2 * ROBOT.stand_stiffness, rel=0.02)
    rig.driver.state.joint_pos[:] -= 0.05
    rig.finish_ramp()
    rig.step(3)
    assert rig.mode == Mode.STAND and rig.control.ramp.done, "STANDUP and STAND are one source"
    assert np.array_equal(rig.cmd.joint_pos_target, ROBOT.stand_joint_pos)
    assert np.array_equal(rig.cmd.stiffness, ROBOT.stand_stiffness)
    rig.demand(Ask.START_POLICY)
    assert not rig.control.ramp.done
    assert rig.cmd.joint_pos_target == pytest.approx(ROBOT.stand_joint_pos + 0.1 / 1000)
    assert rig.cmd.stiffness == pytest.approx(ROBOT.stand_stiffness, rel=0.01)
    rig.finish_ramp()
    rig.step(2)
    assert np.array_equal(rig.cmd.joint_pos_target, rig.pose)
    assert rig.cmd.stiffness.tolist() == [40.0] * 29
    rig.demand(Ask.SOFT_STOP)
    assert not rig.control.ramp.done
    assert rig.cmd.stiffness == pytest.approx(40.0, rel=0.02)
    rig.finish_ramp()
    rig.step(2)
    assert rig.mode == Mode.DAMP and damping(rig.cmd), "damping begins at once"


def test_policy_and_hold_are_one_source(rig):
    rig.reach(Mode.POLICY)
    episode = rig.asked.episode
    for ask in (Ask.HOLD, Ask.ENGAGE, Ask.HOLD):
        rig.demand(ask)
        assert rig.control.ramp.done
        assert np.array_equal(rig.cmd.joint_pos_target, rig.pose)
    rig.step(20)
    assert rig.asked.episode == episode and rig.mode == Mode.HOLD


def test_leaving_the_policy_begins_a_new_episode(rig):
    rig.reach(Mode.HOLD)
    assert rig.asked.episode == 1
    rig.demand(Ask.STAND)
    rig.step(20)
    assert (rig.asked.episode, rig.asked.step) == (2, 0)
    rig.finish_ramp()
    rig.step(2)
    rig.demand(Ask.START_POLICY)
    rig.step(25)
    assert rig.asked.episode == 2 and rig.asked.step > 0


def test_steps_count_policy_ticks_of_an_episode_that_is_on(rig):
    rig.reach(Mode.STAND)
    rig.step(40)
    assert rig.asked.step == 0
    rig.demand(Ask.START_POLICY)
    rig.step(50)
    steps = [given.step for given in rig.sent["policy_input"] if given.mode == Mode.POLICY]
    assert steps == list(range(steps[0], steps[0] + len(steps))) and steps[0] in (0, 1)


# --- targets --------------------------------------------------------------------------------------


def test_the_policy_is_asked_every_20_ms_of_the_robots_time(rig):
    rig.step(100)
    times = [given.robot_time_ns for given in rig.sent["policy_input"]]
    assert times == [20 * MS * i for i in range(10)]
    rig.now_ns += 60 * MS  # skipped ticks: the robot's clock stands still, and so does the policy's
    rig.step(10)
    assert rig.asked.robot_time_ns == 200 * MS
    rig.driver.state.robot_time_ns = 0
    rig.step(1)
    assert rig.asked.robot_time_ns == 0, "a robot that restarts its clock is asked at once"


def test_a_policy_of_another_rate_is_asked_at_its_own(rig):
    rig.info.step_ns = 10 * MS
    rig.say("policy_info", rig.info)
    rig.step(50)
    times = [given.robot_time_ns for given in rig.sent["policy_input"]]
    assert times == [10 * MS * i for i in range(10)]


FOREIGN: dict[str, Callable[[Target], object]] = {
    "old episode": lambda t: setattr(t, "episode", t.episode - 1),
    "other policy": lambda t: setattr(t, "policy_id", POLICY_ID + 1),
    "answer to another control": lambda t: setattr(t, "input_instance", 4),
    "answer to what was never asked": lambda t: setattr(t, "input_seq", t.input_seq + 1),
    "answer to what was asked long ago": lambda t: setattr(t, "input_seq", t.input_seq - 16),
    "nan": lambda t: t.joint_pos_target.fill(np.nan),
    "negative stiffness": lambda t: t.stiffness.fill(-1.0),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_target_is_ignored_until_the_policy_counts_as_lost(rig, what):
    rig.reach(Mode.POLICY)
    while len(rig.sent["policy_input"]) < 20:
        rig.step()
    good = rig.control.target.seq

    def spoil(target: Target) -> Target:
        target.joint_pos_target[:] = ROBOT.stand_joint_pos - 0.3
        FOREIGN[what](target)
        return target

    rig.pilot = spoil
    begin = rig.now_ns
    while rig.mode == Mode.POLICY:
        assert np.array_equal(rig.cmd.joint_pos_target, rig.pose), what
        rig.step()
    assert rig.control.target.seq == good
    assert rig.now_ns - begin <= 104 * MS
    assert rig.mode == Mode.FAULT and damping(rig.cmd)


def test_a_target_may_answer_one_of_the_last_sixteen_inputs(rig):
    rig.reach(Mode.POLICY)
    late: list[Target] = []
    rig.pilot = lambda target: late.append(target) or (late.pop(0) if len(late) > 2 else None)
    rig.step(60)
    assert rig.mode == Mode.POLICY
    assert rig.asked.seq - rig.control.target.input_seq == 2
    assert 40 <= rig.status.target_age_ms < 60


def test_the_policy_does_not_start_without_a_fresh_target_near_the_pose(rig):
    rig.reach(Mode.STAND)
    rig.driver.state.joint_pos[3] += 0.51
    rig.ask(Ask.START_POLICY)
    rig.step()
    reason = "START_POLICY is refused: a joint is more than 0.5 rad from the policy's first pose"
    assert not rig.status.answer_ok and rig.status.reason == reason
    rig.driver.state.joint_pos[3] -= 0.02
    rig.pilot = lambda target: None
    rig.step(40)
    rig.ask(Ask.START_POLICY)
    rig.step()
    reason = "START_POLICY is refused: no policy is ready; is the pilot running and its target fre"
    assert rig.status.reason.startswith(reason) and rig.mode == Mode.STAND
    rig.ask(Ask.START_POLICY, policy_id=9)
    rig.step()
    reason = "START_POLICY is refused: policy 0000000000000009 is not loaded"
    assert rig.status.reason == reason


# --- commands -------------------------------------------------------------------------------------


def test_velocity_waits_for_the_blend_and_stays_in_the_policys_ranges(rig):
    rig.velocity = (9.0, -9.0, 0.25)
    rig.reach(Mode.STAND)
    assert rig.asked.velocity.tolist() == [0, 0, 0]
    rig.demand(Ask.START_POLICY)
    rig.step(30)
    assert rig.asked.velocity.tolist() == [0, 0, 0] and rig.asked.command_valid == 0
    rig.finish_ramp()
    rig.step(12)
    assert rig.asked.velocity.tolist() == [1.0, -0.3, 0.25] and rig.asked.command_valid == 1
    assert rig.asked.command_seq > 0 and rig.status.velocity.tolist() == [1.0, -0.3, 0.25]
    rig.velocity = (-9.0, 9.0, -9.0)
    rig.step(12)
    assert rig.asked.velocity.tolist() == [-0.5, 0.3, -1.0]
    rig.demand(Ask.HOLD)
    rig.step(12)
    assert rig.asked.velocity.tolist() == [0, 0, 0] and rig.asked.command_valid == 0
    assert rig.asked.command_seq == 0 and rig.asked.mode == Mode.HOLD


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_command_that_is_not_finite_counts_as_none(rig, value):
    rig.info.base_height_range[:] = (0.5, 0.8)
    rig.say("policy_info", rig.info)
    rig.reach(Mode.POLICY)
    rig.velocity, rig.valid, rig.height = (value, 0.1, 0.0), 7, value
    rig.arms = np.full(14, value)
    rig.step(12)
    assert rig.asked.velocity.tolist() == [0, 0, 0]
    assert rig.asked.base_height.tolist() == [0] and rig.asked.command_valid == 0
    assert np.array_equal(rig.asked.arm_joint_pos, ROBOT.stand_joint_pos[ROBOT.arm_joints])


def test_height_only_where_the_policy_takes_it_and_within_its_range(rig):
    rig.valid, rig.height = 3, 9.0
    rig.reach(Mode.POLICY)
    rig.step(12)
    assert rig.asked.base_height.tolist() == [0] and rig.asked.command_valid == 1
    rig.info.base_height_range[:] = (0.5, 0.8)
    rig.say("policy_info", rig.info)
    rig.step(12)
    assert rig.asked.base_height.tolist() == [0.8] and rig.asked.command_valid == 3


def test_arms_start_from_where_they_are_and_follow_no_faster_than_1_rad_per_s(rig):
    rig.valid, rig.arms = 0, np.full(14, 9.0)
    rig.reach(Mode.POLICY)
    limit = ROBOT.position_limit[ROBOT.arm_joints, 1]
    start = limit - np.linspace(0.0, 0.06, 14)
    rig.driver.state.joint_pos[ROBOT.arm_joints] = start
    rig.valid = 4
    seen = []
    while len(seen) < 5:
        before = len(rig.sent["policy_input"])
        rig.step()
        if len(rig.sent["policy_input"]) > before:
            assert rig.asked.command_valid == 4
            seen.append(rig.asked.arm_joint_pos.copy())
    for i, pose in enumerate(seen):
        assert pose == pytest.approx(np.minimum(start + 0.02 * (i + 1), limit))


def test_without_the_operator_hold_and_with_another_lease_nothing_is_obeyed(rig):
    rig.velocity = (0.5, 0, 0)
    rig.reach(Mode.POLICY)
    rig.operator = False
    begin = rig.now_ns
    while rig.mode == Mode.POLICY:
        rig.step()
    assert rig.mode == Mode.HOLD and 198 * MS <= rig.now_ns - begin <= 204 * MS
    assert rig.status.reason == "command_stale: 200 ms without the operator's command"
    rig.step(12)
    assert rig.asked.velocity.tolist() == [0, 0, 0]


# --- faults ---------------------------------------------------------------------------------------


def test_a_driver_fault_damps_in_its_tick_and_names_the_drivers_text(rig):
    rig.reach(Mode.POLICY)
    states = len(rig.sent["low_state"])
    rig.driver.raises = DriverFault("motor 7 does not answer")
    rig.step()
    assert rig.mode == Mode.FAULT and damping(rig.cmd)
    assert rig.status.reason == "driver_fault: motor 7 does not answer"
    assert rig.status.cause == FAULT["driver_fault"]
    assert len(rig.sent["low_state"]) == states, "nothing was read"


def test_a_driver_that_cannot_write_damps_in_the_next_tick(rig):
    rig.reach(Mode.STAND)

    def refuse(cmd: LowCmd) -> None:
        raise DriverFault("bus full")

    rig.driver.write = refuse
    rig.step(2)
    assert rig.status.reason == "driver_fault: bus full"
    assert rig.mode == Mode.FAULT and damping(rig.cmd)


def test_a_refused_state_is_published_and_not_used(rig):
    rig.reach(Mode.STAND)
    good = rig.control.tick
    rig.driver.state.joint_pos[3] = np.nan
    rig.step()
    assert np.isnan(rig.sent["low_state"][-1].joint_pos[3])
    assert rig.cmd.state_tick == good and np.isfinite(rig.cmd.joint_pos_target).all()
    assert rig.mode == Mode.STAND
    rig.step(4)
    assert rig.mode == Mode.FAULT and damping(rig.cmd) and rig.status.blocked == 5
    assert rig.status.reason == "state_invalid: impossible measurements"


@pytest.mark.parametrize("mode", [Mode.PASSIVE, Mode.STAND, Mode.POLICY])
def test_an_exception_in_a_tick_becomes_a_fault_and_damping(rig, mode):
    if mode != Mode.PASSIVE:
        rig.reach(mode)
    rig.driver.raises = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug") as caught:
        rig.step()
    rig.control.fail(caught.value)
    rig.control.damp(rig.driver)
    assert rig.mode == Mode.FAULT and damping(rig.driver.written[-1])
    assert rig.driver.written[-1].mode == Mode.DAMP
    rig.driver.raises = None
    rig.step()
    assert rig.mode == Mode.FAULT and damping(rig.cmd)
    assert rig.status.reason == "internal_error: ValueError: a bug"
    assert rig.status.cause == FAULT["internal_error"]


def test_an_exception_while_walking_ends_the_episode(rig):
    rig.reach(Mode.POLICY)
    episode = rig.control._episode
    rig.control.fail(ValueError("a bug"))
    rig.step()
    assert rig.control._episode == episode + 1


def test_no_motion_before_the_first_state(rig):
    rig.driver.raises = DriverFault("not connected")
    rig.step(5)
    assert rig.mode == Mode.PASSIVE and "policy_input" not in rig.sent
    assert not rig.cmd.stiffness.any()
    rig.ask(Ask.ACQUIRE)
    rig.ask(Ask.ARM)
    rig.step()
    assert rig.mode == Mode.PASSIVE and "driver_fault, state_stale" in rig.status.reason


def test_a_tilt_of_one_sample_is_forgiven_and_a_fall_is_not(rig):
    rig.reach(Mode.POLICY)
    upright = rig.driver.state.imu_quat_wxyz.copy()
    rig.driver.state.imu_quat_wxyz[:] = (np.cos(0.5), np.sin(0.5), 0, 0)  # roll of 1 rad
    rig.step()
    assert rig.mode == Mode.HOLD and rig.status.reason.startswith("tilt: ")
    rig.driver.state.imu_quat_wxyz[:] = upright
    rig.step()
    assert rig.mode == Mode.POLICY
    rig.driver.state.imu_quat_wxyz[:] = (np.cos(0.5), np.sin(0.5), 0, 0)
    rig.step(29)
    assert rig.mode == Mode.HOLD
    rig.step()
    assert rig.mode == Mode.FAULT, "60 ms beyond the limit"
    assert rig.status.reason == "fallen: roll or pitch beyond the limit" and damping(rig.cmd)


def test_lateness_is_a_warning_that_ends(rig):
    rig.reach(Mode.STAND)
    for _ in range(3):
        rig.control.note_late(1)
        rig.step()
    assert rig.mode == Mode.STAND and rig.status.faults & 1 << FAULT["overrun"]
    for _ in range(600):
        rig.control.note_late(0)
    rig.step()
    assert not rig.status.faults & 1 << FAULT["overrun"]


def test_gross_clipping_stops_softly(rig):
    rig.reach(Mode.POLICY)
    rig.pose = ROBOT.stand_joint_pos + 3.0  # 40 N m/rad times 3 rad is more than arms have
    rig.step(300)
    assert rig.sent["intervention"] and rig.cmd.clipped
    assert rig.mode == Mode.SOFT_STOP
    assert rig.status.reason == "clipping_hard: over 20 % of ticks clipped for 0.5 s"


def test_an_intervention_tells_joint_limiter_and_both_values(rig):
    rig.reach(Mode.POLICY)
    rig.pose = ROBOT.stand_joint_pos.copy()
    rig.pose[28] += 0.5  # 20 N m of a wrist that has 5
    rig.step(12)
    told = rig.sent["intervention"][-1]
    assert (told.limiter, told.joint, told.mode) == (3, 28, Mode.POLICY)
    assert (told.before, told.after) == pytest.approx((20.0, 5.0))
    assert told.tick == rig.cmd.tick


# --- requests -------------------------------------------------------------------------------------


def test_unknown_requests_are_answered_and_nothing_else(rig):
    rig.step()
    rig.ask(200)
    rig.step()
    assert (rig.status.answer_ok, rig.status.reason) == (0, "request 200 is unknown")
    assert rig.status.answer_seq == rig.boxes["request.script"].seq
    rig.ask(Ask.NONE)
    rig.step()
    assert rig.status.reason == "request 0 is unknown"


def test_without_the_lease_one_may_only_ask_for_less(rig):
    rig.reach(Mode.POLICY)
    for ask in (Ask.HOLD, Ask.SOFT_STOP, Ask.ESTOP):
        rig.ask(ask, lease=99)
        rig.step()
        assert rig.status.answer_ok and rig.mode == Mode[ask.name]
    rig.ask(Ask.RESET, lease=99)
    rig.step()
    assert not rig.status.answer_ok and rig.mode == Mode.ESTOP
    assert "does not hold the lease" in rig.status.reason


def test_disarm_ends_in_passive_by_way_of_crouch_and_damp(rig):
    rig.reach(Mode.STAND)
    rig.demand(Ask.DISARM)
    modes = [rig.mode]
    rig.finish_ramp()
    for _ in range(5):
        rig.step()
        if rig.mode != modes[-1]:
            modes.append(rig.mode)
    assert modes == [Mode.SOFT_STOP, Mode.DAMP, Mode.PASSIVE]


def test_an_estop_outlasts_a_reset_of_the_same_tick(rig):
    rig.reach(Mode.STAND)
    rig.ask(Ask.ESTOP)
    rig.ask(Ask.RESET)
    rig.step()
    assert rig.mode == Mode.ESTOP


def test_two_requests_of_one_tick_are_both_answered(rig):
    rig.step()
    first, second = rig.ask(Ask.ACQUIRE), rig.ask(Ask.ARM)
    rig.step(3)
    answered = {status.answer_seq for status in rig.sent["status"]}
    assert {first.seq, second.seq} <= answered


def test_a_restart_of_control_is_passive_without_lease(rig):
    assert rig.control.machine == ModeState() and rig.control.authority.holder == 0
    rig.step(100)
    assert rig.mode == Mode.PASSIVE and rig.status.lease == 0
