"""Says what a log tells of its own fields: units, names of values and joints, what a user named.

Everything comes from the schema text and the attachments in the file, so that a log written by
another version, or of another robot, is read by its own words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from robot.config import UserError, listing, short
from robot.log import Log, Topic

DECLARATION = re.compile(
    r"^\s*[\w/]+(?:\[(?:<=)?\d*\])?\s+(?P<name>[a-zA-Z]\w*)\s*(?:#\s*(?P<doc>.*))?$"
)
CONSTANT = re.compile(r"^\s*u?int\d+\s+(?P<name>[A-Z][A-Z0-9_]*)\s*=\s*(?P<value>-?\d+)")
NOTES = re.compile(r"\[(?P<notes>[^\[\]]*)\]\s*$")
FIELD = re.compile(r"^(?P<path>[^\[\]]+?)(?:\[(?P<index>[^\[\]]+)\])?$")
FRAMES = {"frame world", "frame body", "frame imu"}  # three numbers in one of these are x, y, z


@dataclass(frozen=True)
class Field:
    """One field of one topic, or one element of it."""

    topic: str
    name: str
    index: int | None = None
    """Element of an array; None: all of it."""

    @property
    def column(self) -> str:
        """As `Log.read` takes it: joint_pos, or joint_pos[3]."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"


def find_field(log: Log, text: str) -> Field:
    """What a user means by `topic.field`, `topic.field[3]` or `topic.field[left_knee]`.

    Raises:
        UserError: topic, field, element or joint do not exist, or hold no numbers.
    """
    match = FIELD.match(text.strip())
    path = match["path"] if match else text
    known = [name for name, topic in log.topics.items() if topic.dtype is not None]
    # Topics have dots in their names too; the longest one that fits is meant.
    at = max((t for t in known if path.startswith(f"{t}.")), key=len, default=None)
    if match is None or at is None:
        raise UserError(
            f"field {short(text)}: expected topic.field, topic.field[3] or topic.field[joint]; "
            f"topics of this log: {listing(known, 40)}"
        )
    topic, name = log.topics[at], path[len(at) + 1 :]
    names = numeric_fields(topic)
    if name not in names:
        raise UserError(
            f"field {short(text)}: topic {at} has no numbers of name {name!r}; "
            f"available: {listing(names, 40)}"
        )
    if match["index"] is None:
        return Field(at, name)
    return Field(at, name, _element(log, topic, name, match["index"], text))


def _element(log: Log, topic: Topic, name: str, given: str, text: str) -> int:
    """Place of an element that was given by number or by name."""
    count = length(topic, name)
    if count is None:
        raise UserError(f"field {short(text)}: {name} is a single number, expected no [...]")
    labels = element_names(log, topic, name)
    if given.isdecimal():
        if int(given) < count:
            return int(given)
    else:
        # People leave the ending out that all joints of a robot share.
        for wanted in (given, f"{given}_joint"):
            if wanted in labels:
                return labels.index(wanted)
    raise UserError(
        f"field {short(text)}: element {given!r} is unknown; expected 0 to {count - 1}, or one of: "
        f"{listing(labels, 40)}"
    )


def numeric_fields(topic: Topic) -> list[str]:
    """Names of a topic's fields that hold numbers."""
    fields = topic.dtype.fields if topic.dtype is not None else None
    return [name for name, (kind, *_) in (fields or {}).items() if kind.base.kind in "iufb"]


def length(topic: Topic, name: str) -> int | None:
    """Number of elements of an array field; None for a scalar."""
    shape = element_type(topic, name).shape
    return shape[0] if shape else None


def element_type(topic: Topic, name: str) -> np.dtype:
    """Type of a field; of an array with its shape."""
    assert topic.dtype is not None
    kinds: Any = topic.dtype.fields
    return kinds[name][0]


def element_names(log: Log, topic: Topic, name: str) -> list[str]:
    """Names of an array's elements: joints, axes, or just their numbers."""
    count = length(topic, name) or 0
    notes = field_notes(topic.text, name)
    for note, joints in (("one per joint", joint_names(log)), ("one per arm joint", arms(log))):
        if note in notes and len(joints) == count:
            return list(joints)
    if name.endswith("_wxyz"):
        return list("wxyz")
    if count == 3 and FRAMES & set(notes):
        return list("xyz")
    return [str(i) for i in range(count)]


def joint_names(log: Log) -> tuple[str, ...]:
    """Joints of the robot in the order of the arrays; empty if the log does not say."""
    return tuple(row["name"] for row in _joint_rows(log))


def arms(log: Log) -> tuple[str, ...]:
    """The joints of group "arm", in the order of arrays over arm joints."""
    return tuple(row["name"] for row in _joint_rows(log) if row.get("group") == "arm")


def _joint_rows(log: Log) -> list[dict]:
    """Rows of the robot.yaml in the log. Read loosely: another version may have written it."""
    try:
        data = yaml.safe_load(log.attachments.get("robot.yaml", b"").decode("utf-8"))
        rows = data["joints"]
        return [row for row in rows if isinstance(row["name"], str)]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        return []


def field_doc(text: str, name: str) -> str:
    """The sentence about a field in a schema text, without its notes."""
    return NOTES.sub("", _comment(text, name)).strip()


def field_notes(text: str, name: str) -> list[str]:
    """What stands in brackets behind a field: unit, frame, one per joint."""
    match = NOTES.search(_comment(text, name))
    return [note.strip() for note in match["notes"].split(",")] if match else []


def unit(text: str, name: str) -> str:
    """Unit of a field; "" if it has none or the text does not say."""
    notes = field_notes(text, name)
    told = [n for n in notes if not n.startswith(("frame ", "one per ")) and n != "1"]
    return told[0] if told else ""


def _comment(text: str, name: str) -> str:
    for line in text.partition("\n===")[0].splitlines():
        match = DECLARATION.match(line)
        if match and match["name"] == name:
            return match["doc"] or ""
    return ""


def value_names(text: str, name: str) -> dict[int, str]:
    """Names of an enumeration's values: from MODE_STAND=3 for the field mode, {3: "STAND"}."""
    found = (CONSTANT.match(line) for line in text.splitlines())
    prefix = f"{name.upper()}_"
    return {
        int(match["value"]): match["name"].removeprefix(prefix)
        for match in found
        if match and match["name"].startswith(prefix)
    }


def clock(log: Log, topic: Topic) -> str:
    """The field to take times from: of the stamp where messages have one, else of receipt."""
    stamped = topic.dtype is not None and "stamp_ns" in (topic.dtype.names or ())
    return "stamp_ns" if stamped and "clock_offset_ns" in log.metadata else "log_time_ns"


def epoch_ns(log: Log, records: NDArray, clock: str) -> NDArray[np.int64]:
    """Times of records in ns since the epoch, from the field that `clock` named."""
    offset = int(log.metadata["clock_offset_ns"]) if clock == "stamp_ns" else 0
    return records[clock].astype(np.int64) + offset


def seconds(log: Log, records: NDArray, clock: str) -> NDArray[np.float64]:
    """Times of records in s since the start of the log, from the field that `clock` named."""
    return (epoch_ns(log, records, clock) - log.start_ns).astype(np.float64) * 1e-9
