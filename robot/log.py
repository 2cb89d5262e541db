"""Reads a log: all files of one run as one, a NumPy structured array per topic; repairs files.

    log = Log("logs/20261124T033000Z-sim-1a2b")
    log["low_state"]["joint_pos"]                                   # (n, joints)
    log.read("low_cmd", ["log_time_ns", "joint_pos_target[3]"], between=(10.0, 20.0))

The layout of a topic comes from the schema text and the lengths in the file, never from the
installed robot/messages.py: an old log reads as it was written. Files without an end are read up
to the last whole chunk; what is damaged is left out and named in `Log.damage` (segment.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from robot.chunk import HEAD, PAYLOAD_AT, RECORD, Chunk, view
from robot.columns import LOG_TIME, Columns, Layout, make_layout
from robot.config import UserError, listing
from robot.messages import policy_id
from robot.recover import Recovered, recover
from robot.segment import Segment, segment_paths

__all__ = ["LOG_TIME", "Log", "Recovered", "Topic", "is_numbered", "missing", "recover"]

BATCH = 2**20  # bytes of unpacked chunks that are looked at together


@dataclass(frozen=True)
class Topic:
    """What the log holds of one topic.

    Attributes:
        name: ours, or the channel's for a viewer's topic.
        channel, schema, text: the channel's topic, its schema's name and text.
        dtype: layout of one message's body; None if messages vary in length.
        count: messages in the log, damaged chunks of finished files included.
        size: bytes of one payload; 0 if it varies.
        first_ns, last_ns: log times of the first and last message, epoch ns.
        lost: messages that the publishers counted and the log does not have.
    """

    name: str
    channel: str
    schema: str
    text: str
    dtype: np.dtype | None
    count: int
    _log: Log = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes of one payload, encapsulation included."""
        return 0 if self.dtype is None else 4 + self.dtype.itemsize

    @property
    def first_ns(self) -> int:
        """Log time of the first message."""
        return self._log._ends(self.name)[0]

    @property
    def last_ns(self) -> int:
        """Log time of the last message."""
        return self._log._ends(self.name)[1]

    @property
    def lost(self) -> int:
        """Gaps in seq; the first look reads the whole log."""
        return self._log.lost.get(self.name, 0)


class Log:
    """All segments of one run as one log.

    Args:
        path: a log's folder, or one .mcap or .mcap.partial file.

    Attributes:
        segments: its files, in order.
        topics: by name, ours first, then the viewers' by the name of their channel.
        metadata: the `plexus` record of the first file.
        end: the `end` record of the last file (reason, messages, lost); empty if it has none.
        damage: one sentence for each thing that is wrong; reading may find more.
        start_ns, end_ns: first and last log time, epoch ns; 0 if there are no messages.

    Raises:
        UserError: there is no such log, or nothing in it can be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._segments = [Segment(path) for path in segment_paths(self.path)]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from None
        if not any(segment.readable for segment in self._segments):
            raise UserError(f"{self.path}: got no readable record; expected a log in MCAP")
        self.segments = [segment.path for segment in self._segments]
        self.metadata = next(
            (s.metadata["plexus"] for s in self._segments if "plexus" in s.metadata), {}
        )
        self.end = self._segments[-1].metadata.get("end", {})
        chunks = [chunk for segment in self._segments for chunk in segment.chunks]
        self.start_ns = min((chunk.start_ns for chunk in chunks), default=0)
        self.end_ns = max((chunk.end_ns for chunk in chunks), default=0)
        self._ids: list[dict[int, str]] = []  # per segment: channel id to topic
        self._layouts: dict[str, Layout] = {}
        self.topics = self._find_topics()

    @property
    def damage(self) -> list[str]:
        """One sentence for each thing that is wrong."""
        return [line for segment in self._segments for line in segment.damage]

    @property
    def duration_s(self) -> float:
        """From the first message to the last."""
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def whole_records(self) -> bool:
        """Nothing is missing but what a hard stop cut off."""
        return all(segment.whole_records for segment in self._segments)

    @property
    def recovered(self) -> bool:
        """One of its files was repaired."""
        return any("recovered" in segment.metadata for segment in self._segments)

    @cached_property
    def attachments(self) -> dict[str, bytes]:
        """Attached files by name; the first readable one of a name."""
        found: dict[str, bytes] = {}
        for segment in self._segments:
            new = [name for name in segment.attachment_at if name not in found]
            if new:
                with segment.open() as file:
                    for name in new:
                        if attachment := segment.attachment(file, name):
                            found[name] = attachment.data
        return found

    @cached_property
    def policies(self) -> dict[int, str]:
        """Names of attached policy files by their policy_id, the one that the run began with first.

        A run has more than one where an operator chose another while it went on.
        """
        files = ((name, data) for name, data in self.attachments.items() if name.endswith(".onnx"))
        return {policy_id(data): name for name, data in files}

    @cached_property
    def lost(self) -> dict[str, int]:
        """Messages missing per topic of ours: gaps in seq, per instance of the publisher."""
        asked = {
            name: ["instance", "seq"]
            for name, layout in self._layouts.items()
            if is_numbered(layout.dtype)
        }
        return {name: missing(read) for name, read in self.read_topics(asked).items()}

    def __getitem__(self, topic: str) -> NDArray[Any]:
        return self.read(topic)

    def read(
        self,
        topic: str,
        fields: Sequence[str] | None = None,
        between: tuple[float, float] | None = None,
    ) -> NDArray[Any]:
        """One topic's messages.

        Args:
            topic: a key of `topics`.
            fields: what to read, None for all fields of the message: names, "joint_pos[3]" for
                one element of an array, "log_time_ns" for the time of receipt (epoch ns).
            between: from (included) and to (excluded), in s since start_ns.

        Returns:
            (n,) structured array in the order of the log. Time and memory go with what is asked:
            chunks outside of `between` or without the topic are not opened.

        Raises:
            UserError: no such topic or field, or the topic's messages vary in length.
        """
        return self.read_topics({topic: fields}, between)[topic]

    def read_topics(
        self,
        fields: Mapping[str, Sequence[str] | None],
        between: tuple[float, float] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Several topics in one pass over the log; `fields` says of each what `read` is told."""
        columns = {
            name: Columns(name, self._topic(name).schema, self._layouts[name], names)
            for name, names in fields.items()
        }
        span = self._span(between)
        for segment, file, ids, chunks in self._parts(columns, span):
            for channel, name in ids.items():
                columns[name].reserve(sum(segment.count(file, c, channel) for c in chunks))
            for data, offsets in _batches(segment, file, ids, chunks):
                for channel, name in ids.items():
                    refused = columns[name].take(data, _within(data, offsets[channel], span))
                    if refused:
                        segment.report(f"messages of {name} that do not fit its schema are skipped")
        return {name: column.result() for name, column in columns.items()}

    def messages(
        self, *topics: str, between: tuple[float, float] | None = None
    ) -> Iterator[tuple[str, int, memoryview]]:
        """Every message of the topics (none named: all), in the order of receipt.

        Yields:
            Topic, log time in epoch ns, payload (encapsulation and body, as it was on the bus).

        Raises:
            UserError: no such topic.
        """
        wanted = dict.fromkeys(topics or self.topics)
        for name in wanted:
            self._topic(name)
        span = self._span(between)
        for segment, file, ids, chunks in self._parts(wanted, span):
            for chunk in chunks:
                if opened := segment.unpack(file, chunk):
                    yield from _in_order(segment, chunk, ids, opened, span)

    def check(self) -> list[str]:
        """Open every chunk and attachment of the log; returns `damage`."""
        for segment in self._segments:
            segment.check()
        return self.damage

    # --- inside --------------------------------------------------------------------------------

    def _find_topics(self) -> dict[str, Topic]:
        found: dict[str, dict[str, Any]] = {}
        counts: dict[str, int] = {}
        for segment in self._segments:
            ids: dict[int, str] = {}
            self._ids.append(ids)
            for channel in segment.channels.values():
                schema = segment.schemas.get(channel.schema_id)
                name = channel.metadata.get("plexus_topic") or channel.topic
                text = "" if schema is None else schema.data.decode("utf-8", "replace")
                layout = make_layout(text, channel.metadata.get("lengths"))
                if name not in found:
                    found[name] = {
                        "channel": channel.topic,
                        "schema": "" if schema is None else schema.name,
                        "text": text,
                    }
                    self._layouts[name] = layout
                elif layout != self._layouts[name]:
                    segment.report(
                        f"topic {name} has another layout than in the files before; "
                        "its messages are not read"
                    )
                    continue
                ids[channel.id] = name
                counts[name] = counts.get(name, 0) + segment.counts.get(channel.id, 0)
        order = sorted(found, key=lambda name: name.startswith("/"))  # stable: ours first
        return {
            name: Topic(
                name=name, dtype=self._layouts[name].dtype, count=counts[name], _log=self,
                **found[name],
            )
            for name in order
        }  # fmt: skip

    def _topic(self, name: str) -> Topic:
        if name not in self.topics:
            raise UserError(
                f"{self.path}: topic {name!r} is unknown; available: {listing(self.topics, 99)}"
            )
        return self.topics[name]

    def _span(self, between: tuple[float, float] | None) -> tuple[int, int] | None:
        """Log times from (included) and to (excluded)."""
        if between is None:
            return None
        low, high = (round(min(max(t, -1e9), 1e9) * 1e9) for t in between)
        return self.start_ns + low, self.start_ns + high

    def _parts(
        self, topics: Mapping[str, Any], span: tuple[int, int] | None
    ) -> Iterator[tuple[Segment, IO[bytes], dict[int, str], list[Chunk]]]:
        """Per segment: the segment, its file, channel ids of the topics, chunks to open."""
        for segment, known in zip(self._segments, self._ids, strict=True):
            ids = {channel: name for channel, name in known.items() if name in topics}
            chunks = [
                chunk
                for chunk in segment.chunks
                if (span is None or (chunk.start_ns < span[1] and chunk.end_ns >= span[0]))
                and any(channel in chunk.channels for channel in ids)
            ]
            if chunks:
                with segment.open() as file:
                    yield segment, file, ids, chunks

    def _ends(self, topic: str) -> tuple[int, int]:
        """Log time of a topic's first and last message."""
        first = last = 0
        for segment, file, ids, chunks in self._parts({topic: None}, None):
            for chunk in (*chunks[:1], *chunks[-1:]):
                if opened := segment.unpack(file, chunk):
                    for channel in ids:
                        offsets = segment.offsets(chunk, channel, *opened)
                        if len(offsets):
                            times = view(opened[0], HEAD, 0)["log_time"][offsets]
                            first, last = first or int(times[0]), int(times[-1])
        return first, last


def is_numbered(dtype: np.dtype | None) -> bool:
    """Messages of this layout carry their publisher and a running number."""
    fields = () if dtype is None else (dtype.names or ())
    return all(name in fields and dtype[name].kind in "ui" for name in ("instance", "seq"))  # type: ignore[index]


def missing(read: NDArray[Any]) -> int:
    """Gaps in `seq` per `instance`, in messages."""
    gaps = 0
    for instance in np.unique(read["instance"]):
        seqs = np.unique(read["seq"][read["instance"] == instance])
        gaps += int(seqs[-1] - seqs[0]) + 1 - len(seqs)
    return gaps


def _batches(
    segment: Segment, file: IO[bytes], ids: Iterable[int], chunks: list[Chunk]
) -> Iterator[tuple[memoryview, dict[int, NDArray[np.int64]]]]:
    """Unpacked chunks, several joined, and the offsets of each channel's messages in them.

    A chunk of 100 ms has few messages: NumPy's cost per call would outweigh the work. The memory
    is used again for the next batch, which saves asking the system for it.
    """
    joined, size = bytearray(2 * BATCH), 0
    offsets: dict[int, list[NDArray[np.int64]]] = {channel: [] for channel in ids}
    for number, chunk in enumerate(chunks, 1):
        if opened := segment.unpack(file, chunk):
            data = opened[0]
            for channel, found in offsets.items():
                found.append(segment.offsets(chunk, channel, *opened) + size)
            if size + len(data) > len(joined):
                joined = joined[:size] + bytearray(BATCH + len(data))
            joined[size : size + len(data)] = data
            size += len(data)
        if size >= BATCH or (size and number == len(chunks)):
            together = {c: np.concatenate(found) for c, found in offsets.items()}
            yield memoryview(joined)[:size], together
            offsets, size = {channel: [] for channel in offsets}, 0


def _within(
    data: bytes | memoryview, offsets: NDArray[np.int64], span: tuple[int, int] | None
) -> NDArray[np.int64]:
    """Those messages whose log time lies in the span."""
    if span is None:
        return offsets
    times = view(data, HEAD, 0)["log_time"][offsets].astype(np.int64)
    return offsets[(times >= span[0]) & (times < span[1])]


def _in_order(
    segment: Segment,
    chunk: Chunk,
    ids: dict[int, str],
    opened: tuple[bytes, bytes],
    span: tuple[int, int] | None,
) -> Iterator[tuple[str, int, memoryview]]:
    """The messages of one chunk as they lie in it: the recorder writes in order of receipt."""
    data, memory = opened[0], memoryview(opened[0])
    found = [segment.offsets(chunk, channel, *opened) for channel in ids]
    offsets = _within(data, np.sort(np.concatenate(found)), span)
    if not len(offsets):
        return
    heads = view(data, HEAD, 0)[offsets]
    ends = offsets + heads["length"].astype(np.int64) + RECORD.size
    rows = (offsets + PAYLOAD_AT).tolist(), ends.tolist()
    channels, times = heads["channel"].tolist(), heads["log_time"].tolist()
    for begin, end, channel, time in zip(*rows, channels, times, strict=True):
        yield ids[channel], time, memory[begin:end]
