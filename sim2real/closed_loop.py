"""The whole runtime in simulation from a logged moment on, with the old or a new policy: level R4.

Physics, control and policy begin as the log left them and hear the operator of the log. From there
on noise and contacts are new, so outcomes are compared, never trajectories.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot.config import UserError
from robot.control import Control, tick
from robot.log import Log
from robot.log_writer import open_log
from robot.messages import Codec, Message, Mode, Snapshot
from robot.model import Robot, load_robot
from robot.modes import WALKING
from robot.pilot import Pilot, load_pilot
from robot.runs import RunConfig
from robot.summary import Summary
from robot.topics import OPERATOR_TOPICS, make_codecs
from sim2real.lockstep import Lockstep, LockstepOptions
from sim2real.motion import Motion, start_noise
from sim2real.open_loop import begin_row
from sim2real.replay import (
    CONTROL_OUTPUTS,
    Comparer,
    ControlReplay,
    LoggedRun,
    Rows,
    StageResult,
    setup_of,
)
from sim2real.resimulate import LoggedRobot
from sim2real.shadow import Answers

REPEATS = 3  # runs, each with its own noise
Said = tuple[int, str, Message]  # ns, topic, what an operator said


class Resumed(Lockstep):
    """Lockstep that begins in the middle and hears the operators of a log.

    Args:
        run: the run's configuration.
        pilot: remembers what it must.
        driver: the robot in its state.
        control: as it was before the first tick.
        now_ns: time of that tick.
        said: operators' messages from then on.
        options: of lockstep.
    """

    def __init__(
        self,
        run: RunConfig,
        pilot: Pilot,
        driver: LoggedRobot,
        control: Control,
        now_ns: int,
        said: list[Said],
        options: LockstepOptions,
    ) -> None:
        super().__init__(run, pilot, None, options, driver, driver.robot)
        self.control, self.now_ns, self.operator_present = control, now_ns, False
        self._said = deque(said)
        # Control obeys nobody but the pilot that it obeyed before: ours takes its place.
        control.target.instance = self._outboxes["target"].instance

    def step(self) -> None:
        """One control tick, after what operators said by then."""
        while self._said and self._said[0][0] <= self.now_ns:
            _, topic, message = self._said.popleft()
            self.post(topic, message)
        super().step()


def closed_loop(
    log: Log,
    folder: Path,
    from_s: float | None = None,
    policy: Path | None = None,
    seconds: float = 10.0,
    robot: Path | None = None,
    repeats: int = REPEATS,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Level R4: how does it end in simulation?

    Args:
        log: of a run with a policy.
        folder: scratch, for what the log has attached and for logs of the runs.
        from_s: s since the start of the log; None: where a policy first moves the robot.
        policy: another policy file than the log's.
        seconds: to run, at most as long as the log goes on.
        robot: another robot.yaml than the log's; control and physics use it.
        repeats: runs, each with its own sensor noise and, after the first, its own start.
        keep: a folder in which the logs of the runs stay, to be looked at.

    Returns:
        Outcome of the log from that moment on and of each run (fell or not, velocity, tracking,
        power), `series` of base height, and `notes`.

    Raises:
        UserError: the log holds too little, or no policy moved the robot at that moment.
    """
    run, own = setup_of(log, folder)
    if run.driver == "loopback":
        raise UserError(f"{log.path}: the loopback driver has no physics to run in")
    if policy is None and not log.policies:
        raise UserError(f"{log.path}: holds no policy file; name one with --policy")
    motion = Motion(log, run, own)
    row = begin_row(motion, from_s)
    if motion.mode[row] not in WALKING:
        raise UserError(
            f"{log.path}: at {motion.times_s[row]:.2f} s the mode was {motion.mode_name(row)}; "
            "expected a time in POLICY or HOLD"
        )
    used = load_robot(robot) if robot else own
    begin_s = float(motion.times_s[row])
    seconds = min(seconds, float(motion.times_s[-1]) - begin_s)
    if seconds < 0.1:
        raise UserError(f"{log.path}: ends less than 0.1 s after {begin_s:.2f} s")
    chosen = run.model_copy(update={"policy": policy or policy_at(motion, row, folder)})
    results = [
        _run_once(
            motion, chosen, used, row, seconds, repeat, policy is None, keep or folder / "again"
        )
        for repeat in range(repeats)
    ]
    codecs = make_codecs(own)
    logged = outcome(log, codecs, (begin_s, begin_s + seconds))
    result: dict[str, Any] = {
        "level": "R4", "log": str(log.path), "verdict": "done",
        "base": "truth" if motion.has_truth else "imu and feet",
        "from_s": begin_s, "seconds": seconds, "mode": motion.mode_name(row),
        "policy": str(policy) if policy else "the log's own",
        "logged": logged, "simulated": results,
    }  # fmt: skip
    kept = [f"logs of the runs: {keep}"] if keep else []
    result["notes"] = [*_notes(result), *kept, *motion.notes, *log.damage]
    return result


def policy_at(motion: Motion, row: int, folder: Path) -> Path:
    """File of the policy whose targets were in force at a row, unpacked in `folder`.

    Raises:
        UserError: the log lacks that file.
    """
    log = motion.log
    targets = Rows(log, "target", make_codecs(motion.robot)["target"])
    last = int(np.searchsorted(targets.stamps, motion.states["stamp_ns"][row], "right")) - 1
    which = int(targets.records["policy_id"][last]) if last >= 0 else 0
    if which not in log.policies:
        raise UserError(
            f"{log.path}: lacks the file of policy {which:016x}, which ran at "
            f"{motion.times_s[row]:.2f} s; name one with --policy"
        )
    return folder / log.policies[which]


def _run_once(
    motion: Motion,
    run: RunConfig,
    robot: Robot,
    row: int,
    seconds: float,
    repeat: int,
    own_policy: bool,
    folder: Path,
) -> dict[str, Any]:
    """Run from a row on into a log of its own; its outcome."""
    log, codecs = motion.log, make_codecs(robot)
    now_ns = int(motion.states["stamp_ns"][row])
    name = f"{run.name or 'run'}-again-{repeat}"
    settings = run.log.model_copy(update={"folder": folder})
    run = run.model_copy(update={"seed": run.seed + 1 + repeat, "name": name, "log": settings})
    driver = LoggedRobot(motion, robot, run, run.seed)
    rng = np.random.default_rng(repeat) if repeat else None
    driver.resume(row, *motion.state(row, rng, start_noise(run)))
    control, notes = control_before(motion, run, robot, row)
    pilot = pilot_before(motion, run, robot, now_ns, own_policy)
    offset_ns = int(log.metadata.get("clock_offset_ns", 0))
    writer = open_log(run, robot, codecs, now_ns=now_ns, epoch_ns=now_ns + offset_ns)
    options = LockstepOptions(stream=False, log=writer)
    lockstep = Resumed(run, pilot, driver, control, now_ns, operators(log, codecs, now_ns), options)
    lockstep.run_for(seconds)
    writer.close("done")
    return outcome(Log(writer.folder), codecs) | {"notes": notes}


def control_before(
    motion: Motion, run: RunConfig, robot: Robot, row: int
) -> tuple[Control, list[str]]:
    """Control as it was before the tick of `row`: from a snapshot on, run again over the log.

    Raises:
        UserError: the log lacks something on the way, or another version wrote it.
    """
    replay = ControlReplay(motion.log, run, robot)
    now_ns, number = int(motion.states["stamp_ns"][row]), int(motion.states["tick"][row])
    span = next(span for span in replay.spans() if span[0] <= now_ns < span[1])
    logged = LoggedRun(motion.log, replay.topics, span, replay.sent)
    result = StageResult("control")
    comparers = {
        name: Comparer(replay.topics[name], logged.orders[name], result, robot)
        for name in CONTROL_OUTPUTS
    }
    logged.send_to = lambda topic, message, stamp_ns: (
        comparers[topic].meet(message, 0, stamp_ns, 0.0) if topic in comparers else 0
    )
    control, done = Control(robot, replay.codecs, run.period_ns, run.timing_factor), 0
    before = [snapshot for snapshot in logged.snapshots if snapshot[0] < number]
    if before:
        done, at = before[-1]
        given: Snapshot = replay.topics["control_state"].message(at)
        control.recall(given, f"{motion.log.path}: control_state at step {done}")
        logged.resume(control)
        for comparer in comparers.values():
            comparer.begin(given.now_ns)
    for step in range(done + 1, number):
        if why := logged.prepare(step):
            raise UserError(
                f"{motion.log.path}: control cannot be brought to {motion.times_s[row]:.2f} s: "
                f"at tick {step} {why}; choose a time after the next whole second"
            )
        time_ns = logged.time_ns(step)
        control.note_late(logged.skipped)
        tick(control, logged, logged, lambda now=time_ns: now)
    notes = []
    if result.different:
        notes.append(f"control ran differently on the way to the start: {result.first}")
    return control, notes


def pilot_before(
    motion: Motion, run: RunConfig, robot: Robot, now_ns: int, own_policy: bool
) -> Pilot:
    """The pilot as it was, or would be after what the log's pilot was asked."""
    log, codecs = motion.log, make_codecs(robot)
    pilot, answers, after = load_pilot(run, robot), Answers(motion.log, codecs), -1
    if own_policy:
        states = Rows(log, "pilot_state", codecs["pilot_state"])
        times = answers.targets.records["now_ns"].tolist()
        row = int(np.searchsorted(states.records["now_ns"], now_ns)) - 1
        # A snapshot of the pilot before, of another policy perhaps, tells nothing of this one.
        last = int(np.searchsorted(times, now_ns)) - 1
        instances = np.array(answers.targets.instances)
        first = int((instances[: last + 1] != instances[last]).nonzero()[0].max(initial=-1)) + 1
        if row >= 0 and (taken := int(states.records["now_ns"][row])) in times[first:]:
            pilot.recall(states.message(row), f"{log.path}: pilot_state at {taken} ns")
            after = times.index(taken)
    for _ in answers.ask(pilot, now_ns - 1, after):
        pass
    return pilot


def operators(log: Log, codecs: dict[str, Codec], now_ns: int) -> list[Said]:
    """What operators said from a time on, each thing once."""
    said: dict[tuple[int, int], Said] = {}
    for topic in OPERATOR_TOPICS:
        rows = Rows(log, topic, codecs[topic])
        for row, stamp_ns in enumerate(rows.stamps):
            if stamp_ns >= now_ns:
                name = rows.instances[row], rows.seqs[row]
                said.setdefault(name, (stamp_ns, topic, rows.message(row)))
    return sorted(said.values(), key=lambda one: one[0])


def outcome(
    log: Log, codecs: dict[str, Codec], between: tuple[float, float] | None = None
) -> dict[str, Any]:
    """How a stretch of a log ended, in figures that mean the same in every run.

    Returns:
        `fell`, `modes`, `faults`; mean and commanded velocity (m/s, m/s, rad/s, heading frame) in
        POLICY, None without truth; joint tracking error (rad, RMS), mechanical power (W);
        `series` of base height (m) and tilt over time.
    """
    summary = Summary(1.0)
    topics = [name for name in ("status", "truth") if name in log.topics]
    buffers = {name: codecs[name].new() for name in topics}
    for topic, _, payload in log.messages(*topics, between=between):
        buffers[topic].payload[:] = payload
        summary.hear(buffers[topic])
    heard = summary.to_dict()
    commanded = log.read("policy_input", ["mode", "velocity"], between)
    commanded = commanded["velocity"][commanded["mode"] == Mode.POLICY]
    state = log.read("low_state", ["tick", "joint_pos", "joint_vel", "joint_effort"], between)
    sent = log.read("low_cmd", ["tick", "joint_pos_target"], between)
    _, here, there = np.intersect1d(state["tick"], sent["tick"], return_indices=True)
    error = sent["joint_pos_target"][there] - state["joint_pos"][here]
    power = np.abs(state["joint_effort"] * state["joint_vel"]).sum(axis=1)
    wish = commanded.mean(axis=0).tolist() if len(commanded) else None
    mean = heard["mean_velocity_b"]
    return {
        "fell": heard["fell"], "modes": heard["modes"], "faults": heard["faults"],
        "mean_velocity_b": mean, "commanded_velocity_b": wish,
        "velocity_error_b": np.subtract(mean, wish).tolist() if mean and wish else None,
        "joint_tracking_rms_rad": float(np.sqrt(np.mean(error**2))),
        "power_w": float(power.mean()), "series": _series(log, between),
    }  # fmt: skip


def _series(log: Log, between: tuple[float, float] | None) -> dict[str, list[float]]:
    if "truth" not in log.topics or not log.topics["truth"].count:
        return {"times_s": [], "height_m": []}
    truth = log.read("truth", ["sim_time_ns", "base_pos_w[2]"], between)
    times = (truth["sim_time_ns"] - truth["sim_time_ns"][:1]) * 1e-9
    return {"times_s": times.tolist(), "height_m": truth["base_pos_w[2]"].tolist()}


def _notes(result: dict[str, Any]) -> Iterator[str]:
    runs, logged = result["simulated"], result["logged"]
    fell = sum(run["fell"] for run in runs)
    yield (
        f"from {result['from_s']:.2f} s for {result['seconds']:.2f} s with the policy "
        f"{result['policy']}: {fell} of {len(runs)} runs fall; the robot of the log "
        f"{'fell' if logged['fell'] else 'did not fall'}"
    )
    if (mean := logged["mean_velocity_b"]) is not None:
        means = [run["mean_velocity_b"] for run in runs if run["mean_velocity_b"]]
        spread = (
            ", ".join(f"{low:.2f} to {high:.2f}" for low, high in zip(
                np.min(means, 0), np.max(means, 0), strict=True))
            if means else "unknown"
        )  # fmt: skip
        yield (
            f"mean velocity (m/s, m/s, rad/s): log {', '.join(f'{v:.2f}' for v in mean)}; "
            f"simulated {spread}"
        )
    powers = [run["power_w"] for run in runs]
    yield (
        f"mechanical power: log {logged['power_w']:.0f} W, simulated {min(powers):.0f} to "
        f"{max(powers):.0f} W"
    )
    yield from sorted({note for run in runs for note in run["notes"]})
