"""What can be made to go wrong in the emulated G1: a table of switches, and what each one does.

Three places: measurements before they are encoded, frames on their way out, commands on their way
in. Every switch is off until it is thrown, and can be thrown back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.config import UserError, listing

ALWAYS = 1_000_000_000  # samples
ROOM = {"joint": 29, "axis": 3}  # how many there are of what is chosen by number
# Name: what it does, with the values it takes and their defaults.
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    # measurements
    "imu_frozen": ("the pelvis IMU repeats itself, bit for bit", {}),
    "imu_nan": ("no number in the quaternion", {}),
    "imu_scale": ("a quaternion of another length", {"scale": 1.05}),
    "imu_turned": ("its accelerometer alone is mounted upside down", {}),
    "imu_mounted": ("the whole IMU is turned about its axis 0, 1 or 2", {"axis": 1, "degrees": 30}),
    "gyro_saturated": ("the rate about x at full scale", {"rate": 34.9}),
    "gyro_bias": ("a bias on the rate about y", {"bias": 0.3}),
    "encoder_nan": ("no number as a position", {"joint": 3, "value": np.nan, "samples": ALWAYS}),
    "velocity_nan": ("no number as a velocity", {"joint": 3, "value": np.nan, "samples": ALWAYS}),
    "encoder_jump": ("a position jumps, so often", {"joint": 3, "rad": 0.5, "samples": 1}),
    "encoder_reversed": ("a joint is measured with the wrong sign", {"joint": 3}),
    "encoder_stuck": ("position and velocity of a joint repeat, torque does not", {"joint": 3}),
    "motor_silent": ("a motor says nothing more: its last words repeat", {"joint": 3}),
    "motor_fault": ("error bits of a motor", {"joint": 3, "bits": 1}),
    "motor_off": ("a motor lost its power and comes back disabled", {"joint": 3}),
    "temperature": ("both temperatures of a motor, in degrees", {"joint": 3, "degrees": 130}),
    "battery": ("state of charge, in percent", {"percent": 5}),
    "tick_stuck": ("the robot's tick counter stands still", {}),
    "mode_machine": ("another variant is reported", {"value": 4}),
    "remote": ("the wireless remote", {"keys": 0, "lx": 0.0, "ly": 0.0, "rx": 0.0, "ry": 0.0}),
    # frames going out
    "off": ("no state at all", {}),
    "lost": ("this share of states is lost at random", {"share": 0.2}),
    "delayed": ("states arrive late", {"ms": 30}),
    "duplicate": ("every state twice", {}),
    "reorder": ("every two states swapped", {}),
    "garbage": ("one bit of this share of states is flipped", {"share": 1.0}),
    # commands coming in
    "deaf": ("commands are not taken", {}),
    "no_timeout": ("motors never notice that commands stopped", {}),
    "second_writer": ("somebody else commands the robot, too", {}),
}  # fmt: skip
MEASURED = ("q", "dq", "tau")


@dataclass
class Measurements:
    """What the sensors say in one sample; arrays over 29 joints."""

    tick: int
    q: NDArray[np.float64]  # rad
    dq: NDArray[np.float64]  # rad/s
    tau: NDArray[np.float64]  # N m
    casing: NDArray[np.float64]  # degrees Celsius
    winding: NDArray[np.float64]
    errors: NDArray[np.uint32]  # motorstate
    modes: NDArray[np.uint8]
    quat: NDArray[np.float64]  # (4,) w x y z
    gyro: NDArray[np.float64]  # (3,) rad/s
    accel: NDArray[np.float64]  # (3,) m/s^2
    soc: float  # percent
    mode_machine: int
    remote: dict[str, Any] = field(default_factory=dict)


class Faults:
    """The switches that are thrown, and what they remember.

    Args:
        seed: of what is lost at random.
    """

    def __init__(self, seed: int = 0) -> None:
        self.active: dict[str, dict[str, Any]] = {}
        self._rng = np.random.default_rng(seed)
        self._kept: dict[str, Any] = {}  # by switch: what it froze when it was thrown
        self._late: deque[tuple[int, bytes]] = deque()
        self._held: bytes | None = None

    def throw(self, name: str, values: dict[str, Any] | None = None) -> None:
        """Switch a fault on.

        Raises:
            UserError: no such switch, or it does not take such a value.
        """
        if name not in SWITCHES:
            raise UserError(f"fault {name!r} is unknown; available: {listing(SWITCHES, 99)}")
        known = SWITCHES[name][1]
        for key, value in (values or {}).items():
            if key not in known:
                raise UserError(f"fault {name!r} takes no {key!r}; available: {listing(known)}")
            if key in ROOM and value not in range(ROOM[key]):
                raise UserError(f"fault {name!r}: got {key} {value}, expected 0 to {ROOM[key] - 1}")
        self.active[name] = known | (values or {})
        self._kept.pop(name, None)
        self._late.clear()
        self._held = None

    def clear(self, name: str = "") -> None:
        """Switch one off, or all."""
        for each in [name] if name else list(self.active):
            self.active.pop(each, None)
            self._kept.pop(each, None)

    def get(self, name: str, key: str) -> Any:
        """A value of a switch that is thrown, else None."""
        return self.active[name][key] if name in self.active else None

    def spoil(self, seen: Measurements) -> None:
        """What the switches make of a sample."""
        for name, values in self.active.items():
            joint = values.get("joint", 0)
            match name:
                case "imu_frozen":
                    frozen = self._keep(name, lambda: (seen.quat, seen.gyro, seen.accel))
                    seen.quat, seen.gyro, seen.accel = frozen
                case "imu_nan":
                    seen.quat[1] = np.nan
                case "imu_scale":
                    seen.quat *= values["scale"]
                case "imu_turned":
                    seen.accel *= (1.0, -1.0, -1.0)
                case "imu_mounted":
                    _mount(seen, values["axis"], np.radians(values["degrees"]))
                case "gyro_saturated":
                    seen.gyro[0] = values["rate"]
                case "gyro_bias":
                    seen.gyro[1] += values["bias"]
                case "encoder_nan" if self._left(values):
                    seen.q[joint] = values["value"]
                case "velocity_nan" if self._left(values):
                    seen.dq[joint] = values["value"]
                case "encoder_jump" if self._left(values):
                    seen.q[joint] += values["rad"]
                case "encoder_reversed":
                    for each in MEASURED:
                        getattr(seen, each)[joint] *= -1.0
                case "encoder_stuck":
                    seen.q[joint] = self._keep(name, lambda j=joint: float(seen.q[j]))
                    seen.dq[joint] = 0.0
                case "motor_silent":
                    words = self._keep(
                        name, lambda j=joint: [float(getattr(seen, each)[j]) for each in MEASURED]
                    )
                    for each, word in zip(MEASURED, words, strict=True):
                        getattr(seen, each)[joint] = word
                case "motor_fault":
                    seen.errors[joint] |= np.uint32(values["bits"])
                case "motor_off":
                    seen.modes[joint] = 0
                case "temperature":
                    seen.casing[joint] = seen.winding[joint] = values["degrees"]
                case "battery":
                    seen.soc = values["percent"]
                case "tick_stuck":
                    seen.tick = self._keep(name, lambda: seen.tick)
                case "mode_machine":
                    seen.mode_machine = values["value"]
                case "remote":
                    seen.remote = values

    @staticmethod
    def _left(values: dict[str, Any]) -> bool:
        """True for as many samples as were asked for."""
        values["samples"] -= 1
        return values["samples"] >= 0

    def _keep(self, name: str, now: Any) -> Any:
        if name not in self._kept:
            self._kept[name] = now()
        return self._kept[name]

    def post(self, frame: bytes, now_ms: int) -> list[bytes]:
        """The frames that leave instead of this one."""
        active = self.active
        if "off" in active or ("lost" in active and self._rng.random() < active["lost"]["share"]):
            return []
        if "garbage" in active and self._rng.random() < active["garbage"]["share"]:
            spoilt = bytearray(frame)
            spoilt[200] ^= 0x10
            frame = bytes(spoilt)
        if "delayed" in active:
            self._late.append((now_ms + active["delayed"]["ms"], frame))
            due = []
            while self._late and self._late[0][0] <= now_ms:
                due.append(self._late.popleft()[1])
            return due
        if "duplicate" in active:
            return [frame, frame]
        if "reorder" in active:
            if self._held is None:
                self._held = frame
                return []
            pair = [frame, self._held]
            self._held = None
            return pair
        return [frame]


def _mount(seen: Measurements, axis: int, angle: float) -> None:
    """What an IMU says that is turned by `angle` against the pelvis."""
    turn, half, quat = np.zeros(4), 0.5 * angle, np.zeros(4)
    turn[0], turn[1 + axis] = np.cos(half), np.sin(half)
    mujoco.mju_mulQuat(quat, seen.quat, turn)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, turn)
    seen.quat = quat
    seen.gyro, seen.accel = (each @ rotation.reshape(3, 3) for each in (seen.gyro, seen.accel))
