"""Torch, ONNX Runtime and the runtime's pilot say the same, through carry and reset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from policies.export import BYTES_MAX, INPUTS, Deployed, export
from policies.manifest import check_policy, read_policy
from policies.recipe import Recipe, load_recipe
from policies.session import PolicySession, golden_inputs, verify_golden
from policies.task import Task
from policies.terms import make_body
from robot.cli import main
from robot.config import UserError
from robot.messages import PolicyInput
from robot.model import load_robot
from robot.pilot import Pilot
from robot.runs import load_run
from robot.topics import make_codecs
from sim2real.lockstep import Lockstep

ROBOT, WALK, SEES = load_robot("g1"), load_recipe("walk"), load_recipe("terrain-walk")
TOLERANCE = 1e-5


def with_history() -> Recipe:
    rows = [
        row.model_copy(update={"history": 3}) if row.name in ("base_ang_vel", "clock") else row
        for row in WALK.observation
    ]
    return WALK.model_copy(update={"observation": rows})


def make_actor(recipe: Recipe) -> nn.Sequential:
    torch.manual_seed(0)
    width = Deployed(nn.Identity(), recipe, make_body(recipe, ROBOT)).terms.width
    return nn.Sequential(nn.Linear(width, 64), nn.ELU(), nn.Linear(64, 29)).eval()


class Torch:
    """The deployed module stepped as the runtime would, with its own carry."""

    def __init__(self, recipe: Recipe, actor: nn.Module) -> None:
        self.module = Deployed(actor, recipe, make_body(recipe, ROBOT))
        self.reset()

    def reset(self) -> None:
        self.carry = [torch.zeros(shape) for shape in self.module.carry.values()]
        self.first = 1.0

    def step(self, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        inputs = {**inputs, "first": [self.first]}
        given = [torch.tensor(np.array(inputs[name], np.float32)[None]) for name in INPUTS]
        with torch.no_grad():
            out = self.module(*given, *self.carry)
        self.carry, self.first = list(out[2:]), 0.0
        return out[0][0].numpy(), out[1][0].numpy()


@pytest.fixture(scope="module", params=["walk", "history", "sees"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    recipe = {"walk": WALK, "history": with_history(), "sees": SEES}[request.param]
    actor = make_actor(recipe)
    path = tmp_path_factory.mktemp("export") / "walk.onnx"
    return recipe, actor, export(actor, recipe, ROBOT, path, {"recipe": "walk", "steps": 0})


def test_torch_and_onnx_runtime_agree_on_random_inputs_through_carry_and_reset(trained):
    recipe, actor, path = trained
    policy = read_policy(path)
    session, module = PolicySession(policy), Torch(recipe, actor)
    for seed in range(3):
        rows = golden_inputs(policy.manifest, steps=40, seed=seed)
        session.reset()
        module.reset()
        for step in range(40):
            given = {name: rows[name][step] for name in INPUTS if name != "first"}
            target, observation = module.step(given)
            session.step(**given)
            np.testing.assert_allclose(session.joint_pos_target, target, atol=TOLERANCE)
            np.testing.assert_allclose(session.observation, observation, atol=TOLERANCE)
        for (name, value), carry in zip(session.carry().items(), module.carry, strict=True):
            np.testing.assert_allclose(value, carry.numpy(), atol=TOLERANCE, err_msg=name)


def test_the_session_says_what_the_task_does(trained):
    """What was trained is what is deployed: same observation and targets from the same state."""
    recipe, actor, path = trained
    quiet = recipe.model_copy(update={"randomisation": {"start": {}}, "curriculum": {}})
    task = Task(quiet, ROBOT, num_envs=1)
    task.noise = task.pushed = False
    eyes = task.eyes
    if eyes is not None:
        eyes.blind[:] = 0
    task.phase[:] = 0
    task._observe()
    session, targets = PolicySession(read_policy(path)), []
    real = task.world.step

    def watched(given: torch.Tensor) -> None:
        targets.append(given[0].numpy().copy())
        real(given)

    task.world.step = watched  # pyright: ignore[reportAttributeAccessIssue] - watched, then real
    for _ in range(60):
        seen, world = task.get_observations()["policy"], task.world
        session.step(
            joint_pos=world.joint_pos[0], joint_vel=world.joint_vel[0], imu_quat_wxyz=world.quat[0],
            imu_gyro=world.gyro[0], command=task.command[0],
            **({} if eyes is None else {"height_scan": eyes.past[eyes.delay[0], 0]}),
        )  # fmt: skip
        np.testing.assert_allclose(session.observation, seen[0], atol=TOLERANCE)
        with torch.no_grad():
            _, _, dones, _ = task.step(actor(seen))
        np.testing.assert_allclose(session.joint_pos_target, targets[-1], atol=TOLERANCE)
        if dones[0]:
            session.reset()
            task.phase[:] = 0
            task._observe()
    assert len(targets) == 60


def test_the_pilot_and_torch_agree_on_the_inputs_of_a_lockstep_run(trained):
    recipe, actor, path = trained
    policy = read_policy(path)
    pilot = Pilot(ROBOT, policy, PolicySession(policy), make_codecs(ROBOT))
    module, episode, compared = Torch(recipe, actor), -1, 0
    real = pilot.step

    def step(given: PolicyInput, now_ns: int) -> Any:
        nonlocal episode, compared
        if given.episode != episode or given.step == 0:
            module.reset()
            episode = given.episode
        target = real(given, now_ns)
        inputs = {name: pilot.session.inputs[name][0] for name in INPUTS if name != "first"}
        expected, observation = module.step(inputs)
        np.testing.assert_allclose(target.joint_pos_target, expected, atol=TOLERANCE)
        np.testing.assert_allclose(pilot.session.observation, observation, atol=TOLERANCE)
        compared += 1
        return target

    pilot.step = step
    lockstep = Lockstep(load_run("sim"), pilot, velocity=(0.4, 0.1, 0.2))
    lockstep.run_for(12.0)
    assert compared > 50


def test_the_file_fits_the_robot_and_is_small(trained):
    _, _, path = trained
    policy = read_policy(path)
    check_policy(policy, ROBOT)
    verify_golden(PolicySession(policy), policy.manifest)
    assert len(policy.data) < BYTES_MAX
    manifest = policy.manifest
    assert manifest.uses_arms and manifest.provenance["recipe"] == "walk"
    assert manifest.command_ranges.vx == WALK.commands.vx
    assert manifest.stiffness[3] == pytest.approx(99.0984278)
    assert str(path.parent).encode() not in policy.data


def test_an_untrained_policy_passes_the_command_line_check(trained, capsys):
    assert main(["policy", "check", str(trained[2])]) in (0, None)
    assert "fits g1" in capsys.readouterr().out


def test_an_actor_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be exported"):
        export(nn.Linear(7, 29), WALK, ROBOT, tmp_path / "x.onnx", {})
    assert not (tmp_path / "x.onnx").exists()
