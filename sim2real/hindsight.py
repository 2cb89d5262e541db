"""Tells from a whole log what the ground was, and how far the map that was made online was off it.

Later views and footholds reveal what an online map had to guess. The map is made twice from all
frames and footfalls of the log, forwards and backwards in time; at each moment the two together
hold what was seen before and what was seen later. Before that, the soles tell how the camera
really sits (mount.py). No other sensor is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robot.config import UserError
from robot.geomap import SCAN_X, SCAN_Y, GeoMap, GeoMapSpec
from robot.log import Log
from robot.model import Robot
from robot.perception import Perception
from robot.runs import RunConfig
from robot.topics import CAMERA, make_codecs
from sim2real.mount import Mount, View, find_mount
from sim2real.replay import Rows

FloatArray = NDArray[np.float64]

LABELS = "labels.npz"  # beside the log's files
KNOWN_STD = 0.03  # m; cells that hindsight knows no better are no label
GATE = 3.0  # standard deviations between the two maps beyond which they contradict each other
PATIENT = 1000.0  # timing factor: a frame that came late is no worse in hindsight


class Moment(NamedTuple):
    """A height map of the log, and where the robot was then."""

    row: int
    base_pos: FloatArray  # (3,) m, odometry of this pass
    heading: float  # rad


Seen = tuple[FloatArray, FloatArray]  # heights (m, odometry) and variances (m^2) of 187 cells
STATE, FRAME, MAP = range(3)  # kinds of messages, in the order in which they are taken up
Event = tuple[int, View | FloatArray | Moment]  # ns; a look, a sole (3,) m that came down, a moment


class KeepingMap(GeoMap):
    """A map that writes down what it is told."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._events = events

    def update(self, *told: Any) -> None:
        """As GeoMap's."""
        depth, *rest, now_ns = told
        self._events.append((now_ns, View(depth.astype(np.float32), *rest)))
        super().update(*told)

    def contact(self, sole: ArrayLike, now_ns: int) -> float:
        """As GeoMap's."""
        self._events.append((now_ns, np.array(sole, np.float64)))
        return super().contact(sole, now_ns)


class KeepingPerception(Perception):
    """Perception that writes down what its maps are told.

    Attributes:
        events: of this control process, and so of this map.
    """

    def _start_anew(self, instance: int) -> None:
        super()._start_anew(instance)
        self.events: list[Event] = []
        self.map = KeepingMap(self.events)


@dataclass(frozen=True)
class Footholds:
    """Where feet came down; n of them."""

    time_ns: NDArray[np.int64]
    """(n,) monotonic"""
    sole: FloatArray
    """(n, 3) m, odometry"""
    error: FloatArray
    """(n,) m, online map as it was before the foot arrived, above the sole; NaN: not in it"""
    age_s: FloatArray
    """(n,) since that cell had been seen"""
    gate: NDArray[np.bool_]
    """(n,) True where that map was flat, for the gate was shut"""


@dataclass(frozen=True)
class Labels:
    """The ground around each height map of the log, as hindsight has it; n maps."""

    rows: NDArray[np.int64]
    """(n,) of the log's height_map"""
    base_pos: FloatArray
    """(n, 3) m, pelvis, odometry"""
    heading: FloatArray
    """(n,) rad"""
    height: FloatArray
    """(n, 187) m, pelvis z minus ground z in the order of HeightMap.height"""
    std: FloatArray
    """(n, 187) m, infinite where nothing ever revealed the ground"""
    footholds: Footholds
    mount: Mount
    """of the camera, corrected in these"""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n, 187) where hindsight may judge."""
        return self.std < KNOWN_STD


class Hindsight:
    """One log, looked at from its end.

    Args:
        log: with low_state, frames and height_map.
        run: its configuration.
        robot: its robot, with the camera.

    Raises:
        UserError: there are no frames or height maps in it, or of another layout than today's.
    """

    def __init__(self, log: Log, run: RunConfig, robot: Robot) -> None:
        self.log = log
        codecs = make_codecs(robot)
        names = ("low_state", f"frame.{CAMERA}", "height_map")
        for name in names:
            if name not in log.topics or not log.topics[name].count:
                raise UserError(
                    f"{log.path}: got no {name}, expected a log of a run with a camera: "
                    "plexus run ... --camera"
                )
        self._states, self._frames, self.maps = (Rows(log, name, codecs[name]) for name in names)
        factor = PATIENT * run.timing_factor
        self._perception = KeepingPerception(robot, robot.cameras[CAMERA], codecs, factor)

    def label(self) -> Labels:
        """What the ground was.

        Raises:
            UserError: no height map of the log has a state before it.
        """
        passes = [events for events in self._passes() if _of(events, Moment)]
        if not passes:
            raise UserError(f"{self.log.path}: got no height map with a state before it")
        mount = find_mount([(_of(events, View), _of(events, np.ndarray)) for events in passes])
        moments = [moment for events in passes for _, moment in _of(events, Moment)]
        seen = [look_back(events, mount) for events in passes]
        ground, variance = (np.concatenate(part) for part in zip(*seen, strict=True))
        feet = [self._footholds(events) for events in passes]
        base_pos = np.array([moment.base_pos for moment in moments])
        return Labels(
            rows=np.array([moment.row for moment in moments]),
            base_pos=base_pos,
            heading=np.array([moment.heading for moment in moments]),
            height=base_pos[:, 2:] - ground,
            std=np.sqrt(variance),
            footholds=Footholds(
                **{f.name: np.concatenate([getattr(one, f.name) for one in feet])
                   for f in fields(Footholds)}
            ),
            mount=mount,
        )  # fmt: skip

    def _passes(self) -> Iterator[list[Event]]:
        """Of each control process, what happened; between two, where the robot went is unknown."""
        perception = self._perception
        state, frame = self._states.codec.new(), self._frames.codec.new()
        events = perception.events
        for stamp, kind, row in self._in_order():
            if kind == STATE:
                perception.hear(self._states.fill(state, row))
                if perception.events is not events:
                    yield events
                    events = perception.events
            elif kind == FRAME:
                perception.step(self._frames.fill(frame, row), stamp)
            elif (out := perception.step(None, stamp)).state_instance:
                events.append((stamp, Moment(row, out.base_pos.copy(), float(out.heading))))
        yield events

    def _in_order(self) -> list[tuple[int, int, int]]:
        """Time (ns), kind and row of all that perception was given, by time."""
        times = (
            (STATE, self._states.stamps),
            (FRAME, self._frames.records["t_pub_ns"].tolist()),
            (MAP, self.maps.records["now_ns"].tolist()),
        )
        return sorted((t, kind, row) for kind, of in times for row, t in enumerate(of))

    def _footholds(self, events: list[Event]) -> Footholds:
        """Soles that came down after some map; what that map had said of the place."""
        found: list[tuple[int, FloatArray, float, float, bool]] = []
        here: Moment | None = None
        for time_ns, told in events:
            if isinstance(told, Moment):
                here = told
            elif isinstance(told, np.ndarray) and here is not None:
                record = self.maps.records[here.row]
                cell = cell_at(here, told)
                error = age = math.nan
                if cell is not None:
                    error = float(here.base_pos[2] - record["height"][cell] - told[2])
                    age = float(record["cell_age"][cell])
                found.append((time_ns, told, error, age, bool(record["gate"])))
        time, sole, error, age, gate = zip(*found, strict=True) if found else ((),) * 5
        return Footholds(
            np.array(time, np.int64), np.array(sole).reshape(-1, 3), np.array(error, np.float64),
            np.array(age, np.float64), np.array(gate, bool),
        )  # fmt: skip


def _of(events: list[Event], kind: type) -> list[Any]:
    """Those of one kind, with their times."""
    return [event for event in events if isinstance(event[1], kind)]


def look_back(events: list[Event], mount: Mount) -> Seen:
    """(n, 187) ground and variance at every moment, from what came before and what came later."""
    corrected: list[Event] = [
        (time_ns, mount.correct(told) if isinstance(told, View) else told)
        for time_ns, told in events
    ]
    spec = GeoMapSpec(mount=float(mount.std[0]))  # what is left of the pitch's error
    past, future = sweep(corrected, spec), sweep(corrected, spec, backwards=True)
    return fuse(*past, *future)


def sweep(events: list[Event], spec: GeoMapSpec, backwards: bool = False) -> Seen:
    """(n, 187) what one map has measured at each moment, which are in order of time either way."""
    grid, seen = GeoMap(spec), []
    first, last = events[0][0], events[-1][0]
    for time_ns, told in reversed(events) if backwards else events:
        clock = 1 + (last - time_ns if backwards else time_ns - first)
        if isinstance(told, View):
            grid.update(*told, clock)
        elif isinstance(told, Moment):
            seen.append(grid.beneath(told.base_pos, told.heading))
        else:
            grid.contact(told, clock)
    height, variance = zip(*(reversed(seen) if backwards else seen), strict=True)
    return np.array(height), np.array(variance)


def fuse(
    past: FloatArray, past_variance: FloatArray, future: FloatArray, future_variance: FloatArray
) -> Seen:
    """Heights and variances of two maps as one; where they contradict, the surer with a doubt.

    Args:
        past, future: (n, 187) m.
        past_variance, future_variance: (n, 187) m^2, infinite where never seen.
    """
    with np.errstate(divide="ignore"):
        weights = 1.0 / past_variance, 1.0 / future_variance  # 0 where never seen
        variance = 1.0 / (weights[0] + weights[1])
    known = np.isfinite(variance)
    height = (past * weights[0] + future * weights[1]) * np.where(known, variance, 0.0)
    squared = np.square(past - future)
    both = np.isfinite(past_variance) & np.isfinite(future_variance)
    apart = both & (squared > GATE**2 * (past_variance + future_variance))
    surer = np.where(past_variance <= future_variance, past, future)
    least = np.minimum(past_variance, future_variance)
    return np.where(apart, surer, height), np.where(apart, least + 0.25 * squared, variance)


def cell_at(here: Moment, place: FloatArray) -> int | None:
    """The cell of the scan around a pose that holds a place (m, odometry), if one does."""
    cos, sin = math.cos(here.heading), math.sin(here.heading)
    x, y = place[:2] - here.base_pos[:2]
    column, row = (
        round((along - axis[0]) / (axis[1] - axis[0]))
        for along, axis in ((cos * x + sin * y, SCAN_X), (cos * y - sin * x, SCAN_Y))
    )
    inside = 0 <= column < len(SCAN_X) and 0 <= row < len(SCAN_Y)
    return row * len(SCAN_X) + column if inside else None


def write(labels: Labels, maps: NDArray[Any], path: Path) -> Path:
    """The labels as plain arrays for NumPy: what a network should have said at each map.

    Holds of each height map instance, seq, frame_instance, frame_seq and now_ns as it was logged,
    then base_pos, heading, height and std as in Labels; of the footholds foothold_time_ns,
    foothold_sole, foothold_error, foothold_age_s, foothold_gate; and mount and mount_std.
    """
    records, feet = maps[labels.rows], labels.footholds
    arrays = {
        name: records[name] for name in ("instance", "seq", "frame_instance", "frame_seq", "now_ns")
    }
    arrays |= {"base_pos": labels.base_pos, "heading": labels.heading}
    arrays |= {name: getattr(labels, name).astype(np.float32) for name in ("height", "std")}
    arrays |= {f"foothold_{field.name}": getattr(feet, field.name) for field in fields(feet)}
    arrays |= {"mount": labels.mount.value, "mount_std": labels.mount.std}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path
