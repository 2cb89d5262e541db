"""The simulated robot: its noise, delay and motors as configured, and the gantry it hangs on."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.gantry import HANG_CLEARANCE, LOWER_SPEED
from drivers.sim import FREE_VEL, SimDriver, lowest_foot_point
from robot.messages import LowCmd, LowState, Mode, Truth
from robot.model import load_robot
from robot.runs import NoiseConfig, SimConfig
from robot.topics import make_codecs

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
N = ROBOT.num_joints
PERIOD_NS = 2_000_000
PERIOD_S = PERIOD_NS * 1e-9
ELBOW = ROBOT.joint_names.index("left_elbow_joint")
WEIGHT = 33.0 * 9.81  # N, roughly: the model's own is what is compared with


def make(seed: int = 0, period_ns: int = PERIOD_NS, **config: object) -> SimDriver:
    return SimDriver(ROBOT, SimConfig.model_validate(config), period_ns, seed)


def command(mode: Mode, pose: np.ndarray | None = None) -> LowCmd:
    cmd: LowCmd = CODECS["low_cmd"].new()
    cmd.mode = mode
    cmd.joint_pos_target[:] = ROBOT.stand_joint_pos if pose is None else pose
    if mode in (Mode.STANDUP, Mode.STAND, Mode.POLICY):
        cmd.stiffness[:], cmd.damping[:] = ROBOT.stand_stiffness, ROBOT.stand_damping
    elif mode != Mode.PASSIVE:
        cmd.damping[:] = ROBOT.damp_damping
    return cmd


def hold(driver: SimDriver, mode: Mode, seconds: float) -> None:
    cmd = command(mode)
    for _ in range(round(seconds / PERIOD_S)):
        driver.write(cmd)


def read(driver: SimDriver) -> LowState:
    state: LowState = CODECS["low_state"].new()
    driver.read(state)
    return state


def truth_of(driver: SimDriver) -> Truth:
    truth: Truth = CODECS["truth"].new()
    assert driver.truth(truth)
    return truth


# --- sensors ----------------------------------------------------------------------------------

NOISE = NoiseConfig(joint_pos=0.001, joint_vel=0.05, imu_quat=0.01, imu_gyro=0.02, imu_accel=0.1)


def measured(driver: SimDriver, count: int) -> dict[str, np.ndarray]:
    """`count` readings of a world that stands still."""
    states = [read(driver) for _ in range(count)]
    names = ("joint_pos", "joint_vel", "joint_effort", "imu_quat_wxyz", "imu_gyro", "imu_accel")
    return {name: np.array([getattr(state, name) for state in states]) for name in names}


@pytest.mark.parametrize("name", ["joint_pos", "joint_vel", "imu_gyro", "imu_accel"])
def test_noise_has_the_configured_standard_deviation_around_the_truth(name: str):
    still, noisy = measured(make(), 1), measured(make(noise=NOISE.model_dump()), 2000)
    error = noisy[name] - still[name]
    sigma = getattr(NOISE, name)
    assert error.std() == pytest.approx(sigma, rel=0.05)
    # Every channel has its own, and none is biased: five standard errors.
    assert np.abs(error.mean(axis=0)).max() < 5.0 * sigma / np.sqrt(2000)
    correlation = np.corrcoef(error.T) - np.eye(error.shape[1])
    assert np.abs(correlation).max() < 0.12


def test_the_orientation_is_turned_by_the_configured_angle_about_each_axis():
    noisy = measured(make(noise=NOISE.model_dump()), 2000)["imu_quat_wxyz"]
    assert np.linalg.norm(noisy, axis=1) == pytest.approx(1.0, abs=1e-12)
    turned = 2.0 * noisy[:, 1:] / noisy[:, :1]  # rad; the robot stands upright
    assert turned.std(axis=0) == pytest.approx(NOISE.imu_quat, rel=0.08)


def test_without_noise_readings_are_the_truth():
    driver = make()
    hold(driver, Mode.STAND, 0.2)
    state, truth = read(driver), truth_of(driver)
    np.testing.assert_array_equal(state.joint_pos, truth.joint_pos)
    np.testing.assert_allclose(state.imu_quat_wxyz, truth.base_quat_wxyz, atol=1e-15)
    np.testing.assert_array_equal(state.imu_gyro, truth.base_ang_vel_b)


def test_the_seed_makes_the_noise_and_nothing_but_the_noise():
    def run(seed: int) -> tuple[bytes, bytes]:
        driver = make(seed, noise=NOISE.model_dump())
        readings = b""
        for _ in range(50):
            driver.write(command(Mode.STAND))
            readings += bytes(read(driver).payload)
        return readings, bytes(truth_of(driver).payload)

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]
    assert run(3)[1] == run(4)[1]


def test_at_rest_the_imu_feels_gravity_upwards():
    driver = make()
    hold(driver, Mode.STAND, 4.0)
    accel = read(driver).imu_accel
    assert accel[2] > 9.7 and np.linalg.norm(accel) == pytest.approx(9.81, abs=0.05)


# --- motors -----------------------------------------------------------------------------------


def torque(driver: SimDriver) -> np.ndarray:
    """(N,) N m that the motors gave in the last physics step."""
    return driver.data.qfrc_actuator[FREE_VEL:].copy()


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_the_delay_is_exact_in_ticks(delay: int):
    driver = make(actuator_delay_ms=delay * PERIOD_S * 1e3)
    cmd = command(Mode.PASSIVE)
    for _ in range(10):
        driver.write(cmd)
    cmd.effort_ff[ELBOW] = 2.0
    seen = []
    for _ in range(delay + 2):
        driver.write(cmd)
        seen.append(float(torque(driver)[ELBOW]))
    assert seen == [0.0] * delay + [2.0] * 2


def test_motors_do_the_pd_law_of_the_command():
    driver = make()
    cmd = command(Mode.STAND, ROBOT.stand_joint_pos + 0.01)
    cmd.joint_vel_target[:] = 0.1
    cmd.effort_ff[:] = 0.2
    pos, vel = read(driver).joint_pos, read(driver).joint_vel
    driver.write(cmd)
    expected = cmd.stiffness * (cmd.joint_pos_target - pos)
    expected += cmd.damping * (cmd.joint_vel_target - vel) + cmd.effort_ff
    assert torque(driver) == pytest.approx(expected, abs=1e-9)
    assert read(driver).joint_effort == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("by", ["target", "feed-forward", "velocity"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_command_gets_more_than_the_effort_limit(by: str, sign: float):
    driver = make()
    cmd = command(Mode.STAND)
    if by == "target":
        cmd.joint_pos_target[:] = sign * 100.0
    elif by == "feed-forward":
        cmd.effort_ff[:] = sign * 10_000.0
    else:
        cmd.joint_vel_target[:] = sign * 10_000.0
    driver.write(cmd)
    assert torque(driver) == pytest.approx(sign * ROBOT.effort_limit)


@pytest.mark.parametrize("joint", [0, ELBOW, N - 1])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_torque_in_the_direction_of_motion_falls_to_zero_at_the_velocity_limit(
    joint: int, direction: float
):
    driver = make(corner_speed=0.6)
    limit = ROBOT.effort_limit[joint]

    def full(share: float, sign: float) -> float:
        """Torque at this share of the velocity limit, asked for without bound."""
        driver.data.qvel[FREE_VEL:] = 0.0
        driver.data.qvel[FREE_VEL + joint] = direction * share * ROBOT.velocity_limit[joint]
        cmd = command(Mode.PASSIVE)
        cmd.effort_ff[joint] = direction * sign * 10_000.0
        driver._drive(driver._block_of(cmd))
        return direction * float(driver.model.actuator_forcerange[joint, int(direction * sign > 0)])

    for share, expected in (
        (0.0, 1.0),
        (0.59, 1.0),
        (0.8, 0.5),
        (0.9, 0.25),
        (1.0, 0.0),
        (1.5, 0.0),
    ):
        assert full(share, 1.0) == pytest.approx(expected * limit, abs=1e-6 * limit), share
        # Against the motion the motor always has its full torque: it must be able to brake.
        assert full(share, -1.0) == pytest.approx(-limit), share


def test_a_fast_joint_gets_its_full_torque_back_when_it_is_slow_again():
    driver = make(corner_speed=0.5)
    driver.data.qvel[FREE_VEL + ELBOW] = ROBOT.velocity_limit[ELBOW]
    driver._drive(driver._block_of(command(Mode.PASSIVE)))
    assert driver.model.actuator_forcerange[ELBOW, 1] == pytest.approx(0.0)
    driver.data.qvel[:] = 0.0
    driver._drive(driver._block_of(command(Mode.PASSIVE)))
    assert driver.model.actuator_forcerange[:, 1] == pytest.approx(ROBOT.effort_limit)


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period_ns", "steps"), [(2_000_000, 1), (4_000_000, 2), (20_000_000, 10)])
def test_one_period_of_physics_per_write_however_late_it_is(period_ns: int, steps: int):
    driver = make(period_ns=period_ns)
    for tick in range(1, 4):
        driver.write(command(Mode.STAND))
        assert driver.data.time == pytest.approx(tick * steps * 0.002)
        assert read(driver).robot_time_ns == tick * period_ns
    assert truth_of(driver).sim_time_ns == 3 * period_ns


# --- gantry -----------------------------------------------------------------------------------


def test_the_gantry_carries_the_whole_weight_at_first():
    driver = make()
    hold(driver, Mode.STANDUP, 3.0)
    truth = truth_of(driver)
    assert truth.support_force == pytest.approx(driver.gantry.weight, rel=0.05)
    assert driver.gantry.weight == pytest.approx(WEIGHT, rel=0.1)
    assert not truth.released and driver.data.ncon == 0
    assert lowest_foot_point(driver.model, driver.data) > 0.0


@pytest.fixture(scope="module")
def let_down() -> tuple[SimDriver, list[tuple[float, float, bool]]]:
    """A robot that hung, stood up and was let down; (time s, force N, released) over STAND."""
    driver = make()
    hold(driver, Mode.DAMP, 0.5)
    hold(driver, Mode.STANDUP, 2.0)
    seen = []
    for _ in range(round(6.0 / PERIOD_S)):
        driver.write(command(Mode.STAND))
        truth = truth_of(driver)
        seen.append((truth.sim_time_ns * 1e-9, truth.support_force, bool(truth.released)))
    return driver, seen


def test_it_is_let_down_in_stand_only_and_then_released(let_down):
    driver, seen = let_down
    times, forces, released = (np.array(column) for column in zip(*seen, strict=True))
    assert forces[0] == pytest.approx(driver.gantry.weight, rel=0.1)
    assert forces[0] > 2.0 * forces[np.searchsorted(times, times[0] + 2.5)]
    at = int(released.argmax())
    assert released[at:].all() and (forces[at:] == 0.0).all()
    assert driver.gantry.release_time_s == pytest.approx(times[at], abs=2 * PERIOD_S)
    # Down by what it hung higher than it stands, and slack for a moment, no sooner.
    assert times[at] - times[0] > HANG_CLEARANCE / LOWER_SPEED


def test_once_released_it_stands_on_its_own_feet(let_down):
    driver, _ = let_down
    truth = truth_of(driver)
    assert truth.released and truth.base_pos_w[2] > 0.7
    assert np.abs(driver.data.xfrc_applied).max() == 0.0
    assert abs(lowest_foot_point(driver.model, driver.data)) < 0.01


def test_in_other_modes_it_is_not_let_down():
    driver = make()
    hold(driver, Mode.STANDUP, 4.0)
    truth = truth_of(driver)
    assert not truth.released and truth.support_force == pytest.approx(
        driver.gantry.weight, rel=0.1
    )


def test_after_a_fall_it_is_hoisted_in_passive_and_can_stand_up_again():
    driver = make()
    hold(driver, Mode.STAND, 5.0)
    assert truth_of(driver).released
    hold(driver, Mode.FAULT, 1.5)
    fallen = truth_of(driver)
    assert fallen.released and fallen.base_pos_w[2] < 0.5 and not fallen.hanging
    hold(driver, Mode.FAULT, 1.5)
    assert truth_of(driver).released, "nobody pulls at a robot that is not reset"
    hold(driver, Mode.PASSIVE, 0.9)
    assert truth_of(driver).released, "people wait before they pull"
    hold(driver, Mode.PASSIVE, 9.0)
    hung = truth_of(driver)
    assert not hung.released and hung.hanging
    assert hung.support_force == pytest.approx(driver.gantry.weight, rel=0.1)  # limbs swing
    hold(driver, Mode.DAMP, 0.5)
    hold(driver, Mode.STANDUP, 3.0)
    hold(driver, Mode.STAND, 6.0)
    stands = truth_of(driver)
    assert stands.released and stands.base_pos_w[2] > 0.7 and stands.support_force == 0.0
    assert driver.gantry.release_time_s > 15.0


# --- collisions -------------------------------------------------------------------------------


def test_feet_alone_touch_in_the_feet_variant():
    contacts = {}
    for variant in ("full", "feet"):
        driver = make(collisions=variant)
        hold(driver, Mode.STAND, 5.0)
        hold(driver, Mode.FAULT, 1.5)  # it falls over
        geoms = {
            driver.model.geom(i).name for c in range(driver.data.ncon)
            for i in driver.data.contact[c].geom
        }  # fmt: skip
        contacts[variant] = geoms - {"floor"}
    assert any("foot" not in name for name in contacts["full"])
    assert contacts["feet"] and all("foot" in name for name in contacts["feet"])


def test_the_feet_variant_stands_like_the_full_one():
    ends = []
    for variant in ("full", "feet"):
        driver = make(collisions=variant)
        hold(driver, Mode.STAND, 5.0)
        assert truth_of(driver).released
        ends.append(read(driver).joint_pos)
    assert np.abs(ends[0] - ends[1]).max() < 0.01
