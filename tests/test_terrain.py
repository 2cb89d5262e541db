"""Terrains: their truth against MuJoCo's rays, the free start, seeds, what is refused, a walk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from robot.config import UserError
from robot.model import compile_model, load_robot
from robot.runs import RUNS, load_run
from robot.terrain import FAMILIES, START, Box, Terrain, make_terrain

G1 = load_robot("g1")


@pytest.mark.parametrize("name", FAMILIES)
def test_truth_is_where_a_ray_from_above_ends(name: str) -> None:
    terrain = make_terrain(name, seed=3)
    model = compile_model(G1, terrain=terrain)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    points = np.random.default_rng(0).uniform((-12, -4), (12, 4), (400, 2))
    groups, down, hit = np.array([1, 0, 0, 0, 0, 0], np.uint8), np.array([0, 0, -1.0]), np.zeros(1)
    found = [
        9.0 - mujoco.mj_ray(
            model, data, np.array([x, y, 9.0]), down, groups, 1, -1, hit.astype(np.int32), None
        )
        for x, y in points
    ]  # fmt: skip
    assert terrain.heights(points) == pytest.approx(np.array(found), abs=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_is_flat_and_all_else_is_as_difficult_as_asked(name: str) -> None:
    family = FAMILIES[name]
    start = np.random.default_rng(0).uniform(-START, START, (500, 2))
    x = np.linspace(-8.0, 8.0, 1501)
    lines = np.stack(np.meshgrid(x, [-1.3, 0.0, 0.7]), axis=-1)
    for seed in range(3):
        terrain = make_terrain(name, seed)
        assert (terrain.heights(start) == 0.0).all()
        assert len(terrain.boxes) < 300, "rays and contacts cost by the box"
    if name == "flat":
        return
    rough = [np.abs(np.diff(make_terrain(name, 0, d).heights(lines))).sum() for d in _span(name)]
    assert rough[0] < rough[1] < rough[2] or name in ("gaps", "stepping-stones")
    again, other = make_terrain(name, 1, family.usual), make_terrain(name, 2, family.usual)
    assert again == make_terrain(name, 1) != other


def _span(name: str) -> tuple[float, float, float]:
    return FAMILIES[name].easy, FAMILIES[name].usual, FAMILIES[name].hard


@pytest.mark.parametrize("name", ["stairs-up", "stairs-down", "kerbs", "spiral-stairs"])
def test_no_step_is_higher_than_the_difficulty(name: str) -> None:
    x = np.linspace(-8.0, 8.0, 8001)
    profile = make_terrain(name, 0, 0.1).heights(np.stack([x, 0.0 * x], axis=1))
    steps = np.abs(np.diff(profile))
    assert 0.06 < steps.max() <= 0.1 + 1e-9
    assert (steps > 0.01).sum() > 4


def test_gaps_are_as_wide_as_asked_and_too_deep_to_step_into() -> None:
    x = np.linspace(0.0, 12.0, 12001)
    profile = make_terrain("gaps", 5, 0.3).heights(np.stack([x, 0.0 * x], axis=1))
    ditch = profile < -0.5
    begins = np.flatnonzero(np.diff(ditch.astype(int)) == 1)
    ends = np.flatnonzero(np.diff(ditch.astype(int)) == -1)
    widths = (ends - begins) * 0.001
    assert len(widths) > 4 and profile[-1] == 0.0
    assert widths.min() > 0.15 and widths.max() <= 0.301


def test_a_tilted_box_by_hand() -> None:
    # Its upper face passes through (1, 0, 0.5) and rises by 0.75 m per metre of x.
    box = Box((1.0, 0.0, 0.5), (1.0, 2.0, 0.2), pitch=-np.arctan2(0.6, 0.8))
    heights = Terrain((box,)).heights([(1.0, 0.0), (1.2, 0.9), (0.8, -0.9), (1.2, 1.1), (3.0, 0)])
    assert heights == pytest.approx([0.5, 0.65, 0.35, 0.0, 0.0])
    turned = Terrain((Box((0.0, 0.0, 0.3), (2.0, 0.2, 0.1), yaw=np.pi / 4),))
    assert turned.heights([(0.6, 0.6), (0.6, -0.6)]) == pytest.approx([0.3, 0.0])


def test_unknown_names_and_impossible_sizes_are_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"terrain 'stair' is unknown; available: flat, slopes, st"):
        make_terrain("stair")
    with pytest.raises(
        UserError, match=r"got difficulty 2 m \(height of a step\), expected 0.03 t"
    ):
        make_terrain("stairs-up", 0, 2.0)
    with pytest.raises(
        UserError, match=r"command line: sim.terrain.name: terrain 'stair' is unknown"
    ):
        load_run("sim", {"sim.terrain.name": "stair"})
    with pytest.raises(UserError, match="for driver 'sim' only, got 'loopback'"):
        load_run("loopback", {"sim.terrain.name": "gaps"})
    file = tmp_path / "hills.yaml"
    text = (RUNS / "sim.yaml").read_text()
    file.write_text(text.replace("sim:\n", "sim:\n  terrain: {name: slopes, seed: 2}\n"))
    assert load_run(file).sim.terrain.name == "slopes"
    assert load_run(file, {"sim.terrain.difficulty": 0.3}).sim.terrain.difficulty == 0.3


def test_the_command_line_puts_the_robot_on_it(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "robot.cli", "run", "sim", "--lockstep", *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    wrong = run("--terrain", "moon", "--seconds", "1")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "terrain 'moon' is unknown; available: flat, slopes, stairs-up" in wrong.stderr
    done = run("--terrain", "slopes", "--terrain-seed", "3", "--difficulty", "0.1",
               "--seconds", "9", "--command", "0.5,0,0")  # fmt: skip
    assert done.returncode == 0, done.stderr
