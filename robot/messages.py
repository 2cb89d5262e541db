"""Declares every message once; the declaration yields dtype, ROS 2 text, schema hash and CDR bytes.

A message is a fixed-size record whose memory **is** its CDR encoding (little-endian, plain CDR), so
publishing, logging and reading copy bytes and run no serialiser. Offsets follow CDR, which is not
the C layout: `numpy`'s align=True would be wrong. Arrays over joints are CDR sequences whose length
is fixed when the robot is known; text is a CDR string of constant length, padded with spaces.

It does not know sockets (bus.py) or which topic carries what (topics.py).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

PACKAGE = "plexus"
ENCAPSULATION = b"\x00\x01\x00\x00"  # plain CDR, little-endian
CDR_SIZE = {
    "uint8": 1, "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
STRUCT_CODE = {
    "uint8": "B", "uint32": "I", "int32": "i", "float32": "f", "uint64": "Q", "int64": "q",
    "float64": "d",
}  # fmt: skip

SNAPSHOT_BYTES = 24 * 1024  # what a stage may remember; unused bytes compress to nothing
VALID_VELOCITY, VALID_HEIGHT, VALID_ARMS = 1, 2, 4  # bits of a command's valid mask


class Mode(IntEnum):
    """What control does with the motors (faults.md 3.1)."""

    PASSIVE = 0
    DAMP = 1
    STANDUP = 2
    STAND = 3
    POLICY = 4
    HOLD = 5
    SOFT_STOP = 6
    FAULT = 7
    ESTOP = 8


class Ask(IntEnum):
    """What an operator may request."""

    NONE = 0
    ACQUIRE = 1
    RELEASE = 2
    ARM = 3
    DISARM = 4
    STAND_UP = 5
    START_POLICY = 6
    HOLD = 7
    ENGAGE = 8
    STAND = 9
    SOFT_STOP = 10
    ESTOP = 11
    RESET = 12


class EventKind(IntEnum):
    """Kinds of `Event`."""

    START = 0
    END = 1
    MARK = 2
    WARNING = 3
    EPISODE_BEGIN = 4
    EPISODE_END = 5


class ChangeState(IntEnum):
    """How a change of the policy goes (`PolicyChange`)."""

    NONE = 0
    LOADING = 1
    READY = 2
    REFUSED = 3


class Encoding(IntEnum):
    """What the pixels of a `Frame` are."""

    RGB8 = 0
    BGR8 = 1
    GRAY8 = 2
    Z16 = 3
    JPEG = 4


class DepthKind(IntEnum):
    """Along what the depth of a pixel is measured."""

    NONE = 0
    Z = 1  # along the optical axis
    RANGE = 2  # along the pixel's own ray


class FrameSource(IntEnum):
    """Where a `Frame` is from."""

    SIM = 0
    REAL = 1
    REPLAY = 2


class FrameClock(IntEnum):
    """Which clock a frame's exposure was told by."""

    MONOTONIC = 0
    BOOTTIME = 1
    SIM = 2


class _Field:
    """One field of a message: ROS type, shape, unit, frame and a sentence.

    Args:
        type: a ROS 2 primitive, or "string".
        shape: () for a scalar, an int for a fixed array, a dimension's name for a sequence.
    """

    def __init__(
        self, type: str, shape: int | str | tuple[()], doc: str, unit: str = "", frame: str = ""
    ) -> None:
        self.type, self.shape, self.doc, self.unit, self.frame = type, shape, doc, unit, frame
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class Scalar(_Field):
    """A number; read and written as an attribute of the message."""

    def __init__(self, type: str, doc: str, unit: str = "", frame: str = "") -> None:
        super().__init__(type, (), doc, unit, frame)

    @overload
    def __get__(self, message: None, owner: type) -> Scalar: ...
    @overload
    def __get__(self, message: Message, owner: type) -> Any: ...
    def __get__(self, message: Message | None, owner: type) -> Any:
        return self if message is None else message.scalars[self.name][0]

    def __set__(self, message: Message, value: Any) -> None:
        message.scalars[self.name][0] = value


class Array(_Field):
    """A run of numbers; the attribute is a NumPy view into the message's memory."""

    # For type checkers. `Message` takes it off the class: the instance's view is all there is to be
    # found, at full speed.
    @overload
    def __get__(self, message: None, owner: type) -> Array: ...
    @overload
    def __get__(self, message: Message, owner: type) -> NDArray[Any]: ...
    def __get__(self, message: Message | None, owner: type) -> Any:
        return self


class Text(_Field):
    """A string of constant length, padded with spaces; longer text is cut."""

    def __init__(self, length: int, doc: str) -> None:
        super().__init__("string", length, doc)

    @overload
    def __get__(self, message: None, owner: type) -> Text: ...
    @overload
    def __get__(self, message: Message, owner: type) -> str: ...
    def __get__(self, message: Message | None, owner: type) -> Any:
        if message is None:
            return self
        return bytes(message.texts[self.name]).decode("ascii", "replace").rstrip()

    def __set__(self, message: Message, value: str) -> None:
        view = message.texts[self.name]
        printable = value.encode("ascii", "replace")[: len(view)].replace(b"\0", b"?")
        view[:] = printable.ljust(len(view))


class Message:
    """A record and the memory that is its wire form. Make one with `Codec.new`."""

    enums: ClassVar[Mapping[str, type[IntEnum]]] = {}

    schema_hash = Scalar("uint64", "layout of this message; another hash is another message")
    robot_id = Scalar("uint64", "robot this is about; others drop it")
    instance = Scalar("uint64", "run of the publisher; a restart legally restarts seq")
    seq = Scalar("uint64", "counts up by one per message of this instance")
    stamp_ns = Scalar("int64", "when the content was measured or decided", "ns", "monotonic")

    own_fields: ClassVar[tuple[_Field, ...]]  # without the header
    scalars: dict[str, Any]  # one-element memoryviews
    texts: dict[str, memoryview]

    def __init_subclass__(cls) -> None:
        cls.own_fields = tuple(f for f in vars(cls).values() if isinstance(f, _Field))
        for field in cls.own_fields:
            if isinstance(field, Array):
                delattr(cls, field.name)

    def __init__(self, codec: Codec[Any]) -> None:
        # The body starts at byte 8 of an aligned buffer, the CDR header sits right before it.
        self.codec = codec
        self.buffer = np.zeros(8 + codec.body_size, np.uint8)
        self.memory = memoryview(self.buffer)  # type: ignore[arg-type]
        self.payload = self.memory[4:]
        body = self.memory[8:]
        self.origin = self.memory[STAMP_AT : STAMP_AT + 16].cast("Q")  # instance and seq
        self.scalars, self.texts = {}, {}
        for slot in codec.slots:
            part = body[slot.offset : slot.offset + slot.nbytes]
            if slot.kind == "scalar":
                code: Any = STRUCT_CODE[slot.type]
                self.scalars[slot.name] = part.cast(code)
            elif slot.kind == "text":
                self.texts[slot.name] = part[:-1]  # the last byte stays NUL
            else:
                self.__dict__[slot.name] = np.frombuffer(part, CDR_DTYPE[slot.type])

    @property
    def record(self) -> NDArray[Any]:
        """() structured view of the memory, with the codec's dtype."""
        return self.buffer[8:].view(self.codec.dtype)[0]

    def stamp(self, instance: int, seq: int, stamp_ns: int) -> None:
        """Fill the part of the header that changes from message to message."""
        STAMP.pack_into(self.memory, STAMP_AT, instance, seq, stamp_ns)

    def set_scalars(self, *values: int | float) -> None:
        """Write all scalars after the header at once, in declared order (for the control tick)."""
        self.codec.scalars.pack_into(self.memory, self.codec.scalars_at, *values)

    def copy_from(self, other: Message) -> None:
        """Take over all bytes of a message of the same layout."""
        self.buffer[:] = other.buffer

    def copy(self) -> Any:
        """An independent message with the same bytes."""
        new = self.codec.new()
        new.copy_from(self)
        return new

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values by field name, enumerations by name (for people, not for loops)."""
        out: dict[str, Any] = {}
        for field in self.codec.fields:
            value = getattr(self, field.name)
            if field.name in self.enums:
                known = self.enums[field.name]
                value = known(value).name if value in list(known) else int(value)
            out[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return out


STAMP, STAMP_AT = struct.Struct("<QQq"), 8 + 16  # instance, seq, stamp_ns in a message's memory
CDR_DTYPE = {name: np.dtype(name).newbyteorder("<") for name in CDR_SIZE}
MessageT = TypeVar("MessageT", bound=Message)


class _Slot(NamedTuple):
    """Where a field lies in the body."""

    name: str
    type: str
    kind: str  # scalar, array, text
    offset: int  # of the data, in bytes
    nbytes: int
    count: int  # elements; 1 for scalars
    count_offset: int  # of the CDR count word, or -1


class Codec(Generic[MessageT]):
    """A message class bound to one robot: lengths are known, so layout, text and hash are.

    Args:
        message: the declaration.
        dims: length of each named dimension, e.g. {"joints": 29, "arm_joints": 14}.
        robot_id: written into every header and demanded of every received one.
    """

    def __init__(self, message: type[MessageT], dims: Mapping[str, int], robot_id: int) -> None:
        self.message, self.dims, self.robot_id = message, dict(dims), robot_id
        self.name = message.__name__
        self.fields = message_fields(message)
        self.slots, self.body_size = _layout(self.fields, dims)
        self.size = 4 + self.body_size  # bytes on the wire
        self.dtype = _dtype(self.slots, self.body_size)
        self.text = message_text(message)
        lengths = ",".join(f"{slot.name}={slot.count}" for slot in self.slots)
        self.schema_hash = hash64(f"{self.name}\n{self.text}\n{lengths}")
        self._guard, self._expected = self._make_guard()
        own = [s for s in self.slots[len(message_fields(Message)) :] if s.kind == "scalar"]
        # Scalars come first and from large to small, so that CDR leaves no gap between them.
        self.scalars = struct.Struct("<" + "".join(STRUCT_CODE[s.type] for s in own))
        self.scalars_at = 8 + (own[0].offset if own else 0)
        ends = [s.offset + s.nbytes for s in own]
        assert not own or ends[-1] - own[0].offset == self.scalars.size, f"{self.name}: gap"

    def new(self) -> MessageT:
        """A zeroed message with header constants and counts in place."""
        message = self.message(self)
        message.buffer[4:8] = np.frombuffer(ENCAPSULATION, np.uint8)
        message.schema_hash, message.robot_id = self.schema_hash, self.robot_id
        for slot in self.slots:
            if slot.count_offset >= 0:
                struct.pack_into("<I", message.memory, 8 + slot.count_offset, slot.count)
            if slot.kind == "text":
                message.texts[slot.name][:] = b" " * (slot.count - 1)
        return message

    def refusal(self, frame: memoryview, length: int) -> str:
        """Why this frame is not one of ours: "" (it is), length, encoding, schema, robot, count."""
        if length != self.size:
            return "length"
        got = self._guard.unpack_from(frame)
        if got == self._expected:
            return ""
        for cause, g, e in zip(("encoding", "schema", "robot"), got, self._expected, strict=False):
            if g != e:
                return cause
        return "count"

    def _make_guard(self) -> tuple[struct.Struct, tuple]:
        """One unpack that reads encapsulation, schema, robot and every count word."""
        code, at = "<4sQQ", 20
        expected: list[Any] = [ENCAPSULATION, self.schema_hash, self.robot_id]
        for slot in self.slots:
            if slot.count_offset >= 0:
                here = 4 + slot.count_offset
                code += f"{here - at}xI"
                expected.append(slot.count)
                at = here + 4
        return struct.Struct(code), tuple(expected)


def hash64(text: str) -> int:
    """64-bit BLAKE2b of a text, as messages and robot ids use it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def policy_id(data: bytes) -> int:
    """What messages call a policy file: the first eight bytes of its SHA-256, big-endian."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def message_fields(message: type[Message]) -> tuple[_Field, ...]:
    """Fields in declaration order, the common header first."""
    header = [f for f in vars(Message).values() if isinstance(f, _Field)]
    return tuple(header) if message is Message else (*header, *message.own_fields)


def message_text(message: type[Message]) -> str:
    """The ROS 2 .msg text, with units, frames and sentences as comments."""
    lines = [f"# {(message.__doc__ or '').strip().splitlines()[0]}"]
    for field, enum in message.enums.items():
        lines += [f"uint8 {field.upper()}_{item.name}={int(item)}" for item in enum]
    for field in message_fields(message):
        match field.shape:
            case ():
                suffix = ""
            case int() if field.type != "string":
                suffix = f"[{field.shape}]"
            case int():
                suffix = ""
            case _:
                suffix = "[]"
        notes = [n for n in (field.unit, f"frame {field.frame}" if field.frame else "") if n]
        if isinstance(field.shape, str):
            notes.append(f"one per {field.shape.removesuffix('s').replace('_', ' ')}")
        note = f" [{', '.join(notes)}]" if notes else ""
        lines.append(f"{field.type}{suffix} {field.name} # {field.doc}{note}")
    return "\n".join(lines) + "\n"


def _layout(fields: tuple[_Field, ...], dims: Mapping[str, int]) -> tuple[list[_Slot], int]:
    """CDR offsets: each primitive aligned to its size, sequences and strings led by a count."""
    slots: list[_Slot] = []
    at = 0
    for field in fields:
        count_offset = -1
        if isinstance(field.shape, str) or field.type == "string":
            at = _align(at, 4)
            count_offset = at
            at += 4
        if field.type == "string":
            assert isinstance(field.shape, int)
            kind, count, size, ros = "text", field.shape + 1, 1, "uint8"
        else:
            kind = "scalar" if field.shape == () else "array"
            count = dims[field.shape] if isinstance(field.shape, str) else (field.shape or 1)
            size, ros = CDR_SIZE[field.type], field.type
        assert isinstance(count, int) and count > 0, f"{field.name}: readers refuse empty arrays"
        at = _align(at, size)
        slots.append(_Slot(field.name, ros, kind, at, count * size, count, count_offset))
        at += count * size
    return slots, at


def _align(at: int, size: int) -> int:
    return -(-at // size) * size


def _dtype(slots: list[_Slot], size: int) -> np.dtype:
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    for slot in slots:
        base = CDR_DTYPE[slot.type]
        names.append(slot.name)
        formats.append(
            f"S{slot.count}"
            if slot.kind == "text"
            else base
            if slot.kind == "scalar"
            else (base, (slot.count,))
        )
        offsets.append(slot.offset)
    spec: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return np.dtype(spec)


# --- the messages -----------------------------------------------------------------------------
# Scalars first, then arrays: one cache line holds what is looked at most.


class LowState(Message):
    """What the robot reports, once per control tick."""

    robot_time_ns = Scalar("int64", "the robot's own clock; simulated time in simulation", "ns")
    tick = Scalar("uint64", "control tick that read it")
    joint_pos = Array("float64", "joints", "measured joint positions", "rad")
    joint_vel = Array("float64", "joints", "measured joint velocities", "rad/s")
    joint_effort = Array("float64", "joints", "estimated joint torques", "N m")
    imu_quat_wxyz = Array("float64", 4, "orientation of the IMU, scalar first", "1", "world")
    imu_gyro = Array("float64", 3, "angular velocity", "rad/s", "imu")
    imu_accel = Array("float64", 3, "specific force, +9.81 on z at rest", "m/s^2", "imu")


class LowCmd(Message):
    """What went out to the motors in this control tick, and what it was made from."""

    enums: ClassVar = {"mode": Mode}

    now_ns = Scalar("int64", "time that this tick was given", "ns", "monotonic")
    tick = Scalar("uint64", "control tick")
    state_tick = Scalar("uint64", "low_state that was used, by its tick")
    target_instance = Scalar("uint64", "target in force: its publisher's instance, 0 for none")
    target_seq = Scalar("uint64", "target in force")
    command_instance = Scalar("uint64", "operator command in force: instance, 0 for none")
    command_seq = Scalar("uint64", "operator command in force")
    heartbeat_seq = Scalar("uint64", "newest manager heartbeat seen")
    clipped = Scalar("uint32", "limiters that changed this command, bits of safety.LIMITERS")
    mode = Scalar("uint8", "mode in force")
    joint_pos_target = Array("float64", "joints", "position targets", "rad")
    joint_vel_target = Array("float64", "joints", "velocity targets", "rad/s")
    effort_ff = Array("float64", "joints", "feed-forward torques", "N m")
    stiffness = Array("float64", "joints", "position gains", "N m/rad")
    damping = Array("float64", "joints", "velocity gains", "N m s/rad")


class PolicyInput(Message):
    """Everything a policy may see at one policy tick; its arrival wakes the pilot."""

    enums: ClassVar = {"mode": Mode}

    now_ns = Scalar("int64", "time that the control tick was given", "ns", "monotonic")
    robot_time_ns = Scalar("int64", "the robot's own clock", "ns")
    state_tick = Scalar("uint64", "low_state this was copied from, by its tick")
    command_instance = Scalar("uint64", "operator command accepted: instance, 0 for none")
    command_seq = Scalar("uint64", "operator command accepted")
    policy_id = Scalar("uint64", "policy that is asked")
    episode = Scalar("uint64", "a new number resets the policy's carry")
    step = Scalar("uint64", "policy ticks since the episode began; 0 resets the carry")
    command_valid = Scalar("uint32", "bits: 1 velocity, 2 base height, 4 arms")
    mode = Scalar("uint8", "mode in force")
    velocity = Array("float64", 3, "commanded vx, vy (m/s) and yaw rate (rad/s)", "", "heading")
    base_height = Array("float64", 1, "commanded height of the pelvis above the feet", "m")
    arm_joint_pos = Array("float64", "arm_joints", "commanded arm joint positions", "rad")
    joint_pos = Array("float64", "joints", "measured joint positions", "rad")
    joint_vel = Array("float64", "joints", "measured joint velocities", "rad/s")
    imu_quat_wxyz = Array("float64", 4, "orientation of the IMU, scalar first", "1", "world")
    imu_gyro = Array("float64", 3, "angular velocity", "rad/s", "imu")
    imu_accel = Array("float64", 3, "specific force, +9.81 on z at rest", "m/s^2", "imu")


class Target(Message):
    """What the policy wants of every joint; carries all that control needs."""

    now_ns = Scalar("int64", "time that the pilot's step was given", "ns", "monotonic")
    input_instance = Scalar("uint64", "policy_input consumed: its publisher's instance")
    input_seq = Scalar("uint64", "policy_input consumed")
    policy_id = Scalar("uint64", "policy that answered")
    episode = Scalar("uint64", "echo of the input")
    step = Scalar("uint64", "echo of the input")
    map_instance = Scalar("uint64", "height_map consumed: its publisher's instance, 0 for none")
    map_seq = Scalar("uint64", "height_map consumed")
    joint_pos_target = Array("float64", "joints", "position targets", "rad")
    joint_vel_target = Array("float64", "joints", "velocity targets", "rad/s")
    effort_ff = Array("float64", "joints", "feed-forward torques", "N m")
    stiffness = Array("float64", "joints", "position gains", "N m/rad")
    damping = Array("float64", "joints", "velocity gains", "N m s/rad")


class Odometry(Message):
    """Where the pilot believes the robot is and how it moves, from joints and IMU alone.

    The odometry frame begins under the pelvis with its soles at height 0; its yaw is the IMU's.
    """

    now_ns = Scalar("int64", "time that the pilot's step was given", "ns", "monotonic")
    robot_time_ns = Scalar("int64", "the robot's own clock of the measurement", "ns")
    input_instance = Scalar("uint64", "policy_input consumed: its publisher's instance")
    input_seq = Scalar("uint64", "policy_input consumed")
    heading = Scalar("float64", "yaw of the pelvis", "rad", "odometry")
    height = Scalar("float64", "pelvis above the sole that carries most", "m")
    base_pos = Array("float64", 3, "position of the pelvis", "m", "odometry")
    base_quat_wxyz = Array("float64", 4, "orientation of the pelvis", "1", "odometry")
    base_lin_vel_b = Array("float64", 3, "velocity of the pelvis", "m/s", "body")
    share = Array("float64", 2, "how much of the estimate stands on the left, the right foot", "1")
    left_sole = Array("float64", 3, "middle of the left sole", "m", "odometry")
    right_sole = Array("float64", 3, "middle of the right sole", "m", "odometry")


class PolicyInfo(Message):
    """What the pilot has loaded; repeated once a second so that late joiners learn it."""

    policy_id = Scalar("uint64", "first eight bytes of the file's SHA-256")
    step_ns = Scalar("int64", "period of the policy", "ns")
    name = Text(48, "name in the manifest")
    provider = Text(24, "what really runs the network")
    velocity_min = Array("float64", 3, "least vx, vy (m/s), yaw rate (rad/s)", "", "heading")
    velocity_max = Array("float64", 3, "greatest vx, vy (m/s), yaw rate (rad/s)", "", "heading")
    base_height_range = Array("float64", 2, "least and greatest; equal: not commanded", "m")
    default_joint_pos = Array("float64", "joints", "pose the policy starts from", "rad")


class Command(Message):
    """What one operator wants; sent at 20 Hz or more while the operator is there."""

    lease = Scalar("uint64", "the sender's nonce; only the lease holder's counts")
    valid = Scalar("uint32", "bits: 1 velocity, 2 base height, 4 arms")
    source = Scalar("uint8", "row of topics.SOURCES")
    velocity = Array("float64", 3, "vx, vy (m/s) and yaw rate (rad/s)", "", "heading")
    base_height = Array("float64", 1, "height of the pelvis above the feet", "m")
    arm_joint_pos = Array("float64", "arm_joints", "arm joint positions", "rad")


class Request(Message):
    """One thing an operator asks; re-sent unchanged until status answers it."""

    enums: ClassVar = {"ask": Ask}

    lease = Scalar("uint64", "the sender's nonce")
    policy_id = Scalar("uint64", "policy to start, 0 for the one loaded")
    source = Scalar("uint8", "row of topics.SOURCES")
    ask = Scalar("uint8", "what is asked")


class PolicyChoice(Message):
    """An operator wants another policy loaded; re-sent unchanged until the manager answers it."""

    lease = Scalar("uint64", "the sender's nonce; only the lease holder's counts")
    policy_id = Scalar("uint64", "policy to load: first eight bytes of the file's SHA-256")
    source = Scalar("uint8", "row of topics.SOURCES")


class PolicyChange(Message):
    """What the manager did about the last choice; what a pilot has loaded `PolicyInfo` tells."""

    enums: ClassVar = {"state": ChangeState}

    policy_id = Scalar("uint64", "policy that was chosen, 0 before any was")
    answer_instance = Scalar("uint64", "choice answered: its publisher's instance")
    answer_seq = Scalar("uint64", "choice answered")
    state = Scalar("uint8", "how it goes")
    text = Text(200, "in words: why it was refused, which policy it is")


class Status(Message):
    """Where control stands, at the policy's rate and at once when something changes."""

    enums: ClassVar = {"mode": Mode, "answer_ask": Ask}

    now_ns = Scalar("int64", "time that the control tick was given", "ns", "monotonic")
    tick = Scalar("uint64", "control tick")
    faults = Scalar("uint64", "active faults, bits of modes.FAULTS")
    policy_id = Scalar("uint64", "policy in use or ready")
    episode = Scalar("uint64", "episode of the policy")
    lease = Scalar("uint64", "nonce of the lease holder, 0 for nobody")
    answer_instance = Scalar("uint64", "request answered last: publisher's instance")
    answer_seq = Scalar("uint64", "request answered last")
    drops = Scalar("uint64", "frames refused on control's inputs so far")
    blocked = Scalar("uint64", "states and targets refused for their content so far")
    state_age_ms = Scalar("float32", "age of the state in use", "ms")
    target_age_ms = Scalar("float32", "age of the target in use; -1 for none", "ms")
    command_age_ms = Scalar("float32", "age of the holder's command; -1 for none", "ms")
    clipped_share = Scalar("float32", "share of ticks clipped over the last second", "1")
    mode = Scalar("uint8", "mode in force")
    cause = Scalar("uint8", "row of modes.FAULTS that led to FAULT, HOLD or SOFT_STOP; 255: none")
    source = Scalar("uint8", "row of topics.SOURCES that holds the lease; 255: nobody")
    answer_ask = Scalar("uint8", "what was asked")
    answer_ok = Scalar("uint8", "1 accepted, 0 refused")
    velocity = Array("float64", 3, "accepted vx, vy (m/s) and yaw rate (rad/s)", "", "heading")
    reason = Text(160, "why the last request was refused, or why the mode changed")


class Intervention(Message):
    """The safety filter changed a command: the joint it changed most, before and after."""

    enums: ClassVar = {"mode": Mode}

    tick = Scalar("uint64", "control tick")
    before = Scalar("float64", "value asked for", "unit of the limiter")
    after = Scalar("float64", "value let through", "unit of the limiter")
    limiter = Scalar("uint8", "row of safety.LIMITERS")
    joint = Scalar("uint8", "row of the robot's joints")
    mode = Scalar("uint8", "mode in force")


class Timing(Message):
    """Measured durations of the last 50 control ticks; replay does not compare it."""

    skipped_ticks = Scalar("uint64", "whole periods skipped so far")
    executed_ticks = Scalar("uint64", "ticks executed so far")
    elapsed_ns = Scalar("int64", "from the schedule's origin to the start of the newest tick", "ns")
    minor_faults = Scalar("uint64", "page faults of the control thread so far")
    collections = Scalar("uint64", "garbage collections in control so far")
    allocated_blocks = Scalar("int64", "interpreter memory blocks in use")
    policy_ticks = Scalar("uint32", "entries of path_us and write_us that count")
    lateness_us = Array("float32", 50, "start against schedule", "us")
    tick_us = Array("float32", 50, "duration of the tick, waiting for the target included", "us")
    cpu_us = Array("float32", 50, "CPU time of the tick without simulated physics", "us")
    path_us = Array("float32", 50, "driver.read returned to target validated", "us")
    write_us = Array("float32", 50, "driver.read to the first driver.write that used it", "us")


class Truth(Message):
    """What only a simulation knows; nothing that controls the robot may read it."""

    sim_time_ns = Scalar("int64", "simulated time", "ns")
    support_force = Scalar("float64", "force of the gantry on the torso", "N", "world")
    released = Scalar("uint8", "1 once the gantry has let go")
    hanging = Scalar("uint8", "1 while the robot hangs at full height, at rest")
    base_pos_w = Array("float64", 3, "position of the pelvis", "m", "world")
    base_quat_wxyz = Array("float64", 4, "orientation of the pelvis", "1", "world")
    base_lin_vel_w = Array("float64", 3, "velocity of the pelvis", "m/s", "world")
    base_ang_vel_b = Array("float64", 3, "angular velocity of the pelvis", "rad/s", "body")
    joint_pos = Array("float64", "joints", "true joint positions", "rad")


class Health(Message):
    """What the robot says about itself beside its motion; hardware only.

    The newest is in force until the next one, and a change of `alerts` is told at once.
    """

    tick = Scalar("uint64", "control tick that read it")
    alerts = Scalar("uint64", "rows that the driver saw active, bits of modes.FAULTS")
    frames = Scalar("uint64", "states accepted so far")
    lost = Scalar("uint64", "states missing between accepted ones so far, by the robot's clock")
    refused = Scalar("uint64", "states refused so far for length, encoding or CRC")
    repeated = Scalar("uint64", "states refused so far as old: doubled or swapped on the way")
    implausible = Scalar("uint64", "states refused so far for a joint that cannot have moved so")
    unsent = Scalar("uint64", "commands that could not be sent so far")
    age_ms = Scalar("float32", "age of the newest state, by arrival and by the robot's clock", "ms")
    charge = Scalar("float32", "state of charge of the battery; -1: unknown", "%")
    keys = Scalar("uint32", "keys held on the wireless remote, bits of its table")
    variant = Scalar("uint8", "what kind of robot it says it is (mode_machine)")
    axes = Array("float32", 4, "sticks of the wireless remote: lx, ly, rx, ry, -1 to 1", "1")
    casing = Array("float32", "joints", "temperature of the motors' casings", "degree Celsius")
    winding = Array("float32", "joints", "temperature of the motors' windings", "degree Celsius")
    heat_margin = Array("float32", "joints", "from a motor's temperature to its limit", "K")
    motor_errors = Array("uint32", "joints", "error bits of the motors")
    torso_quat_wxyz = Array("float64", 4, "orientation of the second IMU", "1", "world")
    torso_gyro = Array("float64", 3, "angular velocity at the second IMU", "rad/s", "torso imu")
    torso_accel = Array("float64", 3, "specific force at the second IMU", "m/s^2", "torso imu")


class Heartbeat(Message):
    """The manager is alive; without it the robot is damped."""

    pid = Scalar("uint32", "process id of the manager")


class Consumed(Message):
    """What a control tick took in beside its state; of ticks that took in nothing there is none.

    With low_state, low_cmd and these a tick can be run again exactly. More messages than fit are
    told in further ones of the same tick.
    """

    tick = Scalar("uint64", "control tick")
    drops = Scalar("uint64", "frames refused on control's inputs so far")
    malformed = Scalar("uint64", "targets of wrong form so far")
    target_instance = Scalar("uint64", "target received, accepted or not: instance, 0 for none")
    target_seq = Scalar("uint64", "target received")
    skipped = Scalar("uint32", "whole periods that the schedule skipped before this tick")
    count = Scalar("uint32", "entries of instances and seqs that count, in order of arrival")
    driver_fault = Scalar("uint8", "1: the driver's read failed, 2: its write; 0: neither")
    error = Scalar("uint8", "1: an exception ended the tick; it cannot be run again")
    instances = Array("uint64", 8, "publishers of the messages received, targets excepted")
    seqs = Array("uint64", 8, "seq of the messages received")
    text = Text(120, "what the driver said")


class Snapshot(Message):
    """Everything a stage remembers between two steps, once a second: replay begins at any of them.

    Written and read by the stage itself; another version of its code may not understand it.
    """

    now_ns = Scalar("int64", "time of the step after which it was taken", "ns", "monotonic")
    step = Scalar("uint64", "steps of the stage so far")
    size = Scalar("uint32", "bytes of block that count")
    plain = Text(2047, "numbers, as JSON")
    block = Array("uint8", SNAPSHOT_BYTES, "arrays and messages, end to end")


class ClockMap(Message):
    """The computer's clocks, read together: steps of the wall clock show here and nowhere else."""

    monotonic_ns = Scalar("int64", "the bus's clock", "ns", "monotonic")
    realtime_ns = Scalar("int64", "the wall clock at the same moment", "ns", "epoch")
    uncertainty_ns = Scalar("int64", "time that reading both took", "ns")


class Event(Message):
    """Something worth finding again in a log: its start, its end, a remark, where an episode is."""

    enums: ClassVar = {"kind": EventKind}

    kind = Scalar("uint8", "what it is")
    text = Text(200, "in words")


class RecorderStatus(Message):
    """How the log is doing."""

    bytes_written = Scalar("uint64", "size of all files of this log", "bytes")
    recorded = Scalar("uint64", "messages written")
    lost = Scalar("uint64", "messages that did not reach the log")
    bytes_free = Scalar("uint64", "left on the log's disk", "bytes")
    recording = Scalar("uint8", "1 while messages are written")
    path = Text(200, "folder of the log")
    warning = Text(160, "what is wrong; empty if nothing is")


class FrameFault(IntEnum):
    """Why a frame is not looked at; NONE: it is."""

    NONE = 0
    CALIBRATION = 1
    SIZE = 2
    FROZEN = 3
    BACKWARDS = 4
    LATE = 5
    BLACK = 6


class Frame(Message):
    """One picture of a camera; stamped with the middle of its exposure."""

    enums: ClassVar = {
        "encoding": Encoding, "depth_kind": DepthKind, "source": FrameSource, "clock": FrameClock,
    }  # fmt: skip

    frame_id = Scalar("uint64", "the camera's own counter; a frozen camera repeats it")
    dropped = Scalar("uint64", "frames that the camera or its driver lost so far")
    calib_hash = Scalar("uint64", "calibration that this was taken with")
    t_sof_ns = Scalar("int64", "exposure of the first row begins", "ns", "monotonic")
    t_mid_ns = Scalar("int64", "middle of the exposure of the middle row", "ns", "monotonic")
    t_eof_ns = Scalar("int64", "exposure of the last row ends", "ns", "monotonic")
    t_recv_ns = Scalar("int64", "we had it", "ns", "monotonic")
    t_pub_ns = Scalar("int64", "it was published", "ns", "monotonic")
    clock_err_ns = Scalar("int64", "by how much these times may be wrong", "ns")
    sim_time_ns = Scalar("int64", "simulated time of the middle of the exposure", "ns")
    row_readout_ns = Scalar("uint32", "from row to row; 0: all rows at once", "ns")
    exposure_us = Scalar("float32", "exposure of a row; 0: not known", "us")
    gain = Scalar("float32", "amplification; 0: not known", "1")
    depth_scale_m = Scalar("float32", "of one step of a z16 pixel", "m")
    width = Scalar("uint32", "columns of the picture", "pixel")
    height = Scalar("uint32", "rows of the picture", "pixel")
    stride = Scalar("uint32", "bytes of a row; 0 of JPEG", "bytes")
    size = Scalar("uint32", "bytes of data that count", "bytes")
    encoding = Scalar("uint8", "what the pixels are")
    depth_kind = Scalar("uint8", "what depth means")
    source = Scalar("uint8", "where it is from")
    clock = Scalar("uint8", "which clock told the exposure, before it was put on ours")
    intrinsics = Array("float64", 4, "fx, fy, cx, cy; pixel centres at +0.5", "pixel")
    camera_pos = Array("float64", 3, "place of the camera", "m", "its link")
    camera_quat_wxyz = Array(
        "float64", 4, "optical axes: x right, y down, z forward", "1", "its link"
    )
    camera_id = Text(15, "name of the camera")
    data = Array("uint8", "frame_bytes", "pixels, row 0 on top; z16 is little-endian, 0: no depth")


class HeightMap(Message):
    """The ground around the robot, as policies take it: one for each frame, and some without any.

    Where `gate` is not 0 the heights are a flat plane under the feet, and nobody may trust more.
    """

    enums: ClassVar = {"fault": FrameFault}

    now_ns = Scalar("int64", "time that the step was given", "ns", "monotonic")
    frame_instance = Scalar("uint64", "frame consumed: its publisher's instance, 0 for none")
    frame_seq = Scalar("uint64", "frame consumed")
    state_instance = Scalar("uint64", "newest low_state consumed: its publisher's instance")
    state_seq = Scalar("uint64", "newest low_state consumed")
    t_mid_ns = Scalar("int64", "exposure of the newest frame in the map", "ns", "monotonic")
    frames = Scalar("uint64", "frames put into the map so far")
    missed = Scalar("uint64", "frames that did not reach us so far, or were too many")
    base_height = Scalar("float64", "of the pelvis above the last sole that stood", "m")
    heading = Scalar("float64", "yaw of the map, and of the pelvis", "rad", "odometry")
    age_ms = Scalar("float32", "of the newest frame in the map, since its exposure; -1: none", "ms")
    mean_std = Scalar("float32", "mean of std", "m")
    contact_error = Scalar("float32", "map above the sole, last footfall; NaN: unseen", "m")
    camera_pitch = Scalar("float32", "found: it looks higher than its calibration says", "rad")
    states = Scalar("uint32", "low_states consumed since the last step")
    gate = Scalar("uint32", "why the heights are flat, bits of perception.GATE")
    fault = Scalar("uint8", "why the frame consumed was dropped")
    base_pos = Array("float64", 3, "place of the pelvis, amid the heights", "m", "odometry")
    refused = Array("uint64", len(FrameFault), "frames dropped so far, by the rows of fault")
    height = Array("float32", 187, "pelvis z minus ground z; y -0.5 to 0.5 m outer, x -0.8 to 0.8 "
                   "inner, every 0.1", "m", "yaw of the pelvis")  # fmt: skip
    std = Array("float32", 187, "standard deviation of the map's height", "m")
    cell_age = Array("float32", 187, "since the cell was seen, or since the map began", "s")


class PerceptionTiming(Message):
    """How long each stage from light to height_map took; replay does not compare it."""

    frame_seq = Scalar("uint64", "frame that this is about")
    capture_ms = Scalar("float32", "middle of exposure to receipt by the camera's driver", "ms")
    driver_ms = Scalar("float32", "receipt to publication of the frame", "ms")
    bus_ms = Scalar("float32", "publication to being taken up by perception", "ms")
    compute_ms = Scalar("float32", "taken up to publication of the height map", "ms")
    total_ms = Scalar("float32", "middle of exposure to publication of the height map", "ms")


MESSAGES: tuple[type[Message], ...] = (
    LowState, LowCmd, PolicyInput, Target, PolicyInfo, Command, Request, Status, Intervention,
    Timing, Truth, Heartbeat, Consumed, Snapshot, ClockMap, Event, RecorderStatus, Health,
    Frame, HeightMap, PerceptionTiming, Odometry,
)  # fmt: skip
