"""Imports holosoma's locomotion files (PPO and FastSAC) by putting their observation in front.

Their files hold the network, joint names, gains and command ranges. Everything else is in the
tables below, and provenance says which value came from where.

Source: amazon-far/holosoma at fc600e7; the layout was confirmed with recorded steps of both files.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from policies.importers.graph import Graph, metadata, shapes
from policies.manifest import Manifest, input_shapes, output_shapes, pack_policy
from policies.session import PolicySession, golden_inputs, record_golden
from robot.config import UserError, check, listing, short
from robot.model import Robot

METADATA = ("dof_names", "kp", "kd")  # JSON documents
OPTIONAL = ("command_ranges", "action_scale")  # the first may also be null
# Observation terms in their order, which is alphabetical: name -> (width, scale); None is one per
# joint. What each one is made of: _terms.
TERMS: dict[str, tuple[int | None, float]] = {
    "actions": (None, 1.0),
    "base_ang_vel": (3, 0.25),
    "command_ang_vel": (1, 1.0),
    "command_lin_vel": (2, 1.0),
    "cos_phase": (2, 1.0),
    "dof_pos": (None, 1.0),
    "dof_vel": (None, 0.05),
    "projected_gravity": (3, 1.0),
    "sin_phase": (2, 1.0),
}
# Defaults where the file is silent.
STEP_DT = 0.02  # s
ACTION_SCALE = 0.25  # rad
ACTION_CLIP = 100.0
GAIT_PERIOD = 1.0  # s
STAND_BELOW = 0.01  # m/s of (vx, vy) and rad/s of yaw: both below it means standing
COMMAND_RANGE = (-1.0, 1.0)  # m/s, m/s, rad/s
RANGES = {"vx": "lin_vel_x", "vy": "lin_vel_y", "yaw_rate": "ang_vel_yaw"}  # ours -> theirs
IMU = "pelvis"
DEFAULT_POSE = {  # robot -> joint -> rad; others are 0
    "g1": {
        "left_hip_pitch_joint": -0.312, "right_hip_pitch_joint": -0.312,
        "left_knee_joint": 0.669, "right_knee_joint": 0.669,
        "left_ankle_pitch_joint": -0.363, "right_ankle_pitch_joint": -0.363,
        "left_shoulder_pitch_joint": 0.2, "right_shoulder_pitch_joint": 0.2,
        "left_shoulder_roll_joint": 0.2, "right_shoulder_roll_joint": -0.2,
        "left_elbow_joint": 0.6, "right_elbow_joint": 0.6,
    },
}  # fmt: skip


def detect(model: ModelProto) -> str | None:
    """None if the file is holosoma's, else what is missing."""
    texts = metadata(model)
    missing = [key for key in METADATA if key not in texts]
    if missing:
        return f"metadata {listing(missing)}"
    try:
        json.loads(texts["dof_names"])
    except (ValueError, RecursionError):
        return "metadata dof_names as JSON"
    return None


def convert(
    model: ModelProto, data: bytes, path: Path, robot: Robot, name: str
) -> tuple[ModelProto, Manifest]:
    """Compose raw measurements -> observation -> their network -> joint targets.

    Args:
        model: their file, of which only metadata was looked at.
        data: its bytes.
        path: for messages.
        robot: what it shall drive.
        name: of the new policy.

    Raises:
        UserError: another robot, the tracking variant, or metadata that do not fit.
    """
    texts = metadata(model)
    joints, kp, kd = (_document(texts, key, path) for key in METADATA)
    _check_joints(joints, robot, path)
    for key, gains in (("kp", kp), ("kd", kd)):
        if not _numbers(gains, len(joints)):
            raise UserError(
                f"{path}: metadata {key}: got {short(gains)}, expected {len(joints)} numbers"
            )
    widths = {term: width or len(joints) for term, (width, _) in TERMS.items()}
    _check_network(model, sum(widths.values()), len(joints), path)
    ranges, action_scale = _ranges(texts, path), _action_scale(texts, len(joints), path)
    silent = ["step_dt", "default_joint_pos", "imu", "observation terms and scales", "gait phase"]
    silent += [] if ranges else ["command_ranges"]
    silent += [] if action_scale else ["action_scale"]
    action_scale = action_scale or [ACTION_SCALE] * len(joints)
    phase = 2 * math.pi * STEP_DT / GAIT_PERIOD
    manifest = check(
        {
            "name": name,
            "robot": robot.name,
            "observed_joints": joints,
            "driven_joints": joints,
            "arm_joints": [robot.joint_names[i] for i in robot.arm_joints],
            "stiffness": kp,
            "damping": kd,
            "default_joint_pos": [DEFAULT_POSE[robot.name].get(joint, 0.0) for joint in joints],
            "imu": IMU,
            "step_dt": STEP_DT,
            "command_ranges": ranges or dict.fromkeys(RANGES, COMMAND_RANGE),
            "observation": [
                {"name": term, "width": widths[term], "scale": scale}
                for term, (_, scale) in TERMS.items()
            ],
            "carry": [
                {"name": "last_action", "shape": [1, len(joints)], "initial": [0.0] * len(joints)},
                # Of the next step, if that one moves: (0, pi), advanced once before observing.
                {"name": "phase", "shape": [1, 2], "initial": [phase, math.pi + phase]},
            ],
            "provenance": {
                "source_format": "holosoma",
                "source_sha256": hashlib.sha256(data).hexdigest(),
                "importer": "policies/importers/holosoma.py",
                "licence": "not in the file; amazon-far/holosoma is Apache-2.0 with a NOTICE",
                "from_file": listing(sorted({"network", *METADATA, *OPTIONAL} - {*silent})),
                "from_importer": listing(silent),
                "gait_period": GAIT_PERIOD,
                "stand_below": STAND_BELOW,
                "action_clip": ACTION_CLIP,
                "action_scale": str(sorted(set(action_scale))),
            },
        },
        Manifest,
        where=f"{path}: imported",
    )
    composed = _compose(model, manifest, action_scale)
    session = PolicySession(pack_policy(composed, manifest, path))
    golden = record_golden(session, golden_inputs(manifest))
    return composed, manifest.model_copy(update={"golden": golden})


def _document(texts: dict[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(texts[key])
    except (ValueError, RecursionError):
        raise UserError(
            f"{path}: metadata {key}: got {short(texts[key])}, expected a JSON document"
        ) from None


def _numbers(values: Any, count: int) -> bool:
    """Whether it is a list of `count` numbers of a size that can be meant."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(x) in (int, float) and abs(x) < 1e6 for x in values)
    )


def _check_joints(joints: Any, robot: Robot, path: Path) -> None:
    if not isinstance(joints, list) or not all(isinstance(joint, str) for joint in joints):
        raise UserError(f"{path}: metadata dof_names: got {short(joints)}, expected joint names")
    # Files of different robots have the very same shapes: only the names tell.
    foreign = [joint for joint in joints if joint not in robot.joint_names]
    if foreign or len(joints) != robot.num_joints or len(set(joints)) != len(joints):
        raise UserError(
            f"{path}: metadata dof_names: a policy for another robot than {robot.name}: "
            f"{len(joints)} joints, unknown here: {listing(map(repr, foreign))}; "
            f"available: {listing(robot.joint_names)}"
        )
    if robot.name not in DEFAULT_POSE:
        raise UserError(
            f"{path}: the file has no default pose and the importer none for {robot.name}; "
            f"available: {listing(DEFAULT_POSE)}"
        )


def _check_network(model: ModelProto, observed: int, joints: int, path: Path) -> None:
    inputs, outputs = shapes(model.graph.input), shapes(model.graph.output)
    if "time_step" in inputs:
        raise UserError(
            f"{path}: is holosoma's motion tracking variant (inputs {inputs}), which follows a "
            "recorded motion; this importer reads locomotion files"
        )
    if inputs != {"actor_obs": [1, observed]} or outputs != {"action": [1, joints]}:
        raise UserError(
            f"{path}: has inputs {inputs} and outputs {outputs}, expected actor_obs "
            f"[1, {observed}] and action [1, {joints}]"
        )
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(opsets) != 1 or len(model.opset_import) != 1 or opsets[0] < 13:
        raise UserError(f"{path}: has operator sets {opsets}, expected one of 13 or more")


def _ranges(texts: dict[str, str], path: Path) -> dict[str, list[float]] | None:
    """Their training ranges under our names; None if the file is silent."""
    ranges = _document(texts, "command_ranges", path) if "command_ranges" in texts else None
    if ranges is None:
        return None
    known = ranges if isinstance(ranges, dict) else {}
    limits = {ours: known.get(theirs) for ours, theirs in RANGES.items()}
    if not all(_numbers(limit, 2) for limit in limits.values()):
        raise UserError(
            f"{path}: metadata command_ranges: got {short(ranges)}, expected two numbers each for "
            f"{listing(RANGES.values())}"
        )
    return {ours: limit for ours, limit in limits.items() if limit}


def _action_scale(texts: dict[str, str], count: int, path: Path) -> list[float] | None:
    """One scale per joint; the file may hold a number, a list or a list with commas, or nothing."""
    text = texts.get("action_scale")
    if text is None:
        return None
    try:
        values = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        values = []
    if _numbers(values, 1):
        return values * count
    if not _numbers(values, count):
        raise UserError(
            f"{path}: metadata action_scale: got {short(text)}, expected 1 or {count} numbers"
        )
    return values


def _compose(model: ModelProto, manifest: Manifest, action_scale: list[float]) -> ModelProto:
    """Few nodes on purpose: each costs microseconds when caches are cold."""
    graph = Graph()
    values = _terms(graph)
    offset = {"dof_pos": manifest.default_joint_pos}
    offsets = [x for t in manifest.observation for x in offset.get(t.name, (0.0,) * t.width)]
    scales = [term.scale for term in manifest.observation for _ in range(term.width)]
    graph.add("Concat", values, "raw", axis=1)
    graph.add("Sub", ["raw", graph.constant("offsets", [offsets])], "centred")
    graph.add("Mul", ["centred", graph.constant("scales", [scales])], "observation")

    graph.embed(model, {"actor_obs": "observation", "action": "action"})

    clip = [graph.constant("lowest", -ACTION_CLIP), graph.constant("highest", ACTION_CLIP)]
    graph.add("Clip", ["action", *clip], "carry_last_action_next")
    scale = graph.constant("action_scale", [action_scale])
    graph.add("Mul", ["carry_last_action_next", scale], "moved")
    pose = graph.constant("default_joint_pos", [manifest.default_joint_pos])
    graph.add("Add", ["moved", pose], "joint_pos_target")
    return graph.model(
        input_shapes(manifest), output_shapes(manifest), opset=model.opset_import[0].version
    )


def _terms(graph: Graph) -> list[str]:
    """Make the terms, unscaled, from the contract's inputs; the values in the order of TERMS."""
    add, constant = graph.add, graph.constant

    # Standing is decided before observing. Both feet are then at pi, and the first step that moves
    # again starts from (0, pi). carry_phase is that next phase, so no flag is needed. It runs over
    # [0, 2 pi), theirs over (-pi, pi]: cosine and sine are the same.
    command = add(
        "Gather", ["command", constant("picked", [2, 0, 1], np.int64)], "yaw_vx_vy", axis=1
    )
    squares = add("Mul", [command, command], "squares")
    sums = add("MatMul", [squares, constant("pairs", [[1, 0], [0, 1], [0, 1]])], "yaw2_speed2")
    fastest = add("ReduceMax", [sums], "fastest")
    moving = add("GreaterOrEqual", [fastest, constant("stand_below2", STAND_BELOW**2)], "moving")
    phase = add("Where", [moving, "carry_phase", constant("both_down", math.pi)], "phase")
    advance = constant("advance", 2 * math.pi * STEP_DT / GAIT_PERIOD)
    later = add("Add", ["carry_phase", advance], "later")
    wrapped = add("Mod", [later, constant("turn", 2 * math.pi)], "wrapped", fmod=1)
    restart = constant("restart", [[0.0, math.pi]])
    add("Where", [moving, wrapped, restart], "carry_phase_next")

    # World's (0, 0, -1) in the IMU's frame is quadratic in the quaternion, (2 (wy - xz),
    # -2 (wx + yz), x² + y² - w² - z²): one matrix on the 16 products of its components.
    products = np.zeros((4, 4, 3))  # of (w, x, y, z) with (w, x, y, z) -> gravity
    products[0, 2, 0], products[1, 3, 0] = 2, -2
    products[0, 1, 1], products[2, 3, 1] = -2, -2
    products[[0, 3], [0, 3], 2], products[[1, 2], [1, 2], 2] = -1, 1
    outer = add("Gemm", ["imu_quat_wxyz", "imu_quat_wxyz"], "quat_products", transA=1)
    flat = add("Reshape", [outer, constant("row", [1, 16], np.int64)], "quat_row")
    gravity = add("MatMul", [flat, constant("to_gravity", products.reshape(16, 3))], "gravity")

    return [
        "carry_last_action",
        "imu_gyro",
        command,  # command_ang_vel and command_lin_vel
        add("Cos", [phase], "cos_phase"),
        "joint_pos",
        "joint_vel",
        gravity,
        add("Sin", [phase], "sin_phase"),
    ]
