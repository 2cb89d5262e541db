"""Judges whether a G1's IMU agrees with itself: gravity with orientation, rates with turning.

A pure stage over samples. It tells an axis that is swapped or a gyro that drifts; an IMU that is
wholly turned, and says so consistently, shows as a tilt. Ids are rows of the fault table.
"""

from __future__ import annotations

import math

from numpy.typing import NDArray

GRAVITY = 9.81  # m/s^2
SMOOTH_MS = 200.0  # steps and shakes of a walk are over in less
OFF_GRAVITY = 0.6  # share of gravity, felt beside what is called up (S6)
OFF_RATE = 0.15  # rad/s between the gyro and the orientation's turning (S7)
GAP_MS = 100  # between two samples: what happened meanwhile is not known; SMOOTH_MS at most


class ImuWatch:
    """Differences that should be zero, smoothed.

    Attributes:
        off_gravity: (3,) share of gravity, body frame: felt acceleration less the way up.
        off_rate: (3,) rad/s, body frame: the gyro less the turning of the orientation.
        doubted_ms: for how long gravity has been off by more than OFF_GRAVITY.
    """

    def __init__(self) -> None:
        self.off_gravity, self.off_rate = [0.0] * 3, [0.0] * 3
        self.doubted_ms = 0
        self._quat: tuple[float, float, float, float] | None = None

    def hear(self, quat: NDArray, gyro: NDArray, accel: NDArray, passed_ms: int) -> None:
        """Take a sample.

        Args:
            quat: (4,) w x y z.
            gyro: (3,) rad/s, body frame.
            accel: (3,) m/s^2, body frame.
            passed_ms: since the sample before.
        """
        w, x, y, z = now = tuple(quat.tolist())
        rates, felt = gyro.tolist(), accel.tolist()
        if not math.isfinite(w + x + y + z + sum(rates) + sum(felt)):
            return  # such a state is refused elsewhere
        before, self._quat = self._quat, now
        if before is None or not 0 < passed_ms < GAP_MS:
            return
        up = (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y))
        turned, share = turning(before, now, passed_ms * 1e-3), passed_ms / SMOOTH_MS
        for axis in range(3):
            off = felt[axis] / GRAVITY - up[axis] - self.off_gravity[axis]
            self.off_gravity[axis] += share * off
            off = rates[axis] - turned[axis] - self.off_rate[axis]
            self.off_rate[axis] += share * off
        doubted = math.hypot(*self.off_gravity) > OFF_GRAVITY
        self.doubted_ms = self.doubted_ms + passed_ms if doubted else 0

    @property
    def drifts(self) -> bool:
        """True if the gyro says another turning than the orientation."""
        return math.hypot(*self.off_rate) > OFF_RATE


def turning(
    before: tuple[float, float, float, float], after: tuple[float, float, float, float], dt: float
) -> tuple[float, float, float]:
    """Mean rate in rad/s, body frame, between two orientations (w x y z) that are `dt` s apart."""
    a, b, c, d = before
    w, x, y, z = after
    cosine = a * w + b * x + c * y + d * z
    twice = math.copysign(2.0 / dt, cosine)  # q and -q are one orientation
    return (
        twice * (a * x - b * w - c * z + d * y),
        twice * (a * y + b * z - c * w - d * x),
        twice * (a * z - b * y + c * x - d * w),
    )
