"""Shows a table of judged policies: Markdown, a terminal's table, and plots in one HTML file."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from policies.evaluate import DIRECTIONS, GRID, PUSH_LEVELS, ROWS, Column, Figure, Row, Table

COLOURS = ("#1f66a8", "#c8403d", "#2b8a5a", "#d98200", "#7a55a3", "#0093a8")
AXES = (("vx", "m/s"), ("vy", "m/s"), ("yaw", "rad/s"))
ERROR_MOST = 0.5  # m/s or rad/s; errors from here on have the darkest colour
DPI = 110
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#2b3440;margin:2em auto;max-width:1100px}
table{border-collapse:collapse} img{max-width:100%} small{color:#7d8793}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #e3e6ea}
td:first-child,th:first-child{text-align:left}
.best{font-weight:600;color:#1b6b43}
"""


def cell_text(row: Row, figure: Figure) -> str:
    """Value and interval, e.g. "0.39 (0.31 to 0.45)"; "-" where nothing was measured."""
    if not figure.n or not math.isfinite(figure.value):
        return "-"
    text = f"{figure.bound}{figure.value:.{row.digits}f}"
    if figure.where:
        return f"{text} at {figure.where}"
    return f"{text} ({figure.low:.{row.digits}f} to {figure.high:.{row.digits}f})"


def best(row: Row, columns: list[Column]) -> list[bool]:
    """Which columns are best or have the best one's value within their interval."""
    values = [column.figures[row.key].value for column in columns]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return [False] * len(columns)
    top = max(known) if row.better == "higher" else min(known)
    return [
        math.isfinite(figure.value) and (figure.value == top or figure.low <= top <= figure.high)
        for figure in (column.figures[row.key] for column in columns)
    ]


def ranges_text(column: Column) -> str:
    """What was commanded, e.g. "vx -1 to 1, vy -1 to 1, yaw -1 to 1"."""
    return ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in column.ranges.items())


def lines(table: Table) -> list[list[str]]:
    """The table as text: a heading, the command ranges, then one line for each row."""
    columns = table.columns
    out = [["", *(column.name for column in columns)]]
    out.append(["command range", *(ranges_text(column) for column in columns)])
    for row in ROWS:
        label = row.name if row.unit == "1" else f"{row.name}, {row.unit}"
        out.append([label, *(cell_text(row, column.figures[row.key]) for column in columns)])
    return out


def about(table: Table) -> str:
    """Seeds, amount and versions in one sentence."""
    plan, versions = table.plan, ", ".join(f"{k} {v}" for k, v in table.versions.items())
    quick = " Quick: far too few trials to judge by." if plan.quick else ""
    return (
        f"Seeds {table.seeds[0]} to {table.seeds[1]}, held out from training; episodes of "
        f"{plan.seconds:g} s; intervals are 95 % (Wilson for survival, bootstrap elsewhere); "
        f"safety filter on, no gantry; {versions}.{quick}"
    )


def markdown(table: Table) -> str:
    """The table in Markdown; bold where a policy is best or within its interval of the best."""
    rows = []
    for texts, marks in zip(lines(table), _marks(table), strict=True):
        cells = [f"**{text}**" if mark else text for text, mark in zip(texts, marks, strict=True)]
        rows.append(f"| {' | '.join(cells)} |")
    rule = "|---" + "|---:" * len(table.columns) + "|"
    return "\n".join([rows[0], rule, *rows[1:], "", about(table), ""])


def _marks(table: Table) -> list[list[bool]]:
    """Which cells of `lines` to set off."""
    plain = [False] * (1 + len(table.columns))
    return [plain, plain, *([False, *best(row, table.columns)] for row in ROWS)]


def write(table: Table, folder: Path) -> Path:
    """Write report.html (one file, pictures inside) and report.md into `folder`.

    Returns:
        The HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(table), encoding="utf-8")
    rows = []
    for at, (texts, marks) in enumerate(zip(lines(table), _marks(table), strict=True)):
        tag = "th" if at == 0 else "td"
        cells = (
            f"<{tag}{' class=best' if mark else ''}>{html.escape(text)}</{tag}>"
            for text, mark in zip(texts, marks, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    hashes = "".join(
        f"<li>{html.escape(column.name)}: <code>{column.sha256}</code></li>"
        for column in table.columns
    )
    path = folder / "report.html"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Policies judged</title>"
        f"<style>{STYLE}</style><h1>Policies judged</h1><table>{''.join(rows)}</table>"
        f"<p><small>{html.escape(about(table))} Green: best, or the best value lies within its "
        f"interval.</small></p><h2>Tracking over the command grid</h2>{_image(tracking_map(table))}"
        f"<h2>Pushes</h2>{_image(push_plot(table))}<h2>Files</h2><ul>{hashes}</ul></html>\n",
        encoding="utf-8",
    )
    return path


def _image(figure: Canvas) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def tracking_map(table: Table) -> Canvas:
    """Mean absolute error per cell of the grid: policies down, velocities across.

    Each panel has vx across; within it, one line per pair of vy and yaw.
    """
    forward = sorted({cell[0] for cell in GRID})
    others = sorted({cell[1:] for cell in GRID}, reverse=True)
    height = 0.9 + 3.1 * len(table.columns)
    figure = Canvas(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_2d(figure.subplots(len(table.columns), 3))
    for line, column in zip(panels, table.columns, strict=True):
        seen = {tuple(cell["cell"]): cell for cell in column.cells if cell["group"] == "grid"}
        for panel, (axis, unit) in zip(line, AXES, strict=True):
            errors = np.full((len(others), len(forward)), np.nan)
            for (vx, vy, yaw), cell in seen.items():
                errors[others.index((vy, yaw)), forward.index(vx)] = cell[f"error_{axis}"]
            shown = panel.imshow(errors, vmin=0, vmax=ERROR_MOST, cmap="YlOrRd", aspect="auto")
            for row, across in np.argwhere(np.isfinite(errors)):
                value = errors[row, across]
                fell = seen[(forward[across], *others[row])]["fell"]
                panel.text(
                    across, row, f"{value:.2f}{' ✕' if fell else ''}", ha="center", va="center",
                    fontsize=7, color="white" if value > 0.35 else "#2b3440",
                )  # fmt: skip
            panel.set_xticks(range(len(forward)), [f"{vx:g}" for vx in forward], fontsize=8)
            panel.set_yticks(range(len(others)), [f"{v:g}, {w:g}" for v, w in others], fontsize=8)
            panel.set_title(f"{column.name}: error of {axis}, {unit}", fontsize=9)
            panel.set_xlabel("vx, m/s", fontsize=8)
        line[0].set_ylabel("vy (m/s), yaw rate (rad/s)", fontsize=8)
        figure.colorbar(shown, ax=line[-1], shrink=0.8)
    figure.suptitle("✕: fell; clipped to the policy's own range", fontsize=9)
    return figure


def push_plot(table: Table) -> Canvas:
    """The push that fells half of the draws, by direction; forward is up, left is left."""
    figure = Canvas(figsize=(6.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]  # of polar axes only
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    for at, column in enumerate(table.columns):
        known = [(angle, p) for angle, p in zip(angles, column.pushes, strict=True) if p.n]
        if not known:
            continue
        closed = [*known, known[0]] if len(known) == DIRECTIONS else known
        colour = COLOURS[at % len(COLOURS)]
        theta = [angle for angle, _ in closed]
        axes.plot(theta, [p.value for _, p in closed], "o-", color=colour, label=column.name)
        axes.fill_between(
            theta, [p.low for _, p in closed], [p.high for _, p in closed], color=colour, alpha=0.15
        )
    most = max((p.high for c in table.columns for p in c.pushes if p.n), default=PUSH_LEVELS[-1])
    axes.set_ylim(0, 1.1 * most)
    axes.set_xticks(angles, [f"{round(math.degrees(a))}°" for a in angles])
    axes.set_title("push on the trunk that fells half of the draws, N s; up is forward", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
