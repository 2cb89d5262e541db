"""Runs the same stages in one process on simulated time: deterministic, faster than real time.

Messages pass as bytes through the checks of the bus (`Inbox`, `Outbox`), so that a fault injected
between two stages meets what it would meet on the robot.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from drivers import make_driver
from drivers.driver import Driver
from robot.bus import Inbox, Outbox
from robot.control import Control, tick
from robot.log_writer import LogWriter
from robot.messages import (
    Codec,
    Frame,
    LowState,
    Message,
    Mode,
    PolicyInput,
    Status,
    Target,
    Truth,
)
from robot.model import Robot, load_robot
from robot.runs import RunConfig, softened
from robot.stepped_eyes import TOPIC as FRAMES
from robot.stepped_eyes import SteppedEyes
from robot.summary import Summary, keep
from robot.teleop import ArmSwing, Teleop
from robot.topics import OPERATOR_TOPICS, make_codecs

START_NS = 1_000_000_000
TELEOP_PERIOD_NS = HEARTBEAT_PERIOD_NS = 20_000_000
INFO_PERIOD_NS = 1_000_000_000
FLUSH_PERIOD_NS = 100_000_000  # of the log
BUFFERS = 16  # messages of one type on their way to one tick

# A fault on the way: gets topic, frame and time, gives the frames that arrive instead.
Tap = Callable[[str, bytes, int], Iterable[bytes]]


@dataclass(frozen=True)
class LockstepOptions:
    """What lockstep needs beside the run.

    Attributes:
        target_delay_ticks: control ticks from policy_input to its target; 0: within the tick.
        filtered: False switches the safety filter off, for comparison.
        tap: injects faults between stages.
        stream: hash every message.
        log: takes every message; the caller closes it.
    """

    target_delay_ticks: int = 0
    filtered: bool = True
    tap: Tap | None = None
    stream: bool = True
    log: LogWriter | None = None


class Lockstep:
    """One robot, one pilot, one operator, one clock.

    Args:
        run: the run's configuration.
        pilot: has `step(policy_input, now_ns) -> Target`, `locate`, `remember` and `info` as
            robot.pilot.Pilot does, and with a camera `session` and `look`; None: no policy.
        velocity: (vx, vy, yaw rate) that the operator commands all the time.
        driver: another driver than the run's (tests).
    """

    def __init__(
        self,
        run: RunConfig,
        pilot: Any,
        velocity: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
        options: LockstepOptions | None = None,
        driver: Driver | None = None,
        robot: Robot | None = None,
    ) -> None:
        self.run, self.options, self.pilot = run, options or LockstepOptions(), pilot
        self.robot = softened(robot or load_robot(run.robot), run)
        self.codecs: dict[str, Codec] = make_codecs(self.robot)
        self.driver = driver or make_driver(run, self.robot)
        self.control = Control(
            self.robot, self.codecs, run.period_ns, run.timing_factor, self.options.filtered
        )
        self._period_ns = run.period_ns
        self._flush_ticks = max(1, FLUSH_PERIOD_NS // run.period_ns)
        self.teleop = Teleop(
            self.codecs, "script", velocity, automatic=True, walk=pilot is not None,
            nonce=run.seed * 2 + 1,
            arms=ArmSwing(self.robot) if run.operator.arms == "swinging" else None,
        )  # fmt: skip
        self.summary = Summary(run.timing_factor)
        self.now_ns = START_NS
        self.heartbeats = self.operator_present = self.pilot_alive = True
        self.ticks = 0
        self._hash = hashlib.sha256()
        self._outboxes = {
            topic: Outbox(codec, 1 + i) for i, (topic, codec) in enumerate(self.codecs.items())
        }
        others = [*OPERATOR_TOPICS, "policy_info", "heartbeat"]
        self._others = Inbox([self.codecs[topic] for topic in others], BUFFERS)
        self._targets = Inbox([self.codecs["target"]], BUFFERS + self.options.target_delay_ticks)
        self._inputs = Inbox([self.codecs["policy_input"]])
        self.eyes: SteppedEyes | None = None
        if run.camera.source == "sim":
            self._frames = Inbox([self.codecs[FRAMES]], BUFFERS)
            self.eyes = SteppedEyes(run, self.robot, self.codecs, self.send, self._arriving)
        self._sees = self.eyes and pilot is not None and pilot.session.reads_height_scan
        self._heard: list[Message] = []
        self._waiting: deque[tuple[int, Message]] = deque()  # (tick that it arrives in, target)
        self._newest_target: Target | None = None
        self._heartbeat = self.codecs["heartbeat"].new()
        self._status: Status | None = None
        self._truth: Truth | None = None
        self._next_teleop = self._next_heartbeat = self._next_info = 0
        self._driver_open = False
        self.on_truth: Callable[[Truth], None] | None = None

    # --- what control sees: Ports -----------------------------------------------------------

    def receive(self) -> list[Message]:
        """Messages of operators, pilot and manager since the last tick."""
        heard, self._heard = self._heard, []
        return heard

    def target(self, asked_seq: int | None) -> Target | None:
        """The newest target that has arrived by this tick."""
        while self._waiting and self._waiting[0][0] <= self.ticks:
            message = self._waiting.popleft()[1]
            assert isinstance(message, Target)
            self._newest_target = message
        newest, self._newest_target = self._newest_target, None
        return newest

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """Number, hash and deliver; a policy_input runs the pilot at once."""
        seq = self._outboxes[topic].stamp(message, stamp_ns)
        self._keep(topic, message)
        if self.eyes and isinstance(message, Truth | LowState):
            self.eyes.hear(message)
        if topic == "policy_input" and self.pilot is not None and self.pilot_alive:
            self._run_pilot(message)
        elif topic == "status":
            self._status = keep(message, self._status)
            self.summary.hear(message)
        elif topic == "truth":
            truth = self._truth = keep(message, self._truth)
            if self.on_truth:
                self.on_truth(truth)
            self.summary.hear(message)
        return seq

    def drops(self) -> tuple[int, int]:
        """Frames refused on control's inputs; targets of wrong form."""
        others, targets = self._others, self._targets
        return others.dropped + targets.dropped, targets.malformed

    # --- the loop ---------------------------------------------------------------------------

    def step(self) -> None:
        """One control tick, and what manager and operator do meanwhile."""
        if not self._driver_open:
            self.driver.open()
            self._driver_open = True
        now = self.now_ns
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_PERIOD_NS
            if self.heartbeats:
                self._post("heartbeat", self._heartbeat)
        if self.pilot is not None and self.pilot_alive and now >= self._next_info:
            self._next_info = now + INFO_PERIOD_NS
            self._post("policy_info", self.pilot.info)
        if now >= self._next_teleop and self.operator_present:
            self._next_teleop = now + TELEOP_PERIOD_NS
            for topic, message, again in self.teleop.step(self._status, self._truth, now):
                self._post(topic, message, again)
        tick(self.control, self.driver, self, lambda: now)
        if self.eyes and (ground := self.eyes.step(now)) is not None and self._sees:
            self.pilot.look(ground)  # type: ignore[union-attr]  # without a pilot nobody sees
        self.ticks += 1
        self.now_ns += self._period_ns
        if self.options.log and self.ticks % self._flush_ticks == 0:
            self.options.log.flush()

    def run_for(self, seconds: float) -> None:
        """Step for this much simulated time."""
        for _ in range(round(seconds * 1e9 / self.run.period_ns)):
            self.step()

    def run_until(self, mode: Mode, most_s: float) -> bool:
        """Step until control is in `mode`, at most this long; True if it got there."""
        for _ in range(round(most_s * 1e9 / self.run.period_ns)):
            if self.control.machine.mode == mode:
                return True
            self.step()
        return self.control.machine.mode == mode

    def post(self, topic: str, message: Message) -> None:
        """Say something to control, as an operator or a stranger would."""
        self._post(topic, message)

    def post_frame(self, topic: str, frame: bytes) -> None:
        """Put raw bytes on a topic that control listens to."""
        self._deliver(topic, frame)

    @property
    def stream_sha256(self) -> str:
        """Hash of the bytes of all messages so far, in order."""
        return self._hash.hexdigest()

    def _run_pilot(self, message: Message) -> None:
        for frame in self._tapped("policy_input", bytes(message.payload)):
            given = self._inputs.accept(memoryview(frame), len(frame))
            if isinstance(given, PolicyInput):
                self._post("target", self.pilot.step(given, self.now_ns))
                if odometry := self.pilot.locate(given, self.now_ns):
                    self.send("odometry", odometry, self.now_ns)
                if state := self.pilot.remember(self.now_ns):
                    self.send("pilot_state", state, self.now_ns)

    def _arriving(self, frame: Frame) -> list[Frame]:
        """What reaches perception of a picture; a tap may have lost or spoiled it."""
        raw = self._tapped(FRAMES, bytes(frame.payload))
        heard = [self._frames.accept(memoryview(data), len(data)) for data in raw]
        return [message for message in heard if isinstance(message, Frame)]

    def _post(self, topic: str, message: Message, again: bool = False) -> None:
        if not again:
            self._outboxes[topic].stamp(message, self.now_ns)
        self._keep(topic, message)
        for frame in self._tapped(topic, bytes(message.payload)):
            self._deliver(topic, frame)

    def _keep(self, topic: str, message: Message) -> None:
        if self.options.stream:
            self._hash.update(message.payload)
        if log := self.options.log:
            log.write(topic, message.payload, message.seq, message.stamp_ns, self.now_ns)

    def _tapped(self, topic: str, frame: bytes) -> Iterable[bytes]:
        tap = self.options.tap
        return (frame,) if tap is None else tap(topic, frame, self.now_ns)

    def _deliver(self, topic: str, frame: bytes) -> None:
        inbox = self._targets if topic == "target" else self._others
        message = inbox.accept(memoryview(frame), len(frame))
        if message is None:
            return
        if topic == "target":
            arrives = self.ticks + self.options.target_delay_ticks
            self._waiting.append((arrives, message))
        else:
            self._heard.append(message)


def walk(lockstep: Lockstep, seconds: float) -> dict[str, Any]:
    """Run from the gantry on, and report; `realtime_factor` is over the whole of it."""
    begin = time.perf_counter()
    lockstep.run_for(seconds)
    elapsed = time.perf_counter() - begin
    return {
        "realtime_factor": round(seconds / elapsed, 2),
        "stream_sha256": lockstep.stream_sha256,
        "seed": lockstep.run.seed,
        "collisions": lockstep.run.sim.collisions,
        "filtered": lockstep.options.filtered,
        "target_delay_ticks": lockstep.options.target_delay_ticks,
        "seconds": seconds,
        **lockstep.summary.to_dict(),
    }
