"""Runs logged stages again over exactly what each step consumed, and compares bytes (level R1).

Control gets the log's states, messages and times tick by tick, the pilot its policy inputs; both
begin fresh or at a snapshot. What they put out must be what the log holds, byte for byte. A step
whose input the log lacks is *incomplete*, not *different*; the next snapshot goes on from there.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers import as_sent
from drivers.driver import DriverFault
from robot.config import UserError
from robot.control import READ_FAULT, WRITE_FAULT, Control, tick
from robot.log import Log
from robot.log_writer import cpu_name
from robot.messages import (
    Codec,
    Health,
    Intervention,
    LowCmd,
    LowState,
    Message,
    Mode,
    PolicyInput,
    Snapshot,
    Target,
    Truth,
)
from robot.model import Robot, load_robot
from robot.pilot import Pilot, load_pilot
from robot.runs import RunConfig, softened
from robot.safety import LIMITERS
from robot.topics import OPERATOR_TOPICS, make_codecs

CONTROL_OUTPUTS = ("low_state", "low_cmd", "policy_input", "status", "intervention", "health",
                   "control_state")  # fmt: skip
CONTROL_INPUTS = (*OPERATOR_TOPICS, "policy_info", "heartbeat")
HEADER = ("schema_hash", "robot_id", "instance", "seq")  # matched, not compared
LONGEST_TEXT = 60  # of a text in a report
# On another processor a network's sums round differently; everything else is the same anywhere.
OTHER_CPU_TOLERANCE = 1e-5  # rad and observation units, as golden vectors are checked


def setup_of(log: Log, folder: Path) -> tuple[RunConfig, Robot]:
    """The run's configuration and robot, unpacked from the log's attachments into `folder`.

    Raises:
        UserError: an attachment is missing or does not fit this version.
    """
    for name in ("run.json", "robot.yaml"):
        if name not in log.attachments:
            raise UserError(f"{log.path}: has no attachment {name!r}; it cannot be run again")
    for name, data in log.attachments.items():
        (folder / Path(name).name).write_bytes(data)
    run = RunConfig.model_validate_json(log.attachments["run.json"])
    policy = folder / "policy.onnx" if "policy.onnx" in log.attachments else None
    # What ran may run again: replay moves nothing.
    run = run.model_copy(update={"policy": policy, "unsigned_policy": True})
    return run, load_robot(folder / "robot.yaml")


# --- what a log says ----------------------------------------------------------------------------


class Rows:
    """One topic's messages as bytes and as records, in the order of the log.

    Args:
        log: where from.
        topic: a topic of ours; one that the log lacks has no rows.
        codec: how the installed version lays it out.

    Raises:
        UserError: the log's layout is another one, so bytes cannot be compared.
    """

    def __init__(self, log: Log, topic: str, codec: Codec) -> None:
        self.topic, self.codec = topic, codec
        self.records: NDArray[Any] = np.zeros(0, codec.dtype)
        if topic in log.topics and log.topics[topic].count:
            self.records = log[topic]
            if log.topics[topic].text != codec.text or self.records.dtype != codec.dtype:
                raise UserError(
                    f"{log.path}: {topic} was written with another layout than this version's; "
                    f"run the version that wrote it ({log.metadata.get('commit', 'unknown')[:12]})"
                )
        self.bytes = self.records.view(np.uint8).reshape(len(self.records), codec.body_size)
        self.stamps: list[int] = self.records["stamp_ns"].tolist()
        self.seqs: list[int] = self.records["seq"].tolist()
        self.instances: list[int] = self.records["instance"].tolist()

    def __len__(self) -> int:
        return len(self.stamps)

    def fill(self, message: Message, row: int) -> Any:
        """Make `message` a copy of a row."""
        message.buffer[8:] = self.bytes[row]
        return message

    def message(self, row: int) -> Any:
        """A row as a message of its own."""
        return self.fill(self.codec.new(), row)

    def of(self, instance: int) -> list[int]:
        """Rows of one publisher."""
        return [row for row, owner in enumerate(self.instances) if owner == instance]


@dataclass
class Difference:
    """The first place where a stage put out something else than the log holds."""

    stage: str
    topic: str
    step: int  # control tick, or row of the pilot's targets
    time_s: float  # since the stage's first step
    field: str
    element: str  # joint or index, "" for a scalar
    logged: Any
    got: Any
    term: str = ""  # of the policy's observation

    def __str__(self) -> str:
        place = ".".join(filter(None, (self.topic, self.field)))
        place += f"[{self.element}]" if self.element else ""
        text = (
            f"{self.stage}: {self.topic} first differs at {self.time_s:.3f} s, step {self.step}: "
            f"{place} was {self.logged}, is {self.got}"
        )
        return f"{text}; first differing observation term: {self.term}" if self.term else text


@dataclass
class StageResult:
    """How one stage's replay went."""

    stage: str
    steps: int = 0  # run again and compared
    incomplete: int = 0  # steps that the log does not let us run
    compared: int = 0  # messages
    different: int = 0  # messages with another content, missing or too many
    rounded: int = 0  # messages equal but for the rounding of another processor
    by_topic: dict[str, int] = field(default_factory=dict)  # different messages
    firsts: dict[str, Difference] = field(default_factory=dict)  # by topic, in order of time
    reasons: dict[str, int] = field(default_factory=dict)  # why steps are incomplete

    def skip(self, why: str, steps: int = 1) -> None:
        """Steps that cannot be run again."""
        self.incomplete += steps
        self.reasons[why] = self.reasons.get(why, 0) + steps

    def differ(self, difference: Difference) -> None:
        """One more message that is not as logged."""
        self.different += 1
        self.by_topic[difference.topic] = self.by_topic.get(difference.topic, 0) + 1
        self.firsts.setdefault(difference.topic, difference)

    @property
    def first(self) -> Difference | None:
        """The first difference of all topics."""
        return next(iter(self.firsts.values()), None)


class Comparer:
    """Holds what a stage puts out against the rows of a topic, in step.

    Args:
        rows: what the log holds.
        order: rows of the publisher that is run again.
        result: gets the outcome.
        robot: names elements.
        tolerance: of float fields; 0: bytes must be equal.
    """

    def __init__(
        self,
        rows: Rows,
        order: list[int],
        result: StageResult,
        robot: Robot,
        tolerance: float = 0.0,
    ) -> None:
        self.rows, self.order, self.result, self.robot = rows, order, result, robot
        self.tolerance = tolerance
        self.stamps = np.array([rows.stamps[row] for row in order], np.int64)
        self.seqs = [rows.seqs[row] for row in order]
        self.at = 0
        self.seq = 0

    def begin(self, after_ns: int) -> None:
        """Go on with the first row later than this."""
        self.at = int(np.searchsorted(self.stamps, after_ns, "right"))
        self.seq = self.seqs[self.at - 1] if self.at else 0

    def meet(self, message: Message, step: int, now_ns: int, time_s: float) -> int:
        """Number a message as the log does and compare it; returns its seq."""
        at = self.at
        if at >= len(self.order) or self.stamps[at] != now_ns:
            self.seq += 1
            message.stamp(self.rows.instances[self.order[0]] if self.order else 1, self.seq, now_ns)
            if not self._may_be_lost(at):
                self._differ(step, time_s, "", "no message", self._in_words(message))
            return self.seq
        row = self.order[at]
        self.at, self.seq = at + 1, self.seqs[at]
        message.stamp(self.rows.instances[row], self.seq, now_ns)
        self.result.compared += 1
        if message.memory[8:].tobytes() != self.rows.bytes[row].tobytes():
            self._compare(message, row, step, time_s)
        return self.seq

    def _may_be_lost(self, at: int) -> bool:
        """A gap in seq before row `at` may hide a message."""
        before = self.seqs[at - 1] if at else 0
        return at < len(self.order) and self.seqs[at] > before + 1

    def finish(self, step: int, now_ns: int, time_s: float) -> None:
        """The step has ended; rows of its time that were not met are missing."""
        while self.at < len(self.order) and self.stamps[self.at] <= now_ns:
            self.seq = self.seqs[self.at]
            self.at += 1
            logged = self._in_words(self.rows.message(self.order[self.at - 1]))
            self._differ(step, time_s, "", logged, "no message")

    def _compare(self, message: Message, row: int, step: int, time_s: float) -> None:
        got, logged = message.record, self.rows.records[row]
        for name in self.rows.codec.dtype.names or ():
            a, b = np.atleast_1d(got[name]), np.atleast_1d(logged[name])
            if name in HEADER or a.tobytes() == b.tobytes():
                continue
            wrong = self._beyond(a, b)
            if wrong.any():
                i = int(wrong.argmax())
                element = self._element(i, len(a)) if got[name].ndim else ""
                self._differ(step, time_s, name, _plain(b[i]), _plain(a[i]), element)
                return
        if self.tolerance:
            self.result.rounded += 1
        else:
            self._differ(step, time_s, "", "other bytes between its fields", "these")

    def _beyond(self, got: NDArray[Any], logged: NDArray[Any]) -> NDArray[np.bool_]:
        if self.tolerance and got.dtype.kind == "f":
            return ~(np.abs(got - logged) <= self.tolerance)
        differ = got.reshape(-1, 1).view(np.uint8) != logged.reshape(-1, 1).view(np.uint8)
        return differ.any(axis=1)

    def _in_words(self, message: Message) -> str:
        """A message that is there on one side only."""
        if not isinstance(message, Intervention):
            return "a message"
        limiter, joint = LIMITERS[message.limiter], self.robot.joint_names[message.joint]
        return f"{limiter} of {joint} from {message.before:.4g} to {message.after:.4g}"

    def _element(self, i: int, length: int) -> str:
        return self.robot.joint_names[i] if length == self.robot.num_joints else str(i)

    def _differ(
        self, step: int, time_s: float, name: str, logged: Any, got: Any, element: str = ""
    ) -> None:
        stage, topic = self.result.stage, self.rows.topic
        self.result.differ(Difference(stage, topic, step, time_s, name, element, logged, got))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        text = value.decode("ascii", "replace").rstrip()
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return value.item() if hasattr(value, "item") else value


# --- control ------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What one tick took in, of all its `consumed` messages."""

    rows: list[int]  # of topic consumed

    @classmethod
    def by_tick(cls, rows: Rows, order: list[int]) -> dict[int, Taken]:
        """All ticks that took in something."""
        found: dict[int, Taken] = {}
        ticks = rows.records["tick"].tolist()
        for row in order:
            found.setdefault(ticks[row], cls([])).rows.append(row)
        return found


class LoggedRun:
    """One run of the control process out of a log: its driver, ports and clock, tick by tick.

    Args:
        log: where from.
        topics: rows of all topics.
        span: stamps from (included) and to (excluded) of this run, ns.
        sent: what the run's driver made of a command.
    """

    simulated, physics_cpu_ns = True, 0

    def __init__(
        self,
        log: Log,
        topics: dict[str, Rows],
        span: tuple[int, int],
        sent: Callable[[LowCmd], object],
    ) -> None:
        self.log, self.topics, self.span, self._sent = log, topics, span, sent
        orders = {name: self._within(rows) for name, rows in topics.items()}
        self.orders = orders
        self.cmd_row = self._by_tick("low_cmd")
        self.state_row = self._by_tick("low_state")
        self.health_row = self._by_tick("health")
        self.taken = Taken.by_tick(topics["consumed"], orders["consumed"])
        self.unknown = self._unknown_ticks("consumed")
        self.unwell = self._unknown_ticks("health")
        steps = topics["control_state"].records["step"].tolist()
        self.snapshots = [(steps[row], row) for row in orders["control_state"]]
        self.last = max(self.cmd_row, default=0)
        # Inputs may be older than this run: everybody's publications count.
        self.inputs = {
            (instance, seq): (name, row)
            for name in (*CONTROL_INPUTS, "target")
            for row, (instance, seq) in enumerate(
                zip(topics[name].instances, topics[name].seqs, strict=True)
            )
        }
        self._pools: dict[str, list[Message]] = {name: [] for name in topics}
        self._drops = (0, 0)
        self._received: list[Message] = []
        self._target: Target | None = None
        self._state = self._number = 0
        self._fault, self._text = 0, ""
        self.send_to: Callable[[str, Message, int], int]

    def _within(self, rows: Rows) -> list[int]:
        stamps = np.array(rows.stamps, np.int64)
        inside = (stamps >= self.span[0]) & (stamps < self.span[1])
        return np.flatnonzero(inside).tolist()

    def _by_tick(self, topic: str) -> dict[int, int]:
        ticks = self.topics[topic].records["tick"].tolist()
        return {ticks[row]: row for row in self.orders[topic]}

    def _unknown_ticks(self, topic: str) -> list[tuple[int, int]]:
        """Ranges of ticks of which a message may be lost, both ends included."""
        rows, order = self.topics[topic], self.orders[topic]
        ticks = rows.records["tick"].tolist()
        unknown = [(0, ticks[order[0]])] if order and rows.seqs[order[0]] != 1 else []
        for before, after in itertools.pairwise(order):
            if rows.seqs[after] != rows.seqs[before] + 1:
                unknown.append((ticks[before], ticks[after]))
        return unknown

    # --- one tick ---

    def prepare(self, number: int) -> str:
        """Gather what this tick consumed; returns why it cannot be run again, or ""."""
        if number not in self.cmd_row:
            return "low_cmd is lost"
        if any(first <= number <= last for first, last in self.unknown):
            return "consumed is lost"
        if any(first < number <= last for first, last in self.unwell):
            return "health is lost"
        self._number = number
        self._received, self._target = [], None
        self._fault, self._text = 0, ""
        self.skipped = 0
        used = dict.fromkeys(self._pools, 0)
        for row in self.taken.get(number, Taken([])).rows:
            if why := self._take(self.topics["consumed"].records[row], used):
                return why
        if self._fault != READ_FAULT:
            if number not in self.state_row:
                return "low_state is lost"
            self._state = self.state_row[number]
        return ""

    def _take(self, record: Any, used: dict[str, int]) -> str:
        if record["error"]:
            return "an exception ended the tick"
        names = list(zip(record["instances"].tolist(), record["seqs"].tolist(), strict=True))
        named = names[: int(record["count"])]
        target = int(record["target_instance"]), int(record["target_seq"])
        for name in [*named, *([target] if target[0] else [])]:
            if name not in self.inputs:
                return "a message it consumed is lost"
            message = self._load(*self.inputs[name], used)
            if isinstance(message, Target):
                self._target = message
            else:
                self._received.append(message)
        self._drops = int(record["drops"]), int(record["malformed"])
        self.skipped = int(record["skipped"])
        self._fault = int(record["driver_fault"])
        self._text = record["text"].decode("ascii", "replace").rstrip()
        return ""

    def _load(self, topic: str, row: int, used: dict[str, int]) -> Message:
        pool, at = self._pools[topic], used[topic]
        if at == len(pool):
            pool.append(self.topics[topic].codec.new())
        used[topic] = at + 1
        return self.topics[topic].fill(pool[at], row)

    def time_ns(self, number: int) -> int:
        """The time that the tick was given."""
        return int(self.topics["low_cmd"].records["now_ns"][self.cmd_row[number]])

    def resume(self, control: Control) -> None:
        """Counters as a snapshot left them, and the robot's health as it was told last."""
        self._drops = int(control.status.drops), control.malformed
        told = max((tick for tick in self.health_row if tick <= control.tick), default=0)
        if told:
            self.topics["health"].fill(control.health, self.health_row[told])

    # --- as control meets it: Driver ---

    def open(self) -> None:
        """Nothing to connect to."""

    def close(self) -> None:
        """Nothing to let go."""

    def read(self, state: LowState) -> None:
        """The state that was read in this tick, or the fault."""
        if self._fault == READ_FAULT:
            raise DriverFault(self._text)
        self.topics["low_state"].fill(state, self._state)

    def write(self, cmd: LowCmd) -> None:
        """Nothing moves; the command becomes what was sent."""
        self._sent(cmd)
        if self._fault == WRITE_FAULT:
            raise DriverFault(self._text)

    def health(self, health: Health) -> bool:
        """What was told in this tick."""
        if self._number not in self.health_row:
            return False
        self.topics["health"].fill(health, self.health_row[self._number])
        return True

    def truth(self, truth: Truth) -> bool:
        """What the simulation knew is in the log already."""
        return False

    # --- as control meets it: Ports ---

    def receive(self) -> list[Message]:
        """What was received in this tick."""
        return self._received

    def target(self, asked_seq: int | None) -> Target | None:
        """The target that was received in this tick."""
        return self._target

    def send(self, topic: str, message: Message, stamp_ns: int) -> int:
        """Compare."""
        return self.send_to(topic, message, stamp_ns)

    def drops(self) -> tuple[int, int]:
        """Counters as they were."""
        return self._drops


class ControlReplay:
    """Runs control again over a log.

    Args:
        log: where from.
        run: the configuration of the run.
        robot: limits and poses to run with.
    """

    def __init__(self, log: Log, run: RunConfig, robot: Robot) -> None:
        self.log, self.run, self.robot = log, run, softened(robot, run)
        self.sent = as_sent(run, robot)
        self.codecs = make_codecs(robot)
        wanted = (*CONTROL_OUTPUTS, *CONTROL_INPUTS, "target", "consumed")
        self.topics = {name: Rows(log, name, self.codecs[name]) for name in wanted}
        self.result = StageResult("control")
        self.offset_ns = int(log.metadata.get("clock_offset_ns", 0)) - log.start_ns
        self.modes = {Mode(m).name for m in np.unique(self.topics["low_cmd"].records["mode"])}

    def spans(self) -> list[tuple[int, int]]:
        """Stamps of the runs of the control process: a restart begins another."""
        rows = self.topics["low_cmd"]
        starts = [
            rows.stamps[i]
            for i, owner in enumerate(rows.instances)
            if i == 0 or owner != rows.instances[i - 1]
        ]
        first = min((r.stamps[0] for r in self.topics.values() if len(r)), default=0)
        edges = [min(first, *starts[:1]), *starts[1:], 1 << 62] if starts else []
        return list(itertools.pairwise(edges))

    def __call__(self) -> StageResult:
        """Every run of the process that the log holds."""
        for span in self.spans():
            self._replay(LoggedRun(self.log, self.topics, span, self.sent))
        return self.result

    def _replay(self, logged: LoggedRun) -> None:
        comparers = {
            name: Comparer(self.topics[name], logged.orders[name], self.result, self.robot)
            for name in CONTROL_OUTPUTS
        }
        control, number = self.new_control(), 1
        moment = (0, 0.0)  # tick, s

        def send(topic: str, message: Message, stamp_ns: int) -> int:
            comparer = comparers.get(topic)  # consumed is told to us, not compared
            return comparer.meet(message, moment[0], stamp_ns, moment[1]) if comparer else 0

        logged.send_to = send
        while number <= logged.last:
            if why := logged.prepare(number):
                snapshot = next((s for s in logged.snapshots if s[0] >= number), None)
                end = snapshot[0] if snapshot else logged.last
                self.result.skip(why, end - number + 1)
                number = end + 1
                if snapshot:
                    control = self._resume(logged, snapshot[1], comparers)
                continue
            now_ns = logged.time_ns(number)
            moment = number, (now_ns + self.offset_ns) * 1e-9
            control.note_late(logged.skipped)
            tick(control, logged, logged, lambda now=now_ns: now)
            for comparer in comparers.values():
                comparer.finish(*moment[:1], now_ns, moment[1])
            self.result.steps += 1
            number += 1

    def new_control(self) -> Control:
        """One that has not run yet."""
        run = self.run
        return Control(self.robot, self.codecs, run.period_ns, run.timing_factor)

    def _resume(self, logged: LoggedRun, row: int, comparers: dict[str, Comparer]) -> Control:
        """A control that goes on from a snapshot."""
        given: Snapshot = self.topics["control_state"].message(row)
        control = self.new_control()
        control.recall(given, f"{self.log.path}: control_state at step {given.step}")
        for comparer in comparers.values():
            comparer.begin(given.now_ns)
        logged.resume(control)
        return control


# --- pilot --------------------------------------------------------------------------------------


class Maps:
    """The height maps of a log, to be shown to pilots.

    Args:
        log: where from; one without maps is fine.
        codec: of height_map.
    """

    def __init__(self, log: Log, codec: Codec) -> None:
        self.rows = Rows(log, "height_map", codec)
        names = zip(self.rows.instances, self.rows.seqs, strict=True)
        self._row_of = {name: row for row, name in enumerate(names)}

    def show(self, pilot: Pilot, target: Any) -> bool:
        """Let a pilot see what was seen for a record of `target`; False: the log lacks that map."""
        name = int(target["map_instance"]), int(target["map_seq"])
        if name == (0, 0):
            pilot.blindfold()
        elif name in self._row_of:
            pilot.look(self.rows.message(self._row_of[name]))
        return name == (0, 0) or name in self._row_of

    def show_newest(self, pilot: Pilot, now_ns: int) -> None:
        """Let a pilot see the newest map of a time, as one would that has not run in the log."""
        row = bisect_right(self.rows.stamps, now_ns) - 1
        if row >= 0:
            pilot.look(self.rows.message(row))


class PilotReplay:
    """Runs the policy that gave each target again, over the input that the target names.

    Args:
        log: where from.
        run: the configuration of the run.
        robot: joint order.
        own: the log's policy files, unpacked.
        policy: another policy file to run instead of all of them; the log's own run beside it to
            find the first observation that differs.

    Raises:
        UserError: there is no policy, or one is refused.
    """

    def __init__(
        self, log: Log, run: RunConfig, robot: Robot, own: Iterable[Path],
        policy: Path | None = None,
    ) -> None:  # fmt: skip
        self.log, self.robot = log, robot
        codecs = make_codecs(robot)
        names = ("target", "policy_input", "pilot_state", "odometry")
        self.targets, self.inputs, self.states, self.places = (
            Rows(log, n, codecs[n]) for n in names
        )
        self.maps = Maps(log, codecs["height_map"])
        self.result = StageResult("pilot")
        self.offset_ns = int(log.metadata.get("clock_offset_ns", 0)) - log.start_ns
        pilots = [load_pilot(_with_policy(run, path), robot) for path in own]
        if not pilots and policy is None:
            raise UserError(f"{log.path}: holds no policy file; name one with --policy")
        self.owns = {pilot.policy_id: pilot for pilot in pilots}
        self.other = load_pilot(_with_policy(run, policy), robot) if policy else None
        same_cpu = log.metadata.get("cpu") == cpu_name()
        self.tolerance = 0.0 if same_cpu else OTHER_CPU_TOLERANCE

    def __call__(self) -> StageResult:
        """Every target that the log holds."""
        targets, result = self.targets, self.result
        comparer = Comparer(targets, list(range(len(targets))), result, self.robot, self.tolerance)
        places = self.places
        located = Comparer(places, list(range(len(places))), result, self.robot, self.tolerance)
        records = targets.records
        consumed = list(
            zip(records["input_instance"].tolist(), records["input_seq"].tolist(), strict=True)
        )
        where = {
            name: row
            for row, name in enumerate(zip(self.inputs.instances, self.inputs.seqs, strict=True))
        }
        place_of = self._places_by_input()
        snapshots = {int(now): row for row, now in enumerate(self.states.records["now_ns"])}
        times, ids = records["now_ns"].tolist(), records["policy_id"].tolist()
        given: PolicyInput = self.inputs.codec.new()
        synced, before, episode = False, None, -1
        placed = not place_of  # whether odometry, which outlives episodes, is where it was
        for row in range(len(targets)):
            name = targets.instances[row], targets.seqs[row]
            if before is None or name[0] != before[0]:  # another process
                synced, episode = name[1] == 1, int(records["episode"][row])
                placed = synced or not place_of
                for pilot in filter(None, (*self.owns.values(), self.other)):
                    pilot.forget()
            elif name[1] != before[1] + 1:
                synced, placed = False, not place_of
            before = name
            pilots = self._pilots(ids[row])
            if not pilots:
                synced, placed = False, not place_of
                result.skip(f"the log lacks the file of its policy, {ids[row]:016x}")
                continue
            if consumed[row] not in where:
                synced, placed = False, not place_of
                result.skip("the policy_input it answers is lost")
            else:
                self.inputs.fill(given, where[consumed[row]])
                synced = synced or given.step == 0 or given.episode != episode
                episode = given.episode
                if not synced:
                    result.skip("what the policy remembered is lost")
                elif not all(self.maps.show(pilot, records[row]) for pilot in pilots):
                    result.skip("the height_map it saw is lost")
                    synced, placed = False, not place_of
                else:
                    self._step(pilots, comparer, row, given, times[row])
                    place = pilots[0].locate(given, times[row])
                    if placed and (at := place_of.get(consumed[row])) is not None:
                        located.at = at
                        located.meet(place, row, times[row], self._seconds(times[row]))
            if not (synced and placed) and times[row] in snapshots:
                state = self.states.message(snapshots[times[row]])
                place = f"{self.log.path}: pilot_state at step {state.step}"
                for pilot in pilots:
                    pilot.recall(state, place)
                synced = placed = True
        return result

    def _places_by_input(self) -> dict[tuple[int, int], int]:
        """Rows of odometry by the input they answer.

        None for logs from before there was any, nor beside another policy, which has none of the
        log's snapshots to go on from.
        """
        if self.other is not None:
            return {}
        records = self.places.records
        names = zip(records["input_instance"].tolist(), records["input_seq"].tolist(), strict=True)
        return {name: row for row, name in enumerate(names)}

    def _seconds(self, now_ns: int) -> float:
        return (now_ns + self.offset_ns) * 1e-9

    def _pilots(self, which: int) -> list[Pilot]:
        """Who runs again what this policy answered: the other policy, and its own or none."""
        own = [self.owns[which]] if which in self.owns else []
        if self.other is None:
            return own
        self.other.policy_id = which
        return [self.other, *own]

    def _step(
        self, pilots: list[Pilot], comparer: Comparer, row: int, given: PolicyInput, now_ns: int
    ) -> None:
        pilot, *beside = pilots
        had = self.result.first
        for own in beside:
            own.step(given, now_ns)
        comparer.at = row
        target = pilot.step(given, now_ns)
        comparer.meet(target, row, now_ns, self._seconds(now_ns))
        self.result.steps += 1
        if had is None and self.result.first is not None and beside:
            self.result.first.term = first_term(pilot, beside[0])


def first_term(pilot: Pilot, own: Pilot) -> str:
    """The first term of the observation in which two pilots differ, "" if they agree."""
    a, b = pilot.session.observation, own.session.observation
    if len(a) != len(b):
        return f"observations have {len(a)} and {len(b)} numbers"
    at = 0
    for term in pilot.session.manifest.observation:
        if not np.array_equal(a[at : at + term.width], b[at : at + term.width]):
            return term.name
        at += term.width
    return ""


def _with_policy(run: RunConfig, policy: Path) -> RunConfig:
    return run.model_copy(update={"policy": policy})


# --- level R1 -----------------------------------------------------------------------------------


def replay(
    log: Log, folder: Path, policy: Path | None = None, robot: Path | None = None
) -> dict[str, Any]:
    """Run every stage of a log again.

    Args:
        log: of a run of this version.
        folder: scratch, for what the log has attached.
        policy: another policy file than the log's.
        robot: another robot.yaml than the log's.

    Returns:
        `verdict` (same, different or nothing), `stages`, and sentences for people in `notes`.

    Raises:
        UserError: the log holds too little, or was written by a version with other layouts.
    """
    run, own_robot = setup_of(log, folder)
    used = load_robot(robot) if robot else own_robot
    control = ControlReplay(log, run, used)
    stages = [control()]
    if "target" in log.topics and log.topics["target"].count:
        own = [folder / name for name in log.policies.values()]
        stages.append(PilotReplay(log, run, used, own, policy)())
    if "height_map" in log.topics and log.topics["height_map"].count:
        from sim2real.replay_perception import PerceptionReplay  # which stands on this module

        stages.append(PerceptionReplay(log, run, used)())
    nothing = not stages[0].steps or control.modes <= {Mode.PASSIVE.name}
    different = any(stage.different for stage in stages)
    return {
        "level": "R1",
        "log": str(log.path),
        "verdict": "nothing" if nothing else "different" if different else "same",
        "modes": sorted(control.modes),
        "stages": [_as_dict(stage) for stage in stages],
        "notes": list(_notes(log, stages, nothing)),
    }


def _as_dict(stage: StageResult) -> dict[str, Any]:
    return vars(stage) | {"firsts": [vars(first) for first in stage.firsts.values()]}


def _notes(log: Log, stages: list[StageResult], nothing: bool) -> Iterator[str]:
    if nothing:
        yield "nothing happened in this log: no tick could be run, or the robot was never armed"
    for stage in stages:
        yield (
            f"{stage.stage}: {stage.steps} steps run again, {stage.compared} messages compared, "
            f"{stage.different} different, {stage.incomplete} steps incomplete"
        )
        for why, steps in stage.reasons.items():
            yield f"{stage.stage}: {steps} steps incomplete: {why}"
        if stage.rounded:
            yield (
                f"{stage.stage}: {stage.rounded} messages differ by the rounding of another "
                f"processor (log: {log.metadata.get('cpu')}, here: {cpu_name()})"
            )
        yield from map(str, stage.firsts.values())
    yield from log.damage
