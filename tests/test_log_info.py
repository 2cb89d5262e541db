"""What list, info and cat tell of a log, against messages whose story is known."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from robot.config import UserError
from robot.log import Log, recover
from robot.log_info import cat, enum_names, info, list_logs, print_info
from robot.messages import Mode
from robot.model import load_robot
from robot.modes import BIT
from robot.topics import make_codecs
from tests.logs import series, write_log

CODECS = make_codecs(load_robot("g1"))
MS = 1_000_000
# 100 states at 500 Hz with a hole of three; 25 status at 50 Hz that stand, walk and fall.
STATE_MS = [2 * i for i in range(100) if not 40 <= i < 43]
MODES = [Mode.STAND] * 5 + [Mode.POLICY] * 10 + [Mode.FAULT] * 10
REASONS = ["stood up"] * 5 + ["policy started"] * 10 + ["roll 61 deg"] * 10
FAULTS = [0] * 8 + [BIT["target_late"]] * 2 + [0] * 5 + [BIT["fallen"]] * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    states = series(CODECS["low_state"], np.array(STATE_MS) * MS)
    for state in states:
        state.seq = state.stamp_ns // (2 * MS) + 1  # so the hole shows in seq, too
    states[3].joint_pos[1] = np.nan
    status = series(
        CODECS["status"], np.arange(25) * 8 * MS, mode=MODES, faults=FAULTS, reason=REASONS,
        drops=np.arange(25), blocked=np.zeros(25, int),
    )  # fmt: skip
    policy = series(CODECS["policy_info"], [0], name=["walker"], provider=["cpu"])
    return write_log(
        tmp_path / "logs", {"low_state": states, "status": status, "policy_info": policy},
        commit="c0ffee" * 6, dirty="true", command_line="plexus run sim", policy_sha256="ab" * 32,
    )  # fmt: skip


def test_info_tells_topics_with_rate_gap_and_loss(path: Path) -> None:
    told = info(Log(path))
    rows = {row["name"]: row for row in told["topics"]}
    state = rows["low_state"]
    assert (state["count"], state["lost"], state["message"]) == (97, 3, "plexus/msg/LowState")
    assert state["gap_ms"] == pytest.approx(8.0) and state["rate_hz"] == pytest.approx(96 / 0.198)
    assert rows["status"]["lost"] == 0 and rows["status"]["rate_hz"] == pytest.approx(125.0)
    assert rows["policy_info"]["rate_hz"] is None and rows["policy_info"]["gap_ms"] is None
    assert told["duration_s"] == pytest.approx(0.198) and told["state"] == "finished"
    assert told["damage"] == []


def test_info_tells_modes_and_faults_with_time_and_reason(path: Path) -> None:
    told = info(Log(path))
    assert [(row["mode"], row["reason"]) for row in told["modes"]] == [
        ("STAND", "stood up"), ("POLICY", "policy started"), ("FAULT", "roll 61 deg"),
    ]  # fmt: skip
    assert [row["t_s"] for row in told["modes"]] == pytest.approx([0.0, 0.040, 0.120])
    late, fallen = told["faults"]
    assert (late["name"], fallen["name"]) == ("target_late", "fallen")
    assert (late["t_s"], late["until_s"]) == pytest.approx((0.064, 0.080))
    assert fallen["t_s"] == pytest.approx(0.120) and fallen["until_s"] is None
    assert fallen["reason"] == "roll 61 deg" and told["drops"] == {"refused": 24, "blocked": 0}
    assert told["policy"]["name"] == "walker" and told["policy"]["sha256"] == "ab" * 32


def test_info_is_data_and_its_print_shows_it(path: Path) -> None:
    data = bytearray((path / "000.mcap").read_bytes())
    (path / "001.mcap.partial").write_bytes(data[: len(data) // 2])
    told = info(Log(path))
    json.dumps(told)
    out = io.StringIO()
    print_info(told, Console(file=out, width=120))
    text = out.getvalue()
    for word in ("low_state", "8.0 ms", "POLICY", "roll 61 deg", "fallen", "walker on cpu",
                 "c0ffeec0ffee with changes", "plexus run sim", "unfinished", "001.mcap.partial",
                 "24 frames refused"):  # fmt: skip
        assert word in text, word


def test_a_log_with_nothing_in_it_is_told_of_as_well(tmp_path: Path) -> None:
    told = info(Log(write_log(tmp_path, {})))
    assert told["topics"] == [] and told["modes"] == [] and told["duration_s"] == 0.0
    print_info(told, Console(file=io.StringIO()))


def test_list_has_a_row_per_log_with_its_state(path: Path) -> None:
    folder = path.parent
    data = (path / "000.mcap").read_bytes()
    for name, content in (("b", data[:-60]), ("c", b""), ("d", data[:-60])):
        (folder / name).mkdir()
        (folder / name / "000.mcap.partial").write_bytes(content)
    recover(folder / "d")
    (folder / "notes").mkdir()
    rows = list_logs(folder)
    assert [(row["name"], row["state"]) for row in rows] == [
        (path.name, "finished"), ("b", "unfinished"), ("c", "damaged"), ("d", "finished"),
    ]  # fmt: skip
    first = rows[0]
    assert first["modes"] == ["STAND", "POLICY", "FAULT"] and first["size"] == len(data)
    assert first["duration_s"] == pytest.approx(0.198)
    assert first["start"].startswith("2026-11-24T")
    with (folder / "b" / "000.mcap.partial").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert list_logs(folder)[1]["state"] == "recording"
    with pytest.raises(UserError, match="no such folder"):
        list_logs(folder / "none")


def test_a_log_that_lost_its_end_is_recovered_and_says_so(path: Path) -> None:
    data = (path / "000.mcap").read_bytes()
    shutil.rmtree(path)
    path.mkdir()
    (path / "000.mcap.partial").write_bytes(data[: data.index(b"end", len(data) // 2) - 20])
    assert list_logs(path.parent)[0]["state"] == "unfinished"
    recover(path)
    assert list_logs(path.parent)[0]["state"] == "recovered"


def test_cat_is_one_object_per_message(path: Path) -> None:
    log = Log(path)
    rows = [json.loads(line) for line in cat(log, "status")]
    assert len(rows) == 25
    assert (rows[7]["mode"], rows[7]["reason"], rows[7]["drops"]) == ("POLICY", "policy started", 7)
    assert rows[7]["t_s"] == pytest.approx(0.056) and rows[7]["answer_ask"] == "NONE"
    assert list(rows[0])[1:] == list(log["status"].dtype.names or ())


def test_cat_keeps_to_time_fields_and_limit(path: Path) -> None:
    log = Log(path)
    lines = list(cat(log, "low_state", (0.004, 0.012), ["seq", "joint_pos[1]"]))
    assert [json.loads(line) for line in lines] == [
        {"t_s": t, "seq": seq, "joint_pos[1]": value}
        for t, seq, value in ((0.004, 3, 0.0), (0.006, 4, None), (0.008, 5, 0.0), (0.010, 6, 0.0))
    ]
    assert len(list(cat(log, "low_state", None, ["seq"], limit=10))) == 10
    assert list(cat(log, "low_state", (5.0, 9.0))) == []
    with pytest.raises(UserError, match="field 'nothing' is unknown"):
        list(cat(log, "status", None, ["nothing"]))


def test_a_long_log_is_catted_in_windows_without_loss(tmp_path: Path) -> None:
    stamps = np.arange(501) * 50 * MS  # 25 s, with messages right at the seams
    log = Log(write_log(tmp_path, {"heartbeat": series(CODECS["heartbeat"], stamps)}))
    seqs = [json.loads(line)["seq"] for line in cat(log, "heartbeat", None, ["seq"])]
    assert seqs == list(range(1, 502))


def test_names_of_values_come_from_the_text_of_the_file() -> None:
    text = "# x\nuint8 MODE_OLD=0\nuint8 MODE_NEW=7\nuint8 OTHER_X=1\nuint8 mode # mode\n"
    assert enum_names(text, "mode") == {0: "OLD", 7: "NEW"}
    assert enum_names(CODECS["status"].text, "mode") == {m.value: m.name for m in Mode}
    assert enum_names(text, "seq") == {}
