"""A Unitree G1 over DDS: its states in, commands to its motors out, 500 times per second.

`open` refuses whatever is not the robot that the run expects before a single command is sent. The
bytes are those of unitree_wire.py; unitree_state.py judges what comes in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from drivers import unitree_wire as wire
from drivers.dds import Participant, RawReader, check_interface
from drivers.driver import DriverFault
from drivers.unitree_command import make_filter
from drivers.unitree_service import MotionService
from drivers.unitree_signs import SignTrial
from drivers.unitree_state import LOST_NS, MS, StateWatch
from robot import clock
from robot.config import UserError
from robot.messages import Health, LowCmd, LowState, Truth
from robot.model import Robot
from robot.modes import BIT
from robot.runs import UnitreeConfig

LISTEN_NS = 500 * MS  # for states and for anybody else's commands; 200 ms at least (A18)
ANSWER_NS = 3_000 * MS  # for the first state; finding each other takes a second or two
POLL_NS = 1 * MS
COMMAND_NS = 2 * MS
OTHERS_NS = 8 * MS  # between two looks for somebody else's commands: to be found within 20 (A18)
FOREIGN_NS = 100 * MS  # somebody else's command counts for so long
GAP_NS = 20 * MS  # between two commands; afterwards they flow anew
TICKS = (0.9, 1.1)  # of the robot's counter per ms of ours, on a clock that may be late by 25 ms
UNSENT = 3  # commands in a row (A10)
CLEAR_NS = 200 * MS  # by then motors that are commanded say that they miss nothing
LEAST_COMMANDS = 10
TIMEOUT_NS = 200 * MS  # of silence: all motors must say so (A13); the true time is not published
BATTERY_NS = 5_000 * MS
HEALTH_NS = 50 * MS
BATTERY = ((8.0, "battery_empty"), (15.0, "battery_entry"), (25.0, "battery_low"))  # percent
TRUTH_NUMBERS = 17  # of the emulator, before the joints


class UnitreeDriver:
    """A robot, or its emulator.

    Args:
        robot: 29 joints in the order of the G1's motors.
        config: interface, domain, what is allowed.
        factor: multiplies age limits; 1 on hardware.
        now: our clock, ns.
        sleep: waits for so many ns; tests let their emulator run meanwhile.
    """

    physics_cpu_ns = 0

    def __init__(
        self,
        robot: Robot,
        config: UnitreeConfig,
        factor: float = 1.0,
        now: Callable[[], int] = clock.now_ns,
        sleep: Callable[[int], None] = clock.sleep_ns,
    ) -> None:
        self.robot, self.config, self.simulated = robot, config, config.emulator
        self._factor, self._now, self._sleep = factor, now, sleep
        self._filter = make_filter(config, robot)
        self._participant: Participant | None = None
        self.watch = StateWatch(robot, config, factor)
        self._frame = wire.Frame(wire.CMD_LAYOUT)
        n = robot.num_joints
        self._frame.body[wire.CMD_LAYOUT.leaves["motor_cmd.mode"].offsets[:n]] = 1
        self._fields = self._frame.table("motor_cmd.q", 5, n)  # q, dq, tau, kp, kd
        self._finite_flags = bytearray(5 * n)
        self._finite = np.frombuffer(self._finite_flags, np.bool_).reshape(5, n)
        self._energised = False
        self._commanded_ns = self._flowing_ns = 0  # last command; since when they flow
        self._unsent = self._unsent_total = 0
        self._foreign_ns: int | None = None
        self._next_others_ns = 0
        self._charge, self._charge_ns = -1.0, 0
        self._alerts = self._next_health_ns = 0
        self._torso = np.zeros(10, np.float32)  # orientation, rates, accelerations
        self._torso_ns = 0
        self._timeout_seen = config.trust_timeout or config.readonly
        self._truths: RawReader | None = None
        self._truth: np.ndarray | None = None

    # --- open -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Find the robot, make sure that it is the one and free, take it over.

        Only then are there commands, without torque: do the motors notice when they stop? One that
        hangs is moved a little, joint by joint: do they turn the right way?

        Raises:
            UserError: wrong interface, no robot, another robot, one that is not ready, or one that
                somebody else commands or owns; says what to do.
        """
        if self._participant is not None:
            return
        self._check_joints()
        config = self.config
        interface = check_interface(config.interface, config.network)
        self._participant = Participant(config.domain, interface)
        try:
            self._connect(self._participant)
            self._meet(interface)
            self._take_over(self._participant)
            self._timeout_seen = self._timeout_seen or self._try_timeout()
            if config.hang and not (config.readonly or config.dry_run or config.trust_signs):
                self._try_signs()
        except BaseException:
            self.close()
            raise

    def _check_joints(self) -> None:
        """A command's rows go to the motors as they stand (S12)."""
        names = self.robot.joint_names
        for row, (name, motor) in enumerate(zip(names, wire.JOINTS, strict=False)):
            if name != motor:
                raise UserError(
                    f"{self.robot.path}: row {row} is {name}; expected {motor}, which is motor "
                    f"{row} of a G1: commands would go to the wrong joints"
                )

    def _connect(self, participant: Participant) -> None:
        kinds = wire.idl_types()
        self._states = participant.reader("rt/lowstate", kinds["LowState_"], depth=32)
        self._others = participant.reader("rt/lowcmd", kinds["LowCmd_"], depth=4)
        self._battery = participant.reader("rt/lf/bmsstate", kinds["BmsState_"])
        self._torsos = participant.reader("rt/secondary_imu", kinds["IMUState_"])
        self._commands = None
        if not self.config.readonly:
            self._commands = participant.writer("rt/lowcmd", kinds["LowCmd_"])
        if self.config.emulator:
            self._truths = participant.reader("rt/emulator/truth", _truth_type())

    def _meet(self, interface: str) -> None:
        """Listen until it is clear who is there (A18, F5; actuator_protocols 2.5)."""
        watch, config = self.watch, self.config
        if not self._wait(lambda: watch.has_state, ANSWER_NS):
            raise UserError(self._nobody(interface))
        first_ms, begin = watch.tick, watch.arrival_ns
        self._wait(lambda: self._foreign_ns is not None, LISTEN_NS)
        if self._foreign_ns is not None:
            raise UserError(
                "somebody else commands this robot (rt/lowcmd); stop that program first: two "
                "commanders shake a robot to pieces"
            )
        kind = watch.now.mode_machine
        self._check_kind(kind)
        self._frame.put("mode_machine", kind)  # mode_pr stays 0: joints, not motors
        counted, passed = watch.tick - first_ms, (self._now() - begin) / MS
        # An emulator may lag behind its clock as its computer lets it, by the factor at most.
        if not TICKS[0] / self._factor * passed - 25 < counted < TICKS[1] * passed + 25:
            raise UserError(
                f"the robot's tick counter advanced by {counted} in {passed:.0f} ms; expected "
                "milliseconds, since the age of a state is told by it. Is this a simulator?"
            )
        if config.emulator and not self._wait(lambda: self._truth is not None, ANSWER_NS):
            raise UserError(
                "who answers is no emulator of ours, but the run file says emulator: true; for a "
                "real robot use `plexus run g1`"
            )

    def _nobody(self, interface: str) -> str:
        """Why there is no state, as far as it can be told."""
        why = self.watch.counts.refused
        if why:
            return (
                f"states come in on {interface!r}, but all {why} are refused for their "
                f"{self.watch.why_refused}; is this a simulator without CRC, or another robot?"
            )
        start = " Is `plexus emulate g1` running?" if self.config.emulator else ""
        return (
            f"no robot: not a word on rt/lowstate within {ANSWER_NS / 1e9:.0f} s on {interface!r}, "
            f"domain {self.config.domain}.{start} Is it switched on, past its start-up, and the "
            "cable in? `plexus doctor g1` looks closer"
        )

    def _check_kind(self, kind: int) -> None:
        allowed = self.config.mode_machine
        if kind in allowed:
            return
        known = wire.VARIANTS.get(kind)
        what = known.doc if known else "not known; 0 means that the robot is not ready"
        if known and known.joints != self.robot.num_joints:
            hint = f"this runtime drives {self.robot.num_joints} joints: do not use it here"
        else:
            hint = (
                "wait until it is ready, or check model and gear ratios and allow it under "
                "unitree.mode_machine in the run file"
            )
        raise UserError(
            f"the robot says mode_machine {kind} ({what}); expected one of {list(allowed)}; {hint}"
        )

    def _take_over(self, participant: Participant) -> None:
        """Make the vendor's motion service let go, if the robot is known to hang."""
        if self.config.readonly:
            return
        service = MotionService(participant, self._now, self._pump)
        name = service.owner()
        if not name:
            return
        if not self.config.hang:
            raise UserError(
                f"motion service {name!r} owns the robot. Taking over makes it LIMP at once: hang "
                "it on a gantry, keep people away, then run with --hang"
            )
        service.release()
        self._wait(lambda: False, LISTEN_NS)

    def _try_timeout(self) -> bool:
        """True if the motors hear commands, and all of them notice that they stop (A13)."""
        commands, still = self._commands, np.zeros_like(self._fields)
        assert commands is not None
        self._wait(lambda: commands.readers > 0, ANSWER_NS)
        end, sent = self._now() + round(CLEAR_NS * self._factor), 0
        while sent < LEAST_COMMANDS or self._missing().any():
            if self._now() >= end:
                return False
            self._send(still)
            self._pump(COMMAND_NS)
            sent += 1
        return self._wait(lambda: bool(self._missing().all()), round(TIMEOUT_NS * self._factor))

    def _try_signs(self) -> None:
        """Push each joint a little, and refuse a robot on which one turns the wrong way (S13)."""
        watch, trial = self.watch, SignTrial(self.robot)
        values, tick, torque = np.zeros_like(self._fields), self.watch.tick, None
        values[4] = self.robot.damp_damping
        while True:
            now, passed_s = self._now(), (watch.tick - tick) * 1e-3
            trouble = watch.fault(now, 0) or self._disturbed(now)
            tick = watch.tick
            torque = None if trouble else trial.step(watch.now.q, passed_s)
            values[2] = 0.0 if torque is None else torque
            self._send(values)
            if torque is None:
                break
            self._pump(COMMAND_NS)
        if trouble := trouble or trial.complaint:
            raise UserError(
                f"the commissioning move: {trouble}. Do not arm it; is it hanging freely, out of "
                "everybody's reach? If so, have it looked after (unitree.trust_signs goes without)"
            )

    def _missing(self) -> np.ndarray:
        """(N,) motors that say that they miss the computer's commands."""
        return self.watch.now.errors & np.uint32(wire.MOTOR_TIMED_OUT) != 0

    def _pump(self, ns: int) -> None:
        """Wait, and listen meanwhile."""
        self._sleep(ns)
        self._drain()

    def _wait(self, until: Callable[[], bool], most_ns: int) -> bool:
        end = self._now() + most_ns
        while not until():
            if self._now() >= end:
                return False
            self._pump(POLL_NS)
        return True

    # --- read -----------------------------------------------------------------------------------

    def _drain(self) -> int:
        """Take whatever has come; returns the time."""
        now = self._now()
        self.watch.hear(self._states.take(32), now, self._energised)
        if now >= self._next_others_ns:
            self._next_others_ns = now + OTHERS_NS
            if self._others.take():
                self._foreign_ns = now
        if self._truth is None:
            self._hear_truth()  # who tells it is an emulator
        return now

    def read(self, state: LowState) -> None:
        """The newest state, if it may be trusted.

        Raises:
            DriverFault: it is old, a sensor or motor fails, or somebody else commands the robot.
        """
        now = self._drain()
        flown = now - self._flowing_ns if self._commanded_ns else 0
        if fault := self.watch.fault(now, flown) or self._disturbed(now):
            raise DriverFault(fault)
        seen = self.watch.now
        state.robot_time_ns = self.watch.tick * MS
        state.joint_pos[:], state.joint_vel[:], state.joint_effort[:] = seen.q, seen.dq, seen.tau
        if self.robot.imu == "torso":
            self._hear_torso()
            if now - self._torso_ns >= LOST_NS * self._factor:
                raise DriverFault("no word from the torso's IMU, which this robot's policies read")
            state.imu_quat_wxyz[:], state.imu_gyro[:] = self._torso[:4], self._torso[4:7]
            state.imu_accel[:] = self._torso[7:]
        else:
            state.imu_quat_wxyz[:], state.imu_gyro[:] = seen.quat, seen.gyro
            state.imu_accel[:] = seen.accel

    def _disturbed(self, now: int) -> str:
        if self._foreign_ns is not None and now - self._foreign_ns < FOREIGN_NS:
            return "somebody else commands this robot (rt/lowcmd); stop that program"
        if self._unsent >= UNSENT:
            return f"{self._unsent} commands in a row could not be sent"
        return ""

    def _hear_torso(self) -> None:
        for data in self._torsos.take()[-1:]:
            if len(data) >= 4 + wire.IMU_LAYOUT.size:  # padded to whole words
                self._torso[:] = np.frombuffer(data, "<f4", 10, 4)
                self._torso_ns = self._now()

    def health(self, health: Health) -> bool:
        """Temperatures, battery, remote, counters; and the rows that they make active."""
        watch, now = self.watch, self._now()
        alerts = watch.alerts(now) | self._battery_alerts(now)
        alerts |= 0 if self._timeout_seen else BIT["timeout_unknown"]
        if alerts == self._alerts and now < self._next_health_ns:
            return False
        self._alerts, self._next_health_ns = alerts, now + HEALTH_NS
        counts, seen = watch.counts, watch.now
        remote = wire.Remote.decode(seen.remote.tobytes())
        health.alerts = alerts
        health.frames, health.lost = counts.accepted, counts.lost
        health.refused, health.repeated = counts.refused, counts.repeated
        health.implausible, health.unsent = counts.implausible, self._unsent_total
        health.age_ms = min(watch.age_ns(now), 1 << 40) / MS
        health.charge, health.keys = self._charge, remote.keys
        health.variant = seen.mode_machine
        health.axes[:] = remote.lx, remote.ly, remote.rx, remote.ry
        health.casing[:], health.winding[:] = seen.heat.T
        health.heat_margin[:] = watch.heat_margin()
        health.motor_errors[:] = seen.errors
        self._hear_torso()
        health.torso_quat_wxyz[:], health.torso_gyro[:] = self._torso[:4], self._torso[4:7]
        health.torso_accel[:] = self._torso[7:]
        return True

    def _battery_alerts(self, now: int) -> int:
        """The first level that the charge is at or under (S16)."""
        for data in self._battery.take()[-1:]:
            if len(data) == 4 + wire.BMS_LAYOUT.size:
                place = wire.BMS_LAYOUT.leaves["soc"].offsets[0]
                self._charge, self._charge_ns = float(data[4 + place]), now
        if self._charge < 0.0 or now - self._charge_ns > BATTERY_NS * self._factor:
            self._charge = -1.0
            return BIT["battery_unknown"]
        return next((BIT[name] for level, name in BATTERY if self._charge <= level), 0)

    # --- write ----------------------------------------------------------------------------------

    def write(self, cmd: LowCmd) -> None:
        """Send a command; its arrays are then what was sent, in single precision.

        Raises:
            DriverFault: it is not finite, or commands cannot be sent.
        """
        sent = self._filter(cmd)
        np.isfinite(sent, self._finite)
        if 0 in self._finite_flags:
            raise DriverFault("a command that is no number was not sent")
        if self._commands is None:
            return
        self._energised = bool(sent[3:].any())
        now = self._now()
        if now - self._commanded_ns > GAP_NS * self._factor:
            self._flowing_ns = now
        self._commanded_ns = now
        if self._send(sent):
            self._unsent = 0
            return
        self._unsent += 1
        self._unsent_total += 1
        if self._unsent >= UNSENT:
            raise DriverFault(f"{self._unsent} commands in a row could not be sent")

    def _send(self, values: np.ndarray) -> bool:
        """Sign and send what the filter gave; False if it was not sent."""
        assert self._commands is not None
        self._fields[:] = values
        self._frame.sign()
        return self._commands.write(self._frame.payload)

    def truth(self, truth: Truth) -> bool:
        """What the emulator tells; no robot does."""
        if self._truths is None or self._participant is None:
            return False
        self._hear_truth()
        told = self._truth
        if told is None:
            return False
        truth.sim_time_ns = round(told[0] * 1e9)
        truth.support_force, truth.released, truth.hanging = told[1], int(told[2]), int(told[3])
        truth.base_pos_w[:], truth.base_quat_wxyz[:] = told[4:7], told[7:11]
        truth.base_lin_vel_w[:], truth.base_ang_vel_b[:] = told[11:14], told[14:17]
        truth.joint_pos[:] = told[TRUTH_NUMBERS:]
        return True

    def _hear_truth(self) -> None:
        if self._truths is None:
            return
        for data in self._truths.take()[-1:]:
            if len(data) == 4 + 8 * (TRUTH_NUMBERS + self.robot.num_joints):
                self._truth = np.frombuffer(data, "<f8", offset=4)

    def close(self) -> None:
        """Leave the bus; the motors' own time-out damps them from here on. May be called twice."""
        if self._participant is not None:
            self._participant.close()
            self._participant = None


def _truth_type() -> type:
    from cyclonedds.idl import make_idl_struct, types

    numbers = types.array[types.float64, TRUTH_NUMBERS + 29]
    return make_idl_struct("Truth_", "plexus_emulator.msg.dds_.Truth_", {"values": numbers})
