"""Looks at a G1 from outside, before anybody drives it: listens, and sends at most one question.

What cannot be known without moving (the sign of a joint) is told of joints that a person moves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from drivers import unitree_wire as wire
from drivers.dds import Participant, check_interface
from drivers.unitree_service import MotionService
from drivers.unitree_state import COLDEST, HOTTEST, StateWatch
from robot import clock
from robot.config import UserError, listing
from robot.doctor import Finding
from robot.model import Robot, load_robot
from robot.runs import RunConfig
from robot.safety import orientation

RATE_HZ = 450.0  # of states, at least
GRAVITY = (9.3, 10.3)  # m/s^2, at rest
OFF_PLUMB = 0.17  # rad between what the IMU calls up and what it feels (S6)
MOVED = 0.1  # rad by hand
LIMIT_MARGIN = 0.05  # rad beyond a limit: calibration, not noise
UPRIGHT = 0.7  # rad
# What a positive angle means, by the end of a joint's name; axes: x ahead, y left, z up.
POSITIVE = {
    "hip_pitch_joint": "thigh back", "hip_roll_joint": "leg to the left",
    "hip_yaw_joint": "toes to the left", "knee_joint": "knee bent",
    "ankle_pitch_joint": "toes down", "ankle_roll_joint": "outer left edge of the foot up",
    "waist_yaw_joint": "torso turned left", "waist_roll_joint": "torso leant right",
    "waist_pitch_joint": "torso leant ahead", "shoulder_pitch_joint": "arm back",
    "shoulder_roll_joint": "arm to the left", "shoulder_yaw_joint": "upper arm turned left",
    "elbow_joint": "forearm down", "wrist_roll_joint": "hand turned right about the forearm",
    "wrist_pitch_joint": "hand down", "wrist_yaw_joint": "hand to the left",
}  # fmt: skip


class Listener:
    """Listens for a while and keeps what the findings need.

    Args:
        participant: our place on the robot's network.
        run: limits.
        robot: joints.
    """

    def __init__(self, participant: Participant, run: RunConfig, robot: Robot) -> None:
        kinds = wire.idl_types()
        self.watch = StateWatch(robot, run.unitree)
        self._states = participant.reader("rt/lowstate", kinds["LowState_"], depth=64)
        self._commands = participant.reader("rt/lowcmd", kinds["LowCmd_"], depth=64)
        self._battery = participant.reader("rt/lf/bmsstate", kinds["BmsState_"])
        self.foreign, self.charge = 0, -1.0
        self.seconds = self.ticks = 0.0  # from the first state on; of ours, of theirs
        self.low = np.full(robot.num_joints, np.inf)
        self.high = -self.low
        self.accel = np.zeros(3)
        self.repeats = [0, 0]  # longest, of the IMU and of a motor

    def listen(self, seconds: float) -> None:
        """Hear states, other people's commands, the battery."""
        watch, end = self.watch, time.monotonic() + seconds
        first: tuple[int, int] | None = None
        while time.monotonic() < end:
            time.sleep(1e-3)
            now = clock.now_ns()
            watch.hear(self._states.take(64), now, energised=True)
            self.foreign += len(self._commands.take(64))
            for data in self._battery.take()[-1:]:
                self.charge = float(data[4 + wire.BMS_LAYOUT.leaves["soc"].offsets[0]])
            if not watch.has_state:
                end = max(end, time.monotonic() + 0.01) if self.foreign else end
                continue
            first = first or (now, watch.tick)
            self.seconds, self.ticks = (now - first[0]) / 1e9, watch.tick - first[1]
            self.low = np.minimum(self.low, watch.now.q)
            self.high = np.maximum(self.high, watch.now.q)
            self.accel += (watch.now.accel - self.accel) * 0.01
            self.repeats[0] = max(self.repeats[0], watch.imu_repeats)
            self.repeats[1] = max(self.repeats[1], int(watch.motor_repeats.max()))


def examine(run: RunConfig, seconds: float, readonly: bool) -> Iterator[Finding]:
    """All findings about the robot at the other end; ends at the first that hides all others."""
    config, robot = run.unitree, load_robot(run.robot)
    try:
        interface = check_interface(config.interface, config.network)
    except UserError as error:
        yield Finding("interface", False, str(error), "connect the robot, name its interface")
        return
    yield Finding("interface", True, f"{interface}, domain {config.domain}")
    participant = Participant(config.domain, interface)
    try:
        listener = Listener(participant, run, robot)
        listener.listen(seconds + 1.5)  # finding each other takes a second
        yield from _traffic(listener)
        if not listener.watch.has_state:
            return
        yield _kind(listener, run)
        yield _writers(listener)
        yield Finding("owner", None, "not asked (--readonly)") if readonly else _owner(participant)
        yield from _senses(listener, run)
        yield from _joints(listener, robot)
        yield from _condition(listener, run)
    finally:
        participant.close()


def _traffic(heard: Listener) -> Iterator[Finding]:
    counts = heard.watch.counts
    if not heard.watch.has_state:
        refused = counts.refused
        detail = f"{refused} states, refused: {heard.watch.why_refused}" if refused else "silence"
        do = "is the robot on, past its start-up, on this network, and is this its domain?"
        yield Finding("states", False, detail, do)
        return
    rate = counts.accepted / max(heard.seconds, 1e-9)
    yield Finding(
        "states", rate >= RATE_HZ, f"{rate:.0f} per second, {counts.lost} lost", "look at the cable"
    )
    yield Finding(
        "CRC", counts.refused == 0, f"{counts.refused} of {counts.accepted} refused",
        "another program, or a simulator, writes states",
    )  # fmt: skip
    ratio = heard.ticks / max(heard.seconds * 1e3, 1.0)
    yield Finding(
        "clocks", abs(ratio - 1.0) < 0.02, f"{ratio:.4f} of the robot's ticks per ms of ours",
        "the age of states is told by it: it must count milliseconds",
    )  # fmt: skip


def _kind(heard: Listener, run: RunConfig) -> Finding:
    kind = heard.watch.now.mode_machine
    known = wire.VARIANTS.get(kind)
    what = f"{kind}: {known.doc if known else 'not known'}"
    do = f"the run file allows {list(run.unitree.mode_machine)}; check model and gear ratios first"
    return Finding("mode_machine", kind in run.unitree.mode_machine, what, do)


def _writers(heard: Listener) -> Finding:
    detail = f"{heard.foreign} commands by others" if heard.foreign else "nobody else commands"
    return Finding("commands", heard.foreign == 0, detail, "stop the other program")


def _owner(participant: Participant) -> Finding:
    def sleep(ns: int) -> None:
        time.sleep(ns * 1e-9)

    try:
        name = MotionService(participant, clock.now_ns, sleep).owner()
    except UserError as error:
        return Finding("owner", False, str(error), "restart the robot")
    do = "hang the robot, then `plexus run g1 --hang` takes it over: it is limp from then on"
    return Finding("owner", name == "", f"motion service {name!r}" if name else "nobody", do)


def _senses(heard: Listener, run: RunConfig) -> Iterator[Finding]:
    now = heard.watch.now
    felt = float(np.linalg.norm(heard.accel))
    w, x, y, z = (float(v) for v in now.quat)
    up = np.array((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)))
    cosine = float(up @ heard.accel) / max(felt, 1e-9)
    off = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    yield Finding(
        "gravity", GRAVITY[0] < felt < GRAVITY[1] and off < OFF_PLUMB,
        f"{felt:.2f} m/s^2, {off:.2f} rad off what the orientation says",
        "IMU mounted or configured wrongly, or the robot moves: never arm it like this",
    )  # fmt: skip
    roll, pitch, tilt = orientation(np.array((w, x, y, z)))
    yield Finding(
        "upright", tilt < UPRIGHT, f"roll {roll:+.2f}, pitch {pitch:+.2f} rad", "hang it upright"
    )
    imu, motor = heard.repeats
    yield Finding(
        "repetitions", max(imu, motor) < run.unitree.repeats,
        f"at most {imu} identical samples of the IMU, {motor} of a motor",
        f"the runtime damps at {run.unitree.repeats}; raise unitree.repeats if this is normal here",
    )  # fmt: skip


def _joints(heard: Listener, robot: Robot) -> Iterator[Finding]:
    low, high = robot.position_limit.T
    beyond = (heard.low < low - LIMIT_MARGIN) | (heard.high > high + LIMIT_MARGIN)
    names = [robot.joint_names[i] for i in np.flatnonzero(beyond)]
    yield Finding(
        "joint limits", not names, listing(names) if names else "all within their limits",
        "calibrate these joints, or this is another robot",
    )  # fmt: skip
    moved = np.flatnonzero(heard.high - heard.low > MOVED)
    for i in moved:
        name, end = robot.joint_names[i], float(heard.watch.now.q[i])
        start_low = abs(end - heard.high[i]) < abs(end - heard.low[i])
        way = heard.high[i] - heard.low[i]
        meaning = next(text for ending, text in POSITIVE.items() if name.endswith(ending))
        yield Finding(
            name, None, f"{way if start_low else -way:+.2f} rad by hand; plus is {meaning}",
            "if it was the other way: do not arm; the sign is wrong",
        )  # fmt: skip
    if not len(moved):
        yield Finding("joint signs", None, "none was moved", "move joints by hand, --seconds 60")


def _condition(heard: Listener, run: RunConfig) -> Iterator[Finding]:
    now, robot = heard.watch.now, heard.watch.robot
    heat = now.heat
    odd = (heat < COLDEST) | (heat > HOTTEST)
    hot = (heat >= (run.unitree.casing_limit - 10, run.unitree.winding_limit - 10)) | odd
    names = [robot.joint_names[i] for i in np.flatnonzero(hot.any(axis=1))]
    warmest = f"at most {heat[:, 0].max()} casing, {heat[:, 1].max()} winding"
    yield Finding("temperatures", not names, listing(names) if names else warmest, "let it cool")
    bad = np.flatnonzero(now.errors & np.uint32(0xFFFFFFFF ^ wire.MOTOR_TIMED_OUT))
    errors = [
        f"{robot.joint_names[i]}: {', '.join(wire.motor_fault_names(int(now.errors[i])))}"
        for i in bad
    ]
    yield Finding("motors", not errors, "; ".join(errors) or "no errors", "restart the robot")
    charge = heard.charge
    known = charge >= 0.0
    yield Finding(
        "battery", charge > 25.0 if known else None, f"{charge:.0f} %" if known else "not heard",
        "charge it",
    )  # fmt: skip
    held = wire.Remote.decode(now.remote.tobytes())
    keys = [name for name, bit in wire.KEY.items() if held.keys & bit]
    yield Finding("remote", None, f"keys held: {listing(keys)}", "hold L2+B: it must show here")
