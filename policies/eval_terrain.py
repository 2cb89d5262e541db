"""Judges policies on uneven ground: what each must cross, how many arrive, how often they fall.

Every policy meets the same pieces of ground with the same draws of the robot, in difficulties that
the families of robot/terrain.py measure in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.crossing import LENGTH, SLOWEST, SPEED, TURN_MOST, Crossing, cross
from policies.evaluate import Engine, Figure, Result, plain, ranges_of, share, share_out, versions
from policies.manifest import PolicyFile
from policies.session import PolicySession
from policies.sight import BLIND, Eyes
from policies.trials import HELD_OUT_SEED, Trial, load_policy
from robot.config import UserError, listing
from robot.model import load_robot
from robot.runs import TerrainConfig
from robot.terrain import FAMILIES, size_of

HELD_OUT = "held-out"  # stands for all families that nothing is trained on
SHARES = (0.5, 1.0, 1.5)  # of a family's usual difficulty, where none is asked for


@dataclass(frozen=True)
class Ground:
    """Pieces of ground of one kind."""

    family: str
    difficulty: float
    """m"""


@dataclass(frozen=True)
class Plan:
    """How much is crossed."""

    grounds: tuple[Ground, ...]
    seeds: int
    """pieces of each ground, each with a robot of its own"""
    first_seed: int = HELD_OUT_SEED
    length: float = LENGTH
    """m to walk, the first of them flat"""
    eyes: tuple[Eyes, ...] = ("true",)
    """what a policy that reads a height scan sees by, one column each; a blind one has one"""


@dataclass(frozen=True)
class Score:
    """How a policy did on one ground, or on all."""

    arrived: Figure
    """share that walked the whole length in time without a fall, %"""
    falls: Figure
    """per 100 m walked"""
    walked: float
    """m, of all crossings together"""


@dataclass(frozen=True)
class Column:
    """One policy with one kind of eyes, and what it did."""

    name: str
    sha256: str
    eyes: str
    """what it saw by, or "blind" """
    speed: float
    """m/s that it was asked for"""
    scores: list[Score]
    """by the plan's grounds"""
    overall: Score
    crossings: list[dict[str, Any]]
    """each: family, difficulty (m), seed, and its numbers"""


@dataclass(frozen=True)
class Table:
    """What came out."""

    columns: list[Column]
    plan: Plan
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain(asdict(self))


def grounds_of(names: Sequence[str], difficulties: Sequence[float] = ()) -> tuple[Ground, ...]:
    """What is named, in the difficulties asked for, or three of each family's own.

    Args:
        names: families, or "held-out" for all of those.
        difficulties: m.

    Raises:
        UserError: no such family, or a difficulty that one of them does not have.
    """
    families: list[str] = []
    for name in names:
        if name == HELD_OUT:
            families += [key for key, family in FAMILIES.items() if family.held_out]
        elif name in FAMILIES:
            families.append(name)
        else:
            known = listing([HELD_OUT, *FAMILIES])
            raise UserError(f"terrain {name!r} is unknown; available: {known}")
    grounds = []
    for name in dict.fromkeys(families):
        family = FAMILIES[name]
        own = {min(max(part * family.usual, family.easy), family.hard) for part in SHARES}
        for size in difficulties or sorted(own):
            grounds.append(Ground(name, round(size_of(name, size), 6)))
    return tuple(grounds)


def evaluate_terrain(
    policies: Sequence[Path],
    plan: Plan,
    robot: str = "g1",
    jobs: int = 1,
    engine: Engine = "processes",
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Let policies cross; arguments as of policies.evaluate.evaluate.

    Raises:
        UserError: no policy or ground, one that cannot be read, or that does not walk forward.
    """
    if not policies or not plan.grounds or min(plan.seeds, jobs) < 1:
        raise UserError(
            f"got {len(policies)} policies, {len(plan.grounds)} kinds of ground, {plan.seeds} "
            f"seeds and {jobs} jobs; expected at least 1 of each"
        )
    paths = [path.absolute() for path in policies]
    files = [load_policy(path, load_robot(robot)) for path in paths]
    seeing = [
        (file, path, eyes)
        for file, path in zip(files, paths, strict=True)
        for eyes in (plan.eyes if PolicySession(file).reads_height_scan else (BLIND,))
    ]
    work = [
        crossing
        for file, path, eyes in seeing
        for crossing in plan_crossings(file, path, robot, plan, eyes)
    ]
    results: list[Result] = []
    for result in share_out(work, jobs, engine, cross):
        results.append(result)
        if progress:
            progress(len(results), len(work))
    each = len(work) // len(seeing)
    columns = [
        _column(file, work[at : at + each], results[at : at + each], plan)
        for (file, _, _), at in zip(seeing, range(0, len(work), each), strict=True)
    ]
    return Table(columns, plan, versions())


def plan_crossings(
    policy: PolicyFile, path: Path, robot: str, plan: Plan, eyes: str = BLIND
) -> list[Crossing]:
    """All crossings of one policy, ground by ground; seeds do not depend on the policy."""
    ranges = ranges_of(policy)
    speed = min(SPEED, ranges["vx"][1])
    if speed <= 0.0:
        raise UserError(f"{path}: got vx up to {speed:g} m/s, expected a policy that walks forward")
    turn_most = max(0.0, min(TURN_MOST, ranges["yaw"][1], -ranges["yaw"][0]))
    seconds = plan.length / (SLOWEST * speed)
    return [
        Crossing(
            Trial(
                path, robot, ground.family, (ground.difficulty, 0.0, 0.0), seed, seconds,
                terrain=TerrainConfig(
                    name=ground.family, seed=seed, difficulty=ground.difficulty or None
                ),
            ),
            speed, turn_most, plan.length, eyes,
        )
        for ground in plan.grounds
        for seed in range(plan.first_seed, plan.first_seed + plan.seeds)
    ]  # fmt: skip


def _column(policy: PolicyFile, work: list[Crossing], results: list[Result], plan: Plan) -> Column:
    crossings = [
        {"family": c.trial.group, "difficulty": c.trial.cell[0], "seed": c.trial.seed, **r}
        for c, r in zip(work, results, strict=True)
    ]
    n = plan.seeds
    scores = [score(results[at : at + n]) for at in range(0, len(results), n)]
    name, first = policy.manifest.name, work[0]
    return Column(name, policy.sha256, first.eyes, first.speed, scores, score(results), crossings)


def score(results: Sequence[Result]) -> Score:
    """Of some crossings."""
    walked = sum(r["walked"] for r in results)
    falls = round(sum(r["fell"] for r in results))
    return Score(share([r["arrived"] for r in results]), per_100_m(falls, walked), walked)


def per_100_m(count: int, metres: float) -> Figure:
    """A rate with the score interval of Poisson's distribution, Wilson's for counts."""
    if metres <= 0.0:
        return Figure(math.nan, math.nan, math.nan, 0)
    z = 1.96
    middle, half = count + z * z / 2, z * math.sqrt(count + z * z / 4)
    low, high = max(0.0, middle - half), middle + half
    return Figure(100 * count / metres, 100 * low / metres, 100 * high / metres, count)


# --- what is shown ------------------------------------------------------------------------------


def lines(table: Table) -> list[list[str]]:
    """The table as text: a heading, one line for each ground, and one for all of them."""
    out = [["ground", *map(_title, table.columns)]]
    for at, ground in enumerate(table.plan.grounds):
        scores = [column.scores[at] for column in table.columns]
        out.append([f"{ground.family}, {100 * ground.difficulty:g} cm", *map(_text, scores)])
    out.append(["all of them", *(_text(column.overall) for column in table.columns)])
    return out


def _title(column: Column) -> str:
    return column.name if column.eyes == BLIND else f"{column.name}, eyes {column.eyes}"


def _text(found: Score) -> str:
    arrived, falls = found.arrived, found.falls
    return (
        f"{arrived.value:.0f} % ({arrived.low:.0f} to {arrived.high:.0f}); "
        f"{falls.value:.1f} ({falls.low:.1f} to {falls.high:.1f})"
    )


def about(table: Table) -> str:
    """How it was done, in two sentences."""
    plan, speeds = table.plan, sorted({column.speed for column in table.columns})
    first, last = plan.first_seed, plan.first_seed + plan.seeds - 1
    asked = " or ".join(f"{speed:g}" for speed in speeds)
    return (
        f"Share that walked {plan.length:g} m without a fall in twice the time that the asked "
        f"{asked} m/s takes; falls per 100 m walked; 95 % intervals (Wilson, Poisson). "
        f"{plan.seeds} pieces of each ground, seeds {first} to {last}, held out from training; "
        f"safety filter on, no gantry; "
        f"{', '.join(f'{name} {version}' for name, version in table.versions.items())}."
    )


def markdown(table: Table) -> str:
    """The table in Markdown."""
    head, *rest = [f"| {' | '.join(cells)} |" for cells in lines(table)]
    return "\n".join([head, "|---" * (1 + len(table.columns)) + "|", *rest, "", about(table), ""])
