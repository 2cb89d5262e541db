"""The judge on uneven ground: what is crossed, by hand what is counted, and real crossings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.crossing import Crossing, cross, steer
from policies.eval_terrain import (
    Ground,
    Plan,
    evaluate_terrain,
    grounds_of,
    lines,
    markdown,
    per_100_m,
    plan_crossings,
    score,
)
from policies.trials import HELD_OUT_SEED, Trial, World, load_policy
from robot.cli import main
from robot.config import UserError
from robot.model import load_robot
from robot.runs import TerrainConfig
from robot.terrain import FAMILIES, make_terrain
from tests.conftest import make_policy

WALK = Path(__file__).parent.parent / "policies" / "walk" / "walk.onnx"
ROBOT = load_robot("g1")
GRAVITY_Z = 97  # column of the observation that make_policy builds on
STANDING = [0.0, 0.0, 0.76, 1.0, 0.0, 0.0, 0.0]


def crossing(policy: Path, family: str, difficulty: float | None, seconds: float) -> Crossing:
    ground = TerrainConfig(name=family, seed=HELD_OUT_SEED, difficulty=difficulty)
    trial = Trial(policy, "g1", family, (0.0, 0.0, 0.0), HELD_OUT_SEED, seconds, terrain=ground)
    return Crossing(trial, speed=0.5, turn_most=0.5, length=3.0)


# --- what is crossed ----------------------------------------------------------------------------


def test_held_out_means_every_family_that_nothing_is_trained_on_in_three_difficulties() -> None:
    grounds = grounds_of(["held-out", "kerbs"])
    assert {ground.family for ground in grounds} == {k for k, f in FAMILIES.items() if f.held_out}
    assert [g.difficulty for g in grounds if g.family == "kerbs"] == [0.06, 0.12, 0.18]


def test_difficulties_may_be_named_and_must_exist() -> None:
    assert grounds_of(["boxes"], [0.05, 0.3]) == (Ground("boxes", 0.05), Ground("boxes", 0.3))
    assert grounds_of(["flat"]) == (Ground("flat", 0.0),)
    with pytest.raises(UserError, match=r"'boxes': got difficulty 0.5 m .* expected 0.02 to 0.3"):
        grounds_of(["boxes"], [0.5])
    with pytest.raises(UserError, match=r"'stair' is unknown; available: held-out, flat, slopes"):
        grounds_of(["stair"])


def test_every_policy_meets_the_same_ground_and_no_faster_than_it_may_walk() -> None:
    policy = load_policy(WALK, ROBOT)
    ranges = policy.manifest.command_ranges.model_copy(update={"vx": (-0.2, 0.3)})
    slow = replace(policy, manifest=policy.manifest.model_copy(update={"command_ranges": ranges}))
    plan = Plan((Ground("boxes", 0.1), Ground("kerbs", 0.06)), seeds=3)
    ours, theirs = (plan_crossings(p, WALK, "g1", plan) for p in (policy, slow))
    assert [c.trial.terrain for c in ours] == [c.trial.terrain for c in theirs]
    assert [c.trial.seed for c in ours] == [HELD_OUT_SEED + i for i in (0, 1, 2, 0, 1, 2)]
    assert {c.trial.seed == c.trial.terrain.seed for c in ours} == {True}
    assert {(c.speed, c.trial.seconds) for c in ours} == {(0.5, 24.0)}
    assert {(c.speed, c.trial.seconds) for c in theirs} == {(0.3, 40.0)}
    still = ranges.model_copy(update={"vx": (-0.5, 0.0)})
    policy = replace(policy, manifest=policy.manifest.model_copy(update={"command_ranges": still}))
    with pytest.raises(UserError, match="vx up to 0 m/s, expected a policy that walks forward"):
        plan_crossings(policy, WALK, "g1", plan)


def test_the_operator_steers_back_to_the_line() -> None:
    asked = crossing(WALK, "kerbs", None, 1.0)
    assert steer(np.array(STANDING), asked).tolist() == [0.5, 0.0, 0.0]
    strayed = np.array([1.0, 0.2, *STANDING[2:]])  # 0.2 m to the left: aims 0.1 rad to the right
    assert steer(strayed, asked) == pytest.approx([0.5, 0.0, -0.15])
    turned = np.array(STANDING)
    turned[3], turned[6] = math.cos(-1.5), math.sin(-1.5)  # 3 rad to the right
    assert steer(turned, asked) == pytest.approx([0.5, 0.0, 0.5])


def test_the_ground_of_a_world_is_the_terrains_and_a_fall_is_measured_from_it() -> None:
    trial = crossing(WALK, "spiral-stairs", 0.2, 1.0).trial
    world = World(trial, ROBOT, ROBOT.stand_joint_pos)
    truth = make_terrain("spiral-stairs", HELD_OUT_SEED, 0.2)
    rng = np.random.default_rng(0)
    points = rng.uniform((0.0, -1.0), (6.0, 1.0), (200, 2))
    assert world.heights(points) == pytest.approx(truth.heights(points), abs=1e-9)
    assert truth.heights(points).max() > 0.5
    base = world.driver.data.qpos[:3]
    assert not world.fallen() and world.ground_below() == 0.0
    base[:2] = (5.0, 0.0)
    ground = float(truth.heights(base[:2]))
    base[2] = ground + 0.41
    assert not world.fallen()
    base[2] = ground + 0.39
    assert base[2] > 0.8 and world.fallen()


# --- what is counted ----------------------------------------------------------------------------


def test_a_rate_has_poissons_interval() -> None:
    none = per_100_m(0, 50.0)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 0)
    assert none.high == pytest.approx(2 * 1.96**2)
    four = per_100_m(4, 100.0)
    reach = 1.96 * math.sqrt(4 + 1.96**2 / 4)
    assert (four.value, four.low, four.high) == pytest.approx(
        (4.0, 4 + 1.96**2 / 2 - reach, 4 + 1.96**2 / 2 + reach)
    )
    assert math.isnan(per_100_m(0, 0.0).value)


def test_a_score_counts_arrivals_and_falls_of_all_metres() -> None:
    results = [
        {"arrived": 1.0, "fell": 0.0, "walked": 6.0, "seconds": 13.0},
        {"arrived": 0.0, "fell": 1.0, "walked": 2.0, "seconds": 5.0},
        {"arrived": 0.0, "fell": 0.0, "walked": 4.0, "seconds": 24.0},
        {"arrived": 0.0, "fell": 1.0, "walked": 4.0, "seconds": 9.0},
    ]
    found = score(results)
    assert found.arrived.value == 25.0 and found.walked == 16.0
    assert found.falls.value == pytest.approx(100 * 2 / 16)


# --- real crossings -----------------------------------------------------------------------------


def test_the_walk_steps_over_low_kerbs_and_falls_over_high_ones() -> None:
    low = cross(crossing(WALK, "kerbs", 0.03, 12.0))
    assert low["arrived"] == 1.0 and low["fell"] == 0.0 and low["walked"] == 3.0
    assert 5.0 < low["seconds"] < 12.0
    high = cross(crossing(WALK, "kerbs", 0.25, 12.0))
    assert high["arrived"] == 0.0 and 0.5 < high["walked"] < 2.0


def test_who_stands_still_neither_arrives_nor_falls(standing_policy: Path) -> None:
    result = cross(crossing(standing_policy, "boxes", 0.1, 2.0))
    assert (result["arrived"], result["fell"]) == (0.0, 0.0)
    assert result["walked"] < 0.1 and result["seconds"] == 2.0


def test_who_lives_on_a_position_limit_is_felled_as_the_runtime_would(tmp_path: Path) -> None:
    """A hand asked far beyond its limit, which the rest of the body hardly feels."""
    weights = np.zeros((29, 100))
    weights[ROBOT.joint_names.index("left_wrist_pitch_joint"), GRAVITY_Z] = -10.0
    result = cross(crossing(make_policy(tmp_path, "pressing", weights), "boxes", 0.1, 3.0))
    assert result["fell"] == 1.0 and result["arrived"] == 0.0 and result["seconds"] < 1.0


def test_the_table_says_each_ground_and_all_and_does_not_depend_on_processes() -> None:
    plan = Plan((Ground("kerbs", 0.03), Ground("gaps", 0.5)), seeds=2, length=2.0)
    table = evaluate_terrain([WALK], plan, jobs=2)
    assert evaluate_terrain([WALK], plan) == table
    (column,) = table.columns
    kerbs, gaps = column.scores
    assert kerbs.arrived.value == 100.0 and gaps.arrived.value == 0.0 and gaps.falls.n == 2
    assert column.overall.arrived.value == 50.0 and len(column.crossings) == 4
    text = lines(table)
    assert [line[0] for line in text] == ["ground", "kerbs, 3 cm", "gaps, 50 cm", "all of them"]
    assert text[1][1].startswith("100 % (34 to 100); 0.0 (0.0 to ")
    assert "seeds 1000000000 to 1000000001, held out" in markdown(table)


def test_nothing_to_cross_is_refused() -> None:
    with pytest.raises(UserError, match="0 policies, 1 kinds of ground, 2 seeds and 1 jobs"):
        evaluate_terrain([], Plan((Ground("kerbs", 0.03),), seeds=2))


def test_the_command_prints_the_table_and_writes_every_crossing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.json", tmp_path / "report"
    code = main(
        ["eval", str(WALK), "--terrain", "kerbs", "--difficulty", "0.03", "--seeds", "1",
         "--json", str(out), "--report", str(report)]
    )  # fmt: skip
    assert code == 0 and "kerbs, 3 cm" in capsys.readouterr().out
    (column,) = json.loads(out.read_text())["columns"]
    assert column["crossings"][0]["seed"] == HELD_OUT_SEED
    assert (report / "report.md").read_text().startswith("| ground | walk |")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--difficulty", "0.1"], "expected --terrain, too"),
        (["--terrain", "boxes", "--record"], "leave out --terrain"),
        (["--terrain", "moon"], "terrain 'moon' is unknown; available: held-out, flat"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(WALK), *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
