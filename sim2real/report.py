"""Writes what the replay levels found about a log: JSON, and one page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from robot.config import UserError
from sim2real.report_plots import plots

# level: what it asks, what the answer means, what it cannot tell
LEVELS: dict[str, tuple[str, str, str]] = {
    "R0": (
        "What did it look like?",
        "The logged motion as it was seen.",
        "Without truth the base is an estimate: it stands on its lowest foot and stays in place.",
    ),
    "R1": (
        "Does today's code do what the log's code did?",
        "Same means: every output of every step that could be run again is the log's, byte for "
        "byte.",
        "Incomplete steps are those whose input the log lost; they say nothing. Physics is not "
        "judged here.",
    ),
    "R2": (
        "How well does simulation predict the robot for a moment?",
        "The honest measure of the model. A ratio near 1 means: as good as the sensors' noise "
        "allows; 2 means: twice as far off as noise explains.",
        "Joint velocities at the start are measured ones, so a gap smaller than the floor does "
        "not show; only stretches off the gantry count.",
    ),
    "R3": (
        "How long does simulation follow the log without feedback?",
        "Commands of the log on a simulated robot that nothing balances. It is compared with "
        "simulations that differ by sensor noise only: to be lost as late as those is perfect.",
        "On a free base this means something for about a second; afterwards it is chance.",
    ),
    "R4": (
        "How would it have ended in simulation?",
        "Physics, control and policy run on from a logged moment with the log's operator. "
        "Outcomes are compared: falls, velocity, tracking, power.",
        "A handful of runs: a difference of one fall is not significant. Pushes and terrain of "
        "the log are not in the simulation.",
    ),
    "R5": (
        "What would another policy have said?",
        "Targets of the other policy on the logged inputs; it did not act.",
        "Valid until the first real disagreement: from there on the robot would have gone "
        "elsewhere.",
    ),
}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.path { color: #666; overflow-wrap: anywhere; margin-top: 0; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { text-align: left;
       padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.limits { color: #666; } figure { margin: 1.2rem 0; } img { max-width: 100%; }
figcaption { color: #444; font-size: .9rem; } .bad { color: #c0392b; }
.scroll { overflow-x: auto; }
"""


def write(results: dict[str, dict[str, Any]], out: Path) -> Path:
    """Write report.json and report.html; levels that `out` has of the same log are kept.

    Args:
        results: by level, what each returned.
        out: folder; made if it is not there.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written, or there is nothing to report.
    """
    if not results:
        raise UserError(f"{out}: nothing to report; expected the result of at least one level")
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = _before(out / "report.json", results) | results
        results = {level: results[level] for level in sorted(results)}
        (out / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "report.html").write_text(page(results))
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written: {error}") from None
    return out / "report.html"


def _before(path: Path, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Levels of the same log in an earlier report."""
    log = next(iter(results.values()))["log"]
    try:
        earlier = json.loads(path.read_text())
        return {level: one for level, one in earlier.items() if one["log"] == log}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page: a table of all levels, then each with its figures and plots."""
    log = Path(next(iter(results.values()))["log"])
    rows = [
        [f'<a href="#{level}">{level}</a>', LEVELS[level][0], _verdict(one), _text(_headline(one))]
        for level, one in results.items()
    ]
    head = ["level", "question", "verdict", "answer"]
    body = "".join(_section(level, one) for level, one in results.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Replay of {_text(log.name)}</title><style>{STYLE}</style></head><body>"
        f'<h1>Replay of a log</h1><p class="path">{_text(str(log))}</p>'
        f"{_table(head, rows)}{body}</body></html>\n"
    )


def _section(level: str, result: dict[str, Any]) -> str:
    question, meaning, limits = LEVELS[level]
    notes = "".join(f"<li>{_text(note)}</li>" for note in result["notes"])
    figures = "".join(
        f'<figure><img alt="plot {number} of {level}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption>{_text(caption)}</figcaption></figure>'
        for number, (png, caption) in enumerate(plots(level, result), 1)
    )
    tables = "".join(_table(head, rows, numbers=True) for head, rows in _tables(level, result))
    return (
        f'<h2 id="{level}">{level}: {_text(question)}</h2><p>{_text(meaning)} '
        f'<span class="limits">{_text(limits)}</span></p>'
        f"<ul>{notes}</ul>{tables}{figures}"
    )


def _tables(level: str, result: dict[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Figures worth a table, as text."""
    if level == "R2":
        yield ["mode", "ahead", "starts", "RMS, mrad", "95 %, mrad", "floor, mrad", "ratio"], [
            [
                mode, f"{h * 1e3:g} ms", str(one["starts"]),
                *(f"{one[f'{h:g}'][name] * 1e3:.3g}" for name in
                  ("rmse_all", "p95_all", "floor_rmse_all")),
                f"{one[f'{h:g}']['ratio_all']:.2f}",
            ]
            for mode, one in result["modes"].items()
            if mode != "all" or len(result["modes"]) > 2
            for h in result["horizons_s"]
        ]  # fmt: skip
    elif level == "R4":
        runs = {"log": result["logged"]} | {
            f"run {i}": run for i, run in enumerate(result["simulated"], 1)
        }
        head = ["", "falls", "velocity, m/s, m/s, rad/s", "commanded", "tracking, rad", "power, W"]
        yield head, [
            [
                name, "yes" if run["fell"] else "no", _triple(run["mean_velocity_b"]),
                _triple(run["commanded_velocity_b"]), f"{run['joint_tracking_rms_rad']:.3f}",
                f"{run['power_w']:.0f}",
            ]
            for name, run in runs.items()
        ]  # fmt: skip
    elif level == "R5":
        share = f"steps beyond {result['noticeable_rad']:g} rad"
        yield ["mode", "steps", "RMS, rad", "largest, rad", share], [
            [
                mode, str(one["steps"]), f"{one['rmse_all']:.4f}", f"{one['max_all']:.3f}",
                f"{one['noticeable_share_all']:.0%}",
            ]
            for mode, one in result["modes"].items()
        ]  # fmt: skip


def _headline(result: dict[str, Any]) -> str:
    return result["notes"][0] if result["notes"] else ""


def _verdict(result: dict[str, Any]) -> str:
    verdict = _text(result["verdict"])
    return verdict if verdict in ("same", "done") else f'<span class="bad">{verdict}</span>'


def _triple(values: list[float] | None) -> str:
    return "unknown" if values is None else ", ".join(f"{v:.2f}" for v in values)


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: bool = False) -> str:
    """Cells of a table of numbers are aligned right from the third column on, and escaped."""
    mark = [' class="n"' if numbers and i > 1 else "" for i, _ in enumerate(head)]

    def line(cells: Iterable[str], tag: str) -> str:
        return "".join(
            f"<{tag}{m}>{_text(cell) if numbers else cell}</{tag}>"
            for m, cell in zip(mark, cells, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line(head, "th")}</tr>{body}</table></div>'
