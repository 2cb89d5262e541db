"""The whole runtime in its processes: order and final state are asserted, times are printed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from robot.bus import Publisher, Subscriber
from robot.config import UserError
from robot.log import Log, Recovered, recover
from robot.messages import Ask, Mode, Request, Status
from robot.model import load_robot
from robot.nodes import NODES
from robot.topics import make_codecs, source_index
from tests.conftest import ROOT, eventually, processes_of

CODECS = make_codecs(load_robot("g1"))


class Watch:
    """Listens to status from outside and can ask as the keyboard source."""

    def __init__(self, folder: Path) -> None:
        self.context = zmq.Context()
        self.subscriber = Subscriber(self.context, folder, {"status": CODECS["status"]}, every=True)
        self.publisher = Publisher(
            self.context, folder, "request.keyboard", CODECS["request.keyboard"]
        )
        self.seen: list[tuple[float, Mode]] = []
        self.status: Any = None

    def turn(self) -> None:
        while message := self.subscriber.receive():
            assert isinstance(message, Status)
            self.status = message.copy()
            mode = Mode(message.mode)
            if not self.seen or self.seen[-1][1] != mode:
                self.seen.append((time.monotonic(), mode))

    @property
    def mode(self) -> Mode | None:
        self.turn()
        return self.seen[-1][1] if self.seen else None

    def until(self, mode: Mode, seconds: float = 30.0) -> None:
        eventually(lambda: self.mode == mode, seconds)

    def ask(self, ask: Ask, lease: int = 99) -> str:
        """Ask until answered; returns the reason of a refusal or ""."""
        request: Request = CODECS["request.keyboard"].new()
        request.ask, request.lease, request.source = ask, lease, source_index("keyboard")
        self.publisher.send(request, time.monotonic_ns())

        def answered() -> bool:
            self.publisher.repeat(request)
            time.sleep(0.02)
            self.turn()
            return self.status is not None and (
                (self.status.answer_instance, self.status.answer_seq)
                == (request.instance, request.seq)
            )

        eventually(answered, 10.0)
        return "" if self.status.answer_ok else self.status.reason

    def close(self) -> None:
        self.subscriber.close()
        self.publisher.close()
        self.context.term()


@pytest.fixture
def watch(runtime_dir: Path) -> Iterator[Watch]:
    runtime_dir.mkdir(mode=0o700)
    made = Watch(runtime_dir)
    yield made
    made.close()


def nodes_state() -> dict[str, dict[str, Any]]:
    out = subprocess.run(
        [sys.executable, "-m", "robot.cli", "nodes", "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    return {row["name"]: row for row in json.loads(out)}


@pytest.mark.alone
def test_a_run_stands_up_starts_its_policy_and_reports(launch, tmp_path, standing_policy):
    report = tmp_path / "out.json"
    run = launch(
        "run", "sim", "--policy", str(standing_policy), "--seconds", "14", "--headless",
        "--command", "0,0,0", "--json", str(report),
    )  # fmt: skip
    assert run.wait() == 0, run.err
    got = json.loads(report.read_text())
    assert [name for _, name in got["modes"]] == ["PASSIVE", "DAMP", "STANDUP", "STAND", "POLICY"]
    assert got["fell"] is False and got["drops"] == 0 and got["timing_factor"] == 10.0
    assert got["provider"] == "cpu" and got["policy"] == "standing"
    assert got["gantry"]["release_time_s"] > 3.0 and got["gantry"]["support_force_end_n"] == 0.0
    assert max(map(abs, got["mean_velocity_b"])) < 0.02
    control = got["control"]
    assert 400 <= control["rate_hz"] <= 501
    assert set(control["lateness_us"]) == {"p50", "p99", "p999", "max"}
    assert set(got["path_us"]) == set(got["write_us"]) == set(control["tick_us"])
    assert control["after_warm_up"]["collections"] == 0
    assert got["pilot"]["rate_hz"] > 30
    assert {*got["nodes"].values()} == {"stopped"}


@pytest.mark.alone
def test_schedule_is_kept(launch, tmp_path):
    report = tmp_path / "out.json"
    run = launch("run", "loopback", "--seconds", "4", "--headless", "--json", str(report))
    assert run.wait() == 0, run.err
    control = json.loads(report.read_text())["control"]
    ticks = control["executed_ticks"] + control["skipped_ticks"]
    assert abs(ticks - control["elapsed_s"] * 500) <= 1.0


def test_without_a_policy_it_stands_on_the_gantry_and_says_so(launch, watch):
    run = launch("run", "sim", "--policy", "none", "--seconds", "8", "--headless")
    watch.until(Mode.STAND)
    assert run.wait() == 0
    assert "no policy: the robot stands up on its gantry" in run.err
    assert [mode for _, mode in watch.seen][-1] == Mode.STAND


@pytest.mark.alone
def test_killed_pilot_damps_and_a_new_one_moves_nothing(launch, watch, standing_policy, capsys):
    run = launch("run", "sim", "--policy", str(standing_policy), "--headless")
    watch.until(Mode.POLICY)
    before = nodes_state()
    os.kill(before["pilot"]["pid"], signal.SIGKILL)
    killed = time.monotonic()
    watch.until(Mode.FAULT, 10.0)
    with capsys.disabled():
        print(f"\nkill -9 of the pilot: FAULT after {(watch.seen[-1][0] - killed) * 1e3:.0f} ms")
    assert watch.status.reason.startswith("target_lost")
    # A new pilot comes up, everybody else is the same process, and the robot stays damped.
    after = eventually(
        lambda: (s := nodes_state())["pilot"]["state"] == "running"
        and s["pilot"]["pid"] != before["pilot"]["pid"] and s, 20.0,
    )  # fmt: skip
    assert {n: after[n]["pid"] for n in ("control", "teleop", "manager")} == {
        n: before[n]["pid"] for n in ("control", "teleop", "manager")
    }
    time.sleep(1.5)
    assert watch.mode == Mode.FAULT
    # Only a person brings it back: a local operator takes the lease, resets, then arms.
    assert "FAULT" in watch.ask(Ask.ARM)
    assert "does not hold the lease" in watch.ask(Ask.RESET)
    assert watch.ask(Ask.ACQUIRE) == ""
    assert watch.ask(Ask.RESET) == ""
    watch.until(Mode.PASSIVE, 5.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(15) == 0


def test_anyone_may_stop_and_nobody_else_may_drive(launch, watch, standing_policy):
    run = launch("run", "sim", "--policy", str(standing_policy), "--headless")
    watch.until(Mode.POLICY)
    assert "does not hold the lease" in watch.ask(Ask.STAND) or watch.mode == Mode.POLICY
    assert watch.ask(Ask.ESTOP) == ""
    watch.until(Mode.ESTOP, 5.0)
    time.sleep(1.0)
    assert watch.mode == Mode.ESTOP
    assert run.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_in_order(launch, runtime_dir, number):
    run = launch("run", "loopback", "--headless")
    eventually(lambda: (runtime_dir / "nodes.json").exists() and
               nodes_state().get("teleop", {}).get("state") == "running")  # fmt: skip
    run.process.send_signal(number)
    assert run.wait(15) == 0
    assert processes_of(runtime_dir) == []
    assert {row["state"] for row in nodes_state().values()} == {"not running"}


def test_killed_manager_leaves_nothing_behind(launch, runtime_dir):
    run = launch("run", "loopback", "--headless")
    eventually(lambda: (runtime_dir / "nodes.json").exists() and
               nodes_state().get("teleop", {}).get("state") == "running")  # fmt: skip
    run.process.kill()
    run.process.wait()
    eventually(lambda: not processes_of(runtime_dir), 2.0)
    # Its locks and endpoints lie there still; the next run takes them over.
    again = launch("run", "loopback", "--headless", "--seconds", "2")
    assert again.wait() == 0, again.err


def test_killed_control_comes_back_passive_and_is_not_armed(launch, watch, standing_policy):
    launch("run", "sim", "--policy", str(standing_policy), "--headless")
    watch.until(Mode.POLICY)
    instance = watch.status.instance
    os.kill(nodes_state()["control"]["pid"], signal.SIGKILL)
    eventually(lambda: watch.mode is not None and watch.status.instance != instance, 20.0)
    time.sleep(2.0)
    assert watch.mode == Mode.PASSIVE


def test_a_second_run_is_refused(launch, runtime_dir):
    first = launch("run", "loopback", "--headless")
    eventually(lambda: (runtime_dir / "nodes.json").exists())
    second = launch("run", "loopback", "--headless", "--seconds", "1")
    assert second.wait() == 2
    assert f"a run is going on already, process {first.process.pid}" in second.err
    assert first.process.poll() is None


def test_a_node_that_cannot_start_stops_the_run(launch, runtime_dir, tmp_path):
    held = Publisher(context := zmq.Context(), prepared(runtime_dir), "low_cmd", CODECS["low_cmd"])
    run = launch("run", "loopback", "--headless", "--seconds", "2")
    assert run.wait() == 2
    assert "topic 'low_cmd' has a publisher already" in run.err
    assert "control: could not start" in run.err
    assert "Traceback" not in run.err
    held.close()
    context.term()
    assert processes_of(runtime_dir) == []


def prepared(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def test_echo_prints_messages_as_json(launch, runtime_dir):
    launch("run", "loopback", "--headless")
    eventually(lambda: (runtime_dir / "nodes.json").exists())
    echo = launch("echo", "low_state", "--count", "3", "--seconds", "20")
    assert echo.wait(30) == 0, echo.err
    rows = [json.loads(line) for line in echo.out.splitlines()]
    assert [row["seq"] for row in rows] == list(range(rows[0]["seq"], rows[0]["seq"] + 3))
    assert all(row["seq"] == row["tick"] and len(row["joint_pos"]) == 29 for row in rows)


def test_nodes_without_a_run():
    assert {row.name for row in NODES} <= set(nodes_state())


def test_a_console_that_lacks_a_package_says_so_and_the_run_goes_on(launch, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "uvicorn.py").write_text("raise ImportError('not here', name='uvicorn')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), str(ROOT)]))
    run = launch("run", "loopback", "--headless", "--console", "yes", "--seconds", "2")
    assert run.wait() == 0, run.err
    assert "console: no console: the package uvicorn is not installed; everything else" in run.err


def test_without_camera_and_gl_everything_else_works_and_each_is_one_line(
    launch, tmp_path, monkeypatch
):
    """As where neither PyOpenGL is installed nor a device or a display is there."""
    hidden = tmp_path / "hidden"
    for name in ("OpenGL", "glfw"):
        (hidden / name).mkdir(parents=True)
        text = f'raise ModuleNotFoundError("No module named {name}", name="{name}")'
        (hidden / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    run_file, out = tmp_path / "nothing.yaml", tmp_path / "out.json"
    text = (ROOT / "configs" / "runs" / "sim.yaml").read_text()
    run_file.write_text(text + "camera: {source: v4l2, device: /dev/video4711}\n")
    run = launch(
        "run", str(run_file), "--seconds", "4", "--console", "no", "--policy", "none",
        "--video", str(tmp_path / "a.mp4"), "--json", str(out),
    )  # fmt: skip
    assert run.wait() == 0, run.err
    told = json.loads(out.read_text())
    assert told["control"]["executed_ticks"] > 500 and set(told["faults"]) <= {"overrun"}
    assert told["video"].startswith("not written: no GL for rendering off screen (")
    camera, perception, viewer = (
        [line for line in run.err.splitlines() if line.startswith(f"{name}:")]
        for name in ("camera", "perception", "viewer")
    )
    assert len(camera) == len(viewer) == 1 and len(perception) <= 1, run.err
    assert camera[0].startswith("camera: no camera: ") and "everything else runs" in viewer[0]
    assert "Traceback" not in run.err


def test_the_console_prints_its_address_and_comes_back_when_killed(launch, runtime_dir):
    launch("run", "loopback", "--headless", "--console", "yes")
    state = eventually(
        lambda: (runtime_dir / "nodes.json").exists() and
        (s := nodes_state()).get("teleop", {}).get("state") == "running" and s, 40.0,
    )  # fmt: skip
    before = launch("console")
    assert before.wait() == 0 and before.out.startswith("http://127.0.0.1:"), before.err
    os.kill(state["console"]["pid"], signal.SIGKILL)
    eventually(lambda: nodes_state()["console"]["pid"] != state["console"]["pid"], 20.0)
    eventually(lambda: nodes_state()["console"]["state"] == "running", 20.0)
    after = launch("console")
    assert after.wait() == 0 and "?token=" in after.out and after.out != before.out


@pytest.mark.alone
@pytest.mark.parametrize("name", ["ppo"])
def test_the_public_policy_walks_over_the_bus(
    launch, tmp_path, public_policy: Callable[[str], Path], name: str
):
    report = tmp_path / "out.json"
    run = launch(
        "run", "sim", "--policy", str(public_policy(name)), "--seconds", "20", "--headless",
        "--command", "0.5,0,0", "--json", str(report),
    )  # fmt: skip
    assert run.wait() == 0, run.err
    got = json.loads(report.read_text())
    assert got["fell"] is False and got["modes"][-1][1] == "POLICY", got
    # Twelve seconds of walking with its start; the minute is `make acceptance`.
    assert got["mean_velocity_b"][0] == pytest.approx(0.392, abs=0.08)


@pytest.mark.acceptance
@pytest.mark.parametrize(("name", "measured"), [("ppo", 0.392), ("fastsac", 0.418)])
def test_a_minute_of_walking(
    launch, tmp_path, public_policy: Callable[[str], Path], name: str, measured: float
):
    report = tmp_path / "out.json"
    run = launch(
        "run", "sim", "--policy", str(public_policy(name)), "--seconds", "60", "--headless",
        "--command", "0.5,0,0", "--json", str(report),
    )  # fmt: skip
    assert run.wait(120) == 0, run.err
    got = json.loads(report.read_text())
    assert got["fell"] is False and got["modes"][-1][1] == "POLICY", got
    assert got["mean_velocity_b"][0] == pytest.approx(measured, abs=0.06)


# --- logs of runs that end badly ------------------------------------------------------------------


def recovered(path: Path) -> Recovered | None:
    """None while the kernel still clears the killed recorder away, and its lock with it."""
    try:
        return recover(path)
    except UserError:
        return None


def kill_and_recover(launch, runtime_dir: Path, log_dir: Path, after_s: float) -> tuple[float, Log]:
    """Kill all processes of a run at once; ms of commands that its log lacks, and the log."""
    run = launch("run", "loopback", "--headless")
    path = eventually(lambda: next(iter(log_dir.glob("*/000.mcap.partial")), None)).parent
    eventually(lambda: len(nodes_state()) == 4)
    time.sleep(after_s)
    pids = processes_of(runtime_dir)
    killed_ns = time.monotonic_ns()
    for pid in (run.process.pid, *pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()
    eventually(lambda: not processes_of(runtime_dir))
    done = eventually(lambda: recovered(path))
    assert not Log(path).damage and not done.kept
    log = Log(path)
    assert log.recovered and not any(log.lost.values())
    lost_ms = (killed_ns - int(log["low_cmd"]["stamp_ns"][-1])) * 1e-6
    shutil.rmtree(path)
    return lost_ms, log


def test_a_killed_run_has_its_log(launch, runtime_dir, log_dir, capsys):
    lost_ms, _ = kill_and_recover(launch, runtime_dir, log_dir, 1.3)
    with capsys.disabled():
        print(f"\nkill -9 of a whole run: {lost_ms:.0f} ms of commands not in the log")
    assert lost_ms < 1000.0


@pytest.mark.acceptance
def test_killed_at_twenty_moments_a_run_has_its_log(launch, runtime_dir, log_dir, capsys):
    rng = np.random.default_rng(3)
    lost = [
        kill_and_recover(launch, runtime_dir, log_dir, rng.uniform(0.5, 3.0))[0] for _ in range(20)
    ]
    with capsys.disabled():
        print(f"\nkill -9 of a whole run, 20 times: {sorted(map(round, lost))} ms not in the log")
    assert max(lost) <= 150.0


def test_a_full_disk_costs_control_nothing_and_closes_the_log(launch, watch, tmp_path, monkeypatch):
    """On a real small disk; where none can be mounted, it is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk]).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        monkeypatch.setenv("PLEXUS_LOG_DIR", str(disk))
        report = tmp_path / "out.json"
        run = launch("run", "loopback", "--headless", "--seconds", "9", "--json", str(report))
        watch.until(Mode.STAND)
        time.sleep(0.5)
        (disk / "other").write_bytes(bytes(12_000_000))  # somebody else fills it
        assert run.wait() == 0
        assert "log paused: " in run.err and "MB free on its disk" in run.err, run.err
        log = Log(next(disk.glob("2*")))
        assert not log.damage and log.end["reason"] and int(log.end["lost"]) > 100
        ended = log["low_cmd"]["stamp_ns"][-1] - log["low_cmd"]["stamp_ns"][0]
        assert 1e9 < ended < 8.5e9
        got = json.loads(report.read_text())
        assert got["modes"][-1][1] == "STAND" and got["drops"] == 0
        assert got["control"]["executed_ticks"] > 7.5 * 400
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
