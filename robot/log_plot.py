"""Draws chosen fields of a log over time: one panel each, modes shaded, faults marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from robot import log_fields
from robot.config import UserError, listing
from robot.log import Log
from robot.log_fields import Field
from robot.messages import Mode
from robot.modes import FAULTS, Action

FloatArray = NDArray[np.float64]

WIDTH, PANEL_HEIGHT, LANE_HEIGHT, DPI = 13.0, 1.9, 0.75, 110  # inches; dots per inch
LEFT, RIGHT = 0.065, 0.855  # of the panels, as shares of the width; legends stand beside them
COLUMNS = 1200  # about the pixels of a panel; a longer series is drawn as its envelope
NAMED = 6  # lines of one panel that get a colour and a name of their own
MODE_COLOUR = {
    "PASSIVE": "#e9ecef", "DAMP": "#f2e2c4", "STANDUP": "#d7e6f5", "STAND": "#bcd7ef",
    "POLICY": "#c9e8cc", "HOLD": "#fbeeb0", "SOFT_STOP": "#fad3ab", "FAULT": "#f5bdb8",
    "ESTOP": "#eb9c96",
}  # fmt: skip
LINE_COLOUR = ("#1f66a8", "#c8403d", "#2b8a5a", "#d98200", "#7a55a3", "#0093a8")
INK, GREY, PALE = "#2b3440", "#7d8793", "#c3c9d0"
FAULT_COLOUR, WARNING_COLOUR = "#b3261e", "#b26a00"
LETTER = 0.078  # inches that a letter of the lane takes


class Stretch(NamedTuple):
    """A time in one mode; seconds since the log's start."""

    begin: float
    end: float
    mode: str


class Mark(NamedTuple):
    """A fault that became active; seconds since the log's start."""

    at: float
    name: str
    warning: bool


def plot(
    log: Log, fields: Sequence[str], out: Path, between: tuple[float, float] | None = None
) -> Path:
    """Draw fields into a PNG; see `draw`.

    Args:
        log: read through its own schema texts.
        fields: each `topic.field`, `topic.field[3]` or `topic.field[left_knee]`.
        out: the PNG; replaced if it is there.
        between: seconds since the log's start.

    Raises:
        UserError: as `draw`, or `out` is no place for a PNG.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: expected a file name that ends in .png")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: the folder {out.absolute().parent} does not exist")
    draw(log, fields, between).savefig(out, format="png", dpi=DPI)
    return out


def draw(log: Log, fields: Sequence[str], between: tuple[float, float] | None = None) -> Figure:
    """One panel for each field, under a lane that names modes and faults.

    An array without an element becomes one panel with all its lines, the widest ones named.

    Raises:
        UserError: a field is unknown or holds no numbers, or there is nothing to draw.
    """
    if not fields:
        known = [name for name in log.topics if not name.startswith("/")]
        raise UserError(
            f"nothing to draw: expected at least one topic.field; topics: {listing(known, 40)}"
        )
    wanted = [log_fields.find_field(log, text) for text in fields]
    read = [_read(log, field, between) for field in wanted]
    if not any(len(seconds) for seconds, _ in read):
        raise UserError(
            f"{log.path}: got no message of {listing(fields)} in the time asked for; the log is "
            f"{log.duration_s:.3f} s long"
        )
    begin, end = between or (0.0, max(float(s[-1]) for s, _ in read if len(s)))
    stretches, marks = _stretches(log, begin, end), _marks(log, begin, end)
    lane, panels, figure = _figure(len(wanted), LANE_HEIGHT * (1.0 if marks else 0.4))
    _draw_lane(lane, stretches, marks, begin, end)
    for axes, field, (seconds, values) in zip(panels, wanted, read, strict=True):
        _draw_background(axes, stretches, marks)
        _draw_panel(axes, log, field, seconds, values)
        axes.set_xlim(begin, end)
    _title(figure, log)
    return figure


def envelope(
    seconds: FloatArray, values: FloatArray, columns: int = COLUMNS
) -> tuple[FloatArray, FloatArray]:
    """Thin a long series to least and greatest of every column, so that no spike is lost.

    Args:
        seconds: (n,) ascending.
        values: (n,) NaN where there is none.
        columns: the result has two to three points for each, and what is left over at the end.

    Returns:
        Times and values, in the order of time; the series itself if it is short.
    """
    per = len(values) // columns
    if per <= 2:
        return seconds, values
    whole = columns * per
    blocks = values[:whole].reshape(columns, per)
    low = np.where(np.isnan(blocks), np.inf, blocks).argmin(axis=1)
    high = np.where(np.isnan(blocks), -np.inf, blocks).argmax(axis=1)
    # A hole stays a hole: a block that has one keeps one NaN between its extremes.
    hole = np.where(np.isnan(blocks).any(axis=1), np.isnan(blocks).argmax(axis=1), low)
    begin = np.arange(columns) * per
    kept = np.concatenate([low + begin, high + begin, hole + begin, np.arange(whole, len(values))])
    kept = np.unique(np.concatenate([[0, len(values) - 1], kept]))
    return seconds[kept], values[kept]


def _read(
    log: Log, field: Field, between: tuple[float, float] | None
) -> tuple[FloatArray, FloatArray]:
    """(n,) seconds since the start and (n, lines) values."""
    clock = log_fields.clock(log, log.topics[field.topic])
    records = log.read(field.topic, list({field.column, clock}), between)
    values = records[field.column].astype(np.float64)
    return log_fields.seconds(log, records, clock), values.reshape(
        len(records), math.prod(values.shape[1:])
    )


# --- modes and faults ---------------------------------------------------------------------------


def _status(log: Log, name: str) -> tuple[FloatArray, NDArray, NDArray]:
    """Seconds, a field and the mode of every status; all of the log, as a mode lasts."""
    clock = log_fields.clock(log, log.topics["status"])
    records = log.read("status", list({clock, "mode", name}))
    return log_fields.seconds(log, records, clock), records[name], records["mode"]


def _stretches(log: Log, begin: float, end: float) -> list[Stretch]:
    if "status" not in log.topics:
        return []
    seconds, mode, _ = _status(log, "mode")
    names = log_fields.value_names(log.topics["status"].text, "mode")
    first = np.flatnonzero(np.diff(mode.astype(int), prepend=-1))
    ends = [*seconds[first[1:]], end]
    found = [
        Stretch(max(float(seconds[i]), begin), min(float(until), end), _mode_name(names, mode[i]))
        for i, until in zip(first, ends, strict=False)
    ]
    return [s for s in found if s.begin < s.end]


def _mode_name(names: dict[int, str], mode: int) -> str:
    return names.get(int(mode), f"mode {mode}")


def _marks(log: Log, begin: float, end: float) -> list[Mark]:
    """Faults at the moment they became active.

    Before arming many are active by nature (no operator, no pilot yet); those are no news.
    """
    if "status" not in log.topics:
        return []
    seconds, faults, mode = _status(log, "faults")
    active = np.where(mode == Mode.PASSIVE, 0, faults.astype(np.uint64)).astype(np.uint64)
    before = np.concatenate([np.zeros(1, np.uint64), active[:-1]])
    risen = active & ~before
    found = []
    for i in np.flatnonzero(risen):
        for bit in range(64):
            if int(risen[i]) >> bit & 1 and begin <= seconds[i] < end:
                found.append(_mark(float(seconds[i]), bit))
    return found


def _mark(at: float, bit: int) -> Mark:
    if bit >= len(FAULTS):  # written by a version that knew more faults
        return Mark(at, f"fault {bit}", False)
    return Mark(at, FAULTS[bit].name, FAULTS[bit].action <= Action.WARN)


# --- drawing ------------------------------------------------------------------------------------


def _figure(count: int, lane_height: float) -> tuple[Axes, list[Axes], Figure]:
    """A lane for modes and faults above `count` panels on one time axis."""
    heights = [lane_height, *[PANEL_HEIGHT] * count]
    top, bottom, gap = 0.42, 0.55, 0.42  # inches
    height = sum(heights) + top + bottom + gap * count
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        count + 1, 1, sharex=True, squeeze=False,
        gridspec_kw={
            "height_ratios": heights, "left": LEFT, "right": RIGHT, "top": 1 - top / height,
            "bottom": bottom / height, "hspace": gap / (sum(heights) / len(heights)),
        },
    )[:, 0]  # fmt: skip
    axes[-1].set_xlabel("seconds since the start of the log", color=GREY, fontsize=9)
    return axes[0], list(axes[1:]), figure


def _title(figure: Figure, log: Log) -> None:
    meta = log.metadata
    height = figure.get_figheight()
    parts = [meta.get("robot", ""), meta.get("start_utc", ""), f"{log.duration_s:.1f} s"]
    at = 1 - 0.2 / height
    figure.text(LEFT, at, meta.get("run", log.path.name), color=INK, fontsize=12, weight="bold",
                va="center")  # fmt: skip
    figure.text(RIGHT, at, "  ·  ".join(p for p in parts if p), color=GREY, fontsize=9,
                va="center", ha="right")  # fmt: skip


def _draw_lane(
    axes: Axes, stretches: Sequence[Stretch], marks: Sequence[Mark], begin: float, end: float
) -> None:
    """The strip on top: modes by name in its upper part, faults by name below."""
    axes.set_axis_off()
    axes.set_xlim(begin, end)
    axes.set_ylim(0 if marks else 0.6, 1)
    letter = LETTER * (end - begin) / (WIDTH * (RIGHT - LEFT))  # seconds
    narrow: dict[str, Line2D] = {}
    for stretch in stretches:
        axes.axvspan(stretch.begin, stretch.end, 0.68, 1.0, color=_shade(stretch), lw=0)
        if stretch.end - stretch.begin > (len(stretch.mode) + 1) * letter:
            middle = (stretch.begin + stretch.end) / 2
            axes.text(middle, 0.835, stretch.mode, color=INK, fontsize=8, ha="center", va="center")
        else:
            narrow[stretch.mode] = Line2D([], [], marker="s", ls="", color=_shade(stretch),
                                          markersize=6, label=stretch.mode)  # fmt: skip
    if narrow:
        axes.legend(handles=list(narrow.values()), loc="upper left", bbox_to_anchor=(1.0, 1.13),
                    ncols=2, frameon=False, fontsize=7.5, labelcolor=INK, handletextpad=0.1,
                    columnspacing=0.6, labelspacing=0.2)  # fmt: skip
    _name_marks(axes, marks, letter, end)


def _name_marks(axes: Axes, marks: Sequence[Mark], letter: float, end: float) -> None:
    """A small triangle for each mark, with its name where there is room in one of three rows."""
    taken: list[list[tuple[float, float]]] = [[], [], []]  # by row: from and to, in s
    named: dict[str, list[tuple[float, float]]] = {}
    for mark in sorted(marks, key=lambda mark: mark.warning):  # room for faults before warnings
        colour = WARNING_COLOUR if mark.warning else FAULT_COLOUR
        axes.plot(mark.at, 0.62, marker="v", color=colour, markersize=4.5, clip_on=False)
        length = (len(mark.name) + 1.5) * letter
        to_left = mark.at + length > end
        low, high = (mark.at - length, mark.at) if to_left else (mark.at, mark.at + length)
        if any(low < until and begin < high for begin, until in named.get(mark.name, [])):
            continue  # the same name is there already
        for row, others in enumerate(taken):
            if all(high <= begin or low >= until for begin, until in others):
                others.append((low, high))
                named.setdefault(mark.name, []).append((low, high))
                at = mark.at + (-0.8 if to_left else 0.8) * letter
                axes.text(at, 0.48 - 0.21 * row, mark.name, color=colour, fontsize=8,
                          va="center", ha="right" if to_left else "left")  # fmt: skip
                break


def _draw_background(axes: Axes, stretches: Sequence[Stretch], marks: Sequence[Mark]) -> None:
    for stretch in stretches:
        axes.axvspan(stretch.begin, stretch.end, color=_shade(stretch), alpha=0.32, lw=0, zorder=0)
    for mark in marks:
        colour = WARNING_COLOUR if mark.warning else FAULT_COLOUR
        axes.axvline(mark.at, color=colour, lw=0.8, alpha=0.25 if mark.warning else 0.7, zorder=1)


def _shade(stretch: Stretch) -> str:
    return MODE_COLOUR.get(stretch.mode, "#eeeeee")


def _draw_panel(
    axes: Axes, log: Log, field: Field, seconds: FloatArray, values: FloatArray
) -> None:
    topic = log.topics[field.topic]
    labels = _labels(log, field, values.shape[1])
    named = _widest(values)
    lines: list[Line2D] = []
    for i in [i for i in range(values.shape[1]) if i not in named] + named:
        colour = LINE_COLOUR[named.index(i)] if i in named else PALE
        integer = log_fields.element_type(topic, field.name).base.kind in "iub"
        (line,) = axes.plot(
            *envelope(*_with_holes(seconds, values[:, i])),
            color=colour, lw=1.1 if i in named else 0.7, label=labels[i],
            drawstyle="steps-post" if integer else "default",
            marker="." if len(seconds) < 40 else "", markersize=4, zorder=3 if i in named else 2,
        )  # fmt: skip
        lines += [line] if i in named else []
    _style(axes, field, log_fields.unit(topic.text, field.name),
           log_fields.field_doc(topic.text, field.name), labels[0])  # fmt: skip
    if not len(seconds):
        axes.text(0.5, 0.5, "no message in this time", transform=axes.transAxes, color=GREY,
                  fontsize=9, ha="center", va="center")  # fmt: skip
    if values.shape[1] > 1:
        _legend(axes, lines, values.shape[1] - len(named))
    _name_values(axes, log_fields.value_names(topic.text, field.name), values)


def _labels(log: Log, field: Field, count: int) -> list[str]:
    topic = log.topics[field.topic]
    if log_fields.length(topic, field.name) is None:
        return [""]
    names = [n.removesuffix("_joint") for n in log_fields.element_names(log, topic, field.name)]
    return [names[field.index]] if field.index is not None else names[:count]


def _widest(values: FloatArray) -> list[int]:
    """The lines that are named: all if there are few, else those that move most."""
    count = values.shape[1]
    if count <= NAMED or not len(values):
        return list(range(min(count, NAMED)))
    finite = np.where(np.isfinite(values), values, 0.0)
    return sorted(np.argsort(-np.ptp(finite, axis=0))[:NAMED].tolist())


def _with_holes(seconds: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Break the line where messages are missing; drawn through, it would claim measurements."""
    if len(seconds) < 40:  # events, not a series
        return seconds, values
    steps = np.diff(seconds)
    at = np.flatnonzero(steps > max(20 * float(np.median(steps)), 0.05)) + 1
    return np.insert(seconds, at, seconds[at - 1]), np.insert(values, at, np.nan)


def _style(axes: Axes, field: Field, unit: str, doc: str, label: str) -> None:
    element = "" if field.index is None else f"[{label}]"
    axes.set_title(f"{field.topic}.{field.name}{element}", loc="left", color=INK, fontsize=9.5,
                   weight="bold", pad=5)  # fmt: skip
    axes.set_title(doc, loc="right", color=GREY, fontsize=8.5, pad=5)
    axes.set_ylabel(unit, color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=8.5, length=3, width=0.6)
    axes.grid(axis="y", color="black", alpha=0.07, lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.08)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=PALE, linewidth=0.6)


def _legend(axes: Axes, lines: Sequence[Line2D], others: int) -> None:
    handles = list(lines)
    if others:
        handles.append(Line2D([], [], color=PALE, lw=1.2, label=f"{others} that move less"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False,
                fontsize=8, labelcolor=INK, handlelength=1.2, labelspacing=0.35)  # fmt: skip


def _name_values(axes: Axes, names: dict[int, str], values: FloatArray) -> None:
    """Write an enumeration's names at its axis, those that occur."""
    shown = sorted(set(np.unique(values).tolist()) & set(names)) if names else []
    if shown:
        axes.set_yticks(shown, [names[int(value)] for value in shown])
