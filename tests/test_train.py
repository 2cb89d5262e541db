"""Training learns, can be killed and goes on, and comes out the same each time."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from policies.curves import read_rows
from policies.recipe import Ppo, load_recipe
from policies.train import (
    BEST,
    CHECKPOINTS,
    CURVES,
    KEPT,
    Ranks,
    RunOptions,
    Trainer,
    keep,
    make_learner,
    newest_checkpoint,
    prepare,
    provenance,
    read_checkpoint,
    run,
    told,
)
from policies.train_commands import Train, train
from robot.config import UserError

PPO = Ppo(actor_hidden=(16, 16), critic_hidden=(16, 16), num_steps_per_env=16, entropy_coef=0.0,
          gamma=0.95)  # fmt: skip


class Cart(VecEnv):
    """A mass on a line, pushed towards 0; its mirror image turns position, speed and force."""

    def __init__(self, num_envs: int = 64, seed: int = 0) -> None:
        self.num_envs, self.num_actions, self.device, self.cfg = num_envs, 1, "cpu", {}
        self.max_episode_length = 40
        self.generator = torch.Generator().manual_seed(seed)
        self.state = self._draw(num_envs)
        self.episode_length_buf = torch.randint(0, 40, (num_envs,), generator=self.generator)
        turn = lambda x: -x  # noqa: E731  (three names for one function)
        self.mirror = SimpleNamespace(policy=turn, critic=turn, action=turn)

    def _draw(self, count: int) -> torch.Tensor:
        return torch.randn(count, 2, generator=self.generator) * torch.tensor([1.0, 0.3])

    def get_observations(self) -> TensorDict:
        groups = {"policy": self.state.clone(), "critic": self.state.clone()}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        x, v = self.state.unbind(1)
        v = v + 0.2 * actions[:, 0].clamp(-3, 3)
        self.state = torch.stack((x + 0.2 * v, v), 1)
        reward = torch.exp(-(x**2) - 0.1 * v**2)
        self.episode_length_buf += 1
        done = self.episode_length_buf >= self.max_episode_length
        self.state[done] = self._draw(int(done.sum()))
        self.episode_length_buf[done] = 0
        extras = {"time_outs": done.clone(), "log": {"error/vx": v.abs().mean()}}
        return self.get_observations(), reward, done, extras

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state.clone(), "length": self.episode_length_buf.clone(),
                "random": self.generator.get_state()}  # fmt: skip

    def load_state_dict(self, given: dict[str, Any]) -> None:
        self.state, self.episode_length_buf = given["state"].clone(), given["length"].clone()
        self.generator.set_state(given["random"])


pytestmark = pytest.mark.usefixtures("one_thread")


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [x for v in values for x in flat(v)] if isinstance(value, dict | list | tuple) else []


def folder(path: Path) -> Path:
    (path / CHECKPOINTS).mkdir(parents=True)
    return path


@pytest.mark.parametrize("symmetry", ["equivariant", "augmentation", "none"])
def test_training_learns(symmetry: Any) -> None:
    trainer = Trainer(Cart(), PPO.model_copy(update={"symmetry": symmetry}), seed=1)
    rows = [trainer.iterate() for _ in range(40)]
    assert rows[39]["reward"] > 1.5 * rows[3]["reward"] and rows[39]["reward"] > 22
    assert rows[39]["steps"] == 40 * 64 * 16


def test_the_trained_equivariant_actor_is_odd_as_its_task() -> None:
    trainer = Trainer(Cart(), PPO)
    for _ in range(3):
        trainer.iterate()
    actor, x = trainer.learner.get_policy(), torch.randn(50, 2)
    one, other = (actor(TensorDict({"policy": s * x}, batch_size=[50])) for s in (1, -1))
    assert torch.equal(one, -other)


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, out = folder(tmp_path / "whole"), folder(tmp_path / "killed")
    options = RunOptions(checkpoint_iterations=4)
    straight = Trainer(Cart(), PPO, seed=3)
    run(straight, whole, 10, options)
    killed = Trainer(Cart(), PPO, seed=3)

    def kill(row: dict[str, float]) -> None:
        if row["iteration"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, out, 10, options, show=kill)
    newest = newest_checkpoint(out)
    assert newest is not None and newest.name == "000004.pt"
    again = Trainer(Cart(seed=99), PPO, seed=99)
    again.load(newest)
    run(again, out, 10, options)
    one, other = (read_checkpoint(p / CHECKPOINTS / "000010.pt") for p in (whole, out))
    tensors = flat(one)
    assert len(tensors) > 30
    assert all(torch.equal(a, b) for a, b in zip(tensors, flat(other), strict=True))
    curves = [[r["reward"] for r in read_rows(p / CURVES) if "reward" in r] for p in (whole, out)]
    assert curves[0] == curves[1] and len(curves[0]) >= 8


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    trainer, out = Trainer(Cart(), PPO), folder(tmp_path / "run")
    keep(trainer, out)
    before = newest_checkpoint(out)

    def dies(state: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    trainer.iterate()
    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        keep(trainer, out)
    assert newest_checkpoint(out) == before
    assert before is not None and read_checkpoint(before)["iteration"] == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    out = folder(tmp_path / "run")
    run(Trainer(Cart(8), PPO), out, 6, RunOptions(checkpoint_iterations=1))
    names = sorted(p.name for p in (out / CHECKPOINTS).iterdir())
    assert names == ["000004.pt", "000005.pt", "000006.pt"] and len(names) == KEPT
    assert (out / "curves.png").stat().st_size > 10_000
    assert list((out / "tensorboard").iterdir())


def test_the_best_checkpoint_is_the_one_the_judge_preferred(tmp_path: Path) -> None:
    out, scores = folder(tmp_path / "run"), iter([0.1, 0.9, 0.5, 0.2])
    options = RunOptions(evaluate_minutes=0.0)
    run(Trainer(Cart(8), PPO), out, 4, options, judge=lambda actor: next(scores))
    assert read_checkpoint(out / BEST)["iteration"] == 2
    assert read_checkpoint(out / BEST)["score"] == 0.9


def test_the_learning_rate_stays_within_the_recipes_bounds() -> None:
    ppo = PPO.model_copy(update={"learning_rate_range": (3e-4, 5e-4), "learning_rate": 4e-4})
    learner = make_learner(Cart(4), ppo)
    for wanted, got in ((1e-5, 3e-4), (4e-4, 4e-4), (1.0, 5e-4)):
        learner.learning_rate = wanted
        assert learner.learning_rate == got


def test_exploration_is_bounded_from_its_beginning_to_its_end() -> None:
    trainer = Trainer(Cart(), PPO.model_copy(update={"init_std": 0.6, "final_std": 0.2}))
    for done, most in ((0.0, 0.6), (0.5, 0.4), (1.0, 0.2)):
        trainer.bound_exploration(done)
        assert trainer.iterate()["std"] <= most + 1e-6


def test_a_hidden_layer_that_cannot_be_paired_is_refused() -> None:
    with pytest.raises(UserError, match="a hidden layer has 15 units, expected an even number"):
        make_learner(Cart(4), PPO.model_copy(update={"actor_hidden": (15,)}))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.pt: not a checkpoint"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"y\.pt: no such checkpoint"):
        read_checkpoint(tmp_path / "y.pt")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    Trainer(Cart(4), PPO).save(tmp_path / "a.pt")
    other = Trainer(Cart(4), PPO.model_copy(update={"actor_hidden": (32,)}))
    with pytest.raises(UserError, match=r"a\.pt: does not fit this recipe"):
        other.load(tmp_path / "a.pt")


def test_two_runs_do_not_mix(tmp_path: Path) -> None:
    recipe, out = load_recipe("walk"), tmp_path / "run"
    with pytest.raises(UserError, match="no checkpoint to resume"):
        prepare(out, recipe, True, Ranks())
    prepare(out, recipe, False, Ranks())
    keep(Trainer(Cart(4), PPO), out)
    prepare(out, recipe, True, Ranks())
    with pytest.raises(UserError, match="holds a run already"):
        prepare(out, recipe, False, Ranks())
    with pytest.raises(UserError, match="begun with another recipe"):
        prepare(out, recipe.model_copy(update={"seed": 5}), True, Ranks())


def test_options_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--steps: got 0, expected more than 0"):
        train(Train(steps=0))
    with pytest.raises(UserError, match="--device: got 'tpu', expected cpu or cuda"):
        train(Train(device="tpu", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_line_tells_how_it_goes() -> None:
    row = {"steps": 2.5e6, "steps_per_s": 6543.2, "reward": 1.234, "episode_length": 99.6,
           "error/vx": 0.1, "error/vy": 0.22, "error/yaw": 0.333}  # fmt: skip
    assert told(row) == "2.50 M steps, 6543/s, return 1.23, length 100, error 0.10/0.22/0.33"


def test_provenance_says_where_a_policy_comes_from() -> None:
    kept = {"steps": 100, "seconds": 7200.0, "score": 0.5}
    said = provenance(load_recipe("walk"), kept, RunOptions())
    assert said["hours"] == 2.0 and said["steps"] == 100 and said["recipe"] == "walk"
    assert len(str(said["recipe_sha256"])) == 64


DRY = """
import sys
from pathlib import Path
from policies.train_commands import Train, train
train(Train(out=Path(sys.argv[1]), dry_run=True, envs=8, threads=1, seed=5))
"""

TWO = """
import sys
from pathlib import Path
import torch
from policies.train import RunOptions, Trainer, join_ranks, run
from tests.test_train import PPO, Cart
ranks = join_ranks("cpu")
trainer = Trainer(Cart(8, seed=ranks.rank), PPO, 0, "cpu", ranks)
run(trainer, Path(sys.argv[1]), 2, RunOptions())
weights = torch.cat([p.detach().flatten() for p in trainer.learner.actor.state_dict().values()
                     if p.is_floating_point()])
both = [torch.empty_like(weights) for _ in range(2)]
torch.distributed.all_gather(both, weights)
assert torch.equal(*both), "weights differ"
torch.distributed.destroy_process_group()
"""


def test_two_dry_runs_of_the_walk_are_the_same_and_leave_a_policy(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", DRY, str(tmp_path / name)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in ("a", "b")
    ]  # fmt: skip
    said = [p.communicate(timeout=300)[0] for p in runs]
    assert [p.returncode for p in runs] == [0, 0], said
    one, other = (read_checkpoint(tmp_path / n / CHECKPOINTS / "000005.pt") for n in ("a", "b"))
    tensors = flat(one)
    assert len(tensors) > 40
    assert all(torch.equal(a, b) for a, b in zip(tensors, flat(other), strict=True))
    assert 10_000 < (tmp_path / "a" / "walk.onnx").stat().st_size < 3_000_000
    assert "walk.onnx" in said[0] and "steps" in said[0]


def test_two_processes_learn_one_network(tmp_path: Path) -> None:
    out = folder(tmp_path / "run")
    done = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(out)], stderr=subprocess.PIPE, text=True,
            env=os.environ | {
                "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank),
                "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611",
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [p.communicate(timeout=120)[1] for p in done]
    assert [p.returncode for p in done] == [0, 0], said
    assert sorted(p.name for p in (out / CHECKPOINTS).iterdir()) == ["000002.pt", "000002.rank1"]
    first, second = (read_checkpoint(out / CHECKPOINTS / f"000002.{x}") for x in ("pt", "rank1"))
    assert not torch.equal(first["env"]["state"], second["env"]["state"])
