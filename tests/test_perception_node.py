"""Perception's process on the real bus: a camera that is unplugged, back again, or frozen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from robot.bus import Publisher, Subscriber
from robot.clock import now_ns
from robot.messages import Frame, FrameFault, HeightMap, Message, PerceptionTiming
from robot.node import RUN_FILE
from robot.perception import gate_names
from robot.runs import CameraConfig, RunConfig
from tests.conftest import ROOT, eventually
from tests.test_perception import CODECS, MS, Stage


class Street(Stage):
    """The standing robot, published; perception is a process of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(mode=0o700)
        run = RunConfig(
            robot="g1", driver="sim", timing_factor=3.0, camera=CameraConfig(source="sim")
        )
        (folder / RUN_FILE).write_text(run.model_dump_json())
        self.context = zmq.Context()
        self.publishers = {
            topic: Publisher(self.context, folder, topic, CODECS[topic])
            for topic in ("low_state", "frame.head")
        }
        heard = {topic: CODECS[topic] for topic in ("height_map", "perception_timing")}
        self.ear = Subscriber(self.context, folder, heard, every=True)
        command = [sys.executable, "-m", "robot.node", "perception", "robot.perception_node"]
        self.process = subprocess.Popen([*command, str(folder)], cwd=ROOT)
        self.out: HeightMap | None = None
        self.timing: PerceptionTiming | None = None

    def write(self, topic: str, message: Message) -> None:
        if topic in self.publishers:
            self.publishers[topic].send(message, message.stamp_ns)

    def turn(self, frame: bool = True) -> Any:
        """The last 20 ms of the robot, a picture, and what perception said since."""
        self.now = max(self.now, now_ns() - 20 * MS) if self.tick else now_ns() - 20 * MS
        self.live(20)
        if frame:
            picture = self.picture()
            picture.t_recv_ns, picture.t_pub_ns = self.now, now_ns()
            self.write_frame(picture)
        while message := self.ear.receive():
            if isinstance(message, HeightMap):
                self.out = message.copy()
            elif isinstance(message, PerceptionTiming):
                self.timing = message.copy()
        return self.out

    def write_frame(self, picture: Frame) -> None:
        picture.stamp(6, 0, picture.t_mid_ns)
        self.write("frame.head", picture)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for one in (*self.publishers.values(), self.ear):
            one.close()
        self.context.term()


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    street = Street(tmp_path / "rt")
    yield street
    street.close()


def test_frames_become_maps_and_a_camera_may_go_freeze_and_come_back(street: Street):
    def frames() -> int:
        return int(street.out.frames) if street.out is not None else 0

    eventually(lambda: street.turn() and frames() >= 3, 60)
    timing = street.timing
    assert timing is not None
    parts = timing.capture_ms + timing.driver_ms + timing.bus_ms + timing.compute_ms
    assert timing.total_ms == pytest.approx(parts, rel=1e-3) and timing.compute_ms > 0.0

    # unplugged: maps go on, older and older, until nobody may trust them
    def old() -> bool:
        out = street.turn(frame=False)
        return "old" in gate_names(int(out.gate))

    eventually(old, 30)
    assert street.out is not None and street.out.age_ms > 600.0

    before = frames()
    eventually(lambda: street.turn() and frames() > before, 30)
    assert "old" not in gate_names(int(street.out.gate))

    # frozen: the same picture again and again
    def frozen() -> int:
        street.frame_id -= 1
        return int(street.turn().refused[FrameFault.FROZEN])

    eventually(lambda: frozen() >= 2, 30)
    assert street.process.poll() is None


def test_a_robot_without_a_depth_camera_is_told_in_one_line_and_nothing_else_ends(tmp_path: Path):
    folder = tmp_path / "rt"
    folder.mkdir(mode=0o700)
    place = tmp_path / "robot"
    place.mkdir()
    for name in ("robot.yaml", "g1.xml", "head_camera.yaml", "head_rgb_camera.yaml"):
        text = (ROOT / "configs" / "g1" / name).read_text()
        if name == "head_camera.yaml":
            text = text.replace("encoding: z16", "encoding: gray8").replace("depth_kind: z ", "#")
            text = text.replace("depth_scale_m: 0.001", "")
        (place / name).write_text(text)
    run = RunConfig(
        robot=str(place / "robot.yaml"), driver="sim", camera=CameraConfig(source="sim")
    )
    (folder / RUN_FILE).write_text(run.model_dump_json())
    for node, entry in (("perception", "robot.perception_node"), ("camera", "robot.camera_node")):
        done = subprocess.run(
            [sys.executable, "-m", "robot.node", node, entry, str(folder)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"{node}: no {node}: {place / 'head_camera.yaml'}: ")
        assert done.stderr.strip().endswith("; everything else runs")


def test_where_there_is_no_gl_the_colour_camera_says_so_in_one_line_and_ends_well(tmp_path: Path):
    folder = tmp_path / "rt"
    folder.mkdir(mode=0o700)
    run = RunConfig(robot="g1", driver="sim", camera=CameraConfig(source="sim", rgb=True))
    (folder / RUN_FILE).write_text(run.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "robot.node", "rgb", "robot.camera_node", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYOPENGL_PLATFORM": "glx"},  # which EGL refuses
    )  # fmt: skip
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("rgb: no camera: no GL for drawing off screen by EGL (")
    assert done.stderr.strip().endswith("; everything else runs")
