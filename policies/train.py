"""Trains a policy with PPO of rsl_rl: collect, learn, write down, keep a checkpoint.

Knows of environments only what rsl_rl's VecEnv says, a `mirror` and a state that can be kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rsl_rl.algorithms import PPO
from rsl_rl.env import VecEnv
from rsl_rl.models import MLPModel
from rsl_rl.utils import check_nan

from policies.curves import Row, contact_sheet, draw_curves, write_rows
from policies.network import EquivariantModel, JointNoise, Reflection, augment
from policies.recipe import Ppo, Recipe
from policies.warm_start import warm_start
from robot.config import UserError
from robot.log_writer import _commit, cpu_name  # pyright: ignore[reportPrivateUsage]
from robot.model import Robot, load_robot

KEPT = 3  # newest checkpoints that stay on the disk
EPISODES = 100  # ended last, over which return and length are averaged
LINE_EVERY = 10.0  # s between lines where there is no terminal
NEVER_SEEN = 1_000_003  # added to the seed of the quick evaluation's environments
STD_LEAST = 0.05  # exploration does not die
CHECKPOINTS, BEST, CURVES, RECIPE = "checkpoints", "best.pt", "curves.csv", "recipe.yaml"


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started."""

    rank: int = 0
    local: int = 0
    """among those of this machine"""
    world: int = 1
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Writes the files and talks."""
        return self.rank == 0


def join_ranks(device: str) -> Ranks:
    """Meet the other processes of torchrun, if there are any: NCCL between GPUs, gloo else."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Ranks(*(int(os.environ[key]) for key in keys))


# --- the learner ----------------------------------------------------------------------------------


class BoundedPPO(PPO):
    """PPO whose adaptive learning rate stays within the recipe's bounds; rsl_rl's are fixed."""

    bounds = (1e-5, 1e-2)

    @property
    def learning_rate(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the optimiser, now."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._learning_rate = min(max(value, self.bounds[0]), self.bounds[1])


def make_learner(env: VecEnv, ppo: Ppo, device: str = "cpu", ranks: Ranks | None = None) -> PPO:
    """Actor, critic and PPO for an environment.

    Args:
        env: with `mirror` (functions policy, critic, action) unless ppo.symmetry is "none".
        ppo: settings of the recipe.
        device: of networks and rollouts.
        ranks: several processes average their gradients.
    """
    obs = env.get_observations()
    mirrors: dict[str, Reflection] = {}
    if ppo.symmetry != "none":
        mirror: Any = getattr(env, "mirror")  # noqa: B009  (VecEnv does not declare it)
        sizes = {name: obs[name].shape[1] for name in ("policy", "critic")}
        sizes["action"] = env.num_actions
        mirrors = {name: Reflection(getattr(mirror, name), size) for name, size in sizes.items()}
    shared = {"activation": ppo.activation}
    actor = {"hidden_dims": ppo.actor_hidden, "obs_normalization": ppo.normalise, **shared}
    critic = {"hidden_dims": ppo.critic_hidden, "obs_normalization": True, **shared}
    noise = {"class_name": JointNoise, "init_std": ppo.init_std}
    if ppo.symmetry == "equivariant":
        for width in (*ppo.actor_hidden, *ppo.critic_hidden):
            if width % 2:
                raise UserError(f"ppo: a hidden layer has {width} units, expected an even number")
        noise["reflection"] = mirrors["action"]
        actor |= {"class_name": EquivariantModel, "inputs": mirrors["policy"]}
        actor |= {"outputs": mirrors["action"]}
        critic |= {"class_name": EquivariantModel, "inputs": mirrors["critic"]}
    else:
        actor["class_name"] = critic["class_name"] = MLPModel
    names = (
        "num_learning_epochs", "num_mini_batches", "clip_param", "gamma", "lam", "entropy_coef",
        "value_loss_coef", "use_clipped_value_loss", "max_grad_norm", "learning_rate", "schedule",
        "desired_kl",
    )  # fmt: skip
    algorithm: dict[str, Any] = {name: getattr(ppo, name) for name in names}
    algorithm["class_name"] = BoundedPPO
    if ppo.symmetry == "augmentation":
        algorithm["symmetry_cfg"] = {
            "use_data_augmentation": True,
            "data_augmentation_func": lambda **given: augment(mirrors, **given),
        }
    several = ranks is not None and ranks.world > 1
    config = {
        "algorithm": algorithm,
        "actor": actor | {"distribution_cfg": noise},
        "critic": critic,
        "obs_groups": {"actor": ["policy"], "critic": ["critic"]},
        "num_steps_per_env": ppo.num_steps_per_env,
        "multi_gpu": {
            "global_rank": ranks.rank, "local_rank": ranks.local, "world_size": ranks.world,
        } if ranks is not None and several else None,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its networks
        learner = BoundedPPO.construct_algorithm(obs.to(device), env, config, device)
    assert isinstance(learner, BoundedPPO)
    learner.bounds = ppo.learning_rate_range
    return learner


class Trainer:
    """Learner and environment, and all that an exact continuation needs.

    Args:
        env: VecEnv with state_dict and load_state_dict.
        ppo: settings of the recipe.
        seed: of networks and exploration.
        device: of the learner.
        ranks: this process among others.
        threads: of torch while learning; collecting uses one, the physics has the others.
    """

    def __init__(
        self, env: Any, ppo: Ppo, seed: int = 0, device: str = "cpu",
        ranks: Ranks | None = None, threads: int = 1,
    ) -> None:  # fmt: skip
        self.env, self.ppo, self.device, self.threads = env, ppo, device, threads
        self.ranks = ranks or Ranks()
        _seed(seed)
        self.learner = make_learner(env, ppo, device, self.ranks)
        self.bound_exploration(0.0)
        self.learner.train_mode()
        if self.ranks.world > 1:
            self.learner.broadcast_parameters()
        _seed(seed + self.ranks.rank)
        self.rows: list[Row] = []
        self.iteration, self.seconds, self.best = 0, 0.0, float("-inf")
        self.returns: deque[float] = deque(maxlen=EPISODES)
        self.lengths: deque[float] = deque(maxlen=EPISODES)
        self.running = torch.zeros(2, env.num_envs)  # return and length of episodes under way

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of all processes."""
        return self.env.num_envs * self.ppo.num_steps_per_env * self.ranks.world

    def bound_exploration(self, done: float) -> None:
        """Set the bound on the standard deviation for a share of the training done.

        Noise at joints is what a walk falls over and what tracking averages over: much of it finds
        a gait, less of it makes the gait exact.
        """
        first, last = self.ppo.init_std, self.ppo.final_std
        noise: Any = self.learner.actor.distribution
        noise.std_range = (STD_LEAST, first + (last - first) * done)

    def let_actor_learn(self, yes: bool) -> None:
        """Hold the actor still while the critic finds out what it is worth, or let it go."""
        actor = self.learner.actor
        if yes and not next(actor.parameters()).requires_grad:
            # Without a change of the actor the rate has climbed to its bound.
            self.learner.learning_rate = self.ppo.learning_rate
        for parameter in actor.parameters():
            parameter.requires_grad_(yes)

    def iterate(self) -> Row:
        """Collect, learn; returns what it was like."""
        begin = time.perf_counter()
        self.let_actor_learn(self.iteration >= self.ppo.critic_first)
        torch.set_num_threads(1)  # also at first: sums depend on it, and a resumed run must not
        log = self._collect()
        collected = time.perf_counter()
        torch.set_num_threads(self.threads)
        losses = self.learner.update()
        end = time.perf_counter()
        self.iteration += 1
        self.seconds += end - begin
        row = {
            "iteration": float(self.iteration),
            "steps": float(self.iteration * self.steps_per_iteration),
            "seconds": self.seconds,
            "steps_per_s": self.steps_per_iteration / (end - begin),
            "learner_share": (end - collected) / (end - begin),
            "learning_rate": self.learner.learning_rate,
            "std": self.learner.actor.output_std.mean().item(),
            **{f"loss/{name}": value for name, value in losses.items()},
            **log,
        }
        if self.returns:
            row |= {
                "reward": float(np.mean(self.returns)),
                "episode_length": float(np.mean(self.lengths)),
            }
        self.rows.append(row)
        return row

    def _collect(self) -> dict[str, float]:
        """Fill the learner's rollout; returns means of what the environment logged."""
        logged: dict[str, list[float]] = {}
        obs = self.env.get_observations().to(self.device)
        with torch.inference_mode():
            for _ in range(self.ppo.num_steps_per_env):
                actions = self.learner.act(obs)
                obs, rewards, dones, extras = self.env.step(actions.to(self.env.device))
                check_nan(obs, rewards, dones)
                obs = obs.to(self.device)
                self.learner.process_env_step(
                    obs, rewards.to(self.device), dones.to(self.device), extras
                )
                self._count(rewards.cpu(), dones.cpu())
                for name, value in extras.get("log", {}).items():
                    logged.setdefault(name, []).append(float(value))
            self.learner.compute_returns(obs)
        return {name: float(np.mean(values)) for name, values in logged.items()}

    def _count(self, rewards: torch.Tensor, dones: torch.Tensor) -> None:
        self.running += torch.stack((rewards, torch.ones_like(rewards)))
        ended = dones.nonzero().flatten()
        if len(ended):
            self.returns.extend(self.running[0, ended].tolist())
            self.lengths.extend(self.running[1, ended].tolist())
            self.running[:, ended] = 0

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint: whole or not at all, also if killed meanwhile.

        Each process keeps its environments and random numbers in a file of its own.
        """
        if not self.ranks.first:
            _write(_of_rank(path, self.ranks.rank), self._own_state())
        if self.ranks.world > 1:
            torch.distributed.barrier()  # the first's file is written last: it stands for all
        if self.ranks.first:
            shared = {
                "learner": self.learner.save(), "rows": self.rows, "iteration": self.iteration,
                "seconds": self.seconds, "best": self.best, "world": self.ranks.world,
            }  # fmt: skip
            _write(path, self._own_state() | shared)

    def _own_state(self) -> dict[str, Any]:
        return {
            "env": self.env.state_dict(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "running": self.running.clone(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if "cuda" in self.device else None,
            "numpy": _numpy_state(),
            "python": random.getstate(),
        }

    def load(self, path: Path) -> None:
        """Go on exactly where `save` was.

        Raises:
            UserError: the file is of another number of processes, or of another network.
        """
        kept = read_checkpoint(path)
        own = kept if self.ranks.first else read_checkpoint(_of_rank(path, self.ranks.rank))
        if kept["world"] != self.ranks.world:
            raise UserError(f"{path}: of {kept['world']} processes; got {self.ranks.world}")
        try:
            self.learner.load(kept["learner"], None, strict=True)
            self.env.load_state_dict(own["env"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: does not fit this recipe: {reason}") from None
        self.rows, self.iteration = list(kept["rows"]), kept["iteration"]
        self.seconds, self.best = kept["seconds"], kept["best"]
        self.returns.extend(own["returns"])
        self.lengths.extend(own["lengths"])
        self.running = own["running"].clone()
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"], self.device)
        name, keys, *others = own["numpy"]
        np.random.set_state((name, keys.numpy(), *others))
        random.setstate(own["python"])


def _numpy_state() -> tuple[Any, ...]:
    """Of NumPy's random numbers, in types that torch reads without unpickling."""
    name, keys, *others = np.random.get_state()
    return name, torch.from_numpy(np.array(keys)), *others


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_suffix(f".rank{rank}")


def _write(path: Path, state: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".partial")
    with part.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Trainer.save` wrote: tensors and plain values, nothing is unpickled.

    Raises:
        UserError: there is none, or it is none.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds on a file that is no archive of its own
        raise UserError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max((folder / CHECKPOINTS).glob("*.pt"), default=None)


# --- a run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """How a run is run; none of it changes what is learned, but for seed, envs and steps."""

    steps: int | None = None
    """environment steps in all; None: the recipe's"""
    envs: int | None = None
    """environments of all processes together; None: the recipe's"""
    seed: int | None = None
    threads: int = 0
    """of the physics, and of torch while learning; 0: the machine's cores"""
    device: str = "cpu"
    dry_run: bool = False
    """5 iterations of 16 environments"""
    resume: bool = False
    begin_with: Path | None = None
    """a policy file whose actor is where learning begins"""
    checkpoint_iterations: int = 50
    checkpoint_minutes: float = 3.0
    evaluate_minutes: float = 5.0


def train(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Path:
    """Train, and leave checkpoints, curves, a contact sheet and a policy file in `out`.

    Returns:
        The policy file.

    Raises:
        UserError: the folder holds another run, or nothing to resume; no such device.
    """
    from policies.task import Task

    options = options or RunOptions()
    ranks = join_ranks(options.device)
    device = _check_device(options.device, ranks)
    recipe = _adjusted(recipe, options)
    prepare(out, recipe, options.resume, ranks)
    robot = load_robot(recipe.robot)
    cores = options.threads or _own_cores(ranks)
    if recipe.num_envs % ranks.world:
        raise UserError(
            f"{recipe.num_envs} environments cannot be shared by {ranks.world} processes"
        )
    env = Task(
        recipe, robot, num_envs=recipe.num_envs // ranks.world, seed=ranks.rank, threads=cores,
        device=device, total_steps=recipe.total_steps // ranks.world,
    )  # fmt: skip
    trainer = Trainer(env, recipe.ppo, recipe.seed, device, ranks, cores)
    if options.begin_with is not None and not options.resume:
        warm_start(trainer.learner.actor, options.begin_with, recipe, robot)
    if options.resume:
        trainer.load(_resumable(out))
    judge = Judge(recipe, robot, cores)
    iterations = -(-recipe.total_steps // trainer.steps_per_iteration)
    with Ticker(iterations, trainer.steps_per_iteration, ranks.first) as progress:
        run(trainer, out, iterations, options, judge, progress.show)
    policy = out / f"{recipe.name}.onnx"
    if ranks.first:
        policy = finish(out, recipe, robot, options)
    if ranks.world > 1:
        torch.distributed.barrier()
    return policy


def run(
    trainer: Trainer, out: Path, iterations: int, options: RunOptions,
    judge: Callable[[Any], float] | None = None, show: Callable[[Row], None] = lambda row: None,
) -> None:  # fmt: skip
    """Iterate up to `iterations`; keep checkpoints, and the best that `judge` saw."""
    first = trainer.ranks.first
    board = _board(out, trainer.iteration) if first else None
    saved = judged = time.monotonic()
    if first:
        write_rows(out / CURVES, trainer.rows)
    while trainer.iteration < iterations:
        trainer.bound_exploration(trainer.iteration / iterations)
        row = trainer.iterate()
        last, now = trainer.iteration == iterations, time.monotonic()
        # by the clock of the first process alone: they must agree
        due = _agreed(trainer, now - saved > options.checkpoint_minutes * 60)
        if judge and first and (last or now - judged > options.evaluate_minutes * 60):
            row["score"], judged = judge(trainer.learner.get_policy()), now
        better = _agreed(trainer, row.get("score", float("-inf")) > trainer.best)
        trainer.best = max(trainer.best, row.get("score", float("-inf")))
        if due or last or better or trainer.iteration % options.checkpoint_iterations == 0:
            saved = now
            keep(trainer, out, better)
        if board is not None:
            for name, value in row.items():
                board.add_scalar(name, value, trainer.iteration)
        show(row)
    if board is not None:
        board.close()


def _own_cores(ranks: Ranks) -> int:
    """Keep to this process's share of the machine's cores, so that none waits for another's."""
    cores = sorted(os.sched_getaffinity(0))
    count = max(1, len(cores) // ranks.local_world)
    if ranks.local_world > 1:
        os.sched_setaffinity(0, cores[ranks.local * count : (ranks.local + 1) * count] or cores)
    return count


def _agreed(trainer: Trainer, mine: bool) -> bool:
    """What the first process says."""
    if trainer.ranks.world == 1:
        return mine
    said = torch.tensor([float(mine)], device=trainer.device)
    torch.distributed.broadcast(said, src=0)
    return bool(said.item())


def keep(trainer: Trainer, out: Path, better: bool = False) -> None:
    """Write a checkpoint and the curves; drop old ones; `better`: it is also the best."""
    folder = out / CHECKPOINTS
    path = folder / f"{trainer.iteration:06d}.pt"
    trainer.save(path)
    if not trainer.ranks.first:
        return
    if better or not (out / BEST).exists():
        _write(out / BEST, {
            "learner": trainer.learner.save(), "iteration": trainer.iteration,
            "steps": trainer.iteration * trainer.steps_per_iteration,
            "seconds": trainer.seconds, "score": trainer.best,
        })  # fmt: skip
    write_rows(out / CURVES, trainer.rows)
    draw_curves(out / "curves.png", trainer.rows, out.name)
    for old in sorted(folder.glob("*.pt"))[:-KEPT]:
        old.unlink()  # first what stands for all
        for part in folder.glob(f"{old.stem}.rank*"):
            part.unlink()


def _board(out: Path, iteration: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=iteration + 1)


def prepare(out: Path, recipe: Recipe, resume: bool, ranks: Ranks) -> None:
    """Make the folder of a run, with a copy of its recipe; refuse to mix two runs.

    Raises:
        UserError: see `train`.
    """
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    begun = newest_checkpoint(out)
    if resume:
        _resumable(out)
        if (out / RECIPE).read_text() != text:
            raise UserError(
                f"{out / RECIPE}: the run was begun with another recipe, seed, steps or envs; "
                "resume with the same"
            )
    elif begun is not None:
        raise UserError(f"{out}: holds a run already; expected an empty folder, or --resume")
    elif ranks.first:
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (out / RECIPE).write_text(text)
    if ranks.world > 1:
        torch.distributed.barrier()


def _resumable(out: Path) -> Path:
    newest = newest_checkpoint(out)
    if newest is None:
        raise UserError(f"{out}: no checkpoint to resume; begin without --resume")
    return newest


def _check_device(device: str, ranks: Ranks) -> str:
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"--device: got {device!r}, but torch sees no GPU; available: cpu")
        device = f"cuda:{ranks.local}" if device == "cuda" else device
        torch.cuda.set_device(device)
    elif device != "cpu":
        raise UserError(f"--device: got {device!r}, expected cpu or cuda")
    return device


def _adjusted(recipe: Recipe, options: RunOptions) -> Recipe:
    changes: dict[str, Any] = {
        "total_steps": options.steps, "num_envs": options.envs, "seed": options.seed,
    }  # fmt: skip
    if options.dry_run:
        envs = options.envs or 16
        changes["num_envs"] = envs
        changes["total_steps"] = options.steps or 5 * envs * recipe.ppo.num_steps_per_env
    return recipe.model_copy(update={k: v for k, v in changes.items() if v is not None})


# --- judging and finishing --------------------------------------------------------------------


class Judge:
    """Quick evaluation in environments of its own: no pushes, no noise, no exploration.

    Disturbs no random number of the training, so whether and when it runs changes nothing.
    """

    def __init__(
        self, recipe: Recipe, robot: Robot, threads: int, envs: int = 32, seconds: float = 6.0
    ) -> None:
        self.recipe, self.robot, self.threads, self.envs = recipe, robot, threads, envs
        self.steps = round(seconds / recipe.step_dt)
        self.motion: list[NDArray[np.float64]] = []

    def __call__(self, actor: MLPModel) -> float:
        """Share of time alive, less the mean error of vx and vy (m/s) and half of yaw's (rad/s)."""
        from policies.task import Task

        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            env = Task(self.recipe, self.robot, self.envs, NEVER_SEEN, self.threads)
            env.steps = env.total_steps  # the curriculum at its end, whatever the training's
            env.grow()
            env.spread()
            env.pushed = env.noise = False
            device = next(actor.parameters()).device
            alive, lived, errors = torch.ones(self.envs), 0.0, []
            obs, self.motion = env.reset(), []
            for _ in range(self.steps):
                self.motion.append(np.array(env.world.qpos[0]))
                obs, _, dones, extras = env.step(actor(obs.to(device)).cpu())
                alive *= 1.0 - dones.float() + extras["time_outs"].float()
                lived += alive.mean().item()
                log = extras["log"]
                errors.append(log["error/vx"] + log["error/vy"] + 0.5 * log["error/yaw"])
        return lived / self.steps - float(np.mean(errors))


def best_learner(out: Path, env: Any, ppo: Ppo) -> tuple[PPO, dict[str, Any]]:
    """The best checkpoint of a run as a learner on the CPU, and what the file says."""
    kept = read_checkpoint(out / BEST)
    learner = make_learner(env, ppo)
    learner.load(kept["learner"], None, strict=True)
    learner.eval_mode()
    return learner, kept


def finish(out: Path, recipe: Recipe, robot: Robot, options: RunOptions) -> Path:
    """Write the policy file of the best checkpoint, and a contact sheet of its gait."""
    from policies.export import export
    from policies.task import Task

    learner, kept = best_learner(out, Task(recipe, robot, num_envs=1, threads=1), recipe.ppo)
    actor = learner.get_policy()
    judge = Judge(recipe, robot, options.threads, envs=4)
    judge(actor)
    print(contact_sheet(out / "gait.png", robot, np.array(judge.motion)))
    policy = export(
        actor.as_onnx(verbose=False).eval(), recipe, robot, out / f"{recipe.name}.onnx",
        provenance(recipe, kept, options),
    )  # fmt: skip
    print(f"{policy}: {policy.stat().st_size / 1e6:.2f} MB, after {kept['steps']:,} steps")
    return policy


def provenance(
    recipe: Recipe, kept: Mapping[str, Any], options: RunOptions
) -> dict[str, str | int | float]:
    """Where a policy comes from, for its manifest."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    gpu = torch.cuda.get_device_name() if "cuda" in options.device else "no GPU"
    return {
        "recipe": recipe.name,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        **_commit(),
        "seed": recipe.seed,
        "steps": int(kept["steps"]),
        "hours": round(kept["seconds"] / 3600, 4),
        # a run may have been ended before its first evaluation
        **({"score": round(float(kept["score"]), 4)} if np.isfinite(kept["score"]) else {}),
        "machine": f"{os.cpu_count()} x {cpu_name()}, {platform.machine()}, {gpu}",
        "torch": torch.__version__,
    }


class Ticker:
    """A bar where there is a terminal, else a line each 10 s."""

    def __init__(self, iterations: int, per_iteration: int, talks: bool) -> None:
        self.talks, self.iterations, self.per_iteration = talks, iterations, per_iteration
        self.console = Console()
        self.bar: Progress | None = None
        self.task: Any = None
        self.said = float("-inf")

    def __enter__(self) -> Ticker:
        if self.talks and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[told]}"), console=self.console,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("", total=self.iterations, told="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, row: Row) -> None:
        """Tell of one iteration."""
        done = int(row["iteration"])
        if self.bar is not None:
            self.bar.update(self.task, completed=done, told=told(row))
        elif self.talks and (time.monotonic() - self.said > LINE_EVERY or done == self.iterations):
            self.said = time.monotonic()
            left = (self.iterations - done) * self.per_iteration / row["steps_per_s"] / 60
            print(f"{told(row)}, {left:.0f} min left", flush=True)


def told(row: Row) -> str:
    """One line on an iteration: steps, speed, return, length, error of tracking."""
    parts = [f"{row['steps'] / 1e6:.2f} M steps", f"{row['steps_per_s']:.0f}/s"]
    if "reward" in row:
        parts += [f"return {row['reward']:.2f}", f"length {row['episode_length']:.0f}"]
    errors = [
        f"{row[f'error/{name}']:.2f}" for name in ("vx", "vy", "yaw") if f"error/{name}" in row
    ]
    if errors:
        parts.append("error " + "/".join(errors))
    if "score" in row:
        parts.append(f"score {row['score']:.3f}")
    return ", ".join(parts)
