"""Trains TerrainNet: makes the walks, learns from them as streams, keeps checkpoints, exports.

Frames follow each other as the robot had them, so that the memory learns what it is for; gradients
go back through a stretch of them. Every second walk, by chance, is seen in the mirror.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from policies.curves import Row, draw_curves, write_rows
from policies.recipe import RECIPES, Positive, Share
from policies.terrain_data import Frames, episodes, generate, is_held_out, save
from policies.terrain_model import PRIOR, TerrainModel, loss, mirror
from policies.train import (
    BEST,
    CHECKPOINTS,
    CURVES,
    KEPT,
    Ranks,
    _write,  # pyright: ignore[reportPrivateUsage]
    newest_checkpoint,
    prepare,
    read_checkpoint,
)
from robot.config import Strict, UserError, load_yaml, parse_yaml, read_text
from robot.model import load_robot
from robot.terrain_net import MEMORY, depth_inputs
from robot.topics import CAMERA

DATA = "data"
LINE_EVERY = 10.0  # s
COVERAGE = 0.9  # of the truth within the interval that a standard deviation is taken for
PANELS: dict[str, tuple[str, ...]] = {
    "mean error (m)": ("error", "error/held back", "error/map"),
    "loss": ("loss",),
    "learning rate": ("learning_rate",),
    "frames per second": ("steps_per_s",),
}


def _seed(seed: int) -> int:
    if is_held_out(seed):
        raise ValueError(f"seed {seed} is the judge's; expected one below")
    return seed


class DataRecipe(Strict):
    """The walks that are learned from."""

    episodes: Annotated[int, Field(ge=2)]
    episode_s: Annotated[float, Field(ge=2.0)]
    """s, without falls."""
    held_back: Share
    """of the episodes, from the end; at least one."""


class NetRecipe(Strict):
    """A whole training of TerrainNet."""

    name: str
    seed: Annotated[int, Field(ge=0), AfterValidator(_seed)]
    data: DataRecipe
    prior: bool
    """it is shown GeoMap's scan and corrects it."""
    total_steps: Annotated[int, Field(ge=1)]
    """frames."""
    streams: Annotated[int, Field(ge=1)]
    frames: Annotated[int, Field(ge=2)]
    learning_rate: tuple[Positive, Positive]
    """from and to."""
    likelihood: Positive
    max_grad_norm: Positive


def is_terrain(recipe: str | Path) -> bool:
    """Whether a recipe is one of TerrainNet: those alone say what data they are made of.

    Raises:
        UserError: the file is no YAML.
    """
    path = _path(recipe)
    return path.exists() and "data" in parse_yaml(read_text(path), path)[0]


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    return path if path.suffix else RECIPES / f"{path.name}.yaml"


def load_terrain_recipe(name_or_path: str | Path) -> NetRecipe:
    """Read and check a recipe of TerrainNet.

    Raises:
        UserError: the first mistake, with its line.
    """
    return load_yaml(_path(name_or_path), NetRecipe)


# --- what is learned from -------------------------------------------------------------------------


def walks(recipe: NetRecipe, folder: Path, jobs: int, show: Callable[[str], None]) -> list:
    """Frames of every episode, from the folder or, where they are not there yet, made now."""
    data = recipe.data
    work = episodes(data.episodes, recipe.seed, data.episode_s)
    paths = [folder / f"{i:05d}.npz" for i in range(len(work))]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    made = generate([work[i] for i in missing], jobs)
    for done, i in enumerate(missing, 1):
        save(paths[i], next(made))
        show(f"walks {done} of {len(missing)}")
    out = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            out.append({name: file[name] for name in file.files})
    return out


def tensors(frames: Frames, depth_scale_m: float) -> dict[str, Tensor]:
    """What the network is given of some frames, and the truth, with the frames' leading axes."""
    seen = depth_inputs(frames["steps"] * depth_scale_m, frames["steps"] > 0)
    named = {**seen, **{name: frames[name] for name in ("state", "height", *PRIOR)}}
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in named.items()}


class Streams:
    """Some walks at a time, each from its beginning to its end, then others.

    Args:
        walks: to learn from.
        recipe: how many at a time, and how long a stretch.
        depth_scale_m: of their pictures.
    """

    def __init__(self, walks: Sequence[Frames], recipe: NetRecipe, depth_scale_m: float):
        self.walks, self.scale = walks, depth_scale_m
        self.count, self.length = recipe.streams, recipe.frames
        self.usable = [i for i, w in enumerate(walks) if len(w["time"]) >= recipe.frames]
        if not self.usable:
            raise UserError(f"no walk has {recipe.frames} frames; expected longer ones")
        self.rng = np.random.default_rng([recipe.seed, 11])
        # Of each stream: walk, place in it, 1 in the mirror. The first are begun anywhere, so that
        # not all of them begin anew at once.
        self.at = np.array([self._draw() for _ in range(self.count)])
        for row in self.at:
            stretches = len(self.walks[row[0]]["time"]) // self.length
            row[1] = self.length * self.rng.integers(stretches)

    def _draw(self) -> tuple[int, int, int]:
        return int(self.rng.choice(self.usable)), 0, int(self.rng.integers(2))

    def next(self) -> tuple[dict[str, Tensor], Tensor]:
        """(streams, frames, ...) tensors, and (streams,) 1 where a walk begins."""
        parts, first = [], np.zeros(self.count, np.float32)
        for row in self.at:
            walk, begin, mirrored = row.tolist()
            if begin + self.length > len(self.walks[walk]["time"]):
                walk, begin, mirrored = row[:] = self._draw()
            cut = {name: a[begin : begin + self.length] for name, a in self.walks[walk].items()}
            frames = tensors(cut, self.scale)
            parts.append(mirror(frames) if mirrored else frames)
            first[len(parts) - 1] = begin == 0
            row[1] = begin + self.length
        return {name: torch.stack([p[name] for p in parts]) for name in parts[0]}, torch.from_numpy(
            first
        )

    def state_dict(self) -> dict[str, Any]:
        """For an exact continuation."""
        return {
            "at": torch.from_numpy(self.at.copy()),
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        self.at[:] = kept["at"].numpy()
        self.rng.bit_generator.state = json.loads(kept["rng"])


# --- learning -------------------------------------------------------------------------------------


class TerrainTrainer:
    """Network, streams, and all that an exact continuation needs."""

    def __init__(self, recipe: NetRecipe, data: Sequence[Frames], depth_scale_m: float) -> None:
        held = max(1, round(recipe.data.held_back * len(data)))
        torch.manual_seed(recipe.seed)
        self.recipe, self.scale, self.held_back = recipe, depth_scale_m, data[-held:]
        self.streams = Streams(data[:-held], recipe, depth_scale_m)
        self.model = TerrainModel(recipe.prior)
        self.optimiser = torch.optim.Adam(self.model.parameters(), recipe.learning_rate[0])
        self.h = torch.zeros(1, recipe.streams, MEMORY)
        self.rows: list[Row] = []
        self.iteration, self.seconds, self.best = 0, 0.0, float("inf")

    @property
    def per_iteration(self) -> int:
        """Frames."""
        return self.recipe.streams * self.recipe.frames

    @property
    def iterations(self) -> int:
        """In all."""
        return -(-self.recipe.total_steps // self.per_iteration)

    def iterate(self) -> Row:
        """One stretch of every stream."""
        begin = time.perf_counter()
        high, low = self.recipe.learning_rate
        done = self.iteration / self.iterations
        rate = low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * done))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        given, first = self.streams.next()
        h = self.h * (1.0 - first)[None, :, None]
        height, logvar, h = self._run(given, h)
        total, error = loss(height, logvar, given["height"], self.recipe.likelihood)
        self.optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimiser.step()
        self.h = h.detach()
        self.iteration += 1
        spent = time.perf_counter() - begin
        self.seconds += spent
        row = {
            "iteration": float(self.iteration),
            "steps": float(self.iteration * self.per_iteration),
            "seconds": self.seconds, "steps_per_s": self.per_iteration / spent,
            "learning_rate": rate, "loss": total.item(), "error": error.item(),
            "error/map": (given["prior_height"] - given["height"]).abs().mean().item(),
        }  # fmt: skip
        self.rows.append(row)
        return row

    def _run(self, given: dict[str, Tensor], h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prior = [given[name] for name in PRIOR] if self.recipe.prior else []
        return self.model.sequence(given["depth"], given["valid"], given["state"], h, *prior)

    def judge(self) -> tuple[float, float]:
        """Mean error on the walks held back, in m, and what the deviations must be multiplied by.

        The latter so that as much of the truth as COVERAGE lies within the interval.
        """
        errors, ratios = [], []
        with torch.inference_mode():
            for frames in self.held_back:
                if not len(frames["time"]):
                    continue
                given = {k: v[None] for k, v in tensors(frames, self.scale).items()}
                height, logvar, _ = self._run(given, torch.zeros(1, 1, MEMORY))
                error = (height - given["height"]).abs()
                errors.append(error.flatten())
                ratios.append((error / (0.5 * logvar).exp()).flatten())
        normal = 1.6449
        wide = float(np.quantile(torch.cat(ratios).numpy(), COVERAGE)) / normal
        return torch.cat(errors).mean().item(), wide

    def save(self, path: Path) -> None:
        """Write a checkpoint: whole or not at all."""
        _write(path, {
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
            "streams": self.streams.state_dict(), "h": self.h, "rows": self.rows,
            "iteration": self.iteration, "seconds": self.seconds, "best": self.best,
        })  # fmt: skip

    def load(self, path: Path) -> None:
        """Go on exactly where `save` was.

        Raises:
            UserError: the file is of another network.
        """
        kept = read_checkpoint(path)
        try:
            self.model.load_state_dict(kept["model"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.streams.load_state_dict(kept["streams"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: does not fit this recipe: {reason}") from None
        self.h, self.rows = kept["h"], list(kept["rows"])
        self.iteration, self.seconds = kept["iteration"], kept["seconds"]
        self.best = kept["best"]


@dataclass(frozen=True)
class TerrainOptions:
    """How a run is run; none of it changes what is learned, but for steps and seed."""

    steps: int | None = None
    """frames in all; None: the recipe's"""
    seed: int | None = None
    jobs: int = 1
    """processes that make the walks"""
    dry_run: bool = False
    """a few iterations over a few short walks"""
    resume: bool = False
    checkpoint_minutes: float = 3.0
    judge_iterations: int = 400


def train_terrain(recipe: NetRecipe, out: Path, options: TerrainOptions | None = None) -> Path:
    """Train, and leave walks, checkpoints, curves and the network's file in `out`.

    Raises:
        UserError: the folder holds another run, or nothing to resume.
    """
    options = options or TerrainOptions()
    recipe = _adjusted(recipe, options)
    prepare(out, recipe, options.resume, Ranks())  # pyright: ignore[reportArgumentType]
    torch.set_num_threads(1)  # sums depend on it, and a resumed run must not
    data = walks(recipe, out / DATA, options.jobs, _teller())
    trainer = TerrainTrainer(recipe, data, load_robot("g1").cameras[CAMERA].file.depth_scale_m)
    if options.resume:
        newest = newest_checkpoint(out)
        assert newest is not None  # prepare has looked
        trainer.load(newest)
    say, saved = _teller(), time.monotonic()
    while trainer.iteration < trainer.iterations:
        row = trainer.iterate()
        last = trainer.iteration == trainer.iterations
        due = last or time.monotonic() - saved > options.checkpoint_minutes * 60
        if last or trainer.iteration % options.judge_iterations == 0:
            row["error/held back"], wide = trainer.judge()
            if row["error/held back"] < trainer.best:
                trainer.best, due = row["error/held back"], True
                _write(out / BEST, {
                    "model": trainer.model.state_dict(), "wide": wide, "steps": int(row["steps"]),
                    "seconds": trainer.seconds, "score": trainer.best,
                })  # fmt: skip
        if due:
            saved = time.monotonic()
            keep(trainer, out)
        say(told(row), last or "error/held back" in row)
    path = finish(out, recipe)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return path


def finish(out: Path, recipe: NetRecipe) -> Path:
    """Write the file of a run's best network, its deviations made to cover what they should."""
    from policies.terrain_export import calibrated, export_terrain, provenance

    kept = read_checkpoint(out / BEST)
    model = TerrainModel(recipe.prior)
    model.load_state_dict(kept["model"])
    calibrated(model, kept["wide"])
    camera = load_robot("g1").cameras[CAMERA]
    return export_terrain(model, camera, provenance(recipe, kept), out / f"{recipe.name}.onnx")


def told(row: Row) -> str:
    """One line on an iteration."""
    text = (
        f"{row['steps'] / 1e6:.3f} M frames, {row['steps_per_s']:.0f}/s, error "
        f"{100 * row['error']:.2f} cm, the map's {100 * row['error/map']:.2f}"
    )
    held = row.get("error/held back")
    return text if held is None else f"{text}, held back {100 * held:.2f}"


def _teller() -> Callable[..., None]:
    said = float("-inf")

    def tell(text: str, surely: bool = False) -> None:
        nonlocal said
        if surely or time.monotonic() - said > LINE_EVERY:
            said = time.monotonic()
            print(text, flush=True)

    return tell


def keep(trainer: TerrainTrainer, out: Path) -> None:
    """Write a checkpoint and the curves; drop old ones."""
    folder = out / CHECKPOINTS
    trainer.save(folder / f"{trainer.iteration:06d}.pt")
    write_rows(out / CURVES, trainer.rows)
    draw_curves(out / "curves.png", trainer.rows, out.name, PANELS)
    for old in sorted(folder.glob("*.pt"))[:-KEPT]:
        old.unlink()


def _adjusted(recipe: NetRecipe, options: TerrainOptions) -> NetRecipe:
    changes: dict[str, Any] = {"total_steps": options.steps, "seed": options.seed}
    if options.dry_run:
        changes |= {
            "data": DataRecipe(episodes=3, episode_s=3.0, held_back=0.3), "streams": 2,
            "total_steps": options.steps or 10 * 2 * recipe.frames,
        }  # fmt: skip
    return recipe.model_copy(update={k: v for k, v in changes.items() if v is not None})
