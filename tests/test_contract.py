"""What every driver promises. A new driver inherits `DriverContract` and gives a `make`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drivers import make_driver
from drivers.driver import Driver
from robot.messages import LowCmd, LowState, Message, Mode, Truth
from robot.model import load_robot
from robot.runs import NoiseConfig, RunConfig, SimConfig
from robot.topics import make_codecs
from tests.conftest import ROOT

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
PERIOD_NS = 2_000_000
MOVE = 0.1  # rad, what a joint is asked to move
MEASURED = (
    "joint_pos", "joint_vel", "joint_effort", "imu_quat_wxyz", "imu_gyro", "imu_accel",
)  # fmt: skip


def arrays(message: Message) -> dict[str, np.ndarray]:
    return {k: v.copy() for k, v in vars(message).items() if k in type(message).__dict__}


def empty_state() -> LowState:
    """A state in which every measurement is missing."""
    state = CODECS["low_state"].new()
    for name in MEASURED:
        getattr(state, name)[:] = np.nan
    return state


def command(mode: Mode, pose: np.ndarray | None = None) -> LowCmd:
    """The mode's command as control would send it: no gains, damping, or a pose held stiffly."""
    cmd: LowCmd = CODECS["low_cmd"].new()
    cmd.mode = mode
    cmd.joint_pos_target[:] = ROBOT.stand_joint_pos if pose is None else pose
    if mode == Mode.DAMP:
        cmd.damping[:] = ROBOT.damp_damping
    elif mode != Mode.PASSIVE:
        cmd.stiffness[:], cmd.damping[:] = ROBOT.stand_stiffness, ROBOT.stand_damping
    return cmd


class DriverContract:
    """The tests. Override `make`, and the tolerances where a robot has weight."""

    settle_ticks = 1  # from a new target until most of the way has been gone
    stop_softness = 0.0  # rad that a joint may give way at its limit
    simulated = True
    has_truth = False
    has_physics = False  # in this very process
    effort_noise = 0.01  # N m

    def make(self) -> Driver:
        raise NotImplementedError

    def read(self, driver: Driver) -> LowState:
        state = empty_state()
        driver.read(state)
        return state

    @pytest.fixture
    def driver(self) -> Any:
        driver = self.make()
        driver.open()
        yield driver
        driver.close()

    def test_every_measurement_is_there_finite_and_possible(self, driver: Driver):
        for _ in range(3):
            state = self.read(driver)
            for name, values in arrays(state).items():
                assert np.isfinite(values).all(), f"{name} is not filled"
            assert np.linalg.norm(state.imu_quat_wxyz) == pytest.approx(1.0, abs=1e-6)
            assert np.all(np.abs(state.joint_vel) < ROBOT.velocity_limit)
            driver.write(command(Mode.STAND))

    def test_joints_are_in_the_robots_order(self, driver: Driver):
        """It starts in the stand pose, in which many neighbours differ."""
        assert np.abs(self.read(driver).joint_pos - ROBOT.stand_joint_pos).max() < 0.05

    def test_the_header_is_left_to_the_bus(self, driver: Driver):
        state = empty_state()
        state.instance, state.seq, state.stamp_ns, state.tick = 3, 4, 5, 6
        driver.read(state)
        assert (state.instance, state.seq, state.stamp_ns, state.tick) == (3, 4, 5, 6)

    def test_the_clock_advances_by_one_period_per_write(self, driver: Driver):
        start = self.read(driver).robot_time_ns
        for tick in range(1, 6):
            driver.write(command(Mode.PASSIVE))
            assert self.read(driver).robot_time_ns == start + tick * PERIOD_NS

    def test_reading_does_not_advance_anything(self, driver: Driver):
        driver.write(command(Mode.STAND))
        states = [self.read(driver) for _ in range(5)]
        assert len({state.robot_time_ns for state in states}) == 1
        spread = np.ptp([state.joint_pos for state in states], axis=0)
        assert spread.max() < 0.02, "only noise may differ"

    def test_write_leaves_what_was_sent_in_the_command(self, driver: Driver):
        cmd = command(Mode.STAND, ROBOT.stand_joint_pos + 0.01)
        cmd.effort_ff[:] = 0.1
        before = arrays(cmd)
        driver.write(cmd)
        for name, values in arrays(cmd).items():
            np.testing.assert_allclose(values, before[name], rtol=1e-3, atol=1e-3, err_msg=name)

    def test_the_command_is_copied_and_not_kept(self, driver: Driver):
        cmd = command(Mode.STAND)
        for _ in range(10):
            driver.write(cmd)
        pose = self.read(driver).joint_pos
        cmd.joint_pos_target[:] = 99.0  # what control does between ticks must not reach a motor
        assert np.abs(self.read(driver).joint_pos - pose).max() < 0.02

    @pytest.mark.parametrize("mode", [Mode.PASSIVE, Mode.DAMP])
    def test_without_stiffness_the_target_means_nothing(self, mode: Mode):
        """Two far and opposite targets, one and the same motion: down, as gravity pulls."""
        ends = []
        for away in (0.5, -0.5):
            driver = self.make()
            driver.open()
            for _ in range(50):
                driver.write(command(mode, ROBOT.stand_joint_pos + away))
            ends.append(self.read(driver).joint_pos)
            driver.close()
        assert np.abs(ends[0] - ends[1]).max() < 0.01

    @pytest.mark.parametrize("mode", [Mode.PASSIVE, Mode.DAMP])
    def test_without_stiffness_no_motor_drives(self, driver: Driver, mode: Mode):
        for _ in range(50):
            driver.write(command(mode))
            state = self.read(driver)
            if mode == Mode.PASSIVE:
                assert np.abs(state.joint_effort).max() < self.effort_noise
            assert state.joint_effort @ state.joint_vel < 0.5, "W: motors may only brake"

    @pytest.mark.parametrize("joint", range(ROBOT.num_joints), ids=ROBOT.joint_names)
    def test_a_target_moves_its_joint_its_way(self, driver: Driver, joint: int):
        for _ in range(self.settle_ticks):
            driver.write(command(Mode.STANDUP))
        start = self.read(driver).joint_pos
        low, high = ROBOT.position_limit[joint]
        sign = 1.0 if high - start[joint] > start[joint] - low else -1.0
        pose = ROBOT.stand_joint_pos.copy()
        pose[joint] += sign * MOVE
        for _ in range(self.settle_ticks):
            driver.write(command(Mode.STANDUP, pose))
        moved = self.read(driver).joint_pos - start
        assert sign * moved[joint] > 0.5 * MOVE
        others = np.abs(np.delete(moved, joint))
        assert others.max() < 0.5 * MOVE

    def test_targets_beyond_the_limits_do_not_bring_joints_there(self, driver: Driver):
        for bound, sign in ((1, 1.0), (0, -1.0)):
            for _ in range(self.settle_ticks):
                driver.write(command(Mode.STANDUP, ROBOT.position_limit[:, bound] + sign * 0.5))
            beyond = sign * (self.read(driver).joint_pos - ROBOT.position_limit[:, bound])
            assert beyond.max() <= self.stop_softness, ROBOT.joint_names[int(beyond.argmax())]

    def test_it_opens_and_closes_any_number_of_times(self):
        driver = self.make()
        driver.close()
        driver.open()
        driver.open()
        driver.write(command(Mode.PASSIVE))
        driver.close()
        driver.close()

    def test_it_says_what_it_is(self, driver: Driver):
        assert driver.simulated is self.simulated
        before = driver.physics_cpu_ns
        assert before >= 0
        for _ in range(5):
            driver.write(command(Mode.PASSIVE))
        assert (driver.physics_cpu_ns > before) is self.has_physics

    def test_truth_is_told_by_simulations_alone(self, driver: Driver):
        truth: Truth = CODECS["truth"].new()
        driver.write(command(Mode.PASSIVE))
        assert driver.truth(truth) is self.has_truth
        if self.has_truth:
            assert truth.sim_time_ns == self.read(driver).robot_time_ns
            assert np.linalg.norm(truth.base_quat_wxyz) == pytest.approx(1.0)
            assert np.abs(truth.joint_pos - self.read(driver).joint_pos).max() < 0.01
        else:
            assert bytes(truth.payload) == bytes(CODECS["truth"].new().payload)


class TestLoopback(DriverContract):
    def make(self) -> Driver:
        return make_driver(RunConfig(robot="g1", driver="loopback"), ROBOT)


class TestSim(DriverContract):
    """As configs/runs/sim.yaml: noise, delay, torque-speed limit, gantry."""

    settle_ticks = 150
    stop_softness = 0.3  # MuJoCo's stops are springs, and motors push into them with all they have
    has_truth = has_physics = True
    sim = SimConfig(
        actuator_delay_ms=2.0,
        corner_speed=0.8,
        noise=NoiseConfig(
            joint_pos=0.001, joint_vel=0.05, imu_quat=0.003, imu_gyro=0.02, imu_accel=0.1
        ),
    )

    def make(self) -> Driver:
        return make_driver(RunConfig(robot="g1", driver="sim", sim=self.sim), ROBOT)


def test_the_suite_covers_every_driver():
    """The G1's needs its extra and an emulator, and inherits the suite in a file of its own."""
    covered = {"loopback", "sim"}
    assert "class TestUnitree(DriverContract)" in (ROOT / "tests/test_unitree.py").read_text()
    assert set(RunConfig.model_fields["driver"].annotation.__args__) == covered | {"unitree"}  # pyright: ignore
    made = {
        type(make_driver(RunConfig(robot="g1", driver=name), ROBOT))  # pyright: ignore[reportArgumentType]
        for name in covered
    }
    assert made == {type(each().make()) for each in (TestLoopback, TestSim)}
