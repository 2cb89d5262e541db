"""Level R0: keys move us in time; the motion shown is the log's."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from robot.config import UserError
from robot.log import Log
from sim2real.look import DOWN, LEFT, RIGHT, SPACE, UP, Player, look
from sim2real.motion import Motion
from sim2real.replay import setup_of
from tests.test_resimulate import record


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(record(tmp_path_factory.mktemp("logs"), None, 1.5))


def test_keys_pause_and_jump_within_the_motion():
    player = Player(2.0, 30.0, 10.0)
    player.advance(0.5)
    assert player.now_s == 10.5
    player.press(SPACE)
    player.advance(0.5)
    assert player.now_s == 10.5 and "paused" in player.line()
    for code, now in ((RIGHT, 11.5), (LEFT, 10.5), (UP, 20.5), (UP, 30.0), (DOWN, 20.0), (65, 20)):
        player.press(code)
        assert player.now_s == now
    for _ in range(3):
        player.press(DOWN)
    assert player.now_s == 2.0


def test_at_the_end_the_motion_begins_again_and_the_line_shows_where_we_are():
    player = Player(0.0, 10.0, 5.0)
    assert player.line().index("|") == 21 and "5.00 / 10.00 s" in player.line()
    player.advance(6.0)
    assert player.now_s == 0.0


def test_the_poses_are_the_truth_of_the_log(hanging, tmp_path):
    poses = Motion(hanging, *setup_of(hanging, tmp_path)).poses((0.5, 1.0))
    assert len(poses) == 25 and 0.5 <= poses[0][0] < poses[-1][0] < 1.0
    truth = hanging["truth"]
    at = np.argmin(np.abs(truth["sim_time_ns"] * 1e-9 - poses[0][0]))
    assert np.array_equal(poses[0][1][:3], truth["base_pos_w"][at])
    assert np.array_equal(poses[0][1][7:], truth["joint_pos"][at])


def test_without_truth_the_lowest_foot_stands_on_the_floor(tmp_path):
    log = Log(record(tmp_path, None, 0.5, truth=False))
    poses = Motion(log, *setup_of(log, tmp_path)).poses()
    assert len(poses) == 25
    assert 0.6 < poses[0][1][2] < 0.9 and np.all(poses[0][1][:2] == 0.0)


def test_without_a_display_it_says_so_and_writes_the_clip(hanging, tmp_path):
    clip = tmp_path / "clip.mp4"
    result = look(hanging, tmp_path, (0.5, 1.3), clip)
    assert sum("no display" in note for note in result["notes"]) == 1
    if not clip.exists():
        assert any("no GL" in note for note in result["notes"])
        pytest.skip("no GL for rendering off screen here")
    with av.open(str(clip)) as container:
        assert 18 <= container.streams.video[0].frames <= 21


def test_a_moment_without_motion_or_a_log_without_its_robot_is_refused(hanging, tmp_path):
    with pytest.raises(UserError, match=r"no motion between 8 and 9 s; the log lasts 1\.50 s"):
        look(hanging, tmp_path, (8.0, 9.0))
    with pytest.raises(UserError, match="no folder"):
        look(hanging, tmp_path, None, tmp_path / "nowhere" / "clip.mp4")


def test_a_log_that_is_still_being_written_can_be_looked_at(hanging: Log, tmp_path: Path):
    cut = tmp_path / "000.mcap.partial"
    shutil.copy(hanging.segments[0], cut)
    with cut.open("r+b") as file:
        file.truncate(int(cut.stat().st_size * 0.7))
    result = look(Log(cut), tmp_path)
    assert result["poses"] > 20 and any("cut" in n or "partial" in n for n in result["notes"])
