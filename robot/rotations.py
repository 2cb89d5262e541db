"""Rotations as quaternions (w x y z) and matrices: turns one into the other, and what lies between.

Nothing but NumPy, for whoever is no part of MuJoCo's world.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def rotation_matrix(quat_wxyz: ArrayLike) -> FloatArray:
    """(3, 3) that turns vectors of the body into those of the world; its columns are the axes."""
    w, x, y, z = np.asarray(quat_wxyz, np.float64).tolist()
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def heading_of(rotation: FloatArray) -> float:
    """Yaw in rad: where the body's x axis points on the ground."""
    return math.atan2(rotation[1, 0], rotation[0, 0])


def quat_between(before: FloatArray, after: FloatArray, share: float) -> FloatArray:
    """(4,) so far on the way from one orientation to another, a few degrees apart at most."""
    near = after if before @ after >= 0.0 else -after  # q and -q are one orientation
    quat = before + share * (near - before)
    return quat / np.linalg.norm(quat)
