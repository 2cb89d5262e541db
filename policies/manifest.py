"""Describes a policy file: its manifest, and every check that comes before ONNX Runtime sees it.

A policy is one ONNX graph from raw measurements to joint targets; what the graph cannot say (names,
units, gains, ranges, test vectors) is a JSON record in its metadata. It does not run anything
(session.py) and does not know the formats of other projects (importers).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, TensorProto
from pydantic import Field, model_validator

from robot.config import Strict, UserError, check, listing, short
from robot.geomap import SCAN_XY
from robot.messages import policy_id
from robot.model import Robot

FORMAT = "plexus-policy/1"
METADATA_KEY = "plexus_manifest"
FILE_BYTES_MAX = 64 * 1024**2
ELEMENTS_MAX = 16 * 1024**2  # weights and intermediate values together: 64 MiB of float32
RANK_MAX = 8
NODES_MAX = 4096
IR_VERSION_MAX = 10  # the newest that ONNX Runtime for GPUs reads
OPSETS = range(11, 23)
ONNX_DOMAINS = ("", "ai.onnx")
VELOCITIES = ("vx", "vy", "yaw_rate", "base_height")  # order of the command before the arm joints
# No control flow, nothing random, nothing whose size hangs on a value (Range, ConstantOfShape, Pad,
# Tile, Resize) or is hidden inside the operator (Einsum, Conv). Add one when a policy needs it.
OPERATORS = frozenset({
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant", "Cos",
    "Div", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather", "Gelu",
    "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LSTM",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tanh", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
FLOAT_ONLY = ("Div", "Mod")  # an integer divided by zero ends the process
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
PLAIN_ATTRIBUTES = (
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING,
    AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
)  # fmt: skip
ITEM_TYPES: dict[int, tuple[str, str]] = {  # ONNX type -> numpy name, field of the values
    TensorProto.FLOAT: ("float32", "float_data"),
    TensorProto.DOUBLE: ("float64", "double_data"),
    TensorProto.INT64: ("int64", "int64_data"),
    TensorProto.INT32: ("int32", "int32_data"),
    TensorProto.BOOL: ("bool", "int32_data"),
}

Float = Annotated[float, Field(ge=-3.4e38, le=3.4e38)]  # fits float32
Range = tuple[Float, Float]
Steps = dict[str, tuple[tuple[Float, ...], ...]]  # name -> step -> flat values


class HeldJoint(Strict):
    """A joint the policy does not drive."""

    name: str
    pose: Float  # rad
    stiffness: Float  # N m/rad
    damping: Float  # N m s/rad


class CommandRanges(Strict):
    """What an operator may ask for; null where the policy does not listen."""

    vx: Range  # m/s, forward
    vy: Range  # m/s, left
    yaw_rate: Range  # rad/s, anticlockwise
    base_height: Range | None = None  # m


class CommandDefault(Strict):
    """What the policy is told when nobody commands."""

    vx: Float = 0.0
    vy: Float = 0.0
    yaw_rate: Float = 0.0
    base_height: Float = 0.0


class Term(Strict):
    """One block of the observation, in the order of the vector."""

    name: str
    width: int  # numbers of all frames together
    scale: Float = 1.0  # applied to the raw term inside the graph
    history: int = 1  # frames


class Carry(Strict):
    """State that the graph hands from one step to the next: carry_<name> -> carry_<name>_next."""

    name: str
    shape: tuple[int, ...]
    initial: tuple[Float, ...]  # flat, at the start of an episode


class Golden(Strict):
    """Consecutive steps from the start of an episode; the carry is threaded, not an input here."""

    inputs: Steps
    outputs: Steps

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(next(iter(self.inputs.values()), ()))


class Manifest(Strict):
    """The record inside a policy file. Lists over driven joints follow `driven_joints`."""

    format: Literal["plexus-policy/1"] = FORMAT
    name: str
    robot: str
    observed_joints: tuple[str, ...]  # order of joint_pos and joint_vel
    driven_joints: tuple[str, ...]  # order of joint_pos_target
    held_joints: tuple[HeldJoint, ...] = ()
    arm_joints: tuple[str, ...]  # order of the arm targets at the end of the command
    stiffness: tuple[Float, ...]  # N m/rad
    damping: tuple[Float, ...]  # N m s/rad
    default_joint_pos: tuple[Float, ...]  # rad, the pose an action of zero means
    imu: str  # which IMU feeds imu_quat_wxyz and imu_gyro
    step_dt: Float  # s
    command_ranges: CommandRanges
    command_default: CommandDefault = CommandDefault()
    uses_arms: bool = False  # whether it follows the arm targets of the command
    observation: tuple[Term, ...]
    carry: tuple[Carry, ...] = ()
    trained_limits: dict[str, Float | tuple[Float, ...]] | None = None
    golden: Golden = Golden(inputs={}, outputs={})
    provenance: dict[str, str | int | Float]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        _check_joints(self)
        _check_terms(self)
        _check_command(self)
        _check_golden(self)
        return self


@dataclass(frozen=True)
class PolicyFile:
    """A policy that passed every check that needs no robot."""

    path: Path
    data: bytes  # the very bytes that were checked
    sha256: str  # hexadecimal, of data
    policy_id: int  # uint64, the first 8 bytes of sha256 read as a big-endian number
    manifest: Manifest


def input_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shape of every input the contract knows; a graph may leave out those it does not read."""
    observed = (1, len(manifest.observed_joints))
    return {
        "joint_pos": observed,  # rad
        "joint_vel": observed,  # rad/s
        "imu_quat_wxyz": (1, 4),  # IMU in the world
        "imu_gyro": (1, 3),  # rad/s, in the IMU's frame
        "command": (1, len(VELOCITIES) + len(manifest.arm_joints)),
        "first": (1, 1),  # 1 on the first step of an episode, else 0
        "base_lin_vel": (1, 3),  # m/s, of the pelvis in its own frame, estimated
        "height_scan": (1, len(SCAN_XY)),  # m, pelvis z minus ground z, cells of robot.geomap
        "height_flag": (1, 1),  # 1 where the ground is not known and the scan means nothing
        **{f"carry_{carry.name}": carry.shape for carry in manifest.carry},
    }


def output_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shape of every output; all are required."""
    return {
        "joint_pos_target": (1, len(manifest.driven_joints)),  # rad
        "observation": (1, sum(term.width for term in manifest.observation)),
        **{f"carry_{carry.name}_next": carry.shape for carry in manifest.carry},
    }


def joint_names(manifest: Manifest) -> list[str]:
    """The driven joints, then the held ones."""
    return [*manifest.driven_joints, *(joint.name for joint in manifest.held_joints)]


def joint_table(manifest: Manifest) -> dict[str, tuple[float, float, float]]:
    """Joint name -> default position (rad), stiffness (N m/rad), damping (N m s/rad)."""
    gains = zip(manifest.default_joint_pos, manifest.stiffness, manifest.damping, strict=True)
    table = dict(zip(manifest.driven_joints, gains, strict=True))
    return table | {j.name: (j.pose, j.stiffness, j.damping) for j in manifest.held_joints}


def default_command(manifest: Manifest) -> NDArray[np.float32]:
    """(4 + A,) command that asks for nothing: vx, vy, yaw_rate, base_height, arm joint targets."""
    velocities = [getattr(manifest.command_default, name) for name in VELOCITIES]
    table = joint_table(manifest)
    arms = [table[name][0] if name in table else 0.0 for name in manifest.arm_joints]
    return np.array([*velocities, *arms], np.float32)


# --- the manifest with itself; pydantic hands the ValueError to robot.config.check ---------------


def _check_joints(m: Manifest) -> None:
    if not m.driven_joints:
        raise ValueError("driven_joints is empty, expected at least one joint")
    _refuse_doubled("observed_joints", m.observed_joints)
    _refuse_doubled("driven_joints and held_joints", joint_names(m))
    _refuse_doubled("arm_joints", m.arm_joints)
    for field in ("stiffness", "damping", "default_joint_pos"):
        got, expected = len(getattr(m, field)), len(m.driven_joints)
        if got != expected:
            raise ValueError(f"{field} has {got} values, expected {expected}: one per driven joint")
    for name, (_, stiffness, damping) in joint_table(m).items():
        if min(stiffness, damping) < 0:
            raise ValueError(
                f"{name}: stiffness is {stiffness} and damping {damping}, expected 0 or more"
            )
    if not m.step_dt > 0:
        raise ValueError(f"step_dt is {m.step_dt} s, expected more than 0")


def _check_terms(m: Manifest) -> None:
    _refuse_doubled("observation", [term.name for term in m.observation])
    _refuse_doubled("carry", [carry.name for carry in m.carry])
    for term in m.observation:
        if term.width < 1 or term.history < 1 or term.width % term.history:
            raise ValueError(
                f"observation {term.name!r} has width {term.width} and history {term.history}, "
                "expected a width that is a multiple of the history"
            )
    for carry in m.carry:
        size = math.prod(carry.shape)
        if min(carry.shape, default=1) < 1 or size != len(carry.initial):
            raise ValueError(
                f"carry {carry.name!r} has shape {list(carry.shape)} and {len(carry.initial)} "
                "initial values, expected one for each element"
            )


def _check_command(m: Manifest) -> None:
    for name in VELOCITIES:
        limits = getattr(m.command_ranges, name)
        default = getattr(m.command_default, name)
        if limits is None:
            continue
        if limits[0] > limits[1]:
            raise ValueError(
                f"command_ranges.{name} is {list(limits)}, expected the lowest, then the highest"
            )
        if not limits[0] <= default <= limits[1]:
            raise ValueError(
                f"command_default.{name} is {default}, expected it within {list(limits)}"
            )


def _check_golden(m: Manifest) -> None:
    inputs = {name: shape for name, shape in input_shapes(m).items() if name[:6] != "carry_"}
    for vectors, shapes in ((m.golden.inputs, inputs), (m.golden.outputs, output_shapes(m))):
        for name, rows in vectors.items():
            if name not in shapes:
                raise ValueError(f"golden has {name!r}, expected one of {listing(shapes)}")
            if len(rows) != m.golden.steps:
                raise ValueError(
                    f"golden {name!r} has {len(rows)} steps, expected {m.golden.steps} as before it"
                )
            width = math.prod(shapes[name])
            for row in rows:
                if len(row) != width:
                    raise ValueError(f"golden {name!r} has {len(row)} in a row, expected {width}")


def _refuse_doubled(where: str, names: Iterable[str]) -> None:
    doubled = [repr(name) for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise ValueError(f"{where}: {listing(doubled)} given twice")


# --- reading and writing ------------------------------------------------------------------------


def read_policy(path: Path) -> PolicyFile:
    """Read and check a policy file, as far as that is possible without a robot.

    Raises:
        UserError: the file is not a bounded, self-consistent policy; the reason is in the text.
    """
    return parse_policy(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of bounded size; links and pipes are refused unopened."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link, expected a regular file")
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.onnx"))
        raise UserError(f"{path}: no such file; available there: {listing(near)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened: {error}") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path}: not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    finally:
        os.close(handle)
    if len(data) > FILE_BYTES_MAX:
        raise UserError(
            f"{path}: has {about.st_size} bytes, expected at most {FILE_BYTES_MAX} (64 MiB)"
        )
    return data


def parse_onnx(data: bytes, path: Path) -> ModelProto:
    """Bytes to a model, or a UserError. Nothing in the model is checked yet."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise UserError(f"{path}: not an ONNX file") from None
    if not model.graph.node:
        raise UserError(f"{path}: not an ONNX file with a graph")
    if not _is_text(model):
        raise UserError(f"{path}: a name in it is not valid UTF-8")
    return model


def is_ours(model: ModelProto) -> bool:
    """True if the file has our manifest, be it a good or a bad one."""
    return any(entry.key == METADATA_KEY for entry in model.metadata_props)


def _is_text(message: Message) -> bool:
    """Whether all strings are text: protobuf hands out bytes for those that are not UTF-8."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        for part in [value] if isinstance(value, Message | str | bytes) else value:
            if isinstance(part, bytes) or (isinstance(part, Message) and not _is_text(part)):
                return False
    return True


def parse_policy(data: bytes, path: Path) -> PolicyFile:
    """Check the bytes of a policy file; `path` is only for messages."""
    if data[4:8] == b"ORTM":  # ONNX Runtime would read these bytes in its own, unchecked format
        raise UserError(f"{path}: is in ONNX Runtime's own format, expected ONNX")
    model = parse_onnx(data, path)
    manifest = _manifest_of(model, path)
    golden = manifest.golden
    if golden.steps < 1 or not {"joint_pos_target", "observation"} <= golden.outputs.keys():
        raise UserError(
            f"{path}: manifest: golden has {golden.steps} steps with outputs "
            f"{listing(golden.outputs)}, expected joint_pos_target and observation of some steps"
        )
    check_graph(model, manifest, path)
    return _file(path, data, manifest)


def pack_policy(model: ModelProto, manifest: Manifest, path: Path) -> PolicyFile:
    """Check a graph made in this process and put the manifest in; nothing is written."""
    packed = ModelProto()
    packed.CopyFrom(model)
    del packed.metadata_props[:]  # others' metadata may hold private paths
    packed.metadata_props.add(key=METADATA_KEY, value=manifest.model_dump_json())
    check_graph(packed, manifest, path)
    return _file(path, packed.SerializeToString(deterministic=True), manifest)


def write_policy(path: Path, model: ModelProto, manifest: Manifest) -> PolicyFile:
    """Write a policy file, whole or not at all, after every check that reading would make."""
    policy = parse_policy(pack_policy(model, manifest, path).data, path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(policy.data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error}") from None
    return policy


def _file(path: Path, data: bytes, manifest: Manifest) -> PolicyFile:
    sha256 = hashlib.sha256(data).hexdigest()
    return PolicyFile(
        path=path, data=data, sha256=sha256, policy_id=policy_id(data), manifest=manifest
    )


def _manifest_of(model: ModelProto, path: Path) -> Manifest:
    texts = [prop.value for prop in model.metadata_props if prop.key == METADATA_KEY]
    if len(texts) != 1:
        raise UserError(
            f"{path}: metadata {METADATA_KEY!r} occurs {len(texts)} times, expected once; "
            f"available: {listing(prop.key for prop in model.metadata_props)}; files of other "
            "projects are converted by `plexus policy import`"
        )
    try:
        data = json.loads(texts[0], object_pairs_hook=_no_doubled_key)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: manifest: not valid JSON: {short(str(error))}") from None
    version = data.get("format") if isinstance(data, dict) else data
    if version != FORMAT:
        raise UserError(
            f"{path}: manifest: format is {short(version)}, this version of Plexus reads {FORMAT!r}"
        )
    return check(data, Manifest, where=f"{path}: manifest")


def _no_doubled_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_doubled("keys", [key for key, _ in pairs])
    return dict(pairs)


# --- the graph, before ONNX Runtime ---------------------------------------------------------------


def check_graph(model: ModelProto, manifest: Manifest, path: Path) -> None:
    """Refuse a graph that could read files, never end, exhaust memory or miss the contract.

    Everything that allocates by a number in the file comes after that number was bounded.

    Raises:
        UserError: where, got, expected.
    """
    try:
        _check_versions(model)
        _check_tensors(model)
        _check_nodes(model)
        _check_interface(model, manifest)
        _check_values(model)
    except ValueError as error:
        raise UserError(f"{path}: graph: {error}") from None


def _check_versions(model: ModelProto) -> None:
    domains = [entry.domain for entry in model.opset_import]
    domains += [node.domain for node in model.graph.node]
    foreign = sorted({repr(domain) for domain in domains if domain not in ONNX_DOMAINS})
    if foreign:
        raise ValueError(f"operators of {listing(foreign)}, expected ONNX's own only")
    opsets = [entry.version for entry in model.opset_import]
    if len(opsets) != 1 or opsets[0] not in OPSETS:
        raise ValueError(f"operator sets {opsets}, expected one of {OPSETS[0]} to {OPSETS[-1]}")
    if not 3 <= model.ir_version <= IR_VERSION_MAX:
        raise ValueError(f"IR version {model.ir_version}, expected 3 to {IR_VERSION_MAX}")
    if model.functions or model.training_info:
        raise ValueError("local functions or training information, expected a plain graph")


def _check_tensors(model: ModelProto) -> None:
    """Weights and constants lie inside the file, with bounded sizes and finite values."""
    elements = 0
    for tensor in _tensors(model):
        where = f"weight {tensor.name!r} of shape {list(tensor.dims)}"
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
            raise ValueError(f"{where} is kept outside the file, expected its values inside")
        size = math.prod(tensor.dims)
        elements += size
        bounded = min(tensor.dims, default=0) >= 0 and len(tensor.dims) <= RANK_MAX
        if not bounded or elements > ELEMENTS_MAX:
            raise ValueError(
                f"{where} is too large, expected at most {ELEMENTS_MAX} numbers in all"
            )
        if tensor.data_type not in ITEM_TYPES:
            expected = listing(name for name, _ in ITEM_TYPES.values())
            raise ValueError(f"{where} has type {tensor.data_type}, expected {expected}")
        dtype, field = ITEM_TYPES[tensor.data_type]
        raw = tensor.HasField("raw_data")
        got = len(tensor.raw_data) if raw else len(getattr(tensor, field))
        if got != size * (np.dtype(dtype).itemsize if raw else 1):
            raise ValueError(f"{where} holds {got} {'bytes' if raw else 'values'} of {dtype}")
        values = np.frombuffer(tensor.raw_data, dtype) if raw else np.array(getattr(tensor, field))
        if not np.isfinite(values).all():
            raise ValueError(f"{where} is not finite")
    if model.graph.sparse_initializer:
        raise ValueError("sparse weights, expected dense ones")


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor anywhere: weights, sparse ones, attributes, subgraphs, functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def _check_nodes(model: ModelProto) -> None:
    if len(model.graph.node) > NODES_MAX:
        raise ValueError(f"{len(model.graph.node)} nodes, expected at most {NODES_MAX}")
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            raise ValueError(f"operator {short(node.op_type)}, which a policy may not contain")
        for attribute in node.attribute:
            where = f"attribute {attribute.name!r} of {node.op_type}"
            constant = attribute.type == AttributeProto.TENSOR and node.op_type == "Constant"
            if not constant and attribute.type not in PLAIN_ATTRIBUTES:
                raise ValueError(f"{where} holds a graph or tensor, expected numbers or text")
            if attribute.graphs or attribute.HasField("g") or attribute.ref_attr_name:
                raise ValueError(f"{where} holds a graph or a reference, expected numbers or text")
            if not np.isfinite([attribute.f, *attribute.floats]).all():
                raise ValueError(f"{where} is not finite")


def _check_interface(model: ModelProto, manifest: Manifest) -> None:
    """Inputs and outputs are those of the contract, by name, type and shape."""
    inputs, outputs = input_shapes(manifest), output_shapes(manifest)
    threaded = [f"carry_{carry.name}" for carry in manifest.carry]
    weights = {tensor.name for tensor in model.graph.initializer}
    for side, values, shapes, needed in (
        ("input", model.graph.input, inputs, threaded),
        ("output", model.graph.output, outputs, list(outputs)),
    ):
        names = [value.name for value in values]
        _refuse_doubled(f"{side}s", names)
        missing = [name for name in needed if name not in names]
        if missing:
            raise ValueError(f"{side} {listing(missing)} is missing; available: {listing(names)}")
        for value in values:
            name, shape = value.name, _shape_of(value)
            if name not in shapes or name in weights:
                raise ValueError(f"{side} {name!r}, expected one of {listing(shapes)}")
            kind, expected = value.type.tensor_type.elem_type, list(shapes[name])
            if kind != TensorProto.FLOAT or shape != expected:
                raise ValueError(
                    f"{side} {name!r} has type {kind} and shape {shape}, expected "
                    f"{TensorProto.FLOAT} (float32) and {expected}"
                )


def _shape_of(value: onnx.ValueInfoProto | None) -> list[int] | None:
    """Dimensions of a value; None unless all are numbers."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(d.HasField("dim_value") for d in dims) else None


def _check_values(model: ModelProto) -> None:
    """Types and shapes of all intermediate values, inferred anew, are known and bounded."""
    graph = _inferred(model).graph
    values = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
    kinds = {name: value.type.tensor_type.elem_type for name, value in values.items()}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    elements = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    for node in graph.node:
        for name in filter(None, node.output):
            where, shape = f"value {name!r} of {node.op_type}", _shape_of(values.get(name))
            if shape is None or min(shape, default=0) < 0 or len(shape) > RANK_MAX:
                raise ValueError(f"{where} has shape {shape}, expected fixed dimensions")
            if kinds[name] not in ITEM_TYPES:
                expected = listing(name for name, _ in ITEM_TYPES.values())
                raise ValueError(f"{where} has type {kinds[name]}, expected {expected}")
            elements += math.prod(shape)
            if elements > ELEMENTS_MAX:
                raise ValueError(
                    f"{where} has shape {shape}: too large, expected at most {ELEMENTS_MAX} "
                    "numbers in all"
                )
        if node.op_type in FLOAT_ONLY and kinds.get(node.input[0]) not in FLOATS:
            raise ValueError(f"{node.op_type} {node.name!r} works on integers, expected floats")


def _inferred(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:], bare.metadata_props[:]  # what the file claims is not believed
    try:
        onnx.checker.check_model(bare)
        return onnx.shape_inference.infer_shapes(
            bare, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"not valid ONNX: {short(str(error).strip(), 200)}") from None
    except (DecodeError, EncodeError, RuntimeError, TypeError) as error:
        raise ValueError(f"cannot be analysed: {short(str(error).strip(), 200)}") from None


# --- the robot ------------------------------------------------------------------------------------


def check_policy(policy: PolicyFile, robot: Robot, control_hz: float = 500.0) -> None:
    """Refuse a policy that does not fit the robot.

    Args:
        policy: what read_policy returned.
        robot: the robot it shall drive.
        control_hz: rate of the control loop; step_dt must be a whole number of its periods.

    Raises:
        UserError: where, got, expected, available.
    """
    try:
        _check_names(policy.manifest, robot)
        _check_limits(policy.manifest, robot)
        periods = policy.manifest.step_dt * control_hz
        if round(periods) < 1 or abs(periods - round(periods)) > 1e-6:
            raise ValueError(
                f"step_dt is {policy.manifest.step_dt} s, expected a multiple of the control "
                f"period, {1 / control_hz:g} s"
            )
    except ValueError as error:
        raise UserError(f"{policy.path}: manifest: {error}") from None


def _check_names(m: Manifest, robot: Robot) -> None:
    if m.robot != robot.name:
        raise ValueError(f"a policy for robot {m.robot!r}, expected {robot.name!r}")
    if m.imu != robot.imu:
        raise ValueError(f"imu is {m.imu!r}, expected {robot.imu!r}")
    known = robot.joint_names
    for field, names in (
        ("observed_joints", m.observed_joints),
        ("driven_joints and held_joints", joint_names(m)),
    ):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or known
                raise ValueError(
                    f"{field}: {robot.name} has no joint {name!r}; available: {listing(near)}"
                )
    neither = [name for name in known if name not in joint_names(m)]
    if neither:
        raise ValueError(f"{listing(neither)} neither driven nor held, expected every joint")
    arms = tuple(known[i] for i in robot.arm_joints)
    if m.arm_joints != arms:
        raise ValueError(f"arm_joints are {listing(m.arm_joints)}, expected {listing(arms)}")


def _check_limits(m: Manifest, robot: Robot) -> None:
    for name, (pose, *gains) in joint_table(m).items():
        at = robot.joint_names.index(name)
        low, high = (float(limit) for limit in robot.position_limit[at])
        if not low <= pose <= high:
            raise ValueError(
                f"{name}: default position is {pose} rad, expected {low:g} to {high:g}"
            )
        highest = (float(robot.stiffness_max[at]), float(robot.damping_max[at]))
        for word, gain, most in zip(("stiffness", "damping"), gains, highest, strict=True):
            if gain > most:
                raise ValueError(f"{name}: {word} is {gain}, expected at most {most:g}")


# --- for the reader -------------------------------------------------------------------------------


def describe(policy: PolicyFile) -> str:
    """What `plexus policy show` prints."""
    m = policy.manifest
    lines = [
        f"{m.name} for {m.robot}",
        f"  file         {policy.path}",
        f"  sha256       {policy.sha256}",
        f"  rate         {1 / m.step_dt:g} Hz (step_dt {m.step_dt:g} s)",
        f"  imu          {m.imu}",
        f"  golden       {m.golden.steps} steps",
        "command",
    ]
    for name, unit in zip(VELOCITIES, ("m/s", "m/s", "rad/s", "m"), strict=True):
        limits, default = getattr(m.command_ranges, name), getattr(m.command_default, name)
        span = f"{limits[0]:g} to {limits[1]:g} {unit}, default {default:g}" if limits else "unused"
        lines.append(f"  {name:<12} {span}")
    lines.append(f"  {'arms':<12} {len(m.arm_joints)} joints, {'' if m.uses_arms else 'un'}used")
    lines.append(f"{'joints':<30} {'pose rad':>9} {'N m/rad':>10} {'N m s/rad':>10}")
    for name, (pose, stiffness, damping) in joint_table(m).items():
        role = "driven" if name in m.driven_joints else "held"
        role += "" if name in m.observed_joints else ", not observed"
        lines.append(f"  {name:<28} {pose:>9.4f} {stiffness:>10.4f} {damping:>10.4f}  {role}")
    lines.append(f"{'observation':<30} {'from':>5} {'width':>6} {'scale':>8} {'frames':>7}")
    offset = 0
    for term in m.observation:
        numbers = f"{offset:>5} {term.width:>6} {term.scale:>8g} {term.history:>7}"
        lines.append(f"  {term.name:<28} {numbers}")
        offset += term.width
    lines.append(f"  {'in all':<28} {'':>5} {offset:>6}")
    lines.append("carry")
    lines += [f"  {carry.name:<28} {list(carry.shape)}" for carry in m.carry]
    for title, entries in (("trained limits", m.trained_limits), ("provenance", m.provenance)):
        if entries:
            lines.append(title)
            lines += [f"  {name:<28} {_indented(value)}" for name, value in entries.items()]
    # The text comes from the file: no control characters reach the terminal.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _indented(value: object) -> str:
    return " / ".join(str(value).splitlines())
