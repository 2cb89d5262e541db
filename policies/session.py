"""Runs a policy: measurements are written into its buffers, one call, targets are read from others.

Nothing is allocated per step, and the state of one step becomes the input of the next without a
copy. It does not know topics, clocks or where measurements come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)

from policies.manifest import (
    VELOCITIES,
    Golden,
    Manifest,
    PolicyFile,
    default_command,
    input_shapes,
    output_shapes,
)
from robot.config import UserError, listing
from robot.geomap import SCAN_XY

Provider = Literal["cpu", "cuda", "tensorrt"]
# asked for -> ONNX Runtime's providers, the wanted one first
PROVIDERS: dict[Provider, tuple[tuple[str, dict[str, Any]], ...]] = {
    "cpu": (("CPUExecutionProvider", {}),),
    "cuda": (
        ("CUDAExecutionProvider", {"use_tf32": 0}),  # TF32 has 10 bits: golden vectors would fail
        ("CPUExecutionProvider", {}),
    ),
    "tensorrt": (
        ("TensorrtExecutionProvider", {"trt_fp16_enable": False}),
        ("CUDAExecutionProvider", {"use_tf32": 0}),
        ("CPUExecutionProvider", {}),
    ),
}
GOLDEN_TOLERANCE = 1e-5  # rad and observation units; measured 7e-7 (PPO), 2.3e-6 (FastSAC)
RUNTIME_ERRORS = (
    EPFail, Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException,
    RuntimeError, ValueError,
)  # fmt: skip


class PolicySession:
    """One policy, loaded from the bytes that were checked; starts at the first step of an episode.

    Args:
        policy: a checked policy.
        provider: what shall compute it.
        allow_fallback: compute on the CPU where `provider` is not to be had; else that is refused.

    Raises:
        UserError: the provider is not available or ONNX Runtime refuses the graph.
    """

    def __init__(
        self, policy: PolicyFile, provider: Provider = "cpu", allow_fallback: bool = True
    ) -> None:
        self.manifest = policy.manifest
        self.provider, self.fallback, session = _open(policy, provider)
        if self.fallback and not allow_fallback:
            raise UserError(f"{policy.path}: {self.fallback}, and falling back is not allowed")
        device = "cpu" if self.provider == "cpu" else "cuda"

        shapes, results = input_shapes(self.manifest), output_shapes(self.manifest)
        carried = [f"carry_{carry.name}" for carry in self.manifest.carry]
        self.inputs: dict[str, NDArray[np.float32]] = {
            name: np.zeros(shape, np.float32)
            for name, shape in shapes.items()
            if name[:6] != "carry_"
        }  # the buffers to write into, (1, n) each, also those that this graph does not read
        outputs = {
            name: np.zeros(results[name], np.float32)
            for name in ("joint_pos_target", "observation")
        }
        self.joint_pos_target: NDArray[np.float32] = outputs["joint_pos_target"][0]
        self.observation: NDArray[np.float32] = outputs["observation"][0]

        read = {value.name for value in session.get_inputs()}
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(buffer, device)
            for name, buffer in self.inputs.items()
            if name in read
        }
        # On the CPU an OrtValue is the numpy buffer itself; a GPU has its own that must be filled.
        uploads = [(value, self.inputs[name]) for name, value in values.items()]
        self._uploads = tuple(uploads) if device == "cuda" else ()
        self._carry = tuple(
            {name: _zeros(shapes[name], device) for name in carried} for _turn in range(2)
        )
        self._bindings = (session.io_binding(), session.io_binding())
        for turn, binding in enumerate(self._bindings):
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name, buffer in outputs.items():
                binding.bind_output(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            for name in carried:  # what this turn puts out is what the other turn takes in
                binding.bind_ortvalue_input(name, self._carry[turn][name])
                binding.bind_ortvalue_output(f"{name}_next", self._carry[1 - turn][name])
        self.reads_base_lin_vel = "base_lin_vel" in read
        self.reads_height_scan = "height_scan" in read or "height_flag" in read
        self.reads = frozenset(read)
        self._outputs = outputs  # the bindings hold addresses only
        self._run = session.run_with_iobinding
        self._turn = 0
        self._first = self.inputs["first"]
        self.reset()

    def reset(self) -> None:
        """Start a new episode: initial carry, and `first` is 1 for one step."""
        initial = {carry.name: carry.initial for carry in self.manifest.carry}
        self.set_carry({name: np.array(values, np.float32) for name, values in initial.items()})
        self._first[0, 0] = 1.0

    def run(self) -> None:
        """One step, from `inputs` to `joint_pos_target` and `observation`, all in place."""
        for value, buffer in self._uploads:
            value.update_inplace(buffer)
        self._run(self._bindings[self._turn])
        self._turn = 1 - self._turn
        self._first[0, 0] = 0.0

    def rehearse(self) -> None:
        """Compute the next step without taking it: what it carries and `first` stay as they are.

        What slept for 20 ms finds its weights and code gone from the caches, which costs a step of
        the usual size more than its arithmetic.
        """
        self._run(self._bindings[self._turn])

    def step(self, **measurements: ArrayLike) -> NDArray[np.float32]:
        """Write the named inputs, run, and return the (driven,) joint_pos_target buffer, rad."""
        for name, value in measurements.items():
            self.inputs[name][0] = value
        self.run()
        return self.joint_pos_target

    @property
    def first(self) -> bool:
        """True while the next step is the first of an episode."""
        return bool(self._first[0, 0])

    @first.setter
    def first(self, value: bool) -> None:
        self._first[0, 0] = value

    def carry(self) -> dict[str, NDArray[np.float32]]:
        """Copies of the state that the next step will take in, by the manifest's names."""
        turn = self._carry[self._turn]
        return {c.name: np.array(turn[f"carry_{c.name}"].numpy()) for c in self.manifest.carry}

    def set_carry(self, values: Mapping[str, ArrayLike]) -> None:
        """Continue an episode from the result of carry(): all of its names, and `first` is 0."""
        turn = self._carry[self._turn]
        for carry in self.manifest.carry:
            value = np.array(values[carry.name], np.float32).reshape(carry.shape)
            turn[f"carry_{carry.name}"].update_inplace(value)
        self._first[0, 0] = 0.0


def _zeros(shape: tuple[int, ...], device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), device)


def _open(
    policy: PolicyFile, provider: Provider
) -> tuple[Provider, str | None, ort.InferenceSession]:
    """What really computes, a sentence if that is not what was asked for, and the session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the caller's thread; a pool costs milliseconds at p99
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # a missing GPU is told by `fallback`, not in red
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    available = ort.get_available_providers()
    wanted = [entry for entry in PROVIDERS[provider] if entry[0] in available]
    if provider != "cpu":
        ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(policy.data, options, providers=wanted)
    except RUNTIME_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{policy.path}: ONNX Runtime refuses the graph: {reason}") from None
    name = session.get_providers()[0]
    got: Provider = next(key for key, entries in PROVIDERS.items() if entries[0][0] == name)
    if got == provider:
        return got, None, session
    return got, f"{provider} was asked for, {got} computes (here: {listing(available)})", session


def verify_golden(session: PolicySession, manifest: Manifest) -> float:
    """Run the manifest's test vectors; the session is reset before and after.

    Returns:
        the largest absolute difference to the recorded outputs.

    Raises:
        UserError: it is above GOLDEN_TOLERANCE, or the graph fails while running.
    """
    computed = _replay(session, manifest.golden.inputs)
    worst = 0.0
    for name, rows in manifest.golden.outputs.items():
        difference = np.abs(computed[name] - np.array(rows))
        highest = float(difference.max())
        worst = max(worst, highest)
        if not highest <= GOLDEN_TOLERANCE:  # also where it is not a number
            step, at = np.unravel_index(difference.argmax(), difference.shape)
            raise UserError(
                f"{manifest.name}: golden {name}[{at}] of step {step} differs by {highest:.3g} on "
                f"{session.provider}, expected at most {GOLDEN_TOLERANCE:g}"
            )
    return worst


def record_golden(session: PolicySession, inputs: Mapping[str, ArrayLike]) -> Golden:
    """Test vectors from `inputs` (name -> step -> flat values), run from the start of an episode.

    Inputs that are not given stay as they are, except `first`, which the session handles. Those
    that the graph does not read are left out.

    Raises:
        UserError: the graph fails while running or yields something that is not finite.
    """
    inputs = {name: rows for name, rows in inputs.items() if name in session.reads}
    outputs = _replay(session, inputs)
    for name, rows in outputs.items():
        if not np.isfinite(rows).all():
            raise UserError(f"{session.manifest.name}: {name} is not finite on plausible inputs")
    return Golden(
        inputs={name: _rows(np.array(rows, np.float32)) for name, rows in inputs.items()},
        outputs={name: _rows(rows) for name, rows in outputs.items()},
    )


def _replay(
    session: PolicySession, inputs: Mapping[str, ArrayLike]
) -> dict[str, NDArray[np.float32]]:
    """Output name -> (steps, n) of one episode from its start; the session is reset afterwards."""
    given = {name: np.array(rows, np.float32) for name, rows in inputs.items()}
    outputs: dict[str, list[NDArray[np.float32]]] = {}
    session.reset()
    try:
        for step in range(len(next(iter(given.values())))):
            session.step(**{name: rows[step] for name, rows in given.items()})
            results = {f"carry_{name}_next": value for name, value in session.carry().items()}
            results["joint_pos_target"] = session.joint_pos_target
            results["observation"] = session.observation
            for name, value in results.items():
                outputs.setdefault(name, []).append(np.array(value).ravel())
    except RUNTIME_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{session.manifest.name}: fails while running: {reason}") from None
    session.reset()
    return {name: np.array(rows) for name, rows in outputs.items()}


def golden_inputs(manifest: Manifest, steps: int = 12, seed: int = 0) -> dict[str, NDArray]:
    """Test measurements near the default pose; a third of the steps stands, the rest moves.

    Returns:
        name -> (steps, n) float32 for every input but the carry.
    """
    rng = np.random.default_rng(seed)
    pose = {joint.name: joint.pose for joint in manifest.held_joints}
    pose |= dict(zip(manifest.driven_joints, manifest.default_joint_pos, strict=True))
    default = np.array([pose.get(name, 0.0) for name in manifest.observed_joints])
    tilt = np.hstack([np.ones((steps, 1)), 0.1 * rng.standard_normal((steps, 3))])
    command = np.tile(default_command(manifest), (steps, 1)).astype(np.float32)
    for at, name in enumerate(VELOCITIES):
        if limits := getattr(manifest.command_ranges, name):
            command[steps // 3 :, at] = rng.uniform(*limits)
    command[steps // 3 :, len(VELOCITIES) :] += 0.1
    inputs = {
        "joint_pos": default + 0.1 * rng.standard_normal((steps, default.size)),
        "joint_vel": 0.5 * rng.standard_normal((steps, default.size)),
        "imu_quat_wxyz": tilt / np.linalg.norm(tilt, axis=1, keepdims=True),
        "imu_gyro": 0.3 * rng.standard_normal((steps, 3)),
        "command": command,
        "first": np.eye(steps, 1),
        "base_lin_vel": 0.3 * rng.standard_normal((steps, 3)),
        "height_scan": 0.75 + 0.1 * rng.standard_normal((steps, len(SCAN_XY))),
        "height_flag": np.arange(steps)[:, None] % 4 == 3,
    }
    return {name: rows.astype(np.float32) for name, rows in inputs.items()}


def _rows(values: NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    """Steps of flat values as plain numbers; 9 digits hold a float32 exactly."""
    return tuple(tuple(float(f"{x:.9g}") for x in row) for row in values)
