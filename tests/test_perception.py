"""Perception: heights where the boxes are, bad frames dropped by name, a gate, and exact replay."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

import robot.perception
from robot.estimator import Estimator
from robot.geomap import SCAN_XY
from robot.log import Log
from robot.log_writer import LogWriter, open_log
from robot.messages import Encoding, Frame, FrameFault, HeightMap, LowState
from robot.model import build_spec, load_robot
from robot.perception import (
    AGE_LIMIT_NS,
    CONTACT_NS,
    MEMORY_NS,
    STATE_TICKS,
    Perception,
    gate_names,
    grown,
)
from robot.raycast import DepthRays
from robot.runs import CameraConfig, LogConfig, RunConfig
from robot.topics import make_codecs
from sim2real.replay_perception import PerceptionReplay

ROBOT = load_robot("g1")
HEAD = ROBOT.cameras["head"]
CODECS = make_codecs(ROBOT)
MS = 1_000_000
TICK = 2 * MS
BOX = ((0.5, 0.8), (-0.2, 0.2), 0.1)  # x, y from and to, height: m


class Stage:
    """A robot that stands before a box, its camera without noise, and perception.

    `lean` (rad about y) tilts the whole robot about its soles' middle; nothing slips.
    """

    def __init__(self, factor: float = 1.0, box: bool = True, log: LogWriter | None = None) -> None:
        spec = build_spec(ROBOT)
        if box:
            (x0, x1), (y0, y1), high = BOX
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, size=[(x1 - x0) / 2, (y1 - y0) / 2, high / 2],
                pos=[(x0 + x1) / 2, (y0 + y1) / 2, high / 2],
            )  # fmt: skip
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.rays = DepthRays(self.model, HEAD)
        self.perception = Perception(ROBOT, HEAD, CODECS, factor)
        self.joint_pos = ROBOT.stand_joint_pos.copy()
        estimator = Estimator(ROBOT)
        estimator.step(self.joint_pos, np.zeros(29), [1, 0, 0, 0], np.zeros(3), [0, 0, 9.81], 1)
        self.height = float(estimator.position[2])  # m, of the pelvis with its soles at 0
        self.now, self.tick, self.frame_id, self.seq = 10**12, 0, 0, 0
        self.log = log
        self.maps: list[HeightMap] = []

    def live(self, ms: int, waist: float | None = None) -> None:
        """Let time pass; the waist's pitch moves evenly to a new place meanwhile."""
        at = ROBOT.joint_names.index("waist_pitch_joint")
        ticks = ms * MS // TICK
        places = np.linspace(
            self.joint_pos[at], self.joint_pos[at] if waist is None else waist, ticks
        )
        for place in places:
            self.joint_pos[at] = place
            self.now += TICK
            self.tick += 1
            state: LowState = CODECS["low_state"].new()
            state.stamp(5, self.tick, self.now)
            state.tick, state.robot_time_ns = self.tick, self.now
            state.joint_pos[:] = self.joint_pos
            state.imu_quat_wxyz[:], state.imu_accel[2] = (1, 0, 0, 0), 9.81
            self.write("low_state", state)
            self.perception.hear(state)

    def picture(self, late_ms: int = 0) -> Frame:
        """What the camera sees now; it is taken up `late_ms` later."""
        self.data.qpos[:7] = (0, 0, self.height, 1, 0, 0, 0)
        self.data.qpos[7:] = self.joint_pos
        mujoco.mj_kinematics(self.model, self.data)
        frame: Frame = CODECS["frame.head"].new()
        self.frame_id += 1
        file = HEAD.file
        frame.frame_id, frame.calib_hash = self.frame_id, HEAD.calib_hash
        frame.width, frame.height, frame.size = file.width, file.height, file.frame_bytes
        frame.encoding, frame.depth_kind = int(HEAD.encoding), int(HEAD.depth_kind)
        frame.depth_scale_m = file.depth_scale_m
        frame.t_mid_ns = frame.t_sof_ns = frame.t_eof_ns = self.now
        frame.data[:] = (
            np.round(self.rays.depth(self.data) * 1000).astype("<u2").reshape(-1).view("u1")
        )
        return frame

    def see(self, frame: Frame | None = None, late_ms: int = 0) -> HeightMap:
        """Take a picture and let perception have it."""
        frame = frame or self.picture()
        self.live(late_ms)
        self.seq += 1
        frame.stamp(6, self.seq, frame.t_mid_ns)
        self.write("frame.head", frame)
        return self.step(frame)

    def step(self, frame: Frame | None) -> HeightMap:
        out = self.perception.step(frame, self.now)
        out.stamp(7, len(self.maps) + 1, self.now)
        self.write("height_map", out)
        self.maps.append(out.copy())
        return self.maps[-1]

    def write(self, topic: str, message) -> None:
        if self.log:
            self.log.write(topic, message.payload, message.seq, message.stamp_ns, self.now)


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch):
    """One view covers a third of the cells: a standing robot is rightly uncertain."""
    monkeypatch.setattr(robot.perception, "STD_LIMIT", 10.0)


def inside(x: tuple[float, float], y: tuple[float, float]) -> np.ndarray:
    """(187,) cells of mjlab's grid within a rectangle, edges left out."""
    at_x, at_y = SCAN_XY.T
    return (at_x > x[0] + 0.06) & (at_x < x[1] - 0.06) & (at_y > y[0] + 0.06) & (at_y < y[1] - 0.06)


def check_scene(out: HeightMap, height: float, within: float = 0.015) -> None:
    """The box where it is, and ground on both sides of it."""
    box, ground = (
        inside(*BOX[:2]),
        inside((0.4, 0.9), (0.2, 0.6)) | inside((0.4, 0.9), (-0.6, -0.2)),
    )
    assert box.sum() == 6 and ground.sum() == 24
    np.testing.assert_allclose(out.height[box], height - BOX[2], atol=within)
    np.testing.assert_allclose(out.height[ground], height, atol=within)


def test_heights_are_where_the_box_is(open_gate):
    stage = Stage()
    stage.live(100)
    out = stage.see()
    assert out.gate == 0 and out.frames == 1 and out.fault == FrameFault.NONE
    check_scene(out, stage.height)
    seen = out.std < 0.05
    assert 0.2 < seen.mean() < 0.6, "one frame sees about a third"
    assert out.cell_age.max() < 0.2 and out.base_height == pytest.approx(stage.height, abs=0.002)


def test_a_late_frame_is_put_where_the_camera_was(open_gate):
    """The waist bends by 8 degrees while the frame is on its way: 14 cm at a metre."""
    stage = Stage()
    stage.live(100)
    stage.live(60, waist=0.07)
    frame = stage.picture()
    stage.live(150, waist=0.21)
    out = stage.see(frame)
    assert out.age_ms == pytest.approx(150.0)
    check_scene(out, stage.height, within=0.02)


def test_own_arms_are_no_ground(open_gate):
    stage = Stage(box=False)
    for name in ("left_shoulder_pitch_joint", "right_shoulder_pitch_joint"):
        stage.joint_pos[ROBOT.joint_names.index(name)] = -0.9
    stage.live(100)
    out = stage.see()
    np.testing.assert_allclose(out.height[out.std < 0.05], stage.height, atol=0.02)
    assert (out.std < 0.05).mean() > 0.1


def test_a_mask_grows_to_its_sides():
    mask = np.zeros((7, 9), bool)
    mask[3, 4] = True
    out = grown(mask, 2)
    assert out.sum() == 25 and out[1:6, 2:7].all()


# --- bad frames (V2) ----------------------------------------------------------------------------


def spoiled(stage: Stage, cause: FrameFault) -> Frame:
    """A frame with one thing wrong, after at least one good one."""
    frame = stage.picture()
    if cause == FrameFault.CALIBRATION:
        frame.calib_hash += 1
    elif cause == FrameFault.SIZE:
        frame.width, frame.height = 48, 64
    elif cause == FrameFault.FROZEN:
        frame.frame_id -= 1
    elif cause == FrameFault.BACKWARDS:
        frame.t_mid_ns -= 400 * MS
    elif cause == FrameFault.LATE:
        stage.live(AGE_LIMIT_NS // MS + 10)
    elif cause == FrameFault.BLACK:
        frame.data[:] = 0
    return frame


@pytest.mark.parametrize("cause", list(FrameFault)[1:], ids=lambda cause: cause.name.lower())
def test_a_bad_frame_is_dropped_counted_and_named(cause: FrameFault):
    stage = Stage()
    stage.live(600)
    good = stage.see()
    stage.live(34)
    grid = stage.perception.map.height.tobytes()
    out = stage.see(spoiled(stage, cause))
    assert out.fault == cause and out.refused.tolist() == [int(f == cause) for f in FrameFault]
    assert out.frames == good.frames == 1 and out.t_mid_ns == good.t_mid_ns
    assert stage.perception.map.height.tobytes() == grid
    stage.live(34)
    assert stage.see().frames == 2, "the next good one counts"


def test_the_same_picture_from_elsewhere_is_frozen_though_the_camera_counts_on():
    stage = Stage()
    stage.live(100)
    first = stage.picture()
    assert stage.see(first).fault == FrameFault.NONE
    stage.live(34)
    assert stage.see().fault == FrameFault.NONE, "a robot that stands sees the same again"
    old = stage.picture().data.copy()
    legs = [i for i, name in enumerate(ROBOT.joint_names) if "knee" in name or "hip_pitch" in name]
    for bent in (0.2, 0.0):  # there, and back to where the picture is from
        stage.joint_pos[legs] = ROBOT.stand_joint_pos[legs] + bent
        stage.live(34)
        again = stage.picture()
        again.data[:] = old
        assert stage.see(again).fault == FrameFault.FROZEN
    stage.live(34)
    fresh = stage.picture()
    fresh.data[0] += 1
    assert stage.see(fresh).fault == FrameFault.NONE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 6142), ("encoding", int(Encoding.GRAY8)), ("depth_kind", 2), ("width", 2**31),
        ("height", 0),
    ],
)  # fmt: skip
def test_any_other_form_is_of_wrong_size(field: str, value: int):
    stage = Stage()
    stage.live(100)
    frame = stage.picture()
    setattr(frame, field, value)
    assert stage.see(frame).fault == FrameFault.SIZE


def test_stamps_of_the_future_and_frames_from_before_the_memory_are_dropped():
    stage = Stage(factor=10.0)
    stage.live(600)
    frame = stage.picture()
    frame.t_mid_ns += 5 * MS
    assert stage.see(frame).fault == FrameFault.BACKWARDS
    stage = Stage(factor=10.0)
    stage.live(100)
    frame = stage.picture()
    stage.live(MEMORY_NS // MS + 20)
    assert stage.see(frame).fault == FrameFault.LATE


def test_a_camera_that_was_started_anew_counts_from_one_again():
    stage = Stage()
    stage.live(100)
    stage.frame_id = 900
    stage.see()
    stage.live(34)
    frame = stage.picture()
    frame.frame_id = 1
    frame.stamp(99, 1, frame.t_mid_ns)
    assert stage.step(frame).fault == FrameFault.NONE


def test_frames_that_were_not_looked_at_are_counted():
    stage = Stage()
    stage.live(100)
    stage.see()
    stage.live(34)
    stage.seq += 3
    assert stage.see().missed == 3


# --- the gate -----------------------------------------------------------------------------------


def test_without_a_frame_the_ground_is_flat_and_says_so():
    stage = Stage()
    stage.live(100)
    out = stage.step(None)
    assert gate_names(int(out.gate))[0] == "nothing" and out.age_ms == -1.0
    np.testing.assert_allclose(out.height, out.base_height)
    assert out.base_height == pytest.approx(stage.height, abs=0.002), "the soles' middles"
    assert (out.frame_instance, out.frame_seq) == (0, 0)


def test_before_any_state_nothing_breaks():
    stage = Stage()
    out = stage.step(None)
    assert out.gate and np.all(out.height == np.float32(stage.perception.map.spec.pelvis_height))
    assert stage.see(stage.picture()).fault == FrameFault.LATE


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_an_old_map_is_flat_and_says_so(open_gate, factor: float):
    stage = Stage(factor)
    stage.live(100)
    assert stage.see().gate == 0
    stage.live(round(AGE_LIMIT_NS / MS * factor))
    assert stage.step(None).gate == 0
    stage.live(4)
    out = stage.step(None)
    assert gate_names(int(out.gate)) == ["old"]
    np.testing.assert_allclose(out.height, out.base_height)
    assert stage.see().gate == 0, "the camera is back"


def test_an_uncertain_map_is_flat_and_says_so():
    stage = Stage()
    stage.live(100)
    out = stage.see()
    assert gate_names(int(out.gate)) == ["uncertain"] and out.mean_std > robot.perception.STD_LIMIT


def test_two_footfalls_in_a_row_that_find_other_ground_shut_the_gate_for_a_while(open_gate):
    """The map is given ground 15 cm too high; then one foot after the other is put down."""
    stage = Stage()
    stage.live(100)
    stage.see()
    stage.perception.map.height += 0.15
    pose = stage.joint_pos.copy()
    for side, shut in (("left", False), ("right", True)):
        knee, hip, ankle = (
            ROBOT.joint_names.index(f"{side}_{name}_joint")
            for name in ("knee", "hip_pitch", "ankle_pitch")
        )
        leg = [knee, hip, ankle]
        for lift in (*np.linspace(0, 0.5, 20), *np.linspace(0.5, 0, 20)):
            stage.joint_pos[leg] = pose[leg] + [2 * lift, -lift, -lift]
            stage.live(10)
        stage.live(100)
        out = stage.step(None)
        assert out.contact_error == pytest.approx(0.15, abs=0.02)
        assert ("contact" in gate_names(int(out.gate))) == shut, "one alone may stand on an edge"
    stage.live(CONTACT_NS // MS + 10)
    assert "contact" not in gate_names(int(stage.step(None).gate))


def test_another_control_process_begins_another_map():
    stage = Stage()
    stage.live(100)
    stage.see()
    state: LowState = CODECS["low_state"].new()
    state.stamp(50, 1, stage.now)
    state.tick = STATE_TICKS
    state.imu_quat_wxyz[0], state.imu_accel[2] = 1.0, 9.81
    stage.perception.hear(state)
    out = stage.step(None)
    assert "nothing" in gate_names(int(out.gate)) and out.state_instance == 50


# --- replay (R1) --------------------------------------------------------------------------------


def record(folder: Path, leave_out: str = "", spoil: bool = False) -> tuple[Log, RunConfig]:
    """Half a second of seeing, some of it bad, as the bus would carry and the recorder keep it."""
    run = RunConfig(
        robot="g1", driver="sim", log=LogConfig(folder=folder), camera=CameraConfig(source="sim")
    )
    log = open_log(run, ROBOT, CODECS, now_ns=10**12, epoch_ns=1_790_000_000_000_000_000)
    stage = Stage(log=log)
    stage.live(100)
    rng = np.random.default_rng(0)
    for i in range(16):
        frame = stage.picture()
        frame.data.view("<u2")[:] += rng.integers(0, 9, 3072, dtype="<u2")
        if i in (7, 8):
            frame.frame_id = 1
        stage.live(34, waist=0.05 * np.sin(i))
        stage.seq += 1
        frame.stamp(6, stage.seq, frame.t_mid_ns)
        if not (leave_out == "frame" and i == 12):
            kept = frame.copy()
            if spoil and i == 12:
                kept.data.view("<u2")[2600:2700] += 400  # near, so that the scan has it
            stage.write("frame.head", kept)
        stage.step(frame)
        if i % 5 == 0:
            stage.live(40)
            stage.step(None)
        if leave_out == "state" and i == 12:
            stage.log = None
            stage.live(20)
            stage.log = log
    log.flush()
    log.close("done")
    return Log(log.folder), run


def test_a_log_with_frames_replays_to_the_byte(tmp_path: Path):
    log, run = record(tmp_path)
    result = PerceptionReplay(log, run, ROBOT)()
    assert (result.steps, result.compared, result.different, result.incomplete) == (20, 20, 0, 0)
    assert log["height_map"]["fault"].max() > 0, "and some of it was bad"


def test_a_changed_frame_is_seen(tmp_path: Path):
    log, run = record(tmp_path, spoil=True)
    result = PerceptionReplay(log, run, ROBOT)()
    assert result.different > 0 and result.first is not None
    seq = int(log["height_map"]["frame_seq"][result.first.step])
    assert result.first.topic == "height_map" and seq == 13


@pytest.mark.parametrize(
    ("what", "why"),
    [("frame", "the frame it consumed is lost"), ("state", "a low_state it consumed is lost")],
)
def test_a_lost_input_makes_steps_incomplete_and_not_different(tmp_path: Path, what: str, why: str):
    log, run = record(tmp_path, leave_out=what)
    result = PerceptionReplay(log, run, ROBOT)()
    assert result.different == 0 and result.steps == result.compared > 10
    assert result.reasons[why] == 1 and result.reasons["what the map remembered is lost"] > 2
    assert result.steps + result.incomplete == 20
