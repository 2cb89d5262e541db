"""Hands and stored poses: those of the G1 are free, and a mistake in the file is one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from robot.config import UserError
from robot.console.hands import CLEAR, Hands
from robot.console.poses import load_arms
from robot.model import load_robot

ROBOT = load_robot("g1")
ARMS = load_arms(ROBOT)


@pytest.mark.parametrize("pose", ARMS.poses, ids=lambda pose: pose.name)
def test_each_pose_is_free_and_can_be_left_for_the_next(pose):
    hands = Hands(ROBOT, list(ARMS.hands.values()))
    assert pose.doc and hands.room(pose.arm_joint_pos) > CLEAR
    following = ARMS.poses[(ARMS.poses.index(pose) + 1) % len(ARMS.poses)].arm_joint_pos
    arms = pose.arm_joint_pos
    for _ in range(100):
        arms = hands.toward(arms, following, 0.04)
    np.testing.assert_allclose(arms, following, atol=1e-9)


def test_what_a_pose_does_not_name_is_as_in_the_stand_pose():
    greeting = next(pose for pose in ARMS.poses if pose.name == "greeting").arm_joint_pos
    rest = ROBOT.stand_joint_pos[ROBOT.arm_joints]
    assert np.array_equal(greeting[:7], rest[:7]) and not np.array_equal(greeting[7:], rest[7:])


def test_a_robot_without_the_file_has_sliders_and_no_more(tmp_path: Path):
    arms = load_arms(dataclasses.replace(ROBOT, path=tmp_path / "robot.yaml"))
    assert arms.hands == {} and arms.poses == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hands: {left: left_plam}\nposes: []\n", ":1: site 'left_plam' is unknown; available: "),
        (
            "hands: {}\nposes:\n  - {name: a, doc: b, joints: {left_knee_joint: 0.1}}\n",
            ":3: pose 'a': joint 'left_knee_joint' is no arm joint; available: left_shoulder_pitch",
        ),
        (
            "hands: {}\nposes:\n  - {name: a, doc: b, joints: {left_elbow_joint: 2.2}}\n",
            ":3: pose 'a': left_elbow_joint at 2.2, expected within [-1.0472, 2.0944]",
        ),
        (
            "hands: {}\nposes:\n  - {name: a, doc: b, joints: {left_elbow_joint: 90.0}}\n",
            ":3: poses.0.joints.left_elbow_joint: got 90.0, expected rad within one turn",
        ),
        (
            "hands: {}\nposes:\n  - {name: a, doc: b, joints: {}}\n"
            "  - {name: a, doc: c, joints: {}}\n",
            ":4: pose 'a' is given twice",
        ),
        ("hands: {}\nposes: []\npose: []\n", "pose: unknown key (did you mean 'poses'?)"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path: Path, text: str, words: str):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        load_arms(dataclasses.replace(ROBOT, path=tmp_path / "robot.yaml"))
    assert words in str(told.value).replace(" (are these degrees?)", "")
