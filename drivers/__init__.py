"""Drivers by name."""

from __future__ import annotations

from drivers.driver import Driver
from robot.model import Robot
from robot.runs import RunConfig


def make_driver(run: RunConfig, robot: Robot) -> Driver:
    """The driver that the run file names; imported only now, since each has its own needs."""
    if run.driver == "loopback":
        from drivers.loopback import LoopbackDriver

        return LoopbackDriver(robot, run.period_ns)
    from drivers.sim import SimDriver

    return SimDriver(robot, run.sim, run.period_ns, run.seed)
