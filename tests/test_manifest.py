"""Policy files: what is read back, and the exact reason for everything that is refused."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from policies.importers.graph import Graph
from policies.manifest import (
    ELEMENTS_MAX,
    FILE_BYTES_MAX,
    METADATA_KEY,
    PolicyFile,
    check_policy,
    default_command,
    describe,
    joint_table,
    parse_policy,
    read_policy,
    write_policy,
)
from policies.session import PolicySession, verify_golden
from robot.config import UserError
from robot.model import load_robot

ROBOT = load_robot("g1")
HELD = [ROBOT.joint_names[i] for i in ROBOT.arm_joints]
DRIVEN = [name for name in ROBOT.joint_names if name not in HELD]
POSE = dict(zip(ROBOT.joint_names, ROBOT.stand_joint_pos.tolist(), strict=True))
PATH = Path("toy.onnx")


def toy_graph() -> Graph:
    """Observation: gyro and step count. Target: pose plus 0.1 times the gyro's x."""
    graph = Graph()
    graph.add("Concat", ["imu_gyro", "carry_count"], "observation", axis=1)
    graph.add("Add", ["carry_count", graph.constant("one", 1.0)], "carry_count_next")
    graph.add("MatMul", ["observation", graph.constant("gain", _gain())], "moved")
    graph.add("Add", ["moved", graph.constant("pose", [[POSE[n] for n in DRIVEN]])], SHAPE_OUT[0])
    return graph


def _gain() -> np.ndarray:
    gain = np.zeros((4, len(DRIVEN)))
    gain[0] = 0.1
    return gain


SHAPES_IN = {"imu_gyro": [1, 3], "carry_count": [1, 1]}
SHAPE_OUT = ("joint_pos_target", [1, len(DRIVEN)])
SHAPES_OUT = {"observation": [1, 4], SHAPE_OUT[0]: SHAPE_OUT[1], "carry_count_next": [1, 1]}


def toy_model(graph: Graph | None = None) -> ModelProto:
    return (graph or toy_graph()).model(SHAPES_IN, SHAPES_OUT, opset=13)


def toy_data() -> dict[str, Any]:
    """The manifest as plain data; golden worked out by hand for two steps."""
    gyro = [[0.5, 0.0, -1.0], [1.0, 2.0, 3.0]]
    return {
        "format": "plexus-policy/1",
        "name": "toy",
        "robot": "g1",
        "observed_joints": list(ROBOT.joint_names),
        "driven_joints": list(DRIVEN),
        "held_joints": [
            {"name": name, "pose": POSE[name], "stiffness": 14.0, "damping": 0.9} for name in HELD
        ],
        "arm_joints": list(HELD),
        "stiffness": [28.0] * len(DRIVEN),
        "damping": [1.8] * len(DRIVEN),
        "default_joint_pos": [POSE[name] for name in DRIVEN],
        "imu": ROBOT.imu,
        "step_dt": 0.02,
        "command_ranges": {"vx": [-0.5, 1.0], "vy": [-0.3, 0.3], "yaw_rate": [-1, 1]},
        "observation": [{"name": "gyro", "width": 3}, {"name": "count", "width": 1}],
        "carry": [{"name": "count", "shape": [1, 1], "initial": [0.0]}],
        "golden": {
            "inputs": {"imu_gyro": gyro},
            "outputs": {
                "joint_pos_target": [[POSE[name] + 0.1 * x for name in DRIVEN] for x, _, _ in gyro],
                "observation": [[*gyro[0], 0.0], [*gyro[1], 1.0]],
            },
        },
        "provenance": {"recipe": "by hand", "steps": 2},
    }


def packed(model: ModelProto | None = None, data: Any = None, text: str | None = None) -> bytes:
    """A file's bytes, unchecked."""
    model = copy.deepcopy(model) if model is not None else toy_model()
    text = json.dumps(toy_data() if data is None else data) if text is None else text
    model.metadata_props.add(key=METADATA_KEY, value=text)
    return model.SerializeToString()


def toy_policy(change: Callable[[dict[str, Any]], Any] | None = None) -> PolicyFile:
    data = toy_data()
    if change:
        change(data)
    return parse_policy(packed(data=data), PATH)


def refusal(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        parse_policy(data, PATH)
    return str(caught.value)


# --- what is good ---------------------------------------------------------------------------------


def test_a_written_policy_is_read_back_the_same(tmp_path: Path) -> None:
    model, manifest = toy_model(), toy_policy().manifest
    model.metadata_props.add(key="robot_urdf_path", value="/home/somebody")
    written = write_policy(tmp_path / "toy.onnx", model, manifest)
    read = read_policy(tmp_path / "toy.onnx")
    assert read == written
    assert read.manifest == manifest
    assert f"{read.policy_id:016x}" == read.sha256[:16]
    assert b"somebody" not in read.data, "other metadata may hold private paths"
    assert [p.name for p in tmp_path.iterdir()] == ["toy.onnx"]
    check_policy(read, ROBOT)
    assert verify_golden(PolicySession(read), read.manifest) < 1e-6


def test_numbers_keep_their_full_precision(tmp_path: Path) -> None:
    precise = 40.17923847137318
    policy = toy_policy(lambda d: d["stiffness"].__setitem__(0, precise))
    written = write_policy(tmp_path / "toy.onnx", toy_model(), policy.manifest)
    assert written.manifest.stiffness[0] == precise


def test_default_command_holds_the_arms() -> None:
    command = default_command(toy_policy().manifest)
    assert command.dtype == np.float32
    np.testing.assert_array_equal(command[:4], 0)
    np.testing.assert_allclose(command[4:], [POSE[name] for name in HELD], rtol=1e-6)


def test_joint_table_covers_every_joint() -> None:
    table = joint_table(toy_policy().manifest)
    assert set(table) == set(ROBOT.joint_names)
    assert table[HELD[0]] == (POSE[HELD[0]], 14.0, 0.9)
    assert table[DRIVEN[0]] == (POSE[DRIVEN[0]], 28.0, 1.8)


def test_describe_shows_everything_and_no_control_characters() -> None:
    text = describe(toy_policy(lambda d: d["provenance"].update(note="a\x1b[2Jb\nc")))
    lines = text.splitlines()
    assert lines[0] == "toy for g1"
    assert "  rate         50 Hz (step_dt 0.02 s)" in lines
    assert "  vx           -0.5 to 1 m/s, default 0" in lines
    assert "  base_height  unused" in lines
    assert "  arms         14 joints, unused" in lines
    assert "  gyro                             0      3        1       1" in lines
    assert "  count                            3      1        1       1" in lines
    assert "  in all                                  4" in lines
    assert "  note                         a?[2Jb / c" in lines
    for name, (pose, stiffness, damping) in joint_table(toy_policy().manifest).items():
        role = "held" if name in HELD else "driven"
        assert f"  {name:<28} {pose:>9.4f} {stiffness:>10.4f} {damping:>10.4f}  {role}" in lines


# --- the file -------------------------------------------------------------------------------------


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(packed())
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for name, reason in (
        ("link.onnx", "is a symbolic link, expected a regular file"),
        ("pipe.onnx", "not a regular file"),
        ("folder.onnx", "not a regular file"),
        (
            "none.onnx",
            "no such file; available there: folder.onnx, link.onnx, pipe.onnx, real.onnx",
        ),
    ):
        with pytest.raises(UserError) as caught:
            read_policy(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {reason}"


def test_a_file_above_the_cap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    with pytest.raises(UserError, match="has 67108865 bytes, expected at most 67108864"):
        read_policy(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an ONNX file with a graph"),
        (b"PK\x03\x04 a zip file", "not an ONNX file"),
        (b"{}", "not an ONNX file"),
        (packed().replace(b"imu_gyro", b"imu\xffgyro"), "a name in it is not valid UTF-8"),
        (b"\x08\x08\x12\x00ORTM" + b"\0" * 99, "is in ONNX Runtime's own format, expected ONNX"),
    ],
)
def test_what_is_not_onnx_is_refused(data: bytes, reason: str) -> None:
    assert refusal(data) == f"toy.onnx: {reason}"


def test_the_manifest_must_be_there_once() -> None:
    model = toy_model()
    model.metadata_props.add(key="dof_names", value="[]")
    assert refusal(model.SerializeToString()) == (
        "toy.onnx: metadata 'plexus_manifest' occurs 0 times, expected once; available: dof_names; "
        "files of other projects are converted by `plexus policy import`"
    )
    model.metadata_props.add(key=METADATA_KEY, value="{}")
    assert "occurs 2 times" in refusal(packed(model))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": 1, "format": 1}', "not valid JSON: \"keys: 'format' given twice\""),
        ("[]", "format is [], this version of Plexus reads 'plexus-policy/1'"),
        ('{"format": "plexus-policy/2"}', "format is 'plexus-policy/2', this version of Plexus"),
        ('{"format": "plexus-policy/1"}', "name: missing; expected a value here"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(text: str, reason: str) -> None:
    assert refusal(packed(text=text)).startswith(f"toy.onnx: manifest: {reason}")


# --- the manifest with itself ---------------------------------------------------------------------


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Change that puts the last argument where the others lead."""
    *keys, last, value = path

    def change(data: Any) -> None:
        for key in keys:
            data = data[key]
        data[last] = value

    return change


MANIFEST_REFUSALS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_set("stifness", 1), "stifness: unknown key (did you mean 'stiffness'?); available: format, "),
    (_set("observation", 0, "clip", 5), "observation.0.clip: unknown key; available: name, width"),
    (_set("name", 7), "name: got 7, expected a valid string"),
    (_set("step_dt", "0.02"), "step_dt: got '0.02', expected a valid number"),
    (_set("step_dt", 0), "(whole file): step_dt is 0.0 s, expected more than 0"),
    (_set("step_dt", 1e300), "step_dt: got 1e+300, expected less than or equal to 34"),
    (_set("stiffness", [1.0]), "(whole file): stiffness has 1 values, expected 15: one per driven"),
    (_set("damping", []), "(whole file): damping has 0 values, expected 15"),
    (_set("default_joint_pos", []), "(whole file): default_joint_pos has 0 values, expected 15"),
    (_set("driven_joints", []), "(whole file): driven_joints is empty, expected at least one"),
    (_set("driven_joints", 1, DRIVEN[0]), "(whole file): driven_joints and held_joints: "
     "'left_hip_pitch_joint' given twice"),
    (_set("driven_joints", 0, HELD[0]), "(whole file): driven_joints and held_joints: "
     "'left_shoulder_pitch_joint' given twice"),
    (_set("observed_joints", 0, DRIVEN[1]), "(whole file): observed_joints: "
     "'left_hip_roll_joint' given twice"),
    (_set("stiffness", 0, -1.0), "(whole file): left_hip_pitch_joint: stiffness is -1.0 and "
     "damping 1.8, expected 0 or more"),
    (_set("held_joints", 0, "damping", -0.1), "(whole file): left_shoulder_pitch_joint: stiffness "
     "is 14.0 and damping -0.1, expected 0 or more"),
    (_set("command_ranges", "vx", [1, -1]), "(whole file): command_ranges.vx is [1.0, -1.0], "
     "expected the lowest, then the highest"),
    (_set("command_default", {"vy": 0.4}), "(whole file): command_default.vy is 0.4, expected it "
     "within [-0.3, 0.3]"),
    (_set("observation", 0, "width", 0), "(whole file): observation 'gyro' has width 0"),
    (_set("observation", 0, "history", 2), "(whole file): observation 'gyro' has width 3 and "
     "history 2, expected a width that is a multiple of the history"),
    (_set("observation", 1, "name", "gyro"), "(whole file): observation: 'gyro' given twice"),
    (_set("carry", 0, "shape", [1, -1]), "(whole file): carry 'count' has shape [1, -1] and 1 "
     "initial values, expected one for each element"),
    (_set("carry", 0, "shape", [2**40]), "(whole file): carry 'count' has shape [1099511627776]"),
    (_set("carry", 0, "initial", [1e39]), "carry.0.initial.0: got 1e+39, expected less than"),
    (_set("golden", "inputs", "imu_gyro", [[0.0, 0.0, 0.0]]), "(whole file): golden "
     "'joint_pos_target' has 2 steps, expected 1 as before it"),
    (_set("golden", "inputs", "imu_gyro", [[0.0], [0.0]]), "(whole file): golden 'imu_gyro' has 1 "
     "in a row, expected 3"),
    (_set("golden", "inputs", "carry_count", [[0.0], [0.0]]), "(whole file): golden has "
     "'carry_count', expected one of joint_pos, joint_vel, imu_quat_wxyz, imu_gyro, command"),
    (_set("golden", {"inputs": {}, "outputs": {}}), "golden has 0 steps with outputs nothing, "
     "expected joint_pos_target and observation of some steps"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), MANIFEST_REFUSALS, ids=range(len(MANIFEST_REFUSALS)))
def test_a_manifest_that_disagrees_with_itself_is_refused(
    change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    data = toy_data()
    change(data)
    message = refusal(packed(data=data))
    assert message.startswith(f"toy.onnx: manifest: {reason}"), message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    text = json.dumps(toy_data()).replace("0.02", number)
    assert refusal(packed(text=text)).startswith("toy.onnx: manifest: step_dt: got")


# --- the manifest with the robot ------------------------------------------------------------------

ROBOT_REFUSALS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_set("robot", "t1"), "a policy for robot 't1', expected 'g1'"),
    (_set("imu", "torso"), "imu is 'torso', expected 'pelvis'"),
    (_set("observed_joints", 3, "left_knee"), "observed_joints: g1 has no joint 'left_knee'; "
     "available: left_knee_joint"),
    (_set("driven_joints", 3, "left_knee"), "driven_joints and held_joints: g1 has no joint "
     "'left_knee'; available: left_knee_joint"),
    (lambda d: d["held_joints"].pop(), "right_wrist_yaw_joint neither driven nor held, expected "
     "every joint"),
    (lambda d: d["arm_joints"].reverse(), "arm_joints are right_wrist_yaw_joint, "),
    (_set("step_dt", 0.021), "step_dt is 0.021 s, expected a multiple of the control period, "
     "0.002 s"),
    (_set("step_dt", 0.0004), "step_dt is 0.0004 s, expected a multiple of the control period"),
    (_set("stiffness", 0, 1e6), "left_hip_pitch_joint: stiffness is 1000000.0, expected at most"),
    (_set("damping", 1, 1e6), "left_hip_roll_joint: damping is 1000000.0, expected at most"),
    (_set("held_joints", 0, "stiffness", 1e6), "left_shoulder_pitch_joint: stiffness is 1000000.0"),
    (_set("default_joint_pos", 3, -0.2), "left_knee_joint: default position is -0.2 rad, expected "
     "-0.087"),
    (_set("held_joints", 0, "pose", 9.0), "left_shoulder_pitch_joint: default position is 9.0 rad"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), ROBOT_REFUSALS, ids=range(len(ROBOT_REFUSALS)))
def test_a_policy_that_does_not_fit_the_robot_is_refused(
    change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    data = toy_data()
    change(data)
    width = len(data["arm_joints"]) + 4
    assert width == 18
    policy = parse_policy(packed(data=data), PATH)
    with pytest.raises(UserError) as caught:
        check_policy(policy, ROBOT)
    assert str(caught.value).startswith(f"toy.onnx: manifest: {reason}"), caught.value


def test_the_control_rate_decides_about_step_dt() -> None:
    policy = toy_policy()
    check_policy(policy, ROBOT, control_hz=1000)
    with pytest.raises(UserError, match=re.escape("control period, 0.03 s")):
        check_policy(policy, ROBOT, control_hz=1 / 0.03)


# --- the graph ------------------------------------------------------------------------------------


def _swap(node: int, operator: str, **attributes: Any) -> Callable[[ModelProto], None]:
    """Change that turns a node into another operator."""

    def change(model: ModelProto) -> None:
        old = model.graph.node[node]
        new = helper.make_node(operator, old.input, old.output, **attributes)
        model.graph.node[node].CopyFrom(new)

    return change


def _weight(**fields: Any) -> Callable[[ModelProto], None]:
    """Change that replaces fields of weight "gain"."""

    def change(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "gain")
        for name, value in fields.items():
            if name == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, name, value)

    return change


def _values(*values: float) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        gain = _gain()
        gain[1, : len(values)] = values
        tensor = next(t for t in model.graph.initializer if t.name == "gain")
        tensor.CopyFrom(numpy_helper.from_array(gain.astype(np.float32), "gain"))

    return change


def _outside(tensor: TensorProto) -> TensorProto:
    """Make a tensor point at a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def _tensor() -> TensorProto:
    return numpy_helper.from_array(np.zeros(2, np.float32), "hidden")


def _external_weight(model: ModelProto) -> None:
    _outside(next(t for t in model.graph.initializer if t.name == "gain"))


def _external_sparse(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor())
    sparse.indices.CopyFrom(_outside(numpy_helper.from_array(np.array([0, 1]), "hidden")))
    sparse.dims[:] = [2]


def _external_constant(model: ModelProto) -> None:
    model.graph.node.add().CopyFrom(
        helper.make_node("Constant", [], ["c"], value=_outside(_tensor()))
    )


def _external_sparse_constant(model: ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(_outside(_tensor()))


def _branch(outside: bool) -> onnx.GraphProto:
    tensor = _outside(_tensor()) if outside else _tensor()
    value = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [2])
    return helper.make_graph([], "branch", [], [value], [tensor])


def _external_subgraph(model: ModelProto) -> None:
    branch = _branch(outside=True)
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.add().CopyFrom(node)


def _hidden_subgraph(model: ModelProto) -> None:
    """An allowed operator with a graph where the type says number."""
    attribute = model.graph.node[0].attribute[0]
    attribute.g.CopyFrom(_branch(outside=False))


def _function(outside: bool) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor = _outside(_tensor()) if outside else _tensor()
        constant = helper.make_node("Constant", [], ["y"], value=tensor)
        opset = [helper.make_opsetid("", 13)]
        model.functions.add().CopyFrom(
            helper.make_function("", "Add", ["a", "b"], ["y"], [constant], opset)
        )

    return change


def _sparse(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor())
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1]), "hidden"))
    sparse.dims[:] = [2]


def _loop(model: ModelProto) -> None:
    node = helper.make_node("Loop", ["n", "c"], ["y"], body=_branch(outside=False))
    model.graph.node.add().CopyFrom(node)


def _expand(*shape: int) -> Callable[[ModelProto], None]:
    """Change that blows a number up to `shape` inside the graph."""

    def change(model: ModelProto) -> None:
        shape_of = numpy_helper.from_array(np.array(shape, np.int64), "shape")
        model.graph.initializer.add().CopyFrom(shape_of)
        model.graph.node.add().CopyFrom(helper.make_node("Expand", ["one", "shape"], ["big"]))

    return change


def _integer(operator: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        zero = numpy_helper.from_array(np.array([0], np.int64), "zero")
        model.graph.initializer.add().CopyFrom(zero)
        node = helper.make_node(operator, ["zero", "zero"], ["crash"], name="divide")
        model.graph.node.add().CopyFrom(node)

    return change


def _resize(side: str, index: int, *dims: int | str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        values = getattr(model.graph, side)
        values[index].CopyFrom(
            helper.make_tensor_value_info(values[index].name, TensorProto.FLOAT, dims)
        )

    return change


def _claim(model: ModelProto) -> None:
    """Intermediate shapes stated falsely, small, while the truth is large."""
    _expand(2**30)(model)
    value = helper.make_tensor_value_info("big", TensorProto.FLOAT, [1])
    model.graph.value_info.add().CopyFrom(value)


def _reshape_by_input(model: ModelProto) -> None:
    """A shape that hangs on a measurement."""
    model.graph.node.add().CopyFrom(
        helper.make_node("Cast", ["carry_count"], ["size"], to=TensorProto.INT64)
    )
    model.graph.node.add().CopyFrom(helper.make_node("Squeeze", ["size"], ["flat"]))
    model.graph.node.add().CopyFrom(helper.make_node("Unsqueeze", ["flat", "axes"], ["shape"]))
    model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.array([0]), "axes"))
    model.graph.node.add().CopyFrom(helper.make_node("Expand", ["one", "shape"], ["big"]))


OUTSIDE = "weight 'hidden' of shape [2] is kept outside the file, expected its values inside"
GRAPH_REFUSALS: dict[str, tuple[Callable[[ModelProto], Any], str]] = {
    "domain": (lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"),
        "operators of 'com.microsoft', expected ONNX's own only"),
    "opset domain": (lambda m: m.opset_import.add(domain="mine", version=1), "operators of 'mine'"),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 99),
        "operator sets [99], expected one of 11 to 22"),
    "no opset": (lambda m: m.ClearField("opset_import"), "operator sets []"),
    "IR": (lambda m: setattr(m, "ir_version", 14), "IR version 14, expected 3 to 10"),
    "external weight": (_external_weight, "weight 'gain' of shape [4, 15] is kept outside"),
    "external sparse": (_external_sparse, OUTSIDE),
    "external constant": (_external_constant, OUTSIDE),
    "external sparse constant": (_external_sparse_constant, OUTSIDE),
    "external in subgraph": (_external_subgraph, OUTSIDE),
    "function": (_function(outside=False), "local functions or training information"),
    "training": (lambda m: m.training_info.add(), "local functions or training information"),
    "sparse": (_sparse, "sparse weights, expected dense ones"),
    "Loop": (_loop, "operator 'Loop', which a policy may not contain"),
    "Scan": (_swap(1, "Scan"), "operator 'Scan', which a policy may not contain"),
    "If": (_swap(1, "If"), "operator 'If', which a policy may not contain"),
    "random": (_swap(1, "RandomNormalLike"), "operator 'RandomNormalLike', which a policy"),
    "hidden subgraph": (_hidden_subgraph, "attribute 'axis' of Concat holds a graph"),
    "unexpected tensor": (_swap(1, "Add", value=_tensor()),
        "attribute 'value' of Add holds a graph or tensor, expected numbers or text"),
    "infinite attribute": (_swap(1, "LeakyRelu", alpha=float("inf")),
        "attribute 'alpha' of LeakyRelu is not finite"),
    "huge weight": (_weight(dims=[2**40], raw_data=b""), "weight 'gain' of shape [1099511627776] "
        f"is too large, expected at most {ELEMENTS_MAX} numbers in all"),
    "huge product": (_weight(dims=[2**31] * 4), "weight 'gain' of shape [2147483648, "),
    "negative": (_weight(dims=[-4, -15]), "weight 'gain' of shape [-4, -15] is too large"),
    "many dimensions": (_weight(dims=[1] * 9), "weight 'gain' of shape [1, 1, 1, 1, 1, 1, 1, 1"),
    "short": (_weight(raw_data=b"\0" * 8), "weight 'gain' of shape [4, 15] holds 8 bytes"),
    "type": (_weight(data_type=TensorProto.STRING), "weight 'gain' of shape [4, 15] has type 8, "
        "expected float32, float64, int64, int32, bool"),
    "NaN": (_values(1.0, float("nan")), "weight 'gain' of shape [4, 15] is not finite"),
    "+Inf": (_values(float("inf")), "weight 'gain' of shape [4, 15] is not finite"),
    "-Inf": (_values(float("-inf")), "weight 'gain' of shape [4, 15] is not finite"),
    "huge value": (_expand(2**40), "value 'big' of Expand has shape [1099511627776]: too large"),
    "huge sum": (_expand(2**12, 2**12), "value 'big' of Expand has shape [4096, 4096]: too large"),
    "false claim": (_claim, "value 'big' of Expand has shape [1073741824]: too large"),
    "shape by value": (_reshape_by_input, "value 'big' of Expand has shape None, expected fixed"),
    "integer Div": (_integer("Div"), "Div 'divide' works on integers, expected floats"),
    "integer Mod": (_integer("Mod"), "Mod 'divide' works on integers, expected floats"),
    "input width": (_resize("input", 0, 1, 4), "input 'imu_gyro' has type 1 and shape [1, 4], "
        "expected 1 (float32) and [1, 3]"),
    "open input": (_resize("input", 0, "batch", 3), "input 'imu_gyro' has type 1 and shape None"),
    "output width": (_resize("output", 0, 1, 5), "output 'observation' has type 1 and shape"),
    "input name": (lambda m: setattr(m.graph.input[0], "name", "gyro"),
        "input 'gyro', expected one of joint_pos, joint_vel, imu_quat_wxyz, imu_gyro, command, "),
    "no carry": (lambda m: m.graph.input.pop(), "input carry_count is missing; available: imu"),
    "no output": (lambda m: m.graph.output.pop(0), "output observation is missing; available: "
        "joint_pos_target, carry_count_next"),
    "double output": (lambda m: m.graph.output.add().CopyFrom(m.graph.output[0]),
        "outputs: 'observation' given twice"),
    "overridden input": (lambda m: m.graph.initializer.add().CopyFrom(
        numpy_helper.from_array(np.zeros((1, 3), np.float32), "imu_gyro")),
        "input 'imu_gyro', expected one of"),
    "dangling": (lambda m: m.graph.node.pop(1), "not valid ONNX: "),
    "cycle": (lambda m: m.graph.node[0].input.append("moved"), "not valid ONNX: "),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPH_REFUSALS)
def test_a_graph_that_could_do_harm_is_refused(case: str) -> None:
    change, reason = GRAPH_REFUSALS[case]
    model = toy_model()
    change(model)
    message = refusal(packed(model))
    assert message.startswith(f"toy.onnx: graph: {reason}"), message


def test_a_function_cannot_hide_external_data() -> None:
    model = toy_model()
    _function(outside=True)(model)
    assert refusal(packed(model)).startswith("toy.onnx: graph: ")


def test_a_bad_graph_is_not_written(tmp_path: Path) -> None:
    model, manifest = toy_model(), toy_policy().manifest
    _values(float("nan"))(model)
    with pytest.raises(UserError, match="is not finite"):
        write_policy(tmp_path / "toy.onnx", model, manifest)
    assert list(tmp_path.iterdir()) == []


# --- damage ---------------------------------------------------------------------------------------


def test_damaged_files_are_refused_or_fail_their_golden_vector_but_never_crash() -> None:
    good = packed()
    rng = np.random.default_rng(20)
    outcomes = {"refused": 0, "golden": 0, "same": 0}
    for turn in range(600):
        damaged = bytearray(good)
        # The weights and structure lie before the manifest; hit both halves equally often.
        start, end = (0, good.index(b"plexus-policy")) if turn % 2 else (0, len(good))
        at = int(rng.integers(start, end))
        match turn % 5:
            case 0 | 1:
                damaged[at] ^= 1 << int(rng.integers(8))
            case 2:
                damaged[at] = int(rng.integers(256))
            case 3:
                del damaged[at : at + int(rng.integers(1, 9))]
            case 4:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 9)))
        try:
            policy = parse_policy(bytes(damaged), PATH)
        except UserError:
            outcomes["refused"] += 1
            continue
        try:
            verify_golden(PolicySession(policy), policy.manifest)
        except UserError:
            outcomes["golden"] += 1
        else:
            outcomes["same"] += 1
    assert outcomes["refused"] > 300, outcomes
    assert outcomes["golden"] > 10, outcomes
