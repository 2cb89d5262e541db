"""Logged commands through simulated physics from many logged states: level R2.

How far off is the simulation a moment later? Beside each figure stands the chaos floor: what
remains when physics is compared with itself from starts that differ by the sensors' noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.sim import SimDriver
from robot.config import UserError
from robot.log import Log
from robot.messages import LowCmd, Mode
from robot.model import Robot, load_robot
from robot.runs import NoiseConfig, RunConfig
from robot.topics import make_codecs
from sim2real.motion import Motion, start_noise
from sim2real.replay import setup_of

HORIZONS_S = (0.02, 0.1, 0.5)
SHADOWS = 2  # perturbed runs per start


class LoggedRobot(SimDriver):
    """A simulated robot that begins in a logged state, off the gantry.

    Args:
        motion: the log.
        robot: to simulate; the log's own or a changed one.
        run: says noise, delay, limits and collisions.
        seed: of the sensor noise.
    """

    def __init__(self, motion: Motion, robot: Robot, run: RunConfig, seed: int = 0) -> None:
        super().__init__(robot, run.sim, run.period_ns, seed)
        self.motion = motion
        self.delay_ticks = len(self._delayed) - 1
        self._cmd: LowCmd = make_codecs(robot)["low_cmd"].new()

    def resume(self, row: int, qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> None:
        """Be in this state at a row's time, with the commands before it still on their way."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self.gantry.released = True
        self._time_ns = int(self.motion.robot_ns[row])
        self._applied, self._derated = b"", True
        for age, slot in enumerate(self._delayed, 1):
            self.motion.fill(self._cmd, max(0, row - age))
            slot[:] = self._block_of(self._cmd)
        self._drive(self._delayed[-1])  # what acts now, so that torques are reported as they were
        mujoco.mj_forward(self.model, self.data)

    def follow(self, row: int, ticks: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        """Apply the logged commands from `row` on; yields qpos after so many ticks each."""
        for begin, end in itertools.pairwise([0, *ticks]):
            for age in range(begin, end):
                self.motion.fill(self._cmd, row + age)
                self.write(self._cmd)
            yield self.data.qpos.copy()


def set_up(
    log: Log, folder: Path, robot: Path | None, actuator_delay_ms: float | None
) -> tuple[Motion, LoggedRobot]:
    """The motion of a log and physics to hold against it.

    Raises:
        UserError: the log lacks states, commands or attachments, or had no physics.
    """
    run, own = setup_of(log, folder)
    if run.driver == "loopback":
        raise UserError(f"{log.path}: the loopback driver has no physics to compare with")
    if actuator_delay_ms is not None:
        given = run.model_dump() | {
            "sim": run.sim.model_dump() | {"actuator_delay_ms": actuator_delay_ms}
        }
        try:
            run = RunConfig.model_validate(given)
        except ValueError as error:
            raise UserError(f"actuator delay: {str(error).splitlines()[-2].strip()}") from None
    motion = Motion(log, run, own)
    return motion, LoggedRobot(motion, load_robot(robot) if robot else own, run)


@dataclass
class Errors:
    """Joint errors of one horizon, rad: of predictions, and of physics against itself."""

    predicted: NDArray[np.float64]  # (starts, N)
    floor: NDArray[np.float64]  # (starts, shadows, N)

    def figures(self, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        """Per joint and over all joints, of the chosen starts."""
        error, floor = self.predicted[chosen], self.floor[chosen]
        rmse, least = rms(error, 0), rms(floor, (0, 1))
        return {
            "rmse": rmse.tolist(),
            "p95": np.percentile(np.abs(error), 95, axis=0).tolist(),
            "floor_rmse": least.tolist(),
            "ratio": (rmse / least).tolist(),
            "rmse_all": float(rms(error)),
            "p95_all": float(np.percentile(np.abs(error), 95)),
            "floor_rmse_all": float(rms(floor)),
            "ratio_all": float(rms(error) / rms(floor)),
        }


def predict(
    log: Log,
    folder: Path,
    horizons_s: Sequence[float] = HORIZONS_S,
    every_s: float = 0.1,
    robot: Path | None = None,
    actuator_delay_ms: float | None = None,
) -> dict[str, Any]:
    """Level R2: from logged states with logged commands, how far off are joints a moment later?

    Args:
        log: of a simulated or real robot.
        folder: scratch, for what the log has attached.
        horizons_s: moments to look ahead.
        every_s: between two starts.
        robot: another robot.yaml than the log's.
        actuator_delay_ms: another delay than the run's.

    Returns:
        Figures in rad by mode and horizon, per joint in the order of `joint_names`, each beside the
        floor; `series` over the starts; sentences for people in `notes`.

    Raises:
        UserError: the log holds too little, or a horizon does not fit it.
    """
    motion, physics = set_up(log, folder, robot, actuator_delay_ms)
    ticks = [round(h / (motion.run.period_ns * 1e-9)) for h in horizons_s]
    if not ticks or min(ticks) < 1 or sorted(set(ticks)) != ticks or every_s <= 0.0:
        raise UserError(f"horizons: got {list(horizons_s)} s, expected rising times of a tick each")
    starts, left_out = choose_starts(motion, physics.delay_ticks, ticks, every_s)
    noise = start_noise(motion.run)
    errors = [Errors(np.zeros((len(starts), motion.robot.num_joints)),
                     np.zeros((len(starts), SHADOWS, motion.robot.num_joints)))
              for _ in ticks]  # fmt: skip
    rng = np.random.default_rng(0)
    for i, row in enumerate(starts):
        _one_start(motion, physics, row, ticks, rng, noise, [(e.predicted[i], e.floor[i])
                                                             for e in errors])  # fmt: skip
    modes = motion.mode[starts]
    by_mode = {"all": np.ones(len(starts), bool)} | {
        Mode(int(m)).name: modes == m for m in np.unique(modes)
    }
    result: dict[str, Any] = {
        "level": "R2", "log": str(log.path), "verdict": "done",
        "base": "truth" if motion.has_truth else "imu and feet",
        "joint_names": list(motion.robot.joint_names),
        "horizons_s": list(horizons_s), "starts": len(starts), "left_out": left_out,
        "floor_noise": noise.model_dump(), "shadows_per_start": SHADOWS,
        "actuator_delay_ms": physics.config.actuator_delay_ms,
        "modes": {
            name: {"starts": int(chosen.sum())} | {
                f"{h:g}": e.figures(chosen) for h, e in zip(horizons_s, errors, strict=True)
            }
            for name, chosen in by_mode.items()
        },
        "series": {
            "times_s": motion.times_s[starts].tolist(),
            "rms": [rms(e.predicted, 1).tolist() for e in errors],
            "floor_rms": [rms(e.floor, (1, 2)).tolist() for e in errors],
        },
    }  # fmt: skip
    result["notes"] = [*_predict_notes(result), *motion.notes, *log.damage]
    return result


BETWEEN = "where the log knows no truth at every horizon"


def choose_starts(
    motion: Motion, delay_ticks: int, ticks: Sequence[int], every_s: float
) -> tuple[list[int], dict[str, int]]:
    """Rows to start from, and how many are left out for which reason.

    Raises:
        UserError: none is left; says how many were left out for which reason.
    """
    starts: list[int] = []
    left_out: dict[str, int] = {}
    known = set(motion.known.tolist())
    due = -math.inf
    for row in motion.known.tolist():
        if motion.times_s[row] < due - 1e-6:
            continue
        # In real time truth comes at uneven ticks: the next one may have its horizons.
        if not known.issuperset(row + t for t in ticks):
            left_out[BETWEEN] = left_out.get(BETWEEN, 0) + 1
            continue
        due = motion.times_s[row] + every_s
        why = ""
        if not motion.whole(row - delay_ticks, delay_ticks + ticks[-1]):
            why = "at the ends of the log or beside a gap in it"
        elif motion.mode[row] == Mode.PASSIVE:
            why = "in PASSIVE, where nothing is commanded"
        elif not (motion.free[row] and motion.free[row + ticks[-1]]):
            why = "on the gantry"
        if why:
            left_out[why] = left_out.get(why, 0) + 1
        else:
            starts.append(row)
    if not starts:
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.items())
        raise UserError(f"{motion.log.path}: no state to predict from; left out: {reasons}")
    return starts, left_out


def _one_start(
    motion: Motion,
    physics: LoggedRobot,
    row: int,
    ticks: Sequence[int],
    rng: np.random.Generator,
    noise: NoiseConfig,
    out: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    """Fill the errors of one start at all horizons: (N,) predicted, (shadows, N) floor."""
    physics.resume(row, *motion.state(row))
    plain = [qpos[7:] for qpos in physics.follow(row, ticks)]
    for got, end, (predicted, _) in zip(plain, ticks, out, strict=True):
        predicted[:] = got - motion.joint_pos(row + end)
    for shadow in range(SHADOWS):
        physics.resume(row, *motion.state(row, rng, noise))
        for got, qpos, (_, floor) in zip(plain, physics.follow(row, ticks), out, strict=True):
            floor[shadow] = qpos[7:] - got
            if not motion.has_truth:  # predictions are held against measurements then
                floor[shadow] += rng.normal(0.0, noise.joint_pos, len(got))


def rms(values: NDArray[np.float64], axis: int | tuple[int, ...] | None = None) -> Any:
    """Root of the mean square."""
    return np.sqrt(np.mean(np.square(values), axis=axis))


def _predict_notes(result: dict[str, Any]) -> Iterator[str]:
    every = result["modes"]["all"]
    for horizon in result["horizons_s"]:
        row = every[f"{horizon:g}"]
        yield (
            f"{horizon * 1e3:g} ms ahead: joints are off by {row['rmse_all'] * 1e3:.3g} mrad "
            f"(RMS; 95 % below {row['p95_all'] * 1e3:.3g}), {row['ratio_all']:.2f} x the floor"
        )
    middle = every[f"{result['horizons_s'][len(result['horizons_s']) // 2]:g}"]
    worst = np.argsort(middle["ratio"])[::-1][:3]
    names = (f"{result['joint_names'][j]} {middle['ratio'][j]:.2f} x" for j in worst)
    yield "furthest above their floor: " + ", ".join(names)
    yield f"{result['starts']} predictions; base from {result['base']}"
    for why, count in result["left_out"].items():
        yield f"{count} states left out: {why}"
