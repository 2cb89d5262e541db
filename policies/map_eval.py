"""Judges maps of the ground against the truth: the untrained one, and TerrainNet beside it.

Walks that no training saw, some over families of ground that none saw, each one under several
cameras. Everything is a mean over cells of frames, and sure as far as walks differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.terrain_data import Episode, Frames, episodes, generate
from policies.trials import HELD_OUT_SEED
from robot.runs import CameraNoise
from robot.terrain import FAMILIES
from robot.terrain_net import CELLS, PRIOR, TerrainNet, depth_inputs

Array = NDArray[np.floating]
# A method: frames of one walk in, heights and standard deviations in m out, (n, 187) each.
Method = Callable[[Frames], tuple[Array, Array]]

SETTLED_S = 1.0  # what is seen before the first command does not count
INTERVAL = 1.645  # standard deviations to either side of a 90 % interval
PITCH = math.radians(1.5)
RESAMPLES = 1000
NONE = (0.0, 0.0)


@dataclass(frozen=True)
class Condition:
    """What the camera suffers."""

    meaning: str
    camera: Callable[[int], CameraNoise]
    """of a walk's number"""
    encoder_bias: float = 0.0
    sensor_share: tuple[float, float] = (1.0, 1.0)


def _camera(pitch: float, holes: float, latency_ms: float) -> CameraNoise:
    """Pixels as noisy as ever, and nothing else wrong but what is given."""
    return CameraNoise(
        field_of_view=(1.0, 1.0), pitch=(pitch, pitch), roll_yaw=NONE, position=NONE,
        drop=0.0, freeze=0.0, holes=(holes, holes), latency_ms=(latency_ms, latency_ms),
    )  # fmt: skip


CONDITIONS: dict[str, Condition] = {
    "clean": Condition(
        "noise of pixels and sensors, mount exact, 30 ms", lambda walk: _camera(0.0, 0.0, 30.0)
    ),
    "degraded": Condition(
        "the same, 20 % holes, mount pitched by 1.5 degrees up or down, 100 ms",
        lambda walk: _camera(PITCH if walk % 2 else -PITCH, 0.2, 100.0),
    ),
    "drawn": Condition(
        "everything drawn as for training: mount, holes, latency, losses, encoders' zeros",
        lambda walk: CameraNoise(), 0.01, (0.5, 2.0),
    ),
}  # fmt: skip
SPLITS = {"seeds": "families of the training, other seeds", "families": "families never trained"}


@dataclass(frozen=True)
class Row:
    """One figure of the table."""

    key: str
    title: str
    unit: str
    target: tuple[float, float]
    """from and to, of the facts this was built for"""


ROWS = (
    Row("all", "mean error, all cells", "cm", (0.0, 2.5)),
    Row("visible", "… seen in this frame", "cm", (0.0, 1.5)),
    Row("unseen", "… not seen in this frame", "cm", (0.0, 3.5)),
    Row("edge", "… within 10 cm of an edge above 8 cm", "cm", (0.0, 5.0)),
    Row("p95", "95th percentile", "cm", (0.0, 8.0)),
    Row("coverage", "truth within the 90 % interval", "%", (85.0, 95.0)),
)
BETTER, WORSE = 0.25, 0.3  # share by which it must be better degraded; cm it may be worse clean


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval over walks; NaN where nothing was measured."""

    value: float
    low: float
    high: float


@dataclass
class Report:
    """What was found: figures by condition, split, method and row."""

    seeds: int
    seconds: float
    figures: dict[str, dict[str, dict[str, dict[str, Figure]]]] = field(default_factory=dict)
    by_family: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """condition, family, method: mean error in cm"""
    walks: dict[str, dict[str, float]] = field(default_factory=dict)
    """family: mean length in s, share of frames in which the map's gate was shut when clean"""
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """One frame to look at, of a degraded walk."""

    family: str
    difficulty: float
    height: Array
    """(187,) true, m"""
    visible: NDArray[np.bool_]
    maps: dict[str, tuple[Array, Array]]
    """method: height, standard deviation"""


def geomap(frames: Frames) -> tuple[Array, Array]:
    """The untrained map, as perception would say it with an open gate."""
    return frames["prior_height"], frames["prior_std"]


def of_net(net: TerrainNet, depth_scale_m: float) -> Method:
    """A network as perception runs it, from the first frame of a walk to the last."""

    def make(frames: Frames) -> tuple[Array, Array]:
        net.reset()
        out = [
            net.run(
                depth_inputs(steps * depth_scale_m, steps > 0), frames["state"][i],
                tuple(frames[name][i] for name in PRIOR),
            )
            for i, steps in enumerate(frames["steps"])
        ]  # fmt: skip
        heights, stds = np.array(out, np.float64).reshape(-1, 2, CELLS).transpose(1, 0, 2)
        return heights, stds

    return make


def plan(seeds: int, seconds: float) -> list[tuple[str, Episode]]:
    """(split, walk): the same number of walks over every family."""
    out = []
    for split, held_out in (("seeds", False), ("families", True)):
        families = sum(family.held_out == held_out for family in FAMILIES.values())
        first = HELD_OUT_SEED + (1_000_000 if held_out else 0)
        out += [
            (split, episode) for episode in episodes(families * seeds, first, seconds, held_out)
        ]
    return out


def under(condition: Condition, walks: Sequence[tuple[str, Episode]]) -> list[Episode]:
    """The walks with a condition's camera; numbered so that no family has one pitch alone."""
    times: Counter[str] = Counter()
    out = []
    for _, episode in walks:
        number = list(FAMILIES).index(episode.family) + times[episode.family]
        times[episode.family] += 1
        out.append(replace(
            episode, camera=condition.camera(number), encoder_bias=condition.encoder_bias,
            sensor_share=condition.sensor_share,
        ))  # fmt: skip
    return out


def evaluate(
    methods: Mapping[str, Method], seeds: int = 5, seconds: float = 12.0, jobs: int = 1,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Report, list[Example]]:  # fmt: skip
    """Judge maps.

    Args:
        methods: what makes heights of the frames of a walk.
        seeds: walks over each family, under each condition.
        seconds: each one's length; a fall ends it.
        jobs: processes; the result is the same for any number.
        show: told how many walks are done.
    """
    walks, report, examples = plan(seeds, seconds), Report(seeds, seconds), []
    work = [episode for condition in CONDITIONS.values() for episode in under(condition, walks)]
    done = generate(work, jobs, lambda so_far: show(so_far, len(work)))
    for name in CONDITIONS:
        sums: dict[tuple[str, str], list[Sums]] = {}
        means: dict[str, dict[str, list[float]]] = {}
        for split, episode in walks:
            frames = next(done)
            maps = {method: make(frames) for method, make in methods.items()}
            keep = frames["time"] >= SETTLED_S
            for method, found in maps.items():
                summed = Sums.of(frames, *found, keep)
                sums.setdefault((split, method), []).append(summed)
                means.setdefault(episode.family, {}).setdefault(method, []).append(summed.mean)
            if name == "clean":
                _note(report, episode.family, frames)
            if name == "degraded" and episode.family not in {e.family for e in examples}:
                examples += _example(episode, frames, maps)
        for (split, method), parts in sums.items():
            report.figures.setdefault(name, {}).setdefault(split, {})[method] = figures(parts)
        report.by_family[name] = {
            family: {method: float(np.nanmean(values)) for method, values in row.items()}
            for family, row in means.items()
        }
    return report, examples


def _note(report: Report, family: str, frames: Frames) -> None:
    told = report.walks.setdefault(family, {"seconds": 0.0, "gate": 0.0})
    told["seconds"] += float(frames["time"][-1]) / report.seeds if len(frames["time"]) else 0.0
    told["gate"] += float((frames["gate"] > 0).mean()) / report.seeds if len(frames["gate"]) else 0


def _example(
    episode: Episode, frames: Frames, maps: dict[str, tuple[Array, Array]]
) -> list[Example]:
    """Two thirds into the walk, when there is something to remember."""
    if not len(frames["time"]):
        return []
    at = len(frames["time"]) * 2 // 3
    return [Example(
        episode.family, episode.difficulty or 0.0, frames["height"][at], frames["visible"][at],
        {name: (height[at], std[at]) for name, (height, std) in maps.items()},
    )]  # fmt: skip


EDGES_CM = np.concatenate([np.arange(0.0, 30.0, 0.1), np.geomspace(30.0, 1000.0, 60), [np.inf]])


@dataclass(frozen=True)
class Sums:
    """What one walk adds to the figures."""

    total: dict[str, tuple[float, int]]
    """row: sum of absolute errors in cm, or of hits in %, and their number"""
    histogram: NDArray[np.int64]
    """of absolute errors, over EDGES_CM"""

    @classmethod
    def of(cls, frames: Frames, height: Array, std: Array, keep: NDArray[np.bool_]) -> Sums:
        """Of one method on one walk."""
        error = 100.0 * np.abs(height - frames["height"])[keep]
        visible, edge = frames["visible"][keep], frames["edge"][keep]
        hits = 100.0 * (error <= 100.0 * INTERVAL * std[keep])
        parts = {"all": error, "visible": error[visible], "unseen": error[~visible],
                 "edge": error[edge], "coverage": hits}  # fmt: skip
        return cls(
            {key: (float(part.sum()), part.size) for key, part in parts.items()},
            np.histogram(error, EDGES_CM)[0],
        )

    @property
    def mean(self) -> float:
        """Mean error in cm over all cells."""
        total, count = self.total["all"]
        return total / count if count else math.nan


def figures(walks: Sequence[Sums]) -> dict[str, Figure]:
    """All rows, with intervals from drawing the walks again."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(walks), (RESAMPLES, len(walks)))
    out = {}
    for row in ROWS:
        if row.key == "p95":
            counts = np.array([walk.histogram for walk in walks])
            value = _percentile(counts.sum(axis=0))
            spread = [_percentile(counts[rows].sum(axis=0)) for rows in drawn]
        else:
            parts = np.array([walk.total[row.key] for walk in walks])
            value = _ratio(parts.sum(axis=0))
            spread = [_ratio(parts[rows].sum(axis=0)) for rows in drawn]
        known = np.array(spread)[np.isfinite(spread)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (math.nan, math.nan)
        out[row.key] = Figure(value, float(low), float(high))
    return out


def _ratio(part: Array) -> float:
    return float(part[0] / part[1]) if part[1] else math.nan


def _percentile(counts: NDArray[np.int64], share: float = 0.95) -> float:
    """The upper edge of the bin that the percentile falls into: 0.1 cm too much at most."""
    if not counts.sum():
        return math.nan
    at = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(EDGES_CM[at + 1])


def verdict(report: Report, name: str, base: str = "geomap") -> tuple[bool, list[str]]:
    """Whether a map beats the untrained one as it must, and a sentence on each demand."""
    good, told = True, []
    for split in SPLITS:
        ours, theirs = (
            {c: report.figures[c][split][m]["all"].value for c in ("clean", "degraded")}
            for m in (name, base)
        )
        better = 1.0 - ours["degraded"] / theirs["degraded"]
        worse = ours["clean"] - theirs["clean"]
        good &= better >= BETTER and worse <= WORSE
        told.append(
            f"{SPLITS[split]}: degraded {ours['degraded']:.2f} cm for {theirs['degraded']:.2f}, "
            f"{100 * better:.0f} % better (at least {100 * BETTER:.0f}); clean "
            f"{ours['clean']:.2f} cm for {theirs['clean']:.2f}, {worse:+.2f} (at most +{WORSE})"
        )
    return good, told


def lines(report: Report) -> list[list[str]]:
    """The table as text: a heading, then a line for each condition, split and row."""
    methods = list(next(iter(next(iter(report.figures.values())).values())))
    out = [["camera", "ground", "figure", "target", *methods]]
    for condition, splits in report.figures.items():
        for split, found in splits.items():
            for row in ROWS:
                low, high = row.target
                target = f"{low:g} to {high:g}" if low else f"≤ {high:g}"
                out.append([
                    condition, split, f"{row.title}, {row.unit}", target,
                    *(_text(found[method][row.key], row) for method in methods),
                ])  # fmt: skip
    return out


def _text(figure: Figure, row: Row) -> str:
    if not math.isfinite(figure.value):
        return "-"
    digits = 0 if row.unit == "%" else 2
    met = "" if row.target[0] <= figure.value <= row.target[1] else " !"
    low, high = f"{figure.low:.{digits}f}", f"{figure.high:.{digits}f}"
    return f"{figure.value:.{digits}f} ({low} to {high}){met}"


def about(report: Report) -> str:
    """What the table holds, in a sentence."""
    return (
        f"{report.seeds} walks of {report.seconds:g} s over each family and camera, or to a fall; "
        f"seeds from {HELD_OUT_SEED}; in brackets 95 % over walks; ! misses the target"
    )


def markdown(report: Report, sentences: Sequence[str] = ()) -> str:
    """The tables for a page, and sentences below them."""
    text = lines(report)
    parts = ["| " + " | ".join(text[0]) + " |", "|---|---|---|---|" + "---:|" * (len(text[0]) - 4)]
    parts += ["| " + " | ".join(line) + " |" for line in text[1:]]
    parts += ["", about(report) + ".", *(f"- {text}" for text in sentences), ""]
    parts += [f"- {name}: {condition.meaning}" for name, condition in CONDITIONS.items()]
    parts += [f"- {name}: {meaning}" for name, meaning in SPLITS.items()]
    methods = text[0][4:]
    parts += ["", "Mean error in cm by family:", ""]
    heads = [f"{name}, {method}" for name in report.by_family for method in methods]
    parts += ["| ground | s walked | gate shut, % | " + " | ".join(heads) + " |",
              "|---|---:|---:|" + "---:|" * len(heads)]  # fmt: skip
    for family, told in report.walks.items():
        values = [f"{report.by_family[name][family][method]:.2f}"
                  for name in report.by_family for method in methods]  # fmt: skip
        first = [family, f"{told['seconds']:.1f}", f"{100 * told['gate']:.0f}"]
        parts.append("| " + " | ".join(first + values) + " |")
    return "\n".join(parts) + "\n"


def draw(path: Path, examples: Sequence[Example]) -> Path:
    """Maps beside the truth, as seen from above, ahead is up: a row for each example."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    methods = list(examples[0].maps)
    titles = ["true ground"]
    for method in methods:
        titles += [method, f"{method}: error", f"{method}: std"]
    figure = Canvas(figsize=(2.0 * len(titles), 2.5 * len(examples)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_2d(figure.subplots(len(examples), len(titles)))
    for line, example in zip(panels, examples, strict=True):
        truth = -example.height
        low, high = float(truth.min()), max(float(truth.max()), float(truth.min()) + 0.1)
        pictures = [(truth, "viridis", low, high)]
        for height, std in example.maps.values():
            pictures += [(-height, "viridis", low, high),
                         (example.height - height, "RdBu_r", -0.1, 0.1),
                         (std, "magma", 0.0, 0.15)]  # fmt: skip
        for panel, title, (values, colours, least, most) in zip(
            line, titles, pictures, strict=True
        ):
            shown = panel.imshow(_grid(values), cmap=colours, vmin=least, vmax=most,
                                 extent=(-0.55, 0.55, -0.85, 0.85))  # fmt: skip
            panel.contour(_grid(example.visible.astype(float)), [0.5], colors="white",
                          linewidths=0.8, extent=(-0.55, 0.55, 0.85, -0.85))  # fmt: skip
            panel.plot(0, 0, "k+")
            panel.set_title(title, fontsize=8)
            panel.tick_params(labelsize=6)
            figure.colorbar(shown, ax=panel, shrink=0.7).ax.tick_params(labelsize=6)
        line[0].set_ylabel(f"{example.family} {example.difficulty:g} m\nm ahead", fontsize=8)
    figure.suptitle(
        "Heights from the pelvis up, in m; error: map above the truth is red;\n"
        "white: what the camera sees in this frame; degraded camera, two thirds into a walk",
        fontsize=9,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return path


def _grid(values: Array) -> Array:
    """(187,) -> (17, 11), ahead on top, left on the left."""
    return np.asarray(values).reshape(11, 17).T[::-1, ::-1]
