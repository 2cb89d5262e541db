"""The session: buffers in place, carry threaded without copies, episodes, snapshots, golden."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from policies.importers.graph import Graph
from policies.manifest import Golden, Manifest, PolicyFile, input_shapes, output_shapes, pack_policy
from policies.session import PolicySession, golden_inputs, record_golden, verify_golden
from robot.config import UserError, check

JOINTS = ["hip", "knee"]


def toy(divide: bool = False) -> PolicyFile:
    """Two carries that each need the other's old value: count += first + 1, trail = old count.

    Observation: joint_pos, first, count, trail. Target: half the joint positions plus the count.
    """
    graph = Graph()
    carries = ["carry_count", "carry_trail"]
    graph.add("Concat", ["joint_pos", "first", *carries], "observation", axis=1)
    graph.add("Sum", ["carry_count", "first", graph.constant("one", 1.0)], "carry_count_next")
    graph.add("Identity", ["carry_count"], "carry_trail_next")
    graph.add("Mul", ["joint_pos", graph.constant("half", 0.5)], "halves")
    if divide:
        graph.add("Div", ["halves", graph.constant("zero", 0.0)], "joint_pos_target")
    else:
        graph.add("Add", ["halves", "carry_count"], "joint_pos_target")
    manifest = check(
        {
            "name": "toy",
            "robot": "toy",
            "observed_joints": JOINTS,
            "driven_joints": JOINTS,
            "arm_joints": [],
            "stiffness": [1, 1],
            "damping": [1, 1],
            "default_joint_pos": [0.1, -0.1],
            "imu": "pelvis",
            "step_dt": 0.02,
            "command_ranges": {"vx": [-1, 1], "vy": [-1, 1], "yaw_rate": [-1, 1]},
            "observation": [{"name": n, "width": w} for n, w in (("pos", 2), ("state", 3))],
            "carry": [
                {"name": "count", "shape": [1, 1], "initial": [10.0]},
                {"name": "trail", "shape": [1, 1], "initial": [-5.0]},
            ],
            "provenance": {},
        },
        Manifest,
        where="toy",
    )
    model = graph.model(input_shapes(manifest), output_shapes(manifest), opset=13)
    return pack_policy(model, manifest, Path("toy.onnx"))


def test_steps_thread_the_carry_and_first_is_seen_once() -> None:
    session = PolicySession(toy())
    seen = []
    for step in range(4):
        target = session.step(joint_pos=[1.0, 2.0])
        seen.append([*session.observation, *target])
        assert target is session.joint_pos_target, step
    # Worked out by hand: pos, pos, first, count, trail | 0.5 pos + count
    assert seen == [
        [1, 2, 1, 10, -5, 10.5, 11],
        [1, 2, 0, 12, 10, 12.5, 13],
        [1, 2, 0, 13, 12, 13.5, 14],
        [1, 2, 0, 14, 13, 14.5, 15],
    ]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_rehearsal_changes_nothing_that_lasts(steps: int) -> None:
    one, other = PolicySession(toy()), PolicySession(toy())
    for session in (one, other):
        for _ in range(steps):
            session.step(joint_pos=[1.0, 2.0])
    first, carry = other.first, other.carry()
    other.inputs["joint_pos"][0] = 9.0
    other.rehearse()
    assert other.observation[0] == 9.0, "it did compute"
    assert other.first == first and all((carry[n] == v).all() for n, v in other.carry().items())
    for _ in range(3):
        assert one.step(joint_pos=[3, 4]).tolist() == other.step(joint_pos=[3, 4]).tolist()
        assert one.observation.tolist() == other.observation.tolist()


@pytest.mark.parametrize("steps", [1, 2])  # from either of the two bindings
def test_reset_starts_the_same_episode_again(steps: int) -> None:
    session = PolicySession(toy())
    for _ in range(steps):
        session.run()
    session.reset()
    session.run()
    assert session.observation.tolist() == [0, 0, 1, 10, -5]


def test_inputs_are_written_in_place_and_nothing_moves() -> None:
    session = PolicySession(toy())
    shapes = {name: buffer.shape for name, buffer in session.inputs.items()}
    assert shapes == {
        "joint_pos": (1, 2),
        "joint_vel": (1, 2),
        "imu_quat_wxyz": (1, 4),
        "imu_gyro": (1, 3),
        "command": (1, 4),
        "first": (1, 1),
        "base_lin_vel": (1, 3),
        "height_scan": (1, 187),
        "height_flag": (1, 1),
    }, "also inputs that the graph does not read"
    assert all(buffer.dtype == np.float32 for buffer in session.inputs.values())
    target, observation = session.joint_pos_target, session.observation
    for value in (3.0, 4.0, 5.0):
        session.inputs["joint_pos"][0, 1] = value
        session.run()
        assert observation[1] == value
    assert target.shape == (2,)
    assert target is session.joint_pos_target and observation is session.observation


def test_a_step_allocates_nothing_that_stays() -> None:
    session = PolicySession(toy())
    for _ in range(10):
        session.run()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        session.run()
    assert sys.getallocatedblocks() - before < 500, "half a block per step would be a leak"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_snapshot_continues_the_episode_in_another_session(steps: int) -> None:
    one, other = PolicySession(toy()), PolicySession(toy())
    for _ in range(steps):
        one.step(joint_pos=[1.0, 2.0])
    snapshot = one.carry()
    assert set(snapshot) == {"count", "trail"} and snapshot["count"].shape == (1, 1)
    other.set_carry(snapshot)
    for _ in range(3):
        assert one.step(joint_pos=[3, 4]).tolist() == other.step(joint_pos=[3, 4]).tolist()
        assert one.observation.tolist() == other.observation.tolist()
    assert snapshot["count"] == 10 + steps + 1, "a snapshot is a copy"


def test_a_snapshot_that_lacks_a_name_is_not_taken() -> None:
    with pytest.raises(KeyError, match="trail"):
        PolicySession(toy()).set_carry({"count": [1.0]})


def test_an_unknown_measurement_is_not_taken() -> None:
    with pytest.raises(KeyError, match="joint_positions"):
        PolicySession(toy()).step(joint_positions=[0, 0])


def test_a_missing_provider_falls_back_and_says_so() -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine may have a GPU; the fallback cannot be shown here")
    policy = toy()
    assert PolicySession(policy).fallback is None
    session = PolicySession(policy, "cuda")
    assert session.provider == "cpu"
    assert session.fallback is not None
    assert session.fallback.startswith("cuda was asked for, cpu computes (here: ")
    session.run()
    with pytest.raises(UserError, match=r"toy\.onnx: tensorrt was asked for, cpu computes"):
        PolicySession(policy, "tensorrt", allow_fallback=False)


def test_golden_vectors_hold_for_the_session_that_made_them() -> None:
    policy = toy()
    session = PolicySession(policy)
    golden = record_golden(session, golden_inputs(policy.manifest))
    assert golden.steps == 12
    assert golden.outputs["carry_count_next"][:2] == ((12.0,), (13.0,))
    manifest = policy.manifest.model_copy(update={"golden": golden})
    session.run()  # verification does not depend on what the session did before
    assert verify_golden(session, manifest) < 1e-6  # 9 digits are written
    session.run()
    assert session.observation[2] == 1, "and leaves it at the start of an episode"


@pytest.mark.parametrize(("error", "accepted"), [(0.9e-5, True), (1.1e-5, False), (np.nan, False)])
def test_golden_vectors_that_differ_are_refused(error: float, accepted: bool) -> None:
    policy = toy()
    session = PolicySession(policy)
    zeros = ((0.0, 0.0),) * 2
    rows = ((10.0, 10.0), (12.0, 12.0 + error))
    golden = Golden.model_construct(inputs={"joint_pos": zeros}, outputs={"joint_pos_target": rows})
    manifest = policy.manifest.model_copy(update={"golden": golden})
    if accepted:
        assert verify_golden(session, manifest) == pytest.approx(error, rel=1e-3)
    else:
        with pytest.raises(UserError, match=r"toy: golden joint_pos_target\[1\] of step 1 differs"):
            verify_golden(session, manifest)


def test_a_graph_that_yields_no_number_fails_its_golden_vector() -> None:
    policy = toy(divide=True)
    golden = Golden(
        inputs={"joint_pos": ((1.0, 2.0),)}, outputs={"joint_pos_target": ((0.5, 1.0),)}
    )
    manifest = policy.manifest.model_copy(update={"golden": golden})
    with pytest.raises(UserError, match="differs by inf"):
        verify_golden(PolicySession(policy), manifest)


def test_golden_inputs_are_plausible_and_repeatable() -> None:
    manifest = toy().manifest
    one, two = golden_inputs(manifest), golden_inputs(manifest)
    for name, rows in one.items():
        assert rows.shape == (12, *input_shapes(manifest)[name][1:]), name
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, two[name])
    np.testing.assert_allclose(np.linalg.norm(one["imu_quat_wxyz"], axis=1), 1, rtol=1e-6)
    assert not one["command"][:4].any() and one["command"][4:, :3].all()
    assert one["first"].ravel().tolist() == [1] + [0] * 11
