"""A Unitree G1 that is none: MuJoCo behind the robot's own DDS topics, in a process of its own.

It has the robot's manners: commands with a wrong CRC, another variant or too late are not obeyed,
motors that hear nothing damp by themselves, and a motion service owns the robot until it is told to
let go. It shares no code with the driver. What the documents leave open is marked as chosen here.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from cyclonedds import _clayer  # type: ignore[attr-defined] - a C extension without stubs
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy, Qos
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from drivers.gantry import Gantry
from robot.config import UserError
from robot.model import Robot, compile_model
from sim2real import emulator_wire as wire
from sim2real.emulator_body import (
    AMBIENT,
    JOINTS,
    STATE_MS,
    TICK_MS,
    TIMEOUT_MS,
    Crew,
    Motors,
)
from sim2real.emulator_faults import Faults, Measurements

LOST_COMPUTER = 0x40000000
TORSO_MS = 10  # second IMU
BMS_MS = 200
NOISE = {"q": 2e-4, "dq": 0.02, "tau": 0.01, "quat": 5e-4, "gyro": 0.01, "accel": 0.05}
GRAVITY_W = np.array((0.0, 0.0, 9.81))  # m/s^2, what somebody at rest feels
ANY = 0x7F
REQUEST, RESPONSE = wire.TYPES["Request_"], wire.TYPES["Response_"]
HEADER, STATUS = wire.TYPES["ResponseHeader_"], wire.TYPES["ResponseStatus_"]
CONFIG = (
    '<CycloneDDS><Domain><General><Interfaces><NetworkInterface name="{name}"/></Interfaces>'
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto"
    '</ParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain>'
    "</CycloneDDS>"
)


@dataclass(frozen=True)
class EmulatorOptions:
    """What kind of robot is played."""

    interface: str = "lo"
    domain: int = 1
    mode_machine: int = 5
    service: str = "ai"
    """motion service that owns the robot at the start; empty: none"""
    crc: bool = True
    """False: states carry no CRC, as some simulators send them"""
    seed: int = 0
    truth_ms: int = 10
    """between two words about the truth"""
    timing_factor: float = 1.0
    """multiplies the motors' time-out, where a shared computer is late at times"""


@dataclass
class Counts:
    """What happened so far."""

    sent: int = 0  # states
    received: int = 0  # commands, good or not
    obeyed: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # why: how many
    peak_torque: float = 0.0  # share of the motor's limit, of all motors since `reset`
    peak_speed: float = 0.0  # share of the velocity limit

    def refuse(self, why: str) -> None:
        """One more command that was not obeyed."""
        self.refused[why] = self.refused.get(why, 0) + 1


class Link:
    """The emulator's DDS: the robot's topics, and one of its own that tells the truth."""

    def __init__(self, options: EmulatorOptions) -> None:
        self._domain = Domain(options.domain, CONFIG.format(name=options.interface))
        self.participant = participant = DomainParticipant(options.domain)

        def write(name: str, kind: Any) -> DataWriter:
            return DataWriter(participant, Topic(participant, name, kind))

        def read(name: str, kind: Any, depth: int) -> DataReader:
            # As the vendor's: nothing but defaults, best effort; deep, to see every command.
            qos = Qos(Policy.History.KeepLast(depth), Policy.IgnoreLocal.Participant)
            return DataReader(participant, Topic(participant, name, kind), qos)

        self.state = write("rt/lowstate", wire.TYPES["LowState_"])
        self.slow_state = write("rt/lf/lowstate", wire.TYPES["LowState_"])
        self.torso = write("rt/secondary_imu", wire.TYPES["IMUState_"])
        self.bms = write("rt/lf/bmsstate", wire.TYPES["BmsState_"])
        self.truth = write("rt/emulator/truth", wire.TYPES["Truth_"])
        self.answers = write("rt/api/motion_switcher/response", wire.TYPES["Response_"])
        self.requests = read("rt/api/motion_switcher/request", wire.TYPES["Request_"], 8)
        self.commands = read("rt/lowcmd", wire.TYPES["LowCmd_"], 64)
        self.intruder: DataWriter | None = None

    def take(self, reader: DataReader) -> list[bytes]:
        """What came, as bytes."""
        got = _clayer.ddspy_take(reader._ref, ANY, 64)
        return [] if isinstance(got, int) else [data for data, info in got if info.valid_data]

    def send(self, writer: DataWriter, frame: bytes) -> None:
        """Bytes on their way."""
        _clayer.ddspy_write(writer._ref, frame)

    def intrude(self) -> None:
        """Somebody else's command: all zeros but its CRC."""
        if self.intruder is None:
            topic = Topic(self.participant, "rt/lowcmd", wire.TYPES["LowCmd_"])
            self.intruder = DataWriter(self.participant, topic)
        values = [0] * (2 + 7 * wire.MOTORS + 5)
        values[-1] = wire.checksum(wire.CMD_IMAGE.pack(*values))
        self.send(self.intruder, wire.HEAD + wire.CMD_WIRE.pack(*values))


class Emulator:
    """The robot.

    Args:
        robot: its model and the gantry.
        options: what kind of robot is played.
    """

    def __init__(self, robot: Robot, options: EmulatorOptions) -> None:
        if robot.num_joints != JOINTS:
            raise UserError(f"{robot.path}: {robot.num_joints} joints; the emulator plays {JOINTS}")
        self.robot, self.options = robot, options
        self.model = compile_model(robot, "full")
        self.model.opt.timestep = TICK_MS * 1e-3
        self.data = mujoco.MjData(self.model)
        self._place()
        self.motors = Motors(robot, self.model, self.data)
        self.motors.timeout_ms = round(TIMEOUT_MS * options.timing_factor)
        self.crew = Crew(Gantry(robot, self.model, self.data, STATE_MS * 1e-3))
        self.faults = Faults(options.seed)
        self.counts = Counts()
        self.service = options.service
        self.ms = 0
        self.propped = False  # people hold it still: time passes, nothing moves
        self._rng = np.random.default_rng(options.seed)
        # Views, since each access of an attribute of MjData makes a new array.
        self._torque, self._speed = self.data.qfrc_actuator[6:], self.data.qvel[6:]
        self.link = Link(options)
        if self.service:
            self.motors.damp()

    def _place(self) -> None:
        """The stand pose, soles on the floor; the gantry lifts it."""
        self.data.qpos[:7] = (0, 0, 1, 1, 0, 0, 0)
        self.data.qpos[7:] = self.robot.stand_joint_pos
        mujoco.mj_forward(self.model, self.data)
        feet = [i for i in range(self.model.ngeom) if "foot" in self.model.geom(i).name]
        self.data.qpos[2] -= min(
            self.data.geom_xpos[i, 2] - self.model.geom_size[i, 0] for i in feet
        )
        mujoco.mj_forward(self.model, self.data)

    def _restart(self) -> None:
        """The robot as at the start; its clock and counters go on."""
        mujoco.mj_resetData(self.model, self.data)
        self._place()
        self.motors.winding[:] = AMBIENT
        self.motors.limp()
        self.crew = Crew(Gantry(self.robot, self.model, self.data, STATE_MS * 1e-3))
        self.faults.clear()
        self.service = self.options.service
        if self.service:
            self.motors.damp()

    # --- time ---

    def step(self) -> None:
        """One millisecond."""
        self.hear()
        watchful = "no_timeout" not in self.faults.active
        self.motors.pass_time(self.faults.get("motor_off", "joint"), watchful)
        self.ms += TICK_MS
        if not self.propped:
            mujoco.mj_step(self.model, self.data)
        if self.ms % STATE_MS == 0:
            if not self.propped:
                self._note_peaks()
                self.motors.heat(self._torque)
                self.crew.work(self.motors.stiff, self.ms * 1e-3, STATE_MS * 1e-3)
            self.speak()

    def _note_peaks(self) -> None:
        counts, robot = self.counts, self.robot
        torque = float(np.abs(self._torque / robot.effort_limit).max())
        speed = float(np.abs(self._speed / robot.velocity_limit).max())
        counts.peak_torque = max(counts.peak_torque, torque)
        counts.peak_speed = max(counts.peak_speed, speed)

    # --- in ---

    def hear(self) -> None:
        """Commands and requests since the last millisecond."""
        for data in self.link.take(self.link.commands):
            self.counts.received += 1
            self._command(data)
        for data in self.link.take(self.link.requests):
            self._request(REQUEST.deserialize(data))
        if "second_writer" in self.faults.active and self.ms % STATE_MS == 0:
            self.link.intrude()

    def _command(self, data: bytes) -> None:
        try:
            mode_pr, mode_machine, motors = wire.read_command(data)
        except wire.Refused as refused:
            self.counts.refuse(str(refused))
            return
        if "deaf" in self.faults.active:
            self.counts.refuse("deaf")
        elif mode_machine != self.options.mode_machine:
            self.counts.refuse("mode_machine")
        elif self.service:
            self.counts.refuse("service")
        else:
            if mode_pr:  # motor space: ankles and waist are addressed crosswise
                for a, b in ((4, 5), (10, 11), (13, 14)):
                    motors[a], motors[b] = motors[b], motors[a]
            self.counts.obeyed += 1
            self.motors.obey(motors)

    def _request(self, request: Any) -> None:
        """The motion switcher: 1001 who owns the robot, 1002 give it, 1003 let go of it."""
        api = request.header.identity.api_id
        data, code = "", 0
        if api == 1001:
            data = json.dumps({"form": "0", "name": self.service})
        elif api == 1002:
            self.service = json.loads(request.parameter).get("name", "")
            self.motors.limp()  # "ai" begins with zero torque
        elif api == 1003:
            self.service = ""
            self.motors.limp()  # at once: whoever does not hang falls
        else:
            code = 3106
        header = HEADER(identity=request.header.identity, status=STATUS(code=code))
        self.link.answers.write(RESPONSE(header=header, data=data, binary=[]))

    # --- out ---

    def speak(self) -> None:
        """LowState and its companions."""
        seen = self._measure()
        self.faults.spoil(seen)
        frame = wire.write_state(self._numbers(seen))
        if not self.options.crc:
            frame = frame[:-4] + bytes(4)
        if self.ms % self.options.truth_ms == 0:
            self.link.send(self.link.truth, wire.HEAD + self.truth().tobytes())
        if self.ms % TORSO_MS == 0:
            self.link.send(self.link.torso, wire.HEAD + wire.IMU_WIRE.pack(*self._torso()))
        for each in self.faults.post(frame, self.ms):
            self.counts.sent += 1
            self.link.send(self.link.state, each)
        if self.ms % BMS_MS == 0:
            self.link.send(self.link.bms, wire.HEAD + self._battery(seen.soc))
            self.link.send(self.link.slow_state, frame)

    def _noisy(self, name: str, values: np.ndarray) -> np.ndarray:
        return values + NOISE[name] * self._rng.standard_normal(len(values))

    def _measure(self) -> Measurements:
        data, n = self.data, JOINTS
        quat = self._noisy("quat", data.qpos[3:7])
        errors = np.zeros(n, np.uint32)
        if self.motors.timed_out:
            errors |= np.uint32(LOST_COMPUTER)
        return Measurements(
            tick=self.ms,
            q=self._noisy("q", data.qpos[7:]),
            dq=self._noisy("dq", data.qvel[6:]),
            tau=self._noisy("tau", data.qfrc_actuator[6:]),
            casing=AMBIENT + (self.motors.winding - AMBIENT) * 0.6,
            winding=self.motors.winding.copy(),
            errors=errors,
            modes=self.motors.command[:, 0].astype(np.uint8),
            quat=quat / np.linalg.norm(quat),
            gyro=self._noisy("gyro", data.qvel[3:6]),
            accel=self._noisy("accel", self._felt()),
            soc=87.0,
            mode_machine=self.options.mode_machine,
        )

    def _felt(self) -> np.ndarray:
        """(3,) m/s^2, pelvis frame; who is held still feels its weight, unlike who falls."""
        if self.propped:
            return self.data.body("pelvis").xmat.reshape(3, 3).T @ GRAVITY_W
        return self.data.sensor("pelvis_accel").data

    def _numbers(self, seen: Measurements) -> list[Any]:
        """All numbers of a LowState in order."""
        values: list[Any] = [0, 0, 0, seen.mode_machine, seen.tick & 0xFFFFFFFF]
        values += seen.quat.tolist() + seen.gyro.tolist() + seen.accel.tolist() + [0.0] * 3 + [40]
        rows = zip(
            seen.modes.tolist(), seen.q.tolist(), seen.dq.tolist(), seen.tau.tolist(),
            seen.casing.astype(int).tolist(), seen.winding.astype(int).tolist(),
            seen.errors.tolist(), strict=True,
        )  # fmt: skip
        for mode, q, dq, tau, casing, winding, errors in rows:
            values += (mode, q, dq, 0.0, tau, casing, winding, 48.0, 0, 0, errors, 0, 0, 0, 0)
        values += [0] * 15 * (wire.MOTORS - JOINTS)
        held = seen.remote or {"keys": 0, "lx": 0.0, "ly": 0.0, "rx": 0.0, "ry": 0.0}
        values += wire.remote_bytes(**held)
        return [*values, 0, 0, 0, 0, 0]

    def _torso(self) -> list[Any]:
        data = self.data
        body = data.body("torso_link")
        gyro = data.xmat[body.id].reshape(3, 3).T @ data.cvel[body.id, :3]
        gravity = data.xmat[body.id].reshape(3, 3).T @ GRAVITY_W
        return [*data.xquat[body.id], *gyro, *gravity, 0.0, 0.0, 0.0, 40]

    def _battery(self, soc: float) -> bytes:
        cells = [3700] * 13 + [0] * 27
        return wire.BMS_WIRE.pack(
            1, 0, 0, *cells, 48000, 48000, 0, 0, round(soc), 100, *[30] * 12, 5, 0, *[0] * 8
        )

    def truth(self) -> np.ndarray:
        """(17 + 29,) s, N, released, hanging, position, orientation, velocity, rates, joints."""
        data, gantry = self.data, self.crew.gantry
        head = (self.ms * 1e-3, gantry.support_force, gantry.released, gantry.hanging)
        return np.concatenate((head, data.qpos[:7], data.qvel[:6], data.qpos[7:])).astype("<f8")

    # --- orders, for tests ---

    def order(self, given: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says, and report.

        Keys: `step` ms to go on; `after` commands to have received before; `fault` with values, or
        null to clear it, by name; `reset` the peaks; `release` the robot from the gantry; `prop` it
        up, or let it go; `fresh`: as at the start, but for the clock;
        `service` that owns it.
        """
        deadline = time.monotonic() + 2.0
        while self.counts.received < given.get("after", 0) and time.monotonic() < deadline:
            self.hear()
            time.sleep(2e-5)
        if given.get("fresh"):
            self._restart()
        for name, values in given.get("fault", {}).items():
            if values is None:
                self.faults.clear(name)
            else:
                self.faults.throw(name, values)
        self.propped = given.get("prop", self.propped)
        if (service := given.get("service")) is not None:
            self.service = service
            self.motors.damp()
        if given.get("reset"):
            self.counts.peak_torque = self.counts.peak_speed = 0.0
        if given.get("release"):
            self.crew.gantry.released = True
        for _ in range(given.get("step", 0)):
            self.step()
        return vars(self.counts) | {
            "ms": self.ms,
            "timed_out": self.motors.timed_out,
            "service": self.service,
            "height": float(self.data.qpos[2]),
        }
