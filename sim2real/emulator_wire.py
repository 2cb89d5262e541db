"""The G1's side of the wire, written from its documents alone and sharing no code with the driver.

Struct formats, type descriptions and CRC of the messages that the emulator speaks. What the driver
does with the same messages stands in drivers/unitree_wire.py, in another manner, so that a mistake
in one of them shows.
"""

from __future__ import annotations

import array
import struct
import zlib
from typing import Any, NamedTuple

from cyclonedds.idl import make_idl_struct, types

MOTORS = 35
HEAD = bytes((0, 1, 0, 0))

# On the wire nothing but numbers is aligned: the first motor's mode follows the byte before it.
CMD_WIRE = struct.Struct("<2B" + "Bx5fI" + "B3x5fI" * (MOTORS - 1) + "5I")
CMD_IMAGE = struct.Struct("<2B2x" + "B3x5fI" * MOTORS + "5I")
_MOTOR = "4f2hf7I"
STATE_WIRE = struct.Struct(
    "<2I2B2xI" + "13fh" + "Bx" + _MOTOR + ("B3x" + _MOTOR) * (MOTORS - 1) + "40B5I"
)
STATE_IMAGE = struct.Struct("<2I2B2xI" + "13fh2x" + ("B3x" + _MOTOR) * MOTORS + "40B5I")
IMU_WIRE = struct.Struct("<13fh")
BMS_WIRE = struct.Struct("<3Bx40H3Ii2B12h2H2x5I3I")
REMOTE = struct.Struct("<HHfff4xf16x")

REFLECTED = bytes(int(format(i, "08b")[::-1], 2) for i in range(256))


def checksum(image: bytes) -> int:
    """CRC-32, polynomial 04C11DB7 from FFFFFFFF, over all words but the last, highest bit first."""
    swapped = array.array("I", image[:-4])
    swapped.byteswap()
    mirrored = zlib.crc32(swapped.tobytes().translate(REFLECTED)) ^ 0xFFFFFFFF
    return int(format(mirrored, "032b")[::-1], 2)


class MotorCommand(NamedTuple):
    """What one motor is told."""

    mode: int
    q: float
    dq: float
    tau: float
    kp: float
    kd: float


class Refused(Exception):
    """A command that the robot does not take; the text says why."""


def read_command(data: bytes) -> tuple[int, int, list[MotorCommand]]:
    """mode_pr, mode_machine and the motors of a LowCmd as it came.

    Raises:
        Refused: its length, its encoding or its CRC.
    """
    if len(data) != 4 + CMD_WIRE.size:
        raise Refused("length")
    if data[:4] != HEAD:
        raise Refused("encoding")
    values = CMD_WIRE.unpack_from(data, 4)
    if checksum(CMD_IMAGE.pack(*values)) != values[-1]:
        raise Refused("crc")
    motors = [MotorCommand(*values[2 + 7 * i : 8 + 7 * i]) for i in range(MOTORS)]
    return values[0], values[1], motors


def write_state(values: list[Any]) -> bytes:
    """A LowState with its CRC, from all its numbers in order; the last one is replaced."""
    values[-1] = 0
    values[-1] = checksum(STATE_IMAGE.pack(*values))
    return HEAD + STATE_WIRE.pack(*values)


def remote_bytes(keys: int, lx: float, ly: float, rx: float, ry: float) -> bytes:
    """The 40 bytes of the wireless remote inside LowState."""
    return REMOTE.pack(0x5155, keys, lx, rx, ry, ly)


# --- descriptions for DDS -----------------------------------------------------------------------

# A line per type, fields in the documents' own words; [n] an array, [] a sequence.
DOCUMENT = """
unitree_hg MotorCmd_: mode u8, q f32, dq f32, tau f32, kp f32, kd f32, reserve u32
unitree_hg LowCmd_: mode_pr u8, mode_machine u8, motor_cmd MotorCmd_[35], reserve u32[4], crc u32
unitree_hg IMUState_: quaternion f32[4], gyroscope f32[3], accelerometer f32[3], rpy f32[3], \
temperature i16
unitree_hg MotorState_: mode u8, q f32, dq f32, ddq f32, tau_est f32, temperature i16[2], vol f32, \
sensor u32[2], motorstate u32, reserve u32[4]
unitree_hg LowState_: version u32[2], mode_pr u8, mode_machine u8, tick u32, imu_state IMUState_, \
motor_state MotorState_[35], wireless_remote u8[40], reserve u32[4], crc u32
unitree_hg BmsState_: version_high u8, version_low u8, fn u8, cell_vol u16[40], bmsvoltage u32[3], \
current i32, soc u8, soh u8, temperature i16[12], cycle u16, manufacturer_date u16, \
bmsstate u32[5], reserve u32[3]
unitree_api RequestIdentity_: id i64, api_id i64
unitree_api RequestLease_: id i64
unitree_api RequestPolicy_: priority i32, noreply bool
unitree_api RequestHeader_: identity RequestIdentity_, lease RequestLease_, policy RequestPolicy_
unitree_api Request_: header RequestHeader_, parameter string, binary u8[]
unitree_api ResponseStatus_: code i32
unitree_api ResponseHeader_: identity RequestIdentity_, status ResponseStatus_
unitree_api Response_: header ResponseHeader_, data string, binary u8[]
plexus_emulator Truth_: values f64[46]
"""
PRIMITIVES: dict[str, Any] = {
    "u8": types.byte, "u16": types.uint16, "u32": types.uint32, "i16": types.int16,
    "i32": types.int32, "i64": types.int64, "f32": types.float32, "f64": types.float64,
    "bool": bool, "string": str,
}  # fmt: skip


def _types(document: str) -> dict[str, Any]:
    """An IdlStruct per line, by name."""
    known = dict(PRIMITIVES)
    for line in document.replace("\\\n", "").strip().splitlines():
        head, _, body = line.partition(": ")
        package, name = head.split()
        fields = {}
        for field in body.split(", "):
            word, kind = field.split()
            inner, _, count = kind.rstrip("]").partition("[")
            fields[word] = known[inner]
            if "[" in kind:
                many = types.array[known[inner], int(count)] if count else None
                fields[word] = many or types.sequence[known[inner]]
        known[name] = make_idl_struct(name, f"{package}.msg.dds_.{name}", fields)
    return {name: kind for name, kind in known.items() if name not in PRIMITIVES}


TYPES = _types(DOCUMENT)
