"""Writes a trained actor as a policy file: raw measurements to joint targets in one graph.

Observation and action terms are those of terms.py, traced; nothing is written twice.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from policies.importers.graph import IR_VERSION
from policies.manifest import (
    Manifest,
    check_policy,
    input_shapes,
    output_shapes,
    pack_policy,
    parse_policy,
    write_policy,
)
from policies.recipe import Recipe
from policies.session import PolicySession, golden_inputs, record_golden
from policies.terms import Body, Observation, Sensors, advance, make_body, target
from robot.config import UserError, check
from robot.model import Robot

OPSET = 17
BYTES_MAX = 3 * 1024**2
INPUTS = (
    "joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "command", "first", "height_scan",
    "height_flag",
)  # fmt: skip


class Deployed(nn.Module):
    """Actor with its terms around it, as the runtime calls it: one step of one robot.

    Args:
        actor: (B, n) policy observation -> (B, N) action, its mean; normalisation inside.
        recipe, body: of the task it was trained in.
    """

    def __init__(self, actor: Callable[[Tensor], Tensor], recipe: Recipe, body: Body) -> None:
        super().__init__()
        self.actor, self.body = actor, body
        self.terms = Observation(recipe.observation, body)
        self.clip = recipe.action.clip

    def forward(
        self, joint_pos: Tensor, joint_vel: Tensor, imu_quat_wxyz: Tensor, imu_gyro: Tensor,
        command: Tensor, first: Tensor, height_scan: Tensor, height_flag: Tensor,
        last_action: Tensor, phase: Tensor, *past: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """joint_pos_target, observation, then the carry of the next step in the same order."""
        sensors = Sensors(
            joint_pos, joint_vel, imu_quat_wxyz, imu_gyro, command, last_action, phase,
            height_scan, height_flag,
        )  # fmt: skip
        named = dict(zip(self.terms.history, past, strict=True))
        observation, later = self.terms.assemble(self.terms.frame(sensors), named, first)
        action = self.actor(observation).clamp(-self.clip, self.clip)
        targets = target(action, sensors, self.body)
        following = advance(phase, command, self.body)
        return targets, observation, action, following, *(later[name] for name in named)

    @property
    def carry(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what one step hands to the next; all begin at 0."""
        n = len(self.body.joint_names)
        past = {f"past_{k}": (1, *shape) for k, shape in self.terms.history.items()}
        return {"last_action": (1, n), "phase": (1, 1), **past}


def export(
    actor: Callable[[Tensor], Tensor], recipe: Recipe, robot: Robot, out: Path,
    provenance: Mapping[str, str | int | float],
) -> Path:  # fmt: skip
    """Write a policy file with test vectors.

    Args:
        actor: (B, n) policy observation -> (B, N) mean action, on the CPU, normalisation inside.
        recipe, robot: that it was trained with.
        out: the file.
        provenance: where it comes from; goes into the manifest.

    Raises:
        UserError: the actor does not fit the recipe, or the file would be refused or too large.
    """
    body = make_body(recipe, robot)
    deployed = Deployed(actor, recipe, body).eval()
    manifest = _manifest(deployed, recipe, robot, out.stem, provenance)
    graph = _trace(deployed, manifest, out)
    session = PolicySession(pack_policy(graph, manifest, out))
    golden = record_golden(session, golden_inputs(manifest))
    manifest = manifest.model_copy(update={"golden": golden})
    policy = parse_policy(pack_policy(graph, manifest, out).data, out)
    check_policy(policy, robot)
    if len(policy.data) > BYTES_MAX:
        raise UserError(f"{out}: has {len(policy.data)} bytes, expected at most {BYTES_MAX}")
    write_policy(out, graph, manifest)
    return out


def _trace(deployed: Deployed, manifest: Manifest, out: Path) -> ModelProto:
    shapes = input_shapes(manifest)
    names = [*INPUTS, *(f"carry_{name}" for name in deployed.carry)]
    # Random numbers, so that nothing that is 0 at rest is taken for a constant.
    generator = torch.Generator().manual_seed(0)
    examples = tuple(torch.rand(shapes[name], generator=generator) for name in names)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch calls the tracing exporter old
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                deployed, examples, cast(Any, buffer), input_names=names,
                output_names=list(output_shapes(manifest)), opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{out}: the actor cannot be exported: {reason}") from None
    model = onnx.load_model_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION
    return _tidy(model)


def _tidy(model: ModelProto) -> ModelProto:
    """Without names of this machine's files."""
    model.producer_name, model.producer_version = "plexus", ""
    for node in model.graph.node:
        node.doc_string = ""
    return model


def _manifest(
    deployed: Deployed, recipe: Recipe, robot: Robot, name: str, provenance: Mapping[str, Any]
) -> Manifest:
    body, spec = deployed.body, recipe.commands
    rows = zip(recipe.observation, deployed.terms.widths, strict=True)
    return check(
        {
            "name": name,
            "robot": robot.name,
            "observed_joints": list(robot.joint_names),
            "driven_joints": list(robot.joint_names),
            "arm_joints": [robot.joint_names[i] for i in robot.arm_joints],
            "stiffness": body.stiffness.tolist(),
            "damping": body.damping.tolist(),
            "default_joint_pos": robot.stand_joint_pos.tolist(),
            "imu": robot.imu,
            "step_dt": recipe.step_dt,
            "command_ranges": {
                "vx": spec.vx, "vy": spec.vy, "yaw_rate": spec.yaw_rate,
                "base_height": spec.base_height,
            },
            "command_default": {"base_height": spec.nominal_height},
            "uses_arms": True,
            "observation": [
                {"name": row.name, "width": width * row.history, "scale": row.scale,
                 "history": row.history}
                for row, width in rows
            ],
            "carry": [
                {"name": key, "shape": shape, "initial": [0.0] * torch.Size(shape).numel()}
                for key, shape in deployed.carry.items()
            ],
            "trained_limits": {
                "action_clip": recipe.action.clip,
                **{f"{term}.{key}": value
                   for term, params in recipe.randomisation.items()
                   for key, value in params.items()},
            },
            "provenance": dict(provenance),
        },
        Manifest,
        where="export",
    )  # fmt: skip
