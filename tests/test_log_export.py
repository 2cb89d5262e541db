"""Tables: what is in CSV and Parquet is what is in the log, to the last bit, in bounded pieces."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pyarrow.parquet as parquet
import pytest

from robot import log_export
from robot.config import UserError
from robot.log import Log
from robot.log_export import pieces, to_csv, to_parquet
from robot.model import load_robot
from robot.topics import TOPICS, make_codecs
from tests.logs import RECEIPT_NS, write_log
from tests.test_messages import filled

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
COUNT = 7  # messages per topic


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Every topic of ours, every field something else."""
    messages = {}
    for topic in TOPICS:
        messages[topic.name] = made = []
        for i in range(COUNT):
            made.append(filled(topic.message, seed=i, dims=ROBOT.dims))
            made[-1].stamp(1, i + 1, 10**9 + i * 10**7)
    return Log(write_log(tmp_path_factory.mktemp("logs"), messages))


def test_parquet_holds_every_topic_exactly(log, tmp_path):
    paths = to_parquet(log, tmp_path / "new")
    assert [path.name for path in paths] == [f"{topic.name}.parquet" for topic in TOPICS]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    for topic, path in zip(TOPICS, paths, strict=True):
        table, records = parquet.read_table(path), log[topic.name]
        assert table.column_names == ["log_time_ns", *records.dtype.names]
        for name in records.dtype.names:
            got, expected = table[name].to_pylist(), records[name].tolist()
            if records[name].dtype.kind == "S":
                expected = [text.decode().rstrip(" ") for text in expected]
            elif records[name].dtype == np.uint8 and records[name].ndim == 2:
                expected = [bytes(row) for row in expected]
            assert got == expected, name


def test_parquet_says_units_robot_and_run(log, tmp_path):
    (path,) = to_parquet(log, tmp_path, ["low_state"])
    schema = parquet.read_schema(path)
    assert schema.field("joint_pos").metadata == {
        b"unit": b"rad", b"doc": b"measured joint positions",
    }  # fmt: skip
    assert str(schema.field("joint_pos").type) == "fixed_size_list<element: double>[29]"
    assert schema.metadata[b"plexus.run_id"].decode() == log.metadata["run_id"]
    assert json.loads(schema.metadata[b"plexus.joint_names"]) == list(ROBOT.joint_names)


def test_csv_reads_back_exactly(log, tmp_path):
    for topic, path in zip(TOPICS, to_csv(log, tmp_path), strict=True):
        records = log[topic.name]
        with path.open(newline="") as stream:
            header, *rows = csv.reader(stream)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        assert len(columns) == len(header) and len(rows) == COUNT
        for name in records.dtype.names:
            values = records[name]
            if values.dtype.kind == "S":
                assert list(columns[name]) == [text.decode().rstrip(" ") for text in values]
            elif values.ndim == 2 and values.dtype == np.uint8:
                assert [bytes.fromhex(text) for text in columns[name]] == [bytes(r) for r in values]
            else:
                many = values.ndim == 2
                names = [f"{name}[{i}]" for i in range(values.shape[1])] if many else [name]
                read = np.array([[values.dtype.type(text) for text in columns[n]] for n in names])
                np.testing.assert_array_equal(read, np.atleast_2d(values.T), err_msg=name)


def test_log_times_come_first(log, tmp_path):
    (path,) = to_csv(log, tmp_path, ["command.script"])
    assert path.name == "command.script.csv"
    first = path.read_text().splitlines()[1].split(",")[0]
    assert int(first) == log.start_ns == 10**9 + RECEIPT_NS + int(log.metadata["clock_offset_ns"])


def test_a_long_topic_is_written_in_pieces(log, tmp_path, monkeypatch):
    whole = parquet.read_table(to_parquet(log, tmp_path / "whole", ["low_state"])[0])
    monkeypatch.setattr(log_export, "PIECE_BYTES", 3 * (log.topics["low_state"].dtype.itemsize + 8))
    assert [len(piece) for piece in pieces(log, log.topics["low_state"])] == [3, 3, 1]
    (path,) = to_parquet(log, tmp_path / "pieces", ["low_state"])
    assert parquet.ParquetFile(path).num_row_groups == 3
    assert parquet.read_table(path) == whole


def test_a_time_range_is_cut_out(log, tmp_path):
    (path,) = to_parquet(log, tmp_path, ["status"], between=(0.01, 0.03))
    assert parquet.read_table(path)["seq"].to_pylist() == [2, 3]


@pytest.mark.parametrize("export", [to_csv, to_parquet])
def test_an_unknown_topic_is_refused_before_anything_is_written(log, tmp_path, export):
    with pytest.raises(UserError) as error:
        export(log, tmp_path / "out", ["low_stat"])
    assert "topic 'low_stat' is unknown; available: low_state, low_cmd" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [to_csv, to_parquet])
def test_a_file_in_place_of_the_folder_is_refused(log, tmp_path, export):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out: cannot be made a folder: File exists"):
        export(log, tmp_path / "out")


def test_an_export_that_fails_leaves_no_half_file(log, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(log_export, "_table", fail)
    with pytest.raises(OSError, match="No space"):
        to_parquet(log, tmp_path, ["status"])
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_the_extra_is_named(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"install plexus\[export\]"):
        to_parquet(log, tmp_path)
    assert len(to_csv(log, tmp_path, ["status"])) == 1, "CSV needs nothing"


def test_only_messages_of_constant_length_become_a_table(tmp_path):
    log = Log(write_log(tmp_path, {"status": [CODECS["status"].new()]}))
    # A viewer's topic whose length varies: named on purpose it is refused, else passed over.
    text = "string[] names\n"
    log.topics["/names"] = type(log.topics["status"])("/names", "/names", "a", text, None, 1, log)
    assert [path.name for path in to_csv(log, tmp_path)] == ["status.csv"]
    with pytest.raises(UserError, match="messages of topic '/names' vary in length"):
        to_csv(log, tmp_path, ["/names"])
