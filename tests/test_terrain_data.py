"""The data of TerrainNet: real walks that come out the same again, and labels that are true."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from policies import terrain_data
from policies.map_eval import CONDITIONS
from policies.terrain_data import EDGE_NEAR, Episode, Ground, episodes, generate, is_held_out
from policies.trials import HELD_OUT_SEED
from robot.geomap import SCAN_XY
from robot.terrain import FAMILIES, Box, Terrain, make_terrain

CLEAN = CONDITIONS["clean"].camera(0)
STAIRS = Episode("stairs-up", 0.06, 20, 3.5, CLEAN, (1.0, 1.0), 0.0)


@pytest.fixture(scope="module")
def stairs():
    return terrain_data.walk(STAIRS)


def test_a_walk_is_the_same_again_also_in_another_process(stairs):
    here = terrain_data.walk(STAIRS)
    there = list(generate([STAIRS, dataclasses.replace(STAIRS, seed=21, seconds=1.0)], jobs=2))
    for frames in (here, there[0]):
        assert frames.keys() == stairs.keys()
        assert all(np.array_equal(frames[name], stairs[name]) for name in stairs)
    assert not np.array_equal(there[1]["height"], stairs["height"][: len(there[1]["height"])])


def test_frames_come_at_the_cameras_rate_and_the_robot_stays_up(stairs):
    assert 95 <= len(stairs["time"]) <= 105  # 30 Hz less the first latency
    pelvis = stairs["height"][:, np.flatnonzero((np.abs(SCAN_XY) < 1e-9).all(axis=1))[0]]
    assert (pelvis > 0.55).all() and (pelvis < 0.85).all()
    assert stairs["steps"].dtype == np.uint16 and stairs["steps"].shape[1:] == (48, 64)


def test_where_the_camera_sees_the_map_is_right(stairs):
    settled = stairs["time"] > 1.0
    error = np.abs(stairs["prior_height"] - stairs["height"])[settled]
    visible = stairs["visible"][settled]
    assert 0.15 < visible.mean() < 0.45
    # A scan in another order, frame or sign would be off by a step somewhere.
    assert error[visible].mean() < 0.012
    x = np.broadcast_to(SCAN_XY[:, 0], visible.shape)
    assert x[visible].min() > -0.1 and visible[x > 0.65].mean() > 0.6


def test_a_mount_that_is_off_shows_in_the_map(stairs):
    pitched = terrain_data.walk(
        dataclasses.replace(STAIRS, camera=CONDITIONS["degraded"].camera(1))
    )
    visible = pitched["visible"]
    error = np.abs(pitched["prior_height"] - pitched["height"])[visible].mean()
    assert error > 2 * np.abs(stairs["prior_height"] - stairs["height"])[stairs["visible"]].mean()


def test_the_truth_around_a_robot_is_the_terrains():
    terrain = make_terrain("boxes", seed=4)
    ground = Ground(terrain)
    pose = np.array([2.0, -0.5, 0.7, np.cos(0.4), 0.0, 0.0, np.sin(0.4)])
    xy, height = ground.around(pose)
    np.testing.assert_array_equal(height, terrain.heights(xy))
    assert np.ptp(height) > 0.02
    ahead = xy[np.flatnonzero(np.isclose(SCAN_XY, (0.8, 0.0)).all(axis=1))[0]]
    np.testing.assert_allclose(ahead, pose[:2] + 0.8 * np.array([np.cos(0.8), np.sin(0.8)]))


def test_edges_are_steps_above_8_cm_and_what_is_near_them():
    step = Terrain(
        (Box((2.0, 0.0, 0.1), (2.0, 20.0, 0.2)), Box((-2.0, 0.0, 0.06), (2.0, 20.0, 1.0)))
    )
    ground = Ground(step)
    x = np.array([0.8, 0.92, 1.0, 1.08, 1.2, 2.0, -1.0, -1.05, 50.0])
    near = ground.near_edge(np.stack([x, np.full_like(x, 0.3)], axis=1))
    assert near.tolist() == [False, True, True, True, False, False, False, False, False]
    slope = Ground(make_terrain("slopes", difficulty=0.5))
    assert not slope.near_edge(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])).any()
    assert EDGE_NEAR == 0.1


def test_training_sees_no_held_out_family_and_the_judge_no_seed_of_training():
    trained, judged = episodes(30, 1, 12.0), episodes(8, HELD_OUT_SEED, 12.0, held_out=True)
    assert {e.family for e in trained} == {n for n, f in FAMILIES.items() if not f.held_out}
    assert {e.family for e in judged} == {n for n, f in FAMILIES.items() if f.held_out}
    assert not any(is_held_out(e.seed) for e in trained) and all(
        is_held_out(e.seed) for e in judged
    )
    for e in trained:
        family = FAMILIES[e.family]
        assert e.difficulty is None or family.easy <= e.difficulty <= family.hard
    assert trained[:8] == episodes(8, 1, 12.0)  # more of them begin with the same
