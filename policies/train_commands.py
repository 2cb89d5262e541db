"""The commands `plexus train` and `plexus bench train`: options, and what they start."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from robot.config import UserError, check_positive, check_writable


@dataclass(frozen=True)
class Train:
    """Train a policy by a recipe; leaves checkpoints, curves and a policy file."""

    recipe: tyro.conf.Positional[str] = "walk"
    """a recipe of configs/recipes, or the path of one"""
    out: Path | None = None
    """folder of the run; default: runs/<recipe>"""
    steps: int | None = None
    """environment steps in all; default: the recipe's"""
    envs: int | None = None
    """environments of all processes together; default: the recipe's"""
    seed: int | None = None
    """default: the recipe's"""
    threads: int = 0
    """of physics and learner; 0: one per core"""
    device: str = "cpu"
    """of the learner: cpu or cuda; physics is always on the CPU"""
    begin_with: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """a policy file, whose actor is where learning begins"""
    dry_run: bool = False
    """a few iterations in seconds, to see that all works"""
    resume: bool = False
    """go on from the newest checkpoint in the folder"""
    export: bool = False
    """train nothing: write the policy file of the folder's best checkpoint"""


def train(args: Train) -> int:
    """`plexus train`."""
    check_positive(steps=args.steps, envs=args.envs)
    if args.threads < 0:
        raise UserError(f"--threads: got {args.threads}, expected 0 or more")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed: got {args.seed}, expected 0 or more")
    _check_packages()
    from policies.recipe import load_recipe
    from policies.train import RECIPE, RunOptions, finish
    from policies.train import train as run
    from robot.model import load_robot

    if args.export:
        if args.out is None:
            raise UserError("--export: expected --out, the folder of a run")
        recipe = load_recipe(args.out / RECIPE)
        finish(args.out, recipe, load_robot(recipe.robot), RunOptions(threads=args.threads))
        return 0
    recipe = load_recipe(args.recipe)
    out = args.out or Path("runs") / recipe.name
    options = RunOptions(
        steps=args.steps, envs=args.envs, seed=args.seed, threads=args.threads,
        device=args.device, dry_run=args.dry_run, resume=args.resume,
        begin_with=args.begin_with,
    )  # fmt: skip
    print(run(recipe, out, options))
    return 0


def bench_train(json_path: Path | None, seconds: float) -> int:
    """`plexus bench train`."""
    check_positive(seconds=seconds)
    check_writable(json_path)
    _check_packages()
    from policies.train_bench import lines, measure
    from robot.bench import Machine
    from robot.bench_figures import print_rows

    machine = Machine()  # counts stolen time from here on
    rows = measure("walk", seconds, os.cpu_count() or 1)
    print_rows(rows)
    print("\n".join(lines(rows, machine)))
    if json_path is not None:
        json_path.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n")
    return 0


def _check_packages() -> None:
    try:
        import rsl_rl  # noqa: F401  (only whether it is there)
    except ModuleNotFoundError:
        raise UserError("training needs more packages: pip install plexus[train]") from None
