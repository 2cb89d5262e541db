"""The report of judged policies: texts, marks, pictures; and the command around it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from policies.eval_commands import Eval, run_eval
from policies.eval_report import best, cell_text, lines, markdown, push_plot, tracking_map, write
from policies.evaluate import DIRECTIONS, GRID, ROWS, Column, Figure, Plan, Row, Table, record
from policies.manifest import read_policy
from policies.session import PolicySession, verify_golden
from robot.config import UserError

SPEED = Row("error_vx", "tracking error vx", "m/s", "lower", 2)


def column(name: str, value: float) -> Column:
    figures = {row.key: Figure(value, value - 0.1, value + 0.1, 5) for row in ROWS}
    cells = [
        {"group": "grid", "cell": cell, "fell": 0.0}
        | {f"error_{axis}": value for axis in ("vx", "vy", "yaw")}
        for cell in GRID
    ]
    pushes = [Figure(40.0 + i, 30.0, 50.0, 5) for i in range(DIRECTIONS)]
    return Column(name, "ab" * 32, {"vx": (-1.0, 1.0)}, figures, cells, pushes)


def table(*columns: Column) -> Table:
    return Table(list(columns), Plan(), (1_000_000_000, 1_000_000_204), {"numpy": "2"})


def test_a_cell_shows_value_and_interval_or_where_it_is_from() -> None:
    assert cell_text(SPEED, Figure(0.391, 0.31, 0.45, 9)) == "0.39 (0.31 to 0.45)"
    assert cell_text(SPEED, Figure(0.5, 0.5, 0.5, 1, where="vx 1")) == "0.50 at vx 1"
    assert cell_text(SPEED, Figure(15.0, 9, 15, 5, bound="≥")).startswith("≥15.00")
    assert cell_text(SPEED, Figure(math.nan, math.nan, math.nan, 0)) == "-"


def test_best_are_those_whose_interval_holds_the_best_value() -> None:
    columns = [column("a", 0.10), column("b", 0.15), column("c", 0.30)]
    assert best(SPEED, columns) == [True, True, False]
    assert best(Row("push", "", "N s", "higher"), columns) == [False, False, True]


def test_every_row_is_in_the_markdown_with_seeds_and_versions() -> None:
    text = markdown(table(column("one", 0.1), column("two", 0.5)))
    assert len(text.splitlines()) == len(ROWS) + 5
    assert "vx -1 to 1" in text and "1000000000 to 1000000204" in text and "numpy 2" in text
    assert all(row.name in text for row in ROWS)


def test_the_html_is_one_file_with_both_pictures_and_escaped_names(tmp_path: Path) -> None:
    path = write(table(column("a<b", 0.1)), tmp_path / "report")
    text = path.read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "a&lt;b" in text and "a<b" not in text and "http" not in text
    assert (tmp_path / "report" / "report.md").exists()


def test_the_pictures_show_every_policy() -> None:
    both = table(column("one", 0.1), column("two", 0.5))
    titles = [axes.get_title() for axes in tracking_map(both).axes]
    assert sum("one" in title for title in titles) == sum("two" in title for title in titles) == 3
    assert len(push_plot(both).axes[0].lines) == 2


def test_the_command_writes_json_and_report(
    standing_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.json", tmp_path / "report"
    options = Eval((standing_policy,), json=out, report=report, quick=True, jobs=2)
    assert run_eval(options) == 0
    assert "survival on the command grid" in capsys.readouterr().out
    (judged,) = json.loads(out.read_text())["columns"]
    assert judged["name"] == "standing"
    assert judged["figures"]["survival_rest"]["value"] == 100.0
    assert judged["figures"]["error_vx"]["value"] > 0.1  # it stands where it should walk
    assert (report / "report.html").stat().st_size > 20_000


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    standing_policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run_eval(Eval((standing_policy,), json=tmp_path / "no" / "out.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder for the report"):
        run_eval(Eval((standing_policy,), report=tmp_path / "file"))


def test_figures_are_written_into_the_file_that_was_judged_and_into_no_other(
    standing_policy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "standing.onnx"
    path.write_bytes(standing_policy.read_bytes())
    sha256 = read_policy(path).sha256
    judged = replace(column("standing", 0.126), sha256=sha256)
    for _ in range(2):  # the second time they are written anew, not beside the first
        assert "figures written into its manifest" in record(table(judged), path)
        after = read_policy(path)
        judged = replace(judged, sha256=after.sha256)
    said = after.manifest.provenance
    assert said["eval_error_vx"] == 0.126 and said["eval_push"] == 0.1
    assert said["eval_seeds"] == "1000000000 to 1000000204"
    assert set(read_policy(standing_policy).manifest.provenance) < set(said)
    assert verify_golden(PolicySession(after), after.manifest) < 1e-5
    with pytest.raises(UserError, match="is not the file that was judged"):
        record(table(column("standing", 0.1)), path)


def test_another_projects_file_stays_as_it_is(standing_policy: Path, tmp_path: Path) -> None:
    model = onnx.load(standing_policy)
    del model.metadata_props[:]
    path = tmp_path / "theirs.onnx"
    onnx.save(model, path)
    before = path.read_bytes()
    assert "nothing is written" in record(table(column("theirs", 0.1)), path)
    assert path.read_bytes() == before


def test_a_quick_look_is_not_recorded(standing_policy: Path) -> None:
    with pytest.raises(UserError, match="a quick look is no judgement"):
        run_eval(Eval((standing_policy,), quick=True, record=True))


def test_lines_begin_with_names_and_ranges() -> None:
    got = lines(table(column("one", 0.1)))
    assert got[0] == ["", "one"] and got[1] == ["command range", "vx -1 to 1"]
