"""Measures training on this machine: the whole loop and its parts beside bare physics of the run.

`plexus bench train`. The network is untrained: many episodes end early, which makes it slower.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policies.recipe import Recipe, load_recipe
from policies.task import Task
from policies.train import Trainer
from robot.bench import Machine
from robot.bench_figures import Row, make_row
from robot.bench_floor import Samples
from robot.model import load_robot

# part -> what it is
PARTS = {
    "whole": "the whole loop: collect and learn",
    "physics": "the batch's steps within it",
    "inference": "the actor, the critic and their bookkeeping while collecting",
    "python": "observations, rewards, resets and all that is left of collecting",
    "learner": "PPO's update",
}
WARM_UP = 2  # iterations


@dataclass
class Round:
    """One iteration, and bare physics after it; us per environment step."""

    bare: float
    parts: dict[str, float] = field(default_factory=dict)


def measure(recipe_name: str, seconds: float, threads: int, envs: int | None = None) -> list[Row]:
    """Rows of the bench: floor is bare physics, ours each part of the training loop.

    Args:
        recipe_name: a recipe of configs/recipes, or the path of one.
        seconds: for all rounds together; there are at least three.
        threads: of physics and learner.
        envs: environments; the recipe's if not given.
    """
    recipe = load_recipe(recipe_name)
    env = Task(recipe, load_robot(recipe.robot), num_envs=envs, threads=threads)
    trainer = Trainer(env, recipe.ppo, recipe.seed, threads=threads)
    for _ in range(WARM_UP):
        trainer.iterate()
    rounds: list[Round] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 3:
        rounds.append(_round(trainer, recipe))
    rows = []
    for name, what in PARTS.items():
        pairs = [(_sample(one.bare), _sample(one.parts[name])) for one in rounds]
        row = make_row(name, pairs, what)
        rates = {"floor_per_s": round(1e6 / row.floor), "ours_per_s": round(1e6 / row.ours)}
        row.extra.update(rates)
        rows.append(row)
    return rows


def lines(rows: list[Row], machine: Machine) -> list[str]:
    """What the table does not say: environment steps per second, and where they were made."""
    whole = rows[0].extra
    return [
        f"environment steps per second: whole loop {whole['ours_per_s']:,}, "
        f"bare physics {whole['floor_per_s']:,}",
        f"machine: {machine}",
    ]


def _round(trainer: Trainer, recipe: Recipe) -> Round:
    env: Task = trainer.env
    env.seconds = {"physics": 0.0, "whole": 0.0}
    controls: list[NDArray[np.float64]] = []
    step = env.world.step
    env.world.step = lambda targets: (step(targets), controls.append(env.world.ctrl.copy()))[0]
    try:
        row = trainer.iterate()
    finally:
        env.world.step = step
    count = env.num_envs * recipe.ppo.num_steps_per_env
    whole = count / row["steps_per_s"]
    learner = whole * row["learner_share"]
    inside, physics = env.seconds["whole"], env.seconds["physics"]
    parts = {
        "whole": whole, "physics": physics, "inference": whole - learner - inside,
        "python": inside - physics, "learner": learner,
    }  # fmt: skip
    return Round(
        bare=_bare(env, controls) / count * 1e6,
        parts={name: value / count * 1e6 for name, value in parts.items()},
    )


def _bare(env: Task, controls: list[NDArray[np.float64]]) -> float:
    """s that nothing but the batch takes for the same controls; the task is left as it was."""
    kept = env.state_dict()
    begin = time.perf_counter()
    for control in controls:
        env.world.ctrl[:] = control
        env.world.batch.step(nstep=env.recipe.sim.decimation)
    passed = time.perf_counter() - begin
    env.load_state_dict(kept)
    return passed


def _sample(us: float) -> Samples:
    return Samples(np.array([us]))
