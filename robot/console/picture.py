"""Gathers the newest messages into what every page shows: mode, rates, ages, joints, events."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from robot.choice import SILENT_NS
from robot.clock import Pace
from robot.messages import (
    LowState,
    Message,
    Mode,
    PolicyInfo,
    RecorderStatus,
    Status,
    Timing,
    Truth,
)
from robot.model import Robot
from robot.modes import LATCHED, NO_CAUSE, fault_names
from robot.runs import RunConfig
from robot.topics import SOURCES

MAX_EVENTS = 60
WHAT = {
    Mode.PASSIVE: "motors without torque", Mode.DAMP: "armed: motors are damping",
    Mode.STANDUP: "moving to the stand pose", Mode.STAND: "standing stiffly",
    Mode.POLICY: "the policy drives", Mode.HOLD: "balancing in place",
    Mode.SOFT_STOP: "crouching, then damping", Mode.FAULT: "motors are damping; reset, then arm",
    Mode.ESTOP: "motors are damping (DAMP); reset, then arm",
}  # fmt: skip


class Picture:
    """Turns messages into plain data.

    Args:
        robot: joint names and limits.
        run: timing factor and policy.
    """

    def __init__(self, robot: Robot, run: RunConfig) -> None:
        self.robot, self.run = robot, run
        self.events: deque[dict[str, str]] = deque(maxlen=MAX_EVENTS)
        self.events_told = 0  # counts up with every event
        self._status: Status | None = None
        self._truth: Truth | None = None
        self._state: LowState | None = None
        self._timing: Timing | None = None
        self._info: PolicyInfo | None = None
        self._recorder: RecorderStatus | None = None
        self._ticks = Pace()

    def hear(self, message: Message, wall: str) -> None:
        """Remember a message, which must stay as it is; `wall` is the time of day, for events."""
        if isinstance(message, Status):
            self._compare(message, wall)
            self._status = message
        elif isinstance(message, Timing):
            self._ticks.read(message.stamp_ns, int(message.executed_ticks))
            self._timing = message
        elif isinstance(message, Truth):
            self._truth = message
        elif isinstance(message, LowState):
            self._state = message
        elif isinstance(message, PolicyInfo):
            self._info = message
        elif isinstance(message, RecorderStatus):
            self._recorder = message

    def tell(self, text: str, wall: str, kind: str = "") -> None:
        """Add to what happened; `kind` is "bad" for what people must see."""
        self.events.append({"at": wall, "text": text, "kind": kind})
        self.events_told += 1

    def _compare(self, status: Status, wall: str) -> None:
        """What has changed since the last status becomes an event."""
        before, mode = self._status, Mode(status.mode)
        if before is None or before.mode != mode:
            why = f": {status.reason}" if status.cause != NO_CAUSE else ""
            self.tell(f"{mode.name}{why}", wall, "bad" if mode in LATCHED or why else "")
        # What is active while nothing is armed is told by the table, not as news.
        if before is not None and mode != Mode.PASSIVE and status.faults & ~before.faults:
            names = fault_names(int(status.faults & ~before.faults))
            self.tell(f"fault: {', '.join(names)}", wall, "bad")
        if before is not None and before.lease != status.lease:
            self.tell(f"{_driver(status)} drives", wall)

    @property
    def pose(self) -> Truth | LowState | None:
        """The newest message that tells where the robot's joints are."""
        return self._truth or self._state

    def hello(self, geoms: list[dict[str, Any]], limits_ms: dict[str, float]) -> dict[str, Any]:
        """What does not change while the run lasts."""
        robot = self.robot
        return {
            "robot": robot.name, "run": self.run.name, "simulated": self.run.simulated,
            "timing_factor": self.run.timing_factor, "limits_ms": limits_ms,
            "joints": list(robot.joint_names), "position_limit": robot.position_limit.tolist(),
            "effort_limit": robot.effort_limit.tolist(), "geoms": geoms,
        }  # fmt: skip

    def to_dict(self, now_ns: int) -> dict[str, Any]:
        """What changes; the same for every page."""
        status = self._status
        if status is None:
            return {"mode": "", "what": "no word from control yet", "latched": False}
        mode = Mode(status.mode)
        silent_ns = now_ns - status.now_ns
        silent = silent_ns > SILENT_NS * self.run.timing_factor
        return {
            "mode": "" if silent else mode.name,
            "what": f"no word from control for {silent_ns * 1e-9:.1f} s" if silent else WHAT[mode],
            "latched": mode in LATCHED,
            "reason": status.reason if status.cause != NO_CAUSE else "",
            "faults": fault_names(int(status.faults)) if mode != Mode.PASSIVE else [],
            "forbids": fault_names(int(status.faults)),
            "driver": _driver(status),
            "ages_ms": {
                "state": _round(status.state_age_ms), "target": _round(status.target_age_ms),
                "command": _round(status.command_age_ms),
            },
            "accepted": [_round(v, 3) for v in status.velocity],
            "clipped": _round(status.clipped_share, 3),
            "dropped": int(status.drops), "blocked": int(status.blocked),
            "control": self._control(), "policy": self._policy(), "log": self._log(),
            "truth": self._measured(), "now_s": round(now_ns * 1e-9, 3), **self._joints(),
        }  # fmt: skip

    def _control(self) -> dict[str, Any] | None:
        timing = self._timing
        if timing is None:
            return None
        return {
            "rate": round(self._ticks.per_s), "skipped": int(timing.skipped_ticks),
            "late_p50_us": round(float(np.median(timing.lateness_us))),
            "late_max_us": round(float(timing.lateness_us.max())),
        }  # fmt: skip

    def _policy(self) -> dict[str, Any] | None:
        info = self._info
        if info is None:
            return None
        return {
            "name": info.name, "provider": info.provider, "id": f"{info.policy_id:016x}",
            "min": [_round(v, 2) for v in info.velocity_min],
            "max": [_round(v, 2) for v in info.velocity_max],
        }  # fmt: skip

    def _log(self) -> dict[str, Any] | None:
        told = self._recorder
        if told is None:
            return None
        return {
            "folder": told.path.rpartition("/")[2], "mb": _round(told.bytes_written * 1e-6),
            "lost": int(told.lost), "warning": told.warning,
        }  # fmt: skip

    def _measured(self) -> dict[str, Any] | None:
        truth = self._truth
        if truth is None:
            return None
        return {
            "pos": [_round(v, 3) for v in truth.base_pos_w],
            "speed": _round(float(np.hypot(*truth.base_lin_vel_w[:2])), 3),
            "gantry_n": None if truth.released else round(float(truth.support_force)),
        }  # fmt: skip

    def _joints(self) -> dict[str, Any]:
        state = self._state
        if state is None:
            return {}
        return {
            "q": [_round(v, 3) for v in state.joint_pos],
            "dq": [_round(v, 2) for v in state.joint_vel],
            "tau": [_round(v, 1) for v in state.joint_effort],
        }


def _driver(status: Status) -> str:
    return SOURCES[status.source].name if status.source < len(SOURCES) else "nobody"


def _round(value: Any, digits: int = 1) -> float | None:
    """JSON has no NaN: what a broken sensor says becomes null."""
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None
