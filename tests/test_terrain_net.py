"""TerrainNet's file: its contract, torch and ONNX agree, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from policies.terrain_export import calibrated, export_terrain
from policies.terrain_model import TerrainModel
from robot.config import UserError
from robot.model import load_robot
from robot.rotations import rotation_matrix
from robot.terrain_net import (
    FAR_M,
    MEMORY,
    METADATA,
    STATE,
    depth_inputs,
    golden_inputs,
    load_net,
    read_net,
    state_input,
)

HEAD = load_robot("g1").cameras["head"]


def model(prior: bool = True) -> TerrainModel:
    """A network that says something of its own."""
    torch.manual_seed(3)
    made = TerrainModel(prior)
    with torch.no_grad():
        made.out.weight *= 10.0
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["with the map", "alone"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    made = model(request.param)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    return made, export_terrain(made, HEAD, {"by": "a test"}, path)


def test_the_file_keeps_the_contract(exported):
    made, path = exported
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ir_version == 8 and [(o.domain, o.version) for o in graph.opset_import] == [
        ("", 17)
    ]
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    expected = {
        "depth": [1, 1, 48, 64], "valid": [1, 1, 48, 64], "state": [1, 19], "h_in": [1, 1, 256],
        "height": [1, 187], "logvar": [1, 187], "h_out": [1, 1, 256],
    }  # fmt: skip
    if made.prior:
        expected |= {f"prior_{name}": [1, 187] for name in ("height", "std", "age")}
    assert shapes == expected
    gru = next(node for node in graph.graph.node if node.op_type == "GRU")
    assert {a.name: a.i for a in gru.attribute}["linear_before_reset"] == 1
    about = read_net(path).about
    assert about["camera"] == {
        "calib_hash": f"{HEAD.calib_hash:016x}", "file": "head_camera.yaml",
    }  # fmt: skip
    assert about["latency_ms"] == [30.0, 150.0] and about["noise"]["holes"] == [0.0, 0.3]
    assert about["provenance"]["by"] == "a test" and len(about["weights_sha256"]) == 64
    assert path.stat().st_size < 3_000_000


def test_torch_and_onnx_say_the_same_through_the_memory(exported):
    made, path = exported
    net, h = load_net(path, HEAD), torch.zeros(1, 1, MEMORY)
    heights = []
    for seen, state, scan in golden_inputs(made.prior):
        height, std = net.run(seen, state, scan)
        prior = [torch.from_numpy(a.astype(np.float32))[None] for a in scan]
        depth, valid = (torch.from_numpy(seen[k])[None, None] for k in ("depth", "valid"))
        with torch.no_grad():
            mean, logvar, h = made(depth, valid, torch.from_numpy(state)[None], h, *prior)
        np.testing.assert_allclose(height, mean[0], atol=2e-6)
        np.testing.assert_allclose(std, np.exp(0.5 * logvar[0].numpy()), rtol=1e-5)
        heights.append(height)
    again = load_net(path, HEAD)
    for (seen, state, scan), before in zip(golden_inputs(made.prior), heights, strict=True):
        np.testing.assert_array_equal(again.run(seen, state, scan)[0], before)
    seen, state, scan = golden_inputs(made.prior)[2]
    forgetful = load_net(path, HEAD).run(seen, state, scan)[0]
    assert np.abs(forgetful - heights[2]).max() > 1e-6  # the memory counts
    again.reset()
    np.testing.assert_array_equal(again.run(seen, state, scan)[0], forgetful)


def test_deviations_are_multiplied_by_what_calibration_found(tmp_path: Path):
    made = model()
    plain = load_net(export_terrain(made, HEAD, {}, tmp_path / "a.onnx"), HEAD)
    wider = load_net(export_terrain(calibrated(made, 2.5), HEAD, {}, tmp_path / "b.onnx"), HEAD)
    given = golden_inputs(True)[0]
    (height, std), (same, wide) = plain.run(*given), wider.run(*given)
    np.testing.assert_allclose(same, height, atol=1e-6)
    np.testing.assert_allclose(wide, 2.5 * std, rtol=1e-4)


def rewrite(path: Path, change: Callable[[onnx.ModelProto, dict], None]) -> None:
    """Change a file's graph, or its metadata in place."""
    graph = onnx.load(path)
    about = json.loads(graph.metadata_props[0].value)
    change(graph, about)
    graph.metadata_props[0].value = json.dumps(about)
    path.write_bytes(graph.SerializeToString())


def _weights(graph: onnx.ModelProto, about: dict) -> None:
    tensor = next(t for t in graph.graph.initializer if len(t.dims) == 4)
    tensor.raw_data = bytes(len(tensor.raw_data))


def _shape(graph: onnx.ModelProto, about: dict) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 32


def _output(graph: onnx.ModelProto, about: dict) -> None:
    graph.graph.output[0].name = "heights"


def _grid(graph: onnx.ModelProto, about: dict) -> None:
    about["grid"]["order"] = "x outer, y inner"


def _golden(graph: onnx.ModelProto, about: dict) -> None:
    about["golden"][1][7] += 0.02


def _other_key(graph: onnx.ModelProto, about: dict) -> None:
    graph.metadata_props[0].key = "other"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_weights, "its weights are not those that it was written with"),
        (_shape, "input depth: got [1, 1, 48, 32], expected [1, 1, 48, 64]; available: depth"),
        (_output, "output height: got none, expected [1, 187]; available: heights"),
        (_grid, "grid: got {'x_m'"),
        (_golden, "its test vectors are off by 0.02"),
        (_other_key, f"has no metadata '{METADATA}'; expected a TerrainNet"),
    ],
)
def test_a_file_that_breaks_its_promise_is_refused(change, said: str, tmp_path: Path):
    path = export_terrain(model(), HEAD, {}, tmp_path / "net.onnx")
    rewrite(path, change)
    with pytest.raises(UserError) as refusal:
        load_net(path, HEAD)
    assert str(refusal.value).startswith(f"{path}: ") and said in str(refusal.value)


def test_what_is_no_network_is_refused(tmp_path: Path):
    (tmp_path / "text.onnx").write_text("no graph")
    for name, said in (("text.onnx", "is no ONNX file"), ("none.onnx", "cannot be read")):
        with pytest.raises(UserError, match=said):
            read_net(tmp_path / name)


def test_another_camera_is_refused(tmp_path: Path):
    path = export_terrain(model(), HEAD, {}, tmp_path / "net.onnx")
    other = dataclasses.replace(HEAD, calib_hash=HEAD.calib_hash ^ 1)
    with pytest.raises(UserError, match=f"trained for a camera with calibration "
                       f"{HEAD.calib_hash:016x}.*got {other.calib_hash:016x}"):  # fmt: skip
        load_net(path, other)


def test_depth_is_clipped_scaled_and_0_where_it_does_not_count():
    z = np.array([[0.1, 0.2, 1.5, 4.0, 1.0]])
    seen = depth_inputs(z, np.array([[True, True, True, True, False]]))
    np.testing.assert_allclose(seen["depth"], [[0.2 / FAR_M, 0.2 / FAR_M, 0.5, 1.0, 0.0]])
    np.testing.assert_array_equal(seen["valid"], [[1, 1, 1, 1, 0]])


def test_the_state_is_the_contracts():
    half = np.sqrt(0.5)
    quat = (half, 0.0, 0.0, half)  # turned to the left by 90 degrees
    camera = rotation_matrix(quat) @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # looks ahead
    state = state_input(quat, (1, 2, 3), (4, 5, 6), camera, np.array([0.0, 0.5, 0.4]), 0.033)
    assert state.shape == (STATE,) and state.dtype == np.float32
    np.testing.assert_allclose(state[:9], [0, 0, -1, 1, 2, 3, 4, 5, 6], atol=1e-7)
    np.testing.assert_allclose(state[9:15], [0, -1, 0, 0, 0, -1], atol=1e-7)  # right, down
    np.testing.assert_allclose(state[15:], [0.5, 0.0, 0.4, 0.033], atol=1e-7)  # world's y is ahead
