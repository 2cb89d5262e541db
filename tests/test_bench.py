"""A short bench: its rows and their form, what it refuses, and that it leaves nothing running."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from robot import bench, bench_figures, bench_floor
from robot.bench_floor import Samples
from robot.config import UserError

pytestmark = pytest.mark.alone
KEYS = {"name", "unit", "floor", "ours", "ratio", "note", "rounds", "ci", "p99", "floor_p99"}


def processes() -> list[str]:
    """Command lines of the bench's helpers and nodes that run here, of whatever parent."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if "plexus-bench-" in line]


def test_a_short_bench_measures_every_row_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    others = set(processes())
    path = tmp_path / "bench.json"
    assert bench.main(path, None, 0.1, ()) == 0
    rows = json.loads(path.read_text())
    names = [row["name"] for row in rows]
    runtime = ["timer", "hop", "path", "tick", "inference", "recorder", "eyes", "map"]
    assert names == runtime + ([*bench.WIRE] if importlib.util.find_spec("cyclonedds") else [])
    for row in rows:
        assert row.keys() >= KEYS and row["unit"] == "us" and row["rounds"] >= 1
        assert row["floor"] > 0.0 and row["ours"] > 0.0
        assert row["ratio"] == row["ours"] / row["floor"]
        assert len(row["ci"]) == 2 and row["ci"][0] <= row["ci"][1]
    timer, _, _, tick, inference, recorder, eyes, _ = rows[:8]
    assert "C loop" in timer["note"] or "ctypes loop" in timer["note"]
    assert timer["ours_ticks"] >= 150 and timer["floor_ticks"] > 0
    assert tick["ours_ticks"] > 0 and tick["ours_skipped"] >= 0 and tick["floor_skipped"] >= 0
    assert tick["after_warm_up"].keys() == {
        "page_faults", "allocated_blocks_growth", "collections"
    }  # fmt: skip
    assert inference["plain_run_us"] > 0.0 and recorder["recorder_share"] > 0.0
    assert eyes["shares"]["camera"] > 0.0 and eyes["shares"]["perception"] > 0.0
    assert 0.0 < eyes["age_ms"]["p50"] <= eyes["age_ms"]["p99"]
    told = capsys.readouterr().out
    assert "machine: " in told and " cores" in told and "tick: skipped " in told
    assert set(processes()) <= others
    after = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert after == before


def test_rows_can_be_picked_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert bench.main(path, None, 0.1, ("timer",)) == 0
    assert [row["name"] for row in json.loads(path.read_text())] == ["timer"]
    with pytest.raises(UserError) as caught:
        bench.main(None, None, 1.0, ("timer", "bus"))
    assert str(caught.value) == (
        "--only: row 'bus' is unknown; available: timer, hop, path, tick, inference, recorder, "
        "eyes, map, dds, dds_period, dds_cpu"
    )


def test_the_rows_through_dds_are_of_both_sides_and_their_processes_end(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedds")
    others, path = set(processes()), tmp_path / "bench.json"
    assert bench.main(path, None, 0.1, bench.WIRE) == 0
    wire, period, cpu = json.loads(path.read_text())
    for row in (wire, period, cpu):
        assert row.keys() >= KEYS and row["unit"] == "us" and row["ours"] > 0.0 < row["floor"]
    assert period["ours_ticks"] > 0 and period["floor_ticks"] > 0
    assert period["ours_skipped"] >= 0 and period["floor_skipped"] >= 0
    for spread in (period["period_us"], period["floor_period_us"]):
        assert 0.0 <= spread["p50"] <= spread["p99"] <= spread["max"]
    assert cpu["ours"] > cpu["floor"], "the driver checks what it takes, a bare loop nothing"
    assert set(processes()) <= others


def test_without_the_extra_one_line_says_so_and_the_other_rows_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedds", None)
    path = tmp_path / "bench.json"
    assert bench.main(path, None, 0.1, ("timer", "dds")) == 0
    assert [row["name"] for row in json.loads(path.read_text())] == ["timer"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "plexus[g1]" in line]
    assert line.startswith("bench: no dds, dds_period, dds_cpu: ")
    with pytest.raises(UserError, match=r"`pip install 'plexus\[g1\]'` brings what a row through"):
        bench.main(path, None, 0.1, ("dds",))


def test_what_cannot_be_measured_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--seconds: got 0, expected more than 0$"):
        bench.main(None, None, 0.0, ())
    with pytest.raises(UserError, match=r"nowhere does not exist$"):
        bench.main(tmp_path / "nowhere" / "bench.json", None, 1.0, ())
    with pytest.raises(UserError, match=r"other\.onnx: "):
        bench.main(None, tmp_path / "other.onnx", 1.0, ("inference",))


def test_ctrl_c_ends_the_helpers_too() -> None:
    others = set(processes())
    code = "from robot.bench import main; raise SystemExit(main(None, None, 60.0, ('hop',)))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20.0
    while len(set(processes()) - others) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)  # a player and two echoes
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20.0)[1] == "bench: stopped\n"
    assert process.returncode == 130
    assert not set(processes()) - others


def test_without_a_compiler_the_timer_goes_through_ctypes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_floor, "COMPILERS", ("no-such-compiler",))
    made = bench.Bench(tmp_path, None, 0.1, ["timer"])
    assert made.program is None
    assert made.timer_kind == "ctypes loop (no C compiler (no-such-compiler))"
    (row,) = made.measure()
    assert row.note.endswith(f"floor: {made.timer_kind}") and row.extra["floor_ticks"] >= 150


def test_the_cpu_time_of_another_process_is_that_of_all_its_threads() -> None:
    code = """if True:
        import sys, threading, time
        def work():
            while time.process_time() < 0.05: pass
        thread = threading.Thread(target=work); thread.start(); thread.join()
        print(time.process_time(), flush=True); sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        own = float(process.stdout.readline())
        assert own <= bench.cpu_seconds(process.pid) < own + 0.05 and own >= 0.05


def test_the_ratio_is_of_the_rounds_medians() -> None:
    pairs = [
        (Samples(np.array([1.0, 2.0, 90.0])), Samples(np.array([4.0]))),
        (Samples(np.array([4.0])), Samples(np.array([8.0, 8.0]))),
        (Samples(np.array([3.0])), Samples(np.array([6.0]))),
        (Samples(np.empty(0)), Samples(np.array([1e6]))),  # a round in which one side said nothing
    ]
    row = bench_figures.make_row("timer", pairs, "by hand")
    assert (row.floor, row.ours, row.ratio, row.rounds) == (3.0, 6.0, 2.0, 3)
    assert row.ci == (2.0, 2.0)
    with pytest.raises(UserError, match="timer measured nothing"):
        bench_figures.make_row("timer", pairs[3:], "by hand")


def test_how_far_above_the_floor_is_told_round_by_round():
    """Rounds differ by much more than the two sides of one do."""
    pairs = [
        (Samples(np.full(9, floor)), Samples(np.full(9, floor + above)))
        for floor, above in ((5.0, 10.0), (80.0, 12.0), (20.0, 9.0), (300.0, 10.0))
    ]
    told = bench_figures.more(pairs)
    assert told["more_us"] == 10.0
    low, high = told["more_us_ci"]
    assert 9.0 <= low < high <= 12.0
    assert bench_figures.more(pairs[:1]) == bench_figures.more([]) == {}
