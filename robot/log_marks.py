"""Reads what operators remarked while a log was made: moments, and the episodes they marked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot import log_fields
from robot.log import Log

TOPIC = "event.console"
FIELDS = ["stamp_ns", "kind", "text"]


class Remark(NamedTuple):
    """One row.

    Attributes:
        at_ns: when it was pressed, epoch ns.
        kind: MARK, EPISODE_BEGIN or EPISODE_END.
        text: who, and what they said.
    """

    at_ns: int
    kind: str
    text: str


def read_marks(log: Log) -> list[Remark]:
    """All remarks by time; reads no other message."""
    topic = log.topics.get(TOPIC)
    if topic is None or log_fields.clock(log, topic) != "stamp_ns":
        return []
    read = log.read(TOPIC, FIELDS)
    names = log_fields.value_names(topic.text, "kind")
    at_ns = log_fields.epoch_ns(log, read, "stamp_ns").tolist()
    found = [
        Remark(at, names.get(int(row["kind"]), ""), row["text"].decode("ascii", "replace").rstrip())
        for at, row in zip(at_ns, read, strict=True)
    ]
    return sorted(found, key=lambda remark: remark.at_ns)


def marks_for_people(log: Log) -> list[dict[str, Any]]:
    """All remarks as plain data: t_s (since the log's start), kind, text."""
    return [
        {"t_s": (mark.at_ns - log.start_ns) * 1e-9, "kind": mark.kind, "text": mark.text}
        for mark in read_marks(log)
    ]


def marked_episode(log: Log, stamp_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which marked episode each moment is in, counted from 1; 0: none. All 1 if none was marked.

    One that is not ended lasts until the next begins, or to the end of the log.

    Args:
        stamp_ns: (n,) moments, epoch ns.
    """
    cuts = [m for m in read_marks(log) if m.kind in ("EPISODE_BEGIN", "EPISODE_END")]
    begins = np.array([mark.kind == "EPISODE_BEGIN" for mark in cuts], bool)
    if not begins.any():
        return np.ones(len(stamp_ns), np.int64)
    number = np.r_[0, np.where(begins, np.cumsum(begins), 0)]
    at_ns = np.array([mark.at_ns for mark in cuts])
    return number[np.searchsorted(at_ns, stamp_ns, side="right")]
