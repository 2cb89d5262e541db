"""The judge of maps: its figures of maps whose errors are known, its verdict, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from policies import map_eval
from policies.map_eval import (
    CONDITIONS,
    Condition,
    Example,
    Figure,
    Report,
    Sums,
    draw,
    evaluate,
    figures,
    geomap,
    lines,
    markdown,
    plan,
    under,
    verdict,
)
from policies.trials import HELD_OUT_SEED
from robot.cli import main
from robot.terrain import FAMILIES
from robot.terrain_net import CELLS


def frames(n: int = 20) -> dict[str, np.ndarray]:
    """The first third of the cells is seen, the last tenth lies near an edge."""
    visible, edge = np.zeros((n, CELLS), bool), np.zeros((n, CELLS), bool)
    visible[:, : CELLS // 3] = True
    edge[:, -(CELLS // 10) :] = True
    return {"height": np.full((n, CELLS), 0.7), "visible": visible, "edge": edge,
            "time": np.linspace(0.5, 2.0, n)}  # fmt: skip


def test_the_figures_of_a_map_whose_errors_are_known():
    given = frames()
    height = np.where(given["visible"], 0.71, 0.67)  # 1 cm too low, 3 cm too high
    height[:, -(CELLS // 10) :] = 0.9  # 20 cm
    keep = given["time"] >= 1.0
    found = figures([Sums.of(given, height, np.full((20, CELLS), 0.02), keep)])
    seen, near = CELLS // 3, CELLS // 10
    rest = CELLS - seen - near
    assert found["visible"].value == pytest.approx(1.0)
    assert found["edge"].value == pytest.approx(20.0)
    assert found["unseen"].value == pytest.approx((3 * rest + 20 * near) / (rest + near))
    assert found["all"].value == pytest.approx((seen + 3 * rest + 20 * near) / CELLS)
    # 1.645 x 2 cm holds 1 cm and 3 cm, not 20 cm.
    assert found["coverage"].value == pytest.approx(100 * (seen + rest) / CELLS)
    assert found["p95"].value == pytest.approx(20.0, abs=0.11)


def test_intervals_come_from_walks_that_differ():
    given, std = frames(), np.full((20, CELLS), 0.02)
    keep = np.ones(20, bool)
    alike = [Sums.of(given, given["height"] + 0.01, std, keep)] * 4
    apart = [Sums.of(given, given["height"] + e, std, keep) for e in (0.0, 0.01, 0.02, 0.03)]
    same, other = figures(alike)["all"], figures(apart)["all"]
    assert same.low == same.value == same.high == pytest.approx(1.0)
    assert 0.0 <= other.low < other.value < other.high <= 3.0
    assert other.value == pytest.approx(1.5)


def test_a_walk_without_frames_counts_for_nothing():
    given = {name: values[:0] for name, values in frames().items()}
    empty = Sums.of(given, given["height"], given["height"], np.zeros(0, bool))
    full = Sums.of(frames(), frames()["height"] + 0.01, np.ones((20, CELLS)), np.ones(20, bool))
    assert figures([empty, full])["all"].value == pytest.approx(1.0)
    assert np.isnan(figures([empty])["all"].value)


def report(clean: float, degraded: float) -> Report:
    """Of a net with these errors, beside a map with 1 and 2 cm."""
    out = Report(1, 12.0)
    for condition, net, base in (("clean", clean, 1.0), ("degraded", degraded, 2.0)):
        out.figures[condition] = {
            split: {
                name: {row.key: Figure(value, value, value) for row in map_eval.ROWS}
                for name, value in (("geomap", base), ("net", net))
            }
            for split in map_eval.SPLITS
        }
        out.by_family[condition] = {"kerbs": {"geomap": base, "net": net}}
    out.walks["kerbs"] = {"seconds": 9.0, "gate": 0.25}
    return out


@pytest.mark.parametrize(
    ("clean", "degraded", "good"),
    [(1.29, 1.49, True), (1.31, 1.49, False), (1.29, 1.51, False), (0.5, 0.5, True)],
)
def test_the_verdict_asks_for_both_demands(clean: float, degraded: float, good: bool):
    found, told = verdict(report(clean, degraded), "net")
    assert found is good
    assert len(told) == 2 and f"{degraded:.2f} cm for 2.00" in told[0]


def test_the_table_marks_what_misses_its_target():
    text = {(line[0], line[1], line[2]): line[3:] for line in lines(report(2.6, 1.0))}
    row = text["clean", "families", "mean error, all cells, cm"]
    assert row[0] == "≤ 2.5" and not row[1].endswith("!") and row[2].endswith("!")
    page = markdown(report(2.6, 1.0), ["a sentence"])
    assert "| kerbs | 9.0 | 25 | 1.00 | 2.60 | 2.00 | 1.00 |" in page and "- a sentence" in page


def test_the_plan_has_every_family_and_none_of_the_trainings_seeds():
    walks = plan(seeds=2, seconds=5.0)
    assert {episode.family for _, episode in walks} == set(FAMILIES)
    assert len(walks) == 2 * len(FAMILIES)
    assert all(FAMILIES[e.family].held_out == (split == "families") for split, e in walks)
    assert all(episode.seed >= HELD_OUT_SEED for _, episode in walks)
    assert len({episode.seed for _, episode in walks}) == len(walks)


def test_degraded_is_what_it_says():
    up, down = (CONDITIONS["degraded"].camera(i) for i in (1, 2))
    assert np.degrees(up.pitch).tolist() == pytest.approx([1.5, 1.5])
    assert np.degrees(down.pitch).tolist() == pytest.approx([-1.5, -1.5])
    pitches: dict[str, set[float]] = {}
    for episode in under(CONDITIONS["degraded"], plan(seeds=2, seconds=5.0)):
        pitches.setdefault(episode.family, set()).add(episode.camera.pitch[0])
    assert all(len(of_family) == 2 for of_family in pitches.values())
    assert up.holes == (0.2, 0.2) and up.latency_ms == (100.0, 100.0)


def test_walks_are_judged_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One short real walk over each of two families; a perfect map is perfect."""
    real = plan(1, 2.5)
    monkeypatch.setattr(map_eval, "plan", lambda seeds, seconds: [real[2], real[-1]])
    quick = {name: dataclasses.replace(c) for name, c in CONDITIONS.items() if name == "degraded"}
    monkeypatch.setattr(map_eval, "CONDITIONS", quick)
    assert isinstance(quick["degraded"], Condition)
    truth = lambda frames: (frames["height"], np.full_like(frames["height"], 1e-3))  # noqa: E731
    found, examples = evaluate({"geomap": geomap, "truth": truth}, seeds=1, seconds=2.5)
    for split in map_eval.SPLITS:
        row = found.figures["degraded"][split]
        assert row["truth"]["all"].value == 0.0 and row["truth"]["coverage"].value == 100.0
        assert 0.1 < row["geomap"]["visible"].value < 5.0
    assert [type(example) for example in examples] == [Example, Example]
    path = draw(tmp_path / "new" / "maps.png", examples)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


def test_the_command_prints_writes_and_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its walks are told of here, they take minutes."""
    monkeypatch.setenv("COLUMNS", "200")
    flat = np.full(CELLS, 0.7)
    example = Example("kerbs", 0.1, flat, flat > 0, {"geomap": (flat, flat), "net": (flat, flat)})
    asked = []

    def told(methods, seeds, seconds, jobs, show):
        asked.append((list(methods), seeds, seconds, jobs))
        return report(1.0, 1.9), [example]

    monkeypatch.setattr(map_eval, "evaluate", told)
    out = tmp_path / "report"
    assert main(["eval", "map", "--report", str(out), "--json", str(tmp_path / "a.json")]) == 0
    assert asked == [(["geomap"], 2, 12.0, 1)]
    said = capsys.readouterr().out
    assert "2.60" not in said and "1.90 (1.90 to 1.90)" in said
    assert "| clean | seeds | mean error, all cells, cm |" in (out / "report.md").read_text()
    assert (out / "maps.png").stat().st_size > 5000
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["figures"]["degraded"]["families"]["net"]["all"]["value"] == 1.9
    assert main(["eval", "walk.onnx", "--net", "net.onnx"]) == 2
    assert "expected the word map in place of policy files" in capsys.readouterr().err


def test_a_net_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "map", "--net", "nowhere.onnx", "--quick"]) == 2
    said = capsys.readouterr().err
    assert "nowhere.onnx: cannot be read" in said and "Traceback" not in said
