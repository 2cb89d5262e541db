"""Finds episodes in a log, puts them on a uniform grid, and tells how well the grid fits.

An episode is a stretch under a policy; where operators have marked episodes, only what lies in
those counts, and each of them is one of its own. A frame holds the newest sample of each topic at
its moment (previous-sample hold) and says which sample that was and when it was measured: the grid
is uniform, the clocks beside it are true. Knows no file format but the log's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot import log_fields
from robot.log import Log, missing
from robot.log_marks import marked_episode
from robot.modes import fault_names

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

S = 1_000_000_000  # ns
POLICY_MODES = ("POLICY", "HOLD")
HOLE_NS = S // 10  # without low_state or low_cmd for so long: the episode ends
LONGEST_S = 1800  # an episode is cut here: float32 seconds get coarse
WINDOW_FRAMES = 3000  # resampled at once; bounds how much of the log is held in memory
MARGIN_S = 1e-6  # around a window, so that no rounding of seconds loses its first or last message
READ = {
    "low_state": [
        "stamp_ns", "tick", "joint_pos", "joint_vel", "imu_quat_wxyz", "imu_gyro", "imu_accel",
    ],
    "low_cmd": ["stamp_ns", "state_tick", "clipped", "mode", "joint_pos_target"],
    "policy_input": ["stamp_ns", "velocity"],
}  # fmt: skip
STATE_PARTS = READ["low_state"][2:]  # of observation.state, in order


@dataclass(frozen=True)
class Clock:
    """Times of one topic's messages, in the order of the log; times are epoch ns."""

    stamp_ns: IntArray
    """When measured or decided."""
    log_time_ns: IntArray
    numbers: NDArray[Any]
    """Fields instance and seq."""

    def newest(self, grid_ns: IntArray) -> IntArray:
        """Row of the newest message at each moment; -1: there is none yet."""
        return np.searchsorted(self.stamp_ns, grid_ns, side="right") - 1

    def seqs(self, rows: IntArray) -> IntArray:
        """seq of rows; 0 for none."""
        return np.where(rows < 0, 0, self.numbers["seq"][rows]) if len(self.numbers) else rows * 0

    def stamps(self, rows: IntArray) -> IntArray:
        """Stamps of rows; 0 for none."""
        return np.where(rows < 0, 0, self.stamp_ns[rows]) if len(self.stamp_ns) else rows * 0


@dataclass(frozen=True)
class Episode:
    """A stretch of a log and the moments of its frames."""

    log: Log
    clocks: dict[str, Clock]
    """By topic, of the whole log."""
    grid_ns: IntArray
    """(frames,) epoch ns."""


def find_episodes(log: Log, fps: int, whole: bool = False) -> list[Episode]:
    """Episodes of two frames or more, in order; reads nothing but times, modes and marks.

    Args:
        log: has low_state and low_cmd.
        fps: frames per second.
        whole: every mode counts, not only POLICY and HOLD.
    """
    clocks = {topic: read_clock(log, topic) for topic in READ}
    states, cmds = clocks["low_state"], clocks["low_cmd"]
    if not len(states.stamp_ns) or not len(cmds.stamp_ns):
        return []
    rows = states.newest(cmds.stamp_ns)
    inside = (rows >= 0) & (cmds.stamp_ns - states.stamp_ns[rows] <= HOLE_NS)
    if not whole:
        names = log_fields.value_names(log.topics["low_cmd"].text, "mode")
        wanted = [value for value, name in names.items() if name in POLICY_MODES]
        inside &= np.isin(log.read("low_cmd", ["mode"])["mode"], wanted)
    marked = marked_episode(log, cmds.stamp_ns)
    inside &= marked > 0
    edge = np.diff(inside) | np.diff(marked).astype(bool) | (np.diff(cmds.stamp_ns) > HOLE_NS)
    bounds = [0, *(np.flatnonzero(edge) + 1), len(inside)]
    found = []
    for first, end in pairwise(bounds):
        if inside[first]:
            grid_ns = make_grid(cmds.stamp_ns[first:end], fps)
            for cut in range(0, len(grid_ns), LONGEST_S * fps):
                found.append(Episode(log, clocks, grid_ns[cut : cut + LONGEST_S * fps]))
    return [episode for episode in found if len(episode.grid_ns) >= 2]


def read_clock(log: Log, topic: str) -> Clock:
    """Times of all messages of one of our topics; empty if the log has none."""
    fields = ["stamp_ns", "log_time_ns", "instance", "seq"]
    if topic not in log.topics:
        kinds = [(name, "<i8") for name in fields]
        return Clock(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, kinds))
    read = log.read(topic, fields)
    return Clock(log_fields.epoch_ns(log, read, "stamp_ns"), read["log_time_ns"], read)


def tick_ns(stamp_ns: IntArray) -> float:
    """Length of a control tick; control runs at whole Hz, so noise of the stamps falls out."""
    steps = np.diff(np.unique(stamp_ns))
    typical = float(np.median(steps)) if len(steps) else S
    return S / max(round(S / typical), 1)


def make_grid(stamp_ns: IntArray, fps: int) -> IntArray:
    """Moments of the frames of one stretch.

    The grid lies in the middle between ticks: were it on them, a tick a few microseconds late would
    be taken for the one before, and states would part from the commands that were made from them.

    Args:
        stamp_ns: (n,) of its ticks.
        fps: frames per second.

    Returns:
        (frames,) in the unit of the stamps.
    """
    tick = tick_ns(stamp_ns)
    late = stamp_ns - stamp_ns[0]
    # How late ticks usually are, against the first one, which may itself have been late.
    usual = float(np.median((late + tick / 2) % tick - tick / 2))
    frames = int(late[-1]) * fps // S + 1
    begin = int(stamp_ns[0]) + round(usual + tick / 2)
    return begin + np.arange(frames, dtype=np.int64) * S // fps


# --- resampling ---------------------------------------------------------------------------------


def resample(episode: Episode) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Frames of an episode, and how good they are.

    Returns:
        Columns by name: vectors as (frames, k) float32, clocks as (frames,) int64. And the quality
        card: what was lost, how old samples were, what holding them cost, what safety did.
    """
    grid_ns = episode.grid_ns
    windows = [
        _resample_window(episode, grid_ns[at : at + WINDOW_FRAMES])
        for at in range(0, len(grid_ns), WINDOW_FRAMES)
    ]
    columns = {
        name: np.concatenate([window[name] for window in windows])
        for name in windows[0]
        if not name.startswith("_")
    }
    for topic, clock in episode.clocks.items():
        rows = clock.newest(grid_ns)
        columns[f"source.{topic}_time_ns"] = clock.stamps(rows)
        columns[f"source.{topic}_seq"] = clock.seqs(rows).astype(np.int64)
    # LeRobot's users look for the clock of the observation here.
    columns["observation.time_ns"] = columns.pop("source.low_state_time_ns")
    checks = {
        name: np.concatenate([window[name] for window in windows])
        for name in windows[0]
        if name.startswith("_")
    }
    return columns, _card(episode, checks)


def _resample_window(episode: Episode, grid_ns: IntArray) -> dict[str, NDArray[Any]]:
    """Frames of a part of an episode; names with _ are for the quality card."""
    read = _read_window(episode, grid_ns)
    state, rows = read["low_state"]
    cmd, cmd_rows = read["low_cmd"]
    out: dict[str, NDArray[Any]] = {
        "observation.state": np.concatenate([state[p][rows] for p in STATE_PARTS], axis=1),
        "action": cmd["joint_pos_target"][cmd_rows],
        "observation.command": np.zeros((len(grid_ns), 3)),
    }
    if "policy_input" in read:
        told, told_rows = read["policy_input"]
        out["observation.command"] = np.where(
            told_rows[:, None] < 0, 0.0, told["velocity"][told_rows]
        )
    out = {name: values.astype(np.float32) for name, values in out.items()}
    return out | {
        "_paired": state["tick"][rows] == cmd["state_tick"][cmd_rows],
        "_clipped": cmd["clipped"][cmd_rows] != 0,
        "_mode": cmd["mode"][cmd_rows],
        "_error": _hold_error(episode.log, state, rows, grid_ns),
    }


def _read_window(
    episode: Episode, grid_ns: IntArray
) -> dict[str, tuple[NDArray[Any], NDArray[np.intp]]]:
    """By topic: the messages around a part of the grid, and the row of each frame in them."""
    first, last = [], []  # log times
    wanted: dict[str, list[str]] = {}
    for topic, clock in episode.clocks.items():
        rows = clock.newest(grid_ns)
        if len(clock.stamp_ns) and rows[-1] >= 0:
            # One more on the right, to see where the state went after the last frame.
            used = clock.log_time_ns[max(rows[0], 0) : rows[-1] + 2]
            first.append(used.min())
            last.append(used.max())
            wanted[topic] = READ[topic]
    log = episode.log
    between = (
        (min(first) - log.start_ns) / S - MARGIN_S,
        (max(last) - log.start_ns) / S + MARGIN_S,
    )
    found = {}
    for topic, records in log.read_topics(wanted, between).items():
        stamps = log_fields.epoch_ns(log, records, "stamp_ns")
        found[topic] = records, np.searchsorted(stamps, grid_ns, side="right") - 1
    return found


def _hold_error(
    log: Log, state: NDArray[Any], rows: NDArray[np.intp], grid_ns: IntArray
) -> FloatArray:
    """(frames, joints) rad: held positions against those interpolated to the frame's moment."""
    stamps = log_fields.epoch_ns(log, state, "stamp_ns")
    after = np.minimum(rows + 1, len(state) - 1)
    span = np.maximum(stamps[after] - stamps[rows], 1)
    share = (grid_ns - stamps[rows]) / span * (after > rows)
    return (state["joint_pos"][after] - state["joint_pos"][rows]) * share[:, None]


# --- quality ------------------------------------------------------------------------------------


def _card(episode: Episode, checks: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The quality card of one episode, of plain values."""
    log, grid_ns = episode.log, episode.grid_ns
    names = log_fields.value_names(log.topics["low_cmd"].text, "mode")
    modes, counts = np.unique(checks["_mode"], return_counts=True)
    error = checks["_error"]
    # From the first command on: what its tick told has its stamp, half a tick before the frame.
    cmds = episode.clocks["low_cmd"]
    span = int(cmds.stamps(cmds.newest(grid_ns[:1]))[0]), int(grid_ns[-1])
    return {
        "log": log.path.name,
        "run_id": log.metadata.get("run_id", ""),
        "begin_s": float(grid_ns[0] - log.start_ns) / S,
        "end_s": float(grid_ns[-1] - log.start_ns) / S,
        "frames": len(grid_ns),
        "modes": {
            names.get(int(m), f"mode {m}"): int(n) for m, n in zip(modes, counts, strict=True)
        },
        "sources": {topic: _source(c, grid_ns) for topic, c in episode.clocks.items()},
        # The command of a frame was made from the very state beside it.
        "paired_share": float(checks["_paired"].mean()),
        "hold_error_rad": {
            "rms": float(np.sqrt(np.mean(error**2))), "max": float(np.abs(error).max()),
        },
        "clipped_share": float(checks["_clipped"].mean()),
        "interventions": _count(log, "intervention", span),
        "faults": _faults(log, span),
        "damage": list(log.damage),
    }  # fmt: skip


def _source(clock: Clock, grid_ns: IntArray) -> dict[str, Any]:
    """How one topic fed the grid: messages, losses, repeated samples and their age."""
    rows = clock.newest(grid_ns)
    have = rows >= 0
    if not have.any():
        return {"messages": 0, "lost": 0, "missing_frames": len(rows)}
    first = int(rows[have][0])
    used = clock.numbers[first : rows[-1] + 1]
    age_ms = (grid_ns - clock.stamps(rows))[have] * 1e-6
    return {
        "messages": len(used),
        "lost": missing(used),
        "missing_frames": int((~have).sum()),
        "held_frames": int((np.diff(rows[have]) == 0).sum()),
        "age_ms": {"mean": float(age_ms.mean()), "max": float(age_ms.max())},
    }


def _inside(log: Log, topic: str, fields: list[str], span: tuple[int, int]) -> NDArray[Any]:
    """Fields of the messages stamped within a span of epoch ns."""
    read = log.read(topic, list({"stamp_ns", *fields}))
    stamps = log_fields.epoch_ns(log, read, "stamp_ns")
    return read[(stamps >= span[0]) & (stamps <= span[1])]


def _count(log: Log, topic: str, span: tuple[int, int]) -> int:
    return len(_inside(log, topic, [], span)) if topic in log.topics else 0


def _faults(log: Log, span: tuple[int, int]) -> list[str]:
    """Names of all faults that were active at some time."""
    if "status" not in log.topics:
        return []
    seen = np.bitwise_or.reduce(_inside(log, "status", ["faults"], span)["faults"], initial=0)
    return fault_names(int(seen))
