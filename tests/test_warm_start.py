"""A training that begins with a policy: the same function at first, and refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.manifest import read_policy
from policies.recipe import Recipe, load_recipe
from policies.session import PolicySession
from policies.task import Task
from policies.train import Trainer
from policies.warm_start import warm_start
from robot.config import UserError
from robot.model import load_robot

ROBOT = load_robot("g1")
WALK = Path("policies/walk/walk.onnx")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    whole = load_recipe("terrain-walk")
    assert whole.terrain is not None
    small = whole.terrain.model_copy(update={"families": ["slopes"], "levels": 1, "seeds": 1})
    return whole.model_copy(update={"terrain": small, "num_envs": 4})


def trainer(recipe: Recipe) -> Trainer:
    return Trainer(Task(recipe, ROBOT, num_envs=4, threads=1), recipe.ppo)


def test_the_actor_answers_as_the_policy_does_whatever_it_sees_besides(recipe: Recipe):
    mine, session = trainer(recipe), PolicySession(read_policy(WALK))
    warm_start(mine.learner.actor, WALK, recipe, ROBOT)
    task = mine.env
    observation = task.get_observations()["policy"]
    changed = observation.clone()
    changed[:, -188:] += 0.3  # scan and flag come last
    with torch.inference_mode():
        actions = [mine.learner.actor.mlp(seen) for seen in (observation, changed)]
    torch.testing.assert_close(actions[0], actions[1], atol=1e-5, rtol=0)
    world = task.world
    sensors = task._sensors()
    targets = session.step(
        joint_pos=world.joint_pos[0], joint_vel=world.joint_vel[0], imu_quat_wxyz=world.quat[0],
        imu_gyro=world.gyro[0], command=task.command[0],
    )  # fmt: skip
    exact = torch.from_numpy(session.observation.copy()).unsqueeze(0)
    whole = torch.cat([exact, torch.zeros(1, 188)], 1)
    with torch.inference_mode():
        action = mine.learner.actor.mlp(whole)
    from policies.terms import target

    one = type(sensors)(*(value[:1] for value in sensors))
    # a policy that starts begins its clock at 0
    one = one._replace(phase=torch.zeros(1, 1), last_action=torch.zeros(1, 29))
    torch.testing.assert_close(
        target(action, one, task.body)[0], torch.from_numpy(targets.copy()), atol=1e-4, rtol=0
    )


def test_the_critic_learns_first_and_the_actor_then(recipe: Recipe):
    ppo = recipe.ppo.model_copy(update={"critic_first": 1, "num_steps_per_env": 4})
    mine = trainer(recipe.model_copy(update={"ppo": ppo}))
    warm_start(mine.learner.actor, WALK, recipe, ROBOT)

    def weights(model) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    actor, critic = weights(mine.learner.actor), weights(mine.learner.critic)
    mine.iterate()
    assert torch.equal(weights(mine.learner.actor), actor)
    assert not torch.equal(weights(mine.learner.critic), critic)
    mine.iterate()
    assert not torch.equal(weights(mine.learner.actor), actor)


def test_what_does_not_fit_is_refused_by_name(recipe: Recipe, tmp_path: Path):
    def start(changed: Recipe, path: Path = WALK) -> None:
        warm_start(trainer(changed).learner.actor, path, changed, ROBOT)

    def ppo(**changes) -> dict:
        return {"ppo": recipe.ppo.model_copy(update=changes)}

    with pytest.raises(UserError, match=r"ppo\.normalise false"):
        start(recipe.model_copy(update=ppo(normalise=True)))
    with pytest.raises(UserError, match="does not fit the recipe's network: a layer of"):
        start(recipe.model_copy(update=ppo(actor_hidden=(64, 64, 64))))
    with pytest.raises(UserError, match="network: 4 layers, expected 3"):
        start(recipe.model_copy(update=ppo(actor_hidden=(256, 128))))
    fewer = [row for row in recipe.observation if row.name != "clock"]
    with pytest.raises(UserError, match="has terms that the recipe lacks: clock"):
        start(recipe.model_copy(update={"observation": fewer}))
    other = [
        row.model_copy(update={"scale": 2.0}) if row.name == "joint_pos" else row
        for row in recipe.observation
    ]
    with pytest.raises(UserError, match="joint_pos has scale 1, 1 frames, width 29; the recipe 2"):
        start(recipe.model_copy(update={"observation": other}))
    gains = recipe.action.gains.model_copy(update={"damping_ratio": 1.0})
    action = recipe.action.model_copy(update={"gains": gains})
    with pytest.raises(UserError, match="damping is"):
        start(recipe.model_copy(update={"action": action}))
    with pytest.raises(UserError, match=r"none\.onnx"):
        start(recipe, tmp_path / "none.onnx")
