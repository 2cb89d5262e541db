"""Importers: a small file in holosoma's format made here, and their two public ones if present."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from policies.importers import import_policy
from policies.importers.graph import IR_VERSION
from policies.manifest import PolicyFile, check_policy, describe, read_policy, write_policy
from policies.session import PolicySession, verify_golden
from robot.config import UserError
from robot.model import load_robot

ROBOT = load_robot("g1")
JOINTS = list(ROBOT.joint_names)
SHARED = Path(__file__).parents[2] / "shared" / "policies"
PUBLIC = {
    "ppo": "holosoma_ppo_g1_29dof/ppo_g1_29dof.onnx",
    "fastsac": "holosoma_fastsac_g1_29dof/fastsac_g1_29dof.onnx",
}
# Of holosoma's README for these files, written down a second time.
DEFAULT_POSE = np.array(
    [-0.312, 0, 0, 0.669, -0.363, 0] * 2 + [0, 0, 0] + [0.2, 0.2, 0, 0.6, 0, 0, 0]
    + [0.2, -0.2, 0, 0.6, 0, 0, 0]
)  # fmt: skip
METADATA = {
    "dof_names": JOINTS,
    "kp": [14.250623098] * 29,
    "kd": [0.907222843] * 29,
    "command_ranges": {
        "lin_vel_x": [-0.8, 1.0],
        "lin_vel_y": [-0.5, 0.5],
        "ang_vel_yaw": [-1.0, 1.0],
        "heading": [-3.14, 3.14],
    },
    "robot_urdf_path": "/home/somebody/g1.urdf",
}


def network() -> tuple[np.ndarray, np.ndarray]:
    """Weights of a small network, 100 -> 8 -> 29."""
    rng = np.random.default_rng(7)
    first, second = rng.standard_normal((8, 100)) / 10, rng.standard_normal((29, 8)) / 10
    return first.astype(np.float32), second.astype(np.float32)


def theirs(**metadata: Any) -> ModelProto:
    """A file in holosoma's format; a metadata value of None leaves the key out."""
    first, second = network()
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["actor_obs", "w1"], ["h"], transB=1),
            helper.make_node("Elu", ["h"], ["e"]),
            helper.make_node("Gemm", ["e", "w2"], ["action"], transB=1),
        ],
        "main",
        [helper.make_tensor_value_info("actor_obs", TensorProto.FLOAT, [1, 100])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, 29])],
        [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    for key, value in (METADATA | metadata).items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            model.metadata_props.add(key=key, value=text)
    return model


def imported(folder: Path, model: ModelProto) -> PolicyFile:
    onnx.save(model, folder / "theirs.onnx")
    return write_policy(
        folder / "ours.onnx", *import_policy(folder / "theirs.onnx", ROBOT, name="small")
    )


class Reference:
    """Their loop around the network, step by step, in float64."""

    def __init__(self) -> None:
        self.action, self.phase, self.standing = np.zeros(29), np.array([0, np.pi]), False

    def step(self, pos: Any, vel: Any, quat: Any, gyro: Any, command: Any) -> tuple[Any, ...]:
        vx, vy, yaw = command[:3]
        advanced = self.phase + 2 * np.pi * 0.02
        self.phase = np.fmod(advanced + np.pi, 2 * np.pi) - np.pi
        if np.hypot(vx, vy) < 0.01 and abs(yaw) < 0.01:
            self.phase, self.standing = np.array([np.pi, np.pi]), True
        elif self.standing:
            self.phase, self.standing = np.array([0, np.pi]), False
        w, x, y, z = quat
        down = -np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])
        terms = [self.action, 0.25 * gyro, [yaw], [vx, vy], np.cos(self.phase)]
        terms += [pos - DEFAULT_POSE, 0.05 * vel, down, np.sin(self.phase)]
        observation = np.concatenate(terms)
        first, second = network()
        hidden = first @ observation
        hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
        self.action = np.clip(second @ hidden, -100, 100)
        return observation, self.action, DEFAULT_POSE + 0.25 * self.action


def test_an_imported_policy_computes_what_their_loop_computes(tmp_path: Path) -> None:
    session, reference = PolicySession(imported(tmp_path, theirs())), Reference()
    rng = np.random.default_rng(3)
    commands = np.zeros((140, 18))
    commands[:, 4:] = 1.0  # arm targets are not for this policy
    # Moves at once, stands, moves again on each axis, stands, and walks more than a whole period.
    commands[0:5, 0], commands[9:12, 1], commands[12:15, 2] = 0.5, -0.3, 0.2
    commands[20:22, 0], commands[22:24, :3] = 0.0099, (0.008, 0.008, 0)  # 0.0113 m/s: moving
    commands[24:26, 2], commands[26:28, 2], commands[40:, 0] = -0.0101, 0.0099, 1.0
    for tick, command in enumerate(commands):
        pos, vel = DEFAULT_POSE + 0.2 * rng.standard_normal(29), rng.standard_normal(29)
        gyro, quat = rng.standard_normal(3), rng.standard_normal(4)
        quat /= np.linalg.norm(quat)
        target = session.step(
            joint_pos=pos, joint_vel=vel, imu_quat_wxyz=quat, imu_gyro=gyro, command=command
        )
        observation, action, expected = reference.step(pos, vel, quat, gyro, command)
        np.testing.assert_allclose(session.observation, observation, atol=1e-5, err_msg=str(tick))
        np.testing.assert_allclose(session.carry()["last_action"][0], action, atol=1e-4)
        np.testing.assert_allclose(target, expected, atol=1e-4)


def test_actions_are_clipped_at_100_before_scaling(tmp_path: Path) -> None:
    model = theirs()
    weight = numpy_helper.from_array(network()[1] * 1e5, "w2")
    model.graph.initializer[1].CopyFrom(weight)
    session = PolicySession(imported(tmp_path, model))
    target = session.step(joint_vel=np.ones(29), imu_quat_wxyz=[1, 0, 0, 0])
    assert np.abs(session.carry()["last_action"]).max() == 100
    assert np.abs(target - DEFAULT_POSE).max() == pytest.approx(25)


def test_an_imported_file_says_where_everything_came_from(tmp_path: Path) -> None:
    model = theirs()
    policy = imported(tmp_path, model)
    check_policy(policy, ROBOT)
    assert read_policy(tmp_path / "ours.onnx") == policy
    assert verify_golden(PolicySession(policy), policy.manifest) < 1e-6
    m = policy.manifest
    assert (m.name, m.robot, m.step_dt, m.uses_arms) == ("small", "g1", 0.02, False)
    assert m.stiffness == (14.250623098,) * 29 and m.damping == (0.907222843,) * 29
    np.testing.assert_array_equal(m.default_joint_pos, DEFAULT_POSE)
    assert m.command_ranges.vx == (-0.8, 1.0) and m.command_ranges.base_height is None
    assert m.golden.steps == 12
    assert set(m.golden.inputs) >= {"joint_pos", "joint_vel", "imu_quat_wxyz", "command"}
    assert set(m.golden.outputs) == {
        "joint_pos_target", "observation", "carry_last_action_next", "carry_phase_next"
    }  # fmt: skip
    told = m.provenance
    assert told["source_format"] == "holosoma"
    assert told["from_file"] == "command_ranges, dof_names, kd, kp, network"
    assert told["from_importer"] == (
        "step_dt, default_joint_pos, imu, observation terms and scales, gait phase, action_scale"
    )
    assert "source_format                holosoma" in describe(policy)
    assert b"somebody" not in policy.data
    composed = onnx.load_model_from_string(policy.data)
    assert composed.ir_version == IR_VERSION <= 10
    assert [(o.domain, o.version) for o in composed.opset_import] == [("", 13)]
    assert [v.name for v in composed.graph.input] == [
        "joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "command", "carry_last_action",
        "carry_phase",
    ]  # fmt: skip
    names = {t.name for t in composed.graph.initializer}
    assert {"net/w1", "net/w2"} < names, "their weights are untouched"


@pytest.mark.parametrize(
    ("text", "scales"),
    [("0.5", [0.5] * 29), (json.dumps([0.1] * 29), [0.1] * 29), (",".join(["1"] * 29), [1.0] * 29)],
)
def test_an_action_scale_in_the_file_wins(tmp_path: Path, text: str, scales: list[float]) -> None:
    policy = imported(tmp_path, theirs(action_scale=text))
    assert "action_scale" in str(policy.manifest.provenance["from_file"])
    session = PolicySession(policy)
    target = session.step(joint_pos=np.ones(29), imu_quat_wxyz=[1, 0, 0, 0])
    action = session.carry()["last_action"][0]
    np.testing.assert_allclose(target, DEFAULT_POSE + np.multiply(scales, action), atol=1e-6)


@pytest.mark.parametrize("ranges", [None, "null"])
def test_missing_command_ranges_come_from_the_table(tmp_path: Path, ranges: str | None) -> None:
    m = imported(tmp_path, theirs(command_ranges=ranges)).manifest
    assert m.command_ranges.vx == m.command_ranges.yaw_rate == (-1.0, 1.0)
    assert "command_ranges" in str(m.provenance["from_importer"])
    assert "command_ranges" not in str(m.provenance["from_file"])


def _network(**replaced: Any) -> Callable[[], ModelProto]:
    """A file whose inputs, outputs or opset are others."""

    def make() -> ModelProto:
        model = theirs()
        for side, values in replaced.items():
            if side == "opset":
                model.opset_import[0].version = values
                continue
            infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values]
            del getattr(model.graph, side)[:]
            getattr(model.graph, side).extend(infos)
        return model

    return make


T1 = ["AAHead_yaw", "Head_pitch", *(f"Joint_{i}" for i in range(27))]
REFUSALS: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "no metadata": (lambda: theirs(dof_names=None, kp=None),
        "unknown format; known: holosoma (missing: metadata dof_names, kp)"),
    "names not JSON": (lambda: theirs(dof_names=",".join(JOINTS)),
        "unknown format; known: holosoma (missing: metadata dof_names as JSON)"),
    "names not a list": (lambda: theirs(dof_names="7"), "metadata dof_names: got 7, expected"),
    "T1": (lambda: theirs(dof_names=T1),
        "metadata dof_names: a policy for another robot than g1: 29 joints, unknown here: "
        "'AAHead_yaw', 'Head_pitch', 'Joint_0', "),
    "23 joints": (lambda: theirs(dof_names=JOINTS[:23]),
        "metadata dof_names: a policy for another robot than g1: 23 joints, unknown here: nothing"),
    "double": (lambda: theirs(dof_names=[*JOINTS[:28], JOINTS[0]]),
        "metadata dof_names: a policy for another robot than g1: 29 joints, unknown here: nothing"),
    "short kp": (lambda: theirs(kp=[1.0]), "metadata kp: got [1.0], expected 29 numbers"),
    "text kd": (lambda: theirs(kd="high"), "metadata kd: got 'high', expected a JSON document"),
    "NaN kd": (lambda: theirs(kd=[float("nan")] * 29), "metadata kd: got [nan, nan"),
    "huge kp": (lambda: theirs(kp=[10**400] * 29), "metadata kp: got [10000"),
    "negative kp": (lambda: theirs(kp=[-1.0] * 29),
        "imported: (whole file): left_hip_pitch_joint: stiffness is -1.0"),
    "ranges": (lambda: theirs(command_ranges={"lin_vel_x": [0]}),
        "metadata command_ranges: got {'lin_vel_x': [0]}, expected two numbers each for lin_vel_x"),
    "ranges number": (lambda: theirs(command_ranges="3"), "metadata command_ranges: got 3"),
    "action scale": (lambda: theirs(action_scale="1, 2"),
        "metadata action_scale: got '1, 2', expected 1 or 29 numbers"),
    "action scale text": (lambda: theirs(action_scale="all"), "metadata action_scale: got 'all'"),
    "tracking": (_network(input=[("obs", [1, 154]), ("time_step", [1, 1])]),
        "is holosoma's motion tracking variant (inputs {'obs': [1, 154], 'time_step': [1, 1]})"),
    "width": (_network(input=[("actor_obs", [1, 101])]),
        "has inputs {'actor_obs': [1, 101]} and outputs {'action': [1, 29]}, expected actor_obs "
        "[1, 100] and action [1, 29]"),
    "outputs": (_network(output=[("action", [1, 29]), ("value", [1, 1])]), "has inputs "),
    "opset": (_network(opset=11), "has operator sets [11], expected one of 13 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_imported_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    make, reason = REFUSALS[case]
    path = tmp_path / "theirs.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(UserError) as caught:
        import_policy(path, ROBOT)
    assert str(caught.value).startswith(f"{path}: {reason}"), caught.value


def test_a_network_that_may_not_run_is_not_imported(tmp_path: Path) -> None:
    model = theirs()
    model.graph.node[1].op_type = "RandomNormalLike"
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(UserError, match="graph: operator 'RandomNormalLike'"):
        import_policy(tmp_path / "theirs.onnx", ROBOT)


def test_a_link_is_not_imported(tmp_path: Path) -> None:
    onnx.save(theirs(), tmp_path / "theirs.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "theirs.onnx")
    with pytest.raises(UserError, match="is a symbolic link"):
        import_policy(tmp_path / "link.onnx", ROBOT)


def test_damaged_files_of_theirs_never_crash_the_importer(tmp_path: Path) -> None:
    good = theirs().SerializeToString()
    rng = np.random.default_rng(1)
    start = good.index(b"dof_names") - 20
    path = tmp_path / "theirs.onnx"
    refused = 0
    for turn in range(300):
        damaged = bytearray(good)
        at = int(rng.integers(start if turn % 2 else 0, len(good)))
        damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            import_policy(path, ROBOT)
        except UserError:
            refused += 1
    assert refused > 50


# --- their public files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_reproduce_their_recorded_steps(tmp_path: Path, name: str) -> None:
    source = SHARED / PUBLIC[name]
    if not source.is_file():
        pytest.skip("holosoma's public files are not on this machine")
    policy = write_policy(tmp_path / "ours.onnx", *import_policy(source, ROBOT))
    check_policy(policy, ROBOT)
    assert policy.manifest.name == source.stem
    session = PolicySession(policy)
    verify_golden(session, policy.manifest)
    recorded = json.loads((source.parent / "golden.json").read_text())
    assert recorded["joint_names"] == JOINTS and len(recorded["steps"]) == 12
    for step in recorded["steps"]:
        command = np.zeros(18)
        command[:3] = step["command"]
        measured = {k: step[k] for k in ("joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro")}
        session.step(command=command, **measured)
        where = f"{name} at {step['t']} s"
        for got, key in (
            (session.observation, "observation"),
            (session.carry()["last_action"][0], "action"),
            (session.joint_pos_target, "joint_pos_target"),
        ):
            np.testing.assert_allclose(got, step[key], rtol=0, atol=1e-5, err_msg=f"{where}: {key}")
