"""The bytes of MCAP records: unpacks and checks chunks, finds the messages in them.

It knows no files (segment.py). All that is found wrong is raised as `Broken`.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import lz4.frame
import numpy as np
import zstandard
from mcap.opcode import Opcode
from numpy.typing import NDArray

CHUNK_LIMIT = 256 * 2**20  # bytes that one chunk may unpack to; ours have some 200 kB
RECORD = struct.Struct("<BQ")  # opcode, length of the content
CHUNK = struct.Struct("<QQQI")  # first and last log time, unpacked size, checksum
HEAD = np.dtype(
    [("opcode", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"),
     ("log_time", "<u8"), ("publish_time", "<u8")]
)  # fmt: skip
START = np.dtype("V11")  # opcode, length and channel of a message's record, as bytes
PAYLOAD_AT = HEAD.itemsize  # of a message's record
INDEX_ENTRY = np.dtype([("log_time", "<u8"), ("offset", "<u8")])


class Broken(Exception):
    """Bytes that are not what they should be, in a few words."""


@dataclass(slots=True)
class Chunk:
    """Where a chunk lies and what it holds.

    Attributes:
        offset, length: of its record in the file, in bytes; the records of its message indexes
            follow and take index_length bytes.
        start_ns, end_ns: least and greatest log time of its messages.
        pairs: channel ids and file offsets of their message indexes, from a checked summary; as
            bytes, because a day's log has a million chunks.
        positions: channel id to (n,) offsets of the messages in the unpacked chunk, if the chunk
            was walked; empty if `pairs` are to be used.
    """

    offset: int
    length: int
    index_length: int
    start_ns: int
    end_ns: int
    pairs: bytes = b""
    positions: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def indexes(self) -> dict[int, int]:
        """`pairs` by channel."""
        return dict(struct.iter_unpack("<HQ", self.pairs))

    @property
    def channels(self) -> Iterable[int]:
        """Ids of the channels that have messages in this chunk."""
        return self.positions or self.indexes


def view(data: bytes | memoryview, dtype: np.dtype, offset: int) -> NDArray[Any]:
    """`dtype` at every byte of `data`: element i lies at byte i + offset.

    Indexing it with the offsets of messages gathers one field of all of them.
    """
    # Offsets are checked before (walk, indexed), so an empty view is never indexed.
    room = max(len(data) - offset - dtype.itemsize + 1, 0)
    return np.ndarray((room,), dtype, data, offset if room else 0, (1,))


def records(data: bytes) -> Iterable[tuple[int, int, int]]:
    """Records in `data`: opcode, offset and length of the content.

    Raises:
        Broken: one reaches beyond the end.
    """
    at, end = 0, len(data)
    while at < end:
        if at + RECORD.size > end:
            raise Broken("a record in it is cut")
        opcode, length = RECORD.unpack_from(data, at)
        at += RECORD.size
        if at + length > end:
            raise Broken("a record in it is cut")
        yield opcode, at, length
        at += length


def walk(data: bytes) -> tuple[dict[int, NDArray[np.int64]], list[tuple[int, int, int]]]:
    """Find what an unpacked chunk holds, without any index.

    Returns:
        Channel id to offsets of its message records, and (opcode, offset, length) of the content
        of its schemas and channels.

    Raises:
        Broken: the records do not fit the chunk.
    """
    found: dict[int, list[int]] = {}
    definitions = []
    for opcode, at, length in records(data):
        if opcode == Opcode.MESSAGE:
            if length < PAYLOAD_AT - RECORD.size:
                raise Broken("a message in it is too short")
            channel = data[at] | data[at + 1] << 8
            found.setdefault(channel, []).append(at - RECORD.size)
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            definitions.append((opcode, at, length))
    return {channel: np.array(o, np.int64) for channel, o in found.items()}, definitions


def unpack_chunk(record: memoryview) -> bytes:
    """The checked content of a chunk's record.

    Raises:
        Broken: it is damaged, or would unpack to more than CHUNK_LIMIT bytes.
    """
    _, _, size, crc = chunk_head(record)
    compression, at = read_text(record, RECORD.size + CHUNK.size)
    packed = record[at + 8 :]
    if size > CHUNK_LIMIT:
        raise Broken(f"it would unpack to {size} bytes; at most {CHUNK_LIMIT} are read")
    data = _decompress(packed, compression, size)
    if len(data) != size:
        raise Broken(f"it unpacks to {len(data)} bytes instead of {size}")
    if crc and zlib.crc32(data) != crc:
        raise Broken("its checksum does not hold")
    return data


def chunk_head(record: memoryview) -> tuple[int, int, int, int]:
    """First and last log time, unpacked size and checksum, if the lengths inside agree."""
    if len(record) < RECORD.size + CHUNK.size + 12 or record[0] != Opcode.CHUNK:
        raise Broken("it is no chunk")
    _, at = read_text(record, RECORD.size + CHUNK.size)
    if at + 8 + read_uint(record, at, "<Q") != len(record):
        raise Broken("its lengths do not agree")
    return CHUNK.unpack_from(record, RECORD.size)


_LOCAL = threading.local()


def _zstd() -> zstandard.ZstdDecompressor:
    """This thread's decompressor: making one costs as much as a fifth of a chunk."""
    if not hasattr(_LOCAL, "zstd"):
        _LOCAL.zstd = zstandard.ZstdDecompressor()
    return _LOCAL.zstd


def _decompress(packed: memoryview, compression: str, size: int) -> bytes:
    """At most size + 1 bytes, whatever the packed bytes claim."""
    try:
        if compression == "zstd":
            claimed = zstandard.get_frame_parameters(packed).content_size
            if claimed not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise Broken("two sizes do not agree")
            return _zstd().decompress(packed, max_output_size=size)
        if compression == "lz4":
            return lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1)
    except (zstandard.ZstdError, RuntimeError, EOFError, ValueError) as error:
        raise Broken(f"it cannot be unpacked ({error})") from None
    if compression:
        raise Broken(f"its compression is {compression[:20]!r}; known are zstd and lz4")
    return bytes(packed)


def indexed(index: bytes, at: int, channel: int, data: bytes) -> NDArray[np.int64]:
    """Offsets from a message index, if they lead to messages of the channel."""
    if not 0 <= at <= len(index) - 15:
        raise Broken("it lies elsewhere")
    opcode, length = RECORD.unpack_from(index, at)
    got, size = struct.unpack_from("<HI", index, at + RECORD.size)
    if (
        opcode != Opcode.MESSAGE_INDEX
        or got != channel
        or length != size + 6
        or size % INDEX_ENTRY.itemsize
        or at + 15 + size > len(index)
    ):
        raise Broken("its lengths do not agree")
    entries = np.frombuffer(index, INDEX_ENTRY, size // INDEX_ENTRY.itemsize, at + 15)
    offsets = entries["offset"].astype(np.int64)  # a flipped top bit becomes negative
    if not len(offsets):
        return offsets
    if (offsets[1:] <= offsets[:-1]).any():
        offsets = np.unique(offsets)
        if len(offsets) != len(entries):
            raise Broken("it names a message twice")
    if offsets[0] < 0 or offsets[-1] > len(data) - PAYLOAD_AT:
        raise Broken("it points outside of the chunk")
    if not _are_messages(data, offsets, channel):
        raise Broken("it points to something else than its messages")
    return offsets


def _are_messages(data: bytes, offsets: NDArray[np.int64], channel: int) -> bool:
    """A whole message record of the channel lies at each of the ascending offsets."""
    first = data[offsets[0] : offsets[0] + START.itemsize]
    if view(data, START, 0)[offsets].tobytes() == first * len(offsets):
        # All alike, as messages of one size are: looking at one is enough, and much faster.
        opcode, least = RECORD.unpack_from(first)
        alike = opcode == Opcode.MESSAGE and first[9] | first[10] << 8 == channel
        lengths: Any = least
    else:
        heads = view(data, HEAD, 0)[offsets]
        alike = (heads["opcode"] == Opcode.MESSAGE).all() and (heads["channel"] == channel).all()
        least = heads["length"].min()
        lengths = np.minimum(heads["length"], len(data)).astype(np.int64)  # no overflow below
    if not alike or least < PAYLOAD_AT - RECORD.size or least > len(data):
        return False
    ends = offsets + (lengths + RECORD.size)
    return bool(ends[-1] <= len(data) and (ends[:-1] <= offsets[1:]).all())


def chunk_from_index(content: bytes) -> Chunk:
    """A chunk from the summary's index of it."""
    start_ns, end_ns, offset, length, size = struct.unpack_from("<QQQQI", content)
    pairs = content[36 : 36 + size]
    if len(pairs) != size or size % 10:
        raise Broken("its lengths do not agree")
    (index_length,) = struct.unpack_from("<Q", content, 36 + size)
    return Chunk(offset, length, index_length, start_ns, end_ns, pairs)


def read_text(content: memoryview, at: int) -> tuple[str, int]:
    """A length and a text, and where they end."""
    end = at + 4 + read_uint(content, at, "<I")
    if end > len(content):
        raise Broken("its lengths do not agree")
    try:
        return str(content[at + 4 : end], "utf-8"), end
    except UnicodeDecodeError:
        raise Broken("a text in it is no text") from None


def read_uint(content: memoryview, at: int, code: str) -> int:
    """The number of this struct code at `at`."""
    try:
        return struct.unpack_from(code, content, at)[0]
    except struct.error:
        raise Broken("its lengths do not agree") from None
