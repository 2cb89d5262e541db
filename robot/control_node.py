"""The process that runs control on the bus in real time, and damps on every way out."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import resource
import sys
import time
from collections.abc import Iterator

from drivers import make_driver
from drivers.driver import Driver
from robot import clock, realtime
from robot.bus import Publisher, Subscriber
from robot.control import Control, tick
from robot.messages import Message, Target, Timing
from robot.node import Node
from robot.topics import OPERATOR_TOPICS, TOPICS

PUBLISHED = tuple(t.name for t in TOPICS if t.publisher == "control")
REALTIME_FILE = "realtime.json"  # what control got of real time, in the runtime directory
LAST_DAMPING_TICKS = 5  # repeated, since a single frame may be lost


class BusPorts:
    """Control's side of the bus: three sockets to listen to, one per topic to speak on.

    Args:
        wait_ms: longest wait for the target that was asked for.
    """

    def __init__(self, node: Node, wait_ms: int) -> None:
        pick, directory, context = node.pick, node.directory, node.context
        self.wait_ms = wait_ms
        others = pick(*OPERATOR_TOPICS, "policy_info", "heartbeat")
        self._others = Subscriber(context, directory, others)
        self._targets = Subscriber(context, directory, pick("target"))
        self._publishers = {
            topic: Publisher(context, directory, topic, node.codecs[topic]) for topic in PUBLISHED
        }

    def receive(self) -> Iterator[Message]:
        """What operators, pilot and manager said."""
        return iter(self._others.receive, None)  # until it gives None

    def target(self, asked_seq: int | None) -> Target | None:
        """The newest target; waits for the answer to `asked_seq`, at most `wait_ms`."""
        newest: Message | None = None
        if asked_seq is None or not self.wait_ms:
            newest = self._targets.newest()
        else:
            deadline = clock.now_ns() + self.wait_ms * 1_000_000
            while not (isinstance(newest, Target) and newest.input_seq >= asked_seq):
                left_ms = math.ceil((deadline - clock.now_ns()) * 1e-6)
                if left_ms <= 0:
                    break
                newest = self._targets.receive(left_ms) or newest
        return newest if isinstance(newest, Target) else None

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """Publish on the topic's socket."""
        return self._publishers[topic].send(message, stamp_ns)

    def drops(self) -> tuple[int, int]:
        """Frames refused on all inputs; targets of wrong form."""
        others, targets = self._others.inbox, self._targets.inbox
        return others.dropped + targets.dropped, targets.malformed


class Stopwatch:
    """Gathers the durations of 50 ticks in a `timing` message."""

    def __init__(self, timing: Timing, driver: Driver) -> None:
        self.timing, self.driver = timing, driver
        self.collections = 0
        self._at = self._policy_ticks = 0
        self._physics = 0
        self._pending: tuple[int, int] | None = None  # target seq, time it was sensed
        self._target_seq = 0
        self._begin_cpu = 0
        gc.callbacks.append(self._count_collection)

    def _count_collection(self, phase: str, _: dict[str, int]) -> None:
        self.collections += phase == "start"

    def begin(self) -> None:
        """The tick starts."""
        self._physics = self.driver.physics_cpu_ns
        self._begin_cpu = time.thread_time_ns()

    def end(self, control: Control, late_ns: int, start_ns: int) -> bool:
        """The tick has ended; True when the message is full."""
        cpu = time.thread_time_ns() - self._begin_cpu
        physics = self.driver.physics_cpu_ns - self._physics
        timing, at = self.timing, self._at
        timing.lateness_us[at] = late_ns * 1e-3
        timing.tick_us[at] = (clock.now_ns() - start_ns) * 1e-3
        timing.cpu_us[at] = (cpu - physics) * 1e-3
        self._measure_path(control)
        self._at = (at + 1) % len(timing.lateness_us)
        return self._at == 0

    def _measure_path(self, control: Control) -> None:
        """Of each new target: from the reading of its state to here, and to the write."""
        seq = control.target.seq
        if seq == self._target_seq:
            return
        self._target_seq = seq
        sensed = control.sensed_ns(control.target.input_seq)
        timing, at = self.timing, self._policy_ticks
        if sensed and at < len(timing.path_us):
            timing.path_us[at] = (control.marks[1] - sensed) * 1e-3
            timing.write_us[at] = (control.marks[2] - sensed) * 1e-3
            self._policy_ticks = at + 1

    def fill(self, rate: clock.Rate, now_ns: int) -> Timing:
        """Totals of the process; the rings start again."""
        timing = self.timing
        timing.skipped_ticks, timing.executed_ticks = rate.skipped, rate.executed
        timing.elapsed_ns = now_ns - rate.start_ns
        timing.minor_faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        timing.collections = self.collections
        timing.allocated_blocks = sys.getallocatedblocks()
        timing.policy_ticks, self._policy_ticks = self._policy_ticks, 0
        return timing


def main(node: Node) -> None:
    """Build everything, ask for real time, then loop until told to stop."""
    run = node.config
    if not (run.simulated or run.unitree.readonly):
        realtime.check_rights(run.realtime)
    control = Control(node.robot, node.codecs, run.period_ns, run.timing_factor)
    driver = make_driver(run, node.robot)
    ports = BusPorts(node, run.target_wait_ms)
    driver.open()
    try:
        report = node.context_report + realtime.enter(run.realtime)
        node.say(realtime.in_words(report))
        rows = [dataclasses.asdict(got) for got in report]
        (node.directory / REALTIME_FILE).write_text(json.dumps(rows))
        node.ready()
        loop(node, control, driver, ports)
    finally:
        # Every way out sends damping: a stop, an exception, a lost manager.
        for _ in range(LAST_DAMPING_TICKS):
            control.damp(driver)
        driver.close()


def loop(node: Node, control: Control, driver: Driver, ports: BusPorts) -> None:
    """Tick on schedule; an exception in a tick becomes FAULT and damping, and the loop goes on."""
    watch = Stopwatch(node.codecs["timing"].new(), driver)
    rate = clock.Rate(node.config.period_ns)
    while not node.stopping:
        skipped = rate.skipped
        late = rate.wait()
        start = clock.now_ns()
        watch.begin()
        control.note_late(rate.skipped - skipped)
        try:
            tick(control, driver, ports, clock.now_ns)
        except Exception as error:  # whatever it is, the motors get damping in this very tick
            control.fail(error)
            control.damp(driver)
        if watch.end(control, late, start):
            ports.send("timing", watch.fill(rate, start), start)
