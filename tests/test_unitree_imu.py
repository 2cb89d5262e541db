"""An IMU's agreement with itself and the legs: at rest, turning, wrong axes, a drifting gyro."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from drivers.unitree_imu import GRAVITY, OFF_LEGS, OFF_RATE, ImuWatch, LegWatch, turning
from robot.model import compile_model, load_robot

UP = np.array([1.0, 0.0, 0.0, 0.0])
ROBOT = load_robot("g1")
LEFT, RIGHT = (ROBOT.joint_names.index(f"{side}_knee_joint") for side in ("left", "right"))


def about(axis: int, angle: float) -> np.ndarray:
    quat = np.zeros(4)
    quat[0], quat[1 + axis] = math.cos(angle / 2), math.sin(angle / 2)
    return quat


def felt(*direction: float) -> np.ndarray:
    return GRAVITY * np.array(direction)


@pytest.mark.parametrize(
    ("quat", "accel"),
    [
        (UP, felt(0, 0, 1)),
        (about(0, math.pi / 2), felt(0, 1, 0)),  # lying on its right side: up is its left
        (about(1, math.pi / 2), felt(-1, 0, 0)),  # on its face: up is behind it
        (about(2, 1.0), felt(0, 0, 1)),
        (-about(0, 0.5), felt(0, math.sin(0.5), math.cos(0.5))),
    ],
)
def test_at_rest_in_any_pose_nothing_is_off(quat, accel):
    watch = ImuWatch()
    for _ in range(500):
        watch.hear(quat, np.zeros(3), accel, 2)
    assert np.abs(watch.off_gravity).max() < 1e-9 and not any(watch.off_rate)
    assert watch.doubted_ms == 0 and not watch.drifts


@pytest.mark.parametrize(
    ("accel", "first_ms"),
    [(felt(0, 0, -1), 72), (felt(1, 0, 0), 112)],  # 2 and sqrt(2): -200 ms ln(1 - 0.6 / that)
)
def test_s6_a_wrong_axis_is_doubted_soon_and_for_as_long_as_it_lasts(accel, first_ms):
    watch, passed = ImuWatch(), 0
    watch.hear(UP, np.zeros(3), accel, 2)
    while not watch.doubted_ms:
        watch.hear(UP, np.zeros(3), accel, 2)
        passed += 2
    assert passed == pytest.approx(first_ms, abs=2)
    watch.hear(UP, np.zeros(3), accel, 2)
    assert watch.doubted_ms == 4
    for _ in range(200):
        watch.hear(UP, np.zeros(3), felt(0, 0, 1), 2)
    assert watch.doubted_ms == 0


def test_s7_a_bias_of_the_gyro_is_told_from_turning():
    watch, rate = ImuWatch(), 1.5
    for step in range(300):
        watch.hear(about(1, rate * 0.002 * step), np.array([0, rate, 0]), felt(0, 0, 1), 2)
    assert np.abs(watch.off_rate).max() < 0.02 and not watch.drifts
    end, passed = about(1, rate * 0.002 * 299), 0
    while not watch.drifts:
        passed += 2
        watch.hear(end, np.array([0.3, 0, 0]), felt(0, 0, 1), 2)
        assert passed < 500, "the budget of the fault table"
    assert OFF_RATE < math.hypot(*watch.off_rate) < 0.2


def test_a_gap_and_what_is_no_number_tell_nothing():
    watch = ImuWatch()
    watch.hear(UP, np.zeros(3), felt(0, 0, 1), 2)
    watch.hear(about(2, 3.0), np.zeros(3), felt(0, 0, 1), 100)
    watch.hear(UP * np.nan, np.zeros(3), felt(0, 0, 1), 2)
    watch.hear(UP, np.full(3, np.inf), felt(0, 0, 1), 2)
    assert not any(watch.off_rate) and not any(watch.off_gravity)


@pytest.mark.parametrize("axis", range(3))
def test_turning_is_in_the_body_frame_and_signs_of_quaternions_do_not_count(axis):
    rate = [0.0, 0.0, 0.0]
    rate[axis] = 2.0
    for sign in (1.0, -1.0):
        before, after = tuple(about(axis, 0.3)), tuple(sign * about(axis, 0.304))
        assert turning(before, after, 0.002) == pytest.approx(rate, abs=1e-5)
    # Lying on its side (about x), a turn about the world's vertical is one about its own y.
    w, x = about(0, math.pi / 2)[:2]
    c, s = math.cos(0.001), math.sin(0.001)
    after = (c * w, c * x, s * x, s * w)  # world z turn, then the pose
    assert turning((w, x, 0.0, 0.0), after, 0.002) == pytest.approx((0.0, 1.0, 0.0), abs=1e-5)


# --- against the legs ---------------------------------------------------------------------------


class Legs:
    """A pose, which knee carries what, and what the IMU must say if one sole lies flat."""

    def __init__(self, seed: int = 3) -> None:
        self.pos = ROBOT.stand_joint_pos + np.random.default_rng(seed).uniform(
            -0.25, 0.25, ROBOT.num_joints
        )
        self.torque = np.zeros(ROBOT.num_joints)
        self.model = compile_model(ROBOT)
        self.data = mujoco.MjData(self.model)

    def quat(self, side: str) -> np.ndarray:
        """(4,) of a pelvis above a flat sole: the foot's own rotation, backwards."""
        self.data.qpos[:7], self.data.qpos[7:] = (0, 0, 0, 1, 0, 0, 0), self.pos
        mujoco.mj_kinematics(self.model, self.data)
        foot, quat = self.data.site(f"{side}_foot").xmat.reshape(3, 3), np.zeros(4)
        mujoco.mju_mat2Quat(quat, foot.T.flatten())
        return quat

    def hear(self, quat: np.ndarray, ms: int = 1000) -> LegWatch:
        watch = LegWatch(ROBOT)
        for _ in range(ms // 2):
            watch.hear(quat, self.pos, self.torque, 2)
        return watch


@pytest.mark.parametrize(("side", "knee"), [("left", LEFT), ("right", RIGHT)])
def test_s6_the_sole_of_the_leg_that_bears_is_level_and_the_other_does_not_count(side, knee):
    legs = Legs()
    legs.torque[[LEFT, RIGHT]] = 5.0
    legs.torque[knee] = -20.0
    assert legs.hear(legs.quat(side)).off == pytest.approx(0.0, abs=1e-6)
    other = "right" if side == "left" else "left"
    assert legs.hear(legs.quat(other)).off > 0.1


@pytest.mark.parametrize(("axis", "degrees"), [(0, 35), (0, -90), (1, 45), (1, 180)])
def test_s6_an_imu_that_is_wholly_turned_is_off_by_as_much(axis, degrees):
    legs, quat, angle = Legs(), np.zeros(4), math.radians(abs(degrees))
    legs.torque[LEFT] = 20.0
    legs.pos[:12] = 0.0  # legs as straight as can be: sole and pelvis have one way up
    mujoco.mju_mulQuat(quat, legs.quat("left"), about(axis, math.radians(degrees)))
    watch = legs.hear(quat)
    assert watch.off == pytest.approx(angle, rel=1e-3) and watch.doubted_ms > 500
    # A first-order answer in steps of 20 ms.
    steps = math.ceil(math.log(1.0 - OFF_LEGS / angle) / math.log(0.8))
    assert legs.hear(quat, 20 * (steps - 1)).doubted_ms == 0
    assert legs.hear(quat, 20 * steps).doubted_ms == 20


def test_s6_what_the_legs_cannot_tell():
    """Legs in the air tell nothing, nor does anything tell of a turn about the vertical."""
    legs = Legs()
    turned = about(0, 1.0)
    assert legs.hear(turned).off == 0.0
    legs.torque[LEFT], legs.pos[:12] = 20.0, 0.0
    assert legs.hear(about(2, 1.5)).off == pytest.approx(0.0, abs=1e-6)
    watch = legs.hear(turned)
    assert watch.off > OFF_LEGS
    watch.hear(turned * np.nan, legs.pos, legs.torque, 20)
    watch.hear(turned, legs.pos * np.nan, legs.torque, 20)
    assert math.isfinite(watch.off)
    for _ in range(100):
        watch.hear(turned, legs.pos, np.zeros_like(legs.torque), 20)
    assert watch.off < 1e-6 and watch.doubted_ms == 0
