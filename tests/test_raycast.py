"""Ray-cast depth: known by hand on a plane, equal to MuJoCo's renderer, turned with the body."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from robot.messages import DepthKind
from robot.model import build_spec, load_robot
from robot.raycast import OWN_GROUPS, DepthRays
from tests.conftest import ROOT

ROBOT = load_robot("g1")
HEAD = ROBOT.cameras["head"]


def scene(boxes: int = 0) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The robot in its stand pose, a little turned and tilted, before `boxes` boxes."""
    spec, rng = build_spec(ROBOT), np.random.default_rng(3)
    for _ in range(boxes):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, group=0, size=[0.15, 0.15, rng.uniform(0.02, 0.2)],
            pos=[rng.uniform(0.3, 2.5), rng.uniform(-1, 1), 0],
        )  # fmt: skip
    model = spec.compile()
    data = mujoco.MjData(model)
    quat = np.array([0.98, 0.05, 0.1, 0.1])
    data.qpos[:7] = (0, 0, 0.78, *(quat / np.linalg.norm(quat)))
    data.qpos[7:] = ROBOT.stand_joint_pos
    mujoco.mj_forward(model, data)
    return model, data


def test_a_plane_is_where_geometry_says():
    """z = height / (minus the vertical part of a ray with z = 1), pixel by pixel."""
    model, data = scene()
    depth = DepthRays(model, HEAD).depth(data)
    link = data.body("torso_link")
    turn = link.xmat.reshape(3, 3) @ HEAD.rotation
    eye = link.xpos + link.xmat.reshape(3, 3) @ HEAD.position
    fx, fy, cx, cy = HEAD.intrinsics
    for row, column in ((0, 0), (0, 63), (24, 32), (40, 10)):
        ray = turn @ [(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0]
        assert depth[row, column] == pytest.approx(-eye[2] / ray[2], rel=1e-6)


def test_range_is_longer_than_depth_by_what_the_corner_is_off_the_axis():
    model, data = scene()
    z = DepthRays(model, HEAD).depth(data)
    ranged = dataclasses.replace(HEAD, depth_kind=DepthKind.RANGE)
    ratio = DepthRays(model, ranged).depth(data) / z
    fx, fy, _, _ = HEAD.intrinsics
    assert ratio[24, 32] == pytest.approx(1.0, abs=1e-3)
    # facts of this camera: 51 % in the corners
    assert ratio[0, 0] == pytest.approx(np.sqrt(1 + (31.5 / fx) ** 2 + (23.5 / fy) ** 2), rel=1e-6)
    assert 1.49 < ratio[0, 0] < 1.52


def test_the_picture_turns_with_the_body():
    """A yaw-aligned camera would see the same floor however the torso pitches; a real one not."""
    model, data = scene()
    rays = DepthRays(model, HEAD)
    before = rays.depth(data)
    data.qpos[7 + ROBOT.joint_names.index("waist_pitch_joint")] += 0.2
    mujoco.mj_kinematics(model, data)
    after = rays.depth(data)
    assert after[0].mean() < 0.8 * before[0].mean()


def test_own_arms_are_seen_and_nothing_is_where_nothing_is():
    model, data = scene()
    own = DepthRays(model, HEAD, OWN_GROUPS)
    before = np.count_nonzero(own.depth(data))
    for name in ("left_shoulder_pitch_joint", "right_shoulder_pitch_joint"):
        data.qpos[7 + ROBOT.joint_names.index(name)] = -0.9
    mujoco.mj_kinematics(model, data)
    arms = own.depth(data)
    assert before + 50 < np.count_nonzero(arms) < arms.size / 2
    world = DepthRays(model, HEAD).depth(data)
    np.testing.assert_array_equal(world[arms > 0], arms[arms > 0])


def test_a_camera_inside_its_own_housing_still_looks_out():
    model, data = scene()
    back = dataclasses.replace(HEAD, position=HEAD.position - [0.02, 0.0, 0.0])
    assert DepthRays(model, back).depth(data).min() > 0.3


RENDER = """
import mujoco, sys
import numpy as np
from tests.test_raycast import HEAD, scene
model, data = scene(boxes=40)
with mujoco.Renderer(model, *HEAD.shape) as renderer:
    renderer.enable_depth_rendering()
    renderer.update_scene(data, camera="head")
    np.save(sys.stdout.buffer, renderer.render())
"""


def test_it_equals_mujocos_renderer():
    """In a process of its own, since MuJoCo chooses its GL once."""
    done = subprocess.run(
        [sys.executable, "-c", RENDER], capture_output=True, cwd=ROOT,
        env={"MUJOCO_GL": "egl"} | os.environ, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no GL: {done.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    start = done.stdout.index(b"\x93NUMPY")
    rendered = np.load(io.BytesIO(done.stdout[start:]))
    depth = DepthRays(*scene(boxes=40)[:1], HEAD).depth(scene(boxes=40)[1])
    seen = depth > 0
    error = np.abs(rendered - depth)[seen]
    assert seen.mean() > 0.95
    # A silhouette on a pixel's edge may fall to either side.
    assert np.median(error) < 1e-5 and np.percentile(error, 99) < 2e-3
