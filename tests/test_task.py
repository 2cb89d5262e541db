"""The environment: resets, delays, randomisation, exact resume, and left equal to right."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from policies.recipe import Recipe, load_recipe
from policies.task import Task
from policies.world import INERTIAL, RANDOMISATION
from robot.model import load_robot

ROBOT = load_robot("g1")
WALK = load_recipe("walk")
QUIET = {"start": {"joint": 0.0, "speed": 0.0, "tilt": 0.0, "drop": 0.0}}


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**changes: Any) -> Recipe:
    return WALK.model_copy(update=changes)


def quiet(**changes: Any) -> Recipe:
    """No randomisation, no curriculum: full levels of what there is."""
    return recipe(**({"randomisation": QUIET, "curriculum": {}} | changes))


def actions(task: Task, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(task.num_envs, task.num_actions, generator=generator)


def run(task: Task, steps: int, seed: int = 0) -> list[torch.Tensor]:
    seen = []
    for step in range(steps):
        obs, reward, dones, _ = task.step(actions(task, seed + step))
        seen += [obs["policy"].clone(), obs["critic"].clone(), reward.clone(), dones.clone()]
    return seen


def test_the_same_seed_gives_the_same_rollout_at_any_number_of_threads_and_another_seed_does_not():
    one = run(Task(WALK, ROBOT, num_envs=6, threads=1), 60)
    two = run(Task(WALK, ROBOT, num_envs=6, threads=2), 60)
    other = run(Task(WALK, ROBOT, num_envs=6, threads=1, seed=1), 60)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


def test_a_state_dict_goes_on_exactly_where_it_was_taken():
    task = Task(recipe(curriculum={}), ROBOT, num_envs=6)
    run(task, 45)
    saved = task.state_dict()
    ahead = run(task, 60, seed=7)
    again = Task(recipe(curriculum={}), ROBOT, num_envs=6, seed=99)
    run(again, 3)
    again.load_state_dict(saved)
    assert torch.equal(again.get_observations()["policy"], saved["observations"]["policy"])
    assert all(torch.equal(a, b) for a, b in zip(ahead, run(again, 60, seed=7), strict=True))
    assert any(dones.any() for dones in ahead[3::4])  # resets were among them


def test_a_reset_leaves_other_environments_untouched():
    task = Task(quiet(), ROBOT, num_envs=4)
    run(task, 10)
    before = task.world.batch.state.copy()
    buffers = task.action.clone(), task.phase.clone(), task.command.clone()
    task._reset(torch.tensor([False, True, False, False]))
    others = [0, 2, 3]
    np.testing.assert_array_equal(task.world.batch.state[others], before[others])
    assert not np.array_equal(task.world.batch.state[1], before[1])
    for now, was in zip((task.action, task.phase, task.command), buffers, strict=True):
        assert torch.equal(now[others], was[others])
    assert task.episode_length_buf.tolist() == [10, 0, 10, 10]


def test_an_episode_that_lasts_is_a_time_out_and_a_fall_is_none():
    task = Task(quiet(episode_s=0.2), ROBOT, num_envs=3)
    assert task.max_episode_length == 10
    task.world.qpos[2, 3:7] = (0.7071, 0.7071, 0, 0)  # lying on its side
    _, reward, dones, extras = task.step(torch.zeros(3, 29))
    assert dones.tolist() == [False, False, True] and not extras["time_outs"].any()
    assert reward[2] == -WALK.fall
    for _ in range(9):
        _, _, dones, extras = task.step(torch.zeros(3, 29))
    assert dones.tolist() == [True, True, False]
    assert extras["time_outs"].tolist() == [True, True, False]


def test_rewards_are_clipped_at_zero_and_the_penalties_follow_their_level():
    task = Task(quiet(rewards={"upright": WALK.rewards["upright"]}), ROBOT, num_envs=2)
    task.world.qpos[:, 3:7] = (0.97, 0.24, 0, 0)
    _, reward, _, _ = task.step(torch.zeros(2, 29))
    assert (reward == 0).all() and (task.reward_sums < 0).all()
    ramp = {"penalties": {"term": "ramp", "params": {"low": 0.5, "start": 0.5}}}
    checked = Recipe.model_validate(quiet().model_dump() | {"curriculum": ramp}, strict=False)
    assert Task(checked, ROBOT, num_envs=1).levels["penalties"] == 0.5


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
def test_delay_holds_the_old_target_for_so_many_physics_steps(delay: int):
    task = Task(quiet(), ROBOT, num_envs=2)
    world, seen = task.world, []
    world.delay[:] = torch.tensor([0, delay])
    old, new = torch.zeros(2, 29), torch.ones(2, 29)
    world.step(old)
    real = world.batch.step

    def watched(nstep: int, **options: Any) -> None:
        seen.extend([world.ctrl[1, 0]] * nstep)
        real(nstep=nstep, **options)

    world.batch.step = watched  # pyright: ignore[reportAttributeAccessIssue] - watched, then real
    world.step(new)
    assert seen == [0.0] * delay + [1.0] * (3 - delay)
    assert world.ctrl[0, 0] == 1.0


def test_randomisation_stays_in_its_ranges_and_differs_between_environments():
    task = Task(recipe(curriculum={}), ROBOT, num_envs=64)
    world, table, model = task.world, WALK.randomisation, task.world.model
    friction = world.fields["geom_friction"][:, world.spheres[0], 0]
    low, high = table["friction"]["range"]
    assert low <= friction.min() < 0.4 and 1.1 < friction.max() <= high
    kp = world.fields["actuator_gainprm"][:, :, 0] / model.actuator_gainprm[:, 0]
    bias = world.fields["actuator_biasprm"][:, :, 1] / model.actuator_biasprm[:, 1]
    assert 0.9 <= kp.min() < 0.92 and 1.08 < kp.max() <= 1.1
    np.testing.assert_allclose(kp, bias)  # a stiffness is one number
    hand = world.fields["body_mass"][:, world.hands[0]] / model.body_mass[world.hands[0]]
    assert hand.min() >= 0.9 and hand.max() <= 1.1 + 1.0 / model.body_mass[world.hands[0]]
    low, high = table["delay"]["steps"]
    assert set(world.delay.tolist()) == set(range(low, high + 1))
    assert world.encoder.abs().max() <= 0.015 and world.encoder.std() > 0.005
    for name in INERTIAL:
        values = world.fields[name].reshape(64, -1)
        assert (values.std(0) > 0).any(), name
    assert set(RANDOMISATION) == set(table)


def test_a_level_of_zero_is_the_nominal_robot():
    low = {"randomisation": {"term": "ramp", "params": {"start": 0.5}}}
    changed = Recipe.model_validate(WALK.model_dump() | {"curriculum": low}, strict=False)
    world = Task(changed, ROBOT, num_envs=3).world
    np.testing.assert_allclose(world.fields["body_mass"], [world.model.body_mass] * 3)
    assert world.encoder.abs().max() == 0


def test_without_noise_the_observation_is_the_terms_of_the_state():
    task = Task(quiet(), ROBOT, num_envs=3)
    task.noise = False
    run(task, 5)
    terms = task.policy_terms
    expected = terms.frame(task._sensors()) * terms.scale
    torch.testing.assert_close(task.get_observations()["policy"], expected)
    task.noise = True
    task._observe()
    difference = (task.get_observations()["policy"] - expected).abs()
    assert (difference <= terms.noise * terms.scale + 1e-6).all() and difference.max() > 0.01


def test_commands_stay_in_range_and_some_stand():
    task = Task(quiet(), ROBOT, num_envs=256)
    spec = WALK.commands
    for column, limits in ((0, spec.vx), (1, spec.vy), (2, spec.yaw_rate), (3, spec.base_height)):
        values = task.command[:, column]
        assert limits[0] <= values.min() < values.max() <= limits[1] + 1e-6
    standing = (task.command[:, :3] == 0).all(1).float().mean()
    assert 0.08 < standing < 0.25
    low, high = ROBOT.position_limit[ROBOT.arm_joints].T
    arms = task.command[:, 4:].numpy()
    assert (low <= arms).all() and (arms <= high).all() and arms.std() > 0.1


def test_a_reversal_asks_for_most_of_full_speed_the_other_way():
    commands = WALK.commands.model_copy(update={"reverse_share": 1.0})
    task = Task(quiet(commands=commands), ROBOT, num_envs=200, threads=1)
    before = task.command[:, :3].clone()
    rows = torch.arange(200)
    task._draw_command(rows)
    after = task.command[:, :3]
    walking = (before != 0).any(1)
    assert walking.sum() > 100
    full = torch.where(before > 0, torch.tensor([0.6, 0.4, 0.8]), torch.tensor([1.0, 0.4, 0.8]))
    share = -(after * before.sign() / full)[walking]
    asked = share[before[walking] != 0]
    assert asked.min() >= 0.6 - 1e-6
    assert asked.max() <= 1 + 1e-6
    assert not share[before[walking] == 0].any()


def test_rough_ground_changes_under_a_swinging_foot_only():
    task = Task(quiet(), ROBOT, num_envs=4)
    world = task.world
    world.rough[:] = torch.tensor([True, True, False, False])
    world.qpos[1:, 2] += 0.1  # all but the first hang in the air
    world.refresh(np.arange(4, dtype=np.int32))
    world.lay_ground()
    heights = world.fields["geom_pos"][:, world.planes, 2]
    assert (heights[0] == 0).all() and (heights[1] != 0).all() and (heights[2:] == 0).all()
    assert np.abs(heights).max() <= WALK.sim.rough.height
    laid = heights.copy()
    world.lay_ground()
    np.testing.assert_array_equal(world.fields["geom_pos"][:, world.planes, 2], laid)


def test_a_foot_that_stays_down_when_it_should_step_ends_the_episode_and_standing_does_not():
    given = quiet(terminations={"dragging": {"height": 0.02}})
    task = Task(given, ROBOT, num_envs=3)
    task.noise = task.pushed = False
    bump = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    running, ends = (bump.sum(1, keepdim=True) > 0), []
    for _ in range(20):
        task.world.soles[:] = 0.0
        task.world.soles[2, 0] = 0.1  # lifts as the clock says
        state = task._state(bump, running)
        task._follow(state)
        ends.append(task._judge(state)[1])
    assert not ends[0].any()  # a beginner has more than a cycle
    assert ends[-1].tolist() == [True, False, False]
    assert task.lift[2, 0] == pytest.approx(0.1) and task.lift[1, 0] == pytest.approx(0.1)


def test_feet_of_the_start_touch_the_ground_they_stand_on():
    task = Task(quiet(), ROBOT, num_envs=2)
    assert task.world.foot_contact.all()
    np.testing.assert_allclose(task.world.soles.amin(2), 0.0, atol=1e-6)


def test_the_mirror_commutes_with_physics():
    # PGS goes through the contacts in order and is stopped early; Newton's answer is the same.
    task = Task(quiet(sim=WALK.sim.model_copy(update={"iterations": 100})), ROBOT, num_envs=2)
    world, mirror = task.world, task.mirror
    world.batch.expand("opt.solver")[:] = mujoco.mjtSolver.mjSOL_NEWTON
    world.batch.expand("opt.tolerance")[:] = 0
    task.noise = task.pushed = False
    task.command[0, :3] = torch.tensor([0.5, 0.2, 0.3])
    task.command[1, :3] = torch.tensor([0.5, -0.2, -0.3])
    task.command[:, 3], task.next_command[:], world.rough[:] = 0.75, 1e9, False
    task.command[1, 4:] = mirror.action(torch.cat([torch.zeros(15), task.command[0, 4:]]))[15:]
    task.phase[:] = torch.tensor([[0.1], [0.6]])
    joints = world.body.default_joint_pos + 0.05 * torch.randn(29, generator=world.generator)
    world.qpos[:, 2] += 0.02
    world.qpos[0, 3:7], world.qpos[1, 3:7] = (0.99, 0.02, 0.03, 0.1), (0.99, -0.02, 0.03, -0.1)
    world.qpos[0, 7:], world.qpos[1, 7:] = joints, mirror.action(joints)
    world.qvel[0, :6], world.qvel[1, :6] = (
        (0.3, 0.1, 0, 0.2, 0.3, 0.1),
        (0.3, -0.1, 0, -0.2, 0.3, -0.1),
    )
    world.refresh(np.arange(2, dtype=np.int32))
    task.first[:] = 1
    fixed = task.command.clone()
    for step in range(6):
        action = actions(task, step)[:1]
        _, reward, _, _ = task.step(torch.cat([action, mirror.action(action)]))
        task.command = fixed.clone()
        task._observe()
        policy, critic = task.get_observations()["policy"], task.get_observations()["critic"]
        off = [
            (mirror.policy(policy[0]) - policy[1]).abs().max().item(),
            (mirror.critic(critic[0]) - critic[1]).abs().max().item(),
            (reward[0] - reward[1]).abs().item(),
        ]
        # The real robot's halves differ by a tenth of a per cent; a wrong sign is off by 0.1 to 2.
        assert max(off) < 0.005, step
