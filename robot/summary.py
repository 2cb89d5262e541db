"""What a run was: modes, faults, velocities and timings, gathered into one dictionary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot.messages import Message, Mode, Status, Timing, Truth
from robot.modes import FAULT, fault_names
from robot.safety import orientation

FALLEN_HEIGHT = 0.4  # m, pelvis
FALLEN_TILT = math.radians(60.0)
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
SERIES = ("lateness_us", "tick_us", "cpu_us")


class Summary:
    """Hears status, truth and timing; answers with the run's figures.

    Args:
        timing_factor: of the run; printed with every summary.
    """

    def __init__(self, timing_factor: float) -> None:
        self.timing_factor = timing_factor
        self.mode: Mode | None = None
        self.modes: list[tuple[float, str]] = []  # (seconds since the first status, name)
        self.faults: list[str] = []
        self.reasons: list[str] = []
        self.fell = False
        self.status: Status | None = None
        self.timing: Timing | None = None
        self._start_ns: int | None = None
        self._walk: list[tuple[float, float, float, float]] = []  # s, x, y (m), yaw (rad)
        self._hangs = False  # on a simulated gantry, where no robot falls
        self._release_s: float | None = None
        self._support: float | None = None
        self._support_max = 0.0
        self._series: dict[str, list[NDArray[np.float32]]] = {name: [] for name in SERIES}
        self._path: list[NDArray[np.float32]] = []
        self._write: list[NDArray[np.float32]] = []
        self._blocks: list[int] = []
        self._page_faults: list[int] = []

    def hear(self, message: Message) -> None:
        """Account for one message; other kinds are passed over."""
        if isinstance(message, Status):
            self._hear_status(message)
        elif isinstance(message, Truth):
            self._hear_truth(message)
        elif isinstance(message, Timing):
            self._hear_timing(message)

    def _hear_status(self, status: Status) -> None:
        now, mode = status.now_ns, Mode(status.mode)
        self._start_ns = now if self._start_ns is None else self._start_ns
        if mode != self.mode:
            self.mode = mode
            self.modes.append((round((now - self._start_ns) * 1e-9, 3), mode.name))
            if mode in (Mode.HOLD, Mode.SOFT_STOP, Mode.FAULT, Mode.ESTOP):
                self.reasons.append(status.reason or f"{mode.name} was requested")
        # The mode machine damps a falling robot before it lies.
        self.fell = self.fell or (status.cause == FAULT["fallen"] and not self._hangs)
        # Before arming many rows are active by nature: there is no operator, no pilot yet.
        for name in fault_names(status.faults) if mode != Mode.PASSIVE else ():
            if name not in self.faults:
                self.faults.append(name)
        self.status = keep(status, self.status)

    def _hear_truth(self, truth: Truth) -> None:
        roll_pitch_tilt = orientation(truth.base_quat_wxyz)
        time_s = truth.sim_time_ns * 1e-9
        self._support = truth.support_force
        self._support_max = max(self._support_max, truth.support_force)
        self._hangs = not truth.released
        if truth.released and self._release_s is None:
            self._release_s = time_s
        if truth.released and self.mode in (Mode.STAND, Mode.POLICY, Mode.HOLD):
            lies = truth.base_pos_w[2] < FALLEN_HEIGHT or roll_pitch_tilt[2] > FALLEN_TILT
            self.fell = self.fell or bool(lies)
        if self._walk and time_s < self._walk[-1][0]:
            self._walk.clear()  # simulation began anew: control was restarted
        if self.mode == Mode.POLICY:
            w, x, y, z = truth.base_quat_wxyz.tolist()
            yaw = math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
            self._walk.append((time_s, float(truth.base_pos_w[0]), float(truth.base_pos_w[1]), yaw))

    def _hear_timing(self, timing: Timing) -> None:
        for name in SERIES:
            self._series[name].append(getattr(timing, name).copy())
        self._path.append(timing.path_us[: timing.policy_ticks].copy())
        self._write.append(timing.write_us[: timing.policy_ticks].copy())
        self._blocks.append(timing.allocated_blocks)
        self._page_faults.append(timing.minor_faults)
        self.timing = keep(timing, self.timing)

    def mean_velocity(self) -> list[float] | None:
        """vx, vy (m/s, heading frame), yaw rate (rad/s) over the last two thirds in POLICY.

        Displacements are summed in the heading frame half way through them, per simulated second.
        """
        walk = np.array(self._walk)  # (n, 4)
        if len(walk) < 3:
            return None
        walk = walk[walk[:, 0] >= walk[0, 0] + (walk[-1, 0] - walk[0, 0]) / 3.0]
        step, yaw = np.diff(walk, axis=0), np.unwrap(walk[:, 3])
        keep = step[:, 0] < 0.1  # a gap in POLICY (HOLD, restart) is no walk
        dx, dy, heading = step[keep, 1], step[keep, 2], ((yaw[:-1] + yaw[1:]) / 2.0)[keep]
        duration = float(step[keep, 0].sum())
        if duration <= 0.0:
            return None
        forward = (dx * np.cos(heading) + dy * np.sin(heading)).sum() / duration
        left = (dy * np.cos(heading) - dx * np.sin(heading)).sum() / duration
        turn = np.diff(yaw)[keep].sum() / duration
        return [round(float(v), 4) for v in (forward, left, turn)]

    def to_dict(self) -> dict[str, Any]:
        """The figures that every run can give."""
        status, timing = self.status, self.timing
        out: dict[str, Any] = {
            "timing_factor": self.timing_factor,
            "modes": [list(row) for row in self.modes],
            "faults": self.faults,
            "reasons": self.reasons,
            "fell": self.fell,
            "mean_velocity_b": self.mean_velocity(),
            "gantry": {
                "release_time_s": self._release_s,
                "support_force_max_n": round(self._support_max, 1),
                "support_force_end_n": None if self._support is None else round(self._support, 1),
            },
            "drops": int(status.drops) if status else 0,
            "blocked": int(status.blocked) if status else 0,
        }
        if timing is not None:
            control: dict[str, Any] = {
                "executed_ticks": int(timing.executed_ticks),
                "skipped_ticks": int(timing.skipped_ticks),
                "elapsed_s": round(timing.elapsed_ns * 1e-9, 6),
                "rate_hz": round(timing.executed_ticks / timing.elapsed_ns * 1e9, 2),
            }
            for name in SERIES:
                control[name] = percentiles(np.concatenate(self._series[name]))
            control["after_warm_up"] = self._growth(int(timing.collections))
            out["control"] = control
            out["path_us"] = percentiles(np.concatenate(self._path))
            out["write_us"] = percentiles(np.concatenate(self._write))
            answered = sum(len(part) for part in self._path)
            out["pilot"] = {"rate_hz": round(answered / timing.elapsed_ns * 1e9, 2)}
        return out

    def _growth(self, collections: int) -> dict[str, int]:
        """Page faults and interpreter memory over the second half of the run, after warm-up."""
        half = len(self._blocks) // 2
        return {
            "page_faults": self._page_faults[-1] - self._page_faults[half],
            "allocated_blocks_growth": self._blocks[-1] - self._blocks[half],
            "collections": collections,
        }


def keep(message: Any, old: Any) -> Any:
    """A copy of `message`, in the memory of `old` if there is one."""
    if old is None:
        return message.copy()
    old.copy_from(message)
    return old


def percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    """p50, p99, p999 and max, or None without values."""
    if not len(values):
        return None
    return {name: round(float(np.percentile(values, q)), 1) for name, q in PERCENTILES.items()}
