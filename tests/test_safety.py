"""The safety filter walked along each of its boundaries: just inside, at, just outside."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from robot.messages import Command, LowCmd, LowState, Target
from robot.model import load_robot
from robot.safety import (
    BOX,
    BUCKET_STATE,
    BUCKET_TARGET,
    GAIN,
    LIMITERS,
    POSITION,
    QUAT_TOLERANCE,
    SOFTEST,
    STEP,
    TORQUE,
    Clip,
    ClipShare,
    Gate,
    LeakyBucket,
    SafetyFilter,
    block,
    orientation,
)
from robot.topics import make_codecs

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
N = ROBOT.num_joints
JOINTS = (0, 4, 14, N - 1)  # a hip, an ankle, the waist, a wrist
SIDES = (1.0, -1.0)  # towards the upper limit, towards the lower one
LIMITS = ROBOT.safety
INF = math.inf


def upwards(value: float) -> float:
    """The next number further from zero."""
    return math.nextafter(value, math.copysign(INF, value))


class Bench:
    """A filter, and a robot at rest in mid-range that is told nothing."""

    def __init__(self, enabled: bool = True) -> None:
        self.filter = SafetyFilter(ROBOT, enabled)
        self.cmd: LowCmd = CODECS["low_cmd"].new()
        self.state: LowState = CODECS["low_state"].new()
        self.state.imu_quat_wxyz[:] = (1, 0, 0, 0)
        self.state.joint_pos[:] = self.cmd.joint_pos_target[:] = ROBOT.position_limit.mean(1)

    def apply(self) -> Clip | None:
        return self.filter.apply(self.cmd, self.state)

    def unchanged(self) -> bool:
        before = self.cmd.buffer.copy()
        return self.apply() is None and np.array_equal(before, self.cmd.buffer)

    def active_torque(self) -> np.ndarray:
        """(N,) N m that the command asks for, without the damping of the measured speed."""
        cmd = self.cmd
        spring = cmd.stiffness * (cmd.joint_pos_target - self.state.joint_pos)
        return spring + cmd.damping * cmd.joint_vel_target + cmd.effort_ff


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_robots_own_figures_are_what_these_tests_were_worked_out_for():
    assert (LIMITS.braking_acceleration, LIMITS.braking_band) == (40.0, 2.0)
    assert LIMITS.target_step_limit == 0.8
    assert BOX == 0.1
    assert LIMITERS == ("gain", "step", "position", "torque")
    assert (GAIN, STEP, POSITION, TORQUE) == (1, 2, 4, 8)
    assert (QUAT_TOLERANCE, SOFTEST, BUCKET_STATE, BUCKET_TARGET) == (0.02, 1.0, 5, 3)


# --- gains ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize(
    ("field", "most"), [("stiffness", ROBOT.stiffness_max), ("damping", ROBOT.damping_max)]
)
def test_gains_up_to_the_motors_greatest_pass(bench, joint, field, most):
    limit = float(most[joint])
    for value in (0.0, math.nextafter(limit, 0), limit):
        getattr(bench.cmd, field)[joint] = value
        assert bench.unchanged()
    for value in (upwards(limit), 2 * limit, 1e300):
        getattr(bench.cmd, field)[joint] = value
        assert bench.apply() == Clip(GAIN, 0, joint, value, limit)
        assert getattr(bench.cmd, field)[joint] == limit
        assert np.count_nonzero(bench.cmd.stiffness) + np.count_nonzero(bench.cmd.damping) == 1


def test_all_gains_too_high_are_all_bounded_and_the_worst_is_named(bench):
    bench.cmd.stiffness[:] = ROBOT.stiffness_max + 1.0
    bench.cmd.stiffness[7] += 1.0
    bench.cmd.damping[:] = ROBOT.damping_max + 0.5
    most = float(ROBOT.stiffness_max[7])
    assert bench.apply() == Clip(GAIN, 0, 7, most + 2.0, most)
    assert np.array_equal(bench.cmd.stiffness, ROBOT.stiffness_max)
    assert np.array_equal(bench.cmd.damping, ROBOT.damping_max)


# --- step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("side", SIDES)
def test_a_target_may_move_by_the_step_limit_in_one_tick(bench, joint, side):
    bench.state.joint_pos[joint] = 0.0  # then the step is the target
    bench.cmd.damping[:] = 0.5  # and without stiffness it makes no torque
    for value in (0.7, math.nextafter(0.8, 0), 0.8):
        bench.filter = SafetyFilter(ROBOT)  # the first target is judged from the measured pose
        bench.cmd.joint_pos_target[joint] = side * value
        assert bench.unchanged()
    for value in (upwards(0.8), 0.9, 1e9):
        bench.filter = SafetyFilter(ROBOT)
        bench.cmd.joint_pos_target[joint] = side * value
        assert bench.apply() == Clip(STEP, 1, joint, side * value, side * 0.8)
        assert bench.cmd.joint_pos_target[joint] == side * 0.8
        rest = np.delete(np.arange(N), joint)
        assert np.array_equal(bench.cmd.joint_pos_target[rest], bench.state.joint_pos[rest])


def test_steps_follow_one_another_up_to_any_target(bench):
    bench.state.joint_pos[:] = bench.cmd.joint_pos_target[:] = 0.0
    for tick in range(1, 6):
        bench.cmd.joint_pos_target[3] = 3.0
        clip = bench.apply()
        assert (clip is not None) == (tick < 4)
        assert bench.cmd.joint_pos_target[3] == pytest.approx(min(0.8 * tick, 3.0))


def test_the_step_is_judged_on_what_was_asked_not_on_what_the_torque_bound_left(bench):
    cmd = bench.cmd
    bench.state.joint_pos[:] = 0.0
    cmd.joint_pos_target[:] = 0.0
    cmd.stiffness[0] = 352.0
    cmd.joint_pos_target[0] = 0.75
    clip = bench.apply()
    assert clip is not None and clip.limiters == TORQUE
    assert cmd.joint_pos_target[0] == 0.25  # 88 N m / 352 N m/rad
    assert bench.filter.previous[0] == 0.75
    cmd.joint_pos_target[0] = 1.5
    clip = bench.apply()
    assert clip is not None and clip.limiters == TORQUE, "0.75 on from 0.75, not 1.25 from 0.25"
    assert clip.before == pytest.approx(1.5 * 352.0) and clip.after == pytest.approx(88.0)
    cmd.joint_pos_target[0] = 2.5
    clip = bench.apply()
    assert clip is not None and clip.limiters == STEP | TORQUE


def test_the_worst_of_several_steps_is_named_and_all_are_bounded(bench):
    bench.state.joint_pos[:] = bench.cmd.joint_pos_target[:] = 0.0
    bench.cmd.joint_pos_target[[2, 5, 9]] = (1.0, -3.0, 2.0)
    assert bench.apply() == Clip(STEP, 1, 5, -3.0, -0.8)
    assert bench.cmd.joint_pos_target[[2, 5, 9]].tolist() == [0.8, -0.8, 0.8]


# --- torque ---------------------------------------------------------------------------------------


def bounded(bench: Bench, joint: int, torque: float, limit: float, bit: int) -> None:
    """Feed-forward of `torque` comes out as `limit`, by the limiter of `bit`."""
    before = bench.state.buffer.copy()
    bench.cmd.effort_ff[:] = 0.0
    bench.cmd.effort_ff[joint] = torque
    clip = bench.apply()
    assert clip is not None and clip[:4] == (bit, bit.bit_length() - 1, joint, torque)
    assert clip.after == pytest.approx(limit, rel=1e-9, abs=1e-9)
    assert bench.cmd.effort_ff[joint] == pytest.approx(limit, rel=1e-9, abs=1e-9)
    assert np.count_nonzero(bench.cmd.effort_ff) <= 1
    assert np.array_equal(before, bench.state.buffer), "the state is read only"


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("side", SIDES)
def test_torque_up_to_the_motors_greatest_passes(bench, joint, side):
    limit = side * float(ROBOT.effort_limit[joint])
    for torque in (0.5 * limit, math.nextafter(limit, 0), limit):
        bench.cmd.effort_ff[joint] = torque
        assert bench.unchanged()
    for torque in (upwards(limit), limit + side, 3 * limit):
        bounded(bench, joint, torque, limit, TORQUE)


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("side", SIDES)
def test_damping_takes_its_part_of_the_motors_torque(bench, joint, side):
    effort = float(ROBOT.effort_limit[joint])
    bench.cmd.damping[joint] = 2.0
    bench.state.joint_vel[joint] = -side * 1.5  # damping adds 3 N m on this side
    limit = side * (effort - 3.0)
    for torque in (math.nextafter(limit, 0), limit):
        bench.cmd.effort_ff[joint] = torque
        assert bench.unchanged()
    for torque in (limit + side * 1e-9, 2 * limit):
        bounded(bench, joint, torque, limit, TORQUE)
    # On the other side it leaves as much more, since the motor gives the sum of both.
    bench.cmd.effort_ff[joint] = -side * (effort + 3.0)
    assert bench.unchanged()
    bounded(bench, joint, -side * (effort + 4.0), -side * (effort + 3.0), TORQUE)


@pytest.mark.parametrize("side", SIDES)
def test_torque_with_damping_beyond_the_motors_is_cut_to_none_never_reversed(bench, side):
    wrist = N - 1
    bench.cmd.damping[wrist] = 10.0
    bench.state.joint_vel[wrist] = -side * 0.6  # damping alone asks for 6 of 5 N m
    bounded(bench, wrist, side * 2.0, 0.0, TORQUE)
    bench.cmd.effort_ff[wrist] = -side * 2.0
    assert bench.unchanged(), "torque the other way is not restricted by it"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("stiffness", [SOFTEST, 300.0])
def test_with_stiffness_the_target_moves_and_feed_forward_stays(bench, stiffness, side):
    cmd, state = bench.cmd, bench.state
    state.joint_pos[0], state.joint_vel[0] = 0.2, -side * 2.0
    cmd.stiffness[0], cmd.damping[0] = stiffness, 4.0
    cmd.joint_pos_target[0], cmd.joint_vel_target[0] = 0.2 + side * 0.5, side * 3.0
    cmd.effort_ff[0] = side * 80.0
    before = float(bench.active_torque()[0])
    clip = bench.apply()
    limit = side * (88.0 - 8.0)
    assert clip is not None and clip[:3] == (TORQUE, 3, 0)
    assert clip.before == pytest.approx(before) and clip.after == pytest.approx(limit)
    assert bench.active_torque()[0] == pytest.approx(limit)
    assert (cmd.effort_ff[0], cmd.joint_vel_target[0]) == (side * 80.0, side * 3.0)
    assert cmd.joint_pos_target[0] == pytest.approx(
        0.2 + (limit - side * 80.0 - 4.0 * side * 3.0) / stiffness
    )


@pytest.mark.parametrize("stiffness", [0.0, 0.5, math.nextafter(SOFTEST, 0)])
def test_without_stiffness_feed_forward_moves_and_the_target_stays(bench, stiffness):
    cmd = bench.cmd
    cmd.stiffness[0], cmd.damping[0] = stiffness, 5.0
    cmd.joint_pos_target[0] = bench.state.joint_pos[0] + 0.5
    target = float(cmd.joint_pos_target[0])
    cmd.joint_vel_target[0], cmd.effort_ff[0] = 10.0, 70.0
    assert bench.apply() is not None
    assert (cmd.joint_pos_target[0], cmd.joint_vel_target[0]) == (target, 10.0)
    assert cmd.effort_ff[0] == pytest.approx(88.0 - 50.0 - 0.5 * stiffness)


def test_pure_damping_is_never_changed():
    rng = np.random.default_rng(1)
    bench = Bench()
    for _ in range(300):
        low, high = ROBOT.position_limit.T
        bench.state.joint_pos[:] = rng.uniform(low - 0.3, high + 0.3)
        bench.state.joint_vel[:] = rng.normal(0, 20, N)
        bench.cmd.joint_pos_target[:] = bench.state.joint_pos
        bench.cmd.damping[:] = rng.uniform(0, ROBOT.damping_max)
        bench.filter.previous[:] = bench.state.joint_pos
        assert bench.unchanged()


# --- position -------------------------------------------------------------------------------------


def share(distance: float, speed: float) -> float:
    """Share of the torque into a limit at this distance and speed towards it."""
    return min(1.0, max(0.0, (math.sqrt(2 * 40.0 * max(0.0, distance)) - speed) / 2.0))


def near(bench: Bench, joint: int, side: float, distance: float, speed: float) -> None:
    """Put a joint before one of its limits, moving towards it."""
    limit = ROBOT.position_limit[joint, 1 if side > 0 else 0]
    bench.state.joint_pos[joint] = limit - side * distance
    bench.state.joint_vel[joint] = side * speed
    bench.cmd.joint_pos_target[joint] = bench.state.joint_pos[joint]
    bench.filter.previous[:] = bench.cmd.joint_pos_target


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("distance", "speed"),
    [
        (0.049, 0.0), (0.02, 0.0), (1e-6, 0.0), (0.0, 0.0), (-1e-6, 0.0), (-0.3, 0.0),
        (0.2, 2.1), (0.2, 3.9), (0.2, 4.0), (0.2, 4.1), (0.2, 20.0), (0.0, 5.0), (-0.1, 1.0),
        (0.0, -1.0), (-0.2, -0.5), (0.05, 0.1), (0.0, -1.9),
    ],
)  # fmt: skip
def test_torque_into_a_limit_fades_and_torque_away_from_it_does_not(
    bench, joint, side, distance, speed
):
    near(bench, joint, side, distance, speed)
    effort = float(ROBOT.effort_limit[joint])
    allowed = side * effort * share(distance, speed)
    bounded(bench, joint, side * effort, allowed, POSITION)
    if abs(allowed) > 0.0:
        bench.cmd.effort_ff[joint] = 0.999 * allowed
        assert bench.unchanged()
    bench.cmd.effort_ff[joint] = -side * effort
    assert bench.unchanged(), "away from the limit all of the torque is there"
    bounded(bench, joint, -side * (effort + 1), -side * effort, TORQUE)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("distance", "speed"), [(0.0501, 0.0), (0.2, 1.99), (0.0, -2.0), (-1, -3)])
def test_far_or_slow_enough_the_limit_is_not_felt(bench, side, distance, speed):
    near(bench, 0, side, distance, speed)
    bench.cmd.effort_ff[0] = side * 88.0
    assert bench.unchanged()
    bounded(bench, 0, side * 89.0, side * 88.0, TORQUE)


@pytest.mark.parametrize("side", SIDES)
def test_a_target_beyond_a_limit_is_legal_while_it_does_not_push_into_it(bench, side):
    near(bench, 4, side, 0.3, 0.0)
    bench.cmd.joint_pos_target[4] += side * 0.5  # 0.2 beyond the limit
    bench.cmd.stiffness[4] = 50.0
    assert bench.unchanged()
    near(bench, 4, side, 0.0, 0.0)
    bench.cmd.joint_pos_target[4] += side * 0.5
    clip = bench.apply()
    assert clip is not None and clip[:3] == (POSITION, 2, 4)
    assert clip.before == pytest.approx(side * 25.0)
    assert bench.cmd.joint_pos_target[4] == pytest.approx(bench.state.joint_pos[4])


def test_bits_of_gain_step_and_torque_add_up(bench):
    bench.cmd.stiffness[0] = 1e3
    bench.cmd.joint_pos_target[0] = bench.state.joint_pos[0] + 1.0
    clip = bench.apply()
    assert clip is not None and clip.limiters == GAIN | STEP | TORQUE
    assert (clip.limiter, clip.joint) == (3, 0)
    bench = Bench()
    bench.cmd.damping[0] = 1e3
    bench.cmd.joint_pos_target[1] = bench.state.joint_pos[1] - 1.0
    clip = bench.apply()
    assert clip is not None and clip[:3] == (GAIN | STEP, 1, 1)
    bench = Bench()
    bench.cmd.damping[0], bench.cmd.effort_ff[1] = 1e3, 1e3
    clip = bench.apply()
    assert clip is not None and clip[:3] == (GAIN | TORQUE, 3, 1)


# --- all at once ----------------------------------------------------------------------------------


def random_bench(rng: np.random.Generator) -> Bench:
    """Any state and any command of the right shape, wild ones included."""
    bench, wild = Bench(), rng.random() < 0.5
    low, high = ROBOT.position_limit.T
    state, cmd = bench.state, bench.cmd
    state.joint_pos[:] = rng.uniform(low - 0.1, high + 0.1)
    state.joint_vel[:] = rng.normal(0, 8 if wild else 1, N)
    cmd.joint_pos_target[:] = state.joint_pos + rng.normal(0, 1 if wild else 0.1, N)
    cmd.joint_vel_target[:] = rng.normal(0, 10 if wild else 0, N)
    cmd.effort_ff[:] = rng.normal(0, 1, N) * ROBOT.effort_limit * (2 if wild else 0.1)
    cmd.stiffness[:] = rng.uniform(0, 1.2 if wild else 0.5, N) * ROBOT.stiffness_max
    cmd.stiffness[rng.random(N) < 0.2] = 0.0
    cmd.damping[:] = rng.uniform(0, 1.2 if wild else 0.5, N) * ROBOT.damping_max
    return bench


def test_whatever_is_asked_torque_stays_within_the_motor_and_out_of_the_limits():
    rng = np.random.default_rng(7)
    clipped = 0
    for _ in range(400):
        bench = random_bench(rng)
        clipped += bench.apply() is not None
        state, cmd = bench.state, bench.cmd
        active = bench.active_torque()
        total = active - cmd.damping * state.joint_vel
        slack = 1e-9 * ROBOT.effort_limit
        alone = np.abs(cmd.damping * state.joint_vel)  # what damping asks for by itself
        assert (np.abs(total) <= np.maximum(ROBOT.effort_limit, alone) + slack).all()
        for side, limit in ((1, ROBOT.position_limit[:, 1]), (-1, ROBOT.position_limit[:, 0])):
            beyond = side * (state.joint_pos - limit) >= 0
            inwards = side * state.joint_vel >= 0
            assert (side * active <= slack)[beyond & inwards].all()
        assert (cmd.stiffness <= ROBOT.stiffness_max).all()
        assert (cmd.damping <= ROBOT.damping_max).all()
        again = cmd.copy()
        assert np.isfinite(block(again, "joint_pos_target", "effort_ff")).all()
    assert 200 < clipped <= 400


def test_a_command_within_all_bounds_passes_bit_for_bit():
    rng = np.random.default_rng(11)
    passed = 0
    for _ in range(300):
        bench = random_bench(rng)
        state, cmd = bench.state, bench.cmd
        state.joint_pos[:] = rng.uniform(*(ROBOT.position_limit.T * 0.8))
        state.joint_vel[:] = rng.normal(0, 0.3, N)
        cmd.joint_pos_target[:] = state.joint_pos + rng.normal(0, 0.002, N)
        cmd.joint_vel_target[:] = 0.0
        cmd.effort_ff[:] = rng.normal(0, 0.35, N) * ROBOT.effort_limit
        cmd.stiffness[:] = np.minimum(cmd.stiffness, ROBOT.stiffness_max)
        cmd.damping[:] = np.minimum(cmd.damping, ROBOT.damping_max)
        torque, excess = bench.active_torque(), -INF
        for j in range(N):
            for side, limit in zip(SIDES, ROBOT.position_limit[j, ::-1], strict=True):
                speed = side * state.joint_vel[j]
                most = max(0.0, float(ROBOT.effort_limit[j] + cmd.damping[j] * speed))
                most *= share(side * (limit - state.joint_pos[j]), speed)
                excess = max(excess, side * torque[j] - most)
        if excess <= 0.0:
            passed += 1
            assert bench.unchanged()
        else:
            clip = bench.apply()
            assert clip is not None and abs(clip.after - clip.before) == pytest.approx(excess)
    assert 30 < passed < 270


def fastest(j: int, side: float, position: float) -> float:
    """Speed of joint j towards a limit that can be braked from the end of a box around position."""
    low, high = ROBOT.position_limit[j]
    way = high - position if side > 0 else position - low
    return float(np.sqrt(80.0 * (1.0 - BOX) * way) - 2.0)


def quick(bench: Bench) -> bool:
    bench.filter.apply(bench.cmd, bench.state)
    return bench.filter._quick.passes(block(bench.state, "joint_pos", "joint_vel"))


def test_the_quick_test_is_sure_exactly_of_speeds_that_can_be_braked_in_its_box():
    rng = np.random.default_rng(13)
    low, high = ROBOT.position_limit.T
    for _ in range(300):
        bench = Bench()
        state, cmd = bench.state, bench.cmd
        state.joint_pos[:] = (low + high) / 2
        cmd.stiffness[:] = cmd.damping[:] = 0.0
        j, side = int(rng.integers(N)), rng.choice(SIDES)
        away = rng.uniform(BOX + 0.01, 1.0 - 0.12 / (high[j] - low[j]))  # not in the first box
        state.joint_pos[j] += rng.choice(SIDES) * away * (high[j] - low[j]) / 2
        cmd.joint_pos_target[:] = state.joint_pos
        for share, sure in ((0.999, True), (1.001, False)):
            state.joint_vel[j] = side * share * fastest(j, side, state.joint_pos[j])
            assert quick(bench) is sure
            assert bench.unchanged()


def test_the_quick_tests_box_stays_until_it_is_left_and_is_then_laid_anew():
    rng = np.random.default_rng(15)
    for _ in range(300):
        bench = Bench()
        state, cmd = bench.state, bench.cmd
        cmd.stiffness[:] = cmd.damping[:] = 0.0
        cmd.joint_pos_target[:] = state.joint_pos[:] = ROBOT.position_limit.mean(1)
        j, side = int(rng.integers(N)), rng.choice(SIDES)
        low, high = ROBOT.position_limit[j]
        begin, way = (low + high) / 2, side * BOX * (high - low) / 2
        slow = fastest(j, side, begin)
        assert quick(bench)
        state.joint_pos[j], state.joint_vel[j] = begin + 0.999 * way, 0.999 * side * slow
        assert quick(bench), "within the box as it was laid, where speeds are those of its end"
        state.joint_pos[j] = begin + 1.001 * way
        assert not quick(bench), "a box around here allows less"
        state.joint_vel[j] = 0.999 * side * fastest(j, side, state.joint_pos[j])
        assert quick(bench)
        state.joint_vel[j] *= 1.01
        state.joint_pos[j] -= 0.01 * way
        assert quick(bench) is bool(
            abs(state.joint_vel[j]) <= fastest(j, side, state.joint_pos[j])
        ), "left by speed: laid anew around where the joint is"
        assert bench.unchanged()


@pytest.mark.parametrize("side", SIDES)
def test_the_quick_tests_box_reaches_less_far_to_the_nearer_limit(side):
    wide = [j for j, (low, high) in enumerate(ROBOT.position_limit) if high - low > 2.2]
    assert len(wide) > 5
    for j in wide:
        bench = Bench()
        state, cmd = bench.state, bench.cmd
        cmd.stiffness[:] = cmd.damping[:] = 0.0
        state.joint_pos[:] = ROBOT.position_limit.mean(1)
        limit = ROBOT.position_limit[j, 1 if side > 0 else 0]
        cmd.joint_pos_target[:] = state.joint_pos
        state.joint_pos[j] = limit - side * 0.2
        assert quick(bench)
        state.joint_pos[j] = limit - side * 0.04  # too near to stand there without a bound
        assert not quick(bench)


@pytest.mark.parametrize("value", [1.7e308, -1.7e308])
def test_the_quick_test_is_not_sure_of_absurd_measurements_and_does_not_overflow(bench, value):
    bench.state.joint_pos[:] = bench.state.joint_vel[:] = value
    assert bench.filter._quick.passes(block(bench.state, "joint_pos", "joint_vel")) is False


def test_the_quick_test_is_sure_exactly_within_the_motors_torque():
    rng = np.random.default_rng(14)
    answers = []
    for _ in range(600):
        bench = Bench()
        state, cmd = bench.state, bench.cmd
        state.joint_pos[:] = ROBOT.position_limit.mean(1) + rng.uniform(-0.02, 0.02, N)
        state.joint_vel[:] = rng.normal(0, 0.3, N)
        cmd.joint_pos_target[:] = state.joint_pos + rng.normal(0, 0.004, N)
        cmd.joint_vel_target[:] = rng.normal(0, 0.3, N)
        cmd.stiffness[:] = 0.5 * ROBOT.stiffness_max
        cmd.damping[:] = 0.2 * ROBOT.damping_max
        cmd.effort_ff[:] = rng.normal(0, rng.uniform(0.0, 0.3), N) * ROBOT.effort_limit
        total = bench.active_torque() - cmd.damping * state.joint_vel
        sure = bool(((total / ROBOT.effort_limit) ** 2).sum() < 1.0)
        unchanged = bench.unchanged()
        answers.append(quick(bench))
        # The bound may have moved the target; then nothing is said of what was asked.
        assert not unchanged or answers[-1] is sure
        assert unchanged or not sure
    assert 60 < sum(answers) < 540


def test_a_command_that_passed_and_comes_again_is_still_bounded_in_torque(bench):
    bench.cmd.effort_ff[0] = 80.0
    assert bench.unchanged() and bench.unchanged()
    near(bench, 0, 1.0, distance=0.0, speed=0.0)
    bench.cmd.joint_pos_target[0] = ROBOT.position_limit[0].mean()
    clip = bench.apply()
    assert clip is not None and clip.limiters == POSITION


def test_a_command_that_was_clipped_and_comes_again_is_clipped_again(bench):
    for _ in range(3):
        bench.cmd.damping[5] = 99.0
        assert bench.apply() == Clip(GAIN, 0, 5, 99.0, 5.0)
    bench.cmd.damping[5] = 5.0
    assert bench.unchanged()


def test_two_commands_of_one_filter_are_each_judged_by_their_own_bytes(bench):
    assert bench.unchanged()
    bench.cmd, other = bench.cmd.copy(), bench.cmd
    bench.cmd.damping[5] = 99.0
    assert bench.apply() == Clip(GAIN, 0, 5, 99.0, 5.0)
    assert not other.damping.any()
    bench.cmd.effort_ff[0] = 1e3
    clip = bench.apply()
    assert clip is not None and clip.limiters == TORQUE and bench.cmd.effort_ff[0] == 88.0


# K to the limit, and the share of torque that is left.
DERATED = [(10.0, 1.0), (11.0, 1.0), (1e9, 1.0), (5.0, 0.75), (2.0, 0.6), (0.0, 0.5), (-30.0, 0.5),
           (np.nan, 0.5), (-INF, 0.5)]  # fmt: skip


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("margin", "left"), DERATED)
def test_s14_a_hot_motor_gets_less_torque_and_the_others_all_of_it(
    bench, joint, side, margin, left
):
    margins = np.full(N, 50.0)
    margins[joint] = margin
    bench.filter.derate(margins)
    for at in JOINTS:
        limit = side * float(ROBOT.effort_limit[at]) * (left if at == joint else 1.0)
        bench.cmd.effort_ff[:] = 0.0
        bench.cmd.effort_ff[at] = limit
        assert bench.apply() is None
        bench.cmd.effort_ff[at] = upwards(limit * (1 + 1e-12))
        clip = bench.apply()
        assert clip is not None and clip.limiters == TORQUE and clip.joint == at
        assert bench.cmd.effort_ff[at] == pytest.approx(limit)


def test_s14_what_passed_cold_is_judged_again_when_hot_and_once_more_when_cool(bench):
    bench.cmd.effort_ff[4] = 0.9 * ROBOT.effort_limit[4]
    asked = bench.cmd.effort_ff.copy()
    assert bench.apply() is None
    bench.filter.derate(np.zeros(N))
    assert bench.apply() is not None
    assert bench.cmd.effort_ff[4] == pytest.approx(0.5 * ROBOT.effort_limit[4])
    bench.filter.derate(None)
    bench.cmd.effort_ff[:] = asked
    assert bench.apply() is None and np.array_equal(bench.cmd.effort_ff, asked)


def test_s14_the_quick_test_is_not_sure_of_what_is_too_much_for_a_hot_motor(bench):
    """Alone, 0.9 of a cold motor's torque is surely within; of a hot one's it is not."""
    bench.cmd.effort_ff[4] = 0.9 * ROBOT.effort_limit[4]
    bench.apply()
    assert quick(bench)
    bench.filter.derate(np.zeros(N))
    bench.filter._quick.prepare(bench.cmd, bench.filter._view(bench.cmd))
    assert not quick(bench)
    bench.filter.derate(None)
    bench.filter._quick.prepare(bench.cmd, bench.filter._view(bench.cmd))
    assert quick(bench)


def test_switched_off_it_lets_everything_pass():
    bench = Bench(enabled=False)
    bench.cmd.stiffness[:], bench.cmd.effort_ff[:] = 1e6, 1e6
    assert bench.unchanged()
    assert np.array_equal(bench.filter.previous, bench.cmd.joint_pos_target)


def test_absurd_feed_forward_is_bounded_with_stiffness_too(bench):
    bench.cmd.stiffness[0], bench.cmd.effort_ff[0] = 100.0, 1e18
    assert bench.apply() is not None
    assert abs(bench.active_torque()[0]) <= 88.1


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_absurd_target_velocity_leaves_a_finite_command(bench):
    bench.cmd.stiffness[0], bench.cmd.damping[0] = 100.0, 5.0
    bench.cmd.joint_vel_target[0] = 1e308
    bench.apply()
    assert np.isfinite(block(bench.cmd, "joint_pos_target", "effort_ff")).all()


@pytest.mark.parametrize("side", SIDES)
def test_absurd_wishes_are_cut_every_time_and_only_where_they_are(bench, side):
    cmd = bench.cmd
    cmd.joint_vel_target[:], cmd.effort_ff[:] = 0.5, 0.5
    cmd.stiffness[0] = 100.0
    for _ in range(3):
        cmd.joint_vel_target[1] = side * 1e300  # without damping it makes no torque
        assert bench.apply() is None
        assert cmd.joint_vel_target[1] == side * 1e3
        assert np.delete(cmd.joint_vel_target, 1).tolist() == [0.5] * (N - 1)
    cmd.effort_ff[0] = side * 1e18
    assert bench.apply() is not None
    assert cmd.effort_ff[0] == side * 1e4
    assert bench.active_torque()[0] == pytest.approx(side * 88.0)
    assert cmd.effort_ff[1:].tolist() == [0.5] * (N - 1)


def test_absurd_speed_is_no_exception(bench):
    bench.state.joint_vel[0] = 1e200
    assert bench.unchanged()
    bench.cmd.effort_ff[0] = 1.0
    assert bench.apply() == Clip(POSITION, 2, 0, 1.0, 0.0)


# --- impossible content ---------------------------------------------------------------------------

STATE_FIELDS = (
    "joint_pos", "joint_vel", "joint_effort", "imu_quat_wxyz", "imu_gyro", "imu_accel",
)  # fmt: skip
TARGET_FIELDS = ("joint_pos_target", "joint_vel_target", "effort_ff", "stiffness", "damping")


def good_state() -> LowState:
    state: LowState = CODECS["low_state"].new()
    state.imu_quat_wxyz[:] = (1, 0, 0, 0)
    return state


def state_gate() -> Gate:
    return Gate("joint_pos", "imu_accel", BUCKET_STATE)


def target_gate() -> Gate:
    return Gate("joint_pos_target", "damping", BUCKET_TARGET)


@pytest.mark.parametrize("value", [math.nan, INF, -INF], ids=["nan", "+inf", "-inf"])
@pytest.mark.parametrize("field", STATE_FIELDS)
def test_a_state_that_is_not_finite_is_refused_and_counted(field, value):
    gate, state = state_gate(), good_state()
    assert gate.admits(state)
    values = getattr(state, field)
    for i in (0, len(values) // 2, len(values) - 1):
        before, values[i] = float(values[i]), value
        assert not gate.admits(state)
        values[i] = before
        assert gate.admits(state)
    assert gate.bucket.total == 3


@pytest.mark.parametrize("value", [math.nan, INF, -INF], ids=["nan", "+inf", "-inf"])
@pytest.mark.parametrize("field", TARGET_FIELDS)
def test_a_target_that_is_not_finite_is_refused_and_counted(field, value):
    gate = target_gate()
    target: Target = CODECS["target"].new()
    assert gate.admits(target)
    for i in (0, N // 2, N - 1):
        getattr(target, field)[i] = value
        assert not gate.admits(target)
        getattr(target, field)[i] = 0.0
    assert gate.bucket.total == 3


def test_infinities_that_cancel_are_still_refused():
    target: Target = CODECS["target"].new()
    target.effort_ff[:2] = (INF, -INF)
    assert not target_gate().admits(target)


@pytest.mark.parametrize("field", ["stiffness", "damping"])
@pytest.mark.parametrize("joint", JOINTS)
def test_negative_gains_are_refused(field, joint):
    gate = target_gate()
    target: Target = CODECS["target"].new()
    getattr(target, field)[joint] = -5e-324
    assert not gate.admits(target)
    getattr(target, field)[joint] = 0.0
    assert gate.admits(target)
    getattr(target, field)[joint] = 1.0
    assert gate.admits(target)
    target.joint_pos_target[joint] = target.joint_vel_target[joint] = target.effort_ff[joint] = -1.0
    assert gate.admits(target), "only gains may not be negative"


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize(
    ("norm", "good"),
    [(0.9801, True), (0.9799, False), (1.0199, True), (1.0201, False), (0.0, False),
     (-1.0, True), (-1.05, False), (1e200, False)],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_quaternion_must_have_length_one_within_two_percent(axis, norm, good):
    state = good_state()
    state.imu_quat_wxyz[:] = 0.0
    state.imu_quat_wxyz[axis] = norm
    assert state_gate().admits(state) is good


def test_all_four_parts_of_a_quaternion_count():
    state = good_state()
    state.imu_quat_wxyz[:] = (0.5, -0.5, 0.5, -0.5)
    assert state_gate().admits(state)
    for axis in range(4):
        state.imu_quat_wxyz[:] = 0.5
        state.imu_quat_wxyz[axis] = 0.6
        assert not state_gate().admits(state)


def test_a_message_of_another_kind_is_only_asked_for_finite_numbers():
    gate = Gate("velocity", "arm_joint_pos", 3)
    command: Command = CODECS["command.script"].new()
    command.velocity[0] = -1.0
    assert gate.admits(command)
    command.base_height[0] = INF
    assert not gate.admits(command)


def test_each_message_is_judged_by_its_own_bytes_wherever_it_lies_in_memory():
    gate = target_gate()
    for i in range(50):  # a dead message's place is given to the next one
        target: Target = CODECS["target"].new()
        target.effort_ff[3] = math.nan if i % 2 else 1.0
        assert gate.admits(target) is (i % 2 == 0)
        del target


def test_block_is_a_view_over_the_arrays_and_the_count_words_between_them():
    cmd: LowCmd = CODECS["low_cmd"].new()
    cmd.stiffness[:], cmd.damping[:] = 3.0, 4.0
    gains = block(cmd, "stiffness", "damping")
    assert len(gains) == 2 * N + 1
    assert gains[:N].tolist() == [3.0] * N and gains[N + 1 :].tolist() == [4.0] * N
    assert 0.0 < gains[N] < 1e-300
    gains[0] = 9.0
    assert cmd.stiffness[0] == 9.0


# --- counting -------------------------------------------------------------------------------------


def test_leaky_bucket_trips_when_full_and_recovers_when_empty():
    bucket = LeakyBucket(3)
    seen = []
    for good in (False, True, True, False, False, True, False, False, False, True, True, True):
        bucket.count(good)
        seen.append((bucket.level, bucket.tripped))
    assert seen == [
        (1, False), (0, False), (0, False), (1, False), (2, False), (1, False), (2, False),
        (3, True), (3, True), (2, True), (1, True), (0, False),
    ]  # fmt: skip
    assert bucket.total == 6


def test_a_bucket_never_trips_on_every_second_one():
    bucket = LeakyBucket(2)
    for i in range(1000):
        bucket.count(i % 2 == 0)
        assert not bucket.tripped
    assert bucket.total == 500


def test_clip_share_is_over_the_last_ticks_only():
    shares = ClipShare(4)
    counted = [shares.count(clipped) for clipped in (True, False, True, True, True, False)]
    assert counted == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75]
    assert [shares.count(False) for _ in range(4)] == [0.5, 0.25, 0.0, 0.0]
    for _ in range(3):
        shares.count(True)
    shares.reset()
    assert shares.count(True) == 0.25
    three = ClipShare(3)
    assert [round(3 * three.count(clipped)) for clipped in (True, False, True, False)] == [
        1,
        1,
        2,
        1,
    ]
    assert [shares.count(True) for _ in range(4)] == [0.5, 0.75, 1.0, 1.0]


# --- orientation ----------------------------------------------------------------------------------

R = math.sqrt(0.5)
C15, S15 = math.cos(math.radians(15)), math.sin(math.radians(15))
C30, S30 = math.cos(math.radians(30)), math.sin(math.radians(30))


@pytest.mark.parametrize(
    ("quat", "roll_pitch_tilt"),
    [
        ((1, 0, 0, 0), (0, 0, 0)),
        ((-1, 0, 0, 0), (0, 0, 0)),
        ((R, 0, 0, R), (0, 0, 0)),  # turned left by 90 degrees
        ((R, R, 0, 0), (90, 0, 90)),  # on its right side
        ((R, -R, 0, 0), (-90, 0, 90)),
        ((R, 0, R, 0), (0, 90, 90)),  # on its face; roll and yaw are not defined there
        ((R, 0, -R, 0), (0, -90, 90)),
        ((0, 1, 0, 0), (180, 0, 180)),  # upside down
        ((C15, S15, 0, 0), (30, 0, 30)),
        ((C15, 0, S15, 0), (0, 30, 30)),
        ((C15, 0, -S15, 0), (0, -30, 30)),
        ((C30, 0, S30, 0), (0, 60, 60)),
        # Yaw 90, then pitch 30: the product (R, 0, 0, R)(C, 0, S, 0).
        ((R * C15, -R * S15, R * S15, R * C15), (0, 30, 30)),
        # Yaw 90, then roll 30: (R, 0, 0, R)(C, S, 0, 0).
        ((R * C15, R * S15, R * S15, R * C15), (30, 0, 30)),
        # Pitch 30, then roll 30: (C, 0, S, 0)(C, S, 0, 0); tilt = acos(cos 30 cos 30).
        ((C15 * C15, C15 * S15, C15 * S15, -S15 * S15), (30, 30, math.degrees(math.acos(0.75)))),
    ],
)
def test_orientation_of_quaternions_worked_out_by_hand(quat, roll_pitch_tilt):
    got = np.degrees(orientation(np.array(quat, float)))
    assert np.abs(got[0]) == pytest.approx(180) or got[0] == pytest.approx(
        roll_pitch_tilt[0], abs=1e-5
    )
    assert got[1:] == pytest.approx(roll_pitch_tilt[1:], abs=1e-5)


def test_orientation_of_a_quaternion_that_is_slightly_too_long_is_not_an_error():
    assert orientation(1.02 * np.array([R, 0, R, 0]))[1] == pytest.approx(math.pi / 2)
    assert orientation(1.02 * np.array([R, 0, -R, 0]))[1] == pytest.approx(-math.pi / 2)
    assert orientation(1.02 * np.array([0.0, 1, 0, 0]))[2] == pytest.approx(math.pi)


def test_limits_come_from_the_robot_and_not_from_here():
    short = SafetyFilter(
        replace(ROBOT, safety=LIMITS.model_copy(update={"target_step_limit": 0.1}))
    )
    bench = Bench()
    bench.filter = short
    bench.state.joint_pos[0] = 0.0
    bench.cmd.joint_pos_target[0] = 0.2
    assert bench.apply() == Clip(STEP, 1, 0, 0.2, 0.1)
