"""MCAP files: what the reference reader and rosbags find is what was written, to the last CRC."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.stream_reader import CRCValidationError, StreamReader

from robot import mcap_file
from robot.mcap_file import McapFile

ABOUT = {"offered_qos_profiles": "[]"}
MESSAGES = [
    # channel, sequence, log time, publish time, payload
    (1, 1, 1_000, 990, b"\0\1\0\0aaaa"),
    (2, 7, 1_000, 995, b"\0\1\0\0b"),
    (1, 2, 900, 2**63, b"\0\1\0\0"),
    (1, 2**32 - 1, 5_000, 0, b"\0\1\0\0" + bytes(5000)),
]


def written(messages: list[tuple[int, int, int, int, bytes]], flush_after: int = 2) -> bytes:
    stream = io.BytesIO()
    file = McapFile(stream, "ros2", "test")
    file.metadata("plexus", {"format": "1"})
    file.attachment("a.json", "application/json", b"{}", 17)
    schema = file.schema("plexus/msg/A", "ros2msg", "uint8 a\n")
    assert file.channel("/a", "cdr", schema, ABOUT) == 1
    assert file.channel("/b", "cdr", schema, {}) == 2
    for i, (channel, sequence, log_ns, publish_ns, payload) in enumerate(messages):
        file.message(channel, sequence, log_ns, publish_ns, memoryview(payload))
        if (i + 1) % flush_after == 0:
            file.flush()
    file.metadata("end", {"reason": "done"})
    file.finish()
    assert file.size == len(stream.getvalue())
    return stream.getvalue()


def test_the_reference_reader_finds_every_record():
    reader = make_reader(io.BytesIO(written(MESSAGES)), validate_crcs=True)
    found = [
        (channel.id, m.sequence, m.log_time, m.publish_time, m.data)
        for _, channel, m in reader.iter_messages(log_time_order=False)
    ]
    assert found == MESSAGES
    assert [(m.name, m.metadata) for m in reader.iter_metadata()] == [
        ("plexus", {"format": "1"}), ("end", {"reason": "done"}),
    ]  # fmt: skip
    (attachment,) = reader.iter_attachments()
    assert (attachment.name, attachment.media_type, attachment.data, attachment.log_time) == (
        "a.json", "application/json", b"{}", 17,
    )  # fmt: skip


def test_the_summary_counts_and_indexes():
    summary = make_reader(io.BytesIO(written(MESSAGES))).get_summary()
    assert summary is not None and summary.statistics is not None
    statistics = summary.statistics
    assert (statistics.message_count, statistics.chunk_count) == (4, 2)
    assert (statistics.message_start_time, statistics.message_end_time) == (900, 5_000)
    assert statistics.channel_message_counts == {1: 3, 2: 1}
    assert (statistics.metadata_count, statistics.attachment_count) == (2, 1)
    first, second = summary.chunk_indexes
    assert (first.message_start_time, first.message_end_time) == (1_000, 1_000)
    assert (second.message_start_time, second.message_end_time) == (900, 5_000)
    assert set(first.message_index_offsets) == {1, 2} and set(second.message_index_offsets) == {1}
    assert summary.channels[1].metadata == ABOUT
    assert summary.schemas[1].data == b"uint8 a\n"


def test_one_channel_and_a_stretch_of_time_are_found_by_the_index():
    reader = make_reader(io.BytesIO(written(MESSAGES)))
    found = [
        m.log_time for _, _, m in reader.iter_messages("/a", starting_at=901, ending_before=5_000)
    ]
    assert found == [1_000]


def test_a_linear_scan_with_crc_checks_passes_and_a_flipped_bit_does_not():
    data = bytearray(written(MESSAGES))
    records = list(StreamReader(io.BytesIO(data), emit_chunks=True, validate_crcs=True).records)
    chunk = next(record for record in records if isinstance(record, Chunk))
    assert len(list(StreamReader(io.BytesIO(data), validate_crcs=True).records)) > len(records)
    at = bytes(data).index(chunk.data)
    data[at + len(chunk.data) // 2] ^= 1
    with pytest.raises((CRCValidationError, RuntimeError)):  # ours, or the decompressor's
        list(StreamReader(io.BytesIO(data), validate_crcs=True).records)


def test_a_chunk_is_closed_when_it_is_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcap_file, "LARGEST_CHUNK", 4_000)
    summary = make_reader(io.BytesIO(written(MESSAGES * 2, flush_after=100))).get_summary()
    assert summary is not None and [c.uncompressed_size > 4_000 for c in summary.chunk_indexes] == [
        True, True,
    ]  # fmt: skip


def test_a_file_without_messages_is_whole():
    summary = make_reader(io.BytesIO(written([]))).get_summary()
    assert summary is not None and summary.statistics is not None
    assert summary.statistics.message_count == 0 and list(summary.channels) == [1, 2]


def test_rosbags_opens_it(tmp_path: Path):
    from rosbags.rosbag2 import Reader

    path = tmp_path / "000.mcap"
    path.write_bytes(written(MESSAGES[:1]))
    with Reader(path) as bag:
        assert [(c.topic, c.msgtype, n, d) for c, n, d in bag.messages()] == [
            ("/a", "plexus/msg/A", 1_000, MESSAGES[0][4])
        ]
