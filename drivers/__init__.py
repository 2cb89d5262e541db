"""Drivers by name."""

from __future__ import annotations

from collections.abc import Callable

from drivers.driver import Driver
from robot.messages import LowCmd
from robot.model import Robot
from robot.runs import RunConfig


def make_driver(run: RunConfig, robot: Robot) -> Driver:
    """The driver that the run file names; imported only now, since each has its own needs."""
    if run.driver == "loopback":
        from drivers.loopback import LoopbackDriver

        return LoopbackDriver(robot, run.period_ns)
    if run.driver == "unitree":
        from drivers.unitree import UnitreeDriver

        return UnitreeDriver(robot, run.unitree, run.timing_factor)
    from drivers.sim import SimDriver

    return SimDriver(robot, run.sim, run.period_ns, run.seed)


def as_sent(run: RunConfig, robot: Robot) -> Callable[[LowCmd], object]:
    """What the run's driver makes of a command on its way to the motors: replay does the same."""
    if run.driver == "unitree":
        from drivers.unitree_command import make_filter

        return make_filter(run.unitree, robot)
    return lambda cmd: None
