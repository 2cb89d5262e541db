"""Makes ground out of boxes: families with a difficulty in metres and a seed, and its true height.

Boxes because rays and contacts cost a seventh of those of height fields. Around the origin the
ground is flat, there the robot starts; what follows along +x follows along -x too. It knows
nothing of MuJoCo: `robot.model.build_spec` puts the boxes into a scene.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from robot.config import UserError, listing

if TYPE_CHECKING:
    from robot.runs import TerrainConfig

FloatArray = NDArray[np.float64]

START = 1.0  # m, half the edge of the flat square around the origin
REACH = 10.0  # m from the origin to where flat ground begins again
SIDE = 10.0  # m to either side of the x axis, of what is the same for all y
FIELD = (8.0, 3.0)  # m from the origin in x and y, of what is strewn about
LAP = 0.2  # m that a box reaches under a higher one beside it
DEPTH = 1.0  # m, of gaps and between stones
BEYOND = 30.0  # m, length of what ends a terrain


@dataclass(frozen=True)
class Box:
    """One box, placed by the middle of its upper face, where feet go."""

    top: tuple[float, float, float]
    """m"""
    size: tuple[float, float, float]
    """m, whole edges"""
    yaw: float = 0.0
    """rad, about the vertical, then"""
    pitch: float = 0.0
    """rad, about the box's own y: positive sinks its far end"""

    def rotation(self) -> FloatArray:
        """(3, 3) from the box to the world."""
        cy, sy, cp, sp = (f(a) for a in (self.yaw, self.pitch) for f in (math.cos, math.sin))
        return np.array([[cy * cp, -sy, cy * sp], [sy * cp, cy, sy * sp], [-sp, 0.0, cp]])

    def centre(self) -> FloatArray:
        """(3,) m."""
        return np.array(self.top) - 0.5 * self.size[2] * self.rotation()[:, 2]

    def reach(self) -> FloatArray:
        """(2,) m from the centre along the world's x and y, within which all of it is."""
        return np.abs(self.rotation()[:2]) @ (0.5 * np.array(self.size))

    def heights(self, xy: FloatArray) -> FloatArray:
        """(...) m, where a vertical line at (..., 2) m enters from above; -inf where it misses."""
        rotation, half = self.rotation(), 0.5 * np.array(self.size)
        centre = self.centre()
        away = (xy - centre[:2]) @ rotation[:2]  # (..., 3) in the box, of the point at its height
        down = rotation[2]  # (3,) in the box, per metre upwards
        # Slabs: heights above the centre between which the line is inside each pair of faces.
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([(-half - away) / down, (half - away) / down])
        level = np.abs(down) < 1e-12
        inside = np.abs(away) <= half
        low = np.where(level, np.where(inside, -np.inf, np.inf), ends.min(axis=0)).max(axis=-1)
        high = np.where(level, np.where(inside, np.inf, -np.inf), ends.max(axis=0)).min(axis=-1)
        return np.where(low <= high, centre[2] + high, -np.inf)


@dataclass(frozen=True)
class Terrain:
    """Ground: boxes above an endless floor."""

    boxes: tuple[Box, ...]
    floor: float = 0.0
    """m, height of the floor that everything stands in"""

    def heights(self, xy: ArrayLike) -> FloatArray:
        """True height of the ground: where a ray from above ends.

        Args:
            xy: (..., 2) m.

        Returns:
            (...) m.
        """
        points = np.asarray(xy, np.float64)
        out = np.full(points.shape[:-1], self.floor)
        for box in self.boxes:
            near = (np.abs(points - box.centre()[:2]) <= box.reach()).all(axis=-1)
            out[near] = np.maximum(out[near], box.heights(points[near]))
        return out


FLAT = Terrain(())


# --- families -----------------------------------------------------------------------------------


def _flat(rng: Generator, size: float) -> Terrain:
    return FLAT


Row = tuple[float, float, float, float]  # m: x and z of begin and end
Part = tuple[float, float, float]  # m: length along x, step up where it begins, rise over it


def _slopes(rng: Generator, size: float) -> Terrain:
    """Up, along, down, along."""

    def hill() -> list[Part]:
        run, top, foot = rng.uniform(1.0, 2.0), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
        rise = size * run * rng.uniform(0.6, 1.0)
        return [(run, 0.0, rise), (top, 0.0, 0.0), (run, 0.0, -rise), (foot, 0.0, 0.0)]

    return _profile(hill)


def _ramps(rng: Generator, size: float) -> Terrain:
    """Up a short slope, along, and down a step."""

    def ramp() -> list[Part]:
        run, top, foot = rng.uniform(0.8, 1.6), rng.uniform(0.4, 1.2), rng.uniform(0.5, 1.5)
        rise = size * rng.uniform(0.6, 1.0)
        return [(run, 0.0, rise), (top, 0.0, 0.0), (foot, -rise, 0.0)]

    return _profile(ramp)


def _kerbs(rng: Generator, size: float) -> Terrain:
    """A step up, along, a step down, along."""

    def kerb() -> list[Part]:
        step = size * rng.uniform(0.7, 1.0)
        return [(rng.uniform(0.4, 1.5), step, 0.0), (rng.uniform(0.4, 1.5), -step, 0.0)]

    return _profile(kerb)


def _gaps(rng: Generator, size: float) -> Terrain:
    """Ditches too deep to step into."""

    def gap() -> list[Part]:
        return [(size * rng.uniform(0.6, 1.0), -DEPTH, 0.0), (rng.uniform(0.7, 1.3), DEPTH, 0.0)]

    return _profile(gap)


def _stairs_up(rng: Generator, size: float) -> Terrain:
    return _profile(lambda: _flight(rng, size))


def _stairs_down(rng: Generator, size: float) -> Terrain:
    return _profile(lambda: _flight(rng, -size))


def _flight(rng: Generator, rise: float) -> list[Part]:
    """Equal steps, then a landing."""
    tread, step = rng.uniform(0.26, 0.34), rise * rng.uniform(0.85, 1.0)
    return [(tread, step, 0.0)] * int(rng.integers(5, 9)) + [(rng.uniform(0.8, 1.4), 0.0, 0.0)]


def _profile(unit: Callable[[], list[Part]]) -> Terrain:
    """One unit after another, the same for all y and on both sides of the start."""
    x, z = START, 0.0
    rows: list[Row] = []
    while x < REACH:
        for length, step, rise in unit():
            rows.append((x, z + step, x + length, z + step + rise))
            x, z = x + length, z + step + rise
    rows.append((x, z, x + BEYOND, z))
    floor = min(0.0, *(min(z0, z1) for _, z0, _, z1 in rows)) - 0.5 * DEPTH
    rows = _lapped([(0.0, 0.0, START, 0.0), *rows])
    boxes = [_bar(-rows[0][2], 0.0, rows[0][2], 0.0, floor)]
    for x0, z0, x1, z1 in rows[1:]:
        boxes += [_bar(x0, z0, x1, z1, floor), _bar(-x1, z1, -x0, z0, floor)]
    return Terrain(tuple(boxes), floor)


def _lapped(rows: list[Row]) -> list[Row]:
    """Level rows reach a little under neighbours that are higher.

    Where two boxes only meet, a foot pressed into the seam is pushed sideways by both, and sinks.
    """
    out = []
    for at, (x0, z0, x1, z1) in enumerate(rows):
        if z0 == z1:
            if at > 0 and min(rows[at - 1][1::2]) >= z0 < max(rows[at - 1][1::2]):
                x0 -= LAP
            if at + 1 < len(rows) and min(rows[at + 1][1::2]) >= z0 < max(rows[at + 1][1::2]):
                x1 += LAP
        out.append((x0, z0, x1, z1))
    return out


def _bar(x0: float, z0: float, x1: float, z1: float, floor: float) -> Box:
    """From one edge to another, as wide as the terrain, and down to the floor where it is level."""
    length = math.hypot(x1 - x0, z1 - z0)
    thick = z0 - floor if z0 == z1 else 0.5 * DEPTH  # a tilted one would come out below
    top = (0.5 * (x0 + x1), 0.0, 0.5 * (z0 + z1))
    return Box(top, (length, 2 * SIDE, thick), pitch=-math.atan2(z1 - z0, x1 - x0))


def _boxes(rng: Generator, size: float) -> Terrain:
    """Things to step on or over, as large as a foot or larger, one in most squares of a grid."""
    boxes = []
    for x, y in _grid(0.8):
        edges, height, yaw = rng.uniform(0.3, 0.75, 2), size * rng.uniform(0.2, 1.0), rng.uniform()
        if rng.uniform() < 0.7:
            top = (x, y, height)
            boxes.append(Box(top, (edges[0], edges[1], height + 0.1), yaw=0.5 * math.pi * yaw))
    return Terrain(_outside_start(boxes))


def _rubble(rng: Generator, size: float) -> Terrain:
    """Small slabs at all angles, sunk into the floor."""
    boxes = []
    for x, y in _grid(0.5):
        (dx, dy), edges = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.1, 0.45, 2)
        tilt, yaw = rng.uniform(0.0, 0.25), rng.uniform(0.0, 2 * math.pi)
        # The highest corner of the slab is at most `size` above the floor.
        top = (x + dx, y + dy, size * rng.uniform(0.3, 1.0) - 0.5 * edges[0] * math.sin(tilt))
        if rng.uniform() < 0.7:
            boxes.append(Box(top, (edges[0], edges[1], 0.3), yaw, tilt))
    return Terrain(_outside_start(boxes))


def _stepping_stones(rng: Generator, size: float) -> Terrain:
    """Stones with ditches of `size` between them; flat ground around the field."""
    length, width = 6.0, 1.8  # m, half of the field
    stone, floor = 0.4, -DEPTH
    boxes = []
    columns = np.arange(START + size, length - stone, stone + size)
    rows = np.arange(-width, width - stone, stone + size)
    for x in columns:
        for y in rows:
            (dx, dy), dz = rng.uniform(-0.2, 0.2, 2) * size, rng.uniform(-0.03, 0.03)
            for sign in (1, -1):
                top = (sign * (x + 0.5 * stone + dx), y + 0.5 * stone + dy, dz)
                boxes.append(Box(top, (stone, stone, DEPTH)))
    around = BEYOND - width
    boxes.append(Box((0.0, 0.0, 0.0), (2 * START, 2 * width, DEPTH)))
    for sign in (1, -1):
        bank = (2 * BEYOND, around, DEPTH)
        boxes.append(Box((0.0, sign * (width + 0.5 * around), 0.0), bank))
        end = (BEYOND - length, 2 * width, DEPTH)
        boxes.append(Box((sign * 0.5 * (length + BEYOND), 0.0, 0.0), end))
    return Terrain(tuple(boxes), floor)


def _spiral_stairs(rng: Generator, size: float) -> Terrain:
    """Stairs that turn about a pole 2.5 m to the left of the way: no two edges are parallel."""
    pole, length = np.array([START, 2.5]), 14.0  # m, along an edge
    turn = rng.uniform(0.11, 0.14)  # rad per step: a tread of 0.3 m at the robot
    step = size * rng.uniform(0.85, 1.0)
    angles = np.arange(-math.pi / 2 + 0.05, -0.1, turn)
    boxes = []
    for k, angle in enumerate(angles):
        along = np.array([math.cos(angle), math.sin(angle)])
        wide = BEYOND / 2 if k == len(angles) - 1 else 1.5 * length * turn
        # The edge of the step is the box's right side; what is behind it lies under higher steps.
        middle = pole + 0.5 * length * along + 0.5 * wide * np.array([-along[1], along[0]])
        for sign in (1, -1):
            top = (sign * middle[0], sign * middle[1], step * (k + 1))
            boxes.append(Box(top, (length, wide, step * (k + 1) + 0.1), yaw=angle))
    return Terrain(_outside_start(boxes))


def _grid(pitch: float) -> Iterator[tuple[float, float]]:
    """Middles of the squares of the field."""
    for x in np.arange(-FIELD[0] + 0.5 * pitch, FIELD[0], pitch):
        for y in np.arange(-FIELD[1] + 0.5 * pitch, FIELD[1], pitch):
            yield float(x), float(y)


def _outside_start(boxes: list[Box]) -> tuple[Box, ...]:
    """Those that leave the start free, corners included."""
    edge = np.linspace(-START, START, 41)
    start = np.stack(np.meshgrid(edge, edge), axis=-1)
    return tuple(box for box in boxes if not np.isfinite(box.heights(start)).any())


@dataclass(frozen=True)
class Family:
    """One kind of ground."""

    make: Callable[[Generator, float], Terrain]
    easy: float
    """m, the least difficulty that makes sense"""
    usual: float
    """m, the difficulty where none is asked for"""
    hard: float
    """m, the greatest"""
    meaning: str
    """what difficulty measures"""
    held_out: bool = False
    """never trained on, so that what was learned can be judged on it"""


FAMILIES: dict[str, Family] = {
    "flat": Family(_flat, 0.0, 0.0, 0.0, "nothing"),
    "slopes": Family(_slopes, 0.05, 0.2, 0.5, "rise per metre of slope"),
    "stairs-up": Family(_stairs_up, 0.03, 0.12, 0.25, "height of a step"),
    "stairs-down": Family(_stairs_down, 0.03, 0.12, 0.25, "height of a step"),
    "boxes": Family(_boxes, 0.02, 0.1, 0.3, "height of the highest box"),
    "gaps": Family(_gaps, 0.05, 0.2, 0.5, "width of the widest gap"),
    "rubble": Family(_rubble, 0.02, 0.06, 0.15, "height of the highest slab"),
    "spiral-stairs": Family(_spiral_stairs, 0.03, 0.12, 0.25, "height of a step", held_out=True),
    "stepping-stones": Family(
        _stepping_stones, 0.05, 0.12, 0.4, "width of the gaps between stones", held_out=True
    ),
    "kerbs": Family(_kerbs, 0.03, 0.12, 0.25, "height of the highest kerb", held_out=True),
    "ramps": Family(_ramps, 0.05, 0.15, 0.3, "height of the highest ramp", held_out=True),
}


def make_terrain(name: str, seed: int = 0, difficulty: float | None = None) -> Terrain:
    """One piece of ground; the same arguments give the same ground everywhere.

    Args:
        name: a row of FAMILIES.
        seed: draws sizes and places; families draw differently from the same seed.
        difficulty: m, as the family means it; None: its usual one.

    Raises:
        UserError: no such family, or a difficulty outside its range.
    """
    size = size_of(name, difficulty)
    return FAMILIES[name].make(np.random.default_rng([seed, zlib.crc32(name.encode())]), size)


def size_of(name: str, difficulty: float | None = None) -> float:
    """The difficulty in m that a family is made with.

    Raises:
        UserError: no such family, or a difficulty outside its range.
    """
    if name not in FAMILIES:
        raise UserError(f"terrain {name!r} is unknown; available: {listing(FAMILIES)}")
    family = FAMILIES[name]
    size = family.usual if difficulty is None else difficulty
    if not family.easy <= size <= family.hard:
        raise UserError(
            f"terrain {name!r}: got difficulty {size:g} m ({family.meaning}), expected "
            f"{family.easy:g} to {family.hard:g}"
        )
    return size


def terrain_of(config: TerrainConfig) -> Terrain:
    """The ground that a run file names."""
    return make_terrain(config.name, config.seed, config.difficulty)
