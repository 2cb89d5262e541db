"""The Unitree G1's side of the wire, written from its documents alone and sharing no code with ours.

Struct formats, type descriptions and CRC of the messages that the emulator speaks. What the driver
does with the same messages stands in drivers/unitree_wire.py, in another manner, so that a mistake
in one of them shows.
"""

# No postponed annotations here: Cyclone reads the types themselves.
import array
import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from cyclonedds.idl import IdlStruct, types

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
TRUTH_NUMBERS = 17  # before the joints: see Emulator.truth

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

u8, u16, u32, i16, i32, f32 = (
    types.byte, types.uint16, types.uint32, types.int16, types.int32, types.float32,
)  # fmt: skip


@dataclass
class MotorCmd(IdlStruct, typename="unitree_hg.msg.dds_.MotorCmd_"):
    """rt/lowcmd, one motor."""

    mode: u8
    q: f32
    dq: f32
    tau: f32
    kp: f32
    kd: f32
    reserve: u32


@dataclass
class LowCmd(IdlStruct, typename="unitree_hg.msg.dds_.LowCmd_"):
    """rt/lowcmd."""

    mode_pr: u8
    mode_machine: u8
    motor_cmd: types.array[MotorCmd, MOTORS]
    reserve: types.array[u32, 4]
    crc: u32


@dataclass
class IMUState(IdlStruct, typename="unitree_hg.msg.dds_.IMUState_"):
    """rt/secondary_imu, and inside LowState."""

    quaternion: types.array[f32, 4]
    gyroscope: types.array[f32, 3]
    accelerometer: types.array[f32, 3]
    rpy: types.array[f32, 3]
    temperature: i16


@dataclass
class MotorState(IdlStruct, typename="unitree_hg.msg.dds_.MotorState_"):
    """rt/lowstate, one motor."""

    mode: u8
    q: f32
    dq: f32
    ddq: f32
    tau_est: f32
    temperature: types.array[i16, 2]
    vol: f32
    sensor: types.array[u32, 2]
    motorstate: u32
    reserve: types.array[u32, 4]


@dataclass
class LowState(IdlStruct, typename="unitree_hg.msg.dds_.LowState_"):
    """rt/lowstate."""

    version: types.array[u32, 2]
    mode_pr: u8
    mode_machine: u8
    tick: u32
    imu_state: IMUState
    motor_state: types.array[MotorState, MOTORS]
    wireless_remote: types.array[u8, 40]
    reserve: types.array[u32, 4]
    crc: u32


@dataclass
class BmsState(IdlStruct, typename="unitree_hg.msg.dds_.BmsState_"):
    """rt/lf/bmsstate."""

    version_high: u8
    version_low: u8
    fn: u8
    cell_vol: types.array[u16, 40]
    bmsvoltage: types.array[u32, 3]
    current: i32
    soc: u8
    soh: u8
    temperature: types.array[i16, 12]
    cycle: u16
    manufacturer_date: u16
    bmsstate: types.array[u32, 5]
    reserve: types.array[u32, 3]


@dataclass
class Identity(IdlStruct, typename="unitree_api.msg.dds_.RequestIdentity_"):
    """Which request this is about."""

    id: types.int64
    api_id: types.int64


@dataclass
class Lease(IdlStruct, typename="unitree_api.msg.dds_.RequestLease_"):
    """Part of a request."""

    id: types.int64


@dataclass
class Policy(IdlStruct, typename="unitree_api.msg.dds_.RequestPolicy_"):
    """Part of a request."""

    priority: i32
    noreply: bool


@dataclass
class RequestHeader(IdlStruct, typename="unitree_api.msg.dds_.RequestHeader_"):
    """Part of a request."""

    identity: Identity
    lease: Lease
    policy: Policy


@dataclass
class Request(IdlStruct, typename="unitree_api.msg.dds_.Request_"):
    """rt/api/motion_switcher/request."""

    header: RequestHeader
    parameter: str
    binary: types.sequence[u8]


@dataclass
class Status(IdlStruct, typename="unitree_api.msg.dds_.ResponseStatus_"):
    """Part of a response."""

    code: i32


@dataclass
class ResponseHeader(IdlStruct, typename="unitree_api.msg.dds_.ResponseHeader_"):
    """Part of a response."""

    identity: Identity
    status: Status


@dataclass
class Response(IdlStruct, typename="unitree_api.msg.dds_.Response_"):
    """rt/api/motion_switcher/response."""

    header: ResponseHeader
    data: str
    binary: types.sequence[u8]


@dataclass
class Truth(IdlStruct, typename="plexus.emulator.Truth_"):
    """rt/emulator/truth: what no robot knows; who hears it speaks with an emulator."""

    values: types.array[types.float64, TRUTH_NUMBERS + 29]
