"""The one ramp: every change of source blends from what is in force to what is new.

Targets and gains are blended over times of their own. Progress counts executed ticks, so a gap in
time never becomes a jump.
"""

from __future__ import annotations

import numpy as np

from robot.messages import LowCmd

FROM_DAMP_GAIN = 0.2  # share of the new stiffness to begin with, only out of DAMP (faults.md 5)
TARGETS = ("joint_pos_target", "joint_vel_target", "effort_ff")
GAINS = ("stiffness", "damping")


class Ramp:
    """Blends commands in place after a change of source.

    Args:
        command: a command of the robot; gives the sizes.
        period_s: length of a control tick.
    """

    def __init__(self, command: LowCmd, period_s: float) -> None:
        self.period_s = period_s
        self.start = command.copy()  # what was in force when the ramp began
        self.ticks = self.target_ticks = self.gain_ticks = 0

    @property
    def done(self) -> bool:
        """True when the new source is in force alone."""
        return self.ticks >= max(self.target_ticks, self.gain_ticks)

    @property
    def progress(self) -> float:
        """Share of the ramp that has passed, 0 to 1."""
        return min(1.0, self.ticks / max(1, self.target_ticks, self.gain_ticks))

    def begin(self, in_force: LowCmd, target_s: float, gain_s: float) -> None:
        """Start a ramp away from `in_force`."""
        self.start.copy_from(in_force)
        self.ticks = 0
        self.target_ticks = round(target_s / self.period_s)
        self.gain_ticks = round(gain_s / self.period_s)

    def soften(self, cmd: LowCmd) -> None:
        """Out of DAMP: begin with a share of the stiffness of `cmd` instead of none."""
        np.multiply(cmd.stiffness, FROM_DAMP_GAIN, out=self.start.stiffness)

    def apply(self, cmd: LowCmd) -> None:
        """Replace `cmd` by the blend at this tick, and advance by one tick."""
        if self.ticks >= self.target_ticks and self.ticks >= self.gain_ticks:  # done
            return
        self.ticks += 1
        self._blend(cmd, TARGETS, min(1.0, self.ticks / max(1, self.target_ticks)))
        self._blend(cmd, GAINS, min(1.0, self.ticks / max(1, self.gain_ticks)))

    def _blend(self, cmd: LowCmd, names: tuple[str, ...], share: float) -> None:
        for name in names:
            new, old = getattr(cmd, name), getattr(self.start, name)
            np.subtract(new, old, out=new)
            np.multiply(new, share, out=new)
            np.add(new, old, out=new)
