"""Hands: what can be reached is reached, limits and body are kept, what is too far ends in rest."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot.console.hands import CLEAR, LEAST, Hands, minimise
from robot.model import load_robot

ROBOT = load_robot("g1")
LOW, HIGH = ROBOT.position_limit[ROBOT.arm_joints].T
REST = ROBOT.stand_joint_pos[ROBOT.arm_joints]
MOST = 0.04  # rad per step: 0.8 rad/s at 20 samples per second
STEPS = 250  # 12.5 s of holding


class Judge:
    """MuJoCo alone, without margins: what touches, and where the palms are."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_path(str(ROBOT.mjcf))
        self.data = mujoco.MjData(self.model)
        rows = [self.model.joint(name).qposadr[0] for name in ROBOT.joint_names]
        self.arms = np.array(rows)[ROBOT.arm_joints]
        self.data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)
        self.data.qpos[rows] = ROBOT.stand_joint_pos

    def touching(self, arms: np.ndarray) -> int:
        self.data.qpos[self.arms] = arms
        mujoco.mj_forward(self.model, self.data)
        return self.data.ncon

    def palm(self, arms: np.ndarray, side: str) -> np.ndarray:
        self.touching(arms)
        return self.data.site(f"{side}_palm").xpos.copy()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture
def hands() -> Hands:
    return Hands(ROBOT, ["left_palm", "right_palm"])


def follow(hands: Hands, judge: Judge, hand: int, point, steps: int = STEPS) -> np.ndarray:
    """(steps, A) the way from the stand pose; every step of it is allowed."""
    way = [REST]
    for _ in range(steps):
        way.append(hands.reach(way[-1], hand, point, MOST))
    check(np.array(way), judge)
    return np.array(way)


def check(way: np.ndarray, judge: Judge) -> None:
    assert (way >= LOW).all() and (way <= HIGH).all()
    assert np.abs(np.diff(way, axis=0)).max() <= MOST + 1e-9
    assert not any(judge.touching(arms) for arms in way[::3])


def test_points_a_random_arm_can_touch_are_reached_to_a_centimetre(hands, judge):
    draw, seen = np.random.default_rng(5), 0
    while seen < 16:
        arms = draw.uniform(LOW, HIGH)
        if hands.room(arms) < 2 * CLEAR:
            continue
        side, seen = seen % 2, seen + 1
        point = hands.points(arms)[side]
        way = follow(hands, judge, side, point)
        assert np.linalg.norm(judge.palm(way[-1], ("left", "right")[side]) - point) < 0.01
        other = slice(7, 14) if side == 0 else slice(0, 7)
        assert np.abs(way[:, other] - REST[other]).max() < 0.05, "the other arm has no part in it"


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        # m from the point, best of 6,000 random arms that are off the body and within limits
        ((1.5, 0.3, 0.3), 1.06),
        ((-2.0, 0.0, 0.0), 1.59),
        ((0.0, 2.0, -1.0), 1.84),
        ((0.0, 0.0, 0.2), 0.16),  # inside the trunk
        ((0.05, 0.0, 0.5), 0.09),  # the head
    ],
)
def test_what_cannot_be_reached_is_come_near_to_and_then_there_is_rest(
    hands, judge, point, nearest
):
    way = follow(hands, judge, 0, point, steps=450)
    assert np.linalg.norm(judge.palm(way[-1], "left") - point) < nearest
    late = way[-40:]
    palms = [judge.palm(arms, "left") for arms in late]
    assert np.ptp(palms, axis=0).max() < 0.003, "the hand rests"
    there_and_back = np.abs(np.diff(late, axis=0)).sum(axis=0) - np.abs(late[-1] - late[0])
    assert there_and_back.max() < 0.005, "what still moves, an elbow, does not swing"


def test_a_hand_that_is_where_it_should_be_does_not_move(hands):
    point = hands.points(REST)[1]
    np.testing.assert_allclose(hands.reach(REST, 1, point, MOST), REST, atol=1e-9)


def test_sliders_and_poses_keep_the_same_fences(hands, judge):
    """Elbows and shoulders turned inwards: arms would go through each other and the body."""
    goal = REST + np.tile([-0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2)
    goal[[1, 8]] = -1.5, 1.5
    goal[[2, 9]] = 1.0, -1.0
    assert judge.touching(goal) > 0, "the wish itself must be one that touches"
    way = [REST]
    for _ in range(STEPS):
        way.append(hands.toward(way[-1], goal, MOST))
    check(np.array(way), judge)
    assert hands.room(way[-1]) >= LEAST
    assert np.abs(way[-1] - REST).max() > 0.5, "it goes as far as it can"


def test_beyond_a_limit_is_the_limit_and_all_joints_arrive_together(hands):
    goal = REST.copy()
    goal[[0, 3]] += -0.8, 0.4
    goal[20 - 14] = 9.0
    way = [REST]
    for _ in range(60):
        way.append(hands.toward(way[-1], goal, MOST))
    assert way[-1] == pytest.approx(np.clip(goal, LOW, HIGH))
    half = way[10] - REST
    assert half[3] / half[0] == pytest.approx(-0.5)


def test_legs_count_where_they_are(hands, judge):
    """With the left thigh raised as high as it goes, the way down ends above it."""
    point = np.array([0.24, 0.16, -0.1])
    free = hands.points(follow(hands, judge, 0, point)[-1])[0]
    pose = ROBOT.stand_joint_pos.copy()
    pose[ROBOT.joint_names.index("left_hip_pitch_joint")] = -1.6
    hands.see(pose)
    way = [REST]
    for _ in range(STEPS):
        way.append(hands.reach(way[-1], 0, point, MOST))
    assert np.linalg.norm(free - point) < 0.01
    assert np.linalg.norm(hands.points(way[-1])[0] - point) > 0.02
    assert hands.room(way[-1]) >= LEAST


def test_who_already_touches_comes_no_nearer(hands):
    arms = REST.copy()
    arms[1] = -0.4  # the left upper arm in the trunk
    assert (before := hands.room(arms)) < 0.0
    goal = arms.copy()
    goal[1] -= 0.5
    after = hands.toward(arms, goal, MOST)
    assert hands.room(after) >= before
    away = hands.toward(arms, REST, MOST)
    assert hands.room(away) > before, "but it may leave"


def test_the_programme_against_one_worked_by_hand():
    """Nearest point to (2, 1) with x <= 1, and with x + y <= 1 beside it."""
    cost, gain = np.eye(2), np.array([2.0, 1.0])
    rows, rooms = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([1.0, 1.0])
    assert minimise(cost, gain, rows[:0], rooms[:0]) == pytest.approx([2.0, 1.0])
    assert minimise(cost, gain, rows[:1], rooms[:1]) == pytest.approx([1.0, 1.0])
    assert minimise(cost, gain, rows, rooms) == pytest.approx([1.0, 0.0], abs=1e-5)
    assert minimise(cost, gain, rows, np.zeros(2)) == pytest.approx([0.0, 0.0], abs=1e-5)
