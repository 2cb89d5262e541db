"""What becomes of a command before it goes out to a G1: single precision, damping in a dry run.

Apart from the driver, since replay does the same and needs no DDS for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robot.messages import LowCmd
from robot.model import Robot
from robot.runs import UnitreeConfig
from robot.safety import rows

Filter = Callable[[LowCmd], NDArray[np.float32]]


def make_filter(config: UnitreeConfig, robot: Robot) -> Filter:
    """A function that turns a command into what this run really sends, in place.

    It returns (5, N) positions, speeds, torques, stiffness, damping, valid until the next call.

    Args:
        config: readonly sends nothing, dry_run sends damping only.
        robot: its damping.
    """
    single = np.zeros((5, robot.num_joints), np.float32)
    known: dict[int, tuple[LowCmd, NDArray[np.float64]]] = {}  # by command: its five arrays

    def as_it_is(cmd: LowCmd) -> NDArray[np.float32]:
        if (found := known.get(id(cmd))) is None:
            found = known[id(cmd)] = cmd, rows(cmd, "joint_pos_target", "damping")
        single[:] = found[1]
        found[1][:] = single
        return single

    def without_drive(cmd: LowCmd) -> NDArray[np.float32]:
        cmd.joint_vel_target[:] = cmd.effort_ff[:] = cmd.stiffness[:] = 0.0
        if config.readonly:
            cmd.damping[:] = 0.0
        elif cmd.stiffness.any() or cmd.damping.any():  # PASSIVE stays without torque
            cmd.damping[:] = robot.damp_damping
        return as_it_is(cmd)

    return without_drive if config.readonly or config.dry_run else as_it_is
