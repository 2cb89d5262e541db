"""What `plexus log list|info|cat` tell of logs: plain data from a log, and its print."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robot.config import UserError
from robot.log import LOG_TIME, Log, Topic, is_numbered, missing
from robot.log_marks import marks_for_people
from robot.modes import FAULTS
from robot.recover import being_written
from robot.segment import SEGMENT_NAME

STATUS = ("mode", "faults", "reason", "drops", "blocked")  # fields that `info` looks at
WINDOW_S = 10.0  # of the log that `cat` holds in memory


def list_logs(folder: Path) -> list[dict[str, Any]]:
    """The logs in a folder, by name, which is by time.

    Returns:
        One row each: name, start (UTC, ISO), duration_s, size (bytes), state (recording: its
        recorder is at it; unfinished: it was stopped hard, `plexus log recover` helps; recovered;
        damaged: messages are missing within; finished), policy (file
        name), modes (in the order they were entered). An unreadable log has empty values.

    Raises:
        UserError: no such folder.
    """
    return [log_row(path, modes=True) for path in log_folders(folder)]


def log_folders(folder: Path) -> list[Path]:
    """The folders of a folder that hold logs, by name.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one that holds logs")
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and _files(p)]


def info(log: Log) -> dict[str, Any]:
    """All that `print_info` shows, as plain data; reads the whole log once.

    Returns:
        name, path, files, size, state, start, duration_s, run, robot, simulated, timing_factor,
        commit, dirty, command_line, end (reason, messages, lost), policy (name, provider, sha256;
        the first that ran), policies (t_s, name, policy_id as 16 digits, file: its attachment, ""
        without one; one row per time that another began),
        topics (name, message, count, rate_hz, gap_ms, lost, size), drops (frames refused by
        control, contents blocked), modes (t_s, mode, reason), faults (t_s, until_s, name, reason;
        until_s is None if active to the end), marks (t_s, kind, text), damage. Times in s since
        the log's start.
    """
    read = log.read_topics({name: _info_fields(topic) for name, topic in log.topics.items()})
    status = read.get("status")
    if status is not None and not set(STATUS) <= set(status.dtype.names or ()):
        status = None  # of another version
    modes = [] if status is None else _modes(log, status)
    return {
        "name": log.path.resolve().name,
        "path": str(log.path),
        "files": len(log.segments),
        "size": _size(log.segments),
        "state": _state(log),
        "start": _iso(log.start_ns),
        "duration_s": log.duration_s,
        **{key: log.metadata.get(key, "") for key in (
            "run", "robot", "simulated", "timing_factor", "commit", "dirty", "command_line",
        )},
        "end": log.end,
        "policy": _policy(log),
        "policies": _policies(log),
        "topics": [_topic_row(topic, read[name]) for name, topic in log.topics.items()],
        "drops": {} if status is None or not len(status) else {
            "refused": int(status["drops"][-1]), "blocked": int(status["blocked"][-1]),
        },
        "modes": modes,
        "faults": [] if status is None else _faults(log, status),
        "marks": marks_for_people(log),
        "damage": log.damage,
    }  # fmt: skip


def print_info(told: Mapping[str, Any], console: Console | None = None) -> None:
    """Show what `info` found."""
    out = console or Console()
    for label, text in _heading(told):
        out.print(f"{label:<11}{escape(text)}", soft_wrap=True, highlight=False)
    out.print(_topic_table(told["topics"]))
    if len(told["policies"]) > 1:
        table = Table("from", "policy", "id", "file in the log")
        for row in told["policies"]:
            named = escape(row["name"]), row["policy_id"], escape(row["file"] or "none")
            table.add_row(f"{row['t_s']:.3f} s", *named)
        out.print(table)
    if told["modes"]:
        table = Table("at", "mode", "why")
        for row in told["modes"]:
            table.add_row(f"{row['t_s']:.3f} s", row["mode"], escape(row["reason"]))
        out.print(table)
    if told["faults"]:
        table = Table("at", "until", "fault", "why")
        for row in told["faults"]:
            until = "the end" if row["until_s"] is None else f"{row['until_s']:.3f} s"
            table.add_row(f"{row['t_s']:.3f} s", until, row["name"], escape(row["reason"]))
        out.print(table)
    if told["marks"]:
        table = Table("at", "remark", "who, what")
        for row in told["marks"]:
            kind = row["kind"].lower().replace("_", " ")
            table.add_row(f"{row['t_s']:.3f} s", kind, escape(row["text"]))
        out.print(table)
    for line in told["damage"]:
        out.print(f"[yellow]damage[/]     {escape(line)}", soft_wrap=True, highlight=False)


def cat(
    log: Log,
    topic: str,
    between: tuple[float, float] | None = None,
    fields: Sequence[str] | None = None,
    limit: int | None = None,
) -> Iterator[str]:
    """One JSON object per message: t_s (since the log's start), then its fields.

    Enumerations are given by name, texts without padding, and numbers JSON does not know as null.

    Raises:
        UserError: no such topic or field, or the topic's messages vary in length.
    """
    log.read(topic, fields, between=(0.0, 0.0))  # a mistake is told before anything is printed
    low, high = between or (0.0, math.inf)
    low, high = max(low, 0.0), min(high, log.duration_s + 1e-6)
    if fields is None:
        fields = log.topics[topic].dtype.names  # type: ignore[union-attr]
    assert fields is not None
    asked = list(dict.fromkeys((LOG_TIME, *fields)))
    enums = {name: enum_names(log.topics[topic].text, name) for name in fields}
    left = math.inf if limit is None else limit
    # Windows are counted, not added up: every message is in exactly one.
    for number in range(max(math.ceil((high - low) / WINDOW_S), 0)):
        span = low + number * WINDOW_S, min(low + (number + 1) * WINDOW_S, high)
        for row in log.read(topic, asked, span):
            if left <= 0:
                return
            left -= 1
            values: dict[str, Any] = {"t_s": round((int(row[LOG_TIME]) - log.start_ns) * 1e-9, 9)}
            values |= {name: _plain(row[name], enums[name]) for name in fields}
            yield json.dumps(values)


def enum_names(text: str, field: str) -> dict[int, str]:
    """Names of a field's values, from the constants in its message's text: uint8 MODE_DAMP=1."""
    pattern = rf"^u?int\d+ {re.escape(field.upper())}_(\w+)=(-?\d+)\s*$"
    return {int(value): name for name, value in re.findall(pattern, text, re.MULTILINE)}


# --- pieces -------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if SEGMENT_NAME.fullmatch(p.name)]


def _size(paths: Sequence[Path]) -> int:
    """Bytes; a file that got its final name meanwhile counts as none."""
    return sum(path.stat().st_size for path in paths if path.exists())


def log_row(path: Path, modes: bool = False) -> dict[str, Any]:
    """A log's row in `list_logs`; without modes no message of a finished log is read."""
    row = {"name": path.name, "start": "", "duration_s": 0.0, "size": _size(_files(path)),
           "state": "damaged", "policy": ""} | ({"modes": []} if modes else {})  # fmt: skip
    try:
        log = Log(path)
    except (UserError, OSError):
        return row
    return row | {
        "start": _iso(log.start_ns),
        "duration_s": log.duration_s,
        "state": _state(log),
        "policy": _policy_file(log),
        **({"modes": _modes_entered(log)} if modes else {}),
    }


def _modes_entered(log: Log) -> list[str]:
    status = log.topics.get("status")
    if status is None or "mode" not in _names(status):
        return []
    values = log.read("status", ["mode"])["mode"]
    names = enum_names(status.text, "mode")
    return [names.get(int(v), str(v)) for v in values[_changes(values)]]


def _state(log: Log) -> str:
    partial = [path for path in log.segments if path.suffix == ".partial" and path.exists()]
    if any(being_written(path) for path in partial):
        return "recording"
    if partial or not log.end:
        if log.recovered and not partial:
            return "recovered"
        return "unfinished" if log.whole_records else "damaged"
    return "damaged" if log.damage else "finished"


def _iso(epoch_ns: int) -> str:
    if not 0 < epoch_ns < 2**62:
        return ""
    return datetime.fromtimestamp(epoch_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _policy_file(log: Log) -> str:
    """Name of the policy's file, from the run's configuration."""
    try:
        policy = json.loads(log.attachments.get("run.json", b"{}")).get("policy")
    except (ValueError, AttributeError):
        return ""
    return Path(policy).name if isinstance(policy, str) else ""


def _policy(log: Log) -> dict[str, str]:
    told = {"file": _policy_file(log), "sha256": log.metadata.get("policy_sha256", "")}
    known = log.topics.get("policy_info")
    if known is not None and {"name", "provider"} <= _names(known):
        read = log.read("policy_info", ["name", "provider"])
        if len(read):
            told |= {key: _plain(read[key][0], {}) for key in ("name", "provider")}
    return told


def _policies(log: Log) -> list[dict[str, Any]]:
    """Which policy the pilot had loaded from when, as it said itself."""
    known = log.topics.get("policy_info")
    if known is None or not {"name", "policy_id"} <= _names(known):
        return []
    read = log.read("policy_info", [LOG_TIME, "name", "policy_id"])
    return [
        {
            "t_s": _seconds(log, read, row),
            "name": _plain(read["name"][row], {}),
            "policy_id": f"{int(read['policy_id'][row]):016x}",
            "file": log.policies.get(int(read["policy_id"][row]), ""),
        }
        for row in _changes(read["policy_id"]).tolist()
    ]


def _names(topic: Topic) -> set[str]:
    """Fields of a topic; none if its messages vary in length."""
    return set() if topic.dtype is None else set(topic.dtype.names or ())


def _info_fields(topic: Topic) -> list[str]:
    asked = ("instance", "seq", *(STATUS if topic.name == "status" else ()))
    return [LOG_TIME, *(name for name in asked if name in _names(topic))]


def _topic_row(topic: Topic, read: NDArray[Any]) -> dict[str, Any]:
    times = read[LOG_TIME]
    steps = np.diff(times)
    span = float(times[-1] - times[0]) * 1e-9 if len(times) > 1 else 0.0
    return {
        "name": topic.name,
        "message": topic.schema,
        "count": len(read),
        "rate_hz": (len(times) - 1) / span if span > 0 else None,
        "gap_ms": float(steps.max()) * 1e-6 if len(steps) else None,
        "lost": missing(read) if is_numbered(read.dtype) else None,
        "size": topic.size,
    }


def _changes(values: NDArray[Any]) -> NDArray[np.int64]:
    """Rows where a value differs from the one before, the first row included."""
    if not len(values):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]])


def _seconds(log: Log, status: NDArray[Any], row: int) -> float:
    return int(status[LOG_TIME][row] - log.start_ns) * 1e-9


def _modes(log: Log, status: NDArray[Any]) -> list[dict[str, Any]]:
    names = enum_names(log.topics["status"].text, "mode")
    return [
        {
            "t_s": _seconds(log, status, row),
            "mode": names.get(int(status["mode"][row]), str(status["mode"][row])),
            "reason": _plain(status["reason"][row], {}),
        }
        for row in _changes(status["mode"]).tolist()
    ]


def _faults(log: Log, status: NDArray[Any]) -> list[dict[str, Any]]:
    """Stretches in which a fault was active, by time."""
    found = []
    seen = int(np.bitwise_or.reduce(status["faults"])) if len(status) else 0
    for bit in range(64):
        if not seen >> bit & 1:
            continue
        active = (status["faults"] >> np.uint64(bit)) & np.uint64(1)
        for row in _changes(active).tolist():
            if active[row]:
                off = np.flatnonzero(active[row:] == 0)
                found.append({
                    "t_s": _seconds(log, status, row),
                    "until_s": _seconds(log, status, row + int(off[0])) if len(off) else None,
                    "name": FAULTS[bit].name if bit < len(FAULTS) else f"fault {bit}",
                    "reason": _plain(status["reason"][row], {}),
                })  # fmt: skip
    return sorted(found, key=lambda fault: fault["t_s"])


def _plain(value: Any, names: Mapping[int, str]) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").rstrip()
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(plain, bytes):
        return plain.decode("ascii", "replace").rstrip()
    if isinstance(plain, list):
        return [_plain(v, names) for v in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return names.get(plain, plain) if names and isinstance(plain, int) else plain


def _heading(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of the lines above the tables."""
    end, policy = told["end"], told["policy"]
    files = f"{told['files']} file{'s' if told['files'] != 1 else ''}"
    yield "log", f"{told['name']}, {told['size'] / 1e6:.1f} MB in {files}"
    yield "start", f"{told['start']}, {told['duration_s']:.1f} s"
    why = f": {end['reason']}" if end.get("reason") else ""
    lost = f", {end['lost']} messages lost" if end.get("lost", "0") != "0" else ""
    yield "state", f"{told['state']}{why}{lost}"
    real = "simulated" if told["simulated"].lower() in ("true", "1") else "real"
    yield "run", f"{told['run']} of {told['robot']}, {real}, timing factor {told['timing_factor']}"
    if told["command_line"]:
        yield "command", told["command_line"]
    name = policy.get("name") or policy["file"] or "none"
    by = f" on {policy['provider']}" if policy.get("provider") else ""
    digest = f", sha256 {policy['sha256'][:12]}" if policy["sha256"] else ""
    yield "policy", f"{name}{by}{digest}"
    changed = " with changes" if told["dirty"].lower() in ("true", "1") else ""
    yield "commit", f"{told['commit'][:12] or 'unknown'}{changed}"
    if told["drops"]:
        refused, blocked = told["drops"]["refused"], told["drops"]["blocked"]
        yield "drops", f"{refused} frames refused by control, {blocked} blocked for their content"


def _topic_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("topic", "message")
    for name in ("count", "Hz", "greatest gap", "lost", "bytes"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["name"], row["message"].rpartition("/")[2], str(row["count"]),
            "-" if row["rate_hz"] is None else f"{row['rate_hz']:.1f}",
            "-" if row["gap_ms"] is None else f"{row['gap_ms']:.1f} ms",
            "-" if row["lost"] is None else str(row["lost"]),
            str(row["size"]) if row["size"] else "varies",
        )  # fmt: skip
    return table
