"""The shipped policy is what it says, walks while its arms move, and stands still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.evaluate import ROWS
from policies.export import BYTES_MAX
from policies.manifest import check_policy, read_policy
from policies.session import PolicySession, verify_golden
from policies.trials import HELD_OUT_SEED, Trial, run
from robot.messages import Truth
from robot.model import load_robot
from robot.pilot import load_pilot
from robot.runs import load_run, shipped_policies
from sim2real.lockstep import Lockstep, walk

ROBOT = load_robot("g1")
WALK = shipped_policies()["walk"]
REST = Trial(WALK, "g1", "rest", (0.0, 0.0, 0.0), HELD_OUT_SEED + 5000, 5.0)


def test_it_fits_is_small_and_says_where_it_comes_from():
    policy = read_policy(WALK)
    check_policy(policy, ROBOT)
    assert verify_golden(PolicySession(policy), policy.manifest) < 1e-5
    assert len(policy.data) < BYTES_MAX
    said = policy.manifest.provenance
    assert {"recipe", "recipe_sha256", "commit", "seed", "steps", "hours", "machine"} <= set(said)
    assert said["dirty"] == "false"
    measured = {key for key in said if key.startswith("eval_")}
    assert measured == {f"eval_{row.key}" for row in ROWS} | {"eval_seeds"}


def test_a_run_takes_it_where_nothing_else_is_said():
    assert load_run("sim").policy == WALK
    assert load_run("sim", {"policy": None}).policy is None


def test_it_walks_with_swinging_arms_that_follow_their_command():
    config = load_run("sim", {"operator.arms": "swinging", "seed": 3})
    lockstep = Lockstep(config, load_pilot(config, ROBOT), (0.5, 0.0, 0.0), robot=ROBOT)
    arms: list[np.ndarray] = []

    def look(truth: Truth) -> None:
        arms.append(truth.joint_pos[ROBOT.arm_joints].copy())

    lockstep.on_truth = look
    result = walk(lockstep, 20.0)
    assert not result["fell"] and result["modes"][-1][1] == "POLICY"
    vx, vy, yaw = result["mean_velocity_b"]
    assert vx == pytest.approx(0.5, abs=0.12) and abs(vy) < 0.12 and abs(yaw) < 0.2
    moved = np.ptp(np.array(arms)[-400:], axis=0)
    names = [ROBOT.joint_names[row] for row in ROBOT.arm_joints]
    assert 0.5 < moved[names.index("left_shoulder_pitch_joint")] < 1.1  # 0.8 is commanded
    assert 0.3 < moved[names.index("right_elbow_joint")] < 0.9  # 0.6


@pytest.mark.parametrize(
    ("velocity", "key"),
    [((0.0, 0.3, 0.0), "vy"), ((0.0, 0.0, 0.5), "yaw"), ((-0.5, 0.0, 0.0), "vx")],
)
def test_it_goes_sideways_turns_and_goes_backward(velocity: tuple[float, float, float], key: str):
    trial = replace(REST, group="grid", script=((0.0, velocity),), seconds=8.0)
    result = run(trial)
    assert result["fell"] == 0.0
    assert result[f"error_{key}"] < 0.2


def test_it_stands_quietly_at_zero_command():
    result = run(REST)
    assert result["fell"] == 0.0
    assert result["steps"] <= 2 and result["joint_speed"] < 0.3
    assert result["drift"] < 0.03


def test_its_page_is_beside_it():
    assert Path(WALK).with_name("README.md").exists()
