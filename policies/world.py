"""Training physics: many simulations of a light model, each with its own body and ground.

Only soles and ground touch: four spheres per foot, and one plane per foot which on rough ground is
laid anew while the foot swings, so that every step lands a little higher, lower or aslant. On
terrain (ground.py) the planes are its floor, and boxes stand on it. It knows nothing of rewards or
policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from numpy.typing import NDArray
from torch import Tensor

from policies.ground import AWAY, SLOTS, Ground
from policies.terms import Body
from robot.model import Robot, build_spec

if TYPE_CHECKING:  # recipe.py holds its rows against the table here
    from policies.recipe import Recipe

Array = NDArray[np.float64]
Ids = NDArray[np.int32]  # (n,) sorted rows of simulations
FREE_POS, FREE_VEL = 7, 6  # the floating base comes first in qpos and qvel
CONTACT = 0.003  # m of the lowest sphere over the ground that count as contact
CELL_STEP = 0.006  # m more on terrain, whose heights are those of a cell's middle
LIFTED = 0.04  # m that a foot must be over the ground before the ground below it changes
PUSH_ON_TERRAIN = 0.4  # share of a push: whom ground fells already need not be pushed hard
HEADING = 0.5  # rad off the way that a terrain is made for, at most
HIGHEST = 0.3  # m that a foot is asked to rise for what lies before it
TOES = 4  # bit of what touches boxes and no plane
BEFORE = (0.12, 0.19)  # m before the middle of a sole: at its toe, and where it will be soon
STAGE = mujoco.mjtStage.mjSTAGE_VEL
# Fields of the model that differ between simulations; the first group needs set_const afterwards.
INERTIAL = ("body_mass", "body_inertia", "body_ipos", "dof_armature")
FIELDS = (
    *INERTIAL, "geom_friction", "geom_pos", "geom_quat", "actuator_gainprm", "actuator_biasprm",
)  # fmt: skip
BOX_FIELDS = ("geom_size", "geom_rbound")  # with terrain only


class World:
    """A batch of simulations.

    Args:
        recipe: physics and ground.
        robot, body: the robot and its constants.
        num_envs: B.
        seed: of everything that is drawn.
        threads: 0 is one per core.
    """

    def __init__(
        self, recipe: Recipe, robot: Robot, body: Body, num_envs: int, seed: int, threads: int
    ) -> None:
        self.recipe, self.body, self.num_envs = recipe, body, num_envs
        self.generator = torch.Generator().manual_seed(seed)
        model = self.model = training_model(recipe, robot, body)
        # Persistent: quantities of the new state then cost nothing beside the step.
        self.batch = Batch(model, num_envs, nthread=threads, persistent=True)
        self.qpos: Array = self.batch.bind("qpos")
        self.qvel: Array = self.batch.bind("qvel")
        self.ctrl: Array = self.batch.bind("ctrl")
        self._geom_xpos: Array = self.batch.bind("geom_xpos")
        self._force: Array = self.batch.bind("actuator_force")
        terrain = recipe.terrain
        names = FIELDS if terrain is None else FIELDS + BOX_FIELDS
        self.fields: dict[str, Array] = {name: self.batch.expand(name) for name in names}
        self.planes = np.array([model.geom(f"ground_{side}").id for side in ("left", "right")])
        self.spheres = np.array([
            model.geom(f"{side}_{i}").id
            for side in ("left", "right") for i in range(len(recipe.sim.feet.points))
        ])  # fmt: skip
        count = len(body.joint_names)
        self.hands = [model.body(name).id for name in _hand_bodies(robot, model)]
        self.torso = model.body(robot.gantry.body).id
        self.start_height = _start_height(model, body, self.spheres, recipe.sim.feet.radius)
        points = torch.tensor(recipe.sim.feet.points)[:, :2]
        # Least squares: heights of the spheres -> slope of the sole against the ground.
        self.to_slope = torch.linalg.pinv(points - points.mean(0)).T.contiguous()
        self.delay = torch.zeros(num_envs, dtype=torch.long)  # physics steps
        self.encoder = torch.zeros(num_envs, count)  # rad added to joint positions
        order = torch.arange(num_envs)
        share = 0.0 if terrain is None else terrain.share
        on_terrain = order >= num_envs - round(share * num_envs)
        self.ground = None if terrain is None else Ground(terrain, on_terrain, self.generator)
        self.boxes = np.array([model.geom(f"box_{i}").id for i in range(SLOTS if terrain else 0)])
        self.rough = (order < round(recipe.sim.rough.share * num_envs)) & ~on_terrain
        self.rough_level = 1.0
        self.laid = torch.zeros(num_envs, 2, dtype=torch.bool)  # since the foot's last contact
        self.push_speed = torch.zeros(2)  # m/s, rad/s
        self.push_interval: tuple[float, float] = (math.inf, math.inf)  # s
        self.next_push = torch.full((num_envs,), math.inf)  # s
        self._old_ctrl = np.zeros((num_envs, count))
        self._feet = torch.zeros(num_envs, 2, 2)
        self.stood = torch.zeros(num_envs, 2)  # m, height of the ground each foot stood on last
        self.read()

    # --- drawing --------------------------------------------------------------------------------

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers from this world's generator."""
        return torch.rand(*shape, generator=self.generator) * (high - low) + low

    # --- physics --------------------------------------------------------------------------------

    def step(self, targets: Tensor) -> None:
        """One policy step; each simulation goes on with its old targets for its delay.

        Args:
            targets: (B, N) rad.
        """
        new, decimation = targets.double().numpy(), self.recipe.sim.decimation
        at = [0, *sorted({int(d) for d in self.delay.unique()} - {0, decimation}), decimation]
        delay = self.delay.numpy()
        for begin, end in pairwise(at):
            self.ctrl[:] = np.where((delay <= begin)[:, None], new, self._old_ctrl)
            self.batch.step(nstep=end - begin, stage=STAGE)
        self._old_ctrl[:] = new
        before = self._feet
        self.read()
        self.foot_velocity = (self._feet - before) / self.recipe.step_dt

    def read(self) -> None:
        """Tensors of the state as it is now."""
        pos, vel = torch.from_numpy(self.qpos), torch.from_numpy(self.qvel)
        self.finite = torch.isfinite(pos).all(1) & (vel.abs().amax(1) < 1e3)
        self.base_pos = pos[:, :3].float()
        self.quat = pos[:, 3:FREE_POS].float()
        self.joint_pos = pos[:, FREE_POS:].float()
        self.lin_vel_w = vel[:, :3].float()
        self.gyro = vel[:, 3:FREE_VEL].float()
        self.joint_vel = vel[:, FREE_VEL:].float()
        self.effort = torch.from_numpy(self._force.astype(np.float32))
        points = len(self.recipe.sim.feet.points)
        centres = torch.from_numpy(self._geom_xpos[:, self.spheres]).view(-1, 2, points, 3)
        ground = torch.from_numpy(self.fields["geom_pos"][:, self.planes])  # (B, 2, 3)
        normal = _normal(torch.from_numpy(self.fields["geom_quat"][:, self.planes]))
        above = ((centres - ground.unsqueeze(2)) * normal.unsqueeze(2)).sum(3)
        self.soles = (above - self.recipe.sim.feet.radius).float()  # (B, 2, points) m
        self.foot_pos = centres.mean(2).float()  # (B, 2, 3) m
        if self.ground is not None:
            self._read_terrain(self.ground, centres.float())
        near = CONTACT if self.ground is None else CONTACT + CELL_STEP * self.ground.rows[:, None]
        self.foot_contact = (self.soles.amin(2) < near).float()
        below = ground[:, :, 2].float()
        if self.ground is not None:
            rows = self.ground.rows[:, None]
            # By the foot itself: below it there may be an edge, or beside it a step.
            lowest = centres[..., 2].amin(2).float() - self.recipe.sim.feet.radius
            self.stood = torch.where(rows & (self.foot_contact > 0), lowest, self.stood)
            below = torch.where(rows, self.stood, below)
        self.ground_height = below.mean(1)  # (B,)
        self._feet = self.foot_pos[:, :, :2]
        self.foot_velocity = torch.zeros(self.num_envs, 2, 2)

    def _read_terrain(self, ground: Ground, centres: Tensor) -> None:
        """Soles over the terrain below each of their points, (B, 2, points, 3) m."""
        rows = torch.nonzero(ground.rows).flatten()
        points = centres[rows]
        under = ground.heights(rows, points[..., :2].flatten(1, 2)).view(points.shape[:3])
        above = points[..., 2] - under - self.recipe.sim.feet.radius
        # A point that touches a step from the side may be in the cell of its top.
        self.soles[rows] = above.clamp(min=-CELL_STEP)

    def rise(self, ahead: Tensor) -> Tensor:
        """By how much the ground before each foot is higher than below it.

        Args:
            ahead: (B, 2) unit vectors in the world, or zero for who goes nowhere.

        Returns:
            (B, 2) m, 0 on even ground.
        """
        out = torch.zeros(self.num_envs, 2)
        if (ground := self.ground) is None:
            return out
        rows = torch.nonzero(ground.rows).flatten()
        steps = torch.tensor((0.0, *BEFORE)).view(1, 1, -1, 1)
        at = self.foot_pos[rows, :, None, :2] + steps * ahead[rows, None, None]
        heights = ground.heights(rows, at.flatten(1, 2)).view(at.shape[:3])
        out[rows] = (heights[..., 1:].amax(2) - heights[..., 0]).clamp(0.0, HIGHEST)
        return out

    def refresh(self, ids: Ids) -> None:
        """Kinematics of simulations whose state was written."""
        if len(ids):
            self.batch.forward(ids, stage=STAGE)
            velocity = self.foot_velocity
            self.read()
            velocity[torch.from_numpy(ids).long()] = 0
            self.foot_velocity = velocity

    def reset(self, ids: Ids, level: dict[str, float], table: dict[str, dict]) -> None:
        """New episodes: nominal physics, then each row of the recipe's randomisation.

        Args:
            ids: (n,) sorted int32.
            level: of the curriculum.
            table: randomisation of the recipe, name -> parameters.
        """
        for name, values in self.fields.items():
            values[ids] = _nominal(self.model, name)
        rows = torch.from_numpy(ids).long()
        self.delay[rows], self.encoder[rows], self.laid[rows] = 0, 0.0, False
        self.stood[rows] = 0
        self._lay_flat(ids)
        self.qvel[ids] = 0
        self.qpos[ids, :FREE_POS] = (0, 0, self.start_height, 1, 0, 0, 0)
        self.qpos[ids, FREE_POS:] = self.body.default_joint_pos.numpy()
        self.batch.bind("qacc_warmstart")[ids] = 0
        for name, params in table.items():
            RANDOMISATION[name](self, ids, level, **params)
        self._old_ctrl[ids] = self.qpos[ids, FREE_POS:]
        self._lay_boxes(rows)
        if any(name in INERTIAL_TERMS for name in table):
            self.batch.set_const(ids)
        self.refresh(ids)

    def push(self, now: Tensor) -> None:
        """Change the velocity of the simulations whose time has come.

        Args:
            now: (B,) s since each one's start.
        """
        rows = torch.nonzero(now >= self.next_push).flatten()
        if not len(rows):
            return
        ids, n = rows.numpy(), len(rows)
        speed, turn = self.push_speed.tolist()
        share = np.ones((n, 1))
        if self.ground is not None:
            share[self.ground.rows[rows].numpy()] = PUSH_ON_TERRAIN
        self.qvel[ids, :2] += share * self.uniform(-speed, speed, n, 2).numpy()
        self.qvel[ids, 3:FREE_VEL] += share * self.uniform(-turn, turn, n, 3).numpy()
        low, high = self.push_interval
        self.next_push[rows] = now[rows] + self.uniform(low, high, n)

    # --- ground ---------------------------------------------------------------------------------

    def lay_ground(self) -> None:
        """Under each foot that swings on rough ground, once per swing: another height and slope."""
        contact = self.foot_contact > 0
        self.laid &= ~contact
        due = ~self.laid & (self.soles.amin(2) > LIFTED) & self.rough.unsqueeze(1)
        self.laid |= due
        rows, feet = torch.nonzero(due, as_tuple=True)
        if not len(rows) or self.rough_level == 0.0:
            return
        rough, n = self.recipe.sim.rough, len(rows)
        ids, planes = rows.numpy(), self.planes[feet.numpy()]
        place = self.fields["geom_pos"]
        place[ids, planes, :2] = self.foot_pos[rows, feet, :2].numpy()
        # Around zero, so that the ground does not wander off.
        place[ids, planes, 2] = (self.uniform(-1, 1, n) * rough.height * self.rough_level).numpy()
        lean = self.uniform(-1, 1, n, 2) * (0.5 * rough.slope * self.rough_level)
        quat = torch.cat([torch.ones(n, 1), lean, torch.zeros(n, 1)], 1)
        quat /= quat.norm(dim=1, keepdim=True)
        self.fields["geom_quat"][ids, planes] = quat.numpy()

    def lay_boxes(self) -> None:
        """Terrain nearest to the robots, to a few of them in each step."""
        if self.ground is not None:
            self._lay_boxes(self.ground.due())

    def _lay_boxes(self, rows: Tensor) -> None:
        ground = self.ground
        if ground is None:
            return
        rows = rows[ground.rows[rows]]
        xy = torch.from_numpy(self.qpos[rows.numpy(), :2]).float()
        centre, quat, half = ground.nearest(rows, xy)
        slots = np.ix_(rows.numpy(), self.boxes)
        self.fields["geom_pos"][slots] = centre.numpy()
        self.fields["geom_quat"][slots] = quat.numpy()
        self.fields["geom_size"][slots] = half.numpy()
        self.fields["geom_rbound"][slots] = half.norm(dim=2).numpy()
        self.fields["geom_pos"][rows.numpy()[:, None], self.planes, 2] = (
            ground.floor[ground.terrain[rows]].unsqueeze(1).numpy()
        )

    def _lay_flat(self, ids: Ids) -> None:
        rows = np.ix_(ids, self.planes)
        self.fields["geom_pos"][rows] = 0
        self.fields["geom_quat"][rows] = (1, 0, 0, 0)

    def headings(self, ids: Ids, drawn: Tensor) -> Tensor:
        """(n,) rad: as drawn, but on terrain within HEADING of the x axis or its opposite."""
        if self.ground is None:
            return drawn
        share = drawn.abs() * (2 / math.pi) - 1  # -1 to 1
        along = share * HEADING + math.pi * (drawn < 0)
        return torch.where(self.ground.rows[torch.from_numpy(ids).long()], along, drawn)

    # --- resuming ---------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Everything that the next step depends on."""
        names = (
            "delay", "encoder", "laid", "push_speed", "next_push", "foot_velocity", "_feet",
            "stood",
        )  # fmt: skip
        return {
            "generator": self.generator.get_state(),
            "state": torch.from_numpy(self.batch.state.copy()),
            "old_ctrl": torch.from_numpy(self._old_ctrl.copy()),
            "fields": {name: torch.from_numpy(v.copy()) for name, v in self.fields.items()},
            "push_interval": self.push_interval,
            "rough_level": self.rough_level,
            "tensors": {name: getattr(self, name).clone() for name in names},
            "ground": None if self.ground is None else self.ground.state_dict(),
        }

    def load_state_dict(self, given: dict) -> None:
        """Go on from a state_dict of the same recipe and size."""
        self.generator.set_state(given["generator"])
        for name, values in given["fields"].items():
            self.fields[name][:] = values.numpy()
        self.batch.set_const()
        self.batch.state[:] = given["state"].numpy()
        self._old_ctrl[:] = given["old_ctrl"].numpy()
        self.push_interval, self.rough_level = tuple(given["push_interval"]), given["rough_level"]
        if self.ground is not None:
            self.ground.load_state_dict(given["ground"])
        self.batch.forward(stage=STAGE)
        self.read()
        for name, value in given["tensors"].items():
            setattr(self, name, value.clone())


# --- randomisation: what differs between episodes; the curriculum's level contracts to nominal ---

Level = dict[str, float]


def friction(w: World, ids: Ids, level: Level, *, range: tuple = (0.3, 1.2)) -> None:
    """Sliding friction of the soles."""
    values = w.fields["geom_friction"]
    nominal = w.model.geom_friction[w.spheres[0], 0]
    drawn = _contracted(w.uniform(*range, len(ids)).numpy(), nominal, level)
    values[np.ix_(ids, w.spheres, np.zeros(1, np.intp))] = drawn[:, None, None]


def mass(w: World, ids: Ids, level: Level, *, scale: tuple = (0.9, 1.1),
         torso: tuple = (-1.0, 2.0)) -> None:  # fmt: skip
    """Every body's mass and inertia by one factor each, and kg added to the torso."""
    factor = _contracted(w.uniform(*scale, len(ids), w.model.nbody).numpy(), 1.0, level)
    w.fields["body_mass"][ids] *= factor
    w.fields["body_inertia"][ids] *= factor[:, :, None]
    w.fields["body_mass"][ids, w.torso] += _contracted(
        w.uniform(*torso, len(ids)).numpy(), 0.0, level
    )


def centre_of_mass(w: World, ids: Ids, level: Level, *, offset: tuple = (-0.03, 0.03)) -> None:
    """The torso's, m along each axis."""
    moved = _contracted(w.uniform(*offset, len(ids), 3).numpy(), 0.0, level)
    w.fields["body_ipos"][ids, w.torso] += moved


def payload(w: World, ids: Ids, level: Level, *, kg: tuple = (0.0, 1.5)) -> None:
    """A mass in each hand."""
    for hand in w.hands:
        w.fields["body_mass"][ids, hand] += _contracted(
            w.uniform(*kg, len(ids)).numpy(), 0.0, level
        )


def armature(w: World, ids: Ids, level: Level, *, scale: tuple = (0.9, 1.1)) -> None:
    """Reflected inertia of each motor."""
    factor = w.uniform(*scale, len(ids), len(w.body.joint_names)).numpy()
    w.fields["dof_armature"][ids, FREE_VEL:] *= _contracted(factor, 1.0, level)


def gains(w: World, ids: Ids, level: Level, *, stiffness: tuple = (0.9, 1.1),
          damping: tuple = (0.9, 1.1)) -> None:  # fmt: skip
    """Stiffness and damping of each motor."""
    shape = len(ids), len(w.body.joint_names)
    kp = _contracted(w.uniform(*stiffness, *shape).numpy(), 1.0, level)
    kd = _contracted(w.uniform(*damping, *shape).numpy(), 1.0, level)
    w.fields["actuator_gainprm"][ids, :, 0] *= kp
    w.fields["actuator_biasprm"][ids, :, 1] *= kp
    w.fields["actuator_biasprm"][ids, :, 2] *= kd


def encoder(w: World, ids: Ids, level: Level, *, offset: tuple = (-0.015, 0.015)) -> None:
    """rad that each measured joint position is off."""
    drawn = w.uniform(*offset, len(ids), len(w.body.joint_names)) * level["randomisation"]
    w.encoder[torch.from_numpy(ids).long()] = drawn


def delay(w: World, ids: Ids, level: Level, *, steps: tuple = (0, 3)) -> None:
    """Physics steps, lowest to highest, until new targets reach the motors."""
    low, high = steps
    drawn = w.uniform(low, (high - low) * level["delay"] + low + 1, len(ids))
    w.delay[torch.from_numpy(ids).long()] = drawn.floor().long().clamp(low, high)


def pushes(w: World, ids: Ids, level: Level, *, speed: float = 0.5, turn: float = 0.3,
           interval: tuple = (4.0, 8.0)) -> None:  # fmt: skip
    """Sudden velocity up to `speed` m/s per horizontal axis and `turn` rad/s per axis."""
    w.push_speed = torch.tensor([speed, turn]) * level["pushes"]
    w.push_interval = (float(interval[0]), float(interval[1]))
    w.next_push[torch.from_numpy(ids).long()] = w.uniform(*w.push_interval, len(ids))


def start(w: World, ids: Ids, level: Level, *, joint: float = 0.1, speed: float = 0.3,
          tilt: float = 0.05, drop: float = 0.01) -> None:  # fmt: skip
    """Joints off the default pose by rad, a base speed per axis, a tilt, m above the ground.

    All but the last grow with the level: a beginner starts near where standing is easy.
    """
    n, count, share = len(ids), len(w.body.joint_names), level["randomisation"]
    joint, speed, tilt = share * joint, share * speed, share * tilt
    low, high = w.body.position_limit.numpy().T
    pos = w.qpos[ids, FREE_POS:] + w.uniform(-joint, joint, n, count).numpy()
    w.qpos[ids, FREE_POS:] = np.clip(pos, low, high)
    lean = w.uniform(-tilt, tilt, n, 2).numpy() / 2
    turn = w.headings(ids, w.uniform(-math.pi, math.pi, n)).numpy() / 2
    cos, sin, x, y = np.cos(turn), np.sin(turn), lean[:, 0], lean[:, 1]
    quat = np.stack([cos, cos * x - sin * y, cos * y + sin * x, sin], 1)  # yaw times a small tilt
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    w.qpos[ids, 3:FREE_POS] = quat
    w.qpos[ids, 2] += w.uniform(0, drop, n).numpy()
    w.qvel[ids, :2] = w.uniform(-speed, speed, n, 2).numpy()


RANDOMISATION: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        friction, mass, centre_of_mass, payload, armature, gains, encoder, delay, pushes, start,
    )
}  # fmt: skip
INERTIAL_TERMS = {"mass", "centre_of_mass", "payload", "armature"}


def _contracted(drawn: Array, nominal: float, level: Level) -> Array:
    return nominal + (drawn - nominal) * level["randomisation"]


# --- the model ------------------------------------------------------------------------------------


def training_model(recipe: Recipe, robot: Robot, body: Body) -> mujoco.MjModel:
    """The robot without shapes, on spheres, over one plane per foot, with the policy's gains."""
    spec, sim = build_spec(robot, "feet"), recipe.sim
    for geom in list(spec.geoms):
        spec.delete(geom)
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    for bit, side in ((1, "left"), (2, "right")):
        # Off the world's origin, or the compiler would fix it there for good.
        spec.worldbody.add_geom(
            name=f"ground_{side}", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05],
            pos=[0.1, 0.1, -0.1], quat=[0.99, 0.1, 0.1, 0], contype=bit, conaffinity=0,
        )  # fmt: skip
        foot = spec.site(getattr(sim.feet, side)).parent
        for i, point in enumerate(sim.feet.points):
            foot.add_geom(
                name=f"{side}_{i}", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[sim.feet.radius, 0, 0],
                pos=point, contype=0, conaffinity=bit, condim=3, priority=1,
                friction=[0.6, 0.005, 0.0001], mass=0,
            )  # fmt: skip
        for i, point in enumerate(sim.feet.toes):
            foot.add_geom(
                name=f"{side}_toe_{i}", type=mujoco.mjtGeom.mjGEOM_SPHERE,
                size=[sim.feet.toe_radius, 0, 0], pos=point, contype=0, conaffinity=TOES, condim=3,
                priority=1, friction=[0.6, 0.005, 0.0001], mass=0,
            )  # fmt: skip
    for i in range(SLOTS if recipe.terrain else 0):
        spec.worldbody.add_geom(
            name=f"box_{i}", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.01, 0.01, 0.01],
            pos=[0.1, 0.1, AWAY], quat=[0.99, 0.1, 0.1, 0], contype=3 | TOES, conaffinity=0,
        )  # fmt: skip
    if recipe.terrain:  # midphase knows the boxes as they were compiled, and ours move
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    spec.option.timestep = sim.physics_dt
    spec.option.solver = mujoco.mjtSolver.mjSOL_PGS
    spec.option.iterations = sim.iterations
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    model = spec.compile()
    model.actuator_gainprm[:, 0] = body.stiffness
    model.actuator_biasprm[:, 1] = -body.stiffness
    model.actuator_biasprm[:, 2] = -body.damping
    return model


def _nominal(model: mujoco.MjModel, name: str) -> Array:
    return getattr(model, name)


def _hand_bodies(robot: Robot, model: mujoco.MjModel) -> list[str]:
    """Bodies of the last arm joint of each side."""
    arms = [robot.joint_names[i] for i in robot.arm_joints]
    last = [[name for name in arms if name.startswith(side)][-1] for side in ("left_", "right_")]
    return [model.body(int(model.joint(name).bodyid[0])).name for name in last]


def _start_height(
    model: mujoco.MjModel, body: Body, spheres: NDArray[np.intp], radius: float
) -> float:
    """m of the base when the default pose stands on flat ground."""
    data = mujoco.MjData(model)
    data.qpos[FREE_POS:] = body.default_joint_pos.numpy()
    mujoco.mj_kinematics(model, data)
    return float(data.qpos[2] - data.geom_xpos[spheres, 2].min() + radius)


def _normal(quat: Tensor) -> Tensor:
    """(..., 3) the z axis of a frame."""
    w, x, y, z = quat.unbind(-1)
    return torch.stack([2 * (w * y + x * z), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], -1)
