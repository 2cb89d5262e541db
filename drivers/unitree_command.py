"""What becomes of a command before it goes out to a G1: single precision, damping in a dry run.

Apart from the driver, since replay does the same and needs no DDS for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robot.messages import LowCmd
from robot.model import Robot
from robot.runs import UnitreeConfig

ARRAYS = ("joint_pos_target", "joint_vel_target", "effort_ff", "stiffness", "damping")


def make_filter(config: UnitreeConfig, robot: Robot) -> Callable[[LowCmd], None]:
    """A function that turns a command into what this run really sends.

    Args:
        config: readonly sends nothing, dry_run sends damping only.
        robot: its damping.
    """

    def as_it_is(cmd: LowCmd) -> None:
        for name in ARRAYS:
            values = getattr(cmd, name)
            values[:] = values.astype(np.float32)

    def without_drive(cmd: LowCmd) -> None:
        cmd.joint_vel_target[:] = cmd.effort_ff[:] = cmd.stiffness[:] = 0.0
        if config.readonly:
            cmd.damping[:] = 0.0
        elif cmd.stiffness.any() or cmd.damping.any():  # PASSIVE stays without torque
            cmd.damping[:] = robot.damp_damping
        as_it_is(cmd)

    return without_drive if config.readonly or config.dry_run else as_it_is
