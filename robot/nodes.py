"""The table of processes, and the manager that starts, watches and stops them.

Nothing here moves a robot. A dead client is restarted with back-off; a dead control or pilot too,
but the robot is damped by then, and only an operator arms it again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from robot import clock
from robot.bus import Publisher, Subscriber, lock_file, runtime_directory
from robot.choice import Chooser
from robot.config import UserError
from robot.messages import Message
from robot.node import CONSOLE_FILE, RUN_FILE, Node
from robot.realtime import SINGLE_THREAD
from robot.runs import RunConfig
from robot.summary import Summary

STATE_FILE = "nodes.json"  # what `plexus nodes` reads
END_FILE = "end.txt"  # why the run ends, for its log
LOG_FILE = "log.json"  # the log being written; a recorder that is started again goes on with it
READY_S = 60.0  # a node that is not ready by then is refused
STOP_S = 5.0  # from SIGTERM to SIGKILL
BACK_OFF_S = (0.2, 1.0, 3.0)  # before the first, second, third restart
WINDOW_S = 60.0  # more restarts than that within it: the node stays down
LEAVE_S = 1.0  # from SIGTERM to SIGKILL of a pilot whose policy is changed
PERIOD_NS = 20_000_000  # heartbeat and watch


@dataclass(frozen=True)
class Row:
    """One row of the process table."""

    name: str
    entry: str  # module with a main(node)
    when: Callable[[RunConfig], bool]
    when_text: str
    priority: str
    restart: str
    doc: str


NODES: tuple[Row, ...] = (
    Row("recorder", "robot.recorder", lambda run: run.log.enabled, "unless --log no", "low",
        "with back-off; the log goes on", "every message into the run's log"),
    Row("control", "robot.control_node", lambda run: True, "always", "real time, if allowed",
        "into PASSIVE; an operator must arm", "the 500 Hz loop: authority, modes, safety, driver"),
    Row("pilot", "robot.pilot", lambda run: run.policy is not None, "with a policy", "normal",
        "robot is damped first; an operator must arm", "runs the policy, one target per input"),
    Row("camera", "robot.camera_node", lambda run: run.camera.source != "none",
        "with a camera", "low", "with back-off", "pictures of the camera in the head"),
    Row("rgb", "robot.camera_node", lambda run: run.camera.rgb, "with --rgb", "low",
        "with back-off", "the same in colour, for people; simulation, where there is GL"),
    Row("perception", "robot.perception_node", lambda run: run.camera.source != "none",
        "with a camera", "low", "with back-off", "turns pictures into the ground around the robot"),
    Row("console", "robot.console.node", lambda run: run.console.enabled,
        "unless --headless, or with --console yes", "normal", "with back-off",
        "drives and shows the robot in a browser"),
    Row("teleop", "robot.teleop_node", lambda run: True, "always", "normal",
        "with back-off", "keys or a fixed command, and the live table"),
    Row("gamepad", "robot.gamepad_node", lambda run: run.operator.gamepad, "with --gamepad",
        "normal", "with back-off", "drives by a gamepad plugged into this computer"),
    Row("viewer", "robot.viewer", lambda run: run.viewer, "unless --headless", "low",
        "never", "a window with the robot, fed from the bus"),
)  # fmt: skip


@dataclass
class Child:
    """A running row."""

    row: Row
    process: subprocess.Popen[bytes]
    state: str = "starting"  # starting, running, leaving (to start again), stopped, failed, waiting
    ready_fd: int = -1
    starts: list[float] = field(default_factory=list)  # monotonic s
    restart_at: float = 0.0  # when waiting; when leaving, when it is killed

    @property
    def pid(self) -> int:
        """Process id, also after its end."""
        return self.process.pid


class Manager:
    """Starts the nodes of a run in the table's order and keeps them as the table says.

    Args:
        run: the run's configuration.
        live: a live table owns the terminal; children write to files instead.

    Raises:
        UserError: another run holds the runtime directory.
    """

    def __init__(self, run: RunConfig, live: bool = False) -> None:
        self.run, self.live = run, live
        self.directory = runtime_directory()
        self._lock = lock_file(self.directory / "run.lock", "a run is going on")
        for name in (LOG_FILE, END_FILE, CONSOLE_FILE):
            (self.directory / name).unlink(missing_ok=True)  # a new run, a new log and door
        (self.directory / RUN_FILE).write_text(run.model_dump_json())
        self.node = Node("manager", self.directory, run)
        self.children: dict[str, Child] = {}
        self.summary = Summary(run.timing_factor)
        self.on_message: Callable[[Message], None] | None = None
        self.stopping = False
        self.reason = "stopped"  # why the run ends
        self._heartbeat = self.node.codecs["heartbeat"].new()
        self._heartbeat.pid = os.getpid()
        self._publisher = Publisher(
            self.node.context, self.directory, "heartbeat", self.node.codecs["heartbeat"]
        )
        self.chooser = Chooser(self.node)
        heard = self.node.pick("status", "truth", "timing", "policy_info", "policy_choice")
        self._subscriber = Subscriber(self.node.context, self.directory, heard, every=True)
        self.policy_info: Any = None
        self._named = ""  # policy that STATE_FILE names

    def log_folder(self) -> str | None:
        """Where this run's log lies, if there is one."""
        try:
            return json.loads((self.directory / LOG_FILE).read_text())["folder"]
        except (OSError, ValueError, KeyError):
            return None

    # --- starting -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the rows that this run needs; each is ready before the next one starts.

        Raises:
            UserError: a node ended or was not ready in time; all others are stopped again.
        """
        for row in NODES:
            if not row.when(self.run):
                continue
            child = self._spawn(row, [])
            self.children[row.name] = child
            self._write_state()
            deadline = time.monotonic() + READY_S
            while child.state == "starting" and not self.stopping:
                if time.monotonic() > deadline:
                    raise UserError(f"{row.name}: not ready after {READY_S:.0f} s")
                self.turn()
            if child.state not in ("running", "starting"):
                if row.restart == "never" or child.state == "stopped":
                    continue  # it said why in its own line, e.g. a viewer without a display
                raise UserError(
                    f"{row.name}: could not start (exit code {child.process.returncode}); "
                    f"its reason is above{self._log_hint(row.name)}"
                )

    def _log_hint(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        if not self.live or not path.exists():
            return ""
        return f": {path.read_text(errors='replace').strip()[-500:]}"

    def _spawn(self, row: Row, starts: list[float]) -> Child:
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        # Simulation leaves nothing behind; on hardware control outlives us and goes on damping.
        tied = self.run.simulated or row.name != "control"
        command = [
            sys.executable, "-m", "robot.node", row.name, row.entry, str(self.directory),
            "--ready-fd", str(write_fd), "--parent", str(os.getpid() if tied else 0),
        ]  # fmt: skip
        errors: IO[bytes] | None = None
        if self.live and row.name != "teleop":
            errors = (self.directory / f"{row.name}.log").open("wb")
        process = subprocess.Popen(
            command,
            stdin=None if row.name == "teleop" else subprocess.DEVNULL,
            stderr=errors,
            # Set before NumPy is imported: a pool of threads would spin beside the loop.
            env=os.environ | dict.fromkeys(SINGLE_THREAD, "1"),
            pass_fds=(write_fd,),
            start_new_session=True,  # Ctrl-C is the manager's, which stops them in order
        )
        os.close(write_fd)
        if errors:
            errors.close()
        return Child(row, process, ready_fd=read_fd, starts=[*starts, time.monotonic()])

    # --- watching -----------------------------------------------------------------------------

    def turn(self) -> None:
        """One period: heartbeat, listen, look after the children."""
        begin = clock.now_ns()
        self._publisher.send(self._heartbeat, begin)
        while message := self._subscriber.receive():
            self.summary.hear(message)
            self.chooser.hear(message)
            if message.codec.name == "PolicyInfo":
                self.policy_info = message.copy()
            if self.on_message:
                self.on_message(message)
        for child in self.children.values():
            self._look_after(child)
        self._heed_chooser()
        remaining = begin + PERIOD_NS - clock.now_ns()
        if remaining > 0:
            time.sleep(remaining * 1e-9)

    def watch(self, seconds: float | None) -> None:
        """Turn until told to stop, until `seconds` have passed, or the operator quits."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self.stopping and (end is None or time.monotonic() < end):
            self.turn()
            teleop = self.children.get("teleop")
            if teleop and teleop.state == "stopped":
                self.reason = "the operator quit"
                return
        self.reason = "told to stop" if self.stopping else f"{seconds:g} s are over"

    def _heed_chooser(self) -> None:
        """Start the pilot again where its policy was changed; that is no crash of its own."""
        named, pilot = self.chooser.loaded, self.children.get("pilot")
        if self.chooser.turn(pilot.state if pilot else "") and pilot:
            if pilot.state in ("starting", "running"):
                self._signal(pilot, signal.SIGTERM)
                pilot.state, pilot.restart_at = "leaving", time.monotonic() + LEAVE_S
            else:
                self.children["pilot"] = self._spawn(pilot.row, [])
            self._write_state()
        if named != self._named:
            self._named = named
            self._write_state()

    def _look_after(self, child: Child) -> None:
        if child.state == "starting" and self._is_ready(child):
            child.state = "running"
            self._write_state()
        if child.state in ("starting", "running"):
            code = child.process.poll()
            if code is not None:
                self._bury(child, code)
        elif child.state == "waiting" and time.monotonic() >= child.restart_at:
            again = self._spawn(child.row, child.starts)
            self.children[child.row.name] = again
            self._write_state()
        elif child.state == "leaving":
            if child.process.poll() is not None:
                os.close(child.ready_fd)
                self.children[child.row.name] = self._spawn(child.row, [])
                self._write_state()
            elif time.monotonic() > child.restart_at:
                self._signal(child, signal.SIGKILL)

    @staticmethod
    def _is_ready(child: Child) -> bool:
        try:
            return os.read(child.ready_fd, 1) == b"1"
        except BlockingIOError:
            return False

    def _bury(self, child: Child, code: int) -> None:
        """A child has ended: done, to be restarted after a while, or down for good."""
        was_running = child.state == "running"
        os.close(child.ready_fd)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        recent = [t for t in child.starts if time.monotonic() - t < WINDOW_S]
        if code == 0 or child.row.restart == "never":
            child.state = "stopped" if code == 0 else "failed"
        elif was_running and len(recent) <= len(BACK_OFF_S) and not self.stopping:
            child.state = "waiting"
            child.restart_at = time.monotonic() + BACK_OFF_S[len(recent) - 1]
        else:
            child.state = "failed"
        if code != 0 and was_running:
            self.node.say(f"{child.row.name} ended ({how}): {child.row.restart}")
        self._write_state()

    def _write_state(self) -> None:
        rows = [
            {"name": c.row.name, "pid": c.pid, "state": c.state} for c in self.children.values()
        ]
        state = {"manager": os.getpid(), "nodes": rows, "policy": self._named}
        path = self.directory / STATE_FILE
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(state))
        scratch.rename(path)

    # --- stopping -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop control first, so that damping is sent while all is well; the recorder last."""
        self.stopping = True
        (self.directory / END_FILE).write_text(self.reason)
        children = self.children.values()
        control = [c for c in children if c.row.name == "control"]
        others = [c for c in children if c.row.name not in ("control", "recorder")]
        recorder = [c for c in children if c.row.name == "recorder"]
        for group in (control, others, recorder):
            for child in group:
                self._signal(child, signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            for child in group:
                self._reap(child, deadline)
        self._write_state()

    def close(self) -> None:
        """Give the runtime directory free."""
        self.chooser.close()
        self._publisher.close()
        self._subscriber.close()
        (self.directory / CONSOLE_FILE).unlink(missing_ok=True)
        (self.directory / STATE_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def _reap(self, child: Child, deadline: float) -> None:
        while child.process.poll() is None and time.monotonic() < deadline:
            self._publisher.send(self._heartbeat, clock.now_ns())
            time.sleep(0.01)
        if child.process.poll() is None:
            self._signal(child, signal.SIGKILL)
            child.process.wait()
        if child.state in ("starting", "running", "leaving", "waiting"):
            child.state = "stopped"

    @staticmethod
    def _signal(child: Child, number: signal.Signals) -> None:
        if child.process.poll() is None:
            child.process.send_signal(number)


def read_state(directory: Path) -> list[dict[str, Any]]:
    """Rows of the run going on in `directory`: name, pid, state; without one, all "not running".

    The pilot's row has also `policy`, the name of what it has loaded, once it has said so.
    """
    try:
        state = json.loads((directory / STATE_FILE).read_text())
    except (OSError, ValueError):
        return [{"name": row.name, "pid": None, "state": "not running"} for row in NODES]
    rows = [{"name": "manager", "pid": state["manager"], "state": "running"}, *state["nodes"]]
    for row in rows:
        # The manager cannot update the file any more if it was killed.
        if row["state"] in ("starting", "running", "leaving") and not alive(row["pid"]):
            row["state"] = "dead"
        if row["name"] == "pilot" and state.get("policy"):
            row["policy"] = state["policy"]
    return rows


def alive(pid: int) -> bool:
    """True if a process with this id exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
