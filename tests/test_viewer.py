"""The window: where none can be opened one line says so, and the run goes on."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

import pytest

from robot import viewer
from robot.node import Node
from robot.nodes import NODES
from robot.runs import load_run


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def test_a_display_is_known_by_its_variable(monkeypatch):
    assert not viewer.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert viewer.has_display()


def test_without_a_display_it_says_so_and_ends():
    said: list[str] = []
    viewer.main(cast(Node, SimpleNamespace(say=said.append)))
    assert said == ["no display here, so no window; everything else runs"]


def test_where_the_display_cannot_be_opened_the_run_goes_on(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":4711")
    report = tmp_path / "out.json"
    run = launch("run", "loopback", "--seconds", "1", "--json", str(report))
    assert run.wait() == 0, run.err
    said = [line for line in run.err.splitlines() if line.startswith("viewer:")]
    assert said == ["viewer: the display cannot be opened, so no window; everything else runs"]
    assert "Traceback" not in run.err and "GLFW" not in run.err
    got = json.loads(report.read_text())
    assert got["control"]["executed_ticks"] > 100
    assert got["nodes"]["viewer"] == "stopped"


def test_a_run_without_window_starts_no_viewer():
    row = next(row for row in NODES if row.name == "viewer")
    run = load_run("sim")
    assert row.when(run) and not row.when(load_run("sim", {"viewer": False}))
    assert row.restart == "never"
