"""Terrain under training: heights are the terrain's, boxes are where rays find them, levels."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from policies.eyes import XY, Eyes
from policies.ground import AWAY, SLOTS, Ground, difficulty
from policies.recipe import EyesRecipe, Recipe, TerrainRecipe, load_recipe
from policies.rewards import REWARDS, TERMINATIONS
from policies.task import Task
from policies.terms import make_body
from policies.world import training_model
from robot.geomap import SCAN_XY
from robot.model import load_robot
from robot.terrain import FAMILIES, make_terrain

ROBOT = load_robot("g1")
FAMILIES_HERE = ["stairs-up", "boxes", "slopes"]
TERRAIN = TerrainRecipe(
    share=0.5, families=FAMILIES_HERE, levels=2, hardest=0.5, seeds=1, ahead=1.0,
    ahead_vx=(0.4, 0.6),
)  # fmt: skip
EXACT = EyesRecipe(
    blind=0.0, delay=(0, 0), every=(5.0, 5.0), position=0, offset=0, tilt=0, heading=0, cell=0,
    white=0, unseen=0,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def seeing(**changes) -> Recipe:
    recipe = load_recipe("terrain-walk")
    quiet = {"randomisation": {"start": {"joint": 0.0, "speed": 0.0, "tilt": 0.0, "drop": 0.0}}}
    return recipe.model_copy(update={"terrain": TERRAIN, "eyes": EXACT} | quiet | changes)


def ground(count: int = 12) -> Ground:
    return Ground(TERRAIN, torch.ones(count, dtype=torch.bool), torch.Generator().manual_seed(0))


def test_heights_are_those_of_the_terrain_but_at_edges():
    rows, some = torch.arange(12), ground()
    some.level[:] = 1
    some.assign(rows, torch.zeros(12, dtype=torch.bool), *torch.zeros(2, 12))
    rng = np.random.default_rng(0)
    xy = rng.uniform((-9, -3), (9, 3), (12, 400, 2))
    got = some.heights(rows, torch.from_numpy(xy).float()).numpy()
    for row in range(12):
        family = FAMILIES_HERE[row % 3]
        true = make_terrain(family, 0, difficulty(family, 0.5)).heights(xy[row])
        wrong = np.abs(got[row] - true) > 0.02
        assert wrong.mean() < 0.1, family  # a cell is 2.5 cm, an edge every 30
        assert np.ptp(true) > 0.05


def test_a_level_is_won_by_walking_far_and_lost_by_a_fall_and_the_family_stays():
    some, rows = ground(), torch.arange(12)
    fell, stood = torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)

    def end(fallen: torch.Tensor, walked: float, asked: float) -> None:
        some.assign(rows, fallen, torch.full((12,), walked), torch.full((12,), asked))

    end(stood, 1.0, 1.5)
    assert (some.level == 0).all(), "nobody got anywhere"
    end(stood, 5.0, 9.0)
    assert (some.level == 1).all()
    assert (some.terrain == 3 + rows % 3).all()
    end(stood, 1.0, 1.5)
    assert (some.level == 1).all(), "nobody was asked to go far"
    end(fell, 5.0, 5.0)
    assert (some.level == 0).all()
    some.level[:] = 1
    end(stood, 4.2, 9.0)
    assert (some.level == 0).all(), "stood before what is too high"
    some.level[:] = 1
    end(stood, 5.0, 5.0)
    assert set(some.level.tolist()) == {0, 1}, "who has done the hardest goes anywhere"


def test_a_family_listed_twice_has_twice_the_robots_and_one_level():
    twice = TERRAIN.model_copy(update={"families": ["boxes", "rubble", "boxes"]})
    some = Ground(twice, torch.ones(12, dtype=torch.bool), torch.Generator().manual_seed(0))
    some.level = torch.arange(12) % 3 // 2  # the second listing's robots are at level 1
    assert some.mean_levels() == {"boxes": 0.5, "rubble": 0.0}


def test_the_nearest_boxes_are_those_around_the_robot():
    some = ground()
    some.terrain[:] = 1  # boxes
    boxes = make_terrain("boxes", 0, FAMILIES["boxes"].easy).boxes
    at = torch.tensor([[2.0, 0.5]])
    centre, quat, half = some.nearest(torch.tensor([0]), at)
    assert centre.shape == (1, SLOTS, 3) and quat.shape == (1, SLOTS, 4) == (*half.shape[:2], 4)
    near = sorted(np.linalg.norm(box.centre()[:2] - at[0].numpy()) for box in boxes)[:4]
    got = sorted(np.linalg.norm(centre[0, :, :2] - at, axis=1))[:4]
    np.testing.assert_allclose(got, near, atol=1e-5)


def test_rays_in_the_physics_find_the_ground_that_the_grid_has():
    task = Task(seeing(), ROBOT, num_envs=6, threads=1)
    world, some = task.world, task.world.ground
    assert some is not None and some.rows.tolist() == [False] * 3 + [True] * 3
    some.level[:] = 1
    task.reset()
    differs = []
    for row in (3, 4, 5):
        model, data = world.batch.get_model(row), world.batch.get_data(row)
        mujoco.mj_forward(model, data)
        for x in np.linspace(-1.6, 1.6, 23):
            down, start = np.array([0, 0, -1.0]), np.array([x, 0.31, 4.0])
            hit = 4.0 - mujoco.mj_ray(model, data, start, down, None, 1, -1, None)
            told = some.heights(torch.tensor([row]), torch.tensor([[[x, 0.31]]]).float()).item()
            differs.append(abs(hit - told) > 0.02)
    assert np.mean(differs) < 0.1, "only beside an edge"


def test_robots_stand_on_terrain_and_even_ground_has_no_boxes():
    task = Task(seeing(), ROBOT, num_envs=6, threads=1)
    task.noise = task.pushed = False
    for _ in range(10):
        task.step(torch.zeros(6, 29))
    world = task.world
    assert (world.foot_contact.amax(1) == 1).all() and (world.ground_height.abs() < 0.03).all()
    assert (world.fields["geom_pos"][:3, world.boxes, 2] == AWAY).all()
    assert (world.fields["geom_pos"][3:, world.boxes, 2] > AWAY).any(axis=1).all()


def test_a_foot_is_told_of_the_step_before_it_and_of_none_behind_or_on_even_ground():
    task = Task(seeing(), ROBOT, num_envs=6, threads=1)
    world, some = task.world, task.world.ground
    assert some is not None
    some.level[:], some.terrain[:] = 1, some.count  # stairs up, the harder
    step = make_terrain("stairs-up", 0, difficulty("stairs-up", 0.5)).heights([[1.05, 0.0]])[0]
    forward = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    world.foot_pos[:, 0], world.foot_pos[:, 1] = torch.tensor([[0.85, 0, 0], [0.7, 0, 0]])
    assert world.rise(forward)[:3].abs().max() == 0, "who walks on even ground"
    assert world.rise(forward)[3:, 0] == pytest.approx(step, abs=1e-4)
    assert world.rise(forward)[3:, 1].abs().max() == 0, "0.3 m before the step"
    assert world.rise(-forward)[3:].abs().max() == 0 and world.rise(0 * forward).abs().max() == 0
    state = task._state(torch.tensor([[1.0, 0.0]]).expand(6, 2), torch.ones(6, 1))
    state.foot_height, state.moving = torch.zeros(6, 2), torch.ones(6)
    state.foot_height[:, 0] = 0.1
    state.rise = torch.zeros(6, 2)
    flat = REWARDS["foot_phase"](state, height=0.1)
    assert flat == pytest.approx(1.0)
    state.rise[:, 0] = 0.1
    assert (REWARDS["foot_phase"](state, height=0.1) < 0.3).all(), "it must rise as high again"
    state.foot_height[:, 0] = 0.2
    assert REWARDS["foot_phase"](state, height=0.1) == pytest.approx(1.0)


@pytest.mark.parametrize("height, stopped", [(0.005, False), (0.08, True)])
def test_a_toe_is_stopped_by_a_step_and_touches_nothing_where_the_foot_stands(height, stopped):
    recipe = seeing()
    model = training_model(recipe, ROBOT, make_body(recipe, ROBOT))
    data = mujoco.MjData(model)
    box, toe = model.geom("box_0").id, model.geom("left_toe_0").id
    plane = model.geom("ground_left").id
    model.geom_pos[plane], model.geom_quat[plane] = 0, (1, 0, 0, 0)
    spheres = [model.geom(f"left_{i}").id for i in range(4)]
    mujoco.mj_kinematics(model, data)
    data.qpos[2] -= data.geom_xpos[spheres, 2].min() - recipe.sim.feet.radius
    mujoco.mj_kinematics(model, data)
    x, y, z = data.geom_xpos[toe]
    assert 0.0 < z - recipe.sim.feet.toe_radius < 0.02, "over the sole"
    assert x > data.geom_xpos[spheres, 0].max() + recipe.sim.feet.radius, "before all else"
    face = x + 0.9 * recipe.sim.feet.toe_radius  # a little into the toe
    model.geom_size[box], model.geom_rbound[box] = (0.1, 0.5, 0.5 * height), 1.0
    model.geom_pos[box], model.geom_quat[box] = (face + 0.1, y, 0.5 * height), (1, 0, 0, 0)
    mujoco.mj_forward(model, data)
    against = [c for c in data.contact if toe in c.geom]
    assert all(box in c.geom for c in against), "no plane"
    assert any(abs(c.frame[0]) > 0.95 for c in against) == stopped


def test_commands_on_terrain_ask_to_walk_on_and_robots_look_along_it():
    task = Task(seeing(), ROBOT, num_envs=40, threads=1)
    rows = task._uneven > 0
    vx = task.command[rows, 0]
    assert (vx >= 0.4).all() and (vx <= 0.6).all()
    assert (task.command[~rows, 0] < 0.4).any()
    quat = task.world.quat[rows]
    yaw = 2 * torch.atan2(quat[:, 3], quat[:, 0])
    assert torch.sin(yaw).abs().max() < np.sin(0.51)


def test_who_walks_on_terrain_is_steered_along_it_and_a_level_is_won_along_it_only():
    task = Task(seeing(), ROBOT, num_envs=12, threads=1)
    world, rows = task.world, task._uneven > 0
    for yaw, y, turn in ((0.2, 0.0, -0.3), (-0.1, 0.0, 0.15), (0.0, 0.4, -0.3), (3.0, 0.0, 0.212),
                         (np.pi, 0.4, 0.3), (1.5, 0.0, -0.5)):  # fmt: skip
        world.quat[:] = torch.tensor([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        world.base_pos[:, 1] = y
        task._steer()
        assert task.command[rows, 2] == pytest.approx(turn, abs=2e-3), (yaw, y)
        state = task._state(torch.zeros(12, 2), torch.ones(12, 1))
        assert (TERMINATIONS["aside"](state) == (rows & (yaw == 1.5))).all()
    task.on_way[:] = False
    task._steer()
    assert not TERMINATIONS["aside"](task._state(torch.zeros(12, 2), torch.ones(12, 1))).any(), (
        "who was turned aside by a command is still to come back"
    )
    some = world.ground
    assert some is not None
    assert (task.asked[rows] > 0.02).all()
    assert not task.asked[~rows].any()
    some.level[:] = 0
    world.base_pos[:] = torch.tensor([0.5, 6.0, 0.8])
    task._reset(torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool))
    assert (some.level == 0).all(), "strolled along the first step"
    assert not task.asked.any()
    world.base_pos[:] = torch.tensor([-5.0, 0.0, 0.8])
    task._reset(torch.ones(12, dtype=torch.bool), torch.zeros(12, dtype=torch.bool))
    assert (some.level[rows] == 1).all()


def test_a_seeing_task_resumes_exactly():
    one = Task(seeing(eyes=load_recipe("terrain-walk").eyes), ROBOT, num_envs=6, threads=1)
    zeros = torch.zeros(6, 29)
    for _ in range(12):
        one.step(zeros)
    kept = one.state_dict()
    ahead = [one.step(zeros)[0]["policy"].clone() for _ in range(12)]
    other = Task(seeing(eyes=load_recipe("terrain-walk").eyes), ROBOT, num_envs=6, threads=1,
                 seed=5)  # fmt: skip
    other.load_state_dict(kept)
    for seen in ahead:
        assert torch.equal(other.step(zeros)[0]["policy"], seen)


# --- eyes -----------------------------------------------------------------------------------------


def eyes(**changes) -> Eyes:
    some = ground(6)
    some.level[:] = 1
    some.assign(torch.arange(6), torch.zeros(6, dtype=torch.bool), *torch.zeros(2, 6))
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    return Eyes(EXACT.model_copy(update=changes), some, 6, uniform)


PLACE = torch.tensor([[2.0, 0.3, 0.9]]).expand(6, 3), torch.full((6,), 0.4), torch.zeros(6)


def test_the_truth_is_the_pelvis_over_the_ground_in_the_order_of_the_map():
    assert torch.equal(XY, torch.from_numpy(SCAN_XY).float())
    some = eyes()
    got = some.truth(*PLACE)
    cos, sin = np.cos(0.4), np.sin(0.4)
    turned = SCAN_XY @ np.array([[cos, sin], [-sin, cos]]) + (2.0, 0.3)
    for row in range(3):
        family = FAMILIES_HERE[row % 3]
        true = 0.9 - make_terrain(family, 0, difficulty(family, 0.5)).heights(turned)
        assert (np.abs(got[row].numpy() - true) < 0.02).mean() > 0.85, family
    assert torch.equal(some.told(*PLACE), got), "without errors it is told as it is"


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        ({"white": 0.02}, 0.0, 0.0201),
        ({"offset": 0.05}, 0.0, 0.0501),
        ({"tilt": 0.1}, 0.001, 0.131),
    ],
)
def test_errors_are_as_large_as_the_recipe_says(change: dict, least: float, most: float):
    some = eyes(**change)
    error = (some.told(*PLACE) - some.truth(*PLACE)).abs()
    assert least < error.max() <= most


def test_a_delay_shows_what_was_and_the_blind_are_of_every_family():
    some = eyes(delay=(2, 2))
    some.reset(torch.arange(6), torch.full((6,), 0.7))
    seen = [some.told(*PLACE)[0].clone() for _ in range(3)]
    assert (seen[0] == 0.7).all() and (seen[1] == 0.7).all() and not (seen[2] == 0.7).all()
    blind = Eyes(EXACT.model_copy(update={"blind": 0.5}), ground(12), 12, torch.rand).blind
    assert {int(row) % 3 for row in torch.nonzero(blind[:, 0])} == {0, 1, 2}
    assert blind.mean() == 0.5
