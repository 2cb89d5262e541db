"""Pictures of a training run show what was given to them."""

from pathlib import Path

import numpy as np

from policies.curves import contact_sheet, draw_curves, read_rows, tile, write_rows
from robot.config import CONFIGS
from robot.model import load_robot

ROWS = [
    {"iteration": float(i), "steps": 1e5 * i, "seconds": 10.0 * i, "reward": i**0.5}
    | ({"score": 0.1 * i} if i % 5 == 0 else {})
    for i in range(20)
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    write_rows(tmp_path / "curves.csv", ROWS)
    assert read_rows(tmp_path / "curves.csv") == ROWS


def test_curves_are_drawn_also_of_few_rows(tmp_path: Path) -> None:
    from PIL import Image

    for count in (0, 1, 20):
        draw_curves(tmp_path / f"{count}.png", ROWS[:count], "a run")
    empty, full = (np.asarray(Image.open(tmp_path / f"{n}.png").convert("L")) for n in (0, 20))
    assert empty.shape == full.shape
    assert (full < 250).sum() > (empty < 250).sum() + 300  # something was drawn


def test_frames_lie_in_reading_order() -> None:
    frames = [np.full((2, 3, 3), value, np.uint8) for value in range(5)]
    sheet = tile(frames, columns=2)
    assert sheet.shape == (6, 6, 3)
    assert sheet[::2, ::3, 0].tolist() == [[0, 1], [2, 3], [4, 0]]


def test_a_contact_sheet_shows_the_robot_or_says_why_not(tmp_path: Path) -> None:
    from PIL import Image

    robot = load_robot(CONFIGS / "g1" / "robot.yaml")
    pose = np.concatenate(([0, 0, 0.76, 1, 0, 0, 0], robot.stand_joint_pos))
    said = contact_sheet(tmp_path / "gait.png", robot, np.tile(pose, (3, 1)))
    if said.startswith("not written: no GL"):
        assert not (tmp_path / "gait.png").exists()
    else:
        assert np.asarray(Image.open(tmp_path / "gait.png")).std() > 5


def test_without_motion_nothing_is_written(tmp_path: Path) -> None:
    robot = load_robot(CONFIGS / "g1" / "robot.yaml")
    said = contact_sheet(tmp_path / "gait.png", robot, np.zeros((0, 36)))
    assert said == "not written: nothing was simulated"
    assert not (tmp_path / "gait.png").exists()
