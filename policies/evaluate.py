"""Judges policies with one table: the trials that are run, what is counted, how sure it is.

Independent of training on purpose: it imports nothing that trains. Every policy meets the same
trials with the same seeds, each inside its own command range. Processes or a Ray cluster only
share out the work; the numbers do not depend on who did it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from policies.manifest import (
    PolicyFile,
    is_ours,
    parse_onnx,
    parse_policy,
    read_bytes,
    write_policy,
)
from policies.trials import (
    HELD_OUT_SEED,
    Search,
    Trial,
    Velocity,
    load_policy,
    robot_mass,
    run,
)
from robot.config import UserError
from robot.model import load_robot
from robot.realtime import die_with_parent

Work = Trial | Search
Result = dict[str, float]
Engine = Literal["processes", "ray"]

GRAVITY = 9.81  # m/s^2
GRID = tuple(
    (vx, vy, yaw)
    for vx in (-0.5, 0.0, 0.5, 1.0)
    for vy in (-0.3, 0.0, 0.3)
    for yaw in (-0.5, 0.0, 0.5)
)
# As shares of the policy's own range: 1 is the highest, -1 the lowest, 0 is zero.
EXTREMES = (
    (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1),
    (1, 0, 1), (1, 0, -1), (-1, 0, 1), (-1, 0, -1), (1, 1, 0), (1, -1, 0),
)  # fmt: skip
REVERSALS = tuple(
    tuple(sign * part for part in axis)
    for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)) for sign in (1, -1)
)  # fmt: skip
STEP_TRIALS = 8
REVERSE_EVERY_S, STEP_EVERY_S = 2.5, 2.0
DIRECTIONS = 8
PUSH_LEVELS = tuple(5.0 * i for i in range(1, 32))  # N s
PAYLOAD_LEVELS = tuple(1.0 * i for i in range(1, 16))  # kg in both hands together
DELAY_LEVELS = tuple(4.0 * i for i in range(1, 13))  # ms
PUSH_AFTER_S, PUSH_WATCH_S, TOLERANCE_S = (1.0, 2.0), 3.0, 6.0  # drawn; after it; of the others
TOLERANCE_COMMAND = (0.5, 0.0, 0.0)  # payload and delay are borne while walking
COMMAND_GROUPS = ("grid", "extreme", "reversal", "step")
RESAMPLES = 2000
PACKAGES = ("plexus", "mujoco-core", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    seconds: float = 20.0
    """of an episode, after the settling"""
    rest: int = 8
    """episodes at zero command"""
    seeds: int = 5
    """draws of the world for each push direction, for payload and for delay"""
    first_seed: int = HELD_OUT_SEED
    quick: bool = False
    """a few short trials, to see that everything works; no judgement"""


QUICK = Plan(seconds=2.0, rest=1, seeds=1, quick=True)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    name: str
    unit: str
    better: Literal["higher", "lower"]
    digits: int = 2


ROWS = (
    Row("survival_rest", "survival at rest", "%", "higher", 0),
    Row("survival", "survival on the command grid", "%", "higher", 1),
    *(Row(f"survival_{g}", f"… {g} commands", "%", "higher", 0) for g in COMMAND_GROUPS),
    Row("error_vx", "tracking error vx", "m/s", "lower", 3),
    Row("worst_vx", "… worst cell", "m/s", "lower"),
    Row("error_vy", "tracking error vy", "m/s", "lower", 3),
    Row("worst_vy", "… worst cell", "m/s", "lower"),
    Row("error_yaw", "tracking error yaw", "rad/s", "lower", 3),
    Row("worst_yaw", "… worst cell", "rad/s", "lower"),
    Row("drift", "drift at zero command", "m/s", "lower", 3),
    Row("drift_yaw", "turning at zero command", "rad/s", "lower", 3),
    Row("push", "push that fells half, mean of directions", "N s", "higher", 0),
    Row("push_weakest", "… weakest direction", "N s", "higher", 0),
    Row("payload", "payload borne by half", "kg", "higher", 0),
    Row("delay", "delay borne by half", "ms", "higher", 0),
    Row("limit_time", "time at a joint limit", "%", "lower"),
    Row("torque_time", "time at a torque limit", "%", "lower"),
    Row("clip_time", "time bounded by the safety filter", "%", "lower"),
    Row("action_rate", "action rate, mean over joints", "rad/s", "lower"),
    Row("transport", "cost of transport", "1", "lower"),
    Row("slip", "speed of feet on the floor", "m/s", "lower", 3),
    Row("joint_speed", "joint speed at rest, rms", "rad/s", "lower", 3),
    Row("steps", "steps at rest", "1/min", "lower", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A number and the 95 % interval of it."""

    value: float
    low: float
    high: float
    n: int
    bound: str = ""
    """"≥" or "≤" where the levels tried did not reach"""
    where: str = ""
    """the cell or direction it is from"""


@dataclass(frozen=True)
class Column:
    """One policy, and what it did."""

    name: str
    sha256: str
    ranges: dict[str, tuple[float, float]]
    figures: dict[str, Figure]
    cells: list[dict[str, Any]]
    """every trial of the command grid: group, cell, seed, and its numbers"""
    pushes: list[Figure]
    """by direction, from forward, anticlockwise"""


@dataclass(frozen=True)
class Table:
    """What came out."""

    columns: list[Column]
    plan: Plan
    seeds: tuple[int, int]
    """first and last, both used"""
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what could not be measured is null."""
        return plain(asdict(self))


def evaluate(
    policies: Sequence[Path],
    robot: str = "g1",
    plan: Plan | None = None,
    jobs: int = 1,
    engine: Engine = "processes",
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Judge policies.

    Args:
        policies: policy files, ours or those that can be imported.
        robot: name or robot.yaml.
        plan: how much.
        jobs: processes; the result is the same for any number.
        engine: who shares out the work.
        progress: called with pieces of work done and all of them.

    Raises:
        UserError: no policy, one that cannot be read, or Ray is not installed.
    """
    plan = plan or Plan()
    if not policies:
        raise UserError("nothing to judge: expected at least one policy file")
    if plan.seconds < 2.0 or min(plan.rest, plan.seeds, jobs) < 1:
        raise UserError(
            f"got {plan.seconds:g} s, {plan.rest} rest episodes, {plan.seeds} seeds and {jobs} "
            "jobs; expected at least 2 s and 1 of each"
        )
    paths = [path.absolute() for path in policies]
    files = [load_policy(path, load_robot(robot)) for path in paths]
    plans = [plan_work(file, path, robot, plan) for file, path in zip(files, paths, strict=True)]
    work = [piece for pieces in plans for piece in pieces]
    results: list[Result] = []
    for result in share_out(work, jobs, engine):
        results.append(result)
        if progress:
            progress(len(results), len(work))
    remaining = iter(results)
    weight = robot_mass(load_robot(robot)) * GRAVITY
    columns = [
        column(file, [(piece, next(remaining)) for piece in pieces], weight)
        for file, pieces in zip(files, plans, strict=True)
    ]
    seeds = [(p if isinstance(p, Trial) else p.trial).seed for p in work]
    return Table(columns, plan, (min(seeds), max(seeds)), versions())


def ranges_of(policy: PolicyFile) -> dict[str, tuple[float, float]]:
    """What the policy may be commanded."""
    ranges = policy.manifest.command_ranges
    return {"vx": ranges.vx, "vy": ranges.vy, "yaw": ranges.yaw_rate}


def record(table: Table, path: Path) -> str:
    """Write a policy's own figures into the provenance of its manifest.

    Returns:
        One line: what was written, or that the file is another project's and stays as it is.

    Raises:
        UserError: the file has changed since it was judged.
    """
    data = read_bytes(path)
    model = parse_onnx(data, path)
    if not is_ours(model):
        return f"{path}: another project's file, nothing is written into it"
    policy = parse_policy(data, path)
    column = next((c for c in table.columns if c.sha256 == policy.sha256), None)
    if column is None:
        raise UserError(f"{path}: is not the file that was judged")
    figures = {
        f"eval_{row.key}": round(column.figures[row.key].value, row.digits + 1)
        for row in ROWS
        if math.isfinite(column.figures[row.key].value)
    }
    before = {k: v for k, v in policy.manifest.provenance.items() if not k.startswith("eval_")}
    seeds = f"{table.seeds[0]} to {table.seeds[1]}"
    manifest = policy.manifest.model_copy(
        update={"provenance": before | {"eval_seeds": seeds} | figures}
    )
    write_policy(path, model, manifest)
    return f"{path}: {len(figures)} figures written into its manifest"


# --- what is run --------------------------------------------------------------------------------


def plan_work(policy: PolicyFile, path: Path, robot: str, plan: Plan) -> list[Work]:
    """All trials of one policy; seeds do not depend on the policy, so that trials are paired."""
    ranges = list(ranges_of(policy).values())

    def clipped(velocity: Iterable[float]) -> Velocity:
        vx, vy, yaw = (
            float(min(max(part, low), high))
            for part, (low, high) in zip(velocity, ranges, strict=True)
        )
        return vx, vy, yaw

    def part_of(parts: Iterable[float]) -> Velocity:
        return clipped(
            p * (hi if p > 0 else -lo) for p, (lo, hi) in zip(parts, ranges, strict=True)
        )

    base = Trial(path, robot, "rest", (0.0, 0.0, 0.0), plan.first_seed, plan.seconds)
    walks: list[Trial] = []
    for cell in GRID:
        walks.append(replace(base, group="grid", cell=cell, script=((0.0, clipped(cell)),)))
    for cell in EXTREMES:
        walks.append(replace(base, group="extreme", cell=cell, script=((0.0, part_of(cell)),)))
    for cell in REVERSALS:
        turns = np.arange(0.0, plan.seconds, REVERSE_EVERY_S)
        script = tuple(
            (float(at), part_of((-1) ** i * part for part in cell)) for i, at in enumerate(turns)
        )
        walks.append(replace(base, group="reversal", cell=cell, script=script))
    for number in range(STEP_TRIALS):
        rng = np.random.default_rng([plan.first_seed, number])
        script = tuple(
            (float(at), part_of(rng.uniform(-1, 1, 3) * (rng.uniform() > 0.2)))
            for at in np.arange(0.0, plan.seconds, STEP_EVERY_S)
        )
        walks.append(replace(base, group="step", cell=(float(number), 0, 0), script=script))
    if plan.quick:
        walks = [walks[13], walks[22], walks[36], walks[48], walks[56]]
    walks = [replace(walk, seed=plan.first_seed + i) for i, walk in enumerate(walks)]
    rests = [replace(base, seed=plan.first_seed + 100 + i) for i in range(plan.rest)]
    return [*walks, *rests, *_searches(base, plan, clipped(TOLERANCE_COMMAND))]


def _searches(base: Trial, plan: Plan, walking: Velocity) -> Iterator[Search]:
    directions = (0, 2) if plan.quick else range(DIRECTIONS)
    thin = 6 if plan.quick else 1
    for number in range(plan.seeds):
        seed = plan.first_seed + 200 + number
        at = float(np.random.default_rng(seed).uniform(*PUSH_AFTER_S))
        for direction in directions:
            trial = replace(
                base, group="push", seed=seed, seconds=at + PUSH_WATCH_S, push_at=at,
                cell=(float(direction), 0, 0), push_angle=2 * math.pi * direction / DIRECTIONS,
            )  # fmt: skip
            yield Search(trial, "push_impulse", PUSH_LEVELS[::thin])
        walk = replace(base, cell=walking, script=((0.0, walking),), seed=seed, seconds=TOLERANCE_S)
        yield Search(replace(walk, group="payload"), "payload", PAYLOAD_LEVELS[::thin])
        yield Search(replace(walk, group="delay"), "delay_ms", DELAY_LEVELS[::thin])


def share_out(
    work: Sequence[Any], jobs: int, engine: Engine, do: Callable[[Any], Result] = run
) -> Iterator[Result]:
    """Results in the order of `work`; `do` is a function that other processes can import."""
    if engine == "ray":
        yield from _on_ray(work, do)
    elif jobs == 1:
        yield from map(do, work)
    else:
        context = multiprocessing.get_context("spawn")  # ONNX Runtime's threads do not survive fork
        ends = signal.SIGKILL, os.getpid()  # with us, also where we are killed
        pool = ProcessPoolExecutor(min(jobs, len(work)), context, die_with_parent, ends)
        try:
            yield from pool.map(do, work)
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(work: Sequence[Any], do: Callable[[Any], Result]) -> Iterator[Result]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            '--engine ray: the package ray is not installed; get it with "pip install '
            'plexus[scale]", or use --jobs N'
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(do)
    for handle in [task.remote(piece) for piece in work]:
        yield ray.get(handle)


# --- what is counted ----------------------------------------------------------------------------


def column(policy: PolicyFile, done: list[tuple[Work, Result]], weight: float) -> Column:
    """Everything about one policy.

    Args:
        policy: name, hash, ranges.
        done: its work with results.
        weight: of the robot, N.
    """
    walks = [(w, r) for w, r in done if isinstance(w, Trial) and w.group in COMMAND_GROUPS]
    rests = [r for w, r in done if isinstance(w, Trial) and w.group == "rest"]
    grid = [(w, r) for w, r in walks if w.group == "grid"]
    figures = {"survival_rest": survival(rests), "survival": survival([r for _, r in walks])}
    for group in COMMAND_GROUPS:
        figures[f"survival_{group}"] = survival([r for w, r in walks if w.group == group])
    for axis in ("vx", "vy", "yaw"):
        errors = [r[f"error_{axis}"] for _, r in grid]
        at = int(np.argmax(errors))
        figures[f"error_{axis}"] = mean(errors)
        where = "vx {:g}, vy {:g}, yaw {:g}".format(*grid[at][0].script[0][1])
        figures[f"worst_{axis}"] = Figure(errors[at], errors[at], errors[at], 1, where=where)
    for key in ("limit_time", "torque_time", "clip_time"):
        figures[key] = mean([100.0 * r[key] for _, r in walks if key in r])
    for key in ("action_rate", "slip"):
        figures[key] = mean([r[key] for _, r in walks if key in r])
    for key in ("drift", "drift_yaw", "joint_speed"):
        figures[key] = mean([r[key] for r in rests if key in r])
    figures["steps"] = mean([60.0 * r["steps"] / r["survived_s"] for r in rests if "steps" in r])
    moved = [r for w, r in grid if abs(w.script[0][1][0]) >= 0.3 and r.get("distance", 0.0) > 0.5]
    figures["transport"] = mean([r["work"] / (weight * r["distance"]) for r in moved])
    pushes = [half(_felling(done, d), _most(done, "push")) for d in range(DIRECTIONS)]
    pushed = [push for push in pushes if push.n]
    weakest = min(pushed, key=lambda push: push.value)
    angle = 360 * pushes.index(weakest) // DIRECTIONS
    figures["push_weakest"] = replace(weakest, where=f"{angle}°")
    figures["push"] = _mean_push(done)
    figures["payload"] = half(_borne(done, "payload"), _most(done, "payload"))
    figures["delay"] = half(_borne(done, "delay"), _most(done, "delay"))
    cells = [
        {"group": w.group, "cell": w.cell, "command": w.script[0][1], "seed": w.seed, **r}
        for w, r in walks
    ]
    return Column(policy.manifest.name, policy.sha256, ranges_of(policy), figures, cells, pushes)


def survival(results: Sequence[Result]) -> Figure:
    """Share of episodes without a fall, in %, with Wilson's interval."""
    return share([1.0 - r["fell"] for r in results])


def share(happened: Sequence[float]) -> Figure:
    """Share of ones among ones and zeros, in %, with Wilson's interval."""
    n = len(happened)
    if not n:
        return Figure(math.nan, math.nan, math.nan, 0)
    p, z = sum(happened) / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Figure(100 * p, 100 * low, 100 * high, n)


def mean(values: Sequence[float]) -> Figure:
    """Mean of the finite values, with the bootstrap's interval."""
    return _bootstrap([value for value in values if math.isfinite(value)], np.mean)


def _bootstrap(values: Sequence[float], statistic: Callable[..., Any]) -> Figure:
    if not values:
        return Figure(math.nan, math.nan, math.nan, 0)
    rng, given = np.random.default_rng(len(values)), np.asarray(values)
    drawn = given[rng.integers(0, len(given), (RESAMPLES, len(given)))]
    low, high = np.percentile(statistic(drawn, axis=1), (2.5, 97.5))
    return Figure(float(statistic(given)), float(low), float(high), len(values))


def _felling(done: list[tuple[Work, Result]], direction: int) -> list[float]:
    """Of each draw: the weakest push tried that felled it, N s; the strongest if none did."""
    return [
        work.levels[min(int(result["first"]), len(work.levels) - 1)]
        for work, result in done
        if isinstance(work, Search)
        and work.trial.group == "push"
        and work.trial.cell[0] == direction
    ]


def _borne(done: list[tuple[Work, Result]], group: str) -> list[float]:
    """Of each draw: the level below the first that felled it; 0 if the first did."""
    return [
        (0.0, *work.levels)[int(result["first"])]
        for work, result in done
        if isinstance(work, Search) and work.trial.group == group
    ]


def _most(done: list[tuple[Work, Result]], group: str) -> float:
    """The strongest level that was tried."""
    searches = [w for w, _ in done if isinstance(w, Search) and w.trial.group == group]
    return max(level for search in searches for level in search.levels)


def half(values: Sequence[float], most: float) -> Figure:
    """Median over draws; "≥" where it is the most that was tried.

    With an even number the lower of the two middle draws counts, so that it is a level tried.
    """
    figure = _bootstrap(values, _lower_median)
    return replace(figure, bound="≥") if values and figure.value >= most else figure


def _lower_median(values: Any, axis: int = 0) -> Any:
    values = np.asarray(values)
    return np.take(np.sort(values, axis=axis), (values.shape[axis] - 1) // 2, axis=axis)


def _mean_push(done: list[tuple[Work, Result]]) -> Figure:
    """Mean over directions of the median over draws; draws are resampled."""
    rows = [_felling(done, direction) for direction in range(DIRECTIONS)]
    table = np.array([row for row in rows if row])  # (directions, draws)

    def over(drawn: Any, axis: int = 0) -> Any:  # of draws' numbers
        return _lower_median(table[:, drawn], axis=axis + 1).mean(axis=0)

    count = table.shape[1]
    found = _bootstrap(list(range(count)), lambda d, axis=0: over(np.asarray(d, int), axis))
    return replace(found, n=table.size)


def plain(value: Any) -> Any:
    """For JSON; a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
