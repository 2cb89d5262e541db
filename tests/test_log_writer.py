"""The writer of logs: what is in a segment, rotation, full and broken disks; lockstep's clock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.records import Attachment, Chunk, Header, Metadata
from mcap.stream_reader import StreamReader
from rosbags.rosbag2 import Reader

from robot import log_writer
from robot.bus import Outbox
from robot.config import REPOSITORY, UserError
from robot.log import Log
from robot.log_writer import LogWriter, describe_run, open_log
from robot.messages import policy_id
from robot.model import load_robot
from robot.runs import RunConfig, load_run
from robot.topics import TOPICS, make_codecs

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
EPOCH_NS = 1_795_491_000_000_000_000  # 24 November 2026, 03:30:00 UTC
TICK_NS = 2_000_000


class Feed:
    """Gives a writer low_state and low_cmd of a 500 Hz run on simulated time."""

    def __init__(self, writer: LogWriter) -> None:
        self.writer, self.now = writer, 0
        self.rng = np.random.default_rng(1)
        self.boxes = {name: Outbox(CODECS[name], 7) for name in ("low_state", "low_cmd")}
        self.messages: dict[str, Any] = {name: CODECS[name].new() for name in self.boxes}
        self.messages["low_state"].imu_quat_wxyz[0] = 1.0

    def ticks(self, count: int, flush_every: int = 50) -> None:
        for tick in range(1, count + 1):
            self.now += TICK_NS
            for name, message in self.messages.items():
                position = "joint_pos" if name == "low_state" else "joint_pos_target"
                message.record[position] = self.rng.normal(size=29)
                seq = self.boxes[name].stamp(message, self.now)
                self.writer.write(name, message.payload, seq, self.now, self.now + 300_000)
            if tick % flush_every == 0:
                self.writer.flush()


def run_with(folder: Path, **log: Any) -> RunConfig:
    return load_run("loopback", {"log.folder": str(folder), **{f"log.{k}": log[k] for k in log}})


def opened(folder: Path, **log: Any) -> LogWriter:
    return open_log(run_with(folder, **log), ROBOT, CODECS, now_ns=0, epoch_ns=EPOCH_NS)


def names(writer: LogWriter) -> list[str]:
    return sorted(path.name for path in writer.folder.iterdir())


# --- a log ------------------------------------------------------------------------------------


def test_a_log_gives_back_every_message(tmp_path: Path):
    writer = opened(tmp_path)
    Feed(writer).ticks(200)
    writer.close("done")
    log = Log(writer.folder)
    assert log.damage == [] and (writer.recorded, writer.lost, writer.warning) == (400, 0, "")
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(200, 2, 29))
    np.testing.assert_array_equal(log["low_state"]["joint_pos"], drawn[:, 0])
    np.testing.assert_array_equal(log["low_cmd"]["joint_pos_target"], drawn[:, 1])
    assert log["low_cmd"]["seq"].tolist() == list(range(1, 201))
    assert log["low_cmd"].dtype == CODECS["low_cmd"].dtype


def test_every_logged_topic_has_a_channel_from_the_start(tmp_path: Path):
    writer = opened(tmp_path)
    Feed(writer).ticks(1)
    writer.close("done")
    log = Log(writer.folder)
    ours = [name for name in log.topics if not name.startswith("/")]
    assert ours == [topic.name for topic in TOPICS if topic.logged]
    assert log.topics["command.script"].channel == "/command/script"
    assert {log.topics[name].schema for name in ("command.script", "command.keyboard")} == {
        "plexus/msg/Command"
    }


def test_simulated_stamps_become_times_of_the_epoch(tmp_path: Path):
    writer = opened(tmp_path)
    Feed(writer).ticks(5)
    writer.close("done")
    times = Log(writer.folder).read("low_cmd", ["log_time_ns", "stamp_ns"])
    assert (times["log_time_ns"] - times["stamp_ns"] == EPOCH_NS + 300_000).all()
    with Reader(writer.folder / "000.mcap") as bag:
        assert bag.start_time == EPOCH_NS


def test_the_folder_is_named_by_start_run_and_id(tmp_path: Path):
    writer = opened(tmp_path)
    writer.close("done")
    run_id = writer.metadata["run_id"]
    assert len(run_id) == 16
    assert writer.folder == tmp_path / f"20261124T033000Z-loopback-{run_id[:4]}"
    assert writer.metadata["start_utc"] == "2026-11-24T03:30:00Z"


def test_metadata_and_attachments_come_before_the_first_chunk(tmp_path: Path):
    writer = opened(tmp_path)
    Feed(writer).ticks(1)
    writer.close("because")
    with (writer.folder / "000.mcap").open("rb") as stream:
        records = list(StreamReader(stream, emit_chunks=True).records)
    kinds = [type(record) for record in records]
    assert kinds[:2] == [Header, Metadata] and kinds.index(Chunk) > 4
    assert all(kinds.index(Chunk) > i for i, kind in enumerate(kinds) if kind is Attachment)
    assert records[0].profile == "ros2"  # type: ignore[attr-defined]  # a Header
    end = [r for r in records if isinstance(r, Metadata) and r.name == "end"]
    assert [r.metadata for r in end] == [{"reason": "because", "messages": "2", "lost": "0"}]


def test_a_log_describes_its_run(tmp_path: Path, standing_policy: Path):
    run = load_run("sim", {"policy": str(standing_policy), "seed": 3})
    metadata, attachments = describe_run(run, ROBOT)
    assert metadata["run"] == "sim" and metadata["robot"] == "g1"
    assert metadata["simulated"] == "true" and metadata["timing_factor"] == "10.0"
    assert {"numpy", "mcap", "pyzmq"} <= set(json.loads(metadata["versions"]))
    assert all(metadata[key] for key in ("kernel", "cpu", "python", "command_line", "format"))
    assert attachments["policy.onnx"] == standing_policy.read_bytes()
    assert metadata["policy_sha256"] == hashlib.sha256(standing_policy.read_bytes()).hexdigest()
    assert attachments["g1.xml"] == ROBOT.mjcf.read_bytes()
    assert attachments["robot.yaml"] == ROBOT.path.read_bytes()
    assert RunConfig.model_validate_json(attachments["run.json"]) == run
    if (REPOSITORY / ".git").exists():
        assert len(metadata["commit"]) == 40 and metadata["dirty"] in ("true", "false")


def test_a_description_that_cannot_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no git
    run = load_run("loopback").model_copy(update={"policy": Path("gone.onnx")})
    metadata, attachments = describe_run(run, ROBOT)
    assert "commit" not in metadata and "policy_sha256" not in metadata
    assert set(attachments) == {
        "run.json",
        "robot.yaml",
        "g1.xml",
        "head_camera.yaml",
        "head_rgb_camera.yaml",
    }


# --- segments ---------------------------------------------------------------------------------


def test_the_segment_being_written_is_partial_and_locked(tmp_path: Path):
    writer = opened(tmp_path)
    assert names(writer) == ["000.mcap.partial"]
    with (writer.folder / "000.mcap.partial").open("rb") as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer.close("done")
    assert names(writer) == ["000.mcap"]
    with (writer.folder / "000.mcap").open("rb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_was_flushed_is_in_the_file(tmp_path: Path):
    writer = opened(tmp_path)
    Feed(writer).ticks(120)  # flushed after 50 and 100
    assert len(Log(writer.folder)["low_cmd"]) == 100
    writer.close("done")
    assert len(Log(writer.folder)["low_cmd"]) == 120


def test_segments_change_with_time_and_stand_alone(tmp_path: Path, standing_policy: Path):
    run = run_with(tmp_path, rotate_s=1.0).model_copy(update={"policy": standing_policy})
    writer = open_log(run, ROBOT, CODECS, now_ns=0, epoch_ns=EPOCH_NS)
    Feed(writer).ticks(1250)
    writer.close("done")
    assert names(writer) == ["000.mcap", "001.mcap", "002.mcap"]
    whole = Log(writer.folder)
    assert whole["low_cmd"]["seq"].tolist() == list(range(1, 1251)) and whole.damage == []
    for number in range(3):
        one = Log(writer.folder / f"{number:03d}.mcap")
        assert one.metadata == {**writer.metadata, "segment": str(number)}
        assert ("policy.onnx" in one.attachments) == (number == 0)
        assert {"run.json", "robot.yaml", "g1.xml"} <= set(one.attachments)
        assert one.topics["/robot_description"].count == 1 and one.topics["/tf"].count > 0
        with Reader(writer.folder / f"{number:03d}.mcap") as bag:
            assert bag.message_count > 100


def test_segments_change_with_size(tmp_path: Path):
    writer = opened(tmp_path, rotate_mb=1)
    Feed(writer).ticks(2500)
    writer.close("done")
    sizes = [path.stat().st_size for path in sorted(writer.folder.iterdir())]
    assert len(sizes) > 1 and all(1_000_000 <= size < 1_300_000 for size in sizes[:-1])
    assert writer.bytes_written == sum(sizes)


def test_an_attachment_that_comes_later_is_in_this_and_all_further_segments(tmp_path: Path):
    writer = opened(tmp_path, rotate_s=1.0)
    feed = Feed(writer)
    feed.ticks(10)
    writer.attach("realtime.json", b"[]")
    feed.ticks(600)
    writer.close("done")
    for number in range(2):
        assert Log(writer.folder / f"{number:03d}.mcap").attachments["realtime.json"] == b"[]"


def test_a_policy_that_comes_later_is_in_one_segment_whatever_the_disk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = opened(tmp_path, rotate_s=1.0)
    feed = Feed(writer)
    feed.ticks(10)
    writer.attach("policy-aa.onnx", b"aa")
    feed.ticks(600)
    monkeypatch.setattr(log_writer, "_free", lambda where: 0)
    writer.flush()
    assert not writer.recording
    writer.attach("policy-bb.onnx", b"bb")  # nothing can be written now; it must not be forgotten
    monkeypatch.undo()
    writer._retry_at = 0
    writer.flush()
    feed.ticks(600)
    writer.close("done")
    files = [Log(writer.folder / name).attachments for name in names(writer)]
    held = [{name for name in one if name.endswith(".onnx")} for one in files]
    assert held[0] == {"policy-aa.onnx"} and len(held) >= 3
    assert [len(one) for one in held].count(1) == 2 and {"policy-bb.onnx"} in held
    assert Log(writer.folder).policies == {
        policy_id(b"aa"): "policy-aa.onnx", policy_id(b"bb"): "policy-bb.onnx",
    }  # fmt: skip


def test_a_second_writer_goes_on_in_the_same_folder(tmp_path: Path):
    first = opened(tmp_path)
    Feed(first).ticks(50)
    run = run_with(tmp_path)
    second = log_writer.make_writer(
        run, ROBOT, CODECS, first.folder, first.metadata, first.attachments
    )
    Feed(second).ticks(50)
    second.close("done")
    assert names(first) == ["000.mcap.partial", "001.mcap"]
    first.close("done")
    assert len(Log(first.folder)["low_cmd"]) == 100


def test_a_closed_writer_counts_and_writes_nothing(tmp_path: Path):
    writer = opened(tmp_path)
    writer.close("done")
    Feed(writer).ticks(50)
    writer.close("again")
    assert writer.lost == 100 and names(writer) == ["000.mcap"]


def test_without_viewer_topics_only_ours_are_there(tmp_path: Path):
    writer = LogWriter(tmp_path / "log", CODECS, {"format": "1"}, {}, EPOCH_NS)
    Feed(writer).ticks(50)
    writer.close("done")
    assert all(not name.startswith("/") for name in Log(writer.folder).topics)


# --- disks that are full or broken ------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "plexus-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_below_the_margin_recording_pauses_cleanly_and_goes_on(small_disk: Path):
    writer = opened(small_disk, margin_mb=1)
    feed = Feed(writer)
    feed.ticks(100)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(os.statvfs(small_disk).f_bavail * 4096 - 900_000)))
    feed.ticks(50)  # these are flushed still, then space is looked at
    assert not writer.recording and "log paused: 0 MB free" in writer.warning
    feed.ticks(50)
    assert (writer.recorded, writer.lost) == (300, 100)
    os.truncate(filler, filler.stat().st_size - 600_000)
    feed.ticks(50)  # 1.5 MB: more than the margin, less than twice of it
    assert not writer.recording and writer.lost == 200
    filler.unlink()
    writer.flush()
    assert writer.recording and writer.warning == ""
    feed.ticks(50)
    writer.close("done")
    log = Log(writer.folder)
    assert names(writer) == ["000.mcap", "001.mcap"] and log.damage == []
    assert log["low_cmd"]["seq"].tolist() == [*range(1, 151), *range(251, 301)]
    assert log.topics["low_cmd"].lost == 100
    assert log.end == {"reason": "done", "messages": "400", "lost": "200"}


def test_a_log_that_is_closed_while_paused_still_says_its_end(small_disk: Path):
    writer = opened(small_disk, margin_mb=5)
    Feed(writer).ticks(1)
    (small_disk / "filler").write_bytes(bytes(2_000_000))
    writer.flush()
    assert not writer.recording
    writer.close("stopped")
    assert Log(writer.folder).end["reason"] == "stopped" and names(writer)[0] == "000.mcap"


def test_a_disk_without_any_space_costs_messages_and_nothing_else(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_writer, "RETRY_NS", 0)
    writer = opened(small_disk, margin_mb=0)  # the margin does not help
    feed = Feed(writer)
    feed.ticks(50)
    filler = small_disk / "filler"
    with (
        filler.open("wb", buffering=0) as stream,
        pytest.raises(OSError, match="No space left"),
    ):
        while True:
            stream.write(bytes(4096))
    feed.ticks(500)
    assert not writer.recording and "No space left on device" in writer.warning
    assert writer.lost > 0 and writer.recorded + writer.lost == 1100
    filler.unlink()
    feed.ticks(100)
    writer.close("done")
    log = Log(writer.folder)
    assert len(log["low_cmd"]) + len(log["low_state"]) == writer.recorded
    assert log["low_cmd"]["seq"][:50].tolist() == list(range(1, 51))
    assert log.end["lost"] == str(writer.lost)


def test_a_write_that_the_kernel_refuses_abandons_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_writer, "RETRY_NS", 0)
    writer = opened(tmp_path)
    feed = Feed(writer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Amid a chunk: one that is whole, and only its index refused, is counted as lost and yet there.
    resource.setrlimit(resource.RLIMIT_FSIZE, (380_000, hard))
    try:
        feed.ticks(800)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    feed.ticks(50)
    writer.close("done")
    assert names(writer) == ["000.mcap.partial", "001.mcap"]
    log = Log(writer.folder)
    assert writer.lost > 0 and writer.recorded + writer.lost == 1700
    assert len(log["low_cmd"]) + len(log["low_state"]) == writer.recorded
    assert log.topics["low_cmd"].lost + log.topics["low_state"].lost == writer.lost


def test_a_disk_too_small_at_the_start_costs_all_messages(tmp_path: Path):
    writer = opened(tmp_path, margin_mb=10**9)
    Feed(writer).ticks(50)
    assert not writer.recording and writer.lost == 100
    assert writer.warning.startswith("log paused: ") and writer.warning.endswith("MB are kept")
    writer.close("done")


def test_a_folder_that_cannot_be_is_a_mistake_of_the_user(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/2026.*: cannot hold a log: Not a directory$"):
        opened(tmp_path / "file")


def test_flushing_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (time.sleep(0.5), real(descriptor))[1])
    writer = opened(tmp_path, rotate_s=0.09)
    begin = time.monotonic()
    Feed(writer).ticks(150)
    assert time.monotonic() - begin < 0.4
    writer.close("done")
    assert names(writer) == [f"{number:03d}.mcap" for number in range(4)]
