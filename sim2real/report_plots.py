"""Plots of what the replay levels found, as PNG, each with a sentence on how to read it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110
WIDTH = 9.0  # inches
OURS, FLOOR, LIMIT = "#1f5fa8", "#b5b5b5", "#c0392b"
SHADES = ("#9ec5e8", "#4a90c9", "#123f70")  # horizons, from short to long
Plot = tuple[bytes, str]  # PNG, caption
CAPTIONS = {
    "by_joint": (
        "Error of each joint. A bar that ends at its red mark is explained by the sensors' "
        "noise at the start; what stands above it is a gap between model and robot."
    ),
    "by_start": (
        "Error over all joints, by the moment that was predicted from: peaks above the floor "
        "are moments worth a look."
    ),
    "distance": (
        "Distance between the simulated base and the log's. A blue line among the grey ones "
        "is as good as simulation can be; one that rises much earlier shows a gap."
    ),
    "height": "Height of the pelvis: whether and when the robot falls.",
    "disagreement": "Difference between the two policies' targets over time, in all modes.",
    "disagreement_by_joint": "The same by joint, while a policy moved the robot.",
}


def plots(level: str, result: dict[str, Any]) -> Iterator[Plot]:
    """The plots of one level; none for levels that are a verdict."""
    draw = {"R2": _predict, "R3": _open_loop, "R4": _closed_loop, "R5": _shadow}.get(level)
    if draw is not None:
        yield from draw(result)


def _axes(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(np.asarray(figure.subplots(rows, 1, sharex=True))).tolist()
    for one in axes:
        one.grid(color="#e6e6e6", linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _joints(axes: Axes, names: list[str]) -> None:
    short = [name.removesuffix("_joint").replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90, fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)


def _predict(result: dict[str, Any]) -> Iterator[Plot]:
    every, names = result["modes"]["all"], result["joint_names"]
    horizons = [f"{h:g}" for h in result["horizons_s"]]
    shades = [SHADES[min(i, len(SHADES) - 1)] for i in range(len(horizons))]
    width = 0.8 / len(horizons)
    figure, (axes,) = _axes(4.2)
    for i, (horizon, shade) in enumerate(zip(horizons, shades, strict=True)):
        at = np.arange(len(names)) + (i - (len(horizons) - 1) / 2) * width
        label = f"{float(horizon) * 1e3:g} ms ahead"
        axes.bar(at, np.array(every[horizon]["rmse"]) * 1e3, width, color=shade, label=label)
        floor = np.array(every[horizon]["floor_rmse"]) * 1e3
        axes.hlines(floor, at - width / 2, at + width / 2, color=LIMIT, linewidth=1.5,
                    label="chaos floor" if i == 0 else "")  # fmt: skip
    axes.set_ylabel("RMS error, mrad")
    _legend(axes)
    _joints(axes, names)
    yield _png(figure), CAPTIONS["by_joint"]
    figure, rows = _axes(1.5 * len(horizons) + 0.6, len(horizons))
    series = result["series"]
    for axes, horizon, shade, got, floor in zip(
        rows, horizons, shades, series["rms"], series["floor_rms"], strict=True
    ):
        axes.plot(series["times_s"], np.array(floor) * 1e3, color=LIMIT, lw=1, label="chaos floor")
        axes.plot(series["times_s"], np.array(got) * 1e3, color=shade, lw=1.4, label="prediction")
        axes.set_ylabel(f"{float(horizon) * 1e3:g} ms\nmrad")
        axes.set_ylim(bottom=0.0)
    _legend(rows[0])
    rows[-1].set_xlabel("time of the start, s since the start of the log")
    yield _png(figure), CAPTIONS["by_start"]


def _open_loop(result: dict[str, Any]) -> Iterator[Plot]:
    series = result["series"]
    figure, (above, below) = _axes(4.4, 2)
    for axes, name, scale, limit, unit in (
        (above, "distance_m", 100.0, 5.0, "base position, cm"),
        (below, "angle_rad", 180.0 / np.pi, 5.0, "base orientation, degrees"),
    ):
        for i, shadow in enumerate(series[f"shadow_{name}"]):
            axes.plot(series["times_s"], np.array(shadow) * scale, color=FLOOR, lw=1,
                      label="perturbed from unperturbed" if i == 0 else None)  # fmt: skip
        axes.plot(series["times_s"], np.array(series[name]) * scale, color=OURS, lw=1.8,
                  label="simulation from log")  # fmt: skip
        axes.axhline(limit, color=LIMIT, lw=1, ls="--", label="no longer the same motion")
        axes.set_ylabel(unit)
        axes.set_ylim(0.0, 4.0 * limit)
    _legend(above)
    below.set_xlabel(f"s since {result['begin_s']:.2f} s of the log")
    yield _png(figure), CAPTIONS["distance"]


def _closed_loop(result: dict[str, Any]) -> Iterator[Plot]:
    figure, (axes,) = _axes(2.6)
    for i, run in enumerate(result["simulated"]):
        axes.plot(run["series"]["times_s"], run["series"]["height_m"], color=SHADES[1], lw=1.2,
                  label="simulated" if i == 0 else None)  # fmt: skip
    logged = result["logged"]["series"]
    if logged["times_s"]:
        axes.plot(logged["times_s"], logged["height_m"], color="black", lw=1.4, label="log")
    axes.set_ylabel("pelvis height, m")
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel(f"s since {result['from_s']:.2f} s of the log")
    _legend(axes)
    yield _png(figure), CAPTIONS["height"]


def _shadow(result: dict[str, Any]) -> Iterator[Plot]:
    series, limit = result["series"], result["noticeable_rad"]
    figure, (axes,) = _axes(2.8)
    axes.plot(series["times_s"], series["max"], color=SHADES[0], lw=1, label="largest joint")
    axes.plot(series["times_s"], series["rms"], color=OURS, lw=1.4, label="RMS over joints")
    axes.axhline(limit, color=LIMIT, lw=1, ls="--", label=f"{limit:g} rad")
    for moment in result["worst"][:3]:
        axes.annotate(moment["joint"].removesuffix("_joint").replace("_", " "),
                      (moment["time_s"], abs(moment["difference_rad"])), fontsize=8)  # fmt: skip
    axes.set_ylabel("disagreement, rad")
    axes.set_xlabel("s since the start of the log")
    _legend(axes)
    yield _png(figure), CAPTIONS["disagreement"]
    figure, (axes,) = _axes(3.8)
    figures = result["modes"]["POLICY and HOLD"]
    axes.bar(range(len(figures["max"])), figures["max"], color=SHADES[0], label="largest")
    axes.bar(range(len(figures["rmse"])), figures["rmse"], color=OURS, label="RMS")
    axes.axhline(limit, color=LIMIT, lw=1, ls="--")
    axes.set_ylabel("disagreement, rad")
    _legend(axes)
    _joints(axes, result["joint_names"])
    yield _png(figure), CAPTIONS["disagreement_by_joint"]
