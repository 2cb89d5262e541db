"""Makes reference logs: the inputs of a log with what the stages put out today.

Control and pilot run together, since what one puts out now is what the other must take in.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from robot.config import UserError
from robot.control import tick
from robot.log import Log
from robot.log_writer import LogWriter
from robot.messages import Message, Odometry, PolicyInput, Target
from robot.model import load_robot
from robot.pilot import Pilot, load_pilot
from robot.topics import TOPIC
from sim2real.replay import CONTROL_OUTPUTS, ControlReplay, LoggedRun, Maps, Rows, replay, setup_of

REPLACED = (*CONTROL_OUTPUTS, "target", "odometry")
DROPPED = ("pilot_state",)  # of a policy that remembered something else


class PilotBeside:
    """Answers today's policy inputs as the log's pilot answered its own, in the same order.

    Args:
        pilot: freshly loaded.
        targets: the log's, which say what was answered when.
        asked: today's policy inputs by (instance, seq); filled while control runs.
        maps: of the log, which hang on nothing that is run again here.
    """

    def __init__(
        self, pilot: Pilot, targets: Rows, asked: dict[tuple[int, int], PolicyInput], maps: Maps
    ) -> None:
        self.pilot, self.targets, self.asked, self.maps = pilot, targets, asked, maps
        self.answers: list[Target] = []
        self.places: list[Odometry] = []  # each with its answer

    def answer(self, row: int) -> Target:
        """Today's target in place of a row, all before it included."""
        while len(self.answers) <= row:
            record = self.targets.records[len(self.answers)]
            given = self.asked[int(record["input_instance"]), int(record["input_seq"])]
            now_ns = int(record["now_ns"])
            self.maps.show(self.pilot, record)
            stamp = int(record["instance"]), int(record["seq"]), int(record["stamp_ns"])
            for message, done in (
                (self.pilot.step(given, now_ns), self.answers),
                (self.pilot.locate(given, now_ns), self.places),
            ):
                message.stamp(*stamp)
                done.append(message.copy())
        return self.answers[row]


class Rerun(LoggedRun):
    """A logged run whose targets are today's."""

    beside: PilotBeside | None = None

    def target(self, asked_seq: int | None) -> Target | None:
        """Today's answer where the log's pilot had answered."""
        if self._target is None or self.beside is None:
            return self._target
        return self.beside.answer(self.inputs[self._target.instance, self._target.seq][1])


def accept(
    log: Log, out: Path, policy: Path | None = None, robot: Path | None = None
) -> dict[str, Any]:
    """Write a log with the same inputs and with what the stages put out now.

    Args:
        log: one run of control and pilot, of which nothing is lost.
        out: a folder that is not there yet.
        policy: another policy file than the log's; becomes the new log's own.
        robot: another robot.yaml, likewise.

    Returns:
        The result of replaying the new log.

    Raises:
        UserError: `out` exists, or the log is not complete.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; a reference is never overwritten")
    with tempfile.TemporaryDirectory(prefix="plexus-") as folder:
        run, used = setup_of(log, Path(folder))
        run = run if policy is None else run.model_copy(update={"policy": policy})
        control = ControlReplay(log, run, load_robot(robot) if robot else used)
        spans = control.spans()
        lost = sorted(name for name, count in log.lost.items() if count)
        if len(spans) != 1 or lost or log.damage:
            raise UserError(
                f"{log.path}: got {len(spans)} runs of control and losses in {lost or 'nothing'}; "
                "a reference needs one run of which nothing is lost"
            )
        if len(np.unique(control.topics["target"].records["policy_id"])) > 1:
            raise UserError(f"{log.path}: more than one policy ran; a reference needs one")
        logged = Rerun(log, control.topics, spans[0], control.sent)
        asked: dict[tuple[int, int], PolicyInput] = {}
        if len(control.topics["target"]):
            pilot = load_pilot(run, control.robot)
            logged.beside = PilotBeside(
                pilot, control.topics["target"], asked, Maps(log, control.codecs["height_map"])
            )
        today = _run(control, logged, asked)
        if logged.beside:
            logged.beside.answer(len(control.topics["target"]) - 1)
        _write(log, out, control, logged, today, policy, robot)
        return replay(Log(out), Path(folder))


Today = dict[int, list[tuple[str, Message]]]  # by tick


def _run(control: ControlReplay, logged: Rerun, asked: dict[tuple[int, int], PolicyInput]) -> Today:
    """What control puts out now, tick by tick."""
    stage, seqs = control.new_control(), defaultdict(int)
    instances = {
        name: control.topics[name].instances[0] if len(control.topics[name]) else index + 1
        for index, name in enumerate(CONTROL_OUTPUTS)
    }
    today: Today = defaultdict(list)

    def send(topic: str, message: Message, stamp_ns: int) -> int:
        if topic in instances:
            seqs[topic] += 1
            message.stamp(instances[topic], seqs[topic], stamp_ns)
            copy = message.copy()
            today[number].append((topic, copy))
            if isinstance(copy, PolicyInput):
                asked[copy.instance, copy.seq] = copy
        return seqs[topic]

    logged.send_to = send
    for number in range(1, logged.last + 1):
        if why := logged.prepare(number):
            raise UserError(f"{logged.log.path}: control tick {number} cannot be run again: {why}")
        now_ns = logged.time_ns(number)
        stage.note_late(logged.skipped)
        tick(stage, logged, logged, lambda now=now_ns: now)
    return today


def _write(
    log: Log,
    out: Path,
    control: ControlReplay,
    logged: Rerun,
    today: Today,
    policy: Path | None,
    robot: Path | None,
) -> None:
    attachments = dict(log.attachments)
    if policy is not None:
        attachments["policy.onnx"] = policy.read_bytes()
    if robot is not None:
        attachments["robot.yaml"] = robot.read_bytes()
    offset_ns = int(log.metadata["clock_offset_ns"])
    metadata = log.metadata | {"command_line": "plexus replay --accept"}
    writer = LogWriter(out, control.codecs, metadata, attachments, offset_ns)
    ticks = control.topics["low_cmd"].records["tick"].tolist()
    cmd = target = 0
    for topic, time_ns, payload in log.messages(*(t for t in log.topics if t in TOPIC)):
        received = time_ns - offset_ns
        if topic == "low_cmd":
            for name, message in today[ticks[cmd]]:
                writer.write(name, message.payload, message.seq, message.stamp_ns, received)
            cmd += 1
        elif topic == "target" and logged.beside:
            for name, message in (
                (topic, logged.beside.answers[target]), ("odometry", logged.beside.places[target]),
            ):  # fmt: skip
                writer.write(name, message.payload, message.seq, message.stamp_ns, received)
            target += 1
        elif topic not in (*REPLACED, *DROPPED):
            header = control.codecs[topic].new()
            header.memory[4:] = payload
            writer.write(topic, payload, header.seq, header.stamp_ns, received)
    writer.close("reference")
