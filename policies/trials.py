"""Rolls a policy out in the judge's world: one trial in, a handful of numbers out.

The world shares nothing with training: full collisions, Newton's solver, 2 ms steps, delay, noise,
torque-speed limits. The policy runs as the runtime runs it: pilot, safety filter, driver; no gantry
holds it and no mode machine catches it. A trial depends on nothing but its own fields.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.sim import FREE_POS, FREE_VEL, SimDriver, lowest_foot_point
from policies.importers import import_policy
from policies.manifest import (
    PolicyFile,
    check_policy,
    is_ours,
    pack_policy,
    parse_onnx,
    parse_policy,
    read_bytes,
)
from policies.session import PolicySession
from policies.sight import MappedSight, TrueSight
from robot.messages import VALID_VELOCITY, Mode, Target
from robot.model import Robot, load_robot
from robot.pilot import Pilot
from robot.runs import NoiseConfig, SimConfig, TerrainConfig
from robot.safety import CLIPPED_HARD, ClipShare, SafetyFilter
from robot.topics import make_codecs

FloatArray = NDArray[np.float64]
Velocity = tuple[float, float, float]  # vx, vy (m/s), yaw rate (rad/s)

HELD_OUT_SEED = 1_000_000_000  # the first; seeds from here on are the judge's, never training's
CONTROL_HZ = 500
PERIOD_NS = 1_000_000_000 // CONTROL_HZ
START_NS = 1_000_000_000  # not 0, which stands for never
SETTLE_S = 1.0  # at zero command before a trial counts
CORNER_SPEED = 0.8  # share of the velocity limit with full torque
PUSH_S = 0.1  # a push is a constant force on the trunk for so long
FALLEN_HEIGHT = 0.4  # m, pelvis
FALLEN_TILT = math.radians(60)  # pelvis
WINDOW_S = 1.0  # velocities are averages over this, about a gait cycle
AT_LIMIT = 0.01  # rad from the end of a joint's range
AT_TORQUE = 0.99  # share of a motor's torque
FLAT = TerrainConfig()
ABOVE = 50.0  # m, where rays that look for the ground begin
GROUND_GROUPS = np.array([1, 1, 0, 0, 0, 0], np.uint8)  # geoms of the scene, not of the robot

# What is drawn for each seed: uniform between the two.
FRICTION = (0.4, 1.0)  # of the soles
BODY_MASS = (0.95, 1.05)  # factor of each link
TRUNK_MASS = (-1.0, 2.0)  # kg on the trunk
DELAY_TICKS = (0, 5)  # control ticks of 2 ms, both included
NOISE_SHARE = (0.5, 1.5)  # of the figures below
# Standard deviations, units of NoiseConfig; several times a simulated run's, as encoders and IMU
# of a worn robot would have them.
NOISE = {
    "joint_pos": 0.005, "joint_vel": 0.3, "imu_quat": 0.01, "imu_gyro": 0.05, "imu_accel": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One fall or none."""

    policy: Path
    robot: str
    group: str
    """what it is for: "grid", "rest", ..."""
    cell: Velocity
    """what names it within its group"""
    seed: int
    seconds: float
    """after the settling"""
    script: tuple[tuple[float, Velocity], ...] = ((0.0, (0.0, 0.0, 0.0)),)
    """from when (s after the settling) which command"""
    push_angle: float = 0.0
    """rad, heading frame, 0 is forward"""
    push_impulse: float = 0.0
    """N s on the trunk"""
    push_at: float = 0.0
    """s after the settling"""
    payload: float = 0.0
    """kg, half in each hand"""
    delay_ms: float | None = None
    """in place of the drawn delay"""
    terrain: TerrainConfig = FLAT
    """the ground, flat where the robot starts"""


@dataclass(frozen=True)
class Search:
    """Looks for the first of some levels, from weak to strong, that makes a trial fall."""

    trial: Trial
    vary: Literal["push_impulse", "payload", "delay_ms"]
    levels: tuple[float, ...]


class Recording(NamedTuple):
    """What happened in a trial, settling included; T control ticks, P policy ticks."""

    qpos: FloatArray  # (T, 7 + N)
    qvel: FloatArray  # (T, 6 + N)
    effort: FloatArray  # (T, N) N m
    target: FloatArray  # (P, N) rad
    feet: FloatArray  # (P, feet, 2) m, horizontal, world
    contact: NDArray[np.bool_]  # (P, feet)
    command: FloatArray  # (T, 3)
    clipped: int  # ticks in which the safety filter changed something
    fell_at: float | None  # s after the settling; negative while settling


def load_policy(path: Path, robot: Robot) -> PolicyFile:
    """A policy file, ours or another project's (imported in memory).

    Raises:
        UserError: it is neither, or does not fit the robot.
    """
    data = read_bytes(path)
    model = parse_onnx(data, path)
    if is_ours(model):
        policy = parse_policy(data, path)
    else:
        policy = pack_policy(*import_policy(path, robot), path)
    check_policy(policy, robot, control_hz=CONTROL_HZ)
    return policy


@functools.lru_cache(maxsize=8)
def _load(path: Path, name: str) -> tuple[Robot, Pilot]:
    robot = load_robot(name)
    policy = load_policy(path, robot)
    return robot, Pilot(robot, policy, PolicySession(policy), make_codecs(robot))


def run(work: Trial | Search) -> dict[str, float]:
    """Do one piece of work; the same piece gives the same numbers in any process.

    Returns:
        Of a trial: see `measure`. Of a search: `first`, the index of the first level that fells
        it (their number if none does), and `trials`, how many it took.
    """
    if isinstance(work, Trial):
        robot, pilot = _load(work.policy, work.robot)
        return measure(work, roll_out(work, robot, pilot), robot, pilot)
    low, high, trials = 0, len(work.levels), 0
    robot, pilot = _load(work.trial.policy, work.trial.robot)
    while low < high:
        middle = (low + high) // 2
        trial = replace(work.trial, **{work.vary: work.levels[middle]})
        fell = roll_out(trial, robot, pilot).fell_at is not None
        low, high, trials = (low, middle, trials + 1) if fell else (middle + 1, high, trials + 1)
    return {"first": float(low), "trials": float(trials)}


class World:
    """A robot with drawn properties, standing in the policy's default pose.

    Args:
        trial: its seed draws; payload, delay and terrain are its own.
        robot: joints and limits.
        pose: (N,) rad.
    """

    def __init__(self, trial: Trial, robot: Robot, pose: FloatArray) -> None:
        rng = np.random.default_rng([HELD_OUT_SEED, trial.seed])
        friction, share = rng.uniform(*FRICTION), rng.uniform(*NOISE_SHARE)
        delay_ms = rng.integers(DELAY_TICKS[0], DELAY_TICKS[1] + 1) * PERIOD_NS * 1e-6
        noise = NoiseConfig(**{name: sigma * share for name, sigma in NOISE.items()})
        delay = float(delay_ms) if trial.delay_ms is None else trial.delay_ms
        config = SimConfig(
            actuator_delay_ms=delay, corner_speed=CORNER_SPEED, noise=noise, terrain=trial.terrain
        )
        self.driver = SimDriver(robot, config, PERIOD_NS, trial.seed)
        model, data = self.driver.model, self.driver.data
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        self.trunk = model.body(robot.gantry.body).id
        geoms = [i for i in range(model.ngeom) if "foot" in model.geom(i).name]
        model.geom_friction[geoms, 0] = friction
        factor = rng.uniform(*BODY_MASS, model.nbody)
        model.body_mass[:] *= factor
        model.body_inertia[:] *= factor[:, None]
        model.body_mass[self.trunk] += rng.uniform(*TRUNK_MASS)
        hands = hand_bodies(model, robot)
        model.body_mass[hands] += trial.payload / len(hands)
        mujoco.mj_setConst(model, data)
        self.driver.gantry.released = True
        data.qpos[FREE_POS:] = pose
        mujoco.mj_forward(model, data)
        data.qpos[2] -= lowest_foot_point(model, data)
        mujoco.mj_forward(model, data)
        feet = sorted({int(model.geom_bodyid[i]) for i in geoms})
        self.foot_of_geom = np.full(model.ngeom, -1)  # geom -> row of feet, -1: no foot
        self.foot_of_geom[geoms] = [feet.index(int(model.geom_bodyid[i])) for i in geoms]
        self.feet, self.ground = feet, model.geom_bodyid == 0
        self.mass = float(model.body_mass.sum())
        self.uneven = trial.terrain.name != "flat"
        self._geom = np.zeros(1, np.int32)

    def contacts(self) -> NDArray[np.bool_]:
        """(feet,) which feet touch the ground."""
        pairs = self.driver.data.contact.geom
        ground = self.ground[pairs]
        other = np.where(ground[:, 0], pairs[:, 1], pairs[:, 0])[ground.any(axis=1)]
        touching = np.zeros(len(self.feet), bool)
        rows = self.foot_of_geom[other]
        touching[rows[rows >= 0]] = True
        return touching

    def push(self, force: float, angle: float) -> None:
        """Apply a horizontal force (N) to the trunk, in the heading frame, until the next call."""
        angle += float(_heading(self.driver.data.qpos[None, 3:7])[0])
        wrench = self.driver.data.xfrc_applied[self.trunk]
        wrench[:2] = force * math.cos(angle), force * math.sin(angle)

    def fallen(self) -> bool:
        """True if the pelvis is low or tilted."""
        _, x, y, _ = self.driver.data.qpos[3:7].tolist()
        upright = 1.0 - 2.0 * (x * x + y * y) > math.cos(FALLEN_TILT)
        return not upright or self.driver.data.qpos[2] - self.ground_below() < FALLEN_HEIGHT

    def ground_below(self) -> float:
        """Height of the ground under the pelvis, m."""
        return float(self.heights(self.driver.data.qpos[None, :2])[0]) if self.uneven else 0.0

    def heights(self, xy: FloatArray) -> FloatArray:
        """(n,) m, height of the ground at (n, 2) m: where rays from above end."""
        model, data, down = self.driver.model, self.driver.data, np.array([0.0, 0.0, -1.0])
        eyes = np.column_stack([xy, np.full(len(xy), ABOVE)])
        # A ray has an origin of its own, which mj_multiRay does not know; 3 us each.
        far = [
            mujoco.mj_ray(model, data, eye, down, GROUND_GROUPS, True, -1, self._geom, None)
            for eye in eyes
        ]
        return ABOVE - np.array(far)


def hand_bodies(model: mujoco.MjModel, robot: Robot) -> list[int]:
    """Bodies at the ends of the arms: those of arm joints that carry no other arm joint."""
    bodies = {int(model.joint(robot.joint_names[i]).bodyid[0]) for i in robot.arm_joints}
    return sorted(bodies - {int(model.body_parentid[body]) for body in bodies})


class Walk:
    """A policy in a world as the runtime has it: pilot, safety filter, driver.

    A tick is `decide`, then `act`.

    Args:
        world: with the robot.
        robot: joints and limits.
        pilot: with the policy; what it remembers is forgotten.
        sight: what it sees the ground by, if it does.
    """

    def __init__(
        self, world: World, robot: Robot, pilot: Pilot,
        sight: TrueSight | MappedSight | None = None,
    ) -> None:  # fmt: skip
        codecs = make_codecs(robot)
        self._sight = sight
        self.world, self.pilot, self._safety = world, pilot, SafetyFilter(robot)
        self.state, self._cmd = codecs["low_state"].new(), codecs["low_cmd"].new()
        self.given = codecs["policy_input"].new()
        self.given.command_valid, self.given.mode = VALID_VELOCITY, Mode.POLICY
        self._cmd.mode = Mode.POLICY
        self.decimation = pilot.info.step_ns // PERIOD_NS
        self.ticks = self.clipped = 0
        self._clip_half, self._clipped_half = ClipShare(CONTROL_HZ // 2), 0.0
        pilot.forget()

    def decide(self, velocity: FloatArray) -> Target | None:
        """Read the robot; in a policy tick, ask for (3,) m/s, m/s, rad/s and give the answer."""
        state, given, now_ns = self.state, self.given, START_NS + self.ticks * PERIOD_NS
        self.world.driver.read(state)
        state.tick = self.ticks
        asked = self.ticks % self.decimation == 0
        if self._sight and (ground := self._sight.see(state, now_ns, asked)) is not None:
            self.pilot.look(ground)
        if not asked:
            return None
        given.step, given.velocity[:] = self.ticks // self.decimation, velocity
        given.robot_time_ns = state.robot_time_ns
        for field in ("joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "imu_accel"):
            getattr(given, field)[:] = getattr(state, field)
        return self.pilot.step(given, now_ns)

    def act(self) -> None:
        """What the pilot said last, bounded, into the motors."""
        cmd, answer = self._cmd, self.pilot.target
        for field in ("joint_pos_target", "joint_vel_target", "effort_ff", "stiffness", "damping"):
            getattr(cmd, field)[:] = getattr(answer, field)
        clipped = self._safety.apply(cmd, self.state) is not None
        self.clipped += clipped
        self._clipped_half = self._clip_half.count(clipped)
        self.world.driver.write(cmd)
        self.ticks += 1

    def fallen(self) -> bool:
        """The robot has fallen, or would: the runtime soft-stops who is clipped that hard."""
        return self.world.fallen() or self._clipped_half > CLIPPED_HARD


def roll_out(trial: Trial, robot: Robot, pilot: Pilot) -> Recording:
    """Settle, then follow the script to the end or the fall."""
    world = World(trial, robot, np.array(pilot.info.default_joint_pos))
    walk, data = Walk(world, robot, pilot), world.driver.data
    ticks = round((SETTLE_S + trial.seconds) * CONTROL_HZ)
    command = _commands(trial, ticks)
    pushed = round((SETTLE_S + trial.push_at) * CONTROL_HZ)
    released = pushed + round(PUSH_S * CONTROL_HZ)
    n, asked = robot.num_joints, -(-ticks // walk.decimation)
    qpos, qvel = np.zeros((ticks, FREE_POS + n)), np.zeros((ticks, FREE_VEL + n))
    effort, target = np.zeros((ticks, n)), np.zeros((asked, n))
    feet = np.zeros((asked, len(world.feet), 2))
    contact = np.zeros((asked, len(world.feet)), bool)
    done, fell_at = ticks, None
    for tick in range(ticks):
        if (answer := walk.decide(command[tick])) is not None:
            step = tick // walk.decimation
            target[step] = answer.joint_pos_target
            feet[step] = data.xpos[world.feet, :2]
            contact[step] = world.contacts()
        if trial.push_impulse and tick in (pushed, released):
            world.push(trial.push_impulse / PUSH_S if tick == pushed else 0.0, trial.push_angle)
        walk.act()
        qpos[tick], qvel[tick] = data.qpos, data.qvel
        effort[tick] = data.qfrc_actuator[FREE_VEL:]
        if walk.fallen():
            done, fell_at = tick + 1, (tick + 1) / CONTROL_HZ - SETTLE_S
            break
    steps = -(-done // walk.decimation)
    return Recording(
        qpos[:done], qvel[:done], effort[:done], target[:steps], feet[:steps], contact[:steps],
        command, walk.clipped, fell_at,
    )  # fmt: skip


def _commands(trial: Trial, ticks: int) -> FloatArray:
    """(T, 3) command of every control tick; zero while settling."""
    commands = np.zeros((ticks, 3))
    for begin, velocity in trial.script:
        commands[round((SETTLE_S + begin) * CONTROL_HZ) :] = velocity
    return commands


def measure(trial: Trial, seen: Recording, robot: Robot, pilot: Pilot) -> dict[str, float]:
    """Numbers of one trial, over the time after the settling.

    Velocities are averages over windows of a second; in windows after a fall the robot counts as
    standing still, so falling is no way to track well.

    Returns:
        fell (0 or 1, as Walk.fallen says), survived_s; error_vx, error_vy (m/s), error_yaw
        (rad/s): mean absolute error; vx, vy, yaw: mean velocity; drift (m/s) and drift_yaw (rad/s)
        from first to last pose; limit_time, torque_time, clip_time: shares of ticks; action_rate:
        mean |change of target| of driven joints, rad/s; work (J, positive mechanical), distance
        (m); slip: speed of feet on the floor, m/s; joint_speed: root mean square, rad/s; steps:
        feet put down.
        NaN where there was no time to measure.
    """
    start = round(SETTLE_S * CONTROL_HZ)
    qpos, qvel, effort = seen.qpos[start:], seen.qvel[start:], seen.effort[start:]
    fell = seen.fell_at is not None
    result = {"fell": float(fell), "survived_s": len(qpos) / CONTROL_HZ}
    result |= _tracking(trial, seen)
    if len(qpos) < CONTROL_HZ * WINDOW_S:
        return result
    low, high = robot.position_limit.T
    joints = qpos[:, FREE_POS:]
    at_limit = ((joints < low + AT_LIMIT) | (joints > high - AT_LIMIT)).any(axis=1)
    at_torque = (np.abs(effort) >= AT_TORQUE * robot.effort_limit).any(axis=1)
    power = np.maximum(effort * qvel[:, FREE_VEL:], 0.0).sum(axis=1)  # W
    heading = np.unwrap(_heading(qpos[:, 3:7]))
    seconds = len(qpos) / CONTROL_HZ
    strides = np.diff(qpos[:: round(WINDOW_S * CONTROL_HZ), :2], axis=0)
    step_s = pilot.info.step_ns * 1e-9
    first = round(SETTLE_S / step_s)
    target, contact, feet = seen.target[first:], seen.contact[first:], seen.feet[first:]
    held = contact[1:] & contact[:-1]
    speed = np.linalg.norm(np.diff(feet, axis=0), axis=2) / step_s
    driven = [robot.joint_names.index(name) for name in pilot.session.manifest.driven_joints]
    return result | {
        "drift": float(np.linalg.norm(qpos[-1, :2] - qpos[0, :2])) / seconds,
        "drift_yaw": abs(float(heading[-1] - heading[0])) / seconds,
        "limit_time": float(at_limit.mean()),
        "torque_time": float(at_torque.mean()),
        "clip_time": seen.clipped / len(seen.qpos),
        "action_rate": float(np.abs(np.diff(target[:, driven], axis=0)).mean()) / step_s,
        "work": float(power.sum()) / CONTROL_HZ,
        "distance": float(np.linalg.norm(strides, axis=1).sum()),
        "slip": float(speed[held].mean()) if held.any() else math.nan,
        "joint_speed": float(np.sqrt(np.square(qvel[:, FREE_VEL:]).mean())),
        "steps": float((contact[1:] & ~contact[:-1]).sum()),
    }


def _tracking(trial: Trial, seen: Recording) -> dict[str, float]:
    """Mean velocities and mean absolute errors over windows, the first second left to start in."""
    start, window = round(SETTLE_S * CONTROL_HZ), round(WINDOW_S * CONTROL_HZ)
    velocity = np.zeros_like(seen.command)  # (T, 3), zero after a fall
    velocity[: len(seen.qpos)] = body_velocity(seen.qpos, seen.qvel)
    begin = start + min(window, (len(velocity) - start) // 2)
    count = max(1, (len(velocity) - begin) // window)
    spans = np.array_split(np.arange(begin, len(velocity)), count)
    got = np.array([velocity[span].mean(axis=0) for span in spans])  # (windows, 3)
    wanted = np.array([seen.command[span].mean(axis=0) for span in spans])
    values = [*got.mean(axis=0).tolist(), *np.abs(got - wanted).mean(axis=0).tolist()]
    names = ("vx", "vy", "yaw", "error_vx", "error_vy", "error_yaw")
    return dict(zip(names, values, strict=True))


def body_velocity(qpos: FloatArray, qvel: FloatArray) -> FloatArray:
    """(T, 3) vx, vy of the pelvis in the heading frame (m/s), and yaw rate about the vertical."""
    heading = _heading(qpos[:, 3:7])
    cos, sin = np.cos(heading), np.sin(heading)
    x, y = qvel[:, 0], qvel[:, 1]
    turned = np.gradient(np.unwrap(heading), 1 / CONTROL_HZ) if len(qpos) > 1 else 0.0 * heading
    return np.stack([cos * x + sin * y, cos * y - sin * x, turned], axis=1)


def _heading(quat_wxyz: FloatArray) -> FloatArray:
    """(T,) rad about the vertical."""
    w, x, y, z = quat_wxyz.T
    return np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def robot_mass(robot: Robot) -> float:
    """kg, as in the file."""
    return float(mujoco.MjModel.from_xml_path(str(robot.mjcf)).body_mass.sum())
