"""Turns logs into a LeRobot v3.0 data set: info, statistics, tasks, episodes and frames.

Frames come from log_episodes.py. Beside the files of the format stands meta/quality.json, which
says of each episode what was lost, how old samples were and what safety did. Nothing but pyarrow is
needed to write it. Layout after huggingface/lerobot, whose reader is the judge.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot import log_fields
from robot.config import UserError, listing
from robot.log import Log
from robot.log_episodes import READ, Episode, find_episodes, resample, tick_ns
from robot.log_export import fixed_lists, pyarrow

FILE_BYTES, FILES_PER_CHUNK = 100 * 2**20, 1000
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
GRID = {  # what every data set has
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip
# pandas takes the task's text from the index, and the index from this; without it, row numbers.
TASKS_ABOUT = {
    "index_columns": ["task"],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
         "metadata": {"encoding": "UTF-8"}},
    ],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
         "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object",
         "metadata": None},
    ],
    "pandas_version": "2.0.0",
}  # fmt: skip


def to_lerobot(
    logs: Sequence[Log], out: Path, fps: int = 50, task: str = "walk", whole: bool = False
) -> Path:
    """Write logs as one data set.

    A frame holds `observation.state` (joint positions and velocities, IMU), `action` (position
    targets sent to the motors), `observation.command` (velocity that the policy was told; zeros
    before the first), and the true clocks: `observation.time_ns` and `source.*`, epoch ns.

    Args:
        logs: of one robot. An episode is a stretch in POLICY or HOLD, cut at 30 minutes and where
            low_state or low_cmd has a hole of 0.1 s.
        out: a new or an empty folder.
        fps: frames per second, at most the rate of control.
        task: what the robot was doing, in words.
        whole: every mode counts, not only POLICY and HOLD.

    Returns:
        `out`.

    Raises:
        UserError: pyarrow is missing, `out` is not empty, the logs are not of one robot, or there
            is no episode in them.
    """
    pyarrow()
    joints = _check(logs, out, fps, task)
    features = _features(joints)
    # One after another: what is known of a log's clocks need not be held for all of them.
    episodes = (episode for log in logs for episode in find_episodes(log, fps, whole))
    rows, cards = _write_data(out, episodes, features, fps)
    if not rows:
        wanted = "both low_state and low_cmd" if whole else "mode POLICY or HOLD"
        raise UserError(
            f"{listing(str(log.path) for log in logs)}: got no stretch with {wanted}; expected one "
            "of two frames or more"
        )
    _write_tasks(out, task)
    _write_json(out / "meta" / "stats.json", _stats_of_all(out, features))
    _write_episodes(out, rows, features, task)
    _write_json(out / "meta" / "quality.json", cards)
    # Last: a folder without it is no data set, so an export that was cut short is seen.
    _write_json(out / "meta" / "info.json", _info(logs[0], rows, features, fps))
    return out


def _check(logs: Sequence[Log], out: Path, fps: int, task: str) -> tuple[str, ...]:
    """The joints' names, the same in all logs."""
    if not logs:
        raise UserError("nothing to export: got no log, expected at least one")
    if not task.strip():
        raise UserError("--task: got no text, expected what the robot was doing, in words")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; expected a new or an empty folder")
    joints = log_fields.joint_names(logs[0])
    for log in logs:
        _check_log(log, fps)
        if log_fields.joint_names(log) != joints:
            raise UserError(
                f"{log.path}: got other joints than in {logs[0].path}; expected logs of one robot"
            )
    return joints


def _check_log(log: Log, fps: int) -> None:
    for topic in ("low_state", "low_cmd"):
        held = log.topics.get(topic)
        lacks = set(READ[topic]) - set(log_fields.numeric_fields(held) if held else ())
        if lacks:
            raise UserError(
                f"{log.path}: topic {topic} lacks {listing(sorted(lacks))}, which frames are made "
                f"of; topics there: {listing(log.topics, 40)}"
            )
    if not log_fields.joint_names(log):
        raise UserError(f"{log.path}: got no robot.yaml with joints; expected their names in it")
    stamps = log.read("low_cmd", ["stamp_ns"])["stamp_ns"]
    rate = 1e9 / tick_ns(stamps)
    if not 0 < fps <= rate and len(stamps) > 1:
        raise UserError(
            f"--fps: got {fps}, expected 1 to {rate:.0f}, the rate of control in {log.path}"
        )


def _features(joints: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Columns of the data files, as info.json lists them."""
    positions = [f"{name}.q" for name in joints]
    imu = [f"imu.quat.{axis}" for axis in "wxyz"]
    imu += [f"imu.{part}.{axis}" for part in ("gyro", "accel") for axis in "xyz"]
    vectors = {
        "observation.state": [*positions, *(f"{name}.dq" for name in joints), *imu],
        "action": positions,
        "observation.command": ["vx", "vy", "yaw_rate"],
    }
    clocks = ["observation.time_ns", "source.low_state_seq"]
    for topic in ("low_cmd", "policy_input"):
        clocks += [f"source.{topic}_time_ns", f"source.{topic}_seq"]
    found: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": [len(names)], "names": names}
        for name, names in vectors.items()
    }
    for name, kind in {**dict.fromkeys(clocks, "int64"), **GRID}.items():
        found[name] = {"dtype": kind, "shape": [1], "names": None}
    return found


# --- data ---------------------------------------------------------------------------------------


def _write_data(
    out: Path, episodes: Iterable[Episode], features: dict[str, Any], fps: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Frames of all episodes, one row group each; gives rows of the episodes' table and cards."""
    from pyarrow.parquet import ParquetWriter

    rows: list[dict[str, Any]] = []
    cards: list[dict[str, Any]] = []
    schema, first, number, writer = _data_schema(features), 0, 0, None
    try:
        for index, episode in enumerate(episodes):
            path = out / DATA.format(**_place(number))
            if writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = ParquetWriter(path, schema, compression="snappy")
            columns, card = resample(episode)
            columns |= _grid_columns(len(episode.grid_ns), index, first, fps)
            table = _table(columns, schema)
            writer.write_table(table, row_group_size=table.num_rows)
            rows.append(_episode_row(index, first, columns, features, number))
            cards.append({"episode_index": index, **card})
            first += table.num_rows
            if path.stat().st_size >= FILE_BYTES:
                writer.close()
                writer, number = None, number + 1
    finally:
        if writer is not None:
            writer.close()
    return rows, cards


def _place(number: int) -> dict[str, int]:
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return {"chunk_index": chunk, "file_index": file}


def _grid_columns(frames: int, episode: int, first: int, fps: int) -> dict[str, NDArray[Any]]:
    """The nominal clock and the indices; `index` counts on through all episodes."""
    frame = np.arange(frames, dtype=np.int64)
    return {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(frames, episode, np.int64),
        "index": first + frame,
        "task_index": np.zeros(frames, np.int64),
    }


def _data_schema(features: dict[str, Any]) -> Any:
    pa = pyarrow()
    kinds = {"float32": pa.float32(), "int64": pa.int64()}
    columns = []
    for name, feature in features.items():
        kind, count = kinds[feature["dtype"]], feature["shape"][0]
        columns.append(pa.field(name, kind if count == 1 else pa.list_(kind, count)))
    return pa.schema(columns)


def _table(columns: dict[str, NDArray[Any]], schema: Any) -> Any:
    pa = pyarrow()
    arrays = []
    for name in schema.names:
        values = columns[name]
        arrays.append(fixed_lists(values) if values.ndim == 2 else pa.array(values))
    return pa.Table.from_arrays(arrays, schema=schema)


def _episode_row(
    index: int, first: int, columns: dict[str, NDArray[Any]], features: dict[str, Any], number: int
) -> dict[str, Any]:
    """One row of the episodes' table, without its task; the reader finds rows by their place."""
    frames = len(columns["index"])
    row: dict[str, Any] = {"episode_index": index, "length": frames}
    row |= {f"data/{key}": value for key, value in _place(number).items()}
    row |= {"dataset_from_index": first, "dataset_to_index": first + frames}
    row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    for name in features:
        for stat, value in describe(columns[name]).items():
            row[f"stats/{name}/{stat}"] = value
    return row


# --- meta ---------------------------------------------------------------------------------------


def describe(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Statistics of a column, (n,) or (n, k): lists of k numbers, count a list of one."""
    table = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(table, list(QUANTILES.values()), axis=0)
    found: dict[str, list[Any]] = {
        "min": table.min(axis=0).tolist(), "max": table.max(axis=0).tolist(),
        "mean": table.mean(axis=0).tolist(), "std": table.std(axis=0).tolist(),
        "count": [len(table)],
    }  # fmt: skip
    return found | {name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)}


def _stats_of_all(out: Path, features: dict[str, Any]) -> dict[str, Any]:
    """Statistics over all frames, read back one column at a time."""
    import pyarrow.parquet as parquet

    paths = sorted(out.glob("data/*/*.parquet"))
    found = {}
    for name, feature in features.items():
        parts = []
        for path in paths:
            column = parquet.read_table(path, columns=[name])[name].combine_chunks()
            flat = column.flatten() if feature["shape"] != [1] else column
            parts.append(flat.to_numpy(zero_copy_only=False).reshape(len(column), -1))
        found[name] = describe(np.concatenate(parts))
    return found


def _write_episodes(
    out: Path, rows: list[dict[str, Any]], features: dict[str, Any], task: str
) -> None:
    import pyarrow.parquet as parquet

    pa = pyarrow()
    rows = [{**row, "tasks": [task]} for row in rows]
    path = out / EPISODES
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, compression="snappy")


def _write_tasks(out: Path, task: str) -> None:
    import pyarrow.parquet as parquet

    pa = pyarrow()
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([task])})
    path = out / "meta" / "tasks.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(TASKS_ABOUT)}), path)


def _info(
    log: Log, rows: list[dict[str, Any]], features: dict[str, Any], fps: int
) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0",
        "robot_type": log.metadata.get("robot", "unknown"),
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": 1,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": FILE_BYTES // 2**20,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": DATA,
        "video_path": None,
        "features": features,
    }


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
