"""The bench of training: its parts make up the whole, and measuring changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.recipe import load_recipe
from policies.task import Task
from policies.train import Trainer
from policies.train_bench import PARTS, _round, measure
from robot.cli import main
from robot.model import load_robot

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_parts_add_up_to_the_whole_and_the_floor_is_the_same_for_all():
    rows = {row.name: row for row in measure("walk", 0.1, threads=1, envs=16)}
    assert tuple(rows) == tuple(PARTS)
    parts = sum(row.ours for name, row in rows.items() if name != "whole")
    # medians of three rounds each: they add up about
    assert parts == pytest.approx(rows["whole"].ours, rel=0.3)
    assert len({row.floor for row in rows.values()}) == 1
    assert all(row.ours > 0 and row.rounds >= 3 for row in rows.values())
    assert rows["whole"].extra["ours_per_s"] == round(1e6 / rows["whole"].ours)


def test_measuring_bare_physics_leaves_the_task_where_it_was():
    recipe = load_recipe("walk")
    env = Task(recipe, load_robot("g1"), num_envs=4, threads=1)
    trainer = Trainer(env, recipe.ppo, threads=1)
    step = env.world.step
    once = _round(trainer, recipe)
    assert once.bare > 0 and env.world.step == step
    kept, states = env.state_dict(), env.world.batch.state.copy()
    action = torch.zeros(4, 29)
    after = env.step(action)[0]["policy"].clone()
    env.load_state_dict(kept)
    np.testing.assert_array_equal(env.world.batch.state, states)
    assert torch.equal(env.step(action)[0]["policy"], after)


def test_the_command_writes_its_rows_and_refuses_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        "policies.train_bench.measure",
        lambda recipe, seconds, threads: measure(recipe, 0.1, threads=1, envs=8),
    )
    out = tmp_path / "bench.json"
    assert main(["bench", "train", "--seconds", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert {"name", "unit", "floor", "ours", "ratio", "ours_per_s"} <= set(rows[0])
    assert "environment steps per second: whole loop" in capsys.readouterr().out
    assert main(["bench", "train", "--only", "tick"]) == 2
    assert (
        capsys.readouterr().err == "plexus: bench train: --policy and --only are for the runtime\n"
    )
