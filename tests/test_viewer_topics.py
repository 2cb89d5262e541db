"""Viewer topics: standard types, decoded by two independent libraries; TF equals MuJoCo's."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import mujoco
import numpy as np
import pytest
from mcap_ros2._dynamic import generate_dynamic
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robot.model import compile_model, load_robot
from robot.topics import make_codecs
from robot.viewer_topics import CHANNELS, DESCRIPTION, FIXED_HEIGHT, PERIOD_NS, ViewerTopics

ROBOT = load_robot("g1")
MODEL = compile_model(ROBOT)
CODECS = make_codecs(ROBOT)
NOW = 1_795_491_000_123_456_789


def turned(*axis: float) -> np.ndarray:
    quat = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quat, np.array(axis) / np.linalg.norm(axis), 0.7)
    return quat


def low_state(seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    state = CODECS["low_state"].new()
    state.joint_pos[:] = rng.uniform(*ROBOT.position_limit.T)
    state.joint_vel[:], state.joint_effort[:] = rng.normal(size=(2, 29))
    state.imu_quat_wxyz[:] = turned(1.0, 2.0, 3.0)
    state.imu_gyro[:], state.imu_accel[:] = rng.normal(size=(2, 3))
    return state


def truth() -> Any:
    message = CODECS["truth"].new()
    message.base_pos_w[:] = (1.0, -2.0, 0.7)
    message.base_quat_wxyz[:] = turned(-1.0, 0.5, 2.0)
    message.joint_pos[:] = low_state(2).joint_pos
    return message


def heard(*messages: Any, at: int = NOW, viewer: ViewerTopics | None = None) -> dict[str, bytes]:
    """Channel to payload of what the messages lead to."""
    viewer = viewer or ViewerTopics(ROBOT, CODECS)
    names = {"LowState": "low_state", "Truth": "truth"}
    return {
        channel: bytes(payload)
        for message in messages
        for channel, payload in viewer.hear(names[message.codec.name], message.payload, at)
    }


def decoded(channel: str, payload: bytes) -> Any:
    schema, text = CHANNELS[channel]
    return generate_dynamic(schema, text)[schema](payload)


@pytest.mark.parametrize("channel", CHANNELS)
def test_rosbags_gives_the_same_bytes_back(channel: str):
    viewer = ViewerTopics(ROBOT, CODECS)
    payload = bytes(viewer.description)
    if channel != DESCRIPTION:
        payload = heard(low_state(), viewer=viewer)[channel]
    schema, text = CHANNELS[channel]
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(text, schema))
    message = store.deserialize_cdr(payload, schema)
    assert bytes(store.serialize_cdr(message, schema)) == payload


@pytest.mark.parametrize("channel", CHANNELS)
def test_schemas_are_the_ones_that_ros_2_has(channel: str):
    schema, text = CHANNELS[channel]
    ours = get_types_from_msg(text, schema)
    theirs = get_typestore(Stores.ROS2_JAZZY)
    for name, (constants, fields) in ours.items():
        assert theirs.get_msgdef(name).fields == fields and not constants, name


def test_joint_states_say_what_low_state_says():
    state = low_state()
    got = decoded("/joint_states", heard(state)["/joint_states"])
    assert got.name == list(ROBOT.joint_names)
    np.testing.assert_array_equal(got.position, state.joint_pos)
    np.testing.assert_array_equal(got.velocity, state.joint_vel)
    np.testing.assert_array_equal(got.effort, state.joint_effort)
    assert (got.header.stamp.sec, got.header.stamp.nanosec) == (1_795_491_000, 123_456_789)


def test_the_imu_has_its_quaternion_in_the_order_of_ros():
    state = low_state()
    got = decoded("/imu", heard(state)["/imu"])
    q = got.orientation
    np.testing.assert_array_equal([q.w, q.x, q.y, q.z], state.imu_quat_wxyz)
    g, a = got.angular_velocity, got.linear_acceleration
    np.testing.assert_array_equal([g.x, g.y, g.z], state.imu_gyro)
    np.testing.assert_array_equal([a.x, a.y, a.z], state.imu_accel)
    assert got.header.frame_id == "pelvis" and not any(got.orientation_covariance)


def chained(payload: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """World place and rotation matrix of each frame, by chaining transforms as a viewer does."""
    frames = {"world": (np.zeros(3), np.eye(3))}
    for transform in decoded("/tf", payload).transforms:
        place, turn = frames[transform.header.frame_id]
        t, r = transform.transform.translation, transform.transform.rotation
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, np.array([r.w, r.x, r.y, r.z]))
        here = place + turn @ np.array([t.x, t.y, t.z])
        frames[transform.child_frame_id] = (here, turn @ matrix.reshape(3, 3))
    return frames


def assert_frames(payload: bytes, pos: Any, quat: Any, joint_pos: Any) -> None:
    """Every link is where MuJoCo has it."""
    data = mujoco.MjData(MODEL)
    data.qpos[:3], data.qpos[3:7], data.qpos[7:] = pos, quat, joint_pos
    mujoco.mj_kinematics(MODEL, data)
    frames = chained(payload)
    assert set(frames) == {MODEL.body(i).name for i in range(MODEL.nbody)}
    for name, (place, turn) in frames.items():
        body = data.body(name)
        np.testing.assert_allclose(place, body.xpos, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(turn.ravel(), body.xmat, atol=1e-12, err_msg=name)


def test_tf_from_truth_puts_every_link_where_the_simulation_has_it():
    told = truth()
    payload = heard(told)["/tf"]
    assert_frames(payload, told.base_pos_w, told.base_quat_wxyz, told.joint_pos)


def test_without_truth_the_base_is_at_a_fixed_height_and_turned_as_measured():
    state = low_state()
    payload = heard(state)["/tf"]
    assert_frames(payload, (0, 0, FIXED_HEIGHT), state.imu_quat_wxyz, state.joint_pos)


def test_while_truth_is_told_the_measured_joints_do_not_make_tf():
    viewer = ViewerTopics(ROBOT, CODECS)
    heard(truth(), viewer=viewer)
    assert set(heard(low_state(), viewer=viewer)) == {"/joint_states", "/imu"}
    assert "/tf" in heard(low_state(), at=NOW + 10**9, viewer=viewer)


@pytest.mark.parametrize("hz", [200, 500, 1000])
def test_low_state_is_decimated_to_50_hz(hz: int):
    viewer, state = ViewerTopics(ROBOT, CODECS), low_state()
    times = [
        at for at in range(NOW, NOW + 10**9, 10**9 // hz) if heard(state, at=at, viewer=viewer)
    ]
    assert len(times) == 50 and set(np.diff(times)) == {PERIOD_NS}


def test_after_a_gap_it_goes_on_at_the_same_rate():
    viewer, state = ViewerTopics(ROBOT, CODECS), low_state()
    assert heard(state, at=NOW, viewer=viewer)
    late = NOW + 5 * 10**9 + 1
    got = [bool(heard(state, at=late + i * 2_000_000, viewer=viewer)) for i in range(11)]
    assert got == [True, *[False] * 9, True]


def test_the_description_is_a_urdf_tree_of_primitives():
    root = ElementTree.fromstring(
        decoded(DESCRIPTION, bytes(ViewerTopics(ROBOT, CODECS).description)).data
    )
    links = [link.get("name") for link in root.iter("link")]
    joints = {joint.get("name"): joint for joint in root.findall("joint")}
    assert links == [MODEL.body(i).name for i in range(1, MODEL.nbody)]
    assert tuple(joints) == ROBOT.joint_names
    children = [joint.find("child").get("link") for joint in joints.values()]  # type: ignore[union-attr]  # it is there
    assert len(set(children)) == len(children) and set(links) - set(children) == {"pelvis"}
    shapes = {shape.tag for geometry in root.iter("geometry") for shape in geometry}
    assert shapes == {"box", "sphere", "cylinder"}
    visible = [link for link in root.iter("link") if link.find("visual") is not None]
    assert len(visible) > 20


def test_joints_of_the_description_stand_turn_and_end_where_the_model_s_do():
    root = ElementTree.fromstring(
        decoded(DESCRIPTION, bytes(ViewerTopics(ROBOT, CODECS).description)).data
    )
    for joint, limits in zip(root.findall("joint"), ROBOT.position_limit, strict=True):
        child = joint.find("child").get("link")  # type: ignore[union-attr]  # it is there
        body = MODEL.body(child)
        origin, axis, limit = (joint.find(tag).attrib for tag in ("origin", "axis", "limit"))  # type: ignore[union-attr]  # they are there
        np.testing.assert_allclose([float(v) for v in origin["xyz"].split()], body.pos, rtol=1e-5)
        roll, pitch, yaw = (float(v) for v in origin["rpy"].split())
        quat = np.zeros(4)
        mujoco.mju_euler2Quat(quat, np.array([roll, pitch, yaw]), "XYZ")
        np.testing.assert_allclose(abs(quat @ body.quat), 1.0, atol=1e-6)
        np.testing.assert_allclose(
            [float(v) for v in axis["xyz"].split()], MODEL.joint(joint.get("name")).axis
        )
        np.testing.assert_allclose(
            [float(limit["lower"]), float(limit["upper"])], limits, rtol=1e-5, atol=1e-6
        )
