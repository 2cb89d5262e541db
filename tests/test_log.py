"""Reading: whatever is asked equals slicing the whole; damage is left out, named, and repaired."""

from __future__ import annotations

import fcntl
import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, Writer
from rosbags.rosbag2 import Reader

from robot.chunk import unpack_chunk
from robot.columns import make_layout
from robot.config import UserError
from robot.log import Log, recover
from robot.messages import Command, message_text
from robot.model import load_robot
from robot.segment import Segment
from robot.topics import TOPICS, make_codecs

CODECS = make_codecs(load_robot("g1"))
T0 = 1_795_500_000_000_000_000
TICK = 2_000_000  # ns
QOS = "[]"


def lengths_of(codec: Any) -> str:
    return json.dumps({s.name: s.count for s in codec.slots if s.count_offset >= 0})


def start(stream: Any, segment: int, compression: CompressionType) -> Writer:
    writer = Writer(stream, compression=compression)
    writer.start(profile="ros2", library="test")
    writer.add_metadata("plexus", {"format": "1", "run": "sim", "segment": str(segment)})
    writer.add_attachment(T0, T0, "robot.yaml", "text/plain", b"name: g1\n" * 20)
    return writer


def register(writer: Writer, topics: tuple[str, ...]) -> dict[str, int]:
    channels = {}
    for name in topics:
        codec = CODECS[name]
        schema = writer.register_schema(f"plexus/msg/{codec.name}", "ros2msg", codec.text.encode())
        channels[name] = writer.register_channel(
            "/" + name.replace(".", "/"), "cdr", schema,
            {"offered_qos_profiles": QOS, "plexus_topic": name, "lengths": lengths_of(codec)},
        )  # fmt: skip
    return channels


def write_segment(
    path: Path,
    ticks: range,
    topics: tuple[str, ...] = ("low_state", "command.script", "status"),
    per_chunk: int = 5,
    compression: CompressionType = CompressionType.ZSTD,
    end: bool = True,
) -> Path:
    """One file: low_state every tick, the other topics every other tick."""
    with path.open("wb") as stream:
        writer = start(stream, int(path.name[:3]), compression)
        channels = register(writer, topics)
        for tick in ticks:
            for number, name in enumerate(topics):
                if number and tick % 2:
                    continue
                message = CODECS[name].new()
                seq = tick // 2 + 1 if number else tick + 1
                message.stamp(7 + number, seq, tick * TICK)
                if name == "low_state":
                    message.joint_pos[:] = tick + np.arange(29) / 100
                    message.tick = tick
                if name == "status":
                    message.reason = f"tick {tick}"
                at = T0 + tick * TICK
                payload: Any = message.payload
                writer.add_message(channels[name], at, payload, at - 1000, seq)
            if tick % per_chunk == per_chunk - 1:
                writer.flush()
        if end:
            writer.add_metadata("end", {"reason": "done", "messages": "0", "lost": "0"})
        writer.finish()
    return path


def write_log(folder: Path, segments: int = 3, ticks: int = 30, **options: Any) -> Path:
    folder.mkdir()
    for i in range(segments):
        write_segment(folder / f"{i:03d}.mcap", range(i * ticks, (i + 1) * ticks), **options)
    return folder


def file_records(data: bytes) -> list[tuple[int, int, int]]:
    """Opcode, begin and end of every record of the file, found without our reader."""
    at, found = 8, []
    while at < len(data) - 8:
        opcode, length = struct.unpack_from("<BQ", data, at)
        found.append((opcode, at, at + 9 + length))
        at += 9 + length
    return found


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("logs") / "a")


@pytest.fixture(scope="module")
def log(log_path: Path) -> Log:
    return Log(log_path)


# --- reading ------------------------------------------------------------------------------------


def test_all_files_of_a_run_are_one_log_in_order(log: Log) -> None:
    state = log["low_state"]
    assert state["tick"].tolist() == list(range(90))
    assert state["seq"].tolist() == list(range(1, 91))
    np.testing.assert_array_equal(state["joint_pos"][41], 41 + np.arange(29) / 100)
    assert log["status"]["reason"][3].rstrip() == b"tick 6"
    assert [p.name for p in log.segments] == ["000.mcap", "001.mcap", "002.mcap"]
    assert log.damage == [] and log.check() == []


def test_what_a_log_says_of_itself(log: Log) -> None:
    assert log.metadata["run"] == "sim" and log.metadata["segment"] == "0"
    assert log.end["reason"] == "done"
    assert log.attachments == {"robot.yaml": b"name: g1\n" * 20}
    assert (log.start_ns, log.end_ns) == (T0, T0 + 89 * TICK)
    topic = log.topics["command.script"]
    assert (topic.name, topic.channel, topic.schema) == (
        "command.script", "/command/script", "plexus/msg/Command",
    )  # fmt: skip
    assert (topic.count, topic.size, topic.lost) == (45, CODECS["command.script"].size, 0)
    assert (topic.first_ns, topic.last_ns) == (T0, T0 + 88 * TICK)


@pytest.mark.parametrize("name", [topic.name for topic in TOPICS])
def test_the_layout_from_the_text_is_the_layout_of_the_message(name: str) -> None:
    codec = CODECS[name]
    assert make_layout(codec.text, lengths_of(codec)).dtype == codec.dtype


@settings(max_examples=60, deadline=None)
@given(
    fields=st.lists(
        st.sampled_from(
            ["log_time_ns", "seq", "joint_pos", "joint_pos[0]", "joint_pos[28]", "imu_gyro[1]",
             "tick", "joint_vel"]
        ), min_size=1, unique=True,
    ),
    between=st.none() | st.tuples(st.floats(-0.1, 0.3), st.floats(-0.1, 0.3)),
)  # fmt: skip
def test_any_fields_and_any_time_equal_a_slice_of_the_whole(
    log: Log, fields: list[str], between: tuple[float, float] | None
) -> None:
    whole = log["low_state"]
    times = T0 + whole["tick"].astype(np.int64) * TICK
    keep = np.ones(len(whole), bool)
    if between is not None:
        low, high = (log.start_ns + round(t * 1e9) for t in between)
        keep = (times >= low) & (times < high)
    read = log.read("low_state", fields, between)
    assert list(read.dtype.names or ()) == fields
    for name in fields:
        column, _, index = name.rstrip("]").partition("[")
        expected = times if name == "log_time_ns" else whole[column]
        np.testing.assert_array_equal(read[name], expected[keep, int(index)] if index else
                                      expected[keep])  # fmt: skip
    assert (log.read("low_state", None, between) == whole[keep]).all()


@settings(max_examples=30, deadline=None)
@given(
    topics=st.lists(st.sampled_from(["low_state", "command.script", "status"]), unique=True),
    between=st.none() | st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)),
)
def test_messages_come_in_the_order_of_receipt(
    log: Log, topics: list[str], between: tuple[float, float] | None
) -> None:
    got = [(name, at) for name, at, _ in log.messages(*topics, between=between)]
    low, high = (-1, 1e9) if between is None else between
    expected = [
        (name, T0 + tick * TICK)
        for tick in range(90)
        for name in ("low_state", "command.script", "status")
        if (name in topics or not topics) and not (name != "low_state" and tick % 2)
        if round(low * 1e9) <= tick * TICK < round(high * 1e9)
    ]
    assert got == expected


def test_a_message_is_the_bytes_that_travelled(log: Log) -> None:
    payloads = [payload for _, _, payload in log.messages("status")]
    codec = CODECS["status"]
    # Counts and padding included, also where one file's messages follow another's.
    assert log["status"].tobytes() == b"".join(bytes(payload[4:]) for payload in payloads)
    assert all(codec.refusal(payload, len(payload)) == "" for payload in payloads)
    body = np.frombuffer(payloads[4][4:], codec.dtype)[0]
    assert body == log["status"][4]


def test_only_the_chunks_that_hold_what_is_asked_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "000.mcap"
    with path.open("wb") as stream:
        writer = start(stream, 0, CompressionType.LZ4)
        channels = register(writer, ("low_state", "status"))
        for i in range(40):  # every fourth chunk holds a status, the others ten states
            name = "low_state" if i % 4 else "status"
            for k in range(10):
                at = T0 + (i * 10 + k) * TICK
                payload: Any = CODECS[name].new().payload
                writer.add_message(channels[name], at, payload, at, k)
            writer.flush()
        writer.finish()
    opened: list[int] = []
    unpack = Segment.unpack
    monkeypatch.setattr(
        Segment, "unpack", lambda self, f, chunk: opened.append(chunk) or unpack(self, f, chunk)
    )
    assert len(Log(path).read("status", ["seq"])) == 100 and len(opened) == 10
    opened.clear()
    assert len(Log(path).read("status", ["seq"], between=(0.0, 0.2))) == 30 and len(opened) == 3
    opened.clear()
    assert len(Log(path).read("low_state", ["seq"], between=(0.81, 0.82))) == 0
    assert opened == []


def test_memory_goes_with_what_is_asked(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "000.mcap", range(6000), ("low_state",), per_chunk=50)
    log = Log(path)
    tracemalloc.start()
    column = log.read("low_state", ["joint_pos[3]"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert column["joint_pos[3]"].tolist() == [tick + 0.03 for tick in range(6000)]
    assert peak < 4e6 < CODECS["low_state"].size * 6000 * 0.8  # 48 kB of values, and the buffer


def test_lost_messages_are_counted_per_publisher(tmp_path: Path) -> None:
    path = tmp_path / "000.mcap"
    with path.open("wb") as stream:
        writer = start(stream, 0, CompressionType.ZSTD)
        channel = register(writer, ("heartbeat",))["heartbeat"]
        for instance, seq in ((1, 5), (1, 6), (1, 9), (2, 1), (2, 3), (1, 10), (2, 2)):
            message = CODECS["heartbeat"].new()
            message.stamp(instance, seq, 0)
            payload: Any = message.payload
            writer.add_message(channel, T0, payload, T0, seq)
        writer.finish()
    assert Log(path).topics["heartbeat"].lost == 2  # 7 and 8 of the first


def test_a_topic_without_fixed_length_is_listed_timed_and_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "000.mcap"
    with path.open("wb") as stream:
        writer = start(stream, 0, CompressionType.ZSTD)
        register(writer, ("status",))
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data\n")
        channel = writer.register_channel("/robot_description", "cdr", schema, {})
        for i in range(3):
            text = b"\0\1\0\0" + struct.pack("<I", i + 1) + b"x" * i + b"\0"
            writer.add_message(channel, T0 + i, text, T0, i)
        writer.finish()
    log = Log(path)
    assert list(log.topics) == ["status", "/robot_description"]
    assert log.topics["/robot_description"].dtype is None
    assert len(log["status"]) == 0
    times = log.read("/robot_description", ["log_time_ns"])["log_time_ns"]
    assert times.tolist() == [T0, T0 + 1, T0 + 2]
    assert [len(p) for _, _, p in log.messages("/robot_description")] == [9, 10, 11]
    with pytest.raises(UserError, match=r"std_msgs/msg/String.*vary in length"):
        log["/robot_description"]


def test_the_layout_in_the_file_counts_and_not_the_installed_one(tmp_path: Path) -> None:
    text = message_text(Command).replace(
        "uint8 source", "float32 urgency # added later [1]\nuint8 source"
    )
    assert text != message_text(Command)
    layout = make_layout(text, lengths_of(CODECS["command.script"]))
    assert layout.dtype is not None
    path = tmp_path / "000.mcap"
    with path.open("wb") as stream:
        writer = start(stream, 0, CompressionType.ZSTD)
        schema = writer.register_schema("plexus/msg/Command", "ros2msg", text.encode())
        channel = writer.register_channel(
            "/command/script", "cdr", schema,
            {"plexus_topic": "command.script", "lengths": lengths_of(CODECS["command.script"])},
        )  # fmt: skip
        body = np.zeros(1, layout.dtype)
        body["urgency"], body["source"], body["velocity"] = 0.5, 1, (1, 2, 3)
        raw = bytearray(b"\0\1\0\0" + body.tobytes())
        for at, count in layout.counts:
            struct.pack_into("<I", raw, 4 + at, count)
        writer.add_message(channel, T0, bytes(raw), T0, 1)
        writer.finish()
    read = Log(path)["command.script"]
    assert read["urgency"].tolist() == [0.5] and read["velocity"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("compression", list(CompressionType))
def test_every_compression_is_read(tmp_path: Path, compression: CompressionType) -> None:
    whole = write_segment(tmp_path / "000.mcap", range(20), compression=compression)
    assert len(Log(whole)["low_state"]) == 20
    cut = tmp_path / "001.mcap.partial"
    cut.write_bytes(whole.read_bytes()[:-40])
    assert len(Log(cut)["low_state"]) == 20


def test_messages_that_do_not_fit_their_schema_are_not_given_out(tmp_path: Path) -> None:
    path = tmp_path / "000.mcap"
    message = CODECS["status"].new()
    good = bytes(message.payload)
    wrong_count = bytearray(good)
    slot = next(s for s in CODECS["status"].slots if s.name == "reason")
    struct.pack_into("<I", wrong_count, 4 + slot.count_offset, 12)
    with path.open("wb") as stream:
        writer = start(stream, 0, CompressionType.ZSTD)
        channel = register(writer, ("status",))["status"]
        for payload in (good, good[:-1], bytes(wrong_count), b"\0\0" + good[2:], b"", good):
            writer.add_message(channel, T0, payload, T0, 1)
        writer.finish()
    log = Log(path)
    assert len(log["status"]) == 2
    assert log.damage == ["000.mcap: messages of status that do not fit its schema are skipped"]


def test_mistakes_are_one_sentence(log: Log, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"topic 'low' is unknown; available: low_state, "):
        log["low"]
    with pytest.raises(UserError, match=r"low_state: field 'q' is unknown; available: .*tick"):
        log.read("low_state", ["q"])
    with pytest.raises(UserError, match=r"joint_pos has 29 elements, expected 0 to 28"):
        log.read("low_state", ["joint_pos[29]"])
    with pytest.raises(UserError, match=r"tick has 1 elements, expected no index"):
        log.read("low_state", ["tick[0]"])
    with pytest.raises(UserError, match="no such log"):
        Log(tmp_path / "none")
    with pytest.raises(UserError, match=r"got no file like 000\.mcap"):
        Log(tmp_path)
    (tmp_path / "000.mcap").write_bytes(b"hello" * 100)
    with pytest.raises(UserError, match="got no readable record"):
        Log(tmp_path)
    (tmp_path / "000.mcap").write_bytes(b"")
    with pytest.raises(UserError, match="got no readable record"):
        Log(tmp_path / "000.mcap")
    (tmp_path / "001.mcap").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        Log(tmp_path)


def test_an_independent_reader_opens_the_log(log_path: Path) -> None:
    with Reader(log_path / "001.mcap") as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts == {"/low_state": 30, "/command/script": 15, "/status": 15}


# --- damage -------------------------------------------------------------------------------------


def originals(log: Log) -> dict[str, dict[tuple[int, int], bytes]]:
    """Every message of a log by topic, instance and seq."""
    out: dict[str, dict[tuple[int, int], bytes]] = {name: {} for name in log.topics}
    for name, _, payload in log.messages():
        instance, seq = struct.unpack_from("<QQ", payload, 4 + 16)
        out[name][instance, seq] = bytes(payload)
    return out


def assert_only_originals(log: Log, known: dict[str, dict[tuple[int, int], bytes]]) -> int:
    """Everything that is given out was written so; returns how many messages there are."""
    found = originals(log)
    for name, messages in found.items():
        assert messages.items() <= known[name].items()
        assert len(log[name]) == len(messages)
    return sum(map(len, found.values()))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any]:
    path = tmp_path_factory.mktemp("small") / "000.mcap"
    write_segment(path, range(16), ("low_state", "heartbeat"), per_chunk=4)
    return path.read_bytes(), originals(Log(path))


def whole_messages(data: bytes, cut: int) -> int:
    """Messages of chunks that lie before `cut`, counted by hand: 4 states and 2 heartbeats each."""
    return sum(6 for opcode, _, end in file_records(data) if opcode == 6 and end <= cut)


def test_a_cut_at_every_byte_of_the_last_chunk_loses_nothing_before_it(
    small: tuple[bytes, Any], tmp_path: Path
) -> None:
    data, known = small
    begin, end = [(b, e) for opcode, b, e in file_records(data) if opcode == 6][-1]
    path = tmp_path / "000.mcap.partial"
    for cut in range(begin, end + 1):
        path.write_bytes(data[:cut])
        log = Log(path)
        assert assert_only_originals(log, known) == whole_messages(data, cut)
        assert len(log.damage) == 1 and log.check() == log.damage
        assert ("cut by the file's end" in log.damage[0]) == (begin < cut < end)


def test_a_cut_anywhere_loses_nothing_before_it(small: tuple[bytes, Any], tmp_path: Path) -> None:
    data, known = small
    path = tmp_path / "000.mcap.partial"
    rng = random.Random(1)
    readable = 0
    for cut in [rng.randrange(len(data)) for _ in range(2000)]:
        path.write_bytes(data[:cut])
        try:
            log = Log(path)
        except UserError:
            assert cut <= next(e for opcode, _, e in file_records(data) if opcode == 0x0C)
            continue
        readable += 1
        assert assert_only_originals(log, known) == whole_messages(data, cut)
        assert log.damage
    assert readable > 1500


@pytest.mark.parametrize("finished", [True, False])
def test_a_flipped_bit_is_reported_where_it_costs_messages(
    small: tuple[bytes, Any], tmp_path: Path, finished: bool
) -> None:
    data, known = small
    if not finished:
        data = data[: next(b for opcode, b, _ in file_records(data) if opcode == 0x0F)]
    path = tmp_path / "000.mcap"
    rng = random.Random(2)
    total, losses = whole_messages(data, len(data)), 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        log = Log(path)
        log.check()
        count = assert_only_originals(log, known)
        losses += count < total
        assert count == total or log.damage
        assert count >= total - 6 or any("description" in line for line in log.damage)
    assert losses > 100  # the test met what it is about


def test_every_bit_of_a_chunks_head_is_either_harmless_or_reported(
    small: tuple[bytes, Any], tmp_path: Path
) -> None:
    data, known = small
    path = tmp_path / "000.mcap.partial"
    end = next(b for opcode, b, _ in file_records(data) if opcode == 0x0F)
    begin = [b for opcode, b, _ in file_records(data) if opcode == 6][1]
    for bit in range(8 * 60):  # kind, length, times, sizes, checksum, compression
        flipped = bytearray(data[:end])
        flipped[begin + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        log = Log(path)
        count = assert_only_originals(log, known)
        assert count >= 18 and (count == 24 or len(log.damage) == 1)
        assert log.whole_records == (count == 24)


def test_a_tail_of_zeros_is_told(small: tuple[bytes, Any], tmp_path: Path) -> None:
    data, known = small
    cut = [e for opcode, _, e in file_records(data) if opcode == 7][2]
    path = tmp_path / "000.mcap.partial"
    path.write_bytes(data[:cut] + bytes(5000))
    log = Log(path)
    assert assert_only_originals(log, known) == whole_messages(data, cut) > 0
    assert log.damage == [
        f"000.mcap.partial: holds nothing but zeros from byte {cut} to its end at {cut + 5000}"
    ]


def chunk_record(packed: bytes, size: int, crc: int, compression: bytes) -> bytes:
    content = struct.pack("<QQQI", T0, T0, size, crc)
    content += struct.pack("<I", len(compression)) + compression
    content += struct.pack("<Q", len(packed)) + packed
    return struct.pack("<BQ", 6, len(content)) + content


@pytest.mark.parametrize(
    "record",
    [
        struct.pack("<BQ", 6, 2**60) + bytes(100),
        struct.pack("<BQ", 12, 2**63) + bytes(100),
        chunk_record(b"x" * 50, 2**40, 1, b"zstd"),
        chunk_record(zstandard.compress(bytes(200_000_000)), 1000, 1, b"zstd"),
        chunk_record(lz4.frame.compress(bytes(200_000_000)), 1000, 1, b"lz4"),
        chunk_record(lz4.frame.compress(bytes(200_000_000), store_size=False), 1000, 1, b"lz4"),
        chunk_record(b"x" * 50, 1000, 1, b"lzma"),
        struct.pack("<BQ", 12, 12) + struct.pack("<III", 2**31, 2**31, 2**31),
    ],
    ids=["chunk", "metadata", "size", "zstd", "lz4", "lz4-unsized", "unknown", "map"],
)
def test_lengths_are_not_believed(small: tuple[bytes, Any], tmp_path: Path, record: bytes) -> None:
    data, known = small
    chunks = [b for opcode, b, _ in file_records(data) if opcode == 6]
    path = tmp_path / "000.mcap.partial"
    path.write_bytes(data[: chunks[1]] + record + data[chunks[1] :])
    tracemalloc.start()
    log = Log(path)
    count = assert_only_originals(log, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == whole_messages(data, len(data))  # what follows is found again
    assert log.damage and peak < 10e6


def test_a_chunk_larger_than_any_of_ours_is_not_unpacked() -> None:
    packed = zstandard.compress(bytes(300 * 2**20))
    with pytest.raises(Exception, match="at most 268435456 are read"):
        unpack_chunk(memoryview(chunk_record(packed, 300 * 2**20, 0, b"zstd")))


def test_a_broken_index_costs_nothing(small: tuple[bytes, Any], tmp_path: Path) -> None:
    data, known = small
    indexes = [(b, e) for opcode, b, e in file_records(data) if opcode == 7]
    path = tmp_path / "000.mcap"
    for at in range(*indexes[2]):
        flipped = bytearray(data)
        flipped[at] ^= 0x81
        path.write_bytes(flipped)
        log = Log(path)
        assert assert_only_originals(log, known) == whole_messages(data, len(data))


def test_a_damaged_file_does_not_hide_the_others(log_path: Path, tmp_path: Path) -> None:
    folder = write_log(tmp_path / "b")
    (folder / "001.mcap").write_bytes(b"\0" * 500)
    log = Log(folder)
    assert log["low_state"]["tick"].tolist() == [*range(30), *range(60, 90)]
    assert log.topics["low_state"].lost == 30
    assert log.damage[0].startswith("001.mcap: ")


# --- repair -------------------------------------------------------------------------------------


def cut_log(tmp_path: Path, drop: int = 60) -> Path:
    """A log whose last file was cut off within its last chunks."""
    folder = write_log(tmp_path / "cut", segments=2)
    last = folder / "001.mcap"
    data = last.read_bytes()
    chunks = [b for opcode, b, _ in file_records(data) if opcode == 6]
    (folder / "001.mcap.partial").write_bytes(data[: chunks[-1] + drop])
    last.unlink()
    return folder


def test_recover_writes_a_whole_file_with_everything_that_was_readable(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    before = Log(folder)
    cut = before._segments[1].cut
    known = originals(before)
    done = recover(folder)
    assert done.segments == [folder / "001.mcap"] and done.kept == [] and len(done.damage) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["000.mcap", "001.mcap"]
    after = Log(folder)
    assert originals(after) == known and after.damage == [] and after.recovered
    assert after._segments[1].metadata["plexus"]["segment"] == "1"
    told = after._segments[1].metadata["recovered"]
    assert int(told["messages"]) == done.messages == sum(
        1 for name, messages in known.items() for _, seq in messages
        if seq > (30 if name == "low_state" else 15)
    )  # fmt: skip
    assert int(told["cut_at"]) == cut and told["source"] == "001.mcap.partial"
    with Reader(folder / "001.mcap") as reader:  # an independent reader needs a whole file
        assert sum(c.msgcount for c in reader.connections) == done.messages


def test_recover_keeps_time_and_number_of_every_message(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    before = Log(folder)
    stamps = [(n, t) for n, t, _ in before.messages()]
    recover(folder)
    assert [(n, t) for n, t, _ in Log(folder).messages()] == stamps
    with Reader(folder / "001.mcap") as reader:
        times = [t for c, t, _ in reader.messages() if c.topic == "/low_state"]
    assert times[0] == T0 + 30 * TICK


def test_a_second_call_finds_nothing_to_do(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    recover(folder)
    written = (folder / "001.mcap").read_bytes()
    assert recover(folder).segments == []
    assert recover(folder / "001.mcap").segments == []
    assert recover(folder / "001.mcap.partial").segments == []
    assert (folder / "001.mcap").read_bytes() == written


def test_what_cannot_be_copied_whole_is_kept(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    partial = folder / "001.mcap.partial"
    data = bytearray(partial.read_bytes())
    begin, end = [(b, e) for opcode, b, e in file_records(bytes(data)) if opcode == 6][1]
    data[(begin + end) // 2] ^= 1
    partial.write_bytes(data)
    done = recover(folder)
    assert [p.name for p in done.kept] == ["001.mcap.partial.broken"]
    assert done.kept[0].read_bytes() == data and not partial.exists()
    assert len(Log(folder)["low_state"]) == 30 + 20  # one chunk flipped, one cut
    assert recover(folder).segments == []


def test_a_finished_file_with_a_broken_chunk_is_repaired_on_request(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "c", segments=1)
    path = folder / "000.mcap"
    data = bytearray(path.read_bytes())
    begin, end = [(b, e) for opcode, b, e in file_records(bytes(data)) if opcode == 6][1]
    data[(begin + end) // 2] ^= 1
    path.write_bytes(data)
    assert recover(folder).segments == []  # it has its end; only a full read would show
    done = recover(path)
    assert done.segments == [path] and [p.name for p in done.kept] == ["000.mcap.broken"]
    after = Log(folder)
    assert after.check() == [] and len(after["low_state"]) == 25


def test_a_length_that_only_seems_to_be_cut_keeps_the_original(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "e", segments=1)
    data = bytearray((folder / "000.mcap").read_bytes())
    begin = [b for opcode, b, _ in file_records(bytes(data)) if opcode == 6][-1]
    data[begin + 6] ^= 1  # a length beyond the file, in a file that has its end
    data[-15] ^= 1  # and no summary to tell of it
    (folder / "000.mcap").write_bytes(data)
    done = recover(folder)
    assert [p.name for p in done.kept] == ["000.mcap.broken"]
    assert len(Log(folder)["low_state"]) == 25


def test_nothing_readable_is_set_aside_and_never_deleted(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "d", segments=1)
    (folder / "001.mcap.partial").write_bytes(b"\x89MCAP0\r\n\x01")
    done = recover(folder)
    assert done.segments == [] and [p.name for p in done.kept] == ["001.mcap.partial.broken"]
    (folder / "001.mcap.partial").write_bytes(b"")
    assert [p.name for p in recover(folder).kept] == ["001.mcap.partial.broken2"]
    assert len(Log(folder)["low_state"]) == 30


def test_a_repair_that_was_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    partial = folder / "001.mcap.partial"
    data = partial.read_bytes()
    (folder / "001.mcap.recovering").write_bytes(data[:1000])  # cut off while it wrote
    recover(folder)
    expected = originals(Log(folder))
    partial.write_bytes(data)  # cut off before the original was deleted
    assert originals(Log(folder)) == expected
    done = recover(folder)
    assert done.segments == [] and done.kept[0].read_bytes() == data
    assert sorted(p.name for p in folder.iterdir()) == [
        "000.mcap", "001.mcap", "001.mcap.partial.broken",
    ]  # fmt: skip


def test_out_leaves_the_originals_alone(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = recover(folder, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert done.segments == [tmp_path / "out" / "001.mcap"]
    assert originals(Log(tmp_path / "out")) == originals(Log(folder))
    with pytest.raises(UserError, match="exists already"):
        recover(folder / "001.mcap.partial", tmp_path / "out" / "001.mcap")


def test_a_file_that_is_being_written_is_not_recovered(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    partial = folder / "001.mcap.partial"
    with partial.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="a recorder is writing it"):
            recover(folder)
        assert len(Log(folder)["low_state"]) >= 30  # reading it is fine
    assert partial.exists() and len(recover(folder).segments) == 1


def test_a_log_goes_on_reading_when_its_file_gets_its_final_name(tmp_path: Path) -> None:
    folder = cut_log(tmp_path)
    log = Log(folder)
    known = originals(log)
    (folder / "001.mcap.partial").rename(folder / "001.mcap")
    assert originals(log) == known


def test_every_cut_is_recovered(small: tuple[bytes, Any], tmp_path: Path) -> None:
    data, known = small
    rng = random.Random(3)
    for number in range(40):
        cut = rng.randrange(400, len(data))
        path = tmp_path / f"{number:03d}.mcap.partial"
        path.write_bytes(data[:cut])
        done = recover(path)
        assert done.messages == whole_messages(data, cut)
        after = Log(done.segments[0])
        assert after.damage == [] and assert_only_originals(after, known) == done.messages
