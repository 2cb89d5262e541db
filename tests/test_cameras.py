"""What every camera promises. A new camera inherits `CameraContract` and gives a `make`."""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import mujoco
import numpy as np
import pytest
from PIL import Image

from drivers.cameras import CAMERAS, make_camera
from drivers.cameras.camera import Camera, CameraFault, depth_of
from drivers.cameras.colour import ColourEye
from drivers.cameras.replay import PAUSE_NS, ReplayCamera
from drivers.cameras.sim import STALE_NS, SimCamera
from drivers.cameras.v4l2 import V4l2Camera
from robot.calibration import CalibrationFile, make_calibration
from robot.clock import now_ns
from robot.config import UserError
from robot.log import Log
from robot.log_writer import open_log
from robot.messages import Encoding, Frame, FrameClock, FrameSource, Truth
from robot.model import build_spec, load_robot
from robot.raycast import DepthRays
from robot.runs import CameraConfig, CameraNoise, LogConfig, RunConfig
from robot.topics import make_codecs

ROBOT = load_robot("g1")
HEAD = ROBOT.cameras["head"]
CODECS = make_codecs(ROBOT)
STEP_NS = 20_000_000  # of truth
MS = 1_000_000


def run_with(**camera: Any) -> RunConfig:
    return RunConfig(robot="g1", driver="sim", camera=CameraConfig(**camera))


class World:
    """A simulated robot that stands on a plane and leans, with a clock of its own."""

    def __init__(self) -> None:
        self.now, self._told, self.lean = 10**12, 10**12, 0.0
        self._truth: Truth = CODECS["truth"].new()

    def clock(self) -> int:
        return self.now

    def truths(self) -> Iterator[Truth]:
        """As a subscriber gives them: one message, filled anew each time."""
        while self._told + STEP_NS <= self.now:
            self._told += STEP_NS
            truth, half = self._truth, self.lean / 2
            truth.stamp(1, self._told // STEP_NS, self._told)
            truth.sim_time_ns = self._told - 10**12
            truth.base_pos_w[:] = (0.0, 0.0, 0.78)
            truth.base_quat_wxyz[:] = (np.cos(half), 0.0, np.sin(half), 0.0)
            truth.joint_pos[:] = ROBOT.stand_joint_pos
            yield truth


class CameraContract:
    """Inherited by each camera; `make` gives one that has pictures to give."""

    source = FrameSource.SIM
    calibration = HEAD
    encoding = Encoding.Z16
    timeout_ms = 500  # until the next picture surely comes

    def make(self) -> Camera:
        raise NotImplementedError

    def wait(self) -> None:
        """Let time pass, where the camera's clock is a test's."""

    def frames(self, camera: Camera, count: int) -> list[Frame]:
        found: list[Frame] = []
        for _ in range(50 * count):
            frame: Frame = CODECS["frame.head"].new()
            self.wait()
            if camera.read(frame, self.timeout_ms):
                found.append(frame)
            if len(found) == count:
                return found
        pytest.fail(f"{len(found)} frames of {count}")

    @pytest.fixture
    def camera(self) -> Iterator[Camera]:
        camera = self.make()
        camera.open()
        yield camera
        camera.close()

    def test_a_frame_says_what_it_is(self, camera: Camera):
        frame = self.frames(camera, 1)[0]
        about = self.calibration
        assert frame.camera_id == about.file.name and frame.source == self.source
        assert frame.encoding == self.encoding and frame.clock == FrameClock.MONOTONIC
        assert (frame.height, frame.width) == about.shape
        assert 0 < frame.size <= len(frame.data)
        if self.encoding != Encoding.JPEG:
            assert frame.size == frame.stride * frame.height
        assert frame.calib_hash != 0
        np.testing.assert_array_equal(frame.intrinsics, about.intrinsics)
        np.testing.assert_array_equal(frame.camera_pos, about.position)
        np.testing.assert_array_equal(frame.camera_quat_wxyz, about.file.T_link_cam.quat_wxyz)
        assert frame.data[: frame.size].any() and not frame.data[frame.size :].any()

    def test_times_are_in_order_and_frame_ids_rise(self, camera: Camera):
        frames = self.frames(camera, 4)
        for frame in frames:
            assert frame.t_sof_ns <= frame.t_mid_ns <= frame.t_eof_ns <= frame.t_recv_ns
            assert frame.t_eof_ns - frame.t_sof_ns < 50 * MS, "facts: end minus start"
            assert frame.clock_err_ns >= 0
        assert np.all(np.diff([frame.frame_id for frame in frames]) > 0)
        assert np.all(np.diff([frame.t_mid_ns for frame in frames]) > 0)
        assert np.all(np.diff([frame.dropped for frame in frames]) >= 0)

    def test_reading_leaves_what_is_the_publishers(self, camera: Camera):
        frame: Frame = CODECS["frame.head"].new()
        frame.t_pub_ns = 7
        header = frame.schema_hash, frame.robot_id
        self.wait()
        while not camera.read(frame, self.timeout_ms):
            self.wait()
        assert (frame.schema_hash, frame.robot_id) == header
        assert frame.t_pub_ns == 7

    def test_it_describes_itself_in_one_line(self, camera: Camera):
        assert len(camera.describe()) > 10 and "\n" not in camera.describe()

    def test_it_opens_and_closes_any_number_of_times(self):
        camera = self.make()
        camera.close()
        for _ in range(2):
            camera.open()
            camera.open()
            self.frames(camera, 1)
            camera.close()
            camera.close()


# --- sim ----------------------------------------------------------------------------------------


class TestSim(CameraContract):
    noise: CameraNoise | None = CameraNoise(drop=0.0, freeze=0.0)

    def make(self) -> Camera:
        self.world = World()
        return make_camera(
            run_with(source="sim", noise=self.noise), ROBOT, self.calibration.file.name,
            self.world.truths, self.world.clock,
        )  # fmt: skip

    timeout_ms = 0

    def wait(self) -> None:
        self.world.now += STEP_NS // 2

    def test_it_waits_no_longer_than_told(self, camera: Camera):
        frame: Frame = CODECS["frame.head"].new()
        begin = time.monotonic()
        assert not camera.read(frame, 20)
        assert 0.015 < time.monotonic() - begin < 2.0
        assert bytes(frame.payload) == bytes(CODECS["frame.head"].new().payload)

    def test_pictures_come_at_the_cameras_rate_as_late_as_drawn(self, camera: Camera):
        frames = self.frames(camera, 30)
        times = np.array([frame.t_mid_ns for frame in frames])
        period = round(1e9 / self.calibration.file.rate_hz)
        np.testing.assert_array_equal(np.diff(times), period)
        late = np.array([frame.t_recv_ns for frame in frames]) - times
        low, high = (30 * MS, 150 * MS) if self.noise else (4 * MS, 4 * MS)
        assert low <= late.min() and late.max() <= high + STEP_NS


class TestSimClean(TestSim):
    noise = None

    def test_depth_is_that_of_the_plane(self, camera: Camera):
        frame = self.frames(camera, 1)[0]
        depth = depth_of(frame)
        eye = 0.78 + 0.044 + 0.42987  # pelvis, torso_link above it, camera above that
        pitch = np.radians(47.6)
        assert depth.shape == (48, 64)
        assert depth[24, 32] == pytest.approx(eye / np.sin(pitch), rel=0.02)
        assert depth.min() > 0.4

    def test_a_pose_between_two_truths_is_drawn(self, camera: Camera):
        """It leans faster and faster: pictures lie between those at the truths around them."""
        means = []
        for _ in range(12):
            self.world.lean += 0.02
            means += [depth_of(f).mean() for f in self.frames(camera, 1)]
        assert np.all(np.diff(means) < 0), "each sees nearer ground than the one before"

    def test_what_comes_too_late_is_lost_and_not_made_up_for(self, camera: Camera):
        before = self.frames(camera, 1)[0]
        self.world.now += 3 * STALE_NS
        frames = self.frames(camera, 7)
        assert frames[0].t_mid_ns >= self.world.now - STALE_NS - 7 * STEP_NS
        assert frames[0].dropped >= 10
        assert frames[0].frame_id - before.frame_id == frames[0].dropped + 1


class TestSimColour(TestSim):
    """Where there is GL."""

    calibration = ROBOT.cameras["head_rgb"]
    encoding = Encoding.JPEG

    def make(self) -> Camera:
        try:
            return super().make()
        except UserError as error:
            pytest.skip(str(error))

    def test_it_names_what_draws(self, camera: Camera):
        assert camera.describe().startswith("simulated colour, drawn by ")

    def test_a_picture_is_a_jpeg_of_the_floor(self, camera: Camera):
        frame = self.frames(camera, 1)[0]
        image = Image.open(io.BytesIO(frame.data[: frame.size].tobytes()))
        assert (image.format, image.size) == ("JPEG", (192, 108))
        assert 120 < np.asarray(image).mean() < 230, "a light floor fills it"


def colour_eye(model: mujoco.MjModel) -> ColourEye:
    try:
        return ColourEye(model, ROBOT.cameras["head_rgb"])
    except UserError as error:
        pytest.skip(str(error))


def test_a_red_box_is_red_where_depth_finds_it():
    """Red stays red through renderer and JPEG, and both eyes look the same way."""
    spec = build_spec(ROBOT)
    spec.worldbody.add_geom(
        name="box", type=mujoco.mjtGeom.mjGEOM_BOX, group=0, size=[0.1, 0.15, 0.15],
        pos=[1.0, 0.35, 0.15], rgba=[1.0, 0.05, 0.05, 1.0],
    )  # fmt: skip
    model = spec.compile()
    eye, data = colour_eye(model), mujoco.MjData(model)
    data.qpos[:7] = (0.0, 0.0, 0.78, 1.0, 0.0, 0.0, 0.0)
    data.qpos[7:] = ROBOT.stand_joint_pos
    mujoco.mj_kinematics(model, data)
    jpeg = eye.see(data)
    image = np.asarray(Image.open(io.BytesIO(jpeg.tobytes()))).astype(int)
    red = (image[..., 0] > 120) & (image[..., 0] > 2 * image[..., 2])
    assert not ((image[..., 2] > 120) & (image[..., 2] > 2 * image[..., 0])).any(), "none is blue"
    rays = DepthRays(model, ROBOT.cameras["head_rgb"])
    nearer = rays.depth(data)
    model.geom("box").group = 3  # unseen
    hit = nearer < rays.depth(data) - 1e-3
    assert hit.sum() > 200
    assert (red & hit).sum() > 0.9 * (red | hit).sum()


def test_without_gl_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    expected = r"no GL for drawing off screen by EGL \(.*mujoco.egl.*\)"
    with pytest.raises(UserError, match=expected):
        ColourEye(build_spec(ROBOT).compile(), ROBOT.cameras["head_rgb"])


def test_a_frozen_camera_repeats_its_frame_id_and_a_lossy_one_counts():
    world = World()
    noise = CameraNoise(drop=0.3, freeze=0.1, freeze_s=(0.1, 0.2))
    run = run_with(source="sim", noise=noise)
    camera = make_camera(run, ROBOT, "head", world.truths, world.clock)
    frames = []
    for _ in range(600):
        world.now += STEP_NS // 2
        frame: Frame = CODECS["frame.head"].new()
        if camera.read(frame, 0):
            frames.append(frame)
    ids = np.array([frame.frame_id for frame in frames])
    again = np.flatnonzero(np.diff(ids) == 0)
    assert len(again) > 5 and np.all(np.diff(ids) >= 0)
    assert all(frames[i].t_mid_ns == frames[i + 1].t_mid_ns for i in again)
    assert frames[-1].dropped > 20


def test_the_simulated_camera_refuses_what_it_cannot_draw():
    for update, sentence in (
        ({"encoding": "gray8", "depth_kind": "none", "depth_scale_m": 0.0}, "encoding: got gray8"),
        (
            {"distortion_model": "fisheye4", "distortion": (0.1, 0.0, 0.0, 0.0)},
            "got fisheye4, expected",
        ),
    ):
        file = CalibrationFile.model_validate(HEAD.file.model_dump() | update)
        with pytest.raises(UserError, match=sentence):
            SimCamera(
                run_with(source="sim"), ROBOT, make_calibration(file, HEAD.path), list, now_ns
            )


# --- replay -------------------------------------------------------------------------------------


def log_with_frames(folder: Path, count: int = 5) -> Path:
    """A log that holds `count` frames of the simulated camera, as they were published."""
    world = World()
    run = RunConfig(
        robot="g1", driver="sim", log=LogConfig(folder=folder),
        camera=CameraConfig(source="sim", noise=None),
    )  # fmt: skip
    camera = make_camera(run, ROBOT, "head", world.truths, world.clock)
    log = open_log(run, ROBOT, CODECS, now_ns=world.now, epoch_ns=1_790_000_000_000_000_000)
    frame: Frame = CODECS["frame.head"].new()
    written = 0
    while written < count:
        world.now += STEP_NS // 2
        if camera.read(frame, 0):
            written += 1
            frame.t_pub_ns = world.now
            frame.stamp(1, written, frame.t_mid_ns)
            log.write("frame.head", frame.payload, written, frame.t_mid_ns, world.now)
    log.close("done")
    return log.folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_with_frames(tmp_path_factory.mktemp("logs"))


class TestReplay(CameraContract):
    source = FrameSource.REPLAY

    @pytest.fixture(autouse=True)
    def _log(self, logged: Path):
        self.log = logged

    def make(self) -> Camera:
        return make_camera(run_with(source="replay", log=self.log), ROBOT, "head", list)

    def test_reading_leaves_what_is_the_publishers(self, camera: Camera):
        """The node sets t_pub_ns; here it is the log's until then."""
        frame = self.frames(camera, 1)[0]
        assert frame.schema_hash == CODECS["frame.head"].schema_hash


def test_a_log_is_shown_at_its_pace_again_and_again(tmp_path: Path):
    log = log_with_frames(tmp_path, count=3)
    now = [5 * 10**12]
    camera = ReplayCamera(run_with(source="replay", log=log), ROBOT, HEAD, list, lambda: now[0])
    camera.open()
    frames, times = [], []
    for _ in range(800):
        frame: Frame = CODECS["frame.head"].new()
        if camera.read(frame, 0):
            frames.append(frame)
            times.append(now[0])
        now[0] += MS
    assert len(frames) >= 7
    received = np.array([f.t_recv_ns for f in frames])
    np.testing.assert_array_less(np.array(times) - received, 2 * MS)
    logged = np.diff(Log(log)["frame.head"]["t_recv_ns"])
    np.testing.assert_array_equal(np.diff(received)[:5], [*logged, PAUSE_NS, *logged])
    np.testing.assert_array_equal(frames[0].data, frames[3].data)
    assert np.all(np.diff([f.frame_id for f in frames]) > 0)
    ages = [f.t_recv_ns - f.t_mid_ns for f in frames]
    assert ages[0] == ages[3] and frames[0].calib_hash == HEAD.calib_hash


def test_a_log_without_frames_is_refused(tmp_path: Path):
    run = RunConfig(robot="g1", driver="sim", log=LogConfig(folder=tmp_path))
    log = open_log(run, ROBOT, CODECS, now_ns=0, epoch_ns=1_790_000_000_000_000_000)
    log.close("done")
    with pytest.raises(
        UserError, match=r"got no frame.head, expected a log of a run with a camera"
    ):
        ReplayCamera(run_with(source="replay", log=log.folder), ROBOT, HEAD, list, now_ns)


# --- v4l2 ---------------------------------------------------------------------------------------


class FileCamera(V4l2Camera):
    """OpenCV's own reader on a file instead of a device: everything behind it is the real thing."""

    def connect(self, cv2: Any) -> Any:
        return Paced(cv2.VideoCapture(self.device, cv2.CAP_FFMPEG))


class Paced:
    """A device gives pictures at its rate; a file would give all of them at once."""

    def __init__(self, capture: Any) -> None:
        self._capture = capture
        self.get, self.set, self.release = capture.get, capture.set, capture.release

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.02)
        return self._capture.read()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 x 270: left half red, right half blue."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    image = np.zeros((270, 480, 3), np.uint8)
    image[:, :240, 0] = image[:, 240:, 2] = 180
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 480, 270, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def colour(encoding: str) -> Any:
    """The head's calibration, of a camera without depth."""
    update = {"encoding": encoding, "depth_kind": "none", "depth_scale_m": 0.0}
    file = CalibrationFile.model_validate(HEAD.file.model_dump() | update)
    return make_calibration(file, HEAD.path)


class V4l2Contract(CameraContract):
    source = FrameSource.REAL

    @pytest.fixture(autouse=True)
    def _device(self, clip: Path):
        self.device = clip

    def make(self) -> Camera:
        pytest.importorskip("cv2")
        run = run_with(source="v4l2", device=str(self.device))
        calibration = colour(self.encoding.name.lower())
        robot = dataclasses.replace(ROBOT, cameras={"head": calibration})
        codec = make_codecs(robot)["frame.head"]
        self.new: Callable[[], Frame] = codec.new
        return FileCamera(run, robot, calibration, list, now_ns)

    def frames(self, camera: Camera, count: int) -> list[Frame]:
        found = []
        while len(found) < count:
            frame = self.new()
            assert camera.read(frame, self.timeout_ms)
            found.append(frame)
        return found

    def test_reading_leaves_what_is_the_publishers(self, camera: Camera):
        frame = self.frames(camera, 1)[0]
        assert frame.t_pub_ns == 0 and frame.robot_id == ROBOT.robot_id

    def test_a_red_patch_is_red(self, camera: Camera):
        """Trap 2 of cameras: OpenCV's order is BGR, the header says which one is meant."""
        frame = self.frames(camera, 1)[0]
        image = frame.data[: frame.size].reshape(48, 64, -1).astype(int)
        left, right = image[24, 10], image[24, 54]
        if self.encoding == Encoding.GRAY8:
            assert 30 < left[0] < 80 and 5 < right[0] < 35  # 0.299 and 0.114 of 180
            return
        red, blue = (0, 2) if self.encoding == Encoding.RGB8 else (2, 0)
        assert left[red] > 120 and left[blue] < 40
        assert right[blue] > 120 and right[red] < 40


class TestV4l2Rgb(V4l2Contract):
    encoding = Encoding.RGB8

    def test_it_names_device_size_format_and_rate(self, camera: Camera):
        assert camera.describe().endswith("clip.mp4: 480 x 270 h264 at 30 Hz")

    def test_its_end_is_a_fault_and_it_comes_back_when_opened_again(self, camera: Camera):
        with pytest.raises(CameraFault, match=r"clip.mp4: gives no pictures any more"):
            for _ in range(200):
                camera.read(self.new(), 500)
        camera.close()
        camera.open()
        assert camera.read(self.new(), 500)

    def test_only_the_newest_picture_is_kept_and_the_others_are_counted(self, camera: Camera):
        time.sleep(0.3)
        frame = self.frames(camera, 1)[0]
        assert frame.frame_id == frame.dropped + 1 and frame.dropped > 3

    def test_a_stamp_that_is_no_time_of_ours_is_not_believed(self, camera: Camera):
        """A file tells its own position; the time of receipt is said to hide 100 ms."""
        frame = self.frames(camera, 1)[0]
        assert frame.t_eof_ns == frame.t_recv_ns and frame.clock_err_ns > 100 * MS


class TestV4l2Bgr(V4l2Contract):
    encoding = Encoding.BGR8


class TestV4l2Gray(V4l2Contract):
    encoding = Encoding.GRAY8


def test_a_device_of_another_size_is_refused(clip: Path):
    pytest.importorskip("cv2")
    file = HEAD.file.model_copy(update={"sensor_size": (640, 360)})
    camera = FileCamera(
        run_with(source="v4l2", device=str(clip)), ROBOT,
        make_calibration(file, HEAD.path), list, now_ns,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"480 x 270 .* expected 640 x 360 at 30 Hz as of "):
        camera.open()
    camera.close()


def test_a_missing_device_and_a_missing_library_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("cv2")
    camera = make_camera(run_with(source="v4l2", device="/dev/video99"), ROBOT, "head", list)
    with pytest.raises(CameraFault, match=r"^/dev/video99: no such device; available: "):
        camera.open()
    strange = tmp_path / "device"
    strange.touch()
    camera = make_camera(run_with(source="v4l2", device=str(strange)), ROBOT, "head", list)
    with pytest.raises(UserError, match=r"device: expected a device of Video4Linux, such as /dev/"):
        camera.open()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        UserError, match=r"cv2.*; `pip install 'plexus\[camera\]'` brings what a v4l2"
    ):
        camera.open()


# --- all of them --------------------------------------------------------------------------------


def test_the_suite_covers_every_camera():
    asked = set(CameraConfig.model_fields["source"].annotation.__args__)  # pyright: ignore
    assert set(CAMERAS) == {"sim", "replay", "v4l2"} == asked - {"none"}


def test_an_unknown_camera_lists_those_there_are():
    with pytest.raises(
        UserError, match=r"robot.yaml: cameras: 'chest' is unknown; available: head"
    ):
        make_camera(run_with(source="sim"), ROBOT, "chest", list)
