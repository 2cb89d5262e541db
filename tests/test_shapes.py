"""The robot in pictures: each body where MuJoCo has it, and the ground as the run's terrain is."""

from __future__ import annotations

import mujoco
import numpy as np

from robot.console.shapes import DARK, Shapes
from robot.messages import Truth
from robot.model import compile_model, load_robot
from robot.terrain import make_terrain
from robot.topics import make_codecs

ROBOT = load_robot("g1")


def test_bodies_are_where_mujoco_has_them():
    truth: Truth = make_codecs(ROBOT)["truth"].new()
    truth.base_pos_w[:], truth.base_quat_wxyz[:] = (1.0, 2.0, 0.8), (0.8, 0.0, 0.6, 0.0)
    truth.joint_pos[:] = ROBOT.stand_joint_pos
    shapes = Shapes(ROBOT)
    poses = np.frombuffer(shapes.poses(truth), np.float32).reshape(-1, 7)
    model = compile_model(ROBOT)
    data = mujoco.MjData(model)
    data.qpos[:] = np.concatenate([[1.0, 2.0, 0.8, 0.8, 0.0, 0.6, 0.0], ROBOT.stand_joint_pos])
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(poses[:, :3], data.xpos[1:], atol=1e-6)
    np.testing.assert_allclose(poses[:, 3:], data.xquat[1:], atol=1e-6)
    bodies = {row["body"] for row in shapes.geoms()}
    assert len(shapes.geoms()) > 40 and min(bodies) == 0 and max(bodies) < len(poses)


def test_the_ground_is_the_terrains_boxes_in_the_world():
    terrain = make_terrain("stairs-up", 3, 0.1)
    rows = [row for row in Shapes(ROBOT, terrain).geoms() if row["body"] < 0]
    assert len(rows) == len(terrain.boxes) > 5
    for row, box in zip(rows, terrain.boxes, strict=True):
        assert row["form"] == "box" and np.all(np.array(row["rgb"]) < DARK)
        np.testing.assert_allclose(row["pos"], box.centre(), atol=1e-4)
        np.testing.assert_allclose(row["size"], 0.5 * np.array(box.size), atol=1e-4)
