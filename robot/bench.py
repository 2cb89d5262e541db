"""Measures this machine: each of our costs beside the floor that the same run allows it.

A figure alone says more of the machine than of us, so the two sides of a row take turns, at the
cadence of the robot, and the ratio is what counts. While one side measures the other is stopped.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot import clock
from robot.bench_figures import (
    SHORTEST_SLOT_S,
    SLOT_S,
    Row,
    make_row,
    print_rows,
    skips,
    spread,
    take_turns,
)
from robot.bench_floor import (
    CONTROL_HZ,
    PERIOD_NS,
    ROBOT,
    Player,
    Samples,
    Setup,
    compile_timer,
    players,
    run_timer,
)
from robot.config import UserError, listing, without_extra
from robot.messages import Message, Mode, Timing
from robot.model import load_robot
from robot.nodes import Manager
from robot.runs import load_run

# Row -> its share of the time, and the jobs of the player that it needs.
ROWS: dict[str, tuple[float, tuple[str, ...]]] = {
    "timer": (1.0, ("timer_ours", "timer_bare")),
    "hop": (1.0, ("hop_ours", "hop_bare")),
    "path": (3.0, ("path_bare",)),
    "tick": (2.0, ("tick_hot", "timer_bare")),
    "inference": (1.0, ("inference_ours", "inference_bare", "inference_plain")),
    "recorder": (2.0, ("timer_bare",)),
    "eyes": (2.0, ()),
    "map": (0.5, ()),
    "dds": (1.0, ()),
    "dds_period": (1.0, ()),
    "dds_cpu": (0.5, ()),
}
EYES = ("eyes", "map")  # measured by bench_eyes.py, in simulation
WIRE = ("dds", "dds_period", "dds_cpu")  # measured by bench_dds.py, with players of its own
PATH_GOAL, TICK_GOAL_US, RECORDER_GOAL = 1.4, 110.0, 1.05
TIMING_FACTOR = 100.0  # lets control outlive being stopped; it changes limits, not work
TO_POLICY_S = 12.0  # arm, stand up and blend
SETTLED_SLOTS = 5  # in the policy: the blend into it ends
SETTLE_NS = 20_000_000 + 50 * PERIOD_NS  # a timing message that began before we went on


def main(json_path: Path | None, policy: Path | None, seconds: float, only: tuple[str, ...]) -> int:
    """Measure the rows in `only` (all if empty) for about `seconds`, print them, write them.

    Raises:
        UserError: an unknown row, no time, no such folder, a bad policy, nodes that do not start.
    """
    names = _wanted(only)
    if not seconds > 0.0:
        raise UserError(f"--seconds: got {seconds:g}, expected more than 0")
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise UserError(f"{json_path}: the folder {json_path.absolute().parent} does not exist")
    machine, before = Machine(), signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="plexus-bench-") as folder:
            bench = Bench(Path(folder), policy, seconds, names)
            rows = bench.measure()
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print_rows(rows)
    _print_ticks(rows, f"{machine}; timer: {bench.timer_kind}")
    if json_path is not None:
        json_path.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n")
    return 0


def _wanted(only: tuple[str, ...]) -> list[str]:
    for name in only:
        if name not in ROWS:
            raise UserError(f"--only: row {name!r} is unknown; available: {listing(ROWS)}")
    names = [name for name in ROWS if not only or name in only]
    try:
        importlib.import_module("cyclonedds")
    except ImportError as error:
        missing = without_extra(error, "g1", "a row through DDS")
        names = [name for name in names if name not in WIRE]
        if not names:
            raise missing from None
        print(f"bench: no {listing(WIRE)}: {missing}")
    return names


class Bench:
    """One measurement: what there is to run, and for how long.

    Args:
        folder: private and empty; sockets, the C loop and a made policy go there.
        policy: the user's policy, if any.
        seconds: for everything together.
        names: rows to measure.
    """

    def __init__(self, folder: Path, policy: Path | None, seconds: float, names: list[str]) -> None:
        self.names, self.seconds = names, seconds
        self.policy_kind = "this policy" if policy else "a network made here"
        if policy is None and set(names) & {"path", "tick", "inference", "recorder", *EYES}:
            policy = make_policy(folder)
        self.setup = Setup(folder, policy)
        self.program, compiler = compile_timer(folder)
        self.timer_kind = f"C loop ({compiler})" if self.program else f"ctypes loop ({compiler})"
        if policy is not None:
            _check_policy(policy)

    def measure(self) -> list[Row]:
        """All rows, in the order of ROWS."""
        jobs = {job for name in self.names for job in ROWS[name][1]}
        begin = time.monotonic()
        rows: dict[str, Row] = {}
        with players(self.setup, sorted(jobs)) as player:
            if jobs:
                player.play(min(jobs), 0.01)  # answers once everything is built
            left = max(0.0, self.seconds - (time.monotonic() - begin))
            share = left / sum(ROWS[name][0] for name in self.names)
            for name, measure in (
                ("timer", self._timer), ("hop", self._hop), ("inference", self._inference)
            ):  # fmt: skip
                if name in self.names:
                    rows[name] = measure(player, ROWS[name][0] * share)
            live = [name for name in ("path", "tick") if name in self.names]
            if live:
                seconds = sum(ROWS[name][0] for name in live) * share
                rows |= self._live(player, seconds, live)
            if "recorder" in self.names:
                rows["recorder"] = self._recorder(ROWS["recorder"][0] * share)
        if eyes := [name for name in EYES if name in self.names]:
            from robot.bench_eyes import measure as measure_eyes  # which stands on this module

            rows |= measure_eyes(self.setup, {name: ROWS[name][0] * share for name in eyes})
        if wire := [name for name in WIRE if name in self.names]:
            from robot.bench_dds import measure  # it needs an extra

            rows |= measure(self.setup, {name: ROWS[name][0] * share for name in wire})
        return [rows[name] for name in self.names]

    def bare_timer(self, player: Player, seconds: float) -> Samples:
        """The best timer that this machine can build."""
        if self.program is not None:
            return run_timer(self.program, seconds)
        return player.play("timer_bare", seconds)

    def _timer(self, player: Player, seconds: float) -> Row:
        pairs = take_turns(
            seconds,
            lambda s: self.bare_timer(player, s),
            lambda s: player.play("timer_ours", s),
        )
        note = f"lateness p50 at {CONTROL_HZ} Hz; floor: {self.timer_kind}"
        return make_row("timer", pairs, note, **skips(pairs))

    def _hop(self, player: Player, seconds: float) -> Row:
        pairs = take_turns(
            seconds, lambda s: player.play("hop_bare", s), lambda s: player.play("hop_ours", s)
        )
        note = "one way of a low_state at 50 Hz, half a round trip; floor: bare pyzmq"
        return make_row("hop", pairs, note)

    def _inference(self, player: Player, seconds: float) -> Row:
        plain: list[Samples] = []

        def bare(s: float) -> Samples:
            plain.append(player.play("inference_plain", s / 2.0))
            return player.play("inference_bare", s)

        pairs = take_turns(seconds * 0.8, bare, lambda s: player.play("inference_ours", s))
        note = f"{self.policy_kind} at 50 Hz; floor: a bare run with I/O binding"
        p50 = round(float(np.median(np.concatenate([p.us for p in plain]))), 3)
        return make_row("inference", pairs, note, plain_run_us=p50)

    def _live(self, player: Player, seconds: float, live: list[str]) -> dict[str, Row]:
        """`path` and `tick` of the real processes, in turns with their floors."""
        floors: dict[str, Callable[[float], Samples]] = {}
        if "path" in live:
            floors["path"] = lambda s: player.play("path_bare", s)
        if "tick" in live:
            floors["tick"] = lambda s: player.play("tick_hot", s / 2.0)
        floors["timer"] = lambda s: self.bare_timer(player, s)
        end = time.monotonic() + seconds
        with Nodes(self.setup) as nodes:
            nodes.go_on_to_policy(min(TO_POLICY_S, seconds / 3.0))
            slot = min(SLOT_S, max(SHORTEST_SLOT_S, seconds / 40.0))
            rounds: list[tuple[str, Samples, Slot]] = []
            while time.monotonic() < end or len(rounds) < len(floors):
                for name, floor in floors.items():
                    # Of uneven length, lest a rhythm of the machine hits one side only.
                    length = slot * random.uniform(0.8, 1.2)
                    rounds.append((name, floor(length), nodes.slot(length)))
        if not any(len(slot.path_us) for _, _, slot in rounds):
            raise UserError(f"bench: control measured no path; it says: {nodes.said or 'nothing'}")
        return {name: LIVE[name](self, rounds, nodes) for name in live}

    def _recorder(self, seconds: float) -> Row:
        """A run with a recorder beside one without, in turns; each is stopped meanwhile."""
        end = time.monotonic() + seconds
        with (
            Nodes(self.setup, "without") as without,
            Nodes(self.setup, "with", log=True) as recorded,
        ):
            start_together((without, recorded), min(2.0 * TO_POLICY_S, seconds / 2.0))
            pairs = take_turns(
                max(6.0 * SLOT_S, end - time.monotonic()),
                lambda s: without.slot(s).cpu,
                lambda s: recorded.slot(s).cpu,
            )
            load = recorded.cpu_share("recorder")
            note = (
                f"CPU of a control tick with a recorder, {recorded.modes}; floor: without, "
                f"{without.modes}; the recorder itself takes {load:.1%} of a core; goal "
                f"{RECORDER_GOAL} x"
            )
        return make_row("recorder", pairs, note, recorder_share=round(load, 4), **skips(pairs))

    def _path_row(self, rounds: list[tuple[str, Samples, Slot]], nodes: Nodes) -> Row:
        pairs = [(floor, Samples(slot.path_us)) for name, floor, slot in rounds if name == "path"]
        note = (
            f"driver.read to target validated, {self.policy_kind}, {nodes.modes}; floor: two bare "
            f"hops and a bare run; goal {PATH_GOAL} x"
        )
        write = np.concatenate([slot.write_us for _, _, slot in rounds])
        return make_row("path", pairs, note, write_us=spread(write))

    def _tick_row(self, rounds: list[tuple[str, Samples, Slot]], nodes: Nodes) -> Row:
        pairs = [(floor, Samples(slot.cpu_us)) for name, floor, slot in rounds if name == "tick"]
        timers = [(floor, slot.timer) for name, floor, slot in rounds if name == "timer"]
        note = (
            f"CPU of a tick in situ at {CONTROL_HZ} Hz, {nodes.modes} (ours), and back to back "
            f"without a bus (floor); goal: ours at most {TICK_GOAL_US:g} us"
        )
        return make_row(
            "tick", pairs, note,
            all_cpu_us=spread(np.concatenate([slot.cpu_us for _, _, slot in rounds])),
            lateness_us=spread(np.concatenate([slot.timer.us for _, _, slot in rounds])),
            bare_lateness_us=spread(np.concatenate([floor.us for floor, _ in timers])),
            after_warm_up=nodes.after_warm_up,
            faults=nodes.manager.summary.faults,
            **skips(timers),
        )  # fmt: skip


LIVE = {"path": Bench._path_row, "tick": Bench._tick_row}


# --- the real processes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """What control measured between two stops."""

    path_us: NDArray[np.float64]
    write_us: NDArray[np.float64]
    cpu_us: NDArray[np.float64]
    timer: Samples  # lateness and skipped periods

    @property
    def cpu(self) -> Samples:
        """CPU time of the ticks, with the skipped periods."""
        return Samples(self.cpu_us, self.timer.skipped)


class Nodes:
    """The nodes of a run, stopped by signal while others are measured.

    Restarting them for each slot would leave too few rounds. The first timing message after a stop
    is thrown away; the warning `overrun` that a stop raises stays for a second, so ours is measured
    with it. Used with `with`, which ends them however it is left.

    Args:
        setup: gives folder and policy.
        name: of the folder for this run's sockets.
        log: whether a recorder is among them.
        run: a run file; on the loopback driver nothing but ours is measured.
        given: its keys that are to be otherwise.
    """

    def __init__(
        self, setup: Setup, name: str = "run", log: bool = False, run: str = "loopback",
        given: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        operator = {"automatic": True, "keyboard": False}
        overrides = {
            "policy": str(setup.policy), "viewer": False, "operator": operator,
            "console": {"enabled": False}, "timing_factor": TIMING_FACTOR,
            "log": {"enabled": log, "folder": str(setup.directory / "logs")}, **(given or {}),
        }  # fmt: skip
        self.directory = setup.directory / name
        with _environment("PLEXUS_RUNTIME_DIR", str(self.directory)):
            # Live: what the nodes say goes to files, not between our lines.
            self.manager = Manager(load_run(run, overrides), live=True)
        self.manager.on_message = self._hear
        self.said = ""
        self._modes: list[str] = []
        self._since_ns = 0
        self._heard: list[Timing] = []
        self._seconds = 0.0  # of all slots
        self._cpu_before: dict[str, float] = {}

    def __enter__(self) -> Nodes:
        try:
            self.manager.start()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C changes nothing
        try:
            self._signal(signal.SIGCONT)
            self.manager.stop()
            self.manager.close()
            self.manager.node.context.destroy(linger=0)
            log = self.directory / "control.log"
            self.said = log.read_text(errors="replace").strip() if log.exists() else ""
        finally:
            signal.signal(signal.SIGINT, before)

    def go_on_to_policy(self, most_s: float) -> None:
        """Let the robot stand up and start its policy, then stop the nodes.

        It goes on until the pilot has answered for the first time, however little time is given:
        what a pilot does before that is no path.
        """
        self._signal(signal.SIGCONT)
        begin = time.monotonic()
        end, settled = begin + most_s, 0.0
        while (now := time.monotonic()) < end or (now < begin + TO_POLICY_S and not self._answered):
            self.manager.turn()
            if self.manager.summary.mode == Mode.POLICY:
                settled = settled or time.monotonic() + 3.0  # the blend into the policy ends
                end = min(end, settled)
        self._signal(signal.SIGSTOP)

    @property
    def _answered(self) -> bool:
        return any(timing.policy_ticks for timing in self._heard)

    def cpu_share(self, name: str) -> float:
        """Share of a core that a node has taken in all slots so far."""
        passed = cpu_seconds(self.manager.children[name].pid) - self._cpu_before[name]
        return passed / self._seconds if self._seconds else 0.0

    def slot(self, seconds: float) -> Slot:
        """Go on for so long; afterwards the nodes are stopped again."""
        for name, child in self.manager.children.items():
            self._cpu_before.setdefault(name, cpu_seconds(child.pid))
        self._seconds += seconds
        self._heard = []
        self._since_ns = clock.now_ns() + SETTLE_NS
        self._signal(signal.SIGCONT)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.manager.turn()
        self._signal(signal.SIGSTOP)
        mode = self.manager.summary.mode
        self._modes += [mode.name] if mode is not None and mode.name not in self._modes else []
        return _slot(self._heard)

    def begin(self) -> None:
        """Count modes and CPU time from here on."""
        self._modes.clear()
        self._cpu_before.clear()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Of all slots so far."""
        return self._seconds

    @property
    def modes(self) -> str:
        """Modes that were measured in."""
        return " and ".join(self._modes) or "no mode"

    @property
    def after_warm_up(self) -> dict[str, int]:
        """Page faults, growth of memory blocks and collections in control."""
        return self.manager.summary.to_dict().get("control", {}).get("after_warm_up", {})

    def _hear(self, message: Message) -> None:
        if isinstance(message, Timing) and message.stamp_ns >= self._since_ns:
            self._heard.append(message.copy())

    def _signal(self, number: signal.Signals) -> None:
        for child in self.manager.children.values():
            if child.process.poll() is None:
                child.process.send_signal(number)


def start_together(runs: Sequence[Nodes], most_s: float) -> None:
    """Let several runs come to their policies, in turns: while one goes on the others are stopped.

    One after the other would not do: who is stopped for long finds a gap in time, and damps.
    """
    end, settled = time.monotonic() + most_s, 0
    while time.monotonic() < end and settled < SETTLED_SLOTS:
        for nodes in runs:
            nodes.slot(SLOT_S)
        settled += all(nodes.manager.summary.mode == Mode.POLICY for nodes in runs)
    for nodes in runs:
        nodes.begin()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads, to the nanosecond.

    /proc counts hundredths of a second, more than a recorder takes in a short slot. The clock's id
    is made as clock_getcpuclockid(3) makes it.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _slot(heard: list[Timing]) -> Slot:
    def joined(name: str) -> NDArray[np.float64]:
        policy = name in ("path_us", "write_us")
        parts = [getattr(t, name)[: t.policy_ticks if policy else None] for t in heard]
        return np.concatenate([np.empty(0), *parts])

    skipped = heard[-1].skipped_ticks - heard[0].skipped_ticks if heard else 0
    return Slot(
        joined("path_us"), joined("write_us"), joined("cpu_us"),
        Samples(joined("lateness_us"), skipped),
    )  # fmt: skip


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """The variable has this value inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- the machine -------------------------------------------------------------------------------


class Machine:
    """What the figures were measured on; begins counting stolen time when made."""

    def __init__(self) -> None:
        self._stat = _cpu_times()

    def __str__(self) -> str:
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        passed = [now - then for now, then in zip(_cpu_times(), self._stat, strict=False)]
        steal = f"{passed[7] / max(1, sum(passed[:8])):.1%}" if len(passed) > 7 else "unknown"
        return f"{os.cpu_count()} cores, load {load}, steal {steal}"


def _cpu_times() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal, ... of all cores; [] elsewhere."""
    path = Path("/proc/stat")
    return [int(x) for x in path.read_text().split("\n")[0].split()[1:]] if path.exists() else []


def _print_ticks(rows: list[Row], machine: str) -> None:
    for row in rows:
        if "ours_skipped" in row.extra:
            print(
                f"{row.name}: skipped {row.extra['ours_skipped']} periods in "
                f"{row.extra['ours_ticks']} ticks, the bare loop {row.extra['floor_skipped']} in "
                f"{row.extra['floor_ticks']}{_more_skipped(row)}"
            )
        if told := row.extra.get("after_warm_up"):
            print(f"control after warm-up: {', '.join(f'{k} {v}' for k, v in told.items())}")
    print(f"machine: {machine}")


def _more_skipped(row: Row) -> str:
    low, high = row.extra.get("more_skipped_ci", (math.nan, math.nan))
    return "" if math.isnan(low) else f"; share of ours more by {low:+.2%} to {high:+.2%} (95 %)"


# --- the policy ---------------------------------------------------------------------------------


def _check_policy(path: Path) -> None:
    from policies.manifest import check_policy, read_policy

    check_policy(read_policy(path), load_robot(ROBOT), CONTROL_HZ)


def make_policy(folder: Path) -> Path:
    """A policy of the usual size (100-512-256-128-29) that hardly moves the robot; its path."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from policies.importers import import_policy
    from policies.manifest import write_policy

    robot, rng = load_robot(ROBOT), np.random.default_rng(0)
    widths = [100, 512, 256, 128, robot.num_joints]
    nodes, weights, value = [], [], "actor_obs"
    for i, (wide, next_wide) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        scale = 0.01 if last else 1.0 / np.sqrt(wide)
        weight = rng.standard_normal((next_wide, wide)) * scale
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        out = "action" if last else f"h{i}"
        nodes.append(helper.make_node("Gemm", [value, f"w{i}"], [out], transB=1))
        value = f"e{i}"
        nodes += [] if last else [helper.make_node("Elu", [out], [value])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
        for name, width in (("actor_obs", widths[0]), ("action", widths[-1]))
    ]
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    metadata = {
        "dof_names": list(robot.joint_names),
        "kp": robot.stand_stiffness.tolist(),
        "kd": robot.stand_damping.tolist(),
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    theirs, ours = folder / "made.onnx", folder / "made.plexus.onnx"
    onnx.save(model, theirs)
    write_policy(ours, *import_policy(theirs, robot, name="made"))
    return ours
