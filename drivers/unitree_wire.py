"""What travels between a Unitree G1 and us: types, byte layouts, CRC, remote, error bits, variants.

Pure functions and tables, no DDS. The bytes on the wire are plain CDR; the CRC is computed over the
robot's C struct, which holds the same fields at other places. Both layouts are derived from one
declaration. Source: Unitree's published IDL (package unitree_hg); not verified on a robot.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HEADER = b"\x00\x01\x00\x00"  # plain CDR version 1, little-endian
SLOTS = 35  # motors that a message has room for

Kind = Any  # "u1", "f4", ... or a struct: a tuple of fields
Fields = tuple[tuple[str, Kind, int], ...]  # name, kind, count (0: no array)

MOTOR_CMD: Fields = (
    ("mode", "u1", 0), ("q", "f4", 0), ("dq", "f4", 0), ("tau", "f4", 0), ("kp", "f4", 0),
    ("kd", "f4", 0), ("reserve", "u4", 0),
)  # fmt: skip
LOW_CMD: Fields = (
    ("mode_pr", "u1", 0), ("mode_machine", "u1", 0), ("motor_cmd", MOTOR_CMD, SLOTS),
    ("reserve", "u4", 4), ("crc", "u4", 0),
)  # fmt: skip
IMU_STATE: Fields = (
    ("quaternion", "f4", 4), ("gyroscope", "f4", 3), ("accelerometer", "f4", 3), ("rpy", "f4", 3),
    ("temperature", "i2", 0),
)  # fmt: skip
MOTOR_STATE: Fields = (
    ("mode", "u1", 0), ("q", "f4", 0), ("dq", "f4", 0), ("ddq", "f4", 0), ("tau_est", "f4", 0),
    ("temperature", "i2", 2), ("vol", "f4", 0), ("sensor", "u4", 2), ("motorstate", "u4", 0),
    ("reserve", "u4", 4),
)  # fmt: skip
LOW_STATE: Fields = (
    ("version", "u4", 2), ("mode_pr", "u1", 0), ("mode_machine", "u1", 0), ("tick", "u4", 0),
    ("imu_state", IMU_STATE, 0), ("motor_state", MOTOR_STATE, SLOTS),
    ("wireless_remote", "u1", 40), ("reserve", "u4", 4), ("crc", "u4", 0),
)  # fmt: skip
BMS_STATE: Fields = (
    ("version_high", "u1", 0), ("version_low", "u1", 0), ("fn", "u1", 0), ("cell_vol", "u2", 40),
    ("bmsvoltage", "u4", 3), ("current", "i4", 0), ("soc", "u1", 0), ("soh", "u1", 0),
    ("temperature", "i2", 12), ("cycle", "u2", 0), ("manufacturer_date", "u2", 0),
    ("bmsstate", "u4", 5), ("reserve", "u4", 3),
)  # fmt: skip
NAMES = {
    id(MOTOR_CMD): "MotorCmd_", id(LOW_CMD): "LowCmd_", id(IMU_STATE): "IMUState_",
    id(MOTOR_STATE): "MotorState_", id(LOW_STATE): "LowState_", id(BMS_STATE): "BmsState_",
}  # fmt: skip


# --- layouts ------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """One array of numbers of a message: its type and where each of them lies, in bytes."""

    dtype: np.dtype
    offsets: NDArray[np.intp]


class Layout:
    """Where the fields of a message lie, on the wire and in the robot's memory.

    Args:
        fields: the declaration.
    """

    def __init__(self, fields: Fields) -> None:
        self.leaves, self.size = _lay_out(fields, in_memory=False)
        image, image_size = _lay_out(fields, in_memory=True)
        self.image_size = image_size
        # For every byte of the image its byte of the body; padding points at a zero behind it.
        source = np.full(image_size, self.size, np.intp)
        for path, leaf in self.leaves.items():
            for byte in range(leaf.dtype.itemsize):
                source[image[path].offsets + byte] = leaf.offsets + byte
        self.image_source = source
        if "crc" in self.leaves:
            self._prepare_crc(source)

    def _prepare_crc(self, source: NDArray[np.intp]) -> None:
        """Most of the image is words of the wire as they follow each other, but for their padding.

        Only its head has to be gathered byte by byte. The last word is the CRC itself.
        """
        late = self.image_size - self.size
        odd = np.flatnonzero((source != np.arange(len(source)) - late) & (source != self.size))
        split = _aligned(int(odd.max(initial=-1)) + 1, 4)
        self._head = np.ascontiguousarray(source[:split].reshape(-1, 4)[:, ::-1].reshape(-1))
        self._tail = slice(split - late, self.size - 4)
        self._mask = np.where(source[split:-4] < self.size, 0xFF, 0).astype(np.uint8).view("<u4")

    def crc(self, body: NDArray[np.uint8]) -> int:
        """CRC of a message.

        CRC-32/MPEG-2 over the words of the image, most significant bit first. zlib's is the same
        polynomial with bits reflected, so bytes go in reflected and the sum comes out so.

        Args:
            body: (size + 1,) the message on the wire without its header, and one zero behind.
        """
        head = body.take(self._head).tobytes()
        tail = (body[self._tail].view("<u4") & self._mask).byteswap().tobytes()
        return _reverse32(zlib.crc32((head + tail).translate(BITS_REVERSED)) ^ 0xFFFFFFFF)


def _lay_out(fields: Fields, in_memory: bool) -> tuple[dict[str, Leaf], int]:
    """Paths like "motor_cmd.q" to their places, and the size of the whole.

    In memory a struct begins and ends at a multiple of its widest member, as C has it; on the wire
    only numbers are aligned.
    """
    found: dict[str, list[int]] = {}
    dtypes: dict[str, np.dtype] = {}

    def walk(fields: Fields, at: int, prefix: str) -> int:
        for name, kind, count in fields:
            path = f"{prefix}{name}"
            for _ in range(count or 1):
                if isinstance(kind, str):
                    dtype = np.dtype(kind).newbyteorder("<")
                    at = _aligned(at, dtype.itemsize)
                    found.setdefault(path, []).append(at)
                    dtypes[path] = dtype
                    at += dtype.itemsize
                else:
                    at = _aligned(at, _alignment(kind)) if in_memory else at
                    at = walk(kind, at, f"{path}.")
        return _aligned(at, _alignment(fields)) if in_memory else at

    size = walk(fields, 0, "")
    places = {p: Leaf(dtypes[p], np.array(offsets, np.intp)) for p, offsets in found.items()}
    return places, size


def _alignment(kind: Kind) -> int:
    if isinstance(kind, str):
        return np.dtype(kind).itemsize
    return max(_alignment(inner) for _, inner, _ in kind)


def _aligned(at: int, size: int) -> int:
    return -(-at // size) * size


BITS_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def _reverse32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(BITS_REVERSED), "big")


class Frame:
    """A message and the memory that is its wire form.

    Args:
        layout: of the message.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.buffer = np.zeros(4 + layout.size + 1, np.uint8)  # a zero behind, for the image
        self.buffer[:4] = np.frombuffer(HEADER, np.uint8)
        self.body = self.buffer[4:]
        self.payload = memoryview(self.buffer)[:-1]  # type: ignore[arg-type]
        self._crc = self.view("crc") if "crc" in layout.leaves else None

    def view(self, path: str, inner: int = 1) -> NDArray[Any]:
        """A field as an array that lies in the message's memory.

        Args:
            path: e.g. "motor_cmd.q".
            inner: length of an array within a repeated struct; the view has it as second axis.

        Raises:
            ValueError: the elements lie at uneven distances; use `get` and `put`.
        """
        dtype, offsets = self.layout.leaves[path]
        starts = offsets.reshape(-1, inner)[:, 0]
        steps = set(np.diff(starts).tolist())
        if len(steps) > 1:
            raise ValueError(f"{path}: its elements lie at uneven distances")
        stride = steps.pop() if steps else dtype.itemsize
        shape, strides = (len(starts),), (stride,)
        if inner > 1:
            shape, strides = (*shape, inner), (*strides, dtype.itemsize)
        return np.ndarray(shape, dtype, self.body.data, int(starts[0]), strides)

    def table(self, first: str, rows: int, count: int) -> NDArray[np.float32]:
        """(rows, count) view of float32 fields that follow each other in the first `count` structs.

        Args:
            first: the first of the fields, e.g. "motor_cmd.q".
        """
        column = self.view(first)
        strides = 4, column.strides[0]
        start = int(self.layout.leaves[first].offsets[0])
        return np.ndarray((rows, count), "<f4", self.body.data, start, strides)

    def get(self, path: str) -> NDArray[Any]:
        """A copy of a field of single bytes, wherever its elements lie."""
        return self.body[self.layout.leaves[path].offsets]

    def put(self, path: str, values: Any) -> None:
        """Write a field of single bytes."""
        self.body[self.layout.leaves[path].offsets] = values

    def sign(self) -> None:
        """Put the CRC in."""
        assert self._crc is not None
        self._crc[0] = self.layout.crc(self.body)

    def take(self, data: bytes) -> str:
        """Become a received message; returns why it is refused, or "".

        Refused for its length, its encoding or its CRC; the memory is overwritten either way.
        """
        if len(data) != 4 + self.layout.size:
            return "length"
        self.payload[:] = data
        if data[:4] != HEADER:
            return "encoding"
        if self._crc is not None and int(self._crc[0]) != self.layout.crc(self.body):
            return "crc"
        return ""


CMD_LAYOUT, STATE_LAYOUT = Layout(LOW_CMD), Layout(LOW_STATE)
IMU_LAYOUT, BMS_LAYOUT = Layout(IMU_STATE), Layout(BMS_STATE)


# --- type descriptions --------------------------------------------------------------------------


def idl_types() -> dict[str, Any]:
    """IdlStruct of every message by its name ("LowCmd_"), for DDS to announce.

    A byte is declared as an octet: with `uint8` Cyclone 11 announces another type identifier than
    Cyclone 0.10, which robots run, and peers of the two generations that differ in it asked each
    other for the type and died. With octets both compute the identifiers of the vendor's headers.
    """
    from cyclonedds.idl import make_idl_struct, types

    primitive = {
        "u1": types.byte, "u2": types.uint16, "u4": types.uint32, "i2": types.int16,
        "i4": types.int32, "f4": types.float32,
    }  # fmt: skip
    made: dict[str, Any] = {}

    def make(fields: Fields) -> Any:
        name = NAMES[id(fields)]
        if name not in made:
            made[name] = make_idl_struct(
                name,
                f"unitree_hg.msg.dds_.{name}",
                {each: member(kind, count) for each, kind, count in fields},
            )
        return made[name]

    def member(kind: Kind, count: int) -> Any:
        inner = primitive[kind] if isinstance(kind, str) else make(kind)
        return types.array[inner, count] if count else inner

    for fields in (LOW_CMD, LOW_STATE, BMS_STATE):
        make(fields)
    return made


# --- what values mean ---------------------------------------------------------------------------


class Variant(NamedTuple):
    """A kind of G1, as its mode_machine tells."""

    joints: int
    doc: str


# Unitree's table; 0 is said by nobody real.
VARIANTS = {
    1: Variant(23, "23 joints, first hardware"),
    2: Variant(29, "29 joints, first hardware"),
    3: Variant(29, "29 joints, waist locked, first hardware"),
    4: Variant(23, "23 joints, rev 1.0"),
    5: Variant(29, "29 joints, rev 1.0"),
    6: Variant(29, "29 joints, waist locked, rev 1.0"),
    9: Variant(14, "two arms only"),
    10: Variant(23, "23 joints, hips 22.5"),
    11: Variant(29, "29 joints, hips 22.5, wrist 4010"),
    12: Variant(29, "29 joints, waist locked, hips 22.5, wrist 4010"),
    13: Variant(29, "29 joints, rev 1.0, wrist 5010"),
    14: Variant(29, "29 joints, waist locked, rev 1.0, wrist 5010"),
    15: Variant(29, "29 joints, hips 22.5, wrist 5010"),
    16: Variant(29, "29 joints, waist locked, hips 22.5, wrist 5010"),
}

_LEG = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
_ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch",
        "wrist_yaw")  # fmt: skip
# Joints in the order of the motors, as in Unitree's documents.
JOINTS = tuple(
    f"{name}_joint"
    for name in (
        *(f"{side}_{name}" for side in ("left", "right") for name in _LEG),
        "waist_yaw", "waist_roll", "waist_pitch",
        *(f"{side}_{name}" for side in ("left", "right") for name in _ARM),
    )
)  # fmt: skip

# Bits of motorstate, lowest first; through a copy of the vendor's page.
MOTOR_FAULTS: dict[int, str] = {
    0x1: "overcurrent", 0x2: "transient overvoltage", 0x4: "lasting overvoltage",
    0x8: "transient undervoltage", 0x10: "chip too hot", 0x20: "MOSFET temperature",
    0x40: "MOSFET sensor", 0x80: "casing temperature", 0x100: "casing sensor",
    0x200: "winding too hot", 0x400: "rotor encoder 1", 0x800: "rotor encoder 2",
    0x1000: "output encoder", 0x2000: "calibration or boot data", 0x4000: "abnormal reset",
    0x8000: "locked or authentication", 0x10000: "chip check", 0x20000: "calibration mode",
    0x40000: "communication check", 0x80000: "driver too old",
    0x40000000: "motor lost the computer", 0x80000000: "computer lost the motor",
}  # fmt: skip
MOTOR_TIMED_OUT = 0x40000000  # also while nobody has commanded yet: no fault of the motor


def motor_fault_names(bits: int) -> list[str]:
    """Names of the set bits; one that is not known is named by its number."""
    names = [name for bit, name in MOTOR_FAULTS.items() if bits & bit]
    unknown = bits & ~sum(MOTOR_FAULTS)
    return names + ([f"unknown {unknown:#x}"] if unknown else [])


KEYS = (
    "R1", "L1", "start", "select", "R2", "L2", "F1", "F2", "A", "B", "X", "Y", "up", "right",
    "down", "left",
)  # fmt: skip
KEY = {name: 1 << bit for bit, name in enumerate(KEYS)}
STOP_KEYS = KEY["L2"] | KEY["B"]  # the vendor's own way into damping
_REMOTE = struct.Struct("<2xHfff4xf16x")  # head, keys, lx, rx, ry, L2, ly, idle


@dataclass(frozen=True)
class Remote:
    """The wireless remote as it is held now; axes from -1 to 1, right and up positive."""

    keys: int = 0
    lx: float = 0.0
    ly: float = 0.0
    rx: float = 0.0
    ry: float = 0.0

    @classmethod
    def decode(cls, data: bytes) -> Remote:
        """Of the 40 bytes in LowState; an axis that is no number counts as let go."""
        keys, lx, rx, ry, ly = _REMOTE.unpack(data)
        axes = [v if abs(v) <= 1.5 else 0.0 for v in (lx, ly, rx, ry)]  # false for NaN
        return cls(keys, *axes)

    def holds(self, keys: int) -> bool:
        """True if all of these are pressed."""
        return self.keys & keys == keys
