"""Sight of judged policies: the scan that they read is the true one, the map's, or flagged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.crossing import cross
from policies.eval_terrain import Ground, Plan, evaluate_terrain, lines
from policies.sight import make_sight
from policies.trials import CONTROL_HZ, HELD_OUT_SEED, Walk, World, _load
from robot.geomap import SCAN_XY
from robot.model import load_robot
from robot.terrain import make_terrain
from tests.test_eval_terrain import WALK, crossing
from tests.test_pilot import with_eyes

ROBOT = load_robot("g1")
KERBS = make_terrain("kerbs", HELD_OUT_SEED, 0.03)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped walk, which reads the scan and lets its knees give way where it is flagged."""
    weights, flag = np.zeros((187, 29), np.float32), np.zeros((1, 29), np.float32)
    flag[0, [ROBOT.joint_names.index(f"{side}_knee_joint") for side in ("left", "right")]] = 2.0
    out = tmp_path_factory.mktemp("seeing") / "seeing.onnx"
    return with_eyes(WALK, out, weights, flag)


def walk_for(policy: Path, eyes: str, seconds: float) -> tuple[Walk, np.ndarray, float]:
    """After a while: the walk, the scan that the policy read, the flag."""
    trial = crossing(policy, "kerbs", 0.03, seconds).trial
    robot, pilot = _load(policy, "g1")
    world = World(trial, robot, np.array(pilot.info.default_joint_pos))
    walk = Walk(world, robot, pilot, make_sight(eyes, trial, world, robot))
    while True:
        walk.decide(np.array([0.5, 0.0, 0.0]))
        if walk.ticks == round(seconds * CONTROL_HZ):
            break
        walk.act()
    inputs = pilot.session.inputs
    return walk, inputs["height_scan"][0].copy(), float(inputs["height_flag"][0, 0])


def true_scan(walk: Walk) -> np.ndarray:
    """(187,) m, by the terrain itself."""
    qpos = walk.world.driver.data.qpos
    w, x, y, z = qpos[3:7]
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    ahead, left = SCAN_XY.T
    cos, sin = math.cos(yaw), math.sin(yaw)
    places = np.stack([cos * ahead - sin * left, sin * ahead + cos * left], axis=-1) + qpos[:2]
    return qpos[2] - KERBS.heights(places)


def test_true_eyes_see_the_ground_as_it_is(seeing: Path) -> None:
    walk, scan, flag = walk_for(seeing, "true", 5.0)
    assert walk.world.driver.data.qpos[0] > 1.2 and np.ptp(true_scan(walk)) > 0.015
    assert flag == 0.0
    np.testing.assert_allclose(scan, true_scan(walk), atol=1e-5)


def test_eyes_that_are_off_see_nothing_and_say_so(seeing: Path) -> None:
    _, scan, flag = walk_for(seeing, "off", 0.5)
    assert flag == 1.0 and np.ptp(scan) == 0.0


def test_a_map_from_noisy_pictures_is_near_the_truth_once_it_is_trusted(tmp_path: Path) -> None:
    zeros = np.zeros((187, 29), np.float32), np.zeros((1, 29), np.float32)
    ignores = with_eyes(WALK, tmp_path / "ignores.onnx", *zeros)
    assert walk_for(ignores, "geomap", 0.5)[2] == 1.0, "it has not walked yet"
    walk, scan, flag = walk_for(ignores, "geomap", 6.0)
    assert flag == 0.0 and 0.0 < np.abs(scan - true_scan(walk)).mean() < 0.06


def test_a_policy_that_needs_its_eyes_falls_without_them(seeing: Path) -> None:
    asked = crossing(seeing, "kerbs", 0.03, 12.0)
    assert cross(replace(asked, eyes="true"))["arrived"] == 1.0
    assert cross(replace(asked, eyes="off"))["fell"] == 1.0


def test_seeing_policies_have_a_column_for_each_kind_of_eyes_and_blind_ones_one(
    seeing: Path,
) -> None:
    plan = Plan((Ground("kerbs", 0.03),), seeds=1, length=2.0, eyes=("true", "off"))
    table = evaluate_terrain([WALK, seeing], plan)
    assert lines(table)[0] == ["ground", "walk", "walk, eyes true", "walk, eyes off"]
    assert [column.eyes for column in table.columns] == ["blind", "true", "off"]
    blind, sees, off = (column.overall.arrived.value for column in table.columns)
    assert blind == sees == 100.0 and off == 0.0
    assert table.columns[0].crossings == table.columns[1].crossings, "the same trials"
