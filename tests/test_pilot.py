"""The pilot with ground to look at: newest map only, flagged when old or mistrusted, replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from policies.manifest import parse_onnx, read_bytes, read_policy, write_policy
from robot.geomap import AGE_LIMIT_NS
from robot.log import Log
from robot.messages import HeightMap
from robot.model import load_robot
from robot.pilot import Pilot, load_pilot
from robot.runs import RunConfig, load_run
from robot.topics import make_codecs
from sim2real.replay import PilotReplay
from tests.logs import write_log

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
STEP_NS = 20_000_000
WEIGHTS = np.random.default_rng(0).normal(0.0, 0.02, (187, 29)).astype(np.float32)
FLAG_WEIGHTS = np.random.default_rng(1).normal(0.0, 0.1, (1, 29)).astype(np.float32)


def with_eyes(policy: Path, out: Path, weights: np.ndarray, flag_weights: np.ndarray) -> Path:
    """A policy with scan (187, N) and flag (1, N) times weights added to its targets, rad."""
    model = parse_onnx(read_bytes(policy), policy)
    for node in model.graph.node:
        node.output[:] = ["before" if o == "joint_pos_target" else o for o in node.output]
    for name, gains in (("height_scan", weights), ("height_flag", flag_weights)):
        shape: onnx.ValueInfoProto = helper.make_tensor_value_info(
            name, TensorProto.FLOAT, [1, len(gains)]
        )
        model.graph.input.append(shape)
        model.graph.initializer.append(numpy_helper.from_array(gains, f"{name}_gain"))
    model.graph.node.extend([
        helper.make_node("MatMul", ["height_scan", "height_scan_gain"], ["ground"]),
        helper.make_node("MatMul", ["height_flag", "height_flag_gain"], ["blind"]),
        helper.make_node("Add", ["ground", "blind"], ["lean"]),
        helper.make_node("Add", ["before", "lean"], ["joint_pos_target"]),
    ])  # fmt: skip
    manifest = read_policy(policy).manifest
    golden = manifest.golden
    still = {name: rows for name, rows in golden.inputs.items() if name[:6] != "height"}
    still |= {
        "height_scan": ((0.0,) * 187,) * golden.steps,
        "height_flag": ((0.0,),) * golden.steps,
    }
    kept = golden.model_copy(update={"inputs": still})
    write_policy(out, model, manifest.model_copy(update={"golden": kept}))
    return out


@pytest.fixture(scope="module")
def run(standing_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The standing policy, moved by what it sees."""
    out = tmp_path_factory.mktemp("sees") / "sees.onnx"
    with_eyes(standing_policy, out, WEIGHTS, FLAG_WEIGHTS)
    return load_run("loopback").model_copy(update={"policy": out})


def height_map(seq: int, t_mid_ns: int, gate: int = 0, height: float = 0.7) -> HeightMap:
    message = CODECS["height_map"].new()
    assert isinstance(message, HeightMap)
    message.stamp(5, seq, t_mid_ns)
    message.t_mid_ns, message.gate = t_mid_ns, gate
    message.height[:] = height + 0.01 * np.arange(187)
    return message


def given(step: int) -> Any:
    message = CODECS["policy_input"].new()
    message.stamp(7, step + 1, step * STEP_NS)
    message.step, message.now_ns, message.robot_time_ns = step, step * STEP_NS, step * STEP_NS
    message.joint_pos[:] = ROBOT.stand_joint_pos
    message.imu_quat_wxyz[:], message.imu_accel[2] = (1, 0, 0, 0), 9.81
    return message


def lean(pilot: Pilot, blind: Pilot, step: int, now_ns: int) -> np.ndarray:
    """What looking changes in the targets, rad."""
    seen = pilot.step(given(step), now_ns).joint_pos_target.copy()
    return seen - blind.step(given(step), now_ns).joint_pos_target


def test_a_policy_sees_the_newest_map_and_is_told_when_it_is_too_old(
    run: RunConfig, standing_policy: Path
) -> None:
    pilot, plain = load_pilot(run, ROBOT), load_pilot(
        run.model_copy(update={"policy": standing_policy}), ROBOT
    )  # fmt: skip
    flat = np.full(187, 0.76) @ WEIGHTS + FLAG_WEIGHTS[0]
    assert lean(pilot, plain, 0, 0) == pytest.approx(flat, abs=1e-5), "nothing was seen yet"
    assert (pilot.target.map_instance, pilot.target.map_seq) == (0, 0)
    ground = height_map(3, 1_000)
    pilot.look(ground)
    seen = ground.height.copy() @ WEIGHTS
    ground.height[:] = 9.0  # the pilot keeps what it saw
    limit = 1_000 + round(AGE_LIMIT_NS * run.timing_factor)
    assert lean(pilot, plain, 1, limit) == pytest.approx(seen, abs=1e-5)
    assert (pilot.target.map_instance, pilot.target.map_seq) == (5, 3)
    assert lean(pilot, plain, 2, limit + 1) == pytest.approx(seen + FLAG_WEIGHTS[0], abs=1e-5)
    pilot.look(height_map(4, limit, gate=2))
    assert lean(pilot, plain, 3, limit) == pytest.approx(seen + FLAG_WEIGHTS[0], abs=1e-5), "gate"
    pilot.forget()
    assert lean(pilot, plain, 0, limit) == pytest.approx(flat, abs=1e-5)


def test_a_pilot_that_rehearses_answers_to_the_byte_as_one_that_does_not(run: RunConfig) -> None:
    one, other = load_pilot(run, ROBOT), load_pilot(run, ROBOT)
    for step in range(8):
        asked = given(step)
        asked.joint_pos += 0.01 * step
        asked.velocity[0] = 0.1 * step
        expected = one.step(asked, step * STEP_NS).copy()
        assert bytes(other.step(asked, step * STEP_NS).buffer) == bytes(expected.buffer)
        other.rehearse(asked)


def logged(run: RunConfig, folder: Path, lost: int | None = None) -> Log:
    """A second of a pilot that looks at a map every third step; one map may miss in the log."""
    pilot = load_pilot(run, ROBOT)
    topics: dict[str, list[Any]] = {"policy_input": [], "target": [], "height_map": []}
    for step in range(50):
        if step % 3 == 1:
            ground = height_map(step, step * STEP_NS, height=0.6 + 0.01 * step)
            pilot.look(ground)
            if step != lost:
                topics["height_map"].append(ground)
        asked = given(step)
        answer = pilot.step(asked, step * STEP_NS).copy()
        answer.stamp(9, step + 1, step * STEP_NS)
        topics["policy_input"].append(asked)
        topics["target"].append(answer)
    return Log(write_log(folder, topics))


def test_what_it_saw_is_replayed_to_the_byte(run: RunConfig, tmp_path: Path) -> None:
    assert run.policy
    result = PilotReplay(logged(run, tmp_path), run, ROBOT, [run.policy])()
    assert (result.steps, result.different) == (50, 0)


def test_a_map_that_the_log_lacks_makes_steps_incomplete_not_different(
    run: RunConfig, tmp_path: Path
) -> None:
    assert run.policy
    result = PilotReplay(logged(run, tmp_path, lost=4), run, ROBOT, [run.policy])()
    assert result.different == 0
    # Steps 4 to 6 saw it; what the policy remembers afterwards comes with the next snapshot.
    assert result.steps < 50 and result.incomplete >= 3
