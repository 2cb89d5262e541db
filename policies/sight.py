"""What a judged policy sees the ground by: truth, what perception makes of noisy pictures, nothing.

A policy that reads no height scan is blind, whatever there is to see.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from robot.geomap import SCAN_XY
from robot.messages import HeightMap, LowState, Message, Truth
from robot.model import Robot
from robot.rotations import heading_of, rotation_matrix
from robot.runs import CameraConfig, LogConfig, RunConfig, SimConfig
from robot.stepped_eyes import SteppedEyes
from robot.topics import make_codecs

if TYPE_CHECKING:
    from policies.trials import Trial, World

Eyes = Literal["true", "geomap", "off"]
EYES: tuple[Eyes, ...] = get_args(Eyes)
BLIND = "blind"  # in place of eyes, of a policy that reads no height scan
TRUTH_TICKS = 10  # control ticks from truth to truth, as on the bus
INSTANCE = 1


class TrueSight:
    """The ground as it is, whenever a policy asks.

    Args:
        world: with robot and ground.
        robot: of the messages.
    """

    def __init__(self, world: World, robot: Robot) -> None:
        self._world = world
        self._out: HeightMap = make_codecs(robot)["height_map"].new()

    def see(self, state: LowState, now_ns: int, asked: bool) -> HeightMap | None:
        """Pelvis z minus ground z, in the yaw of the pelvis; None between policy ticks."""
        if not asked:
            return None
        qpos, out = self._world.driver.data.qpos, self._out
        yaw = heading_of(rotation_matrix(qpos[3:7]))
        cos, sin = math.cos(yaw), math.sin(yaw)
        places = SCAN_XY @ np.array([[cos, sin], [-sin, cos]]) + qpos[:2]
        out.height[:] = qpos[2] - self._world.heights(places)
        out.stamp(INSTANCE, out.seq + 1, now_ns)
        out.now_ns = out.t_mid_ns = now_ns
        return out


class MappedSight:
    """What perception makes of a simulated camera's pictures, noise, delay and losses included.

    Args:
        trial: its seed draws the camera's errors, its terrain is what there is to see.
        world: with robot and ground.
        robot: with the camera.
    """

    def __init__(self, trial: Trial, world: World, robot: Robot) -> None:
        run = RunConfig(
            robot=trial.robot, driver="sim", seed=trial.seed, sim=SimConfig(terrain=trial.terrain),
            camera=CameraConfig(source="sim"), log=LogConfig(enabled=False),
        )  # fmt: skip
        codecs = make_codecs(robot)
        self._world, self._seqs = world, dict.fromkeys(codecs, 0)
        self._truth: Truth = codecs["truth"].new()
        self._eyes = SteppedEyes(run, robot, codecs, self._send)

    def see(self, state: LowState, now_ns: int, asked: bool) -> HeightMap | None:
        """The newest map, if this tick brought one, `asked` or not."""
        self._send("low_state", state, now_ns)
        if state.tick % TRUTH_TICKS == 0:
            self._world.driver.truth(self._truth)
            self._send("truth", self._truth, now_ns)
            self._eyes.hear(self._truth)
        self._eyes.hear(state)
        return self._eyes.step(now_ns)

    def _send(self, topic: str, message: Message, stamp_ns: int) -> None:
        self._seqs[topic] += 1
        message.stamp(INSTANCE, self._seqs[topic], stamp_ns)


def make_sight(
    eyes: str, trial: Trial, world: World, robot: Robot
) -> TrueSight | MappedSight | None:
    """What a policy sees by; None where it sees nothing."""
    if eyes == "true":
        return TrueSight(world, robot)
    return MappedSight(trial, world, robot) if eyes == "geomap" else None
