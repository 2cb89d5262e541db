"""Logged commands through simulated physics from one logged state on: level R3.

How long does the simulation follow the log? Nothing balances it, so it must part some time; the
same runs from perturbed starts tell how soon that is nobody's fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.config import UserError
from robot.log import Log
from robot.messages import Mode
from robot.summary import FALLEN_HEIGHT, FALLEN_TILT
from sim2real.motion import Motion, start_noise
from sim2real.resimulate import LoggedRobot, rms, set_up

SHADOWS = 8  # perturbed runs
LOST_POSITION, LOST_ANGLE = 0.05, math.radians(5.0)  # m, rad: no longer the same motion


@dataclass
class Course:
    """A motion to hold against another one: base poses at the same moments."""

    qpos: NDArray[np.float64]  # (n, nq)

    def apart(self, other: Course) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n,) m and (n,) rad between the bases."""
        distance = np.linalg.norm(self.qpos[:, :3] - other.qpos[:, :3], axis=1)
        dot = np.abs(np.sum(self.qpos[:, 3:7] * other.qpos[:, 3:7], axis=1))
        return distance, 2.0 * np.arccos(np.clip(dot, 0.0, 1.0))

    def fallen_at(self) -> int | None:
        """The first moment at which the robot lies."""
        w_tilt = 1.0 - 2.0 * (self.qpos[:, 4] ** 2 + self.qpos[:, 5] ** 2)
        lies = (self.qpos[:, 2] < FALLEN_HEIGHT) | (w_tilt < math.cos(FALLEN_TILT))
        return int(lies.argmax()) if lies.any() else None


def open_loop(
    log: Log,
    folder: Path,
    begin_s: float | None = None,
    seconds: float = 3.0,
    robot: Path | None = None,
    actuator_delay_ms: float | None = None,
) -> dict[str, Any]:
    """Level R3: logged commands from one logged state; how long does physics follow the log?

    Args:
        log: of a simulated or real robot.
        folder: scratch, for what the log has attached.
        begin_s: s since the start of the log; None: where a policy first moves the robot.
        seconds: to follow at most.
        robot: another robot.yaml than the log's.
        actuator_delay_ms: another delay than the run's.

    Returns:
        Seconds until the base is 5 cm or 5 degrees away, beside the same of perturbed runs against
        the unperturbed one; falls; `series` over time; sentences in `notes`.

    Raises:
        UserError: the log holds too little, or the robot hung on the gantry at that moment.
    """
    motion, physics = set_up(log, folder, robot, actuator_delay_ms)
    row = begin_row(motion, begin_s)
    rows = _rows_to_follow(motion, physics.delay_ticks, row, seconds)
    ticks = [r - row for r in rows]
    logged = Course(np.array([motion.state(r)[0] for r in rows]))
    plain = _run_open(physics, row, ticks, motion.state(row))
    noise, rng = start_noise(motion.run), np.random.default_rng(0)
    shadows = [_run_open(physics, row, ticks, motion.state(row, rng, noise))
               for _ in range(SHADOWS)]  # fmt: skip
    times = (np.array(ticks) * motion.run.period_ns * 1e-9).tolist()

    def moment(index: int | None) -> float | None:
        return None if index is None else times[index]

    series: dict[str, Any] = {"times_s": times}
    series["distance_m"], series["angle_rad"] = (v.tolist() for v in plain.apart(logged))
    apart = [shadow.apart(plain) for shadow in shadows]
    series["shadow_distance_m"] = [d.tolist() for d, _ in apart]
    series["shadow_angle_rad"] = [a.tolist() for _, a in apart]
    series["joint_rms_rad"] = rms(plain.qpos[:, 7:] - logged.qpos[:, 7:], 1).tolist()
    result = {
        "level": "R3", "log": str(log.path), "verdict": "done",
        "base": "truth" if motion.has_truth else "imu and feet",
        "begin_s": float(motion.times_s[row]), "mode": motion.mode_name(row),
        "followed_s": times[-1],
        "diverged_s": moment(lost_at(*plain.apart(logged), motion.has_truth)),
        "shadows_diverged_s": [moment(lost_at(*a, motion.has_truth)) for a in apart],
        "fell": {
            "log": moment(logged.fallen_at()), "simulation": moment(plain.fallen_at()),
            "shadows": [moment(shadow.fallen_at()) for shadow in shadows],
        },
        "series": series,
    }  # fmt: skip
    result["notes"] = [*_open_notes(result), *motion.notes, *log.damage]
    return result


def begin_row(motion: Motion, begin_s: float | None) -> int:
    """The row to begin in; None: where a policy first moves the robot off the gantry.

    Raises:
        UserError: there is none, or the robot hung on the gantry then.
    """
    if begin_s is not None:
        row = motion.row_at(begin_s)
        if not motion.free[row]:
            raise UserError(
                f"{motion.log.path}: at {begin_s:g} s the robot hung on the gantry, whose force is "
                "not in the log; expected a time after its release"
            )
        return row
    walking = (motion.mode == Mode.POLICY) & motion.free
    rows = motion.known[walking[motion.known]]
    if not len(rows):
        raise UserError(
            f"{motion.log.path}: no policy moved the robot off the gantry; say where to begin"
        )
    return int(rows[0])


def _rows_to_follow(motion: Motion, delay_ticks: int, row: int, seconds: float) -> list[int]:
    """Known rows after `row`, up to a gap, PASSIVE, the gantry or `seconds`, at least 0.1 s."""
    last = row + round(seconds / (motion.run.period_ns * 1e-9))
    rows: list[int] = []
    for after in motion.known[(motion.known > row) & (motion.known <= last)].tolist():
        held = not motion.free[after] or motion.mode[after] == Mode.PASSIVE
        if held or not motion.whole(row - delay_ticks, delay_ticks + after - row):
            break
        rows.append(after)
    if not rows or (rows[-1] - row) * motion.run.period_ns < 1e8:
        raise UserError(
            f"{motion.log.path}: less than 0.1 s of whole log to follow from "
            f"{motion.times_s[row]:.2f} s on"
        )
    return rows


def _run_open(
    physics: LoggedRobot, row: int, ticks: Sequence[int], state: tuple[NDArray, NDArray]
) -> Course:
    physics.resume(row, *state)
    return Course(np.array(list(physics.follow(row, ticks))))


def lost_at(
    distance: NDArray[np.float64], angle: NDArray[np.float64], position_known: bool
) -> int | None:
    """Index of the first moment at which two motions are no longer the same."""
    lost = angle > LOST_ANGLE
    if position_known:
        lost |= distance > LOST_POSITION
    return int(lost.argmax()) if lost.any() else None


def _open_notes(result: dict[str, Any]) -> Iterator[str]:
    end = result["followed_s"]

    def said(moment: float | None) -> str:
        return f"follows for all of {end:.2f} s" if moment is None else f"is lost at {moment:.2f} s"

    limit = "5 cm or 5 degrees" if result["base"] == "truth" else "5 degrees"
    yield (
        f"from {result['begin_s']:.2f} s ({result['mode']}) on, physics "
        f"{said(result['diverged_s'])} ({limit} from the log)"
    )
    shadows = result["shadows_diverged_s"]
    lost = [end if s is None else s for s in shadows]
    yield (
        f"the floor: of {len(shadows)} perturbed runs {sum(s is not None for s in shadows)} are "
        f"lost, the first at {min(lost):.2f} s, half of them by {float(np.median(lost)):.2f} s"
    )
    fell = result["fell"]
    words = ["falls" if fell[who] is not None else "stays up" for who in ("log", "simulation")]
    yield (
        f"the robot of the log {words[0]}, the simulated one {words[1]}; of the perturbed ones "
        f"{sum(s is not None for s in fell['shadows'])} of {len(shadows)} fall"
    )
