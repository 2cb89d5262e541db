"""The real-time process: authority, mode machine and safety filter around the one driver.

`Control` is a stage: it is given messages and time and knows no socket, clock or randomness.
`tick` is the loop's sentence, the same for the robot, real-time simulation and lockstep. The
process that runs it against the bus is control_node.py. It imports no policy, web or camera.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from drivers.driver import Driver, DriverFault
from robot import modes, safety, snapshot
from robot.authority import Authority
from robot.messages import (
    VALID_ARMS,
    VALID_HEIGHT,
    VALID_VELOCITY,
    Ask,
    Codec,
    Command,
    Consumed,
    Health,
    Heartbeat,
    Intervention,
    LowCmd,
    LowState,
    Message,
    Mode,
    PolicyInfo,
    PolicyInput,
    Request,
    Snapshot,
    Status,
    Target,
    Truth,
)
from robot.model import Robot
from robot.modes import BIT, Answer, Conditions, ModeState
from robot.ramp import Ramp

MS = 1_000_000  # ns
STATE_STALE_NS = 20 * MS  # faults.md 5
TICK_GAP_NS = 10 * MS
TARGET_LATE_NS, TARGET_LOST_NS = 60 * MS, 100 * MS
HEARTBEAT_NS = 100 * MS
INFO_NS = 3_000 * MS  # policy_info comes once a second
DEFAULT_STEP_NS = 20 * MS  # rate of policy_input while no pilot has said otherwise

NEAR_START = 0.5  # rad, measured pose to the policy's first (faults.md 3.3)
STAND_REACHED = 0.25  # rad, soft joints sag under load
QUIET_SPEED = 1.0  # rad/s
ARM_SPEED = 1.0  # rad/s, commanded arms follow the operator no faster
READ_FAULT, WRITE_FAULT = 1, 2  # Consumed.driver_fault
HOT = BIT["motor_hot"] | BIT["motor_overheated"]

# Which source feeds the motors in which mode. A change of source goes through the ramp.
SOURCE = {
    Mode.PASSIVE: "off", Mode.DAMP: "damp", Mode.FAULT: "damp", Mode.ESTOP: "damp",
    Mode.STANDUP: "stand", Mode.STAND: "stand", Mode.SOFT_STOP: "crouch",
    Mode.POLICY: "policy", Mode.HOLD: "policy",
}  # fmt: skip
# Seconds that targets and gains blend when a source takes over (settled in simulation).
RAMP_S = {"stand": (3.0, 1.0), "crouch": (2.5, 1.0), "policy": (2.0, 1.5)}


class Ports(Protocol):
    """How control meets the rest of the world: the bus, or function calls in lockstep."""

    def receive(self) -> Iterable[Message]:
        """Everything operators, pilot and manager said since the last tick, targets excepted."""
        ...

    def target(self, asked_seq: int | None) -> Target | None:
        """The newest target; if `asked_seq` is given, wait a bounded slice for that answer."""
        ...

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """Publish; returns the message's seq."""
        ...

    def drops(self) -> tuple[int, int]:
        """Frames refused so far: on all inputs, and targets of wrong form."""
        ...


def tick(control: Control, driver: Driver, ports: Ports, clock: Callable[[], int]) -> None:
    """Read, decide, ask the pilot, guard, write, publish."""
    now_ns = clock()
    control.read(driver, now_ns)
    control.examine(driver)
    control.marks[0] = clock()
    control.decide(ports.receive(), ports.drops(), now_ns)
    asked = control.ask(ports, now_ns)
    control.take(ports.target(asked))
    control.marks[1] = clock()
    control.command(now_ns)
    control.marks[2] = clock()
    control.write(driver)
    control.publish(driver, ports, now_ns)


class Control:
    """The stage behind `tick`.

    Args:
        robot: joints, limits, poses and gains.
        codecs: topic name to layout.
        period_ns: length of a control tick.
        timing_factor: multiplies gap and age limits; 1 on hardware.
        filtered: False switches the safety filter off (lockstep comparison in simulation only).
    """

    def __init__(
        self,
        robot: Robot,
        codecs: dict[str, Codec],
        period_ns: int,
        timing_factor: float = 1.0,
        filtered: bool = True,
    ) -> None:
        self.robot, self.period_ns, self.factor = robot, period_ns, timing_factor
        self.state: LowState = codecs["low_state"].new()
        self._fresh: LowState = codecs["low_state"].new()
        self._heard: LowState | None = None
        self.cmd: LowCmd = codecs["low_cmd"].new()
        self.policy_input: PolicyInput = codecs["policy_input"].new()
        self.status: Status = codecs["status"].new()
        self.intervention: Intervention = codecs["intervention"].new()
        self.truth: Truth = codecs["truth"].new()
        self.health: Health = codecs["health"].new()
        self.consumed: Consumed = codecs["consumed"].new()
        self.snapshot: Snapshot = codecs["control_state"].new()
        self.target: Target = codecs["target"].new()
        # Both list the same five arrays in the same order, so one copy moves all.
        self._cmd_block = safety.block(self.cmd, "joint_pos_target", "damping")
        self._target_block = safety.block(self.target, "joint_pos_target", "damping")
        self.info: PolicyInfo = codecs["policy_info"].new()
        self.authority = Authority(codecs["command.script"].new(), timing_factor)
        # Where each tick looks: an attribute that is a scalar runs Python code, its cell does not.
        self._alerts, self._drops = self.health.scalars["alerts"], self.status.scalars["drops"]
        self._step_ns = self.info.scalars["step_ns"]
        self.marks = [0, 0, 0]  # ns: state read, target validated, write begins
        self.machine = ModeState()
        self.tick = 0
        self.ramp = Ramp(self.cmd, period_ns * 1e-9)
        self.filter = safety.SafetyFilter(robot, filtered)
        self._gate_state = safety.Gate("joint_pos", "imu_accel", safety.BUCKET_STATE)
        self._gate_target = safety.Gate("joint_pos_target", "damping", safety.BUCKET_TARGET)
        second = self._second = 1_000_000_000 // period_ns
        self._clip_second = safety.ClipShare(second)
        self._clip_half = safety.ClipShare(second // 2)
        self._late_second = safety.ClipShare(second)
        self._late_row, self._late_share = 0, 0.0
        self._source = "off"
        self._clip: safety.Clip | None = None
        self._spared = False  # the filter takes torque back, as the last tick's faults asked
        self._clipped_share = self._clipped_half = 0.0
        self._has_state = False
        self._state_ns = self._last_ns = self._heartbeat_ns = self._info_ns = None
        self._heartbeat_seq = 0
        self._momentary = 0  # fault bits that hold for this tick only
        self._write_fault = 0  # what the last write found out, for the tick after it
        self._upright = math.cos(robot.safety.tilt_hold)  # least z of the body's z axis
        self._tilted_ticks = 0
        self.malformed = 0
        self._faults = 0
        self._episode, self._step = 1, 0
        self._policy_robot_ns: int | None = None
        self._asked_ns = [0] * 16  # time of the last policy inputs, by seq modulo 16
        self._sensed_ns = [0] * 16  # when driver.read had returned, likewise
        self._asked_seq = 0
        self._target_ns: int | None = None  # time of the input that the target in force answers
        self._arms = robot.stand_joint_pos[robot.arm_joints].copy()
        self._arms_valid = False
        self._answers: list[tuple[int, int, Answer]] = []  # (instance, seq, answer) to publish
        # What this tick took in, told in `consumed`.
        self._inputs: list[tuple[int, ...]] = []  # (instance, seq), targets excepted
        self._given: tuple[int, ...] | None = None  # the target that came
        self._driver_fault: tuple[int, str] | None = None
        self._skipped = self._failed_tick = 0
        self._dropped = False
        self._status_due = True
        self._reason = ""
        self._health_due = False

    @property
    def memory(self) -> snapshot.Memory:
        """All that a tick may depend on beside its inputs, for replay."""
        buckets = self._gate_state.bucket, self._gate_target.bucket
        shares = self._clip_second, self._clip_half, self._late_second
        return snapshot.Memory(
            plain=(
                (self, REMEMBERED),
                (self.ramp, ("ticks", "target_ticks", "gain_ticks")),
                (self.authority, ("holder", "source", "seen_ns", "command_ns", "refused")),
                *((bucket, ("level", "total", "tripped")) for bucket in buckets),
                *((share, ("at", "sum")) for share in shares),
            ),
            blocks=tuple(
                snapshot.as_bytes(thing)
                for thing in (
                    self.state, self.cmd, self.target, self.info, self.policy_input, self.status,
                    self.authority.command, self.ramp.start, self._arms, self.filter.previous,
                    *(share.ring for share in shares),
                )
            ),
        )  # fmt: skip

    def recall(self, given: Snapshot, where: str) -> None:
        """Go on from a snapshot.

        Raises:
            UserError: it was written by another version; `where` names it.
        """
        snapshot.restore(self.memory, given, where)

    @property
    def _machine_values(self) -> tuple[Any, ...]:
        return dataclasses.astuple(self.machine)

    @_machine_values.setter
    def _machine_values(self, values: tuple[Any, ...]) -> None:
        mode, *rest = values
        self.machine = ModeState(Mode(mode), *rest)

    @property
    def _reason_told(self) -> str:
        return self._reason[:160].encode("ascii", "replace").decode()

    @_reason_told.setter
    def _reason_told(self, text: str) -> None:
        self._reason = text

    # --- read ---------------------------------------------------------------------------------

    def read(self, driver: Driver, now_ns: int) -> None:
        """Take the driver's state if it is possible; else keep the last good one."""
        self.tick += 1
        self._momentary, self._write_fault = self._write_fault, 0
        self._heard = None
        fresh = self._fresh
        try:
            driver.read(fresh)
        except DriverFault as fault:
            self._driver_fault = READ_FAULT, str(fault)
            self._fail("driver_fault", str(fault))
            return
        fresh.scalars["tick"][0] = self.tick
        self._heard = fresh  # published also when refused: replay needs what was read
        if self._gate_state.admits(fresh):
            self._fresh, self.state = self.state, fresh
            self._has_state, self._state_ns = True, now_ns

    def examine(self, driver: Driver) -> None:
        """Ask how the robot is; news are told in this very tick."""
        self._health_due = driver.health(self.health)
        if self._health_due:
            self.health.tick = self.tick

    def _fail(self, fault: str, text: str) -> None:
        """Raise a fault for this tick only, with its text for the status line."""
        self._momentary |= BIT[fault]
        self._reason, self._status_due = f"{fault}: {text}", True

    def fail(self, error: BaseException) -> None:
        """An exception in the tick: DAMP from now on, with the exception's text."""
        self._failed_tick = self.tick
        self._fail("internal_error", f"{type(error).__name__}: {error}")
        before, cause = self.machine.mode, modes.FAULT["internal_error"]
        self.machine = ModeState(Mode.FAULT, self._last_ns or 0, cause)
        self._enter(before)

    # --- decide -------------------------------------------------------------------------------

    def decide(self, messages: Iterable[Message], drops: tuple[int, int], now_ns: int) -> None:
        """Hear everybody, judge faults, step the mode machine."""
        requests: list[Request] = []
        for message in messages:
            self._inputs.append(tuple(message.origin))
            if isinstance(message, Command):
                self.authority.hear(message, now_ns)
            elif isinstance(message, Request):
                requests.append(message.copy())
            elif isinstance(message, Heartbeat):
                self._heartbeat_ns, self._heartbeat_seq = now_ns, message.seq
            elif isinstance(message, PolicyInfo):
                walking = self.machine.mode in modes.WALKING
                if message.policy_id != self.info.policy_id and not walking:
                    self._target_ns = None  # what another policy wanted, however fresh, is nothing
                self.info.copy_from(message)
                self._info_ns = now_ns
        self.authority.expire(now_ns)
        self._dropped, self._drops[0] = drops[0] != self._drops[0], drops[0]
        self._judge(drops[1], now_ns)
        self._last_ns = now_ns
        if requests or self._faults & modes.ACTING or self.machine.mode not in _STEADY:
            self._step_machine(requests, now_ns)

    def _judge(self, malformed: int, now_ns: int) -> None:
        """Find out which rows of FAULTS are active."""
        faults, factor, mode = self._momentary, self.factor, self.machine.mode
        faults |= self._alerts[0]
        if self._gate_state.bucket.tripped:
            faults |= BIT["state_invalid"]
        if self._state_ns is None or now_ns - self._state_ns > STATE_STALE_NS * factor:
            faults |= BIT["state_stale"]
        if self._last_ns is not None and now_ns - self._last_ns > TICK_GAP_NS * factor:
            faults |= BIT["tick_gap"]
        if self._heartbeat_ns is None or now_ns - self._heartbeat_ns >= HEARTBEAT_NS * factor:
            faults |= BIT["manager_lost"]
        if malformed != self.malformed:
            self.malformed = malformed
            faults |= BIT["target_malformed"]
        faults |= self._judge_tilt()
        if mode in modes.WALKING:
            age = self._target_age_ns(now_ns)
            if self._gate_target.bucket.tripped:
                faults |= BIT["target_invalid"]
            if age >= TARGET_LOST_NS * factor:
                faults |= BIT["target_lost"]
            elif age >= TARGET_LATE_NS * factor:
                faults |= BIT["target_late"]
            if not self.authority.fresh(now_ns):
                faults |= BIT["command_stale"]
        if self._clipped_half > safety.CLIPPED_HARD:
            faults |= BIT["clipping_hard"]
        if self._clipped_share > safety.CLIPPED:
            faults |= BIT["clipping"]
        if self._late_row >= 3 or self._late_share > 0.01:
            faults |= BIT["overrun"]
        if faults != self._faults:
            self._faults, self._status_due = faults, True

    def note_late(self, skipped: int) -> None:
        """The caller's schedule skipped this many whole periods before this tick."""
        self._skipped = skipped
        if not skipped and not self._late_share:
            self._late_row = 0
            return
        for _ in range(min(skipped, 100)):
            self._late_second.count(True)
        self._late_share = self._late_second.count(False)
        self._late_row = self._late_row + 1 if skipped else 0

    def _judge_tilt(self) -> int:
        if not self._has_state:
            return BIT["fallen"]
        limits = self.robot.safety
        _, x, y, _ = self.state.imu_quat_wxyz.tolist()
        if 1.0 - 2.0 * (x * x + y * y) >= self._upright:
            self._tilted_ticks = 0
            return 0
        roll, pitch, _ = safety.orientation(self.state.imu_quat_wxyz)
        fallen = abs(roll) > limits.roll_damp or abs(pitch) > limits.pitch_damp
        self._tilted_ticks = self._tilted_ticks + 1 if fallen else 0
        lasted = self._tilted_ticks * self.period_ns * 1e-9 >= limits.tilt_damp_time
        return BIT["tilt"] | (BIT["fallen"] if fallen and lasted else 0)

    def _step_machine(self, requests: list[Request], now_ns: int) -> None:
        asks: list[Ask] = []
        before = self.machine
        # An e-stop comes last, so that nothing of the same tick can undo it.
        for request in sorted(requests, key=lambda r: r.ask == Ask.ESTOP):
            ask = Ask(request.ask) if request.ask in list(Ask) else Ask.NONE
            if ask in (Ask.ACQUIRE, Ask.RELEASE):
                ok, reason = self.authority.ask(request, now_ns)
                self._answer(request, Answer(ask, ok, reason))
                continue
            if ask == Ask.NONE:
                self._answer(request, Answer(ask, False, f"request {request.ask} is unknown"))
                continue
            if request.policy_id not in (0, self.info.policy_id):
                reason = f"{ask.name} is refused: policy {request.policy_id:016x} is not loaded"
                self._answer(request, Answer(ask, False, reason))
                continue
            conditions = self._conditions(self.authority.holds(request), now_ns)
            self.machine, answers = modes.step(self.machine, (ask,), conditions, now_ns)
            asks.append(ask)
            self._answer(request, answers[0])
        if not asks:
            self.machine, _ = modes.step(self.machine, (), self._conditions(False, now_ns), now_ns)
        if self.machine.mode != before.mode:
            self._enter(before.mode)

    def _answer(self, request: Request, answer: Answer) -> None:
        self._answers.append((request.instance, request.seq, answer))
        self._reason, self._status_due = answer.reason, True

    def _enter(self, before: Mode) -> None:
        """A mode has begun: say why, and begin a new episode when the policy's ends."""
        self._status_due = True
        if self.machine.cause != modes.NO_CAUSE:
            fault = modes.FAULTS[self.machine.cause]
            if fault.name not in self._reason:
                self._reason = f"{fault.name}: {fault.doc}"
        if before in modes.WALKING and self.machine.mode not in modes.WALKING:
            self._episode, self._step = self._episode + 1, 0
            self._arms_valid = False

    def _conditions(self, holds: bool, now_ns: int) -> Conditions:
        state, robot = self.state, self.robot
        quiet = bool(np.abs(state.joint_vel).max() < QUIET_SPEED)
        stand_error = np.abs(state.joint_pos - robot.stand_joint_pos).max()
        checks = {
            "lease": holds,
            "no_entry": not modes.forbids_entry(self._faults),
            "upright": not self._faults & (BIT["tilt"] | BIT["fallen"]),
            "blended": self.ramp.done,
            "policy_ready": self._policy_ready(now_ns),
            "near_start": bool(
                np.abs(state.joint_pos - self.info.default_joint_pos).max() <= NEAR_START
            ),
            "fresh_command": self.authority.fresh(now_ns),
            "quiet": quiet,
            "cause_gone": self._cause_gone(),
        }
        return Conditions(
            faults=self._faults,
            held=frozenset(name for name, holds in checks.items() if holds),
            blend_done=self.ramp.done and self._source == SOURCE[self.machine.mode],
            stand_reached=bool(stand_error < STAND_REACHED),
            quiet=quiet,
        )

    def _cause_gone(self) -> bool:
        cause = self.machine.cause
        return cause == modes.NO_CAUSE or not self._faults >> cause & 1

    def _policy_ready(self, now_ns: int) -> bool:
        if self._info_ns is None or now_ns - self._info_ns > INFO_NS * self.factor:
            return False
        age = self._target_age_ns(now_ns)
        return age <= TARGET_LATE_NS * self.factor and not self._gate_target.bucket.tripped

    # --- ask the pilot, take its answer ---------------------------------------------------------

    def ask(self, ports: Ports, now_ns: int) -> int | None:
        """On a policy tick publish policy_input; returns its seq, else None."""
        robot_ns = self.state.scalars["robot_time_ns"][0]
        step_ns = self._step_ns[0] or DEFAULT_STEP_NS
        last = self._policy_robot_ns
        if not self._has_state:
            return None
        # On the robot's own clock: simulated time stands still while ticks are skipped.
        if last is not None and 0 <= robot_ns - last < step_ns - self.period_ns // 2:
            return None
        self._policy_robot_ns = robot_ns
        if self.machine.mode in modes.WALKING:
            self._step += 1
        self._fill_policy_input(now_ns)
        seq = ports.send("policy_input", self.policy_input, now_ns)
        slot = seq % len(self._asked_ns)
        self._asked_ns[slot], self._sensed_ns[slot] = now_ns, self.marks[0]
        self._asked_seq = seq
        self._status_due = True
        return seq if self._info_ns is not None else None

    def _fill_policy_input(self, now_ns: int) -> None:
        out, state = self.policy_input, self.state
        out.joint_pos[:] = state.joint_pos
        out.joint_vel[:] = state.joint_vel
        out.imu_quat_wxyz[:] = state.imu_quat_wxyz
        out.imu_gyro[:] = state.imu_gyro
        out.imu_accel[:] = state.imu_accel
        follow, valid = self._accept_command(out, now_ns)
        command = self.authority.command
        # In the order of PolicyInput's scalars.
        out.set_scalars(
            now_ns, state.robot_time_ns, state.tick,
            command.instance if follow else 0, command.seq if follow else 0,
            self.info.policy_id, self._episode, self._step, valid, self.machine.mode,
        )  # fmt: skip

    def _accept_command(self, out: PolicyInput, now_ns: int) -> tuple[bool, int]:
        """The operator's wish as the mode allows it: zeroed, within ranges, arms no faster.

        Returns whether it was followed, and the mask of what counts.
        """
        authority, command = self.authority, self.authority.command
        # While targets are still blended a gait cannot unfold: a policy told to walk falls.
        follow = self.machine.mode == Mode.POLICY and authority.fresh(now_ns) and self.ramp.done
        valid = command.valid if follow else 0
        if valid & VALID_VELOCITY and np.isfinite(command.velocity).all():
            np.maximum(command.velocity, self.info.velocity_min, out=out.velocity)
            np.minimum(out.velocity, self.info.velocity_max, out=out.velocity)
        else:
            out.velocity[:] = 0.0
            valid &= ~VALID_VELOCITY
        low, high = self.info.base_height_range.tolist()
        if valid & VALID_HEIGHT and low < high and np.isfinite(command.base_height).all():
            np.clip(command.base_height, low, high, out=out.base_height)
        else:
            out.base_height[:] = 0.0
            valid &= ~VALID_HEIGHT
        if valid & VALID_ARMS and np.isfinite(command.arm_joint_pos).all():
            self._move_arms(command)
        out.arm_joint_pos[:] = self._arms
        return follow, (valid & ~VALID_ARMS) | (VALID_ARMS if self._arms_valid else 0)

    def _move_arms(self, command: Command) -> None:
        arms = self.robot.arm_joints
        if not self._arms_valid:
            self._arms[:] = self.state.joint_pos[arms]
            self._arms_valid = True
        limit = self.robot.position_limit[arms]
        wish = np.clip(command.arm_joint_pos, limit[:, 0], limit[:, 1])
        most = ARM_SPEED * (self.info.step_ns or DEFAULT_STEP_NS) * 1e-9
        self._arms += np.clip(wish - self._arms, -most, most)

    def take(self, target: Target | None) -> None:
        """Accept a target of this policy and episode, if its content is possible."""
        if target is None:
            return
        self._given = tuple(target.origin)
        asked_long_ago = not 0 <= self._asked_seq - target.input_seq < len(self._asked_ns)
        if asked_long_ago or target.input_instance != self.policy_input.instance:
            return
        if target.episode != self._episode:
            return
        # A pilot that came back, however fast, moves nothing until somebody engages again.
        walking = self.machine.mode in modes.WALKING
        if walking and target.instance != self.target.instance:
            return
        if target.policy_id != self.info.policy_id or not self._gate_target.admits(target):
            return
        self.target.copy_from(target)
        self._target_ns = self._asked_ns[target.input_seq % 16]

    def sensed_ns(self, asked_seq: int) -> int:
        """When the state behind this policy_input had been read."""
        return self._sensed_ns[asked_seq % len(self._sensed_ns)]

    def _target_age_ns(self, now_ns: int) -> int:
        """Age of the measurement behind the target in force; huge if there is none."""
        return now_ns - self._target_ns if self._target_ns is not None else 1 << 60

    # --- command, write, publish ----------------------------------------------------------------

    def command(self, now_ns: int) -> None:
        """Fill `self.cmd`: the mode's source, the ramp, the safety filter."""
        cmd, mode = self.cmd, self.machine.mode
        source = SOURCE[mode]
        if source != self._source:
            self._change_source(source)
        else:
            self._fill(cmd, source)
        self.ramp.apply(cmd)
        if self._faults & HOT or self._spared:
            self._spare_hot_motors()
        clip = self._clip = self.filter.apply(cmd, self.state) if self._has_state else None
        if clip or self._clipped_share:  # without either there is nothing to count
            self._clipped_share = self._clip_second.count(clip is not None)
            self._clipped_half = self._clip_half.count(clip is not None)
        # In the order of LowCmd's scalars.
        cmd.set_scalars(
            now_ns, self.tick, self.state.scalars["tick"][0], *self.target.origin,
            *self.authority.command.origin, self._heartbeat_seq, clip.limiters if clip else 0, mode,
        )  # fmt: skip

    def _spare_hot_motors(self) -> None:
        """Hot motors get less torque (S14), for as long as they are."""
        self._spared = bool(self._faults & HOT)
        self.filter.derate(self.health.heat_margin if self._spared else None)

    def _change_source(self, source: str) -> None:
        """Begin the ramp away from what was sent last; damping and off begin at once."""
        out_of_damp = self._source in ("off", "damp")
        self._source = source
        self._clip_second.reset()
        self._clip_half.reset()
        target_s, gain_s = RAMP_S.get(source, (0.0, 0.0))
        self.ramp.begin(self.cmd, target_s, gain_s)
        self._fill(self.cmd, source)
        if out_of_damp:
            self.ramp.start.joint_pos_target[:] = self.state.joint_pos
            self.ramp.soften(self.cmd)

    def _fill(self, cmd: LowCmd, source: str) -> None:
        """What the source alone would send."""
        if source == "policy":
            self._cmd_block[:] = self._target_block
            return
        robot = self.robot
        cmd.joint_vel_target[:] = 0.0
        cmd.effort_ff[:] = 0.0
        if source in ("stand", "crouch"):
            pose = robot.stand_joint_pos if source == "stand" else robot.crouch_joint_pos
            cmd.joint_pos_target[:] = pose
            cmd.stiffness[:] = robot.stand_stiffness
            cmd.damping[:] = robot.stand_damping
        else:
            # Following the measured pose: torque is -damping * velocity, or nothing at all.
            cmd.joint_pos_target[:] = self.state.joint_pos
            cmd.stiffness[:] = 0.0
            cmd.damping[:] = robot.damp_damping if source == "damp" else 0.0

    def write(self, driver: Driver) -> None:
        """Send the command; afterwards `self.cmd` is what was really sent."""
        try:
            driver.write(self.cmd)
        except DriverFault as fault:
            self._driver_fault = WRITE_FAULT, str(fault)
            self._fail("driver_fault", str(fault))
            self._write_fault = BIT["driver_fault"]

    def damp(self, driver: Driver) -> None:
        """Send damping now, whatever the mode: the last thing before control lets go."""
        self._fill(self.cmd, "damp")
        self.cmd.mode = Mode.DAMP
        self.write(driver)

    def publish(self, driver: Driver, ports: Ports, now_ns: int) -> None:
        """State and command each tick; status, truth and interventions when there is news."""
        if self._heard is not None:
            ports.send("low_state", self._heard, now_ns)
        ports.send("low_cmd", self.cmd, now_ns)
        if self._health_due:
            ports.send("health", self.health, now_ns)
        if self._clip is not None:
            out = self.intervention
            out.tick, out.mode = self.tick, self.machine.mode
            out.limiter, out.joint = self._clip.limiter, self._clip.joint
            out.before, out.after = self._clip.before, self._clip.after
            ports.send("intervention", out, now_ns)
        news = self._inputs or self._given or self._skipped or self._dropped
        if news or self._driver_fault or self._failed_tick:
            self._tell_consumed(ports, now_ns)
        if self._status_due:
            self._status_due = False
            self._fill_status(now_ns)
            # One answer per message: operators that asked in the same tick are all told.
            for instance, seq, answer in self._answers[:-1]:
                self._fill_answer(instance, seq, answer)
                ports.send("status", self.status, now_ns)
            if self._answers:
                self._fill_answer(*self._answers[-1])
                self._answers.clear()
            ports.send("status", self.status, now_ns)
            if driver.truth(self.truth):
                ports.send("truth", self.truth, now_ns)
        if self.tick % self._second == 0:
            snapshot.save(self.memory, self.snapshot, now_ns, self.tick)
            ports.send("control_state", self.snapshot, now_ns)

    def _tell_consumed(self, ports: Ports, now_ns: int) -> None:
        """What this tick took in; the last tick's end by an exception is told late, if it was."""
        out = self.consumed
        if self._failed_tick:
            out.set_scalars(self._failed_tick, 0, 0, 0, 0, 0, 0, 0, 1)
            ports.send("consumed", out, now_ns)
            self._failed_tick = 0
        fault, out.text = self._driver_fault or (0, "")
        room = len(out.seqs)
        # At least one message; more if more came in than one can tell.
        for at in range(0, max(1, len(self._inputs)), room):
            part = self._inputs[at : at + room]
            out.instances[:] = out.seqs[:] = 0
            for i, (instance, seq) in enumerate(part):
                out.instances[i], out.seqs[i] = instance, seq
            out.set_scalars(
                self.tick, self.status.drops, self.malformed, *(self._given or (0, 0)),
                self._skipped, len(part), fault, 0,
            )  # fmt: skip
            ports.send("consumed", out, now_ns)
        self._inputs.clear()
        self._given = self._driver_fault = None
        self._skipped = 0

    def _fill_answer(self, instance: int, seq: int, answer: Answer) -> None:
        status = self.status
        status.answer_instance, status.answer_seq = instance, seq
        status.answer_ask, status.answer_ok = answer.ask, answer.ok
        status.reason = answer.reason or self._reason

    def _fill_status(self, now_ns: int) -> None:
        status, authority, machine = self.status, self.authority, self.machine
        age = self._target_age_ns(now_ns)
        command_age = authority.command_age_ns(now_ns)
        # In the order of Status' scalars; an answer stays until the next one.
        status.set_scalars(
            now_ns, self.tick, self._faults, self.info.policy_id, self._episode, authority.holder,
            status.answer_instance, status.answer_seq, status.drops,
            self._gate_state.bucket.total + self._gate_target.bucket.total,
            (now_ns - (self._state_ns or now_ns)) * 1e-6,
            age * 1e-6 if age < 1 << 50 else -1.0,
            command_age * 1e-6 if command_age >= 0 else -1.0,
            self._clipped_share, machine.mode, machine.cause, authority.source,
            status.answer_ask, status.answer_ok,
        )  # fmt: skip
        status.velocity[:] = self.policy_input.velocity
        status.reason = self._reason


# Numbers that control keeps from tick to tick.
REMEMBERED = (
    "tick", "_machine_values", "_reason_told", "_late_row", "_late_share", "_source",
    "_clipped_share", "_clipped_half", "_has_state", "_state_ns", "_last_ns", "_heartbeat_ns",
    "_info_ns", "_heartbeat_seq", "_momentary", "_write_fault", "_tilted_ticks", "malformed",
    "_faults", "_episode", "_step", "_policy_robot_ns", "_asked_ns", "_asked_seq", "_target_ns",
    "_arms_valid", "_status_due",
)  # fmt: skip
# In these modes nothing happens by itself: without request or fault the machine need not step.
_STEADY = frozenset({Mode.PASSIVE, Mode.STAND, Mode.POLICY, Mode.ESTOP, Mode.FAULT})
