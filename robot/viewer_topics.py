"""Makes the standard ROS 2 topics that viewers know from our messages, 50 times a second.

Names and counts never change within a run, so each of these messages too is a record with constant
CDR offsets that is filled in place.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.messages import ENCAPSULATION, Codec
from robot.model import Robot, compile_model

HEARD = frozenset({"low_state", "truth"})  # ours, that theirs are made from
DESCRIPTION = "/robot_description"
PERIOD_NS = 20_000_000
TRUTH_NS = 500_000_000  # the pose comes from a simulation if it spoke within this time
FIXED_HEIGHT = 0.8  # m, of the base where nobody knows better
VISIBLE_GROUPS = 3  # geoms of higher groups are for collisions
_RULER = "=" * 80

_TIME = f"""{_RULER}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
_HEADER = f"""{_RULER}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{_TIME}"""
_VECTOR3 = f"""{_RULER}
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
"""
_QUATERNION = f"""{_RULER}
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
CHANNELS: dict[str, tuple[str, str]] = {
    "/joint_states": ("sensor_msgs/msg/JointState", f"""std_msgs/Header header
string[] name
float64[] position
float64[] velocity
float64[] effort
{_HEADER}"""),
    "/tf": ("tf2_msgs/msg/TFMessage", f"""geometry_msgs/TransformStamped[] transforms
{_RULER}
MSG: geometry_msgs/TransformStamped
std_msgs/Header header
string child_frame_id
geometry_msgs/Transform transform
{_RULER}
MSG: geometry_msgs/Transform
geometry_msgs/Vector3 translation
geometry_msgs/Quaternion rotation
{_VECTOR3}{_QUATERNION}{_HEADER}"""),
    "/imu": ("sensor_msgs/msg/Imu", f"""std_msgs/Header header
geometry_msgs/Quaternion orientation
float64[9] orientation_covariance
geometry_msgs/Vector3 angular_velocity
float64[9] angular_velocity_covariance
geometry_msgs/Vector3 linear_acceleration
float64[9] linear_acceleration_covariance
{_QUATERNION}{_VECTOR3}{_HEADER}"""),
    DESCRIPTION: ("std_msgs/msg/String", "string data\n"),
}  # fmt: skip
"""Channel name to schema name and text."""


class Record:
    """A CDR message of constant lengths, laid out field by field and then filled in place."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []
        self._stamps: list[int] = []
        self._blocks: dict[str, tuple[int, int]] = {}
        self._at = 0
        self.body = np.zeros(0, np.uint8)
        self.payload = memoryview(b"")

    def stamp(self) -> Record:
        """Two words for the time, set by `fill`."""
        self._stamps.append(self._align(4))
        self._at += 8
        return self

    def text(self, value: str) -> Record:
        """A constant string."""
        data = value.encode() + b"\0"
        self.count(len(data))
        self._parts.append((self._at, data))
        self._at += len(data)
        return self

    def count(self, number: int) -> Record:
        """Length of the sequence that follows."""
        self._parts.append((self._align(4), struct.pack("<I", number)))
        self._at += 4
        return self

    def numbers(self, name: str, count: int) -> Record:
        """(count,) float64, set by `fill`."""
        self._blocks[name] = (self._align(8), count)
        self._at += 8 * count
        return self

    def build(self) -> Record:
        """Allocate it; what is constant is written once."""
        # Eight bytes more, so that the body begins aligned, right behind the CDR header.
        buffer = np.zeros(8 + -(-self._at // 8) * 8, np.uint8)
        buffer[4:8] = np.frombuffer(ENCAPSULATION, np.uint8)
        self.body = buffer[8:]
        self.payload = memoryview(buffer)[4 : 8 + self._at]  # type: ignore[arg-type]  # an array is a buffer
        for at, data in self._parts:
            self.body[at : at + len(data)] = np.frombuffer(data, np.uint8)
        self._doubles, self._words = self.body.view("<f8"), self.body.view("<u4")
        self._seconds = np.array(self._stamps) // 4
        self._places: dict[str, Any] = {
            name: slice(at // 8, at // 8 + count) for name, (at, count) in self._blocks.items()
        }
        return self

    def fill(self, epoch_ns: int, **values: NDArray[Any]) -> memoryview:
        """Set all times and the named numbers; the payload, valid until the next call."""
        self._words[self._seconds], self._words[self._seconds + 1] = divmod(epoch_ns, 10**9)
        for name, value in values.items():
            self._doubles[self._places[name]] = value
        return self.payload

    def join(self, name: str, parts: list[str]) -> None:
        """Let several blocks be filled as one."""
        places = [self._places.pop(part) for part in parts]
        self._places[name] = np.concatenate([np.arange(p.start, p.stop) for p in places])

    def _align(self, size: int) -> int:
        self._at = -(-self._at // size) * size
        return self._at


class ViewerTopics:
    """Hears low_state and truth, and now and then has something for viewers.

    Args:
        robot: joints and model.
        codecs: topic name to layout.

    Attributes:
        description: payload of /robot_description.
    """

    def __init__(self, robot: Robot, codecs: Mapping[str, Codec]) -> None:
        model = self._model = compile_model(robot)
        self._data = mujoco.MjData(model)
        self._base = np.array([0.0, 0.0, FIXED_HEIGHT, 1.0, 0.0, 0.0, 0.0])
        # A link turns about its own origin: its place in its parent is constant, its quaternion is
        # fixed * cos(angle / 2) + turned * sin(angle / 2).
        assert not model.jnt_pos.any(), f"{robot.name}: a joint is not at its body's origin"
        self._fixed, self._turned = _rotations(model)
        self._angles = np.zeros(model.nbody - 1)
        self._jointed = model.jnt_bodyid[1:] - 1  # rows of the driven links
        self._poses = np.zeros((model.nbody - 1, 7))
        self._poses[:, :3] = model.body_pos[1:]
        parents = model.body_parentid[1:]
        self._state, self._truth = codecs["low_state"].dtype, codecs["truth"].dtype
        self._next_ns = 0
        self._truth_until_ns = 0
        site = model.site(f"imu_in_{robot.imu}")
        self._imu_body, self._imu_quat = int(site.bodyid[0]), site.quat.copy()
        self._joint_states = _joint_states(robot.joint_names)
        self._imu = _imu(self._name(self._imu_body))
        self._tf = _tf([(self._name(p), self._name(i + 1)) for i, p in enumerate(parents)])
        text = urdf(model, robot.name)
        self.description: memoryview = Record().text(text).build().payload

    def hear(
        self, topic: str, payload: memoryview | bytes, epoch_ns: int
    ) -> Iterator[tuple[str, memoryview]]:
        """Channel names and payloads that are due after this message.

        Args:
            topic: our name.
            payload: CDR header and body.
            epoch_ns: time in its header, as time since the epoch.
        """
        if topic == "low_state":
            if epoch_ns >= self._next_ns:
                # On the grid, unless the grid was left: a first message, or a gap.
                on_grid = self._next_ns + PERIOD_NS
                self._next_ns = on_grid if on_grid > epoch_ns else epoch_ns + PERIOD_NS
                yield from self._from_state(np.frombuffer(payload, self._state, 1, 4)[0], epoch_ns)
        elif topic == "truth":
            truth = np.frombuffer(payload, self._truth, 1, 4)[0]
            self._truth_until_ns = epoch_ns + TRUTH_NS
            self._base[:3], self._base[3:] = truth["base_pos_w"], truth["base_quat_wxyz"]
            yield self._transforms(truth["joint_pos"], epoch_ns)

    def _from_state(self, state: Any, epoch_ns: int) -> Iterator[tuple[str, memoryview]]:
        pos, quat = state["joint_pos"], state["imu_quat_wxyz"]
        joints = {"position": pos, "velocity": state["joint_vel"], "effort": state["joint_effort"]}
        yield "/joint_states", self._joint_states.fill(epoch_ns, **joints)
        imu = {"xyz": quat[1:], "w": quat[:1], "gyro": state["imu_gyro"]}
        yield "/imu", self._imu.fill(epoch_ns, accel=state["imu_accel"], **imu)
        if epoch_ns >= self._truth_until_ns:
            self._guess_base(pos, quat)
            yield self._transforms(pos, epoch_ns)

    def _guess_base(self, joint_pos: NDArray[Any], imu_quat: NDArray[Any]) -> None:
        """At a fixed place, turned so that the body which carries the IMU stands as measured."""
        data, carrier = self._data, np.zeros(4)
        data.qpos[:7] = (0.0, 0.0, FIXED_HEIGHT, 1.0, 0.0, 0.0, 0.0)
        data.qpos[7:] = joint_pos
        mujoco.mj_kinematics(self._model, data)
        mujoco.mju_mulQuat(carrier, data.xquat[self._imu_body], self._imu_quat)
        mujoco.mju_negQuat(carrier, carrier)
        mujoco.mju_mulQuat(self._base[3:], np.array(imu_quat), carrier)
        self._base[:3] = data.qpos[:3]

    def _transforms(self, joint_pos: NDArray[Any], epoch_ns: int) -> tuple[str, memoryview]:
        """/tf: every link in its parent, as x, y, z and the quaternion's x, y, z, w."""
        self._angles[self._jointed] = joint_pos / 2
        half, poses = self._angles[:, None], self._poses
        poses[:, 3:] = self._fixed * np.cos(half) + self._turned * np.sin(half)
        poses[0, :3], poses[0, 3:6], poses[0, 6] = self._base[:3], self._base[4:], self._base[3]
        return "/tf", self._tf.fill(epoch_ns, poses=poses.ravel())

    def _name(self, body: int) -> str:
        return self._model.body(body).name or f"body_{body}"


def _rotations(model: mujoco.MjModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(links, 4) each, as x, y, z, w: the links' quaternions at zero, and those times the axis."""
    fixed, turned = model.body_quat[1:].copy(), np.zeros((model.nbody - 1, 4))
    for joint in range(1, model.njnt):
        row = model.jnt_bodyid[joint] - 1
        mujoco.mju_mulQuatAxis(turned[row], fixed[row], model.jnt_axis[joint])
    order = [1, 2, 3, 0]
    return fixed[:, order], turned[:, order]


def _joint_states(names: tuple[str, ...]) -> Record:
    record = Record().stamp().text("").count(len(names))
    for name in names:
        record.text(name)
    for field in ("position", "velocity", "effort"):
        record.count(len(names)).numbers(field, len(names))
    return record.build()


def _imu(frame: str) -> Record:
    # Covariances of zero: unknown, as sensor_msgs says.
    record = Record().stamp().text(frame).numbers("xyz", 3).numbers("w", 1)
    record.numbers("unknown", 9)
    record.numbers("gyro", 3).numbers("unknown", 9).numbers("accel", 3).numbers("unknown", 9)
    return record.build()


def _tf(links: list[tuple[str, str]]) -> Record:
    """Parent and child of every transform, world at the root."""
    record = Record().count(len(links))
    for parent, child in links:
        record.stamp().text(parent).text(child).numbers(child, 7)
    record.build().join("poses", [child for _, child in links])
    return record


# --- robot description ------------------------------------------------------------------------


def urdf(model: mujoco.MjModel, name: str) -> str:
    """URDF of the robot's bodies with primitive shapes: no viewer has to find a mesh.

    URDF knows no capsule, so that is a cylinder and two spheres; an ellipsoid is the sphere of its
    volume. The joints' axes go through their bodies' origins, as URDF has it.
    """
    root = ElementTree.Element("robot", name=name)
    for body in range(1, model.nbody):
        link = ElementTree.SubElement(root, "link", name=_body_name(model, body))
        first = model.body_geomadr[body]
        for geom in range(first, first + model.body_geomnum[body]):
            if model.geom_group[geom] < VISIBLE_GROUPS:
                _visuals(link, model, geom)
        if model.body_parentid[body] > 0:
            _joint(root, model, body)
    return ElementTree.tostring(root, encoding="unicode")


def _body_name(model: mujoco.MjModel, body: int) -> str:
    return model.body(body).name or f"body_{body}"


def _joint(root: ElementTree.Element, model: mujoco.MjModel, body: int) -> None:
    kind, joint = "fixed", int(model.body_jntadr[body])
    if model.body_jntnum[body]:
        kind = {
            int(mujoco.mjtJoint.mjJNT_HINGE): "revolute",
            int(mujoco.mjtJoint.mjJNT_SLIDE): "prismatic",
        }[int(model.jnt_type[joint])]
    label = model.joint(joint).name if kind != "fixed" else f"{_body_name(model, body)}_fixed"
    element = ElementTree.SubElement(root, "joint", name=label, type=kind)
    _origin(element, model.body_pos[body], model.body_quat[body])
    parent = _body_name(model, int(model.body_parentid[body]))
    ElementTree.SubElement(element, "parent", link=parent)
    ElementTree.SubElement(element, "child", link=_body_name(model, body))
    if kind != "fixed":
        low, high = model.jnt_range[joint]
        ElementTree.SubElement(element, "axis", xyz=_words(model.jnt_axis[joint]))
        # The format demands effort and velocity; nobody who draws looks at them.
        ElementTree.SubElement(
            element, "limit", lower=f"{low:.6g}", upper=f"{high:.6g}", effort="0", velocity="0"
        )


def _visuals(link: ElementTree.Element, model: mujoco.MjModel, geom: int) -> None:
    size, place, quat = model.geom_size[geom], model.geom_pos[geom], model.geom_quat[geom]
    kinds = mujoco.mjtGeom
    match kinds(model.geom_type[geom]):
        case kinds.mjGEOM_BOX:
            _visual(link, model, geom, place, quat, "box", size=_words(2 * size))
        case kinds.mjGEOM_SPHERE:
            _visual(link, model, geom, place, quat, "sphere", radius=f"{size[0]:.6g}")
        case kinds.mjGEOM_ELLIPSOID:
            radius = float(np.prod(size)) ** (1 / 3)
            _visual(link, model, geom, place, quat, "sphere", radius=f"{radius:.6g}")
        case kinds.mjGEOM_CYLINDER | kinds.mjGEOM_CAPSULE as kind:
            radius, length = f"{size[0]:.6g}", f"{2 * size[1]:.6g}"
            _visual(link, model, geom, place, quat, "cylinder", radius=radius, length=length)
            if kind == kinds.mjGEOM_CAPSULE:
                along = np.zeros(3)
                mujoco.mju_rotVecQuat(along, np.array([0.0, 0.0, size[1]]), quat)
                for end in (place + along, place - along):
                    _visual(link, model, geom, end, quat, "sphere", radius=radius)
        case _:
            pass  # meshes and planes: not primitives of a robot


def _visual(
    link: ElementTree.Element,
    model: mujoco.MjModel,
    geom: int,
    place: NDArray[Any],
    quat: NDArray[Any],
    shape: str,
    **sizes: str,
) -> None:
    visual = ElementTree.SubElement(link, "visual")
    _origin(visual, place, quat)
    geometry = ElementTree.SubElement(visual, "geometry")
    ElementTree.SubElement(geometry, shape, sizes)
    color = model.geom_rgba[geom]
    material = ElementTree.SubElement(visual, "material", name=f"rgba {_words(color)}")
    ElementTree.SubElement(material, "color", rgba=_words(color))


def _origin(element: ElementTree.Element, place: NDArray[Any], quat: NDArray[Any]) -> None:
    w, x, y, z = (float(v) for v in quat)
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    angles = np.array([roll, pitch, yaw])
    ElementTree.SubElement(element, "origin", xyz=_words(place), rpy=_words(angles))


def _words(values: NDArray[Any]) -> str:
    return " ".join(f"{v:.6g}" for v in values)
