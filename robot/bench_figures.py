"""What a bench makes of its samples: sides in turns, rows with the ratio and how sure it is.

Knows nothing of what is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from robot.bench_floor import Samples
from robot.config import UserError

SLOT_S = 0.6  # of one side; stopped for 1 s, control would take it for a gap in time
SHORTEST_SLOT_S = 0.3
BOOTSTRAPS = 1000

Pair = tuple[Samples, Samples]  # floor, ours


@dataclass(frozen=True)
class Row:
    """One line of the result; `extra` becomes keys of their own."""

    name: str
    unit: str
    floor: float
    ours: float
    ratio: float
    note: str
    rounds: int
    ci: tuple[float, float]  # 95 % of the ratio
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        row = asdict(self)
        return row | row.pop("extra")


def take_turns(
    seconds: float, floor: Callable[[float], Samples], ours: Callable[[float], Samples]
) -> list[Pair]:
    """Both sides in rounds of random order."""
    rounds = max(1, int(seconds / (2.0 * SLOT_S)))
    length = max(SHORTEST_SLOT_S, seconds / (2.0 * rounds))
    pairs: list[Pair] = []
    for _ in range(rounds):
        if random.random() < 0.5:
            first = floor(length)
            pairs.append((first, ours(length)))
        else:
            first = ours(length)
            pairs.append((floor(length), first))
    return pairs


def make_row(name: str, pairs: list[Pair], note: str, **extra: Any) -> Row:
    """Median of the rounds' medians on both sides, and how sure their ratio is.

    Raises:
        UserError: one side measured nothing.
    """
    pairs = [(floor, ours) for floor, ours in pairs if len(floor.us) and len(ours.us)]
    if not pairs:
        raise UserError(f"bench: {name} measured nothing; give it more --seconds")
    medians = np.array([[np.median(floor.us), np.median(ours.us)] for floor, ours in pairs])
    floor, ours = (round(float(p50), 3) for p50 in np.median(medians, axis=0))
    tails = {
        "p99": spread(np.concatenate([ours.us for _, ours in pairs]))["p99"],
        "floor_p99": spread(np.concatenate([floor.us for floor, _ in pairs]))["p99"],
    }
    ratio, interval = ours / floor, bootstrap(medians)
    return Row(name, "us", floor, ours, ratio, note, len(pairs), interval, tails | extra)


def bootstrap(medians: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the ratio, drawing whole rounds: what is near in time is alike.

    Args:
        medians: (rounds, 2) of floor and ours.
    """
    rng = np.random.default_rng(0)
    picked = rng.integers(len(medians), size=(BOOTSTRAPS, len(medians)))
    middle = np.median(medians[picked], axis=1)  # (BOOTSTRAPS, 2)
    low, high = np.percentile(middle[:, 1] / middle[:, 0], [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def more(pairs: list[Pair]) -> dict[str, Any]:
    """By how many us ours is above the floor, round by round (95 %).

    Where the floor is next to nothing, a ratio tells of the machine.
    """
    medians = [(np.median(f.us), np.median(o.us)) for f, o in pairs if len(f.us) and len(o.us)]
    above = np.diff(np.array(medians).reshape(-1, 2), axis=1)[:, 0]
    if len(above) < 2:
        return {}
    rng = np.random.default_rng(0)
    middle = np.median(above[rng.integers(len(above), size=(BOOTSTRAPS, len(above)))], axis=1)
    low, high = np.percentile(middle, [2.5, 97.5])
    told = round(float(np.median(above)), 1)
    return {"more_us": told, "more_us_ci": (round(float(low), 1), round(float(high), 1))}


def spread(us: NDArray[np.float64]) -> dict[str, float]:
    """Percentiles of a series, empty for an empty one."""
    points = {"p50": 50.0, "p99": 99.0, "max": 100.0}
    return {k: round(float(np.percentile(us, q)), 1) for k, q in points.items()} if len(us) else {}


def skips(pairs: list[Pair]) -> dict[str, Any]:
    """Executed ticks and skipped periods of both sides, and how their shares differ (95 %)."""
    floor, ours = zip(*pairs, strict=True) if pairs else ((), ())
    counts = {
        "floor_ticks": sum(len(s.us) for s in floor),
        "floor_skipped": sum(s.skipped for s in floor),
        "ours_ticks": sum(len(s.us) for s in ours),
        "ours_skipped": sum(s.skipped for s in ours),
    }
    shares = np.array([[s.skipped / max(1, len(s.us) + s.skipped) for s in p] for p in pairs])
    if len(shares) < 2:
        return counts
    more = shares[:, 1] - shares[:, 0]
    rng = np.random.default_rng(0)
    means = more[rng.integers(len(more), size=(BOOTSTRAPS, len(more)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return counts | {"more_skipped_ci": (round(float(low), 4), round(float(high), 4))}


def print_rows(rows: list[Row]) -> None:
    """A table, and a note on each row."""
    table = Table("row", "floor", "ours", "ratio", "95 %", "ours p99", "rounds")
    for row in rows:
        table.add_row(
            row.name, f"{row.floor:.1f} {row.unit}", f"{row.ours:.1f} {row.unit}",
            f"{row.ratio:.2f}", f"{row.ci[0]:.2f} to {row.ci[1]:.2f}",
            f"{row.extra['p99']:.0f} {row.unit}", str(row.rounds),
        )  # fmt: skip
    Console().print(table)
    for row in rows:
        above = row.extra.get("more_us_ci")
        told = f"; {above[0]:g} to {above[1]:g} us above it" if above else ""
        print(f"{row.name}: {row.note}{told}")
