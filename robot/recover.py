"""Repairs a log: writes whole files from those that were cut off or damaged, and loses nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.writer import CompressionType, Writer

from robot.chunk import HEAD, PAYLOAD_AT, RECORD, view
from robot.config import UserError
from robot.segment import SEGMENT_NAME, Segment, segment_paths

STAMPS = struct.Struct("<IQQ")  # sequence, log time, publish time


@dataclass(frozen=True)
class Recovered:
    """What `recover` did.

    Attributes:
        segments: files that were written; empty if there was nothing to do.
        messages: in them.
        damage: what was wrong with the originals, one sentence each.
        kept: originals that were set aside, because the copy has not all of what they had.
    """

    segments: list[Path]
    messages: int
    damage: list[str]
    kept: list[Path]


def recover(path: Path | str, out: Path | str | None = None) -> Recovered:
    """Write whole files from unfinished or damaged ones.

    Each is copied, message by message, to a file beside it, which is synced to disk and read again;
    only if every message is found in it does it get its name, NNN.mcap. Then the original is
    deleted if nothing but its last, cut record is missing in the copy, and otherwise set aside with
    `.broken` after its name, as is a file in which nothing is readable. So at any moment, a crash
    included, every message is in a file; a second call finishes the work or finds nothing to do. A
    metadata record `recovered` in the copy tells what happened.

    Args:
        path: a log's folder (all its files that have no proper end), or one file (whatever is
            wrong with it).
        out: where to write instead, leaving the originals as they are: a folder for a folder
            (finished files are copied to it), a new file for a file.

    Raises:
        UserError: no such log, a recorder is writing it, `out` exists, or the disk refuses.
    """
    path = Path(path)
    if path.suffix == ".partial" and not path.exists() and path.with_suffix("").exists():
        return Recovered([], 0, [], [])  # an earlier call has been here
    try:
        work = _work(path, None if out is None else Path(out))
        done = [_recover_file(source, target, out is None) for source, target in work]
    except OSError as error:
        raise UserError(f"{path}: cannot be recovered: {error}") from None
    return Recovered(
        segments=[segment for one in done for segment in one.segments],
        messages=sum(one.messages for one in done),
        damage=[line for one in done for line in one.damage],
        kept=[original for one in done for original in one.kept],
    )


def being_written(path: Path) -> bool:
    """A recorder holds its lock on this file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file is closed
        except BlockingIOError:
            return True
    return False


def _work(path: Path, out: Path | None) -> list[tuple[Path, Path]]:
    """Files to repair, and the name of each when it is whole."""
    segment_paths(path)  # raises if there is no log
    if path.is_file():
        return [(path, out or path.with_name(path.name.removesuffix(".partial")))]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    work = []
    for source in sorted(path.iterdir()):
        if match := SEGMENT_NAME.fullmatch(source.name):
            target = (out or path) / f"{match[1]}.mcap"
            if source.suffix == ".partial" or not Segment(source).finished:
                work.append((source, target))
            elif out is not None:
                shutil.copy2(source, target)
    return work


def _recover_file(source: Path, target: Path, in_place: bool) -> Recovered:
    """Repair one file under its lock: neither a recorder nor a second call may be at it."""
    if not in_place and target.exists():
        raise UserError(f"{target}: exists already; expected the name of a new file")
    with source.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{source}: a recorder is writing it; expected a file that nobody writes: "
                "stop the run first"
            ) from None
        return _recover_locked(source, target, in_place)


def _recover_locked(source: Path, target: Path, in_place: bool) -> Recovered:
    segment = Segment(source)
    damage = segment.check()
    if source == target and segment.finished and not damage:
        return Recovered([], 0, [], [])
    if in_place and source != target and target.exists():
        # An earlier call was cut off between naming its copy and deleting the original.
        return Recovered([], 0, damage, [_set_aside(source)])
    if not segment.readable:
        return Recovered([], 0, damage, [_set_aside(source)] if in_place else [])
    copy = target.with_name(target.name + ".recovering")
    try:
        messages = _copy_verified(segment, copy)
        kept = [_set_aside(source)] if in_place and not segment.whole_records else []
        copy.replace(target)
        _sync_folder(target.parent)
        if in_place and source != target:
            source.unlink(missing_ok=True)
    finally:
        copy.unlink(missing_ok=True)
    return Recovered([target], messages, damage, kept)


def _set_aside(path: Path) -> Path:
    """Give a file the first free name that ends in .broken (.broken2, ...)."""
    number = 1
    while True:
        name = path.with_name(f"{path.name}.broken{number if number > 1 else ''}")
        try:
            os.link(path, name)  # unlike a rename it never writes over another file
        except FileExistsError:
            number += 1
            continue
        path.unlink()
        return name


def _sync_folder(folder: Path) -> None:
    """Make names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_verified(segment: Segment, copy: Path) -> int:
    """Write what is readable to `copy`, durably, and compare; returns the number of messages."""
    with copy.open("wb") as file:
        written = _copy(segment, Writer(file, compression=CompressionType.ZSTD))
        file.flush()
        os.fdatasync(file.fileno())
    again = Segment(copy)
    read = Digest()
    for raw in raw_messages(again):
        read.add(raw)
    if not again.finished or again.damage or read.value() != written.value():
        raise UserError(f"{copy}: is not what was written to it; the disk may be failing")
    return written.count


def _copy(segment: Segment, writer: Writer) -> Digest:
    """Hand everything readable to a writer: metadata and attachments, then chunk by chunk."""
    writer.start(profile=segment.profile or "ros2")
    for name, values in segment.metadata_records:
        writer.add_metadata(name, values)
    with segment.open() as file:
        for name in segment.attachment_at:
            if a := segment.attachment(file, name):
                writer.add_attachment(a.create_time, a.log_time, name, a.media_type, a.data)
    ids = _register(segment, writer)
    digest, chunk = Digest(), -1
    for raw in raw_messages(segment):
        if raw.chunk != chunk:
            writer.flush()  # chunks stay as they were
            chunk = raw.chunk
        payload: Any = raw.payload
        writer.add_message(
            ids[raw.channel], raw.log_time, payload, raw.publish_time, raw.sequence
        )  # fmt: skip
        digest.add(raw)
    writer.add_metadata("recovered", _account(segment, digest.count))
    writer.finish()
    return digest


def _register(segment: Segment, writer: Writer) -> dict[int, int]:
    """Tell the writer schemas and channels; returns its channel ids by those of the segment."""
    schemas = {
        old: writer.register_schema(schema.name, schema.encoding, schema.data)
        for old, schema in sorted(segment.schemas.items())
    }
    return {
        old: writer.register_channel(
            channel.topic,
            channel.message_encoding,
            schemas.get(channel.schema_id, 0),
            channel.metadata,
        )
        for old, channel in sorted(segment.channels.items())
    }


def _account(segment: Segment, messages: int) -> dict[str, str]:
    """The `recovered` record."""
    return {
        "source": segment.path.name,
        "source_bytes": str(segment.size),
        "cut_at": "" if segment.cut is None else str(segment.cut),
        "messages": str(messages),
        "chunks": str(len(segment.chunks)),
        "attachments": str(len(segment.attachment_at)),
        "damage": json.dumps(segment.damage),
    }


class Raw(NamedTuple):
    """A message as the file has it."""

    chunk: int
    channel: int
    topic: str
    sequence: int
    log_time: int
    publish_time: int
    payload: memoryview


class Digest:
    """Counts messages and hashes all that must be the same in a copy of them."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.blake2b()

    def add(self, raw: Raw) -> None:
        """Take in the next message."""
        self.count += 1
        self._hash.update(raw.topic.encode())
        self._hash.update(STAMPS.pack(raw.sequence, raw.log_time, raw.publish_time))
        self._hash.update(raw.payload)

    def value(self) -> tuple[int, bytes]:
        """Equal for equal messages in equal order."""
        return self.count, self._hash.digest()


def raw_messages(segment: Segment) -> Iterator[Raw]:
    """All messages of described channels in whole chunks, in the order of the file."""
    with segment.open() as file:
        for number, chunk in enumerate(segment.chunks):
            opened = segment.unpack(file, chunk)
            if opened is None:
                continue
            data, payloads = opened[0], memoryview(opened[0])
            known = [c for c in chunk.channels if c in segment.channels]
            found = [segment.offsets(chunk, channel, *opened) for channel in known]
            if not found:
                continue
            offsets = np.sort(np.concatenate(found))
            heads = view(data, HEAD, 0)[offsets].tolist() if len(offsets) else []
            for at, head in zip(offsets.tolist(), heads, strict=True):
                _, length, channel, sequence, log_time, publish_time = head
                payload = payloads[at + PAYLOAD_AT : at + RECORD.size + length]
                topic = segment.channels[channel].topic
                yield Raw(number, channel, topic, sequence, log_time, publish_time, payload)
