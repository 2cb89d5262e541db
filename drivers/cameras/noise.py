"""The one model of what a depth camera does wrong, for training, simulation and tests.

Everything is a function of arrays and a generator: `draw` picks what holds for a while, `disturb`
spoils pictures, `misplace` tells the camera that really took them, `Delivery` loses and delays.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot.calibration import Calibration
from robot.runs import CameraNoise

BLOCKS = 5  # rectangles that holes are made of
EDGE = 0.05  # of the depth: a greater step from pixel to pixel is an edge
BEYOND_M = np.float32(1e3)  # where nothing is seen
FATTENED, FLYING = 0.5, 0.25  # shares of the pixels beside an edge
SMALLEST_M = 1e-3  # a pixel stays a pixel: 0 would mean that nothing was seen


@dataclass(frozen=True)
class Draw:
    """What holds for n cameras for a while; each (n,), units as in CameraNoise."""

    sigma_floor: NDArray[np.float64]
    sigma_square: NDArray[np.float64]
    edge_px: NDArray[np.float64]
    holes: NDArray[np.float64]
    near_m: NDArray[np.float64]
    inverse_step: NDArray[np.float64]


def draw(noise: CameraNoise, n: int, rng: np.random.Generator) -> Draw:
    """Uniformly from the ranges."""
    ranges = [getattr(noise, field.name) for field in dataclasses.fields(Draw)]
    return Draw(*(rng.uniform(low, high, n) for low, high in ranges))


def disturb(
    depth: NDArray[np.float32], drawn: Draw, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Spoil pictures.

    Args:
        depth: (n, height, width) m, 0 where nothing is seen.
        drawn: of n cameras.
        rng: the noise of these pictures.

    Returns:
        (n, height, width) m, new; 0 where nothing is seen any more.
    """
    per_camera = {
        f.name: getattr(drawn, f.name)[:, None, None].astype(np.float32)
        for f in dataclasses.fields(Draw)
    }
    out = _blur_edges(depth, per_camera["edge_px"], rng)
    seen = out > 0.0
    sigma = per_camera["sigma_floor"] + per_camera["sigma_square"] * out * out
    out = np.maximum(out + sigma * rng.standard_normal(out.shape, np.float32), SMALLEST_M)
    out = _quantise(out, per_camera["inverse_step"])
    seen &= (out >= per_camera["near_m"]) & ~_blocks(depth.shape, drawn.holes, rng)
    return np.where(seen, out, np.float32(0.0))


def _blur_edges(
    depth: NDArray[np.float32], edge_px: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Near things grow sideways over far ones, as block matching makes them; some pixels fly."""
    seen = depth > 0.0
    far = np.where(seen, depth, BEYOND_M)
    near = far.copy()
    for shift in (1, 2):
        grown = near.copy()
        grown[..., shift:] = np.minimum(grown[..., shift:], far[..., :-shift])
        grown[..., :-shift] = np.minimum(grown[..., :-shift], far[..., shift:])
        near = np.where(edge_px > shift - 1, grown, near)
    beside = far - near > EDGE * near
    fate, share = rng.random((2, *depth.shape), np.float32)
    between = near + (np.where(seen, depth, near) - near) * share
    out = np.where(beside & (fate < FATTENED), near, depth)
    flies = beside & (fate >= FATTENED) & (fate < FATTENED + FLYING)
    return np.where(flies, between, out).astype(np.float32)


def _quantise(depth: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.float32]:
    """To whole steps of the inverse depth; a step of 0 leaves it as it is."""
    whole = np.maximum(np.round(1.0 / (depth * np.maximum(step, 1e-9))), 1.0)
    return np.where(step > 0.0, 1.0 / (whole * np.maximum(step, 1e-9)), depth).astype(np.float32)


def _blocks(
    shape: tuple[int, ...], share: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n, height, width) True in rectangles that cover `share` of each picture at most."""
    n, height, width = shape
    area = share / BLOCKS * height * width
    holes = np.zeros(shape, bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    for _ in range(BLOCKS):
        aspect = rng.uniform(0.5, 2.0, n)
        high, wide = np.sqrt(area / aspect), np.sqrt(area * aspect)
        top = rng.uniform(0.0, 1.0, n) * np.maximum(height - high, 0.0)
        left = rng.uniform(0.0, 1.0, n) * np.maximum(width - wide, 0.0)
        inside = [
            (axis + 0.5 >= start[:, None, None]) & (axis + 0.5 < (start + long)[:, None, None])
            for axis, start, long in ((rows, top, high), (columns, left, wide))
        ]
        holes |= inside[0] & inside[1]
    return holes


def misplace(calibration: Calibration, noise: CameraNoise, rng: np.random.Generator) -> Calibration:
    """The camera as it really is where the calibration is a little wrong."""
    pitch, roll, yaw = (
        rng.uniform(*span) for span in (noise.pitch, noise.roll_yaw, noise.roll_yaw)
    )
    # Optical axes: x right is pitch's, y down is yaw's, z forward is roll's.
    turn = _about(0, pitch) @ _about(1, yaw) @ _about(2, roll)
    intrinsics = calibration.intrinsics.copy()
    intrinsics[:2] /= rng.uniform(*noise.field_of_view)
    return dataclasses.replace(
        calibration,
        intrinsics=intrinsics,
        rotation=calibration.rotation @ turn,
        position=calibration.position + rng.uniform(*noise.position, 3),
    )


def _about(axis: int, angle: float) -> NDArray[np.float64]:
    """Rotation about one axis."""
    turn = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    sign = -1.0 if axis == 1 else 1.0
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -sign * np.sin(angle), sign * np.sin(angle)
    return turn


class Delivery:
    """What becomes of one camera's pictures on their way: late, lost, or the last one again.

    Args:
        noise: how often and how long.
        rng: decides.
    """

    def __init__(self, noise: CameraNoise, rng: np.random.Generator) -> None:
        self._noise, self._rng = noise, rng
        self._latency_ns = 0
        self._drawn_ns: int | None = None
        self._frozen_until_ns = 0

    def fate(self, t_mid_ns: int) -> str:
        """Of the picture taken at this time: "sent", "lost" or "frozen" (the last one repeats)."""
        noise, rng = self._noise, self._rng
        lost, freezes = rng.random(2) < (noise.drop, noise.freeze)
        if freezes and t_mid_ns >= self._frozen_until_ns:
            self._frozen_until_ns = t_mid_ns + round(rng.uniform(*noise.freeze_s) * 1e9)
        if t_mid_ns < self._frozen_until_ns:
            return "frozen"
        return "lost" if lost else "sent"

    def latency_ns(self, t_mid_ns: int) -> int:
        """From the middle of this exposure until the picture is handed over."""
        noise = self._noise
        if self._drawn_ns is None or t_mid_ns - self._drawn_ns >= noise.latency_s * 1e9:
            self._drawn_ns = t_mid_ns
            self._latency_ns = round(self._rng.uniform(*noise.latency_ms) * 1e6)
        return self._latency_ns
