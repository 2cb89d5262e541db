"""Pictures of a training run: its curves as a PNG, and a contact sheet of the gait."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot.model import Robot, load_robot
from robot.terrain import FLAT

COLUMNS = 6  # frames beside each other on a contact sheet
FRAMES = 24
# title of a panel: what it draws, by the names of a row
PANELS: dict[str, tuple[str, ...]] = {
    "return of an episode": ("reward",),
    "length of an episode (steps)": ("episode_length",),
    "velocity error (m/s, rad/s)": ("error/vx", "error/vy", "error/yaw"),
    "score of the deterministic policy": ("score",),
    "learning rate": ("learning_rate",),
    "exploration (standard deviation)": ("std",),
    "losses": ("loss/value", "loss/surrogate"),
    "environment steps per second": ("steps_per_s",),
}
Row = dict[str, float]
Array = NDArray[np.float64]
Curve = Callable[[Array], Array]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` as CSV; columns are the union of their names, an absent value is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV that write_rows wrote."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def draw_curves(
    path: Path, rows: Sequence[Row], title: str = "", panels: dict[str, tuple[str, ...]] = PANELS
) -> None:
    """Draw panels, four in a line, over steps (below) and minutes (above) into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(panels) // 4)
    figure = Figure(figsize=(14, 3.5 * down), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(down, 4).flat
    for axes, (name, keys) in zip(places, panels.items(), strict=True):
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("million steps", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        for key in keys:
            known = [(row["steps"] / 1e6, row[key]) for row in rows if key in row]
            if known:
                axes.plot(
                    *zip(*known, strict=True),
                    label=key,
                    lw=1,
                    marker="." if len(known) < 30 else "",
                )
        if len(keys) > 1 and axes.lines:
            axes.legend(fontsize=7)
        if len(rows) > 1:
            above = axes.secondary_xaxis("top", functions=_minutes(rows))
            above.tick_params(labelsize=7)
            above.set_xlabel("minutes", fontsize=7)
    minutes = rows[-1].get("seconds", 0.0) / 60 if rows else 0.0
    figure.suptitle(f"{title}   {minutes:.1f} min" if rows else title, fontsize=10)
    figure.savefig(path, dpi=90)


def _minutes(rows: Sequence[Row]) -> tuple[Curve, Curve]:
    """Million steps to minutes of wall-clock time, and back."""
    steps = np.array([row["steps"] for row in rows]) / 1e6
    minutes = np.array([row["seconds"] for row in rows]) / 60

    def along(x: Array, a: Array, b: Array) -> Array:
        # beyond the ends, where margins of the plot lie, at the mean pace
        pace = (b[-1] - b[0]) / max(a[-1] - a[0], 1e-12)
        inside = np.interp(x, a, b)
        return inside + pace * (np.minimum(x - a[0], 0) + np.maximum(x - a[-1], 0))

    return lambda x: along(x, steps, minutes), lambda x: along(x, minutes, steps)


def contact_sheet(path: Path, robot: Robot, motion: NDArray[np.float64]) -> str:
    """Draw poses of `motion` beside each other into a PNG, in a process of its own.

    Args:
        path: the picture.
        robot: whose pose it is.
        motion: (frames, nq) qpos; FRAMES of them, evenly spread, are shown.

    Returns:
        One line: what was written, or why nothing was (no GL, no poses).
    """
    if not len(motion):
        return "not written: nothing was simulated"
    shown = motion[np.linspace(0, len(motion) - 1, min(FRAMES, len(motion))).round().astype(int)]
    poses = io.BytesIO()
    np.save(poses, shown)
    done = subprocess.run(
        [sys.executable, "-m", "policies.curves", str(robot.path), str(path.absolute())],
        input=poses.getvalue(),
        capture_output=True,
        env={"MUJOCO_GL": "egl"} | os.environ,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit code {done.returncode}"
        return f"not written: no GL for rendering off screen ({why})"
    return f"{path}: {len(shown)} frames"


def tile(frames: Sequence[NDArray[np.uint8]], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Frames (height, width, 3) as one picture, in reading order; the rest is black."""
    height, width, _ = frames[0].shape
    rows = -(-len(frames) // columns)
    sheet = np.zeros((rows * height, min(columns, len(frames)) * width, 3), np.uint8)
    for at, frame in enumerate(frames):
        y, x = at // columns * height, at % columns * width
        sheet[y : y + height, x : x + width] = frame
    return sheet


def _render(robot: Robot, motion: NDArray[np.float64], path: Path) -> None:
    from PIL import Image

    from robot.video import render

    # the middle third of a frame, at half its size: the robot is upright and centred
    frames = [
        frame[::2, frame.shape[1] // 3 : 2 * frame.shape[1] // 3 : 2]
        for frame in render(robot, motion, FLAT)
    ]
    Image.fromarray(tile(frames)).save(path)


if __name__ == "__main__":
    _render(
        load_robot(sys.argv[1]), np.load(io.BytesIO(sys.stdin.buffer.read())), Path(sys.argv[2])
    )
