"""The hardware edge: a few methods that every robot, real or simulated, implements.

`tests/test_contract.py` holds the behaviour that every driver inherits.
"""

from __future__ import annotations

from typing import Protocol

from robot.messages import Health, LowCmd, LowState, Truth


class DriverFault(Exception):
    """The hardware cannot be read or reports a fault; the text names it. Control answers DAMP."""


class Driver(Protocol):
    """A robot. Control alone owns it, and calls everything from one thread.

    Attributes:
        simulated: True if no real motor can move; arming by itself and a timing factor other than
            1 are allowed only then.
        physics_cpu_ns: CPU time spent on simulating so far; 0 on hardware.
    """

    simulated: bool
    physics_cpu_ns: int

    def open(self) -> None:
        """Connect. Motors stay without torque.

        Raises:
            UserError: the robot is not there, or not the one expected.
        """
        ...

    def read(self, state: LowState) -> None:
        """Fill `state` (all but its header) with the newest measurements, in joint order.

        Raises:
            DriverFault: there is no state; `state` is left as it was.
        """
        ...

    def write(self, cmd: LowCmd) -> None:
        """Send `cmd`; its arrays are then what was really sent (quantised, delayed frames aside).

        Simulated physics advances here, by one control period per call.

        Raises:
            DriverFault: it could not be sent.
        """
        ...

    def health(self, health: Health) -> bool:
        """Fill what the robot says about itself (all but its header and tick), right after `read`.

        `alerts` are rows of modes.FAULTS that do not forbid reading; those that do are raised. They
        are in force until the next news. False, and nothing is filled, where there is none.
        """
        ...

    def truth(self, truth: Truth) -> bool:
        """Fill what only a simulation knows; False on hardware."""
        ...

    def close(self) -> None:
        """Let go; may be called twice."""
        ...
