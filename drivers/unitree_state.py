"""Watches the states of a G1 as they come in: which one is newest, how old, and what is wrong.

A pure stage: given frames and times, it keeps the newest good one and judges it. It knows the
layout of the wire, but neither DDS nor commands. Ids in comments are rows of the fault table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers import unitree_wire as wire
from drivers.unitree_imu import ImuWatch, LegWatch
from robot.model import Robot
from robot.modes import BIT
from robot.runs import UnitreeConfig
from robot.safety import DERATE_BAND

MS = 1_000_000  # ns
PERIOD_MS = 2  # of LowState, by the robot's tick counter, which counts milliseconds
LATE_NS, LOST_NS = 6 * MS, 20 * MS  # A1, A2, A5: three periods, ten
DRIFT = 2e-4  # the robot's clock against ours, as much as cheap quartz
JUMP_MARGIN = 0.05  # rad beside what the velocity limit allows (S9)
JUMPS = 3  # in a row (S9)
STUCK_NS = 150 * MS  # without any motion under torque (S11)
STUCK_TORQUE = 1.0  # N m
GYRO_FULL_SCALE = 34.5  # rad/s: 2000 degrees/s less a little; the IMU's range is not published
SATURATED_NS = 50 * MS  # S8
RESTART_MS = 1000  # the robot's clock went back by more: it restarted
FLOWING_NS = 100 * MS  # commands for so long: motors cannot have missed them
LATE_SHARE = 0.3  # of the repetitions that are too many: three periods of ten (A1)
WRONG_MS, LEGS_WRONG_MS = 300, 150  # doubts about gravity, about the legs, for so long (S6)
COLDEST, HOTTEST = 1, 200  # degrees that a motor may have; 0 and 255 are no temperatures (S15)


class _Sight:
    """Views of a state's memory, made once."""

    def __init__(self, frame: wire.Frame, joints: int) -> None:
        self.frame = frame

        def of(path: str, inner: int = 1) -> NDArray[Any]:
            return frame.view(path, inner)

        self.tick, self.remote = of("tick"), of("wireless_remote")
        self.quat, self.gyro = of("imu_state.quaternion"), of("imu_state.gyroscope")
        self.accel = of("imu_state.accelerometer")
        self._motion = frame.table("motor_state.q", 4, joints)  # q, dq, ddq, tau_est
        self.motion = np.full((4, joints), np.nan, np.float32)  # the same side by side
        self.q, self.dq, _, self.tau = self.motion
        self.errors = of("motor_state.motorstate")[:joints]
        self._modes = frame.layout.leaves["motor_state.mode"].offsets[:joints]
        self._kind = 4 + int(frame.layout.leaves["mode_machine"].offsets[0])
        self.heat = of("motor_state.temperature", 2)[:joints]  # casing, winding
        imu = frame.layout.leaves["imu_state.quaternion"].offsets[0]
        self.imu = frame.body[imu : imu + 40]  # quaternion, rates, accelerations

    def gather(self) -> None:
        """Copy the motion out of the frame."""
        self.motion[:] = self._motion

    @property
    def mode_machine(self) -> int:
        """What kind of robot it says it is."""
        return self.frame.payload[self._kind]

    @property
    def modes(self) -> bytes:
        """(N,) a byte per motor, 1: enabled."""
        return self.frame.body.take(self._modes).tobytes()


@dataclass
class Counts:
    """States so far, as in messages.Health."""

    accepted: int = 0
    lost: int = 0
    refused: int = 0
    repeated: int = 0
    implausible: int = 0


class StateWatch:
    """The newest state and its judgement.

    Args:
        robot: velocity limits and names.
        config: how many repetitions are too many, how hot is too hot.
        factor: multiplies age limits.

    Attributes:
        now: views of the newest good state.
        has_state: there is one.
        why_refused: why the last frame was, "" if it was not.
    """

    def __init__(self, robot: Robot, config: UnitreeConfig, factor: float = 1.0) -> None:
        n = robot.num_joints
        self.robot, self.config, self.factor = robot, config, factor
        self.now, self._next = (_Sight(wire.Frame(wire.STATE_LAYOUT), n) for _ in range(2))
        self.counts = Counts()
        self.has_state, self.why_refused = False, ""
        self.arrival_ns, self.tick = 0, 0  # of the newest state; ms, never wraps
        self._imu = b""
        self.imu_repeats = 0
        self.imu, self.legs = ImuWatch(), LegWatch(robot)
        self.motor_repeats, self.stuck = np.zeros(n, np.int32), np.zeros(n, np.int32)  # samples
        self._most_repeats = self._most_stuck = 0
        # Answers lie in bytes, which are searched in a tenth of the time that NumPy takes for them.
        self._same_flags, self._beyond_flags = bytearray(4 * n), bytearray(n)
        self._same = np.frombuffer(self._same_flags, np.bool_).reshape(4, n)
        self._beyond = np.frombuffer(self._beyond_flags, np.bool_)
        self._step, self._reach, self._reach_ms = np.empty(n, np.float32), np.empty(n), -1
        self._no_errors, self._all_enabled = bytes(4 * n), b"\1" * n
        self._enabled = np.zeros(n, bool)  # motors that were seen enabled
        self._heat = self._remote = b""  # as judged last
        self._heat_found = self._remote_found = 0
        self._bad: str = ""  # what cannot have happened, of the last samples
        self._bads = 0
        self._offset_ns: float | None = None  # least of arrival minus the robot's clock
        self._saturated_ms: int | None = None
        self._restarted = False
        # A simulated robot's clock may be as much slower than ours as the factor says.
        self._drift = DRIFT if factor == 1.0 else factor - 1.0
        self._lost_text = f"no state from the robot for {LOST_NS * factor / MS:.0f} ms"

    # --- in ---

    def hear(self, frames: Iterable[bytes], now_ns: int, energised: bool) -> None:
        """Take what has come since the last call.

        Args:
            frames: in order of arrival.
            now_ns: our clock.
            energised: motors were told to give torque; only then do repetitions mean anything.
        """
        for data in frames:
            self.why_refused = self._next.frame.take(data)
            if self.why_refused:
                self.counts.refused += 1
                continue
            self._next.gather()
            self._order(now_ns, energised)

    def _order(self, now_ns: int, energised: bool) -> None:
        """By the robot's own clock: newer ones are judged, others are counted (A6)."""
        tick = int(self._next.tick[0])
        ahead = (tick - self.tick + (1 << 31)) % (1 << 32) - (1 << 31)
        if self.has_state and ahead <= 0:
            self.counts.repeated += 1
            self._restarted = self._restarted or ahead < -RESTART_MS
            return
        if self.has_state and self._implausible(ahead):
            self.counts.implausible += 1
            self._bads += 1
            return
        self._bads, passed_ms = 0, 0
        if self.has_state:
            passed_ms = ahead
            self.counts.lost += max(0, ahead // PERIOD_MS - 1)
            self.tick += ahead
        else:
            self.tick = tick
        self.now, self._next = self._next, self.now
        self.has_state, self.arrival_ns = True, now_ns
        self.counts.accepted += 1
        self._compare(energised)
        now = self.now
        self.imu.hear(now.quat, now.gyro, now.accel, passed_ms)
        self.legs.hear(now.quat, now.q, now.tau, passed_ms)
        offset = now_ns - self.tick * MS
        drifted = None if self._offset_ns is None else self._offset_ns + self._drift * ahead * MS
        self._offset_ns = offset if drifted is None else min(offset, drifted)

    def _implausible(self, ahead_ms: int) -> bool:
        """True if a joint would have moved faster than its motor can (S9)."""
        if ahead_ms != self._reach_ms:
            self._reach_ms = ahead_ms
            self._reach = self.robot.velocity_limit * (ahead_ms * 1e-3) + JUMP_MARGIN
        step, beyond = self._step, self._beyond
        np.subtract(self._next.q, self.now.q, step)
        np.abs(step, step)
        np.greater(step, self._reach, beyond)
        if 1 not in self._beyond_flags:
            return False
        if not self._bads:  # the first of a row is told
            joint = int(beyond.argmax())
            self._bad = f"{self.robot.joint_names[joint]} jumped by {step[joint]:.2f} rad"
        return True

    def _compare(self, energised: bool) -> None:
        """Count repetitions, bit for bit."""
        now = self.now
        imu = now.imu.tobytes()
        self.imu_repeats = self.imu_repeats + 1 if imu == self._imu else 0
        self._imu = imu
        np.equal(now.motion, self._next.motion, self._same)  # where the sample before lies now
        if 1 in self._same_flags[: len(now.q)] or self._most_repeats or self._most_stuck:
            self._count_still(energised)
        if all(abs(rate) < GYRO_FULL_SCALE for rate in now.gyro.tolist()):
            self._saturated_ms = None
        elif self._saturated_ms is None:
            self._saturated_ms = self.tick

    def _count_still(self, energised: bool) -> None:
        """For how many samples each motor has said the same, and has not moved under torque."""
        same_q, same_dq, _, same_tau = self._same
        still = same_q & same_dq & energised
        self.motor_repeats = np.where(still & same_tau, self.motor_repeats + 1, 0)
        pushed = still & (np.abs(self.now.tau) > STUCK_TORQUE)
        self.stuck = np.where(pushed, self.stuck + 1, 0)
        self._most_repeats, self._most_stuck = int(self.motor_repeats.max()), int(self.stuck.max())

    # --- out ---

    def age_ns(self, now_ns: int) -> int:
        """Age of the newest state: since it came, or longer if the robot's clock says so.

        The least difference between arrival and the robot's clock is taken as no delay at all;
        what a state came later than that, it spent on the way.
        """
        if not self.has_state:
            return 1 << 60
        delay = 0
        if self._offset_ns is not None:
            delay = max(0, int(self.arrival_ns - self.tick * MS - self._offset_ns))
        return now_ns - self.arrival_ns + delay

    def fault(self, now_ns: int, commanded_ns: int) -> str:
        """Why the robot must be damped, or "".

        Args:
            now_ns: our clock.
            commanded_ns: for how long commands have flown without a gap.
        """
        names = self.robot.joint_names
        if self._restarted:
            return "the robot's clock went back: it restarted; stop and start the runtime"
        if self.age_ns(now_ns) >= LOST_NS * self.factor:
            return self._lost_text
        if (kind := self.now.mode_machine) not in self.config.mode_machine:
            return f"the robot says it is of kind {kind} now (mode_machine)"
        if self._bads >= JUMPS:
            return f"impossible, {JUMPS} times in a row: {self._bad}"
        if errors := self._motor_faults(commanded_ns > FLOWING_NS):
            return errors
        if self.imu_repeats >= self.config.repeats:
            return f"the IMU repeats itself for {self.config.repeats} samples"
        if self._most_repeats >= self.config.repeats:
            joint = names[int(self.motor_repeats.argmax())]
            return f"{joint} repeats itself for {self.config.repeats} samples"
        if self._most_stuck * PERIOD_MS * MS >= STUCK_NS:
            return f"{names[int(self.stuck.argmax())]} is stuck under torque"
        since = self._saturated_ms
        if since is not None and (self.tick - since) * MS >= SATURATED_NS:
            return "a rate of the IMU is at full scale"
        return ""

    def _motor_faults(self, flowing: bool) -> str:
        """Error bits and motors that were disabled (A3, A12); named by motor."""
        now, names = self.now, self.robot.joint_names
        if now.errors.tobytes() != self._no_errors:
            # Until commands have flown for a while, motors rightly say that they miss the computer.
            errors = now.errors & np.uint32(0xFFFFFFFF ^ (0 if flowing else wire.MOTOR_TIMED_OUT))
            if errors.any():
                joint = int((errors != 0).argmax())
                return f"{names[joint]}: {', '.join(wire.motor_fault_names(int(errors[joint])))}"
        modes = now.modes
        if not flowing or modes == self._all_enabled:
            self._enabled.fill(flowing)
            return ""
        enabled = np.frombuffer(modes, np.uint8) == 1
        gone = self._enabled & ~enabled
        if gone.any():
            return f"{names[int(gone.argmax())]} was disabled by itself"
        self._enabled |= enabled
        return ""

    def alerts(self, now_ns: int) -> int:
        """Rows of modes.FAULTS that do not forbid reading."""
        found = 0
        if self.age_ns(now_ns) >= LATE_NS * self.factor:
            found |= BIT["state_late"]
        if not self.has_state:
            return found
        if self._most_repeats >= self.config.repeats * LATE_SHARE:
            found |= BIT["motor_late"]
        return found | self._heat_alerts() | self._imu_alerts() | self._remote_alerts()

    def heat_margin(self) -> NDArray[np.float64]:
        """(N,) K from each motor's temperature to its limit, the nearer of casing and winding.

        What is no temperature counts as cool here, lest one dead sensor hide another hot motor.
        """
        heat = self.now.heat
        known = (heat >= COLDEST) & (heat <= HOTTEST)
        limits = np.array((self.config.casing_limit, self.config.winding_limit))
        return np.where(known, limits - heat, limits).min(axis=1)

    def _heat_alerts(self) -> int:
        heat = self.now.heat
        if (told := heat.tobytes()) == self._heat:
            return self._heat_found
        self._heat, margin = told, self.heat_margin().min()
        known = heat.min() >= COLDEST and heat.max() <= HOTTEST
        found = 0 if known else BIT["temperature_unknown"]
        if margin <= 0.0:
            found |= BIT["motor_overheated"]
        elif margin <= DERATE_BAND:
            found |= BIT["motor_hot"]
        self._heat_found = found
        return found

    def _imu_alerts(self) -> int:
        """What the IMU says against itself and against the legs (S6, S7)."""
        doubted, by_legs = self.imu.doubted_ms, self.legs.doubted_ms
        return (
            (BIT["imu_doubtful"] if doubted else 0)
            | (BIT["imu_wrong"] if doubted >= WRONG_MS else 0)
            | (BIT["imu_off_legs"] if by_legs else 0)
            | (BIT["imu_against_legs"] if by_legs >= LEGS_WRONG_MS else 0)
            | (BIT["gyro_doubtful"] if self.imu.drifts else 0)
        )

    def _remote_alerts(self) -> int:
        if (told := self.now.remote.tobytes()) != self._remote:
            self._remote = told
            stop = wire.Remote.decode(told).holds(wire.STOP_KEYS)
            self._remote_found = BIT["remote_stop"] if stop else 0
        return self._remote_found
