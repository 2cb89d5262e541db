"""Writes a trained TerrainNet as ONNX, by its contract, with what it is and vectors to check it."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import torch

from policies.export import OPSET, _tidy  # pyright: ignore[reportPrivateUsage]
from policies.importers.graph import IR_VERSION
from policies.terrain_model import TerrainModel
from robot.calibration import Calibration
from robot.config import UserError
from robot.log_writer import _commit, cpu_name  # pyright: ignore[reportPrivateUsage]
from robot.runs import CameraNoise
from robot.terrain_net import (
    BYTES_MAX,
    FRAME,
    GRID,
    METADATA,
    OUTPUTS,
    UNITS,
    NetFile,
    TerrainNet,
    golden_inputs,
    input_shapes,
    load_net,
    weights_sha256,
)


def provenance(recipe: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Where a network comes from."""
    return {
        "recipe": recipe.model_dump(mode="json"), **_commit(), "frames": int(kept["steps"]),
        "hours": round(float(kept["seconds"]) / 3600, 4),
        "error_held_back_m": round(float(kept["score"]), 5),
        "machine": f"{os.cpu_count()} x {cpu_name()}, {platform.machine()}",
        "torch": torch.__version__,
    }  # fmt: skip


def export_terrain(
    model: TerrainModel, calibration: Calibration, about: Mapping[str, Any], out: Path
) -> Path:
    """Write the network's file, and load it as the runtime would.

    Args:
        model: trained, on the CPU.
        calibration: of the camera it was trained for.
        about: provenance, goes into the metadata.
        out: the file.

    Raises:
        UserError: the file would be too large, or would be refused.
    """
    graph = _trace(model)
    noise = CameraNoise()
    told: dict[str, Any] = {
        "prior": model.prior, "grid": GRID, "frame": FRAME, "units": UNITS,
        "camera": {"calib_hash": f"{calibration.calib_hash:016x}", "file": calibration.path.name},
        "latency_ms": list(noise.latency_ms), "noise": noise.model_dump(mode="json"),
        "weights_sha256": weights_sha256(graph), "provenance": dict(about), "golden": [],
    }  # fmt: skip
    net = TerrainNet(NetFile(out, graph.SerializeToString(), model.prior, 0, told))
    for given in golden_inputs(model.prior):
        told["golden"].append([round(float(height), 6) for height in net.run(*given)[0]])
    graph.metadata_props.add(key=METADATA, value=json.dumps(told))
    data = graph.SerializeToString(deterministic=True)
    if len(data) > BYTES_MAX:
        raise UserError(f"{out}: has {len(data)} bytes, expected at most {BYTES_MAX}")
    part = out.with_name(out.name + ".partial")
    part.write_bytes(data)
    part.replace(out)
    load_net(out, calibration)
    return out


def _trace(model: TerrainModel) -> onnx.ModelProto:
    shapes = input_shapes(model.prior)
    # Random numbers, so that nothing that is 0 at rest is taken for a constant.
    generator = torch.Generator().manual_seed(0)
    examples = tuple(torch.rand(shape, generator=generator) for shape in shapes.values())
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch calls the tracing exporter old
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            model.eval(), examples, cast(Any, buffer), input_names=list(shapes),
            output_names=list(OUTPUTS), opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    graph = onnx.load_model_from_string(buffer.getvalue())
    graph.ir_version = IR_VERSION
    return _tidy(graph)


def calibrated(model: TerrainModel, wide: float) -> TerrainModel:
    """The same network with all its standard deviations multiplied."""
    with torch.no_grad():
        model.spread += 2.0 * math.log(wide)
    return model
