"""Begins a training with what a policy file knows: its actor, for the terms that both have.

A term that the policy does not know begins without weight, so that the first steps are the
policy's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from policies.manifest import PolicyFile, check_policy, read_policy
from policies.network import EquivariantModel
from policies.recipe import Recipe
from policies.terms import Observation, make_body
from robot.config import UserError, listing
from robot.model import Robot


def warm_start(actor: Any, path: Path, recipe: Recipe, robot: Robot) -> None:
    """Give an untrained actor the weights of a policy file of this program's own training.

    Args:
        actor: of the recipe's learner.
        path: the policy file.
        recipe, robot: of the training that begins.

    Raises:
        UserError: the file is refused, another robot's, gains or network; or the recipe normalises.
    """
    policy = read_policy(path)
    check_policy(policy, robot)
    if not isinstance(actor, EquivariantModel) or recipe.ppo.normalise:
        raise UserError(
            "--from: expected a recipe with ppo.symmetry equivariant and ppo.normalise false: "
            "a policy file holds one equivariant network, its normalisation inside"
        )
    body, manifest = make_body(recipe, robot), policy.manifest
    for name, mine in (("stiffness", body.stiffness), ("damping", body.damping)):
        if not np.allclose(getattr(manifest, name), mine, rtol=1e-4):
            raise UserError(
                f"{path}: {name} is another than the recipe's: its actions would differ"
            )
    layers = _layers(policy)
    weight, bias = layers[0]
    try:
        actor.mlp.take([(_matched(policy, weight, recipe, body), bias), *layers[1:]])  # type: ignore[operator]
    except ValueError as error:
        raise UserError(f"{path}: does not fit the recipe's network: {error}") from None


def _layers(policy: PolicyFile) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each linear layer, as policies/export.py writes them."""
    model = onnx.load_model_from_string(policy.data)
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    layers = []
    while (name := f"actor.mlp.layers.{len(layers)}.weight") in values:
        weight, bias = values[name], values[name.replace("weight", "bias")]
        layers.append((torch.tensor(weight), torch.tensor(bias)))
    if not layers:
        raise UserError(
            f"{policy.path}: not written by `plexus train`: no layers of an actor in it"
        )
    return layers


def _matched(policy: PolicyFile, weight: Tensor, recipe: Recipe, body: Any) -> Tensor:
    """(units, recipe's width) the first layer for the recipe's terms, in their order."""
    given = {term.name: term for term in policy.manifest.observation}
    widths = [term.width for term in policy.manifest.observation]
    columns = dict(zip(given, weight.split(widths, dim=1), strict=True))
    parts = []
    for row, width in zip(recipe.observation, Observation(recipe.observation, body).widths,
                          strict=True):  # fmt: skip
        size = width * row.history
        term = given.pop(row.name, None)
        if term is None:
            parts.append(torch.zeros(len(weight), size))
        elif (term.scale, term.history, term.width) != (row.scale, row.history, size):
            raise UserError(
                f"{policy.path}: {row.name} has scale {term.scale:g}, {term.history} frames, width "
                f"{term.width}; the recipe {row.scale:g}, {row.history}, {size}"
            )
        else:
            parts.append(columns[row.name])
    if given:
        raise UserError(f"{policy.path}: has terms that the recipe lacks: {listing(given)}")
    return torch.cat(parts, 1)
