"""Walks a policy over uneven ground in the judge's world: one crossing in, a few numbers out.

The robot starts on the flat square of a terrain and is asked to go ahead, as an operator would: by
a velocity forward and a yaw rate that keeps it on its line, so that it meets what lies there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from policies.sight import BLIND, make_sight
from policies.trials import CONTROL_HZ, SETTLE_S, FloatArray, Trial, Walk, World, _load
from robot.rotations import heading_of, rotation_matrix

SPEED = 0.5  # m/s asked for, or the most that the policy may be asked
LENGTH = 6.0  # m, a metre of it flat
SLOWEST = 0.5  # share of the asked speed at which the time is up
TURN_GAIN, TURN_MOST = 1.5, 0.5  # 1/s; rad/s
AIM_GAIN, AIM_MOST = 0.5, 0.5  # rad per m beside the line; rad


@dataclass(frozen=True)
class Crossing:
    """One piece of ground, and a policy that shall cross it."""

    trial: Trial
    """its terrain and draws; its seconds are the time it has"""
    speed: float
    """m/s forward, asked for"""
    turn_most: float
    """rad/s, asked for at most"""
    length: float = LENGTH
    """m along x to arrive at"""
    eyes: str = BLIND
    """one of policies.sight.EYES"""


def cross(crossing: Crossing) -> dict[str, float]:
    """Walk until arrival, fall or the end of its time.

    Returns:
        arrived, fell (0 or 1, as Walk.fallen says); walked: m ahead of the start; seconds: after
        the settling.
    """
    robot, pilot = _load(crossing.trial.policy, crossing.trial.robot)
    world = World(crossing.trial, robot, np.array(pilot.info.default_joint_pos))
    sight = make_sight(crossing.eyes, crossing.trial, world, robot)
    walk, data = Walk(world, robot, pilot, sight), world.driver.data
    settled = round(SETTLE_S * CONTROL_HZ)
    ticks = settled + round(crossing.trial.seconds * CONTROL_HZ)
    walked, fell = 0.0, False
    while walk.ticks < ticks and walked < crossing.length and not fell:
        velocity = steer(data.qpos, crossing) if walk.ticks >= settled else np.zeros(3)
        walk.decide(velocity)
        walk.act()
        walked, fell = max(walked, float(data.qpos[0])), walk.fallen()
    return {
        "arrived": float(walked >= crossing.length),
        "fell": float(fell),
        "walked": min(walked, crossing.length),
        "seconds": max(0.0, walk.ticks / CONTROL_HZ - SETTLE_S),
    }


def steer(qpos: FloatArray, crossing: Crossing) -> FloatArray:
    """(3,) m/s, m/s, rad/s: ahead, and back to the x axis where the robot has strayed from it."""
    heading = heading_of(rotation_matrix(qpos[3:7]))
    aim = min(max(-AIM_GAIN * float(qpos[1]), -AIM_MOST), AIM_MOST)
    away = math.remainder(aim - heading, 2.0 * math.pi)
    yaw_rate = min(max(TURN_GAIN * away, -crossing.turn_most), crossing.turn_most)
    return np.array([crossing.speed, 0.0, yaw_rate])
