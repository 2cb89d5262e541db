"""The judge: its arithmetic by hand, its independence, and real trials of small policies."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies import evaluate as judge
from policies.evaluate import QUICK, Plan, evaluate, half, mean, plan_work, survival
from policies.trials import (
    CONTROL_HZ,
    HELD_OUT_SEED,
    PUSH_S,
    Search,
    Trial,
    World,
    _load,
    body_velocity,
    hand_bodies,
    load_policy,
    roll_out,
    run,
)
from robot.config import UserError
from robot.model import compile_model, load_robot
from robot.nodes import alive
from tests.conftest import eventually

REST = Trial(Path("none"), "g1", "rest", (0.0, 0.0, 0.0), HELD_OUT_SEED, 0.5)


def test_the_judge_imports_nothing_that_trains() -> None:
    code = (
        "import sys, policies.evaluate, policies.eval_report, policies.eval_commands\n"
        "print([m for m in sys.modules if m.split('.')[-1] in ('task', 'terms', 'train', 'rewards')"
        " and m.startswith('policies') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_who_is_killed_leaves_no_process_that_judges_on() -> None:
    code = (
        "import os, time\nfrom policies.evaluate import share_out\n"
        "if __name__ == '__main__':\n"
        "    for pid in share_out([0] * 9, 2, 'processes', worker): print(pid, flush=True)\n"
    ).replace("worker", "__import__('tests.test_evaluate', fromlist=['x']).slow_pid")
    judge_ = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert judge_.stdout
    worker = int(judge_.stdout.readline())
    assert alive(worker)
    judge_.kill()
    judge_.wait()
    judge_.stdout.close()
    eventually(lambda: not alive(worker), 5.0)


def slow_pid(_: int) -> int:
    """Work of a process: who it is, after a while."""
    time.sleep(0.3)
    return os.getpid()


def test_wilsons_interval_of_all_64_surviving_is_94_to_100() -> None:
    figure = survival([{"fell": 0.0}] * 64)
    assert figure.value == 100.0 and figure.high == pytest.approx(100.0)
    assert figure.low == pytest.approx(100 * 64 / (64 + 1.96**2))


def test_half_survive_is_50_with_an_interval_about_it() -> None:
    figure = survival([{"fell": 0.0}, {"fell": 1.0}] * 8)
    assert figure.value == 50.0
    assert figure.low + figure.high == pytest.approx(100.0) and figure.low > 25.0


def test_a_mean_leaves_out_what_could_not_be_measured() -> None:
    figure = mean([1.0, 3.0, math.nan])
    assert (figure.value, figure.n) == (2.0, 2)
    assert 1.0 <= figure.low <= 2.0 <= figure.high <= 3.0
    assert mean([]).n == 0


def test_half_of_the_draws_is_a_level_that_was_tried_and_says_when_it_is_the_last() -> None:
    assert half([30.0, 40.0, 80.0, 90.0], most=155.0).value == 40.0
    assert half([30.0, 40.0], most=155.0).bound == ""
    assert half([155.0], most=155.0).bound == "≥"


def test_velocity_is_in_the_heading_frame() -> None:
    turned = math.pi / 2  # faces +y and moves along +y: forward
    qpos = np.tile([0, 0, 0.8, math.cos(turned / 2), 0, 0, math.sin(turned / 2)], (5, 1))
    qvel = np.tile([0.0, 0.7, 0.0, 0.0, 0.0, 0.0], (5, 1))
    assert body_velocity(qpos, qvel) == pytest.approx(np.tile([0.7, 0.0, 0.0], (5, 1)), abs=1e-12)


def test_a_search_finds_the_first_level_that_fells(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def roll(trial: Trial, *_: object) -> object:
        seen.append(trial.push_impulse)
        return type("R", (), {"fell_at": 1.0 if trial.push_impulse > 42 else None})

    monkeypatch.setattr("policies.trials.roll_out", roll)
    monkeypatch.setattr("policies.trials._load", lambda *_: (None, None))
    result = run(Search(REST, "push_impulse", judge.PUSH_LEVELS))
    assert judge.PUSH_LEVELS[int(result["first"])] == 45.0
    assert len(seen) == result["trials"] == 5
    assert run(Search(REST, "push_impulse", (5.0, 10.0)))["first"] == 2.0


# --- what is run --------------------------------------------------------------------------------


def test_the_command_grid_has_64_episodes_with_seeds_of_their_own(standing_policy: Path) -> None:
    policy = load_policy(standing_policy, load_robot("g1"))
    work = plan_work(policy, standing_policy, "g1", Plan())
    walks = [w for w in work if isinstance(w, Trial) and w.group in judge.COMMAND_GROUPS]
    assert len(walks) == 64 and len({w.seed for w in walks}) == 64
    assert min(w.seed for w in walks) == HELD_OUT_SEED
    assert {w.seconds for w in walks} == {20.0}


def test_a_policy_is_commanded_inside_its_own_range_only(standing_policy: Path) -> None:
    policy = load_policy(standing_policy, load_robot("g1"))
    ranges = policy.manifest.command_ranges.model_copy(update={"vx": (-0.2, 0.6), "vy": (0.0, 0.0)})
    policy = replace(policy, manifest=policy.manifest.model_copy(update={"command_ranges": ranges}))
    work = plan_work(policy, standing_policy, "g1", Plan())
    trials = [w if isinstance(w, Trial) else w.trial for w in work]
    commands = np.array([velocity for trial in trials for _, velocity in trial.script])
    assert commands.min(axis=0).tolist() == [-0.2, 0.0, -1.0]
    assert commands.max(axis=0).tolist() == [0.6, 0.0, 1.0]


def test_a_seed_draws_one_world_and_another_seed_another() -> None:
    robot = load_robot("g1")
    pose = np.array(robot.stand_joint_pos)
    one, same = World(REST, robot, pose), World(REST, robot, pose)
    other = World(replace(REST, seed=HELD_OUT_SEED + 1), robot, pose)
    nominal = compile_model(robot)
    assert (one.driver.model.body_mass == same.driver.model.body_mass).all()
    assert (one.driver.model.body_mass != other.driver.model.body_mass)[1:].all()
    feet = one.foot_of_geom >= 0
    friction = one.driver.model.geom_friction[:, 0]
    assert 0.4 <= friction[feet].min() == friction[feet].max() <= 1.0
    assert (friction[~feet] == nominal.geom_friction[~feet, 0]).all()
    assert one.driver.model.opt.timestep == 0.002


def test_payload_hangs_on_both_hands() -> None:
    robot = load_robot("g1")
    pose = np.array(robot.stand_joint_pos)
    bare, laden = World(REST, robot, pose), World(replace(REST, payload=3.0), robot, pose)
    more = laden.driver.model.body_mass - bare.driver.model.body_mass
    hands = hand_bodies(bare.driver.model, robot)
    assert [bare.driver.model.body(i).name for i in hands] == [
        "left_wrist_yaw_link", "right_wrist_yaw_link",
    ]  # fmt: skip
    assert more[hands] == pytest.approx([1.5, 1.5]) and more.sum() == pytest.approx(3.0)


def test_a_push_changes_momentum_by_its_impulse_in_its_direction(standing_policy: Path) -> None:
    robot, pilot = _load(standing_policy, "g1")
    short = replace(REST, push_angle=math.pi / 2, push_at=0.0, seconds=PUSH_S)

    def speed(impulse: float) -> float:
        seen = roll_out(replace(short, push_impulse=impulse), robot, pilot)
        assert len(seen.qvel) == round((1.0 + PUSH_S) * CONTROL_HZ)
        return seen.qvel[-1, 1]

    assert speed(40.0) > speed(20.0) > speed(0.0) + 0.1  # m/s, to the left; the floor holds back


# --- real trials --------------------------------------------------------------------------------


def test_a_standing_policy_stays_up_and_falls_when_pushed_hard(
    standing_policy: Path, tmp_path: Path
) -> None:
    stands = run(replace(REST, policy=standing_policy, seconds=2.0))
    assert stands["fell"] == 0.0 and stands["drift"] < 0.05 and stands["steps"] == 0.0
    pushed = replace(
        REST, policy=standing_policy, seconds=3.0, push_impulse=300.0, cell=(0.0, 0.0, 0.0)
    )
    fell = run(pushed)
    assert fell["fell"] == 1.0 and 0.0 < fell["survived_s"] < 3.0


def test_after_a_fall_the_robot_counts_as_standing_still(standing_policy: Path) -> None:
    walk = replace(
        REST, policy=standing_policy, seconds=6.0, push_impulse=300.0, script=((0.0, (1.0, 0, 0)),)
    )
    result = run(walk)
    assert result["fell"] == 1.0 and result["survived_s"] < 2.0
    assert result["error_vx"] > 0.6  # 1 m/s was asked in all windows


def test_the_same_trial_gives_the_same_numbers(standing_policy: Path) -> None:
    trial = replace(REST, policy=standing_policy, seconds=1.2, push_impulse=10.0)
    assert run(trial) == run(trial)


def test_the_result_does_not_depend_on_the_number_of_processes(
    standing_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = plan_work(load_policy(standing_policy, load_robot("g1")), standing_policy, "g1", QUICK)[
        :3
    ]
    assert list(judge.share_out(few, 1, "processes")) == list(judge.share_out(few, 2, "processes"))


def test_ray_gives_the_same_result(standing_policy: Path) -> None:
    few = plan_work(load_policy(standing_policy, load_robot("g1")), standing_policy, "g1", QUICK)[
        :2
    ]
    assert list(judge.share_out(few, 1, "ray")) == list(judge.share_out(few, 1, "processes"))


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it now raises ImportError
    with pytest.raises(UserError, match=r'pip install plexus\[scale\]", or use --jobs N'):
        list(judge.share_out([REST], 1, "ray"))


def test_nothing_to_judge_and_impossible_amounts_are_refused(standing_policy: Path) -> None:
    with pytest.raises(UserError, match="expected at least one policy file"):
        evaluate([])
    with pytest.raises(UserError, match="0 jobs; expected at least 2 s and 1 of each"):
        evaluate([standing_policy], jobs=0)
    with pytest.raises(UserError, match="no such file"):
        evaluate([standing_policy.with_name("other.onnx")])


@pytest.mark.parametrize(("name", "reached"), [("ppo", 0.39), ("fastsac", 0.42)])
def test_public_policies_reach_the_speeds_measured_elsewhere(
    public_policy, name: str, reached: float
) -> None:
    path = public_policy(name)
    trial = replace(REST, policy=path, seconds=4.0, script=((0.0, (0.5, 0.0, 0.0)),))
    result = run(trial)
    assert result["fell"] == 0.0
    assert result["vx"] == pytest.approx(reached, abs=0.03)
