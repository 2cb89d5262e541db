"""Draws the live table: mode, rates, lateness, ages, faults and velocity, in plain words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from robot.clock import Pace
from robot.messages import (
    ChangeState,
    FrameFault,
    HeightMap,
    Message,
    Mode,
    PolicyChange,
    PolicyInfo,
    RecorderStatus,
    Status,
    Timing,
    Truth,
)
from robot.modes import NO_CAUSE, fault_names
from robot.perception import camera_in_words, gate_names
from robot.runs import RunConfig
from robot.teleop import KEYS, Teleop
from robot.topics import SOURCES

COLOR = {
    Mode.PASSIVE: "white", Mode.DAMP: "yellow", Mode.STANDUP: "cyan", Mode.STAND: "cyan",
    Mode.POLICY: "green", Mode.HOLD: "yellow", Mode.SOFT_STOP: "yellow", Mode.FAULT: "red",
    Mode.ESTOP: "red",
}  # fmt: skip
WHAT = {
    Mode.PASSIVE: "motors without torque", Mode.DAMP: "armed, damping",
    Mode.STANDUP: "moving to the stand pose", Mode.STAND: "standing stiffly",
    Mode.POLICY: "the policy drives", Mode.HOLD: "balancing in place",
    Mode.SOFT_STOP: "crouching, then damping", Mode.FAULT: "damping; r resets, then g goes",
    Mode.ESTOP: "damping; r resets, then g goes",
}  # fmt: skip

SILENT_NS = 1_000_000_000  # perception speaks also when the camera does not


class View:
    """Turns the newest messages into a table.

    Args:
        teleop: the operator whose velocity and notes are shown.
        run: timing factor and policy.
        console: file with the console's address, where there is one.
    """

    def __init__(self, teleop: Teleop, run: RunConfig, console: Path | None = None) -> None:
        self.teleop, self.run, self._console = teleop, run, console
        self._timing: Timing | None = None
        self._info: PolicyInfo | None = None
        self._change: PolicyChange | None = None
        self._recorder: RecorderStatus | None = None
        self._map: HeightMap | None = None
        self._ticks = Pace()

    def hear(self, message: Message) -> None:
        """Remember timing, what the pilot has loaded, what is seen, how the log is doing."""
        if isinstance(message, PolicyInfo):
            self._info = message
        elif isinstance(message, PolicyChange):
            self._change = message
        elif isinstance(message, RecorderStatus):
            self._recorder = message
        elif isinstance(message, HeightMap):
            self._map = message
        elif isinstance(message, Timing):
            self._ticks.read(message.stamp_ns, int(message.executed_ticks))
            self._timing = message

    def render(self, status: Status | None, truth: Truth | None, now_ns: int) -> RenderableType:
        """The table as it is now."""
        if status is None:
            return Panel("no word from control yet", title="plexus")
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        for label, value in self._rows(status, truth, now_ns):
            table.add_row(label, value)
        return Panel(Group(table, Text(), _keys()), title="plexus", width=100)

    def _rows(self, status: Status, truth: Truth | None, now_ns: int) -> list[tuple[str, Text]]:
        mode = Mode(status.mode)
        silent_ms = (now_ns - status.now_ns) * 1e-6
        rows = [("mode", Text(f"{mode.name}  {WHAT[mode]}", style=f"bold {COLOR[mode]}"))]
        if silent_ms > 500:
            rows[0] = ("mode", Text(f"no word from control for {silent_ms:.0f} ms", "bold red"))
        wish, done = self.teleop.velocity(now_ns), status.velocity
        rows.append(("velocity", Text(f"wish {_velocity(wish)}   accepted {_velocity(done)}")))
        driver = SOURCES[status.source].name if status.source < len(SOURCES) else "nobody"
        rows.append(("operator", Text(f"{driver} holds the lease")))
        if self._console and self._console.exists():
            # Read each time: the address holds a token that counts once, then there is another.
            rows.append(("console", Text(self._console.read_text().strip(), "bold")))
        rows.append(("policy", Text(self._policy())))
        rows.append(("ages", Text(
            f"state {_age(status.state_age_ms)}  target {_age(status.target_age_ms)}  "
            f"command {_age(status.command_age_ms)}"
        )))  # fmt: skip
        rows += self._timing_rows(status)
        if self.run.camera.source != "none":
            rows.append(("eyes", self._eyes(now_ns)))
        if self.run.log.enabled:
            rows.append(("log", self._log()))
        if truth is not None:
            held = "let go" if truth.released else f"carries {truth.support_force:.0f} N"
            rows.append(("gantry", Text(held)))
        faults = fault_names(status.faults) if mode != Mode.PASSIVE else []
        rows.append(("faults", Text(", ".join(faults) or "none", "red" if faults else "")))
        note = status.reason if status.cause != NO_CAUSE else self.teleop.note
        rows.append(("last word", Text(note or "-")))
        return rows

    def _policy(self) -> str:
        if self.run.policy is None:
            return "none: import one with `plexus policy import FILE`, run with --policy"
        if self._info is None:
            return f"{self.run.policy.name}: no word from the pilot"
        text = f"{self._info.name} on {self._info.provider}"
        change = self._change
        if change is not None and change.state == ChangeState.LOADING:
            text += f"; loading another: {change.text}"
        return text

    def _eyes(self, now_ns: int) -> Text:
        """Whether the map is trusted, else why not; and which pictures were dropped."""
        told = self._map
        if told is None or now_ns - told.now_ns > SILENT_NS:
            return Text("no word from perception", "bold red")
        counts = zip(FrameFault, told.refused.tolist(), strict=True)
        dropped = [f"{count} {fault.name.lower()}" for fault, count in counts if count]
        end = f"; dropped {', '.join(dropped)}" if dropped else ""
        if beside := camera_in_words(float(told.camera_pitch)):
            end += f"; {beside}"
        if gate := gate_names(int(told.gate)):
            return Text(f"flat ground is assumed: {', '.join(gate)}{end}", "bold yellow")
        sure = f"within {200 * told.mean_std:.0f} cm, picture {_age(told.age_ms)} old"
        return Text(f"the ground is known {sure}{end}", "yellow" if end else "")

    def _log(self) -> Text:
        told = self._recorder
        if told is None:
            return Text("no word from the recorder", "yellow")
        text = f"{told.bytes_written / 1e6:.1f} MB in {Path(told.path).name}"
        if not told.lost and not told.warning:
            return Text(text)
        return Text(f"{told.lost} messages lost; {told.warning or text}", "bold red")

    def _timing_rows(self, status: Status) -> list[tuple[str, Text]]:
        timing = self._timing
        if timing is None:
            return []
        late, path = timing.lateness_us, timing.path_us[: timing.policy_ticks]
        text = (
            f"{self._ticks.per_s:.0f} ticks/s, skipped {timing.skipped_ticks}, late p50 "
            f"{np.median(late):.0f} us, worst {late.max():.0f} us (timing factor "
            f"{self.run.timing_factor:g})"
        )
        rows = [("control", Text(text))]
        if len(path):
            rows.append(("path", Text(f"sensing to target p50 {np.median(path):.0f} us")))
        rows.append(("dropped", Text(f"{status.drops} frames, {status.blocked} refused contents")))
        return rows


def _keys() -> Table:
    """What the keys do, in two columns."""
    table = Table.grid(padding=(0, 1))
    texts = [(Text(k.label, "bold"), Text(k.doc, "dim")) for k in KEYS.values()]
    half = -(-len(texts) // 2)
    for row in range(half):
        right = texts[row + half] if row + half < len(texts) else (Text(), Text())
        table.add_row(*texts[row], Text("  "), *right)
    return table


def _velocity(velocity: np.ndarray) -> str:
    vx, vy, yaw = velocity.tolist()
    return f"{vx:+.2f} {vy:+.2f} m/s {yaw:+.2f} rad/s"


def _age(age_ms: float) -> str:
    return "none" if age_ms < 0 else f"{age_ms:.0f} ms"
