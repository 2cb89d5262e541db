"""The layout of a topic's messages, from the schema text, and gathering fields of many at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot.chunk import HEAD, PAYLOAD_AT, RECORD, view
from robot.config import UserError, listing

ENCAPSULATION = 0x00000100  # bytes 00 01 00 00 read as a little-endian number: plain CDR
LOG_TIME = "log_time_ns"  # a field that every topic has: time of receipt, epoch ns
PRIMITIVES = {
    "bool": "?", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4",
    "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "float32": "<f4", "float64": "<f8",
}  # fmt: skip
MESSAGE_LIMIT = 256 * 2**20  # bytes; a layout that claims more is not believed


class Layout(NamedTuple):
    """How a topic's messages lie in memory.

    Attributes:
        dtype: of the body; None if messages vary in length.
        counts: offset in the body and value of each count word.
    """

    dtype: np.dtype | None
    counts: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of one payload, encapsulation included; 0 if it varies."""
        return 0 if self.dtype is None else 4 + self.dtype.itemsize


def make_layout(text: str, lengths: str | None) -> Layout:
    """The layout of a message from its ROS 2 text and the lengths of its sequences and strings.

    Args:
        text: of the schema; nested messages make it a layout of varying length.
        lengths: JSON, field name to number of elements (of a string: bytes with the NUL).
    """
    try:
        known = json.loads(lengths) if lengths else {}
        fields = _fields(text, known if isinstance(known, dict) else {})
        if not fields or "\n===" in text:
            return Layout(None)
        return _layout(fields)
    except (ValueError, LookupError, TypeError):
        return Layout(None)


def _fields(text: str, lengths: dict[str, Any]) -> list[tuple[str, str, int, bool]]:
    """Name, NumPy type, elements (0: a scalar), whether a count leads it.

    Raises:
        ValueError, KeyError: the text holds more than primitives of known length.
    """
    found: list[tuple[str, str, int, bool]] = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words or "=" in line.split("#")[0].replace("<=", ""):
            continue  # empty, a comment, or a constant
        match = re.fullmatch(r"(\w+)(?:<=\d+)?(\[(?:<=)?(\d*)\])?", words[0])
        if match is None:
            raise ValueError(line)
        kind, array, number = match.groups()
        name = words[1]
        fixed = array is not None and "<=" not in array and bool(number)
        if kind == "string" and array is None:
            found.append((name, f"S{_length(lengths[name])}", 0, True))
        elif array is None:
            found.append((name, PRIMITIVES[kind], 0, False))
        elif fixed:
            found.append((name, PRIMITIVES[kind], _length(int(number)), False))
        else:
            found.append((name, PRIMITIVES[kind], _length(lengths[name]), True))
    return found


def _length(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= MESSAGE_LIMIT:
        raise ValueError(value)
    return value


def _layout(fields: list[tuple[str, str, int, bool]]) -> Layout:
    """CDR offsets: each primitive aligned to its size, counts in front of runs."""
    names, formats, offsets, counts = [], [], [], []
    at = 0
    for name, kind, elements, counted in fields:
        base = np.dtype(kind)
        if counted:
            at = -(-at // 4) * 4
            counts.append((at, elements or base.itemsize))
            at += 4
        size = 1 if base.kind == "S" else base.itemsize
        at = -(-at // size) * size
        names.append(name)
        formats.append((base, (elements,)) if elements else base)
        offsets.append(at)
        at += base.itemsize * max(elements, 1)
        if at > MESSAGE_LIMIT:
            raise ValueError(at)
    spec: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": at}
    return Layout(np.dtype(spec), tuple(counts))


class Columns:
    """Collects chosen fields of one topic.

    Args:
        topic, schema: their names, for what is said to the user.
        layout: how they lie.
        fields: as `Log.read` takes them.

    Raises:
        UserError: no such field, or messages vary in length and more than log_time_ns is asked.
    """

    def __init__(
        self, topic: str, schema: str, layout: Layout, fields: Sequence[str] | None
    ) -> None:
        self.topic, self.layout, self.whole = topic, layout, fields is None
        self.size = layout.size
        if layout.dtype is None and (fields is None or set(fields) - {LOG_TIME}):
            raise UserError(
                f"topic {topic}: its messages ({schema}) vary in length; "
                f"expected a topic of fixed length, or the field {LOG_TIME} alone"
            )
        self.parts: list[tuple[str, np.dtype, int]] = []  # name, dtype, offset in the body
        if fields is None:
            assert layout.dtype is not None
            self.dtype = layout.dtype
        else:
            self.parts = [self._part(name) for name in dict.fromkeys(fields)]
            self.dtype = np.dtype([(name, dtype) for name, dtype, _ in self.parts])
        self.out: NDArray[Any] = np.empty(0, self.dtype)
        self.filled = 0

    def reserve(self, count: int) -> None:
        """Make room for `count` more messages."""
        if len(self.out) - self.filled < count:
            # A whole log's room is asked for by segments: double, so that little is copied.
            grown = np.empty(max(self.filled + count, 2 * self.filled), self.dtype)
            raw = np.dtype(f"V{self.dtype.itemsize}")  # as bytes: fields leave counts out
            grown.view(raw)[: self.filled] = self.out.view(raw)[: self.filled]
            self.out = grown

    def take(self, data: memoryview, offsets: NDArray[np.int64]) -> int:
        """Add the messages at `offsets` of an unpacked chunk; returns how many do not fit."""
        fitting = self._fitting(data, offsets)
        begin, end = self.filled, self.filled + len(fitting)
        self.reserve(len(fitting))
        if not len(fitting):
            return len(offsets)
        if self.whole:
            raw = np.dtype(f"V{self.dtype.itemsize}")  # bytes move at once, padding included
            self.out.view(raw)[begin:end] = view(data, raw, PAYLOAD_AT + 4)[fitting]
        for name, dtype, offset in self.parts:
            if name == LOG_TIME:
                self.out[name][begin:end] = view(data, HEAD, 0)["log_time"][fitting]
                continue
            raw = np.dtype(f"V{dtype.itemsize}") if dtype.subdtype else dtype
            got = view(data, raw, PAYLOAD_AT + 4 + offset)[fitting]
            if dtype.subdtype:
                base, shape = dtype.subdtype
                got = got.view(base).reshape(len(got), *shape)
            self.out[name][begin:end] = got
        self.filled = end
        return len(offsets) - len(fitting)

    def result(self) -> NDArray[Any]:
        """(n,) what was taken."""
        return self.out[: self.filled]

    def _fitting(self, data: memoryview, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those messages whose size, encapsulation and counts are the schema's."""
        if self.layout.dtype is None:
            return offsets
        lengths = view(data, HEAD, 0)["length"][offsets]
        fits = lengths == PAYLOAD_AT - RECORD.size + self.size
        if not fits.all():
            offsets = offsets[fits]
        if len(offsets):
            word = np.dtype("<u4")
            fits = view(data, word, PAYLOAD_AT)[offsets] == ENCAPSULATION
            for at, count in self.layout.counts:
                fits &= view(data, word, PAYLOAD_AT + 4 + at)[offsets] == count
            if not fits.all():
                offsets = offsets[fits]
        return offsets

    def _part(self, name: str) -> tuple[str, np.dtype, int]:
        """Name, dtype and offset of a field or of one element of it."""
        if name == LOG_TIME:
            return name, np.dtype(np.int64), 0
        dtype: Any = self.layout.dtype
        match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name)
        if match is None or match[1] not in dtype.names:
            raise UserError(
                f"topic {self.topic}: field {name!r} is unknown; available: "
                f"{listing((*dtype.names, LOG_TIME), 99)}"
            )
        column: str = match[1]
        part, offset = dtype.fields[column][:2]
        if match[2] is None:
            return name, part, offset
        length = part.shape[0] if part.subdtype else 0
        if int(match[2]) >= length:
            expected = f"0 to {length - 1}" if length else "no index: it is one value"
            raise UserError(
                f"topic {self.topic}: field {name!r} does not exist; {match[1]} has "
                f"{max(length, 1)} elements, expected {expected}"
            )
        return name, part.base, offset + int(match[2]) * part.base.itemsize
