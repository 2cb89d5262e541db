"""Clips: decodable, of the right size and length; where there is no GL, one line says so."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from robot.cli import main, truth_pose
from robot.model import load_robot
from robot.runs import load_run
from robot.video import FRAME_RATE, HEIGHT, WIDTH, Pose, resample, write_clip
from sim2real.lockstep import Lockstep

ROBOT = load_robot("g1")


@pytest.fixture(scope="module")
def poses() -> list[Pose]:
    """A second of hanging and standing up."""
    lockstep = Lockstep(load_run("sim"), None, robot=ROBOT)
    found: list[Pose] = []
    lockstep.on_truth = lambda truth: found.append(truth_pose(truth))
    lockstep.run_for(1.0)
    return found


def test_frames_show_the_newest_pose_before_them():
    poses: list[Pose] = [(t, np.array([t])) for t in (2.0, 2.03, 2.05, 2.5)]
    shown = [float(pose[0]) for pose in resample(poses)]
    # 2.00, 2.04, 2.08, ... 2.48
    assert shown == [2.0, 2.03] + [2.05] * 11


def test_without_motion_nothing_is_written(tmp_path):
    for few in ([], [(0.0, np.zeros(36))]):
        assert write_clip(tmp_path / "a.mp4", ROBOT, few) == "not written: nothing was simulated"
    assert not (tmp_path / "a.mp4").exists()


def test_a_clip_shows_the_motion(tmp_path, poses):
    path = tmp_path / "a.mp4"
    said = write_clip(path, ROBOT, poses)
    if said.startswith("not written: no GL"):
        pytest.skip(said)
    expected = len(resample(poses))
    assert said == f"{path}: {expected / FRAME_RATE:.1f} s at {FRAME_RATE} frames per second"
    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.average_rate == FRAME_RATE
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == expected
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert_whole_robot(frames[-1])
    assert np.abs(frames[-1].astype(int) - frames[0]).max() > 50, "nothing moves"


def assert_whole_robot(frame: np.ndarray) -> None:
    """Black and white parts stand out of the grey of floor and sky, off every edge."""
    found = (frame.max(axis=2) < 50) | (frame.min(axis=2) > 242)
    rows, columns = np.nonzero(found)
    assert len(rows) > 0.01 * found.size
    top, bottom = np.percentile(rows, [0.5, 99.5]) / HEIGHT
    left, right = np.percentile(columns, [0.5, 99.5]) / WIDTH
    assert 0.05 < top < 0.3 and 0.7 < bottom < 0.97 and left > 0.3 and right < 0.7


@pytest.mark.parametrize("gl", ["bogus", "disable"])
def test_without_gl_one_line_says_why(tmp_path, poses, monkeypatch, gl: str):
    monkeypatch.setenv("MUJOCO_GL", gl)
    said = write_clip(tmp_path / "a.mp4", ROBOT, poses)
    assert said.startswith("not written: no GL for rendering off screen (")
    assert "\n" not in said and (gl != "bogus" or "MUJOCO_GL: bogus" in said)
    assert not (tmp_path / "a.mp4").exists()


def test_a_run_writes_its_clip_and_says_so(capsys, tmp_path):
    clip, report = tmp_path / "a.mp4", tmp_path / "a.json"
    line = f"run sim --lockstep --seconds 0.5 --video {clip} --json {report}"
    assert main(line.split()) == 0
    said = json.loads(report.read_text())["video"]
    assert f"video      {said}\n" in capsys.readouterr().out
    assert clip.exists() is not said.startswith("not written: no GL")


def test_without_a_world_there_is_no_clip(capsys, tmp_path):
    line = f"run loopback --lockstep --seconds 0.1 --video {tmp_path / 'a.mp4'}"
    assert main(line.split()) == 0
    assert "video      not written: nothing was simulated\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
