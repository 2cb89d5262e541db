"""Finds from a log how its depth camera really sits: soles measure the ground that it saw.

A camera that is turned or zoomed otherwise than its calibration says puts the ground too high or
too low, the more the farther ahead. The soles tell the height of the same places from kinematics.
Least squares over all pairs of a view and a foothold give the errors and how sure they are; what
no pair depends on stays with its prior, which is as wide as mounts are wrong.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot.rotations import rotation_matrix

FloatArray = NDArray[np.float64]

ERRORS = ("pitch", "roll", "height", "field_of_view")
PRIOR = np.array([math.radians(3.0), math.radians(0.5), 0.01, 0.02])  # standard deviations
# m per m walked between view and foothold, of odometry: it looks like a pitch, and nothing tells
# the two apart, so that the pitch is known no better.
DRIFT = 0.012  # as robot/estimator.py was measured
WINDOW_NS = 4_000_000_000  # a view this long before or after a foothold is compared with it
NEAR, FAR = 0.25, 3.0  # m of z-depth that count
EVERY = 3  # views, of which one is looked at: they are much alike
RADIUS = 0.05  # m around the middle of the sole, in x and y
LEAST = 4  # pixels in it
# m, standard deviations: of all views of a foothold together; of each, which are much alike.
FOOTHOLD, LOOK = 0.015, 0.03
OUTLIER = 0.05  # m; the sole stands on something else than was seen
ROUNDS = 4


class View(NamedTuple):
    """A frame with the poses of its exposure: what GeoMap.update is given, but the time."""

    depth: NDArray[np.floating]
    valid: NDArray[np.bool_]
    intrinsics: tuple[float, float, float, float]
    rotation: FloatArray
    position: FloatArray
    quat_wxyz: FloatArray
    base_pos: FloatArray


@dataclass(frozen=True)
class Mount:
    """How a camera really is, beside its calibration."""

    value: FloatArray
    """(4,) by ERRORS: rad about the picture's x (positive looks higher) and about the optical
    axis, m upwards, share by which the field of view is wider"""
    std: FloatArray
    """(4,) of these"""
    footholds: int
    """that were seen and trodden on"""

    def correct(self, view: View) -> View:
        """The view as it would have been told by a right calibration."""
        pitch, roll, height, wider = self.value.tolist()
        turn = np.eye(3) + np.array([[0.0, -roll, 0.0], [roll, 0.0, -pitch], [0.0, pitch, 0.0]])
        left, _, right = np.linalg.svd(turn)
        fx, fy, cx, cy = view.intrinsics
        up = rotation_matrix(view.quat_wxyz)[2] * height  # (3,) in the pelvis frame
        return view._replace(
            intrinsics=(fx / (1.0 + wider), fy / (1.0 + wider), cx, cy),
            rotation=view.rotation @ (left @ right),
            position=view.position + up,
        )


NO_ERROR = Mount(np.zeros(4), PRIOR, 0)


Views = Sequence[tuple[int, View]]  # ns, and what was seen then
Soles = Sequence[tuple[int, FloatArray]]  # ns, and (3,) m, a sole that came down, odometry frame


def find_mount(passes: Sequence[tuple[Views, Soles]]) -> Mount:
    """The errors that explain best what views and soles disagree about.

    Args:
        passes: views and soles, those that share an odometry frame together.
    """
    pairs = [pair for views, soles in passes for pair in _pairs(views, soles)]
    prior = np.append(PRIOR, DRIFT)
    value, std, used, limit = np.zeros(5), prior, 0, math.inf
    for _ in range(ROUNDS):
        information, pull, used = np.diag(prior**-2), np.zeros(5), 0
        for slopes, errors in pairs:
            fits = np.abs(errors + slopes @ value) < limit
            if fits.any():
                weighed = slopes[fits].T @ _weights(int(fits.sum()))
                information += weighed @ slopes[fits]
                pull -= weighed @ errors[fits]
                used += 1
        value, std = (
            np.linalg.solve(information, pull),
            np.sqrt(np.diag(np.linalg.inv(information))),
        )
        limit = OUTLIER
    return Mount(np.array(value[:4]), np.array(std[:4]), used)


def _pairs(views: Views, soles: Soles) -> list[tuple[FloatArray, FloatArray]]:
    """Of each sole that was seen: (n, 5) m per ERRORS and drift; (n,) m, that ground above it."""
    found: list[list[tuple[FloatArray, float]]] = [[] for _ in soles]
    times = [at for at, _ in views]
    # Where the pelvis was when the sole came down, by the next view.
    trodden = [views[min(bisect(times, t), len(views) - 1)][1].base_pos for t, _ in soles]
    for at, view in views[::EVERY]:
        near = [i for i, (time_ns, _) in enumerate(soles) if abs(at - time_ns) < WINDOW_NS]
        if near:
            points, places, vertical = _unproject(view)
            for i in near:
                time_ns, sole = soles[i]
                if (pair := _compare(points, places, vertical, sole)) is not None:
                    walked = math.dist(view.base_pos[:2], trodden[i][:2])
                    slopes = np.append(pair[0], math.copysign(walked, at - time_ns))
                    found[i].append((slopes, pair[1]))
    return [
        (np.array([slopes for slopes, _ in seen]), np.array([error for _, error in seen]))
        for seen in found
        if seen
    ]


def _unproject(view: View) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(n, 3) m along the camera's axes, in the odometry frame too, and (3,) up in the first."""
    fx, fy, cx, cy = view.intrinsics
    upright = rotation_matrix(view.quat_wxyz)
    turn = upright @ view.rotation
    v, u = np.nonzero(view.valid & (view.depth > NEAR) & (view.depth < FAR))
    z = view.depth[v, u].astype(np.float64)
    points = np.stack([(u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z], axis=1)
    return points, points @ turn.T + (upright @ view.position + view.base_pos), turn[2]


def _compare(
    points: FloatArray, places: FloatArray, vertical: FloatArray, sole: FloatArray
) -> tuple[FloatArray, float] | None:
    """(4,) what the errors do to the height of ground that was seen, and that above the sole, m."""
    away = np.abs(places[:, :2] - sole[:2])
    near = np.flatnonzero((away[:, 0] < RADIUS) & (away[:, 1] < RADIUS))
    if len(near) < LEAST:
        return None
    x, y, z = points[near].T
    right, down, ahead = vertical
    slopes = (ahead * y - down * z, down * x - right * y, np.ones(len(x)), right * x + down * y)
    error = float(np.median(places[near, 2]) - sole[2])
    return np.array([slope.mean() for slope in slopes]), error


def _weights(n: int) -> FloatArray:
    """(n, n) inverse covariance of the views of one foothold, which share its error."""
    return (np.eye(n) - FOOTHOLD**2 / (LOOK**2 + n * FOOTHOLD**2)) / LOOK**2


def told(mount: Mount) -> str:
    """One sentence for people."""
    if not mount.footholds:
        return "the camera's mount: no foot stepped on ground that it had seen"
    pitch, roll, height, wider = (*np.degrees(mount.value[:2]), *(100 * mount.value[2:]))
    within = 2.0 * np.array([*np.degrees(mount.std[:2]), *(100 * mount.std[2:])])
    return (
        f"the camera beside its calibration, by {mount.footholds} footholds: looks "
        f"{abs(pitch):.1f} degrees {'higher' if pitch > 0 else 'lower'} (within {within[0]:.1f}), "
        f"rolled {roll:+.1f} (within {within[1]:.1f}), {height:+.1f} cm up (within "
        f"{within[2]:.1f}), field of view {wider:+.1f} % (within {within[3]:.1f})"
    )
