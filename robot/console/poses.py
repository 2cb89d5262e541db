"""Reads a robot's hands and stored arm poses, arms.yaml beside robot.yaml, held against both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import mujoco
from pydantic import Field

from robot.config import Strict, UserError, check, listing, parse_yaml, read_text
from robot.model import Angle, FloatArray, Robot

FILE = "arms.yaml"


class PoseRow(Strict):
    """One pose as it is written."""

    name: Annotated[str, Field(min_length=1, max_length=24)]
    doc: str
    """Where the arms are, in words."""
    joints: dict[str, Angle]
    """rad; joints that are not named are as in the stand pose."""


class ArmsFile(Strict):
    """arms.yaml as it is written."""

    hands: dict[str, str]
    """Name of a hand to the site of the MJCF that is drawn."""
    poses: list[PoseRow]


@dataclass(frozen=True)
class Pose:
    """A stored pose.

    Attributes:
        doc: where the arms are, in words.
        arm_joint_pos: (A,) rad, in the order of the robot's arm joints.
    """

    name: str
    doc: str
    arm_joint_pos: FloatArray


@dataclass(frozen=True)
class Arms:
    """What a person may choose from.

    Attributes:
        hands: name of a hand to its site.
        poses: in the order of the file.
    """

    hands: dict[str, str]
    poses: tuple[Pose, ...]


def load_arms(robot: Robot) -> Arms:
    """A robot's hands and poses; none where it has no such file.

    Raises:
        UserError: the first mistake in the file, with its line.
    """
    path = robot.path.parent / FILE
    if not path.exists():
        return Arms({}, ())
    data, lines = parse_yaml(read_text(path), path)
    file = check(data, ArmsFile, where=str(path), lines=lines)
    model = mujoco.MjModel.from_xml_path(str(robot.mjcf))
    sites = [model.site(i).name for i in range(model.nsite)]
    for name, site in file.hands.items():
        if site not in sites:
            where = f"{path}:{lines['hands', name]}"
            raise UserError(f"{where}: site {site!r} is unknown; available: {listing(sites)}")
    poses = []
    for row, pose in enumerate(file.poses):
        where = f"{path}:{lines['poses', row]}: pose {pose.name!r}"
        if pose.name in (known.name for known in poses):
            raise UserError(f"{where} is given twice")
        poses.append(Pose(pose.name, pose.doc, _fill(robot, pose, where)))
    return Arms(file.hands, tuple(poses))


def _fill(robot: Robot, pose: PoseRow, where: str) -> FloatArray:
    names = [robot.joint_names[i] for i in robot.arm_joints]
    limits = robot.position_limit[robot.arm_joints]
    values = robot.stand_joint_pos[robot.arm_joints].copy()
    for name, value in pose.joints.items():
        if name not in names:
            raise UserError(f"{where}: joint {name!r} is no arm joint; available: {listing(names)}")
        at = names.index(name)
        low, high = limits[at]
        if not low <= value <= high:
            raise UserError(f"{where}: {name} at {value}, expected within [{low}, {high}]")
        values[at] = value
    return values
