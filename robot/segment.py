"""Reads one MCAP file of a log, whole or damaged: finds what is in it, checks what it gives out.

A finished file is entered through its summary, if the summary's checksum holds. Any other file is
walked record by record from its start, and after a broken record from the next chunk that can be
found. Nothing is believed that was not checked: lengths against the size of the file before memory
is taken for them, a chunk's size against `CHUNK_LIMIT`, its content against its checksum, message
indexes against the messages they point to. What is wrong becomes a sentence in `damage`.

It does not know what messages mean (log.py).
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Attachment, AttachmentIndex, Channel, MetadataIndex, Schema, Statistics
from numpy.typing import NDArray

from robot.chunk import (
    CHUNK,
    HEAD,
    INDEX_ENTRY,
    RECORD,
    Broken,
    Chunk,
    chunk_from_index,
    chunk_head,
    indexed,
    read_text,
    read_uint,
    records,
    unpack_chunk,
    view,
    walk,
)
from robot.config import UserError

MAGIC = b"\x89MCAP0\r\n"
FOOTER = struct.Struct("<BQQQI")  # opcode, length, summary start, offsets start, checksum
SEGMENT_NAME = re.compile(r"(\d{3,})\.mcap(\.partial)?")
KNOWN = frozenset(int(opcode) for opcode in Opcode)


class Segment:
    """One file of a log.

    Args:
        path: an .mcap or .mcap.partial file.

    Attributes:
        finished: it has an end and a summary that is as it was written.
        whole_records: False if something other than the file's cut end could not be read.
        schemas, channels: by id.
        counts: messages per channel id.
        metadata_records: names and maps; `metadata`: the first map of each name.
        cut: where the last record begins if the file's end cuts it.
        attachment_at: offset and length of the record of each attachment, the first of a name.
        damage: what is wrong, one sentence each; reading chunks may add some.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.profile = ""
        self.finished, self.whole_records = False, True
        self.schemas: dict[int, Schema] = {}
        self.channels: dict[int, Channel] = {}
        self.counts: dict[int, int] = {}
        self.chunks: list[Chunk] = []
        self.metadata_records: list[tuple[str, dict[str, str]]] = []
        self.cut: int | None = None
        self.attachment_at: dict[str, tuple[int, int]] = {}
        self.damage: list[str] = []
        with self.open() as file:
            self.size = os.fstat(file.fileno()).st_size
            try:
                self.finished = self._read_summary(file)
                if not self.finished:
                    self._scan(file)
            except Broken as error:  # it became shorter while it was read
                self.report(f"is not read to its end: {error}")
        used = {channel for chunk in self.chunks for channel in chunk.channels}
        if undescribed := used - set(self.channels):
            self.whole_records = False
            count = sum(self.counts.get(channel, 0) for channel in undescribed)
            self.report(
                f"{count} messages are not read: the description of their {len(undescribed)} "
                "channels is lost"
            )

    def open(self) -> IO[bytes]:
        """The file, unbuffered; by its later name if its recorder has finished it meanwhile."""
        try:
            return self.path.open("rb", buffering=0)
        except FileNotFoundError:
            if self.path.suffix != ".partial":
                raise
            return self.path.with_suffix("").open("rb", buffering=0)

    def report(self, sentence: str) -> None:
        """Note damage, once."""
        sentence = f"{self.path.name}: {sentence}"
        if sentence not in self.damage:
            self.damage.append(sentence)

    @property
    def metadata(self) -> dict[str, dict[str, str]]:
        """Maps by record name, the first of a name."""
        return dict(reversed(self.metadata_records))

    @property
    def readable(self) -> bool:
        """There is anything in it."""
        return bool(self.chunks or self.metadata_records or self.attachment_at)

    # --- opening chunks ------------------------------------------------------------------------

    def unpack(self, file: IO[bytes], chunk: Chunk) -> tuple[bytes, bytes] | None:
        """A chunk's checked records and its message indexes' bytes; None (reported) if broken."""
        try:
            stored = _read(file, chunk.offset, chunk.length + chunk.index_length)
            return unpack_chunk(memoryview(stored)[: chunk.length]), stored[chunk.length :]
        except Broken as error:
            self.whole_records = False
            self.report(f"the chunk at byte {chunk.offset} is skipped: {error}")
            return None

    def check(self) -> list[str]:
        """Open every chunk and attachment; returns `damage`."""
        with self.open() as file:
            for chunk in self.chunks:
                if opened := self.unpack(file, chunk):
                    for channel in tuple(chunk.channels):
                        self.offsets(chunk, channel, *opened)
            for name in self.attachment_at:
                self.attachment(file, name)
        return self.damage

    def offsets(self, chunk: Chunk, channel: int, data: bytes, index: bytes) -> NDArray[np.int64]:
        """(n,) offsets in `data` of a channel's message records, ascending.

        `data` and `index` are what `unpack` returned. A message index that does not fit the
        messages is reported and not used: then the chunk is walked.
        """
        if not chunk.positions:
            at = chunk.indexes.get(channel)
            if at is None:
                return np.zeros(0, np.int64)
            try:
                return indexed(index, at - chunk.offset - chunk.length, channel, data)
            except Broken as error:
                self.report(f"an index after byte {chunk.offset} is not used: {error}")
            try:
                chunk.positions = walk(data)[0]
            except Broken as error:
                self.report(f"the chunk at byte {chunk.offset} is skipped: {error}")
                return np.zeros(0, np.int64)
        return chunk.positions.get(channel, np.zeros(0, np.int64))

    def count(self, file: IO[bytes], chunk: Chunk, channel: int) -> int:
        """How many messages a channel has in a chunk, at most, without opening the chunk."""
        if chunk.positions:
            return len(chunk.positions.get(channel, ()))
        at = chunk.indexes.get(channel)
        if at is None:
            return 0
        try:
            length = struct.unpack_from("<I", _read(file, at, 15), 11)[0]
        except Broken:
            return 0
        return min(length, chunk.index_length) // 16

    def attachment(self, file: IO[bytes], name: str) -> Attachment | None:
        """An attachment; None (reported) if it is not what was written."""
        offset, length = self.attachment_at[name]
        try:
            return _attachment(memoryview(_read(file, offset, length))[RECORD.size :])
        except Broken as error:
            self.whole_records = False
            self.report(f"attachment {name} is skipped: {error}")
            return None

    # --- a finished file -----------------------------------------------------------------------

    def _read_summary(self, file: IO[bytes]) -> bool:
        """Take over the summary; False if there is none that can be trusted."""
        tail = FOOTER.size + len(MAGIC)
        if self.size < 2 * len(MAGIC) + tail:
            return False
        raw = _read(file, self.size - tail, tail)
        opcode, length, start, _, crc = FOOTER.unpack_from(raw)
        if raw[FOOTER.size :] != MAGIC or opcode != Opcode.FOOTER or length != 20 or not crc:
            return False
        if not len(MAGIC) <= start <= self.size - tail:
            return False
        body = _read(file, start, self.size - tail - start)
        if zlib.crc32(raw[: FOOTER.size - 4], zlib.crc32(body)) != crc:
            return False
        try:
            return self._take_summary(file, body)
        except (McapError, Broken, struct.error, UnicodeDecodeError):
            self._forget()
            return False

    def _take_summary(self, file: IO[bytes], body: bytes) -> bool:
        statistics = None
        for opcode, at, length in records(body):
            content = body[at : at + length]
            stream = ReadDataStream(io.BytesIO(content))
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                self._take_definition(opcode, content)
            elif opcode == Opcode.CHUNK_INDEX:
                self.chunks.append(chunk_from_index(content))
            elif opcode == Opcode.ATTACHMENT_INDEX:
                found = AttachmentIndex.read(stream)
                self.attachment_at.setdefault(found.name, (found.offset, found.length))
            elif opcode == Opcode.METADATA_INDEX:
                entry = MetadataIndex.read(stream)
                self._take_metadata_at(file, entry.offset, entry.length)
            elif opcode == Opcode.STATISTICS:
                statistics = Statistics.read(stream)
        if statistics is None or statistics.chunk_count != len(self.chunks):
            self._forget()
            return False
        if len(self.chunks) == 0 and statistics.message_count:
            self.report("its messages are outside of chunks and are not read")
        self.counts = dict(statistics.channel_message_counts)
        self._take_head(file)
        return True

    def _forget(self) -> None:
        """Begin again, after a summary that was of no use."""
        for table in (self.schemas, self.channels, self.counts, self.attachment_at):
            table.clear()
        self.metadata_records.clear()
        self.chunks.clear()
        self.damage.clear()

    def _take_metadata_at(self, file: IO[bytes], offset: int, length: int) -> None:
        try:
            content = memoryview(_read(file, offset, length))[RECORD.size :]
            self.metadata_records.append(_metadata(content))
        except Broken as error:
            self.whole_records = False
            self.report(f"the metadata at byte {offset} are skipped: {error}")

    def _take_head(self, file: IO[bytes]) -> None:
        """Magic and header; they are only looked at, so their damage is only told."""
        try:
            if _read(file, 0, len(MAGIC)) != MAGIC:
                self.report("does not begin as an MCAP file does")
            opcode, length = RECORD.unpack(_read(file, len(MAGIC), RECORD.size))
            if opcode != Opcode.HEADER:
                raise Broken("another record is there")
            self._take_header(memoryview(_read(file, len(MAGIC) + RECORD.size, length)))
        except Broken as error:
            self.report(f"the header is unreadable: {error}")

    def _take_header(self, content: memoryview) -> None:
        self.profile, at = read_text(content, 0)
        if read_text(content, at)[1] != len(content):
            raise Broken("its lengths do not agree")

    # --- any other file ------------------------------------------------------------------------

    def _scan(self, file: IO[bytes]) -> None:
        """Walk the records from the start; after a broken one go on at the next chunk."""
        if self.size < len(MAGIC) or _read(file, 0, len(MAGIC)) != MAGIC:
            self.report("does not begin as an MCAP file does")
        at, ended = len(MAGIC), False
        while at < self.size and not ended:
            try:
                at, ended = self._take_record(file, at)
            except Broken as error:
                following = _next_chunk(file, at + 1, self.size)
                self._report_gap(file, at, following, error)
                at = self.size if following is None else following
        if ended:
            self.report("its summary is missing or damaged")
        elif not self.damage:
            self.report("has no end: its recorder was stopped hard or is still writing")

    def _take_record(self, file: IO[bytes], at: int) -> tuple[int, bool]:
        """Note the record at `at`; returns where the next one is, and whether the data end.

        Raises:
            Broken: it is no record, is cut, or contradicts itself; then its length is no guide.
        """
        if at + RECORD.size > self.size:
            raise Broken("it is cut")
        opcode, length = RECORD.unpack(_read(file, at, RECORD.size))
        after = at + RECORD.size + length
        if opcode not in KNOWN and opcode < 0x80:
            raise Broken(f"there is no record of kind {opcode}")
        if after > self.size:
            raise Broken("it is cut")
        match opcode:
            case Opcode.CHUNK:
                self._take_chunk(file, at, after - at)
            case Opcode.MESSAGE_INDEX:
                self._take_index(file, at, length)
            case Opcode.METADATA:
                self._take_metadata(_read(file, at + RECORD.size, length))
            case Opcode.ATTACHMENT:
                self._take_attachment(file, at, after - at)
            case Opcode.HEADER:
                self._take_header(memoryview(_read(file, at + RECORD.size, length)))
            case Opcode.SCHEMA | Opcode.CHANNEL:
                self._take_definition(opcode, _read(file, at + RECORD.size, length))
            case Opcode.MESSAGE:
                self.whole_records = False
                self.report("its messages outside of chunks are not read")
            case Opcode.DATA_END if length != 4:
                raise Broken("its length is wrong")
            case Opcode.DATA_END:
                return after, True
            case _ if opcode < 0x80:
                raise Broken(f"a record of kind {opcode} has no place here")
            case _:  # private to some other program, or one of ours with a flipped bit
                self.whole_records = False
                self.report(f"the record at byte {at} is skipped: its kind {opcode} is not ours")
        return after, False

    def _take_chunk(self, file: IO[bytes], at: int, length: int) -> None:
        stored = _read(file, at, length)
        start_ns, end_ns, _, _ = chunk_head(memoryview(stored))
        try:
            data = unpack_chunk(memoryview(stored))
            positions, definitions = walk(data)
        except Broken as error:
            self.whole_records = False
            self.report(f"the chunk at byte {at} is skipped: {error}")
            return
        for opcode, begin, size in definitions:
            self._take_definition(opcode, data[begin : begin + size])
        if positions:
            # The times in a chunk's head are under no checksum; those in its messages are.
            heads = view(data, HEAD, 0)
            times = [heads["log_time"][o] for o in positions.values()]
            start_ns = int(min(t.min() for t in times))
            end_ns = int(max(t.max() for t in times))
            self.chunks.append(Chunk(at, length, 0, start_ns, end_ns, positions=positions))
        for channel, offsets in positions.items():
            self.counts[channel] = self.counts.get(channel, 0) + len(offsets)

    def _take_definition(self, opcode: int, content: bytes) -> None:
        stream = ReadDataStream(io.BytesIO(content))
        try:
            if opcode == Opcode.SCHEMA:
                schema = Schema.read(stream)
                self.schemas[schema.id] = schema
            else:
                channel = Channel.read(stream)
                self.channels[channel.id] = channel
        except (McapError, struct.error, UnicodeDecodeError):
            raise Broken("its lengths do not agree") from None

    def _take_index(self, file: IO[bytes], at: int, length: int) -> None:
        if length < 6:
            raise Broken("its lengths do not agree")
        size = struct.unpack_from("<I", _read(file, at + RECORD.size, 6), 2)[0]
        if length != 6 + size or size % INDEX_ENTRY.itemsize:
            raise Broken("its lengths do not agree")

    def _take_metadata(self, content: bytes) -> None:
        self.metadata_records.append(_metadata(memoryview(content)))

    def _take_attachment(self, file: IO[bytes], at: int, length: int) -> None:
        if length < RECORD.size + 36:
            raise Broken("its lengths do not agree")
        head = memoryview(_read(file, at + RECORD.size, min(length - RECORD.size, 4096)))
        name, after = read_text(head, 16)
        after = read_text(head, after)[1]
        if after + 8 + read_uint(head, after, "<Q") + 4 != length - RECORD.size:
            raise Broken("its lengths do not agree")
        self.attachment_at.setdefault(name, (at, length))

    def _report_gap(self, file: IO[bytes], at: int, following: int | None, error: Broken) -> None:
        self.cut = at if following is None else None
        if following is not None:
            self.whole_records = False
            self.report(f"bytes {at} to {following} are skipped: the record at {at}: {error}")
        elif _zeros(file, at, self.size):
            self.report(f"holds nothing but zeros from byte {at} to its end at {self.size}")
        elif str(error) == "it is cut" and _read(file, self.size - 8, 8) != MAGIC:
            self.report(f"the record at byte {at} is cut by the file's end at byte {self.size}")
        else:
            self.whole_records = False
            self.report(f"nothing is readable from byte {at} to the end: {error}")


def segment_paths(path: Path) -> list[Path]:
    """Files of a log in order; of a file with and without .partial, the finished one.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such log; expected a log's folder or an .mcap file")
    found: dict[int, Path] = {}
    for entry in sorted(path.iterdir()):
        if match := SEGMENT_NAME.fullmatch(entry.name):
            found.setdefault(int(match[1]), entry)  # "000.mcap" sorts before "000.mcap.partial"
    if not found:
        raise UserError(f"{path}: got no file like 000.mcap; expected the folder of a log")
    return [found[number] for number in sorted(found)]


def _attachment(content: memoryview) -> Attachment:
    name, at = read_text(content, 16)
    media_type, at = read_text(content, at)
    if at + 8 + read_uint(content, at, "<Q") + 4 != len(content):
        raise Broken("its lengths do not agree")
    crc = read_uint(content, len(content) - 4, "<I")
    if crc and zlib.crc32(content[:-4]) != crc:
        raise Broken("its checksum does not hold")
    log_time, create_time = struct.unpack_from("<QQ", content)
    return Attachment(create_time, log_time, name, media_type, bytes(content[at + 8 : -4]))


def _metadata(content: memoryview) -> tuple[str, dict[str, str]]:
    name, at = read_text(content, 0)
    if at + 4 + read_uint(content, at, "<I") != len(content):
        raise Broken("its lengths do not agree")
    at += 4
    values = {}
    while at < len(content):
        key, at = read_text(content, at)
        values[key], at = read_text(content, at)
    return name, values


def _read(file: IO[bytes], at: int, length: int) -> bytes:
    """Exactly `length` bytes; memory is taken only for what the file has."""
    if not 0 <= at < 2**62 or (length > 2**20 and at + length > os.fstat(file.fileno()).st_size):
        raise Broken("it is cut")
    data = os.pread(file.fileno(), length, at)
    if len(data) != length:
        raise Broken("it is cut")
    return data


def _next_chunk(file: IO[bytes], at: int, size: int) -> int | None:
    """Where the next chunk begins at or after `at`, found by the name of its compression."""
    before = RECORD.size + CHUNK.size  # bytes of a chunk's record in front of that name
    window = 2**20
    names = (b"\x04\0\0\0zstd", b"\x03\0\0\0lz4")
    while at < size:
        block = _read(file, at, min(window + before + 8, size - at))
        hits = sorted(hit for name in names for hit in _finds(block, name))
        for hit in hits:
            start = at + hit - before
            if hit >= before and block[hit - before] == Opcode.CHUNK:
                length = struct.unpack_from("<Q", block, hit - before + 1)[0]
                if start + RECORD.size + length <= size:
                    return start
        at += window
    return None


def _finds(block: bytes, what: bytes) -> Iterable[int]:
    hit = block.find(what)
    while hit >= 0:
        yield hit
        hit = block.find(what, hit + 1)


def _zeros(file: IO[bytes], at: int, size: int) -> bool:
    """The file holds only zeros from `at` on."""
    while at < size:
        block = _read(file, at, min(2**20, size - at))
        if block.count(0) != len(block):
            return False
        at += len(block)
    return True
