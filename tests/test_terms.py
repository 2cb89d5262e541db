"""Each term against a value worked by hand; the mirror is its own inverse."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from policies import rewards, terms
from policies.recipe import load_recipe
from policies.rewards import CRITIC, REWARDS, State
from policies.task import make_mirror
from policies.terms import OBSERVATIONS, Observation, Sensors, make_body
from robot.model import load_robot

RECIPE, ROBOT = load_recipe("walk"), load_robot("g1")
BODY = make_body(RECIPE, ROBOT)
N, A = 29, 14
KNEE = ROBOT.joint_names.index("left_knee_joint")
RIGHT_KNEE = ROBOT.joint_names.index("right_knee_joint")


def command(vx: float = 0.0, vy: float = 0.0, yaw: float = 0.0, height: float = 0.75) -> Tensor:
    arms = BODY.default_joint_pos[BODY.arms]
    return torch.cat([torch.tensor([vx, vy, yaw, height]), arms]).unsqueeze(0)


def sensors(**given: Tensor) -> Sensors:
    values = {
        "joint_pos": BODY.default_joint_pos.unsqueeze(0),
        "joint_vel": torch.zeros(1, N),
        "imu_quat_wxyz": torch.tensor([[1.0, 0, 0, 0]]),
        "imu_gyro": torch.zeros(1, 3),
        "command": command(),
        "last_action": torch.zeros(1, N),
        "phase": torch.zeros(1, 1),
        "height_scan": torch.full((1, 187), BODY.nominal_height),
        "height_flag": torch.zeros(1, 1),
    }
    return Sensors(**(values | given))


def state(**given: Tensor) -> State:
    values: dict[str, Any] = {field.name: torch.zeros(1) for field in fields(State)}
    pairs = ("swing", "foot_height", "lift", "foot_tilt", "foot_speed", "foot_contact")
    values |= {name: torch.zeros(1, 2) for name in pairs}
    values |= {name: torch.zeros(1, 3) for name in ("velocity", "ang_vel", "velocity_error")}
    joints = ("joint_vel", "effort", "action", "last_action", "older_action")
    values |= {name: torch.zeros(1, N) for name in joints}
    pose = BODY.default_joint_pos.unsqueeze(0)
    values |= {"body": BODY, "command": command(), "joint_pos": pose, "reference": pose}
    values |= {"gravity": torch.tensor([[0.0, 0, -1]]), "finite": torch.tensor([True])}
    values.update(given)
    return State(**values)


def one(joint: int, value: float) -> Tensor:
    return torch.eye(N)[joint : joint + 1] * value


def test_observation_terms_have_the_values_worked_by_hand():
    half = math.pi / 8  # a pitch of 45 degrees nose down
    tilted = torch.tensor([[math.cos(half), 0, math.sin(half), 0]])
    arms = command(0.5, -0.2, 0.3, 0.7)
    arms[0, 4] += 0.25
    given = sensors(
        imu_quat_wxyz=tilted, imu_gyro=torch.tensor([[1.0, 2, 3]]), command=arms,
        joint_pos=BODY.default_joint_pos.unsqueeze(0) + 0.1, joint_vel=torch.full((1, N), 2.0),
        last_action=one(3, 0.5), phase=torch.tensor([[0.25]]),
        height_scan=torch.full((1, 187), BODY.nominal_height + 0.1),
    )  # fmt: skip
    root = math.sqrt(0.5)
    expected = {
        "base_ang_vel": [1, 2, 3],
        "projected_gravity": [root, 0, -root],
        "velocity_command": [0.5, -0.2, 0.3],
        "height_command": [-0.05],
        "arm_command": [0.25] + [0] * 13,
        "joint_pos": [0.1] * N,
        "joint_vel": [2.0] * N,
        "last_action": one(3, 0.5)[0].tolist(),
        "clock": [1, 0],
        "height_scan": [0.1] * 187,
        "height_flag": [0],
    }
    assert expected.keys() == OBSERVATIONS.keys()
    for name, values in expected.items():
        got, by_hand = OBSERVATIONS[name][0](given, BODY), torch.tensor([values]).float()
        torch.testing.assert_close(got, by_hand, atol=1e-6, rtol=0)


def test_a_command_below_the_threshold_is_standing_with_a_hidden_clock():
    given = sensors(command=command(0.06, 0.06, 0.0))
    assert terms.velocity_command(given, BODY).abs().sum() == 0
    assert terms.clock(given, BODY).abs().sum() == 0
    torch.testing.assert_close(
        terms.target(torch.zeros(1, N), given, BODY), BODY.default_joint_pos.unsqueeze(0)
    )


def test_a_swing_that_has_begun_is_finished_before_the_clock_stops():
    phase, seen = torch.tensor([[0.3]]), []
    for _ in range(12):
        phase = terms.advance(phase, command(), BODY)
        seen.append(round(phase.item(), 4))
    assert seen[:8] == [0.325, 0.35, 0.375, 0.4, 0.425, 0.45, 0.475, 0.5] and seen[8:] == [0.5] * 4
    assert terms.advance(torch.tensor([[0.99]]), command(1.0), BODY).item() == pytest.approx(0.015)


def test_the_step_bends_the_swinging_leg_only():
    given = sensors(command=command(0.5), phase=torch.tensor([[0.225]]))  # the top of left's swing
    moved = terms.target(torch.zeros(1, N), given, BODY)[0] - BODY.default_joint_pos
    assert moved[KNEE].item() == pytest.approx(0.8) and abs(moved[RIGHT_KNEE]) < 1e-6
    right = terms.target(torch.zeros(1, N), given._replace(phase=given.phase + 0.5), BODY)[0]
    assert (right - BODY.default_joint_pos)[RIGHT_KNEE].item() == pytest.approx(0.8, abs=1e-5)


def test_the_target_is_scaled_by_effort_over_stiffness_and_follows_the_arms():
    asked = command()
    asked[0, 4] += 0.5
    got = terms.target(one(KNEE, 2.0), sensors(command=asked), BODY)[0] - BODY.default_joint_pos
    assert got[KNEE].item() == pytest.approx(2 * 0.25 * 139 / 99.0984278, rel=1e-5)
    assert got[15].item() == pytest.approx(0.5)
    assert BODY.action_scale[15].item() == pytest.approx(0.4 * 0.25 * 25 / 14.2506231, rel=1e-5)


REWARD_CASES: dict[str, tuple[dict, dict, float]] = {
    "track_linear": ({"command": command(0.5)}, {"sigma": 0.25}, math.exp(-1)),
    "track_linear_mean": (
        {"velocity_error": torch.tensor([[0.3, 0.4, 9.0]])}, {"sigma": 0.25}, math.exp(-1)),
    "track_yaw": ({"velocity_error": torch.tensor([[9, 9, 0.5]])}, {"sigma": 0.25}, math.exp(-1)),
    "alive": ({}, {}, 1.0),
    "foot_phase": (
        {"swing": torch.tensor([[1.0, 0]]), "foot_height": torch.tensor([[0.05, 0]]),
         "moving": torch.ones(1)}, {"height": 0.1, "sigma": 0.0025}, math.exp(-1)),
    "contact_phase": (
        {"swing": torch.tensor([[0.5, 0]]), "foot_contact": torch.tensor([[0.0, 1]]),
         "moving": torch.ones(1)}, {}, 2.0),
    "stand_contact": ({"foot_contact": torch.ones(1, 2)}, {}, 1.0),
    "upright": ({"gravity": torch.tensor([[0.3, 0.4, -0.866]])}, {}, 0.25),
    "height": ({"base_height": torch.tensor([0.65])}, {}, 0.01),
    "vertical_speed": ({"velocity": torch.tensor([[1, 1, 0.2]])}, {}, 0.04),
    "rocking": ({"ang_vel": torch.tensor([[1, 2, 9.0]])}, {}, 5.0),
    "posture": (
        {"joint_pos": BODY.default_joint_pos.unsqueeze(0) + one(KNEE, 0.2)},
        {"joints": torch.full((N,), 0.5)}, 0.02),
    "action_rate": ({"action": one(0, 3.0), "last_action": one(0, 1.0)}, {}, 4.0),
    "action_jerk": ({"action": one(0, 3.0), "last_action": one(0, 1.0)}, {}, 1.0),
    "effort": ({"effort": one(2, 10.0)}, {}, 100.0),
    "joint_speed": ({"joint_vel": one(2, 3.0)}, {}, 9.0),
    "stand_still": ({"joint_vel": one(2, 3.0), "moving": torch.ones(1)}, {}, 0.0),
    "joint_limits": (
        {"joint_pos": BODY.default_joint_pos.unsqueeze(0)
         + one(KNEE, 2.8798 - 0.669 + 0.1)}, {"margin": 0.05}, 0.15),
    "braked": (  # 2 rad/s could be braked 0.05 rad before the stop, 1 is left of a band of 2
        {"joint_pos": BODY.default_joint_pos.unsqueeze(0) + one(KNEE, 2.8798 - 0.669 - 0.05),
         "joint_vel": one(KNEE, 1.0), "effort": one(KNEE, 1.0)}, {}, 0.5),
    "slip": (
        {"foot_speed": torch.tensor([[2.0, 3]]), "foot_contact": torch.tensor([[1.0, 0]])},
        {}, 4.0),
    "flat_foot": ({"foot_tilt": torch.tensor([[0.1, 0.2]])}, {}, 0.3),
    "overhang": ({"overhang": torch.tensor([[0.25, 0.5]])}, {}, 0.75),
    "feet_apart": ({"foot_gap": torch.tensor([0.1])}, {"distance": 0.16}, 0.06),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REWARDS))
def test_a_reward_has_the_value_worked_by_hand(name: str):
    given, params, expected = REWARD_CASES[name]
    assert REWARDS[name](state(**given), **params).item() == pytest.approx(expected, abs=1e-5)


def test_terminations_are_true_beyond_their_limit_only():
    lean = torch.tensor([[math.sin(1.1), 0, -math.cos(1.1)]])
    assert rewards.tilted(state(gravity=lean), angle=1.0) and not rewards.tilted(
        state(gravity=lean), angle=1.2
    )
    low = state(base_height=torch.tensor([0.39]))
    assert rewards.sunk(low, height=0.4) and not rewards.sunk(low, height=0.3)
    limp = state(lift=torch.tensor([[0.09, 0.03]]))
    assert rewards.dragging(limp, height=0.04) and not rewards.dragging(limp, height=0.02)
    assert rewards.diverged(state(finite=torch.tensor([False]))) and not rewards.diverged(state())


def test_levels_grow_as_the_curriculum_says():
    assert rewards.ramp(0.1, start=0.2, end=0.6, low=0.5) == 0.5
    assert rewards.ramp(0.4, start=0.2, end=0.6, low=0.5) == pytest.approx(0.75)
    assert rewards.ramp(0.9, start=0.2, end=0.6) == 1.0
    levels = [rewards.hill(done, start=0.1, end=0.3, ease=0.6, final=0.5) for done in (
        0.1, 0.2, 0.3, 0.6, 0.8, 1.0,
    )]  # fmt: skip
    assert levels == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.75, 0.5])


def test_the_mirror_is_its_own_inverse_and_exchanges_the_sides():
    mirror = make_mirror(RECIPE, BODY)
    wide = sum(len(OBSERVATIONS[row.name][1](BODY)[0]) for row in RECIPE.observation)
    extra = {name: len(entry[1](BODY)[0]) for name, entry in CRITIC.items()}
    critic = wide + sum(extra[row.name] for row in RECIPE.critic if row.name in extra)
    for image, width in ((mirror.policy, wide), (mirror.critic, critic), (mirror.action, N)):
        x = torch.randn(3, width)
        assert not torch.equal(image(x), x)
        torch.testing.assert_close(image(image(x)), x, rtol=0, atol=0)
    joints = torch.zeros(N)
    joints[KNEE], joints[1], joints[12] = 1.0, 2.0, 3.0  # left knee, left hip roll, waist yaw
    got = mirror.action(joints)
    assert got[RIGHT_KNEE] == 1 and got[7] == -2 and got[12] == -3


def test_history_is_filled_at_the_start_and_holds_the_oldest_first():
    rows = [row.model_copy(update={"history": 3}) if row.name == "clock" else row
            for row in RECIPE.observation if row.name in ("clock", "base_ang_vel")]  # fmt: skip
    terms_ = Observation(rows, BODY)
    past = {"clock": torch.zeros(1, 2, 2)}
    for step, expected in ((1.0, [1, 1, 1]), (2.0, [1, 1, 2]), (3.0, [1, 2, 3])):
        frame = torch.tensor([[4.0, 8, 12, step, -step]])
        first = torch.tensor([[float(step == 1)]])
        seen, past = terms_.assemble(frame, past, first)
        assert seen[0].tolist() == [1, 2, 3, *(v for x in expected for v in (x, -x))]
