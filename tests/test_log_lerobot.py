"""The LeRobot data set: its layout to the letter, read without LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from robot import log_lerobot
from robot.config import UserError
from robot.log import Log
from robot.log_lerobot import describe, to_lerobot
from robot.messages import Mode
from robot.model import load_robot
from robot.topics import make_codecs
from tests.logs import series, walked, write_log

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
VECTORS = {"observation.state": 68, "action": 29, "observation.command": 3}
CLOCKS = (
    "observation.time_ns", "source.low_state_seq", "source.low_cmd_time_ns", "source.low_cmd_seq",
    "source.policy_input_time_ns", "source.policy_input_seq",
)  # fmt: skip
GRID = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def small_log(folder: Path, stretches: int = 2, **metadata: str) -> Log:
    """Stretches of 0.3 s under the policy, 0.1 s apart."""
    mode = np.tile([Mode.POLICY] * 150 + [Mode.STAND] * 50, stretches)
    ticks = np.arange(len(mode))
    stamps = 10**9 + ticks * 2_000_000
    noise = np.random.default_rng(len(mode)).standard_normal((len(ticks), 29))
    messages = {
        "low_state": series(CODECS["low_state"], stamps, tick=ticks, joint_pos=noise),
        "low_cmd": series(
            CODECS["low_cmd"], stamps, state_tick=ticks, mode=mode, joint_pos_target=-noise
        ),
    }
    return Log(write_log(folder, messages, **metadata))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, standing_policy: Path) -> Path:
    """Three episodes: one of a real run, two of a small log."""
    folder = tmp_path_factory.mktemp("logs")
    logs = [
        Log(write_log(folder, walked(standing_policy), run_id="aaaa")),
        small_log(folder, run_id="bbbb"),
    ]
    return to_lerobot(logs, folder / "dataset", task="stand still")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_data(dataset: Path) -> dict[str, np.ndarray]:
    tables = [parquet.read_table(path) for path in sorted(dataset.glob("data/*/*.parquet"))]
    return {
        name: np.concatenate([np.array(table[name].to_pylist()) for table in tables])
        for name in tables[0].column_names
    }


def test_the_files_are_those_of_the_format_and_the_card(dataset):
    assert sorted(str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/quality.json",
        "meta/stats.json",
        "meta/tasks.parquet",
    ]
    others = [p for p in dataset.rglob("*") if p.is_file() and p.name != "info.json"]
    info = (dataset / "meta/info.json").stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= info for path in others), "info.json comes last"


def test_info_describes_the_data(dataset):
    info, data = read_json(dataset / "meta/info.json"), read_data(dataset)
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0", "robot_type": "g1", "fps": 50, "total_episodes": 3,
        "total_frames": len(data["index"]), "total_tasks": 1, "chunks_size": 1000,
        "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
    }  # fmt: skip
    assert list(features) == [*VECTORS, *CLOCKS, *GRID] == list(data)
    assert not any("/" in name for name in features)
    for name, feature in features.items():
        assert feature["shape"] == [VECTORS.get(name, 1)]
        assert feature["dtype"] == ("float32" if name in (*VECTORS, "timestamp") else "int64")
        assert (feature["names"] is None) == (name not in VECTORS)
    names = features["observation.state"]["names"]
    assert names[:29] == features["action"]["names"] == [f"{n}.q" for n in ROBOT.joint_names]
    assert names[29:58] == [f"{n}.dq" for n in ROBOT.joint_names]
    assert names[58:] == [
        "imu.quat.w", "imu.quat.x", "imu.quat.y", "imu.quat.z",
        "imu.gyro.x", "imu.gyro.y", "imu.gyro.z", "imu.accel.x", "imu.accel.y", "imu.accel.z",
    ]  # fmt: skip


def test_data_files_have_the_types_of_the_format(dataset):
    file = parquet.ParquetFile(dataset / "data/chunk-000/file-000.parquet")
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    for name, count in VECTORS.items():
        assert kinds.pop(name) == f"fixed_size_list<element: float>[{count}]"
    assert kinds.pop("timestamp") == "float" and set(kinds.values()) == {"int64"}
    # One row group per episode, so that one can be read alone.
    lengths = [r["length"] for r in parquet.read_table(dataset / log_lerobot.EPISODES).to_pylist()]
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == lengths and lengths[1:] == [15, 15]
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"


def test_indices_run_on_and_the_nominal_clock_is_exact(dataset):
    data, episodes = read_data(dataset), parquet.read_table(dataset / log_lerobot.EPISODES)
    np.testing.assert_array_equal(data["index"], np.arange(len(data["index"])))
    rows = episodes.to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    at = 0
    for row in rows:
        assert row["dataset_from_index"] == at and row["tasks"] == ["stand still"]
        at = row["dataset_to_index"]
        own = {name: v[row["dataset_from_index"] : at] for name, v in data.items()}
        frames = np.arange(row["length"])
        np.testing.assert_array_equal(own["frame_index"], frames)
        np.testing.assert_array_equal(own["timestamp"], (frames / 50).astype(np.float32))
        assert set(own["episode_index"]) == {row["episode_index"]} and set(own["task_index"]) == {0}
        # The true clock beside it tells what the nominal one cannot.
        np.testing.assert_array_equal(np.diff(own["observation.time_ns"]), 20_000_000)
        for key in ("data", "meta/episodes"):
            assert row[f"{key}/chunk_index"] == row[f"{key}/file_index"] == 0
    assert at == len(data["index"])


def test_statistics_are_those_of_the_data(dataset):
    data, stats = read_data(dataset), read_json(dataset / "meta/stats.json")
    rows = parquet.read_table(dataset / log_lerobot.EPISODES).to_pylist()
    assert list(stats) == list(data)
    for name, values in data.items():
        for stat, value in describe(values).items():
            assert stats[name][stat] == pytest.approx(value), (name, stat)
        own = values[rows[1]["dataset_from_index"] : rows[1]["dataset_to_index"]]
        for stat, value in describe(own).items():
            assert rows[1][f"stats/{name}/{stat}"] == pytest.approx(value), (name, stat)


def test_statistics_by_hand():
    found = describe(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]]))
    assert found == {
        "min": [0.0, 5.0], "max": [4.0, 5.0], "mean": [2.0, 5.0], "std": [2.0**0.5, 0.0],
        "count": [5], "q01": [0.04, 5.0], "q10": [0.4, 5.0], "q50": [2.0, 5.0], "q90": [3.6, 5.0],
        "q99": [pytest.approx(3.96), 5.0],
    }  # fmt: skip
    assert describe(np.array([1, 3]))["mean"] == [2.0]


def test_the_task_is_the_index_of_its_table(dataset):
    table = parquet.read_table(dataset / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0], "task": ["stand still"]}
    about = json.loads(table.schema.metadata[b"pandas"])
    assert about["index_columns"] == ["task"]
    assert {column["name"] for column in about["columns"]} == {"task", "task_index"}


def test_the_card_tells_each_episode_apart(dataset):
    cards = read_json(dataset / "meta/quality.json")
    assert [card["episode_index"] for card in cards] == [0, 1, 2]
    assert [card["run_id"] for card in cards] == ["aaaa", "bbbb", "bbbb"]
    assert cards[0]["faults"] == ["command_stale", "target_late"] and cards[1]["faults"] == []
    assert set(cards[0]["modes"]) == {"POLICY", "HOLD"} and cards[2]["modes"] == {"POLICY": 15}


def test_a_full_file_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(log_lerobot, "FILE_BYTES", 1)
    monkeypatch.setattr(log_lerobot, "FILES_PER_CHUNK", 2)
    dataset = to_lerobot([small_log(tmp_path, stretches=3)], tmp_path / "out")
    names = [str(p.relative_to(dataset / "data")) for p in sorted(dataset.glob("data/*/*"))]
    assert names == [f"chunk-{c:03d}/file-{f:03d}.parquet" for c, f in ((0, 0), (0, 1), (1, 0))]
    rows = parquet.read_table(dataset / log_lerobot.EPISODES).to_pylist()
    assert [(r["data/chunk_index"], r["data/file_index"]) for r in rows] == [(0, 0), (0, 1), (1, 0)]
    assert read_json(dataset / "meta/stats.json")["index"]["count"] == [45]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fps": 0}, "--fps: got 0, expected 1 to 500, the rate of control in "),
        ({"fps": 501}, "--fps: got 501, expected 1 to 500"),
        ({"task": " "}, "--task: got no text"),
        ({"logs": []}, "nothing to export: got no log"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_folder(tmp_path, change, says):
    arguments = {"logs": [small_log(tmp_path)], "out": tmp_path / "out", **change}
    with pytest.raises(UserError) as error:
        to_lerobot(**arguments)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is there already; expected a new or an empty folder"):
        to_lerobot([small_log(tmp_path)], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_logs_of_two_robots_or_without_names_are_refused(tmp_path):
    first, second = small_log(tmp_path, run_id="aaaa"), small_log(tmp_path, run_id="bbbb")
    second.attachments["robot.yaml"] = b"joints: [{name: a}]"
    with pytest.raises(UserError, match=r"sim-bbbb: got other joints than in .*sim-aaaa; expected"):
        to_lerobot([first, second], tmp_path / "out")
    second.attachments["robot.yaml"] = b""
    with pytest.raises(UserError, match=r"got no robot.yaml with joints"):
        to_lerobot([second], tmp_path / "out")


def test_a_log_without_an_episode_or_without_commands_is_refused(tmp_path):
    stamps = 10**9 + np.arange(50) * 2_000_000
    states = {"low_state": series(CODECS["low_state"], stamps)}
    stood = {**states, "low_cmd": series(CODECS["low_cmd"], stamps)}
    with pytest.raises(UserError, match="got no stretch with mode POLICY or HOLD; expected one of"):
        to_lerobot([Log(write_log(tmp_path, stood))], tmp_path / "out")
    few = {topic: messages[:1] for topic, messages in stood.items()}
    with pytest.raises(UserError, match="got no stretch with both low_state and low_cmd"):
        few_log = Log(write_log(tmp_path, few, run_id="bbbb"))
        to_lerobot([few_log], tmp_path / "out", whole=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="topic low_cmd lacks clipped, joint_pos_target, mode,"):
        to_lerobot([Log(write_log(tmp_path, states, run_id="cccc"))], tmp_path / "out")
