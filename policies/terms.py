"""Observation and action terms in torch: what a policy sees, and how its action becomes a target.

The task trains on these functions and policies/export.py traces the very same ones into the policy
file, so there is one copy. Rewards and physics are elsewhere (rewards.py, world.py).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from robot.config import UserError
from robot.geomap import SCAN_XY, SCAN_Y
from robot.model import Robot, compile_model, motor_gains

if TYPE_CHECKING:  # recipe.py holds its rows against the tables here
    from policies.recipe import Recipe, TermRow

VELOCITY, HEIGHT, ARMS = slice(0, 3), slice(3, 4), slice(4, None)  # columns of the command


class Sensors(NamedTuple):
    """What the robot measures and remembers; B environments, N joints, A arm joints."""

    joint_pos: Tensor  # (B, N) rad
    joint_vel: Tensor  # (B, N) rad/s
    imu_quat_wxyz: Tensor  # (B, 4)
    imu_gyro: Tensor  # (B, 3) rad/s
    command: Tensor  # (B, 4 + A) vx, vy, yaw rate, base height, arm joint targets
    last_action: Tensor  # (B, N)
    phase: Tensor  # (B, 1) share of the gait cycle, [0, 1)
    height_scan: Tensor  # (B, 187) m, pelvis over the ground around it; robot.geomap.SCAN_XY
    height_flag: Tensor  # (B, 1) 1 where nobody knows the ground, and the scan means nothing


@dataclass(frozen=True)
class Body:
    """What terms know of the robot; tensors over its joints, in motor order."""

    joint_names: tuple[str, ...]
    arms: Tensor  # (A,) rows of the arm joints
    default_joint_pos: Tensor  # (N,) rad
    position_limit: Tensor  # (N, 2) rad
    velocity_limit: Tensor  # (N,) rad/s
    effort_limit: Tensor  # (N,) N m
    stiffness: Tensor  # (N,) N m/rad
    damping: Tensor  # (N,) N m s/rad
    braking_acceleration: float  # rad/s^2 of every joint in front of its limit
    braking_band: float  # rad/s of room in which torque into the limit fades
    action_scale: Tensor  # (N,) rad per unit of action
    swing: Tensor  # (2, N) rad at the top of the swing of the left, right foot
    squat: Tensor  # (N,) rad per m of commanded height above the nominal one
    nominal_height: float  # m
    stand_below: float  # norm of the velocity command that means standing
    phase_step: float  # share of the gait cycle per policy step
    swing_share: float  # share of the gait cycle that a foot swings
    mirror: tuple[Tensor, Tensor]  # (N,) the other side's row, (N,) sign


# --- clock and action -----------------------------------------------------------------------------


def moving(command: Tensor, body: Body) -> Tensor:
    """(B, 1) bool: the command is more than standing."""
    return command[:, VELOCITY].square().sum(1, keepdim=True) > body.stand_below**2


def stepping(sensors: Sensors, body: Body) -> Tensor:
    """(B, 1) bool: the clock runs; at zero command it stops when a swing has ended."""
    half = sensors.phase * 2
    return moving(sensors.command, body) | (half - torch.floor(half) > 0)


def advance(phase: Tensor, command: Tensor, body: Body) -> Tensor:
    """(B, 1) phase of the next step: runs while moving, else to the next half cycle and stays."""
    later = phase + body.phase_step
    half = torch.ceil(phase * 2) * 0.5
    later = torch.where(moving(command, body), later, torch.minimum(later, half))
    return later - torch.floor(later)


def swing(phase: Tensor, running: Tensor, share: float) -> Tensor:
    """(B, 2) half-sine over each foot's swing, left foot first; 0 in stance and while standing."""
    both = torch.cat([phase, phase + 0.5], 1)
    both = both - torch.floor(both)
    return torch.sin(torch.clamp(both / share, max=1.0) * torch.pi) * running


def target(action: Tensor, sensors: Sensors, body: Body) -> Tensor:
    """(B, N) joint position targets, rad: pose, commanded arms, squat, step and scaled action."""
    steps = swing(sensors.phase, stepping(sensors, body), body.swing_share) @ body.swing
    height = sensors.command[:, HEIGHT] - body.nominal_height
    pose = reference(sensors.command, body) + height * body.squat
    return pose + steps + action * body.action_scale


def reference(command: Tensor, body: Body) -> Tensor:
    """(B, N) the default pose with the arms where they are commanded, rad."""
    # Added to a column of zeros and not expanded: the policy file may hold no node of run-time size
    others = body.default_joint_pos[: -len(body.arms)] + command[:, :1] * 0
    return torch.cat([others, command[:, ARMS]], 1)  # make_body has checked that arms come last


# --- observation terms: raw, without scale and noise ----------------------------------------------


def base_ang_vel(s: Sensors, body: Body) -> Tensor:
    """(B, 3) rad/s, IMU frame."""
    return s.imu_gyro


_GRAVITY = (
    torch.tensor([0, 1, 0, 2, 1, 2]),  # w x w y x y
    torch.tensor([2, 3, 1, 3, 1, 2]),  # y z x z x y
    torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, -2, 0], [0, -2, 0], [0, 0, 2], [0, 0, 2]]),
)


def projected_gravity(s: Sensors, body: Body) -> Tensor:
    """(B, 3) the world's (0, 0, -1) in the IMU's frame."""
    # 2 (wy - xz), -2 (wx + yz), 2 (xx + yy) - 1: so few operations count in a policy file
    first, second, weight = (part.to(s.imu_quat_wxyz.device) for part in _GRAVITY)
    products = s.imu_quat_wxyz[:, first] * s.imu_quat_wxyz[:, second]
    return products @ weight - weight.new_tensor([0.0, 0.0, 1.0])


def velocity_command(s: Sensors, body: Body) -> Tensor:
    """(B, 3) vx, vy in m/s, yaw rate in rad/s; zeros where it means standing."""
    return s.command[:, VELOCITY] * moving(s.command, body)


def height_command(s: Sensors, body: Body) -> Tensor:
    """(B, 1) m above the nominal height."""
    return s.command[:, HEIGHT] - body.nominal_height


def arm_command(s: Sensors, body: Body) -> Tensor:
    """(B, A) rad from the default pose."""
    return s.command[:, ARMS] - body.default_joint_pos[body.arms]


def joint_pos(s: Sensors, body: Body) -> Tensor:
    """(B, N) rad from the default pose."""
    return s.joint_pos - body.default_joint_pos


def joint_vel(s: Sensors, body: Body) -> Tensor:
    """(B, N) rad/s."""
    return s.joint_vel


def last_action(s: Sensors, body: Body) -> Tensor:
    """(B, N) as clipped."""
    return s.last_action


def clock(s: Sensors, body: Body) -> Tensor:
    """(B, 2) sine and cosine of the phase; zeros while the clock stands."""
    angle = s.phase * (2 * torch.pi)
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1) * stepping(s, body)


def height_scan(s: Sensors, body: Body) -> Tensor:
    """(B, 187) m by which the ground is below that of a robot of nominal height; 0 if unknown."""
    below = torch.clamp(s.height_scan - body.nominal_height, min=-1.0, max=1.0)
    return below * (1 - s.height_flag)


def height_flag(s: Sensors, body: Body) -> Tensor:
    """(B, 1) 1 where nobody knows the ground."""
    return s.height_flag


Signed = tuple[Tensor, Tensor]  # what column to take, its sign


def _signs(*signs: float) -> Callable[[Body], Signed]:
    return lambda body: (torch.arange(len(signs)), torch.tensor(signs))


def _joints(body: Body) -> Signed:
    return body.mirror


def _scan(body: Body) -> Signed:
    cells = torch.arange(len(SCAN_XY)).view(len(SCAN_Y), -1).flip(0).flatten()
    return cells, torch.ones(len(SCAN_XY))


def _arms(body: Body) -> Signed:
    columns, signs = body.mirror
    place = {int(row): at for at, row in enumerate(body.arms)}
    swapped = torch.tensor([place[int(columns[row])] for row in body.arms])
    return swapped, signs[body.arms]


Function = Callable[[Sensors, Body], Tensor]
# name -> (function, its mirror image in the plane of x and z)
OBSERVATIONS: dict[str, tuple[Function, Callable[[Body], Signed]]] = {
    "base_ang_vel": (base_ang_vel, _signs(-1.0, 1.0, -1.0)),
    "projected_gravity": (projected_gravity, _signs(1.0, -1.0, 1.0)),
    "velocity_command": (velocity_command, _signs(1.0, -1.0, -1.0)),
    "height_command": (height_command, _signs(1.0)),
    "arm_command": (arm_command, _arms),
    "joint_pos": (joint_pos, _joints),
    "joint_vel": (joint_vel, _joints),
    "last_action": (last_action, _joints),
    "clock": (clock, _signs(-1.0, -1.0)),  # half a cycle later
    "height_scan": (height_scan, _scan),
    "height_flag": (height_flag, _signs(1.0)),
}


class Observation:
    """An ordered list of terms as one vector, with scale, noise and history.

    Args:
        rows: terms in their order.
        body: constants of the robot.
    """

    def __init__(self, rows: Sequence[TermRow], body: Body) -> None:
        self.rows, self.body = tuple(rows), body
        self.widths = [len(OBSERVATIONS[row.name][1](body)[0]) for row in rows]
        each = list(zip(rows, self.widths, strict=True))
        self.scale = torch.tensor([row.scale for row, width in each for _ in range(width)])
        self.noise = torch.tensor([row.noise for row, width in each for _ in range(width)])
        self.history = {
            row.name: (row.history - 1, width) for row, width in each if row.history > 1
        }
        self.width = sum(row.history * width for row, width in each)

    def frame(self, sensors: Sensors) -> Tensor:
        """(B, W) all terms of now, unscaled."""
        return torch.cat([OBSERVATIONS[row.name][0](sensors, self.body) for row in self.rows], 1)

    def assemble(
        self, frame: Tensor, past: Mapping[str, Tensor], first: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scale a frame, and put the remembered ones before it, oldest first.

        Args:
            frame: (B, W) unscaled, with or without noise.
            past: term -> (B, history - 1, width), scaled.
            first: (B, 1) 1 on the first step of an episode, whose past is the present.

        Returns:
            (B, width) observation, and the past of the next step.
        """
        scaled, later, parts = frame * self.scale, {}, []
        if not self.history:
            return scaled, later
        for row, now in zip(self.rows, torch.split(scaled, self.widths, dim=1), strict=True):
            if row.history > 1:
                now = now.unsqueeze(1)
                fresh = first.unsqueeze(2)
                old = past[row.name] * (1 - fresh) + now * fresh
                frames = torch.cat([old, now], 1)
                later[row.name] = frames[:, 1:]
                now = frames.flatten(1)
            parts.append(now)
        return torch.cat(parts, 1), later


class Mirror:
    """Left and right exchanged, of the tensors a task hands out: columns and signs.

    Args:
        policy, critic, action: columns and signs of each.
    """

    def __init__(self, policy: Signed, critic: Signed, action: Signed) -> None:
        self.policy_map, self.critic_map, self.action_map = policy, critic, action

    def policy(self, observation: Tensor) -> Tensor:
        """The policy's observation, (..., n)."""
        return mirrored(observation, self.policy_map)

    def critic(self, observation: Tensor) -> Tensor:
        """The critic's observation, (..., n)."""
        return mirrored(observation, self.critic_map)

    def action(self, action: Tensor) -> Tensor:
        """An action, or anything else over joints, (..., N)."""
        return mirrored(action, self.action_map)


def mirrored(values: Tensor, signed: Signed) -> Tensor:
    """Columns exchanged and signed."""
    columns, signs = signed
    return values[..., columns.to(values.device)] * signs.to(values)


def joined(parts: Sequence[Signed]) -> Signed:
    """The mirror of vectors one after the other."""
    offsets = np.cumsum([0, *(len(columns) for columns, _ in parts)])
    columns = [columns + int(at) for (columns, _), at in zip(parts, offsets, strict=False)]
    return torch.cat(columns), torch.cat([signs for _, signs in parts])


def observation_mirror(rows: Sequence[TermRow], body: Body) -> Signed:
    """The mirror of Observation(rows, body)."""
    return joined([OBSERVATIONS[row.name][1](body) for row in rows for _ in range(row.history)])


# --- the robot's constants ------------------------------------------------------------------------


def make_body(recipe: Recipe, robot: Robot) -> Body:
    """Constants of a robot under a recipe; both were checked.

    Raises:
        UserError: the robot is not symmetric by its joints, or its arms are not its last joints.
    """
    model = compile_model(robot, "feet")
    names, count = robot.joint_names, robot.num_joints
    arms = torch.tensor(robot.arm_joints.copy())
    if arms.tolist() != list(range(count - len(arms), count)):
        raise UserError(f"{robot.path}: arm joints in rows {arms.tolist()}, expected the last")
    inertia = model.dof_armature[model.nv - count :]
    gains = recipe.action.gains
    stiffness, damping = motor_gains(inertia, gains.natural_frequency_hz, gains.damping_ratio)
    mirror = joint_mirror(robot, model)
    scale = recipe.action.scale * robot.effort_limit / stiffness
    scale[robot.arm_joints] *= recipe.action.arm_share
    left = joint_values(recipe.action.swing, names)
    squat = joint_values(recipe.action.squat, names)
    return Body(
        joint_names=names,
        arms=arms,
        default_joint_pos=_tensor(robot.stand_joint_pos),
        position_limit=_tensor(robot.position_limit),
        velocity_limit=_tensor(robot.velocity_limit),
        effort_limit=_tensor(robot.effort_limit),
        stiffness=_tensor(stiffness),
        damping=_tensor(damping),
        braking_acceleration=robot.safety.braking_acceleration,
        braking_band=robot.safety.braking_band,
        action_scale=_tensor(scale),
        swing=torch.stack([left, mirrored(left, mirror)]),
        squat=squat,
        nominal_height=recipe.commands.nominal_height,
        stand_below=recipe.commands.stand_below,
        phase_step=recipe.step_dt / recipe.clock.period,
        swing_share=recipe.clock.swing_share,
        mirror=mirror,
    )


def joint_mirror(robot: Robot, model: mujoco.MjModel) -> Signed:
    """Each joint's partner on the other side, and the sign of its angle, from names and axes.

    Raises:
        UserError: a joint has no partner, or its axis is not the mirror image of the partner's.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    swap = {"left_": "right_", "right_": "left_"}
    columns, signs = [], []
    for name in robot.joint_names:
        side = next((side for side in swap if name.startswith(side)), "")
        partner = swap[side] + name[len(side) :] if side else name
        if partner not in robot.joint_names:
            raise UserError(f'{robot.path}: joint "{name}" has no partner "{partner}"')
        mine = data.xaxis[model.joint(name).id]
        sign = float(mine @ (data.xaxis[model.joint(partner).id] * (-1, 1, -1)))
        if abs(abs(sign) - 1) > 1e-3:
            raise UserError(f'{robot.path}: axes of "{name}" and "{partner}" are not mirror images')
        columns.append(robot.joint_names.index(partner))
        signs.append(round(sign))
    return torch.tensor(columns), torch.tensor(signs, dtype=torch.float32)


def joint_values(values: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """(N,) from {pattern: value}; a pattern is a joint's name with * and ?, later ones win."""
    rows = [0.0] * len(names)
    for pattern, value in values.items():
        for at, name in enumerate(names):
            if fnmatch.fnmatchcase(name, pattern):
                rows[at] = value
    return torch.tensor(rows)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(np.array(values), dtype=torch.float32)
