"""Tells of labels from hindsight how far the online map was off, for people and as plain data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sim2real.hindsight import FloatArray, Labels
from sim2real.mount import ERRORS, told

NEWEST_S = 0.05  # s; seen so short before the newest frame counts as seen in it
UNSEEN_S = 0.02  # s after a map's beginning
AGES_S = (0.5, 2.0)  # borders of the ages of what is remembered


def figures(labels: Labels, maps: NDArray[Any]) -> dict[str, Any]:
    """How far the online map was off what hindsight knows.

    Args:
        labels: of the log.
        maps: its height_map records.

    Returns:
        maps, shut (share of maps that were flat), known (share of the cells that hindsight knows),
        cells by when the map had seen them last, and footholds: n, mean absolute error, its 95th
        percentile and the mean (map above ground), in m; mount: by ERRORS, value and std.
    """
    records = maps[labels.rows]
    shut = records["gate"] != 0
    error = labels.height - records["height"]  # of the map above the ground
    feet = labels.footholds
    there = np.isfinite(feet.error)
    groups = {
        name: spread(error[labels.known & ~shut[:, None] & mask])
        for name, mask in {"all": True, **_ages(records)}.items()
    }
    groups["flat, gate shut"] = spread(error[labels.known & shut[:, None]])
    return {
        "maps": len(records),
        "shut": float(shut.mean()),
        "known": float(labels.known.mean()),
        "cells": groups,
        "footholds": {
            "all": spread(feet.error[there & ~feet.gate]),
            "flat, gate shut": spread(feet.error[there & feet.gate]),
        },
        "mount": {
            name: {"value": value, "std": std}
            for name, value, std in zip(
                ERRORS, labels.mount.value.tolist(), labels.mount.std.tolist(), strict=True
            )
        },
    }


def show(found: dict[str, Any], labels: Labels) -> None:
    """Print what `figures` found."""
    table = Table("", "n", "mean, cm", "95 %, cm", "bias, cm", title="online map against hindsight")
    for kind in ("cells", "footholds"):
        for name, row in found[kind].items():
            if row["n"]:
                numbers = (f"{100 * row[key]:.1f}" for key in ("mean", "p95", "bias"))
                table.add_row(f"{kind}: {name}", str(row["n"]), *numbers)
    Console().print(table)
    print(
        f"{found['maps']} maps, {found['shut']:.0%} of them flat as the gate was shut; hindsight "
        f"knows {found['known']:.0%} of their cells"
    )
    print(told(labels.mount))


def _ages(records: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """(n, 187) masks by when each cell had been seen last."""
    age, newest = records["cell_age"], records["age_ms"][:, None] * 1e-3
    now_s = records["now_ns"][:, None] * 1e-9
    began = np.zeros_like(now_s)
    for instance in np.unique(records["state_instance"]):
        of = records["state_instance"] == instance
        began[of] = (now_s[of] - age[of]).min()
    unseen = now_s - age < began + UNSEEN_S
    visible = ~unseen & (age < newest + NEWEST_S)
    masks, rest = {"in the newest frame": visible}, ~unseen & ~visible
    for low, high in zip((0.0, *AGES_S), (*AGES_S, math.inf), strict=True):
        name = f"seen up to {high:g} s ago" if math.isfinite(high) else "seen longer ago"
        masks[name] = rest & (age >= low) & (age < high)
    return masks | {"never seen": unseen}


def spread(error: FloatArray) -> dict[str, Any]:
    """Number, mean absolute value, 95th percentile of it, and mean; null where there are none."""
    if not len(error):
        return {"n": 0, "mean": None, "p95": None, "bias": None}
    off = np.abs(error)
    return {
        "n": len(error),
        "mean": float(off.mean()),
        "p95": float(np.percentile(off, 95)),
        "bias": float(error.mean()),
    }
