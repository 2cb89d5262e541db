"""Walks the shipped policy over drawn ground, and keeps what perception saw beside what is true.

Nothing is imitated: motors, sensors and camera are the simulation's, with their noise, and what the
robot would know is what the perception stage itself says. An episode depends on its own fields
alone, so it comes out the same in any process and in any order.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.cameras.sim import SimCamera
from drivers.sim import FREE_POS, SimDriver, lowest_foot_point
from policies.manifest import VELOCITIES, read_policy
from policies.session import PolicySession
from policies.trials import HELD_OUT_SEED
from robot.calibration import Calibration
from robot.geomap import SCAN_XY
from robot.messages import VALID_HEIGHT, VALID_VELOCITY, Mode, Truth
from robot.model import Robot, load_robot
from robot.perception import STATE_TICKS, Perception
from robot.pilot import Pilot
from robot.raycast import SEEN_GROUPS
from robot.realtime import die_with_parent
from robot.rotations import heading_of, rotation_matrix
from robot.runs import (
    CameraConfig,
    CameraNoise,
    NoiseConfig,
    RunConfig,
    SimConfig,
    TerrainConfig,
    shipped_policies,
)
from robot.terrain import FAMILIES, Box, Terrain, terrain_of
from robot.topics import CAMERA, make_codecs

FloatArray = NDArray[np.float64]
Frames = dict[str, NDArray[Any]]  # one row per frame that perception took, see `walk`

TICK_NS = 10_000_000  # a state that perception looks at; the policy has every second one
PHYSICS_DT = 0.0025  # s; a gait needs no finer one, and the data come twice as fast
SETTLE_NS = 1_000_000_000  # at zero command
START_NS = 10_000_000_000
FALLEN_TILT = math.cos(math.radians(50))
FALLEN_HEIGHT = 0.35  # m, of the pelvis above the middle of the feet
EDGE_STEP, EDGE_NEAR = 0.08, 0.10  # m: an edge is a step above the one, near it is within the other
RASTER = 0.025  # m
FIELD = (11.0, 7.0)  # m from the origin, where edges are known
VISIBLE = 0.02  # m by which a ray may end before the ground it looks for
# Standard deviations of a simulated run, configs/runs/sim.yaml, times a share drawn per episode.
NOISE = {"joint_pos": 0.001, "joint_vel": 0.05, "imu_quat": 0.003, "imu_gyro": 0.02}
KINDS = ("ahead", "any", "turn", "aside", "stand")  # of commands, drawn with
SHARES = (0.4, 0.33, 0.1, 0.07, 0.1)


@dataclass(frozen=True)
class Episode:
    """One walk."""

    family: str
    difficulty: float | None
    """m"""
    seed: int
    """of everything that is drawn"""
    seconds: float
    camera: CameraNoise
    sensor_share: tuple[float, float] = (0.5, 2.0)
    """range of the factor of NOISE"""
    encoder_bias: float = 0.01
    """rad, most that a joint's zero is off, constant"""


def episodes(count: int, seed: int, seconds: float, held_out: bool = False) -> list[Episode]:
    """As many walks over all families alike, from easy ones to those that fell the robot.

    Args:
        count: how many.
        seed: draws them; the judge's are from HELD_OUT_SEED on, and training's are below.
        seconds: each one's length, without falls.
        held_out: of the families that training never sees.
    """
    names = [name for name, family in FAMILIES.items() if family.held_out == held_out]
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        family = FAMILIES[names[i % len(names)]]
        share = rng.uniform() ** 1.5  # more of the easy ones: there it stays up for longer
        difficulty = family.easy + share * (0.5 * (family.usual + family.hard) - family.easy)
        out.append(Episode(
            names[i % len(names)], round(difficulty, 3) or None, seed + 1 + i, seconds,
            CameraNoise(),
        ))  # fmt: skip
    return out


def generate(
    work: Sequence[Episode], jobs: int = 1, show: Callable[[int], None] = lambda done: None
) -> Iterator[Frames]:
    """Frames of each episode, in order, from as many processes."""
    if jobs == 1:
        for done, episode in enumerate(work, 1):
            yield walk(episode)
            show(done)
        return
    ends = signal.SIGKILL, os.getpid()  # with us, also where we are killed
    with ProcessPoolExecutor(jobs, get_context("spawn"), die_with_parent, ends) as pool:
        for done, frames in enumerate(pool.map(walk, work, chunksize=1), 1):
            yield frames
            show(done)


def save(path: Path, frames: Frames) -> None:
    """Write frames; whole or not at all."""
    part = path.with_suffix(".partial")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **frames)
    part.replace(path)


_INSTANCES = itertools.count(1)  # perception begins anew with each


@functools.lru_cache(maxsize=1)
def _parts() -> tuple[Robot, Pilot, Perception]:
    robot = load_robot("g1")
    codecs = make_codecs(robot)
    policy = read_policy(shipped_policies()["walk"])
    pilot = Pilot(robot, policy, PolicySession(policy), codecs)
    return robot, pilot, Perception(robot, robot.cameras[CAMERA], codecs, timing_factor=1.0)


def walk(episode: Episode) -> Frames:
    """Walk until the time is up or the robot falls.

    Returns:
        Of the n frames that perception took: steps (n, H, W) uint16, depth in steps, 0 where
        nothing counts; state (n, 19); prior_height, prior_std (m), prior_age (s): the map's scan,
        (n, 187); height (n, 187) m, as it truly was; visible (n, 187): the camera had a free sight
        at it in the exposure; edge (n, 187): near a step; gate (n,); time (n,) s since the start.
    """
    robot, pilot, perception = _parts()
    rng = np.random.default_rng([episode.seed, 7])
    world = _World(episode, robot, pilot, rng)
    calibration = robot.cameras[CAMERA]
    truths: list[Truth] = []
    now = START_NS
    run = RunConfig(
        robot="g1", driver="sim", control_hz=100, seed=episode.seed, sim=world.config,
        camera=CameraConfig(source="sim", noise=episode.camera),
    )  # fmt: skip
    codecs = make_codecs(robot)
    camera = SimCamera(run, robot, calibration, lambda: [truths.pop()] if truths else [],
                       lambda: now)  # fmt: skip
    ground = Ground(terrain_of(world.config.terrain))
    sight = _Sight(world.driver, calibration)
    state, truth, frame = (codecs[name].new() for name in ("low_state", "truth", "frame.head"))
    rows: list[dict[str, Any]] = []
    frames, instance = 0, next(_INSTANCES)
    for tick in range(round(episode.seconds * 1e9) // TICK_NS):
        now = START_NS + tick * TICK_NS
        world.read(state)
        state.stamp(instance, tick + 1, now)
        state.tick = tick * STATE_TICKS
        perception.hear(state)
        sight.remember(now)
        if tick % 2 == 0:
            world.driver.truth(truth)
            truth.stamp_ns = now
            truths.append(truth)
        while camera.read(frame, 0):
            frames += 1
            frame.stamp(instance, frames, now)
            taken = perception.step(frame, now)
            if taken.fault:
                continue
            assert perception.sight is not None
            here = world.driver.data.qpos[:FREE_POS]
            xy, height = ground.around(here)
            scan = perception.map.scan(now, taken.base_pos, taken.heading)
            rows.append({
                "steps": perception.sight.steps, "state": perception.sight.state,
                **dict(zip(("prior_height", "prior_std", "prior_age"), scan, strict=True)),
                "height": here[2] - height, "edge": ground.near_edge(xy), "gate": taken.gate,
                "visible": sight.of(np.column_stack([xy, height]), frame.t_mid_ns),
                "time": (now - START_NS) * 1e-9,
            })  # fmt: skip
        world.act(state, tick, now)
        if world.fallen():
            break
    return _stacked(rows, calibration.shape)


_KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "state": ((19,), np.float32), "gate": ((), np.uint32), "time": ((), np.float32),
    **{name: ((len(SCAN_XY),), np.float32)
       for name in ("prior_height", "prior_std", "prior_age", "height")},
    **{name: ((len(SCAN_XY),), np.bool_) for name in ("edge", "visible")},
}  # fmt: skip


def _stacked(rows: list[dict[str, Any]], shape: tuple[int, int]) -> Frames:
    kinds = {"steps": (shape, np.uint16), **_KINDS}
    return {
        name: np.array([row[name] for row in rows], dtype).reshape(len(rows), *size)
        for name, (size, dtype) in kinds.items()
    }


class _World:
    """The robot under its policy, as somebody drives it about."""

    def __init__(
        self, episode: Episode, robot: Robot, pilot: Pilot, rng: np.random.Generator
    ) -> None:
        share = rng.uniform(*episode.sensor_share)
        self.config = SimConfig(
            collisions="feet", physics_dt=PHYSICS_DT, corner_speed=0.8,
            noise=NoiseConfig(**{name: sigma * share for name, sigma in NOISE.items()}),
            terrain=TerrainConfig(
                name=episode.family, seed=episode.seed, difficulty=episode.difficulty
            ),
        )  # fmt: skip
        self.driver = SimDriver(robot, self.config, TICK_NS, episode.seed)
        self._bias = rng.uniform(-1.0, 1.0, robot.num_joints) * episode.encoder_bias
        self._rng, self._pilot = rng, pilot
        codecs = make_codecs(robot)
        self._given, self._cmd = codecs["policy_input"].new(), codecs["low_cmd"].new()
        self._given.mode = self._cmd.mode = Mode.POLICY
        self._until = self._pushed = START_NS + SETTLE_NS
        model, data = self.driver.model, self.driver.data
        self._feet = [model.site(name).bodyid[0] for name in ("left_foot", "right_foot")]
        self.driver.gantry.released = True
        data.qpos[FREE_POS:] = pilot.info.default_joint_pos
        yaw = rng.normal(0.0, 0.5) + (math.pi if rng.uniform() < 0.5 else 0.0)
        data.qpos[:2] = rng.uniform(-0.5, 0.5, 2)
        data.qpos[3:FREE_POS] = math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)
        mujoco.mj_forward(model, data)
        data.qpos[2] -= lowest_foot_point(model, data)
        mujoco.mj_forward(model, data)
        pilot.forget()

    def read(self, state: Any) -> None:
        """Measurements, with what noise and wrong zeros make of them."""
        self.driver.read(state)
        state.joint_pos += self._bias

    def act(self, state: Any, tick: int, now_ns: int) -> None:
        """Ask the policy, every second tick, and let time go on."""
        given, cmd = self._given, self._cmd
        if tick % 2 == 0:
            if now_ns >= self._until:
                self._command(now_ns)
            given.step, given.command_valid = tick // 2, VALID_VELOCITY | VALID_HEIGHT
            given.robot_time_ns = state.robot_time_ns
            if tick == 0:
                given.velocity[:], given.base_height[0] = 0.0, NOMINAL
            for field in ("joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "imu_accel"):
                getattr(given, field)[:] = getattr(state, field)
            answer = self._pilot.step(given, now_ns)
            for field in (
                "joint_pos_target", "joint_vel_target", "effort_ff", "stiffness", "damping",
            ):  # fmt: skip
                getattr(cmd, field)[:] = getattr(answer, field)
        if now_ns >= self._pushed:
            self._pushed = now_ns + round(self._rng.uniform(3.0, 8.0) * 1e9)
            self.driver.data.qvel[:2] += self._rng.normal(0.0, 0.12, 2)
        self.driver.write(cmd)

    def _command(self, now_ns: int) -> None:
        """What somebody who walks about would ask for next, within the policy's ranges."""
        rng, info = self._rng, self._pilot.info
        self._until = now_ns + round(rng.uniform(1.5, 4.0) * 1e9)
        kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
        wish = dict(zip(VELOCITIES[:3], rng.uniform(info.velocity_min, info.velocity_max),
                        strict=True))  # fmt: skip
        vx, vy, yaw = wish.values()
        self._given.velocity[:] = {
            "ahead": (abs(vx), 0.1 * vy, 0.3 * yaw), "any": (vx, vy, yaw),
            "turn": (0.1 * vx, 0.1 * vy, yaw), "aside": (0.1 * vx, vy, 0.1 * yaw),
            "stand": (0.0, 0.0, 0.0),
        }[kind]  # fmt: skip
        low, high = info.base_height_range
        stoops = rng.uniform() < 0.2
        self._given.base_height[0] = rng.uniform(low, high) if stoops else NOMINAL

    def fallen(self) -> bool:
        """True if the pelvis is tilted, or low above the feet."""
        data = self.driver.data
        _, x, y, _ = data.qpos[3:FREE_POS].tolist()
        low = data.qpos[2] - data.xpos[self._feet, 2].mean() < FALLEN_HEIGHT
        return low or 1.0 - 2.0 * (x * x + y * y) < FALLEN_TILT


NOMINAL = 0.75  # m, base height that the walk was trained for


class Ground:
    """What is true of a terrain around a robot."""

    def __init__(self, terrain: Terrain) -> None:
        self._floor = terrain.floor
        self._boxes = terrain.boxes
        self._reach = np.array([_extent(box) for box in terrain.boxes]).reshape(-1, 4)
        self._edges = _edges(self._raster())

    def around(self, pose: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(187, 2) m, cells of the scan in the world, and (187,) m, the ground's height there.

        Args:
            pose: (7,) of the pelvis.
        """
        yaw = heading_of(rotation_matrix(pose[3:]))
        turn = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
        xy = SCAN_XY @ turn + pose[:2]
        return xy, self._local(xy).heights(xy)

    def near_edge(self, xy: FloatArray) -> NDArray[np.bool_]:
        """(n,) whether a step is near; False beyond the field."""
        at = np.round((xy + FIELD) / RASTER).astype(np.int64)
        inside = ((at >= 0) & (at < self._edges.shape)).all(axis=1)
        np.clip(at, 0, np.array(self._edges.shape) - 1, out=at)
        return inside & self._edges[at[:, 0], at[:, 1]]

    def _local(self, xy: FloatArray) -> Terrain:
        """The terrain with no more boxes than can matter: each one costs as much as a point."""
        low, high = xy.min(axis=0), xy.max(axis=0)
        reach = self._reach
        near = ((reach[:, :2] <= high) & (reach[:, 2:] >= low)).all(axis=1)
        return Terrain(tuple(self._boxes[i] for i in np.flatnonzero(near)), self._floor)

    def _raster(self) -> FloatArray:
        """Heights of the field, [x, y]."""
        xs, ys = (np.arange(-reach, reach + RASTER / 2, RASTER) for reach in FIELD)
        out = np.full((len(xs), len(ys)), self._floor)
        for box, (x0, y0, x1, y1) in zip(self._boxes, self._reach, strict=True):
            i, j = np.searchsorted(xs, (x0, x1)), np.searchsorted(ys, (y0, y1))
            patch = np.s_[i[0] : i[1], j[0] : j[1]]
            points = np.stack(np.meshgrid(xs[patch[0]], ys[patch[1]], indexing="ij"), axis=-1)
            if points.size:
                alone = Terrain((box,), self._floor).heights(points)
                np.maximum(out[patch], alone, out=out[patch])
        return out


def _extent(box: Box) -> tuple[float, float, float, float]:
    """x and y from, x and y to, in m."""
    half = np.abs(box.rotation()) @ (0.5 * np.array(box.size))
    x, y, _ = box.centre()
    return x - half[0], y - half[1], x + half[0], y + half[1]


def _edges(height: FloatArray) -> NDArray[np.bool_]:
    """Where a step between neighbours on the raster is near."""
    edge = np.zeros(height.shape, bool)
    step = np.abs(np.diff(height, axis=0)) > EDGE_STEP
    edge[1:] |= step
    edge[:-1] |= step
    step = np.abs(np.diff(height, axis=1)) > EDGE_STEP
    edge[:, 1:] |= step
    edge[:, :-1] |= step
    reach = round(EDGE_NEAR / RASTER)
    near = np.zeros_like(edge)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            if i * i + j * j <= reach * reach:
                near |= np.roll(edge, (i, j), (0, 1))
    return near


class _Sight:
    """Which places the camera saw at a time: inside its picture, and nothing in between."""

    def __init__(self, driver: SimDriver, calibration: Calibration) -> None:
        self._live, self._model = driver.data, driver.model
        self._data = mujoco.MjData(self._model)
        self._calibration = calibration
        self._link = self._model.body(calibration.file.link).id
        self._groups = np.array(SEEN_GROUPS, np.uint8)
        self._poses: list[tuple[int, FloatArray]] = []

    def remember(self, now_ns: int) -> None:
        """The robot is here at this time."""
        self._poses.append((now_ns, self._live.qpos.copy()))
        del self._poses[:-100]

    def of(self, points: FloatArray, t_mid_ns: int) -> NDArray[np.bool_]:
        """(n,) which of the (n, 3) points in the world were seen at a time within a second."""
        at = min(self._poses, key=lambda pose: abs(pose[0] - t_mid_ns))
        data, calibration = self._data, self._calibration
        data.qpos[:] = at[1]
        mujoco.mj_kinematics(self._model, data)
        turn = data.xmat[self._link].reshape(3, 3)
        eye = data.xpos[self._link] + turn @ calibration.position
        away = points - eye
        x, y, z = (away @ (turn @ calibration.rotation)).T
        fx, fy, cx, cy = calibration.intrinsics
        rows, columns = calibration.shape
        front = np.maximum(z, 1e-6)
        u, v = fx * x / front + cx, fy * y / front + cy
        inside = (z > 0.0) & (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
        chosen = np.flatnonzero(inside)
        seen = np.zeros(len(points), bool)
        if len(chosen):
            length = np.linalg.norm(away[chosen], axis=1)
            geom, distance = np.zeros(len(chosen), np.int32), np.zeros(len(chosen))
            mujoco.mj_multiRay(
                self._model, data, eye, (away[chosen] / length[:, None]).ravel(), self._groups,
                True, self._link, geom, distance, None, len(chosen), 50.0,
            )  # fmt: skip
            seen[chosen] = (distance < 0.0) | (distance > length - VISIBLE)
        return seen


def is_held_out(seed: int) -> bool:
    """Whether a seed is the judge's."""
    return seed >= HELD_OUT_SEED
