"""Turns a log into tables of the field: CSV and Parquet, one file per topic.

What the log holds is copied, not resampled; for a uniform grid see log_lerobot.py.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot import log_fields
from robot.config import UserError, listing
from robot.log import Log, Topic

PIECE_BYTES = 16 * 2**20  # of one topic held in memory; a row group of a Parquet file
LOG_TIME = "log_time_ns"  # first column of every table: time of receipt, epoch ns


def to_csv(
    log: Log, out: Path, topics: Sequence[str] = (), between: tuple[float, float] | None = None
) -> list[Path]:
    """Write `<topic>.csv` for each topic: scalars by name, arrays as name[0], name[1], ...

    Numbers are written so that they read back exactly; arrays of bytes are one column in hex.

    Args:
        log: what to export.
        out: a folder; made if it is not there. Files in it of the same name are replaced.
        topics: keys of log.topics; none: all of ours.
        between: seconds since the log's start.

    Returns:
        The files, those of topics without a message included.

    Raises:
        UserError: a topic is unknown or its messages vary in length; `out` is no folder.
    """
    chosen = _choose(log, topics)
    _make_folder(out)
    paths = []
    for topic in chosen:
        path = out / f"{_stem(topic)}.csv"
        with _unfinished(path) as unfinished, unfinished.open("w", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(_header(topic))
            for piece in pieces(log, topic, between):
                rows.writerows(zip(*_columns(piece), strict=True))
        paths.append(path)
    return paths


def to_parquet(
    log: Log, out: Path, topics: Sequence[str] = (), between: tuple[float, float] | None = None
) -> list[Path]:
    """Write `<topic>.parquet` for each topic: arrays as fixed-size lists, bytes as binary.

    Units and sentences of the fields go into the columns' metadata, the log's own record and the
    joints' names into the file's. Arguments, result and errors as `to_csv`.

    Raises:
        UserError: also if pyarrow is missing.
    """
    pyarrow()
    from pyarrow.parquet import ParquetWriter

    chosen = _choose(log, topics)
    _make_folder(out)
    paths = []
    for topic in chosen:
        path, schema = out / f"{_stem(topic)}.parquet", _schema(log, topic)
        with _unfinished(path) as unfinished, ParquetWriter(unfinished, schema) as writer:
            for piece in pieces(log, topic, between):
                writer.write_table(_table(piece, schema))
        paths.append(path)
    return paths


def pyarrow() -> Any:
    """The library that writes Parquet, which only exports need.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            "Parquet needs the package pyarrow, which is not installed; install plexus[export]"
        ) from None
    return pyarrow


def pieces(
    log: Log, topic: Topic, between: tuple[float, float] | None = None
) -> Iterator[NDArray[Any]]:
    """All of a topic with its log times, in order, never more than PIECE_BYTES at once.

    Yields:
        (n,) `log_time_ns` and `body`, the fields of the message; valid until the next piece.
    """
    assert topic.dtype is not None
    dtype = np.dtype([(LOG_TIME, "<i8"), ("body", topic.dtype)])
    block = np.zeros(max(PIECE_BYTES // dtype.itemsize, 1), dtype)
    count = 0
    for _, log_time_ns, payload in log.messages(topic.name, between=between):
        if len(payload) != topic.size:  # the reader names such messages in log.damage
            continue
        block[count] = log_time_ns, np.frombuffer(payload, topic.dtype, 1, 4)[0]
        count += 1
        if count == len(block):
            yield block
            count = 0
    if count:
        yield block[:count]


def _choose(log: Log, topics: Sequence[str]) -> list[Topic]:
    """The topics to write; without a choice those of ours, as the viewers' are made from them."""
    fit = [name for name, topic in log.topics.items() if topic.dtype is not None]
    for name in topics:
        if name not in log.topics:
            raise UserError(f"{log.path}: topic {name!r} is unknown; available: {listing(fit, 40)}")
        if name not in fit:
            raise UserError(
                f"{log.path}: messages of topic {name!r} vary in length; expected one of: "
                f"{listing(fit, 40)}"
            )
    names = list(dict.fromkeys(topics)) or [name for name in fit if not name.startswith("/")]
    if not names:
        raise UserError(f"{log.path}: got no topic of ours; expected one; there: {listing(fit)}")
    return [log.topics[name] for name in names]


def _stem(topic: Topic) -> str:
    """File name of a topic: command.script; joint_states for a viewer's /joint_states."""
    return topic.name.strip("/").replace("/", ".")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made a folder: {error.strerror}") from None


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A name to write under; the file gets its own once it is whole, and vanishes otherwise."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


# --- CSV ----------------------------------------------------------------------------------------


def _header(topic: Topic) -> list[str]:
    names = [LOG_TIME]
    for name, kind in _fields(topic):
        if kind.shape and kind.base != np.uint8:
            names += [f"{name}[{i}]" for i in range(kind.shape[0])]
        else:
            names.append(name)
    return names


def _columns(piece: NDArray[Any]) -> Iterator[list[Any]]:
    """Columns of plain values in the order of the header."""
    yield piece[LOG_TIME].tolist()
    body = piece["body"]
    for name in body.dtype.names or ():
        values = body[name]
        if values.dtype.kind == "S":
            yield _texts(values)
        elif values.ndim == 1:
            yield values.tolist()
        elif values.dtype == np.uint8:
            yield [row.tobytes().hex() for row in values]
        else:
            yield from values.T.tolist()


def _texts(values: NDArray[Any]) -> list[str]:
    """Text without the spaces that fill it up to its length."""
    return [value.decode("utf-8", "replace").rstrip(" ") for value in values.tolist()]


def _fields(topic: Topic) -> list[tuple[str, np.dtype]]:
    assert topic.dtype is not None
    return [(name, log_fields.element_type(topic, name)) for name in topic.dtype.names or ()]


# --- Parquet ------------------------------------------------------------------------------------


def _schema(log: Log, topic: Topic) -> Any:
    pa = pyarrow()
    columns = [pa.field(LOG_TIME, pa.int64(), False, {"unit": "ns", "doc": "time of receipt"})]
    for name, kind in _fields(topic):
        about = {
            "unit": log_fields.unit(topic.text, name),
            "doc": log_fields.field_doc(topic.text, name),
        }
        columns.append(pa.field(name, _column_type(kind), False, about))
    metadata = {
        **{f"plexus.{key}": value for key, value in log.metadata.items()},
        "plexus.topic": topic.name,
        "plexus.schema": topic.text,
        "plexus.joint_names": json.dumps(log_fields.joint_names(log)),
    }
    return pa.schema(columns, metadata)


def _column_type(kind: np.dtype) -> Any:
    pa = pyarrow()
    if kind.kind == "S":
        return pa.string()
    if not kind.shape:
        return pa.from_numpy_dtype(kind)
    if kind.base == np.uint8:
        return pa.binary(kind.shape[0])
    return pa.list_(pa.from_numpy_dtype(kind.base), kind.shape[0])


def _table(piece: NDArray[Any], schema: Any) -> Any:
    pa = pyarrow()
    arrays = [pa.array(piece[LOG_TIME])]
    body = piece["body"]
    for name in body.dtype.names or ():
        values = body[name]
        if values.dtype.kind == "S":
            arrays.append(pa.array(_texts(values), pa.string()))
        elif values.ndim == 1:
            arrays.append(pa.array(np.ascontiguousarray(values)))
        elif values.dtype == np.uint8:
            arrays.append(pa.array([row.tobytes() for row in values], pa.binary(values.shape[1])))
        else:
            arrays.append(fixed_lists(values))
    return pa.Table.from_arrays(arrays, schema=schema)


def fixed_lists(values: NDArray[Any]) -> Any:
    """(n, k) numbers as an Arrow column of n lists of k."""
    pa = pyarrow()
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
