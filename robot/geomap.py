"""Remembers depth images as a grid of terrain heights around the robot; needs no training.

Each frame is unprojected with the camera's pose, rotated upright by the pelvis' orientation and
fused into cells that hold a height, its variance and when it was seen. The grid follows the robot
by odometry; a foot that stands on the ground corrects it, and ground that rises or sinks while one
comes nearer tells the camera's pitch. The scan is what policies expect (mjlab's height scan). It
knows neither topics nor cameras nor joints, and its only clock is its arguments.

The grid is upright and follows the robot by whole cells, but does not turn with it: turning it
would smear every edge a little with every frame. The scan is turned to the heading instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot.rotations import heading_of, rotation_matrix

FloatArray = NDArray[np.float64]

SCAN_X = np.linspace(-0.8, 0.8, 17)  # m ahead of the pelvis, inner
SCAN_Y = np.linspace(-0.5, 0.5, 11)  # m to its left, outer
AGE_LIMIT_NS = 200_000_000  # since its newest frame: an older map is not walked by
SCAN_XY = np.stack(np.meshgrid(SCAN_X, SCAN_Y), axis=-1).reshape(-1, 2)  # (187, 2), mjlab's order


@dataclass(frozen=True)
class GeoMapSpec:
    """What the map takes for granted. Variances are squares of these."""

    cell: float = 0.05
    """m, edge of a cell."""
    cells: int = 64
    """per side: 3.2 m, a power of two."""
    near: float = 0.25
    """m of z-depth; nearer is the robot itself, or the sensor's blind zone."""
    far: float = 3.0
    """m of z-depth; farther is too uncertain to help."""
    sensor_a: float = 0.005
    """m, standard deviation of z-depth: a + b z^2."""
    sensor_b: float = 0.01
    """1/m, the same."""
    tilt: float = math.radians(0.5)
    """rad, standard deviation of the camera's attitude: what it does to a height grows with
    distance, and no number of pixels averages it out."""
    mount: float = math.radians(1.5)
    """rad, standard deviation of the camera's pitch beside its calibration, before it was judged:
    a wrong pitch shows, as ground that rises or sinks while one comes nearer."""
    creep: float = math.radians(0.1)
    """rad that the mount may turn in one metre of travel, standard deviation."""
    look: float = 0.05
    """rad, standard deviation of the pitch that one frame tells: attitude and odometry err, too."""
    alike: float = 200.0
    """cells of a frame that err together, where the pitch is judged."""
    lift: float = 0.003
    """m, standard deviation of the camera's height."""
    drift: float = 0.01
    """m after one metre of travel, standard deviation of odometry; its variance grows linearly."""
    slope: float = 0.35
    """height per distance that unseen ground may have, standard deviation."""
    gate: float = 3.0
    """standard deviations beyond which a measurement contradicts a cell."""
    sole: float = 0.01
    """m, standard deviation of a standing sole's height."""
    even: float = 0.03
    """m between the heights under a sole, from which there is an edge."""
    step: float = 0.06
    """m; a sole that differs by more stands on something else than the cell shows."""
    pelvis_height: float = 0.76
    """m above the ground, believed while nothing was seen and no foot has stood."""


class GeoMap:
    """The rolling map; everything it remembers is in its public attributes."""

    def __init__(self, spec: GeoMapSpec | None = None) -> None:
        self.spec = spec or GeoMapSpec()
        n = self.spec.cells
        self.height = np.zeros((n, n))  # [x, y] m, up, odometry frame
        self.variance = np.full((n, n), np.inf)  # m^2, infinite where never seen
        self.seen_s = np.zeros((n, n))  # when, s
        self.lever = np.zeros((n, n))  # m that the height rises by for each rad of pitch
        self.pitch = 0.0  # rad that the camera looks higher than its calibration says
        self.pitch_variance = self.spec.mount**2  # rad^2, beside the cells' variance
        self.corner = np.zeros(2, np.int64)  # odometry frame in cells: the lower corner of [0, 0]
        self.base_pos = np.zeros(3)  # m, pelvis at the newest frame
        self.heading = 0.0  # rad, at the newest frame
        self.started_s = -1.0  # time of the first frame or contact; -1: none yet
        self.ground = math.nan  # m, where a foot stood last
        self.shift = 0.0  # m, sum of what contacts have corrected
        self.shift_variance = 0.0  # m^2, of what is not corrected yet
        self._rays: tuple[tuple[float, ...], FloatArray] = (), np.zeros((0, 3))

    def update(
        self,
        depth: NDArray[np.floating],
        valid: NDArray[np.bool_],
        intrinsics: tuple[float, float, float, float],
        rotation: FloatArray,
        position: FloatArray,
        quat_wxyz: ArrayLike,
        base_pos: ArrayLike,
        now_ns: int,
    ) -> None:
        """Take in one frame, with the poses that were true in the middle of its exposure.

        Args:
            depth: (H, W) z-depth (not range) in m, row 0 on top.
            valid: (H, W); False also where the robot sees itself.
            intrinsics: fx, fy, cx, cy in pixels; pixel centres at + 0.5.
            rotation: (3, 3) of the camera in the pelvis frame; optical axes, +z forward, +y down.
            position: (3,) m, of the camera in the pelvis frame.
            quat_wxyz: (4,) orientation of the pelvis; its yaw is that of odometry.
            base_pos: (3,) m, of the pelvis in the odometry frame.
            now_ns: middle of the exposure.
        """
        upright = rotation_matrix(quat_wxyz)
        self._move(np.asarray(base_pos, np.float64), heading_of(upright), now_ns)
        spec, n = self.spec, self.spec.cells
        cos, sin = math.cos(self.pitch), math.sin(self.pitch)
        turn = upright @ rotation @ np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        rays = self._directions(intrinsics, depth.shape)
        along = rays @ turn.T  # per m of z
        z = depth.reshape(-1).astype(np.float64)
        keep = np.flatnonzero(valid.reshape(-1) & (z > spec.near) & (z < spec.far))
        z, along, rays = z[keep], along[keep], rays[keep]
        offset = upright @ position  # m, from the pelvis
        points = along * z[:, None] + (offset + self.base_pos)
        at = np.floor(points[:, :2] / spec.cell).astype(np.int64) - self.corner
        inside = np.flatnonzero(((at >= 0) & (at < n)).all(axis=1))
        at, points, z = at[inside], points[inside], z[inside]
        noise = (spec.sensor_a + spec.sensor_b * z * z) * along[inside, 2]
        lever = (turn[2, 2] * rays[inside, 1] - turn[2, 1]) * z
        self._fuse(at[:, 0] * n + at[:, 1], points[:, 2], noise * noise, lever, now_ns)

    def contact(self, sole: ArrayLike, now_ns: int) -> float:
        """A sole stands: correct the drift of the map, and what it says of this place.

        Args:
            sole: (3,) m, the middle of the sole in the odometry frame.
            now_ns: when.

        Returns:
            Height of the map, as it was, above the sole in m; NaN where it was not seen.
        """
        spec = self.spec
        x, y, z = np.asarray(sole, np.float64)
        self.ground = float(z)
        if self.started_s < 0.0:
            self._move(np.array([x, y, z + spec.pelvis_height]), self.heading, now_ns)
        at = np.floor(np.array([x, y]) / spec.cell).astype(np.int64) - self.corner
        if ((at < 0) | (at >= spec.cells)).any():
            return math.nan
        i, j = int(at[0]), int(at[1])
        patch = np.s_[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]  # a sole covers this much
        height, variance = self.height[patch], self.variance[patch]
        known, sole_variance, error = np.isfinite(variance), spec.sole**2, math.nan
        if known.any():
            apart = height[known] - z
            # Over an edge a sole stands on what is highest, wherever the map has most cells.
            even = np.ptp(apart) < spec.even
            error = float(np.median(apart) if even else apart[np.abs(apart).argmin()])
        if abs(error) < spec.step:
            # The cells' variance holds what odometry may have drifted since, not the pitch.
            lever = float(self.lever[patch][known].mean())
            by_pitch = self.pitch_variance * lever
            whole = float(variance[known].mean()) + by_pitch * lever + sole_variance
            share = self.shift_variance / whole
            self.height -= share * error
            self.shift -= share * error
            self.shift_variance *= 1.0 - share
            self._turn(-by_pitch / whole * error, by_pitch * lever / whole)
        self.height[patch], self.variance[patch], self.lever[patch] = z, sole_variance, 0.0
        self.seen_s[patch] = now_ns * 1e-9
        return error

    def scan(
        self, now_ns: int, base_pos: ArrayLike | None = None, heading: float | None = None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The 187 cells around the robot in mjlab's order: y from right to left, x within.

        Args:
            now_ns: ages are counted to here.
            base_pos: (3,) m, pelvis in the odometry frame now; None: as at the newest frame.
            heading: rad, likewise.

        Returns:
            Heights (pelvis z minus terrain z, m), standard deviations (m), ages (s). Unseen
            cells are guessed from their neighbours, with a deviation that says so, and are as old
            as the map.
        """
        pos = self.base_pos if base_pos is None else np.asarray(base_pos, np.float64)
        i, j = self._cells(pos, self.heading if heading is None else heading)
        height, variance = self._filled()
        seen = np.where(np.isfinite(self.variance[i, j]), self.seen_s[i, j], self.started_s)
        age = np.maximum(now_ns * 1e-9 - seen, 0.0)
        variance = variance[i, j] + self._by_pitch(i, j) + _roughness(height, i, j)
        return pos[2] - height[i, j], np.sqrt(variance), age

    def beneath(self, base_pos: FloatArray, heading: float) -> tuple[FloatArray, FloatArray]:
        """What was really measured of the 187 cells around a pose: nothing is guessed.

        Returns:
            (187,) heights in the odometry frame (m) and variances (m^2), infinite where never seen.
        """
        i, j = self._cells(base_pos, heading)
        return self.height[i, j], self.variance[i, j] + self._by_pitch(i, j)

    def _by_pitch(self, i: NDArray[np.intp], j: NDArray[np.intp]) -> FloatArray:
        """m^2, variance of cells that the camera's pitch gives them all together."""
        return self.pitch_variance * np.square(self.lever[i, j])

    def _cells(self, pos: FloatArray, yaw: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(187,) rows and columns of the grid that the scan at a pose is read from."""
        cos, sin = math.cos(yaw), math.sin(yaw)
        xy = SCAN_XY @ np.array([[cos, sin], [-sin, cos]]) + pos[:2]
        at = np.floor(xy / self.spec.cell).astype(np.int64) - self.corner
        np.clip(at, 0, self.spec.cells - 1, out=at)
        return at[:, 0], at[:, 1]

    def _move(self, base_pos: FloatArray, heading: float, now_ns: int) -> None:
        """Follow the robot; what falls off the edge is forgotten, what was travelled blurs."""
        spec, n = self.spec, self.spec.cells
        corner = np.floor(base_pos[:2] / spec.cell).astype(np.int64) - n // 2
        if self.started_s < 0.0:
            self.started_s, self.corner, self.base_pos = now_ns * 1e-9, corner, base_pos
        travelled = math.dist(base_pos[:2], self.base_pos[:2])
        self.variance += spec.drift**2 * travelled
        self.shift_variance += spec.drift**2 * travelled
        self.pitch_variance += spec.creep**2 * travelled
        self.base_pos, self.heading = base_pos.copy(), heading
        by_x, by_y = (int(step) for step in corner - self.corner)
        if by_x or by_y:
            self.corner = corner
            for layer, unknown in (
                (self.height, 0.0), (self.variance, np.inf), (self.seen_s, 0.0), (self.lever, 0.0),
            ):  # fmt: skip
                _roll(layer, by_x, by_y, unknown)

    def _directions(self, intrinsics: tuple[float, ...], shape: tuple[int, ...]) -> FloatArray:
        """(H W, 3) optical directions of the pixels with z = 1; kept from frame to frame."""
        key = (*intrinsics, *shape)
        if self._rays[0] != key:
            fx, fy, cx, cy = intrinsics
            v, u = np.mgrid[: shape[0], : shape[1]] + 0.5
            rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(shape)], axis=-1)
            self._rays = key, rays.reshape(-1, 3)
        return self._rays[1]

    def _fuse(
        self, cell: NDArray, z: FloatArray, noise: FloatArray, lever: FloatArray, now_ns: int
    ) -> None:
        """Average the points of each cell, and fuse the averages as Kalman does."""
        spec, n = self.spec, self.spec.cells
        weight = np.bincount(cell, 1.0 / noise, minlength=n * n)
        at = np.flatnonzero(weight)
        weight = weight[at]
        count = np.bincount(cell, minlength=n * n)[at]
        # About the pelvis: squares of large numbers would cancel badly.
        z = z - self.base_pos[2]
        mean = np.bincount(cell, z / noise, minlength=n * n)[at] / weight
        spread = np.bincount(cell, z * z / noise, minlength=n * n)[at] / weight - mean * mean
        lever = np.bincount(cell, lever / noise, minlength=n * n)[at] / weight
        # What differs within a cell is an edge or a slope, and does not shrink with more pixels.
        pose = spec.lift**2 + np.square(spec.tilt * lever)
        measured = 1.0 / weight + np.maximum(spread - count / weight, 0.0) + pose
        height, variance = self.height.reshape(-1), self.variance.reshape(-1)
        levers = self.lever.reshape(-1)
        prior, nearer = variance[at], lever - levers[at]
        apart = mean + self.base_pos[2] - height[at]
        squared = apart * apart
        # One contradiction only shakes a cell's belief; a second one is then believed.
        most = spec.gate**2 * (prior + measured + self.pitch_variance * nearer * nearer)
        denied = np.isfinite(prior) & (squared > most)
        gain = np.where(denied, 0.0, 1.0 / (1.0 + measured / prior))  # 1 where never seen
        known = np.flatnonzero(np.isfinite(prior) & ~denied)
        turned = self._judge_pitch(apart[known], nearer[known], (prior + measured)[known])
        apart += turned * nearer  # the map itself has been corrected
        height[at] += gain * apart
        levers[at] += gain * nearer
        # The pose's error is the same in every frame: fusing must not average it away.
        variance[at] = np.where(denied, prior + squared, np.maximum(gain * measured, pose))
        self.seen_s.reshape(-1)[at] = now_ns * 1e-9

    def _judge_pitch(self, apart: FloatArray, nearer: FloatArray, variance: FloatArray) -> float:
        """Correct the camera's pitch, and the map by it, by ground that was seen from elsewhere.

        Args:
            apart: (K,) m that this frame says more than the map.
            nearer: (K,) m by which the lever is longer than that of the map.
            variance: (K,) m^2 of `apart`.

        Returns:
            rad by which the camera was found to look higher than was believed.
        """
        spec, told = self.spec, nearer / variance
        information = float((told * nearer).sum())
        if information <= 0.0:
            return 0.0
        error = -float((told * apart).sum()) / information
        doubt = spec.alike / information + spec.look**2
        share = self.pitch_variance / (self.pitch_variance + doubt)
        return self._turn(share * error, share)

    def _turn(self, turned: float, share: float) -> float:
        """Take the camera to look higher by so many rad, and its pitch for surer by that share."""
        most = self.spec.gate * self.spec.mount  # beyond it the feet shall find it, not we
        turned = min(max(turned, -most - self.pitch), most - self.pitch)
        self.pitch += turned
        self.pitch_variance *= 1.0 - share
        self.height += turned * self.lever
        return turned

    def _filled(self) -> tuple[FloatArray, FloatArray]:
        """(n, n) heights and variances without gaps.

        Cells are averaged over 2 x 2, 4 x 4 and so on; a gap takes the smallest square that has
        anything in it, and the variance of ground as far away as that square is wide.
        """
        spec = self.spec
        known = np.isfinite(self.variance)
        levels = [(np.where(known, self.height, 0.0), known.astype(np.float64))]
        spreads = [np.where(known, self.variance, 0.0)]
        while len(levels[-1][0]) > 1:
            total, count = levels[-1]
            levels.append((_quarter(total), _quarter(count)))
            spreads.append(_quarter(spreads[-1]))
        total, count = levels.pop()
        ground = self.ground
        if not math.isfinite(ground):
            ground = self.base_pos[2] - spec.pelvis_height
        height = total / count if count[0, 0] else np.full((1, 1), ground)
        variance = spreads.pop() / np.maximum(count, 1.0)
        for (total, count), spread in zip(reversed(levels), reversed(spreads), strict=True):
            width = spec.cell * spec.cells / len(height)
            full = count > 0
            height, variance = _fourfold(height), _fourfold(variance)
            guess = np.maximum(variance, (spec.slope * width) ** 2)
            np.divide(total, count, out=height, where=full)
            variance = np.divide(spread, count, out=guess, where=full)
        return height, variance


def _roughness(height: FloatArray, i: NDArray[np.intp], j: NDArray[np.intp]) -> FloatArray:
    """m^2, mean squared step to the four neighbours, halved: an edge may be a cell away."""
    low, high, left, right = (
        np.maximum(i - 1, 0), np.minimum(i + 1, len(height) - 1),
        np.maximum(j - 1, 0), np.minimum(j + 1, len(height) - 1),
    )  # fmt: skip
    around = np.stack([height[low, j], height[high, j], height[i, left], height[i, right]])
    return 0.5 * np.square(around - height[i, j]).mean(axis=0)


def _quarter(fine: FloatArray) -> FloatArray:
    """(n / 2, n / 2) sums of 2 x 2 cells."""
    return fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]


def _fourfold(coarse: FloatArray) -> FloatArray:
    """(2 n, 2 n) each cell four times."""
    return coarse.repeat(2, axis=0).repeat(2, axis=1)


def _roll(layer: FloatArray, by_x: int, by_y: int, unknown: float) -> None:
    """Shift the content by whole cells in place; what comes in is unknown."""
    moved = np.full_like(layer, unknown)
    n = len(layer)
    if abs(by_x) < n and abs(by_y) < n:
        to = np.s_[max(-by_x, 0) : n - max(by_x, 0), max(-by_y, 0) : n - max(by_y, 0)]
        source = np.s_[max(by_x, 0) : n + min(by_x, 0), max(by_y, 0) : n + min(by_y, 0)]
        moved[to] = layer[source]
    layer[:] = moved
