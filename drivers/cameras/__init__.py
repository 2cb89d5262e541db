"""Cameras by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from drivers.cameras.camera import Camera
from robot.clock import now_ns
from robot.config import UserError, listing
from robot.messages import Truth
from robot.model import Robot
from robot.runs import RunConfig

# Imported only when asked for, since each has its own needs.
CAMERAS = {
    "sim": ("drivers.cameras.sim", "SimCamera"),
    "v4l2": ("drivers.cameras.v4l2", "V4l2Camera"),
    "replay": ("drivers.cameras.replay", "ReplayCamera"),
}


def make_camera(
    run: RunConfig,
    robot: Robot,
    name: str,
    truths: Callable[[], Iterable[Truth]],
    now: Callable[[], int] = now_ns,
) -> Camera:
    """The camera that the run file names.

    Args:
        run: its `camera` section says which.
        robot: has the calibration.
        name: of the camera, a key of robot.cameras.
        truths: what the simulation said since it was asked last, oldest first; only `sim` asks.
        now: the clock, ns.

    Raises:
        UserError: the robot has no such camera, or the camera refuses its calibration or settings.
    """
    if name not in robot.cameras:
        raise UserError(
            f"{robot.path}: cameras: {name!r} is unknown; available: {listing(robot.cameras)}"
        )
    module, what = CAMERAS[run.camera.source]
    make = getattr(importlib.import_module(module), what)
    return make(run, robot, robot.cameras[name], truths, now)
