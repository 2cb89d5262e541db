"""The recorder in its own process: nothing lost at start or end; killed, stalled, disk full."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from robot import clock
from robot.bus import Publisher, Subscriber
from robot.log import Log
from robot.messages import EventKind
from robot.model import load_robot
from robot.nodes import NODES
from robot.recover import recover
from robot.runs import load_run
from robot.topics import make_codecs
from tests.conftest import Launched, eventually

CODECS = make_codecs(load_robot("g1"))
TICK_S = 0.002
LOST_S = 0.150  # what SIGKILL may cost


class Speaker(threading.Thread):
    """Publishes low_cmd at 500 Hz, as control does."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.context = zmq.Context()
        self.publisher = Publisher(self.context, directory, "low_cmd", CODECS["low_cmd"])
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        message, rng = CODECS["low_cmd"].new(), np.random.default_rng(1)
        due = time.monotonic()
        while not self.ended.is_set():
            message.joint_pos_target[:] = rng.normal(size=29)
            self.publisher.send(message, clock.now_ns())
            due += TICK_S
            time.sleep(max(0.0, due - time.monotonic()))

    @property
    def sent(self) -> int:
        return self.publisher.outbox.seq

    def end(self) -> None:
        self.ended.set()
        self.join()
        time.sleep(0.05)  # what is in the socket's queue still goes out
        self.publisher.close()
        self.context.destroy(linger=0)


class Bench:
    """A runtime directory with a run in it, whose recorder can be started again and again."""

    def __init__(self, folder: Path, logs: Path, **log: Any) -> None:
        self.directory, self.logs = folder / "rt", logs
        self.directory.mkdir(mode=0o700)
        run = load_run("loopback", {"log.folder": str(logs), **{f"log.{k}": log[k] for k in log}})
        (self.directory / "run.json").write_text(run.model_dump_json())
        self.err = folder / "err.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """A recorder that is ready."""
        read_fd, write_fd = os.pipe()
        with self.err.open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot.node", "recorder", "robot.recorder",
                 str(self.directory), "--ready-fd", str(write_fd)],
                pass_fds=(write_fd,), stderr=err,
            )  # fmt: skip
        os.close(write_fd)
        assert os.read(read_fd, 1) == b"1", self.err.read_text()
        os.close(read_fd)
        return self.process

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    @property
    def folder(self) -> Path:
        return Path(json.loads((self.directory / "log.json").read_text())["folder"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(logs: Path = tmp_path / "logs", **log: Any) -> Bench:
        made.append(Bench(tmp_path, logs, **log))
        return made[-1]

    yield make
    for one in made:
        if one.process:
            one.process.kill()
            one.process.wait()


# --- killed, full ------------------------------------------------------------------------------


def kill_at_random_moments(bench: Bench, times: int) -> list[float]:
    """Seconds of messages lost, each time; each file left behind is read and recovered."""
    speaker, lost, chance = Speaker(bench.directory), [], random.Random(4)
    try:
        for number in range(times):
            process = bench.start()
            partial = bench.folder / f"{number:03d}.mcap.partial"
            eventually(lambda p=partial: "low_cmd" in Log(p).topics and len(Log(p)["low_cmd"]) > 0)
            time.sleep(chance.uniform(0.0, 0.4))
            killed_ns = clock.now_ns()
            process.kill()
            process.wait()
            seen = Log(partial).read("low_cmd", ["seq", "stamp_ns"])
            assert (np.diff(seen["seq"].astype(np.int64)) == 1).all()
            lost.append((killed_ns - int(seen["stamp_ns"][-1])) * 1e-9)
            recover(partial)
            whole = Log(partial.with_suffix(""))
            np.testing.assert_array_equal(whole["low_cmd"]["seq"], seen["seq"])
            assert whole.damage == []
    finally:
        speaker.end()
    return lost


def test_a_killed_recorder_loses_no_more_than_promised_and_its_successor_goes_on(
    bench: Callable[..., Bench],
):
    one = bench()
    assert max(kill_at_random_moments(one, 5)) <= LOST_S
    one.start()
    assert one.stop() == 0
    log = Log(one.folder)
    assert len(list(one.logs.iterdir())) == 1 and len(log.segments) == 6
    assert set(log["event"]["kind"]) == {EventKind.START, EventKind.END}
    assert log.end["reason"] == "stopped"


@pytest.mark.acceptance
def test_killed_at_twenty_moments(bench: Callable[..., Bench]):
    lost = kill_at_random_moments(bench(), 20)
    print("lost, ms:", sorted(round(s * 1e3) for s in lost))
    assert max(lost) <= LOST_S


def test_a_full_disk_is_told_on_the_bus_and_the_log_is_closed_cleanly(
    bench: Callable[..., Bench], tmp_path: Path
):
    one = bench(margin_mb=10**9)  # no disk has that
    context = zmq.Context()
    one.start()
    heard = Subscriber(context, one.directory, {"recorder": CODECS["recorder"]}, every=True)
    speaker = Speaker(one.directory)
    try:
        status: Any = eventually(lambda: (m := heard.newest()) and m.lost > 100 and m)  # type: ignore[attr-defined]  # a RecorderStatus
        assert not status.recording and status.warning.startswith("log paused: ")
        assert status.path == str(one.folder)[:200]
    finally:
        speaker.end()
        heard.close()
        context.destroy(linger=0)
    assert one.stop() == 0
    assert one.err.read_text().startswith("recorder: log paused: ")
    log = Log(one.folder)
    assert log.end["reason"] == "stopped" and int(log.end["lost"]) > 100 and log.damage == []


# --- in a run -----------------------------------------------------------------------------------


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLEXUS_LOG_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"


def recorder_of(runtime_dir: Path) -> int:
    """Process id of the run's recorder, once control runs too."""

    def found() -> int | None:
        try:
            rows = json.loads((runtime_dir / "nodes.json").read_text())["nodes"]
        except (OSError, ValueError):
            return None
        by_name = {row["name"]: row for row in rows if row["state"] == "running"}
        return by_name["recorder"]["pid"] if {"recorder", "control"} <= set(by_name) else None

    return eventually(found)


def test_a_run_leaves_one_log_with_everything_in_it(
    launch: Callable[..., Launched], logs: Path, standing_policy: Path
):
    run = launch(
        "run", "loopback", "--headless", "--seconds", "5", "--policy", str(standing_policy)
    )
    assert run.wait() == 0, run.err
    (folder,) = logs.iterdir()
    log = Log(folder)
    assert log.damage == [] and log.end["reason"] == "5 s are over" and log.end["lost"] == "0"
    for topic in ("low_state", "low_cmd", "consumed", "policy_input", "timing", "status"):
        seqs = log[topic]["seq"]
        assert seqs[0] == 1 and (np.diff(seqs.astype(np.int64)) == 1).all(), topic
    assert len(log["low_cmd"]) > 1000 and log.topics["heartbeat"].lost == 0
    assert [EventKind(kind) for kind in log["event"]["kind"]] == [EventKind.START, EventKind.END]
    assert log["event"]["text"][-1].decode().strip() == "5 s are over"
    files = {"robot.yaml", "g1.xml", "head_camera.yaml", "head_rgb_camera.yaml", "policy.onnx"}
    assert {"run.json", "realtime.json", *files} == set(log.attachments)
    assert "run loopback --headless" in log.metadata["command_line"]
    clocks = log["clock"]
    offset = clocks["realtime_ns"] - clocks["monotonic_ns"]
    assert abs(offset - int(log.metadata["clock_offset_ns"])).max() < 1e9
    times = log.read("low_cmd", ["log_time_ns", "stamp_ns"])
    late = times["log_time_ns"] - times["stamp_ns"] - int(log.metadata["clock_offset_ns"])
    assert late.min() >= 0 and np.median(late) < 5e6
    assert (np.diff([at for _, at, _ in log.messages()]) >= 0).mean() > 0.999
    assert_read_by_others(log.segments[0])


def assert_read_by_others(path: Path) -> None:
    """Two libraries that are not ours decode every message, and give the same bytes back."""
    with path.open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        by_ros2 = {channel.topic: m for _, channel, _, m in reader.iter_decoded_messages()}
    store = get_typestore(Stores.EMPTY)
    seen = set()
    with Reader(path) as bag:
        for connection in bag.connections:
            store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        for connection, _, payload in bag.messages():
            message: Any = store.deserialize_cdr(payload, connection.msgtype)
            seen.add(connection.topic)
            if connection.topic != "/low_cmd" or len(seen) < 3:  # the slowest, 500 times a second
                assert bytes(store.serialize_cdr(message, connection.msgtype)) == payload
    assert seen == set(by_ros2)
    assert {"/low_state", "/command/script", "/joint_states", "/tf", "/imu"} <= seen
    assert by_ros2["/low_cmd"].joint_pos_target[0] != 0.0


@pytest.mark.alone
def test_control_does_not_notice_a_stalled_recorder_nor_a_dead_one(
    launch: Callable[..., Launched], logs: Path, runtime_dir: Path, tmp_path: Path
):
    out = tmp_path / "out.json"
    run = launch("run", "loopback", "--headless", "--seconds", "6", "--json", str(out))
    pid = recorder_of(runtime_dir)
    time.sleep(1.0)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    assert run.wait() == 0, run.err
    assert json.loads(out.read_text())["nodes"]["recorder"] == "stopped"
    assert "recorder ended (killed by SIGKILL)" in run.err
    (folder,) = logs.iterdir()
    log = Log(folder)
    assert [path.name for path in log.segments] == ["000.mcap.partial", "001.mcap"]
    seqs = Log(log.segments[0])["low_cmd"]["seq"]
    assert seqs[0] == 1 and (np.diff(seqs.astype(np.int64)) == 1).all(), "the stall cost nothing"
    assert len(seqs) > 2.5 / TICK_S * 0.7
    ticks = log["low_cmd"]["tick"].astype(np.int64)
    stamps = log["low_cmd"]["stamp_ns"]
    # Control's own numbers go on through the stall, at its rate.
    assert (ticks[-1] - ticks[0]) / (stamps[-1] - stamps[0]) * 1e9 > 350
    assert log.end["reason"] == "6 s are over"


def test_the_recorder_starts_first_and_only_if_there_is_to_be_a_log():
    assert NODES[0].name == "recorder" and NODES[0].when(load_run("loopback"))
    assert not NODES[0].when(load_run("loopback", {"log.enabled": False}))


def test_a_log_folder_that_cannot_be_refuses_the_run(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLEXUS_LOG_DIR", str(tmp_path / "file"))
    run = launch("run", "loopback", "--headless", "--seconds", "1")
    assert run.wait() == 2
    assert "cannot hold a log: Not a directory\n" in run.err and "Traceback" not in run.err
