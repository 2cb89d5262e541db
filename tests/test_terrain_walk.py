"""The shipped walk that sees: what it reads, that it crosses boxes by a camera's map, and blind."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.crossing import Crossing, cross
from policies.eval_terrain import Plan, grounds_of, plan_crossings
from policies.export import BYTES_MAX
from policies.manifest import check_policy, read_policy
from policies.session import PolicySession, verify_golden
from robot.model import load_robot
from robot.runs import shipped_policies

SEEING = shipped_policies()["terrain-walk"]


def crossings(family: str, difficulty: float, eyes: str, seeds: int = 2) -> list[Crossing]:
    plan = Plan(grounds_of((family,), (difficulty,)), seeds)
    return plan_crossings(read_policy(SEEING), SEEING, "g1", plan, eyes)


def test_it_fits_is_small_reads_the_ground_and_says_where_it_comes_from():
    policy = read_policy(SEEING)
    check_policy(policy, load_robot("g1"))
    session = PolicySession(policy)
    assert verify_golden(session, policy.manifest) < 1e-5
    assert len(policy.data) < BYTES_MAX
    assert {"height_scan", "height_flag"} <= session.reads
    said = policy.manifest.provenance
    assert said["recipe"] == "terrain-walk" and said["dirty"] == "false"
    assert Path(SEEING).with_name("README.md").exists()


@pytest.mark.parametrize("crossing", crossings("boxes", 0.1, "geomap"), ids=lambda c: c.trial.seed)
def test_it_crosses_boxes_by_the_map_that_perception_makes(crossing: Crossing):
    result = cross(crossing)
    assert (result["fell"], result["arrived"]) == (0.0, 1.0), result


def test_with_the_camera_off_it_still_crosses_low_boxes():
    result = cross(crossings("boxes", 0.05, "off", 1)[0])
    assert (result["fell"], result["arrived"]) == (0.0, 1.0), result
