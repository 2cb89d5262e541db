"""Rewards, terminations, the critic's extra terms and the curriculum: plain functions in tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.terms import Body, Signed


@dataclass
class State:
    """All that a reward may look at, after the physics of a step; B environments, feet L, R."""

    body: Body
    command: Tensor  # (B, 4 + A)
    moving: Tensor  # (B,) 1 where the clock runs
    swing: Tensor  # (B, 2) half-sine of each foot's swing of this step
    base_height: Tensor  # (B,) m over the ground
    gravity: Tensor  # (B, 3) projected
    velocity: Tensor  # (B, 3) m/s of the base, in the heading frame
    ang_vel: Tensor  # (B, 3) rad/s, base frame
    velocity_error: Tensor  # (B, 3) command less vx, vy, yaw rate, averaged over a gait cycle
    joint_pos: Tensor  # (B, N) rad
    joint_vel: Tensor  # (B, N) rad/s
    effort: Tensor  # (B, N) N m
    reference: Tensor  # (B, N) rad, default pose with squat and the arms where commanded
    action: Tensor  # (B, N)
    last_action: Tensor  # (B, N)
    older_action: Tensor  # (B, N)
    foot_height: Tensor  # (B, 2) m of the sole over the ground below it
    lift: Tensor  # (B, 2) m to which the last swings of each foot rose
    foot_tilt: Tensor  # (B, 2) squared slope of the sole against the ground
    foot_speed: Tensor  # (B, 2) m/s, horizontal
    foot_contact: Tensor  # (B, 2) 1 in contact
    foot_gap: Tensor  # (B,) m between the feet, across the heading
    finite: Tensor  # (B,) bool
    uneven: Tensor  # (B,) 1 on terrain
    rise: Tensor  # (B, 2) m that the ground before a foot is higher than below it
    away: Tensor  # (B,) rad by which who is steered along a terrain is turned off it
    overhang: Tensor  # (B, 2) share of a standing foot's sole that has nothing below it


# --- rewards, each (B,), per second; weights say the sign -----------------------------------------


def track_linear(s: State, *, sigma: float = 0.2) -> Tensor:
    """exp(-|e|²/sigma) of vx, vy of this step."""
    error = (s.command[:, :2] - s.velocity[:, :2]).square().sum(1)
    return torch.exp(-error / sigma)


def track_linear_mean(s: State, *, sigma: float = 0.05) -> Tensor:
    """The same of the mean over a gait cycle, where the sway of stepping cancels."""
    return torch.exp(-s.velocity_error[:, :2].square().sum(1) / sigma)


def track_yaw(s: State, *, sigma: float = 0.25) -> Tensor:
    """exp(-e²/sigma) of the yaw rate's mean over a gait cycle."""
    return torch.exp(-s.velocity_error[:, 2].square() / sigma)


def alive(s: State) -> Tensor:
    """1."""
    return torch.ones_like(s.base_height)


def foot_phase(s: State, *, height: float = 0.1, sigma: float = 0.006) -> Tensor:
    """exp(-sum (z - z_ref)²/sigma), z_ref the clock's half-sine bump; only while stepping.

    Before a step up the bump begins with its height. On terrain a foot may be higher for a fifth of
    the price: it must get over what is there.
    """
    error = s.foot_height - height * s.swing - s.rise * (2 * s.swing).clamp(max=1.0)
    error = torch.where((error > 0) & (s.uneven > 0).unsqueeze(1), 0.45 * error, error)
    return torch.exp(-error.square().sum(1) / sigma) * s.moving


def contact_phase(s: State) -> Tensor:
    """How many feet are in contact when the clock says so."""
    return (s.foot_contact == (s.swing <= 0)).float().sum(1) * s.moving


def stand_contact(s: State) -> Tensor:
    """Both feet down while standing."""
    return s.foot_contact.prod(1) * (1 - s.moving)


def upright(s: State) -> Tensor:
    """Squared sine of the tilt."""
    return s.gravity[:, :2].square().sum(1)


def height(s: State) -> Tensor:
    """Squared error of the base height, m²."""
    return (s.base_height - s.command[:, 3]).square()


def vertical_speed(s: State) -> Tensor:
    """vz²."""
    return s.velocity[:, 2].square()


def rocking(s: State) -> Tensor:
    """Roll and pitch rate squared."""
    return s.ang_vel[:, :2].square().sum(1)


def posture(s: State, *, joints: Tensor) -> Tensor:
    """Squared deviation from the reference pose, weighted by joint; (N,) from a map of names."""
    return ((s.joint_pos - s.reference).square() * joints).sum(1)


def action_rate(s: State) -> Tensor:
    """Squared change of the action."""
    return (s.action - s.last_action).square().sum(1)


def action_jerk(s: State) -> Tensor:
    """Squared second difference of the action."""
    return (s.action - 2 * s.last_action + s.older_action).square().sum(1)


def effort(s: State) -> Tensor:
    """Squared joint torques."""
    return s.effort.square().sum(1)


def joint_speed(s: State) -> Tensor:
    """Squared joint speeds."""
    return s.joint_vel.square().sum(1)


def stand_still(s: State) -> Tensor:
    """Squared joint speeds while standing."""
    return s.joint_vel.square().sum(1) * (1 - s.moving)


def joint_limits(s: State, *, margin: float = 0.05) -> Tensor:
    """rad beyond a margin before the position limits."""
    low, high = s.body.position_limit.unbind(1)
    over = torch.relu(s.joint_pos - (high - margin)) + torch.relu(low + margin - s.joint_pos)
    return over.sum(1)


def braked(s: State) -> Tensor:
    """Shares of torque that the safety filter takes from joints on their way into a limit.

    Of joints pressed against their stop it takes all, and it soft-stops a policy that lives there.
    """
    body = s.body
    low, high = body.position_limit.unbind(1)
    driving = s.effort + body.damping * s.joint_vel  # the torque that moves the joint, N m
    way = torch.where(driving > 0, high - s.joint_pos, s.joint_pos - low).clamp(min=0.0)
    speed = s.joint_vel * driving.sign()
    room = (2.0 * body.braking_acceleration * way).sqrt() - speed
    return (1.0 - room / body.braking_band).clamp(0.0, 1.0).sum(1)


def slip(s: State) -> Tensor:
    """Squared speed of feet in contact."""
    return (s.foot_speed.square() * s.foot_contact).sum(1)


def flat_foot(s: State) -> Tensor:
    """Squared slope of the soles against the ground."""
    return s.foot_tilt.sum(1)


def overhang(s: State) -> Tensor:
    """Share of the soles of standing feet over an edge."""
    return s.overhang.sum(1)


def feet_apart(s: State, *, distance: float = 0.16) -> Tensor:
    """m by which the feet are nearer than that, across."""
    return torch.relu(distance - s.foot_gap)


REWARDS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (
        track_linear, track_linear_mean, track_yaw, alive, foot_phase, contact_phase, stand_contact,
        upright, height, vertical_speed, rocking, posture, action_rate, action_jerk, effort,
        joint_speed, stand_still, joint_limits, braked, slip, flat_foot, overhang, feet_apart,
    )
}  # fmt: skip


# --- terminations, each (B,) bool ---------------------------------------------------------------


def tilted(s: State, *, angle: float = 1.0) -> Tensor:
    """The base leans by more than `angle` rad."""
    return -s.gravity[:, 2] < torch.cos(torch.tensor(angle))


def sunk(s: State, *, height: float = 0.4) -> Tensor:
    """The base is lower than `height` m."""
    return s.base_height < height


def dragging(s: State, *, height: float = 0.02) -> Tensor:
    """A foot was not lifted by `height` m when it was its turn, for more than a gait cycle.

    Standing where a walk is asked is safe and pays: a robot that may stand learns nothing else.
    """
    return s.lift.amin(1) < height


def aside(s: State, *, angle: float = 1.0) -> Tensor:
    """Turned aside by more than `angle` rad: walking along a step is easier than over it."""
    return s.away.abs() > angle


def diverged(s: State) -> Tensor:
    """The physics is no longer finite."""
    return ~s.finite


TERMINATIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (tilted, sunk, dragging, aside, diverged)
}


# --- what the critic sees beside the observation terms --------------------------------------------


_SWAP = (torch.tensor([1, 0]), torch.ones(2))
# name -> (function, mirror)
CRITIC: dict[str, tuple[Callable[[State], Tensor], Callable[[Body], Signed]]] = {
    "base_lin_vel": (
        lambda s: s.velocity,
        lambda body: (torch.arange(3), torch.tensor([1.0, -1.0, 1.0])),
    ),
    "velocity_error": (
        lambda s: s.velocity_error,
        lambda body: (torch.arange(3), torch.tensor([1.0, -1.0, -1.0])),
    ),
    "base_height": (
        lambda s: (s.base_height - s.body.nominal_height).unsqueeze(1),
        lambda body: (torch.arange(1), torch.ones(1)),
    ),
    "foot_height": (lambda s: s.foot_height, lambda body: _SWAP),
    "foot_contact": (lambda s: s.foot_contact, lambda body: _SWAP),
    "foot_speed": (lambda s: s.foot_speed, lambda body: _SWAP),
    "effort": (lambda s: s.effort / s.body.effort_limit, lambda body: body.mirror),
}


# --- curriculum: level in [0, 1] from the share of the training done ------------------------------


def ramp(done: float, *, start: float = 0.0, end: float = 1.0, low: float = 0.0) -> float:
    """From `low` at `start` to 1 at `end`, shares of the training."""
    return low + (1 - low) * min(max((done - start) / max(end - start, 1e-9), 0.0), 1.0)


def hill(
    done: float, *, start: float = 0.0, end: float = 0.5, ease: float = 0.6, final: float = 0.6
) -> float:
    """From 0 at `start` to 1 at `end`, and from `ease` on down to `final` at the training's end.

    What is hard teaches balance; what is milder afterwards lets the walk become exact again.
    """
    return ramp(done, start=start, end=end) - (1 - final) * ramp(done, start=ease)


CURRICULUM: dict[str, Callable[..., float]] = {"ramp": ramp, "hill": hill}
LEVELS = {  # what a level scales; 1 where the recipe names none
    "penalties": "rewards of negative weight",
    "randomisation": "the distance of random physics from nominal",
    "pushes": "speed of pushes",
    "delay": "delay",
    "arms": "amplitude of arm targets",
    "rough": "height and slope of rough ground",
    "commands": "ranges of the velocity command",
}
