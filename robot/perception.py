"""Turns pictures into the ground around the robot: each frame in, one height_map out. The stage.

A frame is put where the robot was in the middle of its exposure: joints and attitude of the last
half second are kept and interpolated. What cannot be trusted is dropped by name, and where the map
cannot be trusted the heights are flat and say so. The process around it is perception_node.py.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.calibration import Calibration, check_pinhole
from robot.config import UserError
from robot.estimator import Estimator
from robot.geomap import AGE_LIMIT_NS, GeoMap
from robot.messages import Codec, DepthKind, Encoding, Frame, FrameFault, HeightMap, LowState
from robot.model import Robot, compile_model
from robot.raycast import OWN_GROUPS, DepthRays
from robot.rotations import heading_of, quat_between, rotation_matrix
from robot.terrain_net import state_input

FloatArray = NDArray[np.float64]

STATE_TICKS = 5  # every so many control ticks a state is looked at: 100 per second
MEMORY_NS = 500_000_000  # of states; a frame from before is late
STD_LIMIT = 0.12  # m, mean over the cells
CONTACT_LIMIT = 0.06  # m between map and sole at a footfall, twice in a row
CONTACT_NS = 2_000_000_000  # so long a footfall that disagreed counts
STANDS, LIFTED = 0.3, 0.1  # shares of the odometry that a foot carries
BLACK = 0.02  # share of the pixels that must have depth
# rad, mean over the joints between two exposures: a camera that moved so much and shows the very
# same picture is stuck, though it counts on. Noise of encoders stays below it, a step does not.
MOVED = 0.01
# Pixels around the robot's own shapes that are not believed either: edges grow by two, and where
# the mount is off by three degrees a shape is two more away. With two, and none beyond the picture,
# a knee's pixel in the lowest row became ground, half a metre high, and hid what was behind.
MARGIN = 4
PITCH_TOLD = math.radians(1.0)  # by which a camera is beside its calibration, and people are told
GATE = (
    ("nothing", "no frame is in the map yet"),
    ("old", "the newest frame is too old"),
    ("uncertain", "the heights are too uncertain on average"),
    ("contact", "feet found the ground elsewhere than the map has it"),
)
NO_AGE = -1.0


def gate_names(bits: int) -> list[str]:
    """Names of the bits of HeightMap.gate."""
    return [name for i, (name, _) in enumerate(GATE) if bits >> i & 1]


def camera_in_words(pitch: float) -> str:
    """For people: it looks `pitch` rad higher than its calibration says. Little is no word."""
    if abs(pitch) < PITCH_TOLD:
        return ""
    return f"camera {math.degrees(abs(pitch)):.1f} degrees too {'high' if pitch > 0.0 else 'low'}"


@dataclass(frozen=True)
class Moment:
    """The robot at one time, as joints, IMU and odometry tell it."""

    stamp_ns: int
    joint_pos: FloatArray
    """(N,) rad."""
    quat_wxyz: FloatArray
    """(4,) orientation of the pelvis."""
    base_pos: FloatArray
    """(3,) m, pelvis in the odometry frame."""


@dataclass(frozen=True)
class Sight:
    """One frame that was believed, as it went into the map."""

    steps: NDArray[np.uint16]
    """(height, width) depth in steps of depth_scale_m; 0 where nothing counts"""
    state: NDArray[np.float32]
    """(19,) terrain_net.state_input"""


class Perception:
    """The stage: low_states and frames in, height maps out.

    Args:
        robot: joints and model.
        calibration: of the camera whose frames come.
        codecs: topic name to layout.
        timing_factor: multiplies the age limit.

    Raises:
        UserError: the camera gives no z-depth with straight rays, or low_state no pelvis' IMU.
    """

    def __init__(
        self, robot: Robot, calibration: Calibration, codecs: dict[str, Codec], timing_factor: float
    ) -> None:
        check_pinhole(calibration, "perception")
        if calibration.encoding != Encoding.Z16 or calibration.depth_kind != DepthKind.Z:
            raise UserError(
                f"{calibration.path}: got {calibration.file.encoding} with depth_kind "
                f"{calibration.file.depth_kind}, expected z16 with z: perception maps depth"
            )
        if robot.imu != "pelvis":
            raise UserError(f"{robot.path}: imu: {robot.imu!r}; perception needs the pelvis'")
        self._robot, self._calibration = robot, calibration
        self._age_limit_ns = round(AGE_LIMIT_NS * timing_factor)
        self._intrinsics = tuple(calibration.intrinsics.tolist())
        self._model = compile_model(robot)
        self._data = mujoco.MjData(self._model)
        self._link = self._model.body(calibration.file.link).id
        self._own = DepthRays(self._model, wider(calibration, MARGIN), OWN_GROUPS)
        self.out: HeightMap = codecs["height_map"].new()
        self._estimator = Estimator(robot)
        self._start_anew(0)
        self._camera = (0, 0, 0, 0)  # newest frame: instance, seq, frame_id, t_mid_ns

    def _start_anew(self, instance: int) -> None:
        """Another control process: where the robot went meanwhile is not known."""
        self.map = GeoMap()
        self._estimator.reset()
        self._moments: deque[Moment] = deque()
        self._state = (instance, 0)
        self._states = 0
        self._standing = [False, False]
        self._t_mid_ns = self._taken_ns = 0
        self._gyro, self._velocity_b = np.zeros(3), np.zeros(3)
        self.sight: Sight | None = None  # the newest frame that was believed
        self._picture = np.zeros(0, np.uint16), np.zeros(0)  # the newest, and joints at its time
        self._stuck = False
        self._disagreed, self._disagreed_ns = False, -CONTACT_NS
        self.out.contact_error = np.nan

    # --- states -------------------------------------------------------------------------------

    def hear(self, state: LowState) -> None:
        """Remember where the robot was; states between the hundred per second are passed over."""
        if state.tick % STATE_TICKS:
            return
        if state.instance != self._state[0]:
            self._start_anew(state.instance)
        self._state = (state.instance, state.seq)
        self._states += 1
        estimator = self._estimator
        estimator.step(
            state.joint_pos, state.joint_vel, state.imu_quat_wxyz, state.imu_gyro, state.imu_accel,
            state.robot_time_ns,
        )  # fmt: skip
        stamp = state.stamp_ns
        quat = state.imu_quat_wxyz.copy()
        moment = Moment(stamp, state.joint_pos.copy(), quat, estimator.position.copy())
        self._moments.append(moment)
        self._gyro, self._velocity_b = state.imu_gyro.copy(), estimator.velocity_b
        while stamp - self._moments[0].stamp_ns > MEMORY_NS:
            self._moments.popleft()
        for foot, share in enumerate(estimator.share):
            if share > STANDS and not self._standing[foot]:
                self._standing[foot] = True
                self._footfall(estimator.soles[foot], stamp)
            elif share < LIFTED:
                self._standing[foot] = False

    def _footfall(self, sole: FloatArray, stamp_ns: int) -> None:
        """A sole measures the ground: correct the map, and see whether it knew."""
        error = self.map.contact(sole, stamp_ns)
        self.out.contact_error = error
        if abs(error) > CONTACT_LIMIT:  # a NaN, unseen, disagrees with nothing
            if self._disagreed:  # one alone may have stepped on an edge
                self._disagreed_ns = stamp_ns
            self._disagreed = True
        elif abs(error) <= CONTACT_LIMIT:
            self._disagreed = False

    # --- frames -------------------------------------------------------------------------------

    def step(self, frame: Frame | None, now_ns: int) -> HeightMap:
        """Take in a frame, or none, and tell the ground around the robot as it stands now.

        Args:
            frame: the newest one; None: none came for a while.
            now_ns: now; stamped into the output by the caller, too.
        """
        out, fault = self.out, FrameFault.NONE
        consumed = (0, 0)
        if frame is not None:
            consumed = frame.instance, frame.seq
            fault = self._judge(frame, now_ns)
            if fault == FrameFault.NONE:
                self._take(frame, now_ns)
                out.frames += 1
            else:
                out.refused[fault] += 1
        out.now_ns, (out.frame_instance, out.frame_seq) = now_ns, consumed
        out.state_instance, out.state_seq = self._state
        out.states, self._states = self._states, 0
        out.fault, out.t_mid_ns = int(fault), self._t_mid_ns
        self._tell(now_ns)
        return out

    def _judge(self, frame: Frame, now_ns: int) -> FrameFault:
        """Whether a frame may be looked at."""
        instance, seq, frame_id, t_mid_ns = self._camera
        if frame.instance != instance:  # the camera was started anew
            frame_id = t_mid_ns = 0
        elif frame.seq > seq + 1:
            self.out.missed += frame.seq - seq - 1
        newest = max(frame.t_mid_ns, t_mid_ns)
        self._camera = (frame.instance, frame.seq, max(frame.frame_id, frame_id), newest)
        file, told = self._calibration.file, self._calibration
        if frame.calib_hash != told.calib_hash:
            return FrameFault.CALIBRATION
        got = (frame.height, frame.width, frame.size, frame.encoding, frame.depth_kind)
        if got != (*told.shape, file.frame_bytes, told.encoding, told.depth_kind):
            return FrameFault.SIZE
        if frame_id and frame.frame_id == frame_id:
            return FrameFault.FROZEN
        if frame.frame_id < frame_id or not t_mid_ns < frame.t_mid_ns <= now_ns:
            return FrameFault.BACKWARDS
        known = bool(self._moments) and frame.t_mid_ns >= self._moments[0].stamp_ns
        if not known or now_ns - frame.t_mid_ns > self._age_limit_ns:
            return FrameFault.LATE
        if np.count_nonzero(self._steps(frame)) < BLACK * file.width * file.height:
            return FrameFault.BLACK
        if self._is_stuck(frame):
            return FrameFault.FROZEN
        return FrameFault.NONE

    def _is_stuck(self, frame: Frame) -> bool:
        """The same picture as before, though the robot has moved."""
        before, joints = self._picture
        if not np.array_equal(self._steps(frame), before):
            self._stuck = False
        elif not self._stuck:  # once it was, passing by the old pose frees nobody
            moved = between(self._moments, frame.t_mid_ns).joint_pos - joints
            self._stuck = float(np.abs(moved).mean()) > MOVED
        return self._stuck

    def _steps(self, frame: Frame) -> NDArray[np.uint16]:
        """(height, width) depth in steps of depth_scale_m."""
        return frame.data[: frame.size].view("<u2").reshape(self._calibration.shape)

    def _take(self, frame: Frame, now_ns: int) -> None:
        """Into the map, from where the camera was in the middle of the exposure."""
        at = between(self._moments, frame.t_mid_ns)
        data, calibration = self._data, self._calibration
        data.qpos[:7] = (0, 0, 0, 1, 0, 0, 0)  # everything is seen from the pelvis
        data.qpos[7:] = at.joint_pos
        mujoco.mj_kinematics(self._model, data)
        turn = data.xmat[self._link].reshape(3, 3)
        rotation = turn @ calibration.rotation
        position = data.xpos[self._link] + turn @ calibration.position
        steps = self._steps(frame)
        own = grown(self._own.depth(data) > 0.0, MARGIN)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        valid = (steps > 0) & ~own
        self.map.update(
            steps * calibration.file.depth_scale_m, valid, self._intrinsics,
            rotation, position, at.quat_wxyz, at.base_pos, frame.t_mid_ns,
        )  # fmt: skip
        here, upright = self._moments[-1], rotation_matrix(at.quat_wxyz)
        state = state_input(
            here.quat_wxyz, self._gyro, self._velocity_b, upright @ rotation,
            at.base_pos + upright @ position - here.base_pos,
            (now_ns - self._taken_ns) * 1e-9 if self._taken_ns else 0.0,
        )  # fmt: skip
        self.sight = Sight(np.where(valid, steps, 0).astype(np.uint16), state)
        self._t_mid_ns, self._taken_ns = frame.t_mid_ns, now_ns
        self._picture = steps.copy(), at.joint_pos

    # --- the map ------------------------------------------------------------------------------

    def _tell(self, now_ns: int) -> None:
        """Heights around where the robot is now, or a flat plane where the gate is shut."""
        out, here = self.out, self._moments[-1] if self._moments else None
        base, heading = np.zeros(3), 0.0
        if here is not None:
            base, heading = here.base_pos, heading_of(rotation_matrix(here.quat_wxyz))
        height, std, age = self.map.scan(now_ns, base, heading)
        above = base[2] - self.map.ground
        if not np.isfinite(above):
            above = self.map.spec.pelvis_height
        out.base_pos[:], out.heading, out.base_height = base, heading, above
        out.mean_std, out.camera_pitch = std.mean(), self.map.pitch
        seen = self._t_mid_ns > 0
        out.age_ms = (now_ns - self._t_mid_ns) * 1e-6 if seen else NO_AGE
        shut = (
            not seen,
            seen and now_ns - self._t_mid_ns > self._age_limit_ns,
            bool(out.mean_std > STD_LIMIT),
            now_ns - self._disagreed_ns < CONTACT_NS,
        )
        out.gate = sum(1 << i for i, bit in enumerate(shut) if bit)
        out.height[:] = above if out.gate else height
        out.std[:], out.cell_age[:] = std, age


def between(moments: deque[Moment], stamp_ns: int) -> Moment:
    """The robot at a time within the memory; after its end it is where it was last."""
    after = moments[-1]
    if stamp_ns >= after.stamp_ns:
        return after
    for before in reversed(moments):
        if before.stamp_ns <= stamp_ns:
            break
        after = before
    share = (stamp_ns - before.stamp_ns) / max(after.stamp_ns - before.stamp_ns, 1)
    return Moment(
        stamp_ns,
        before.joint_pos + share * (after.joint_pos - before.joint_pos),
        quat_between(before.quat_wxyz, after.quat_wxyz, share),
        before.base_pos + share * (after.base_pos - before.base_pos),
    )


def wider(calibration: Calibration, pixels: int) -> Calibration:
    """The same camera with so many pixels more on each side: what is beyond may look in, too."""
    file, more = calibration.file, 2 * pixels
    size = {"width": file.width + more, "height": file.height + more}
    intrinsics = calibration.intrinsics + np.array([0.0, 0.0, pixels, pixels])
    return replace(calibration, file=file.model_copy(update=size), intrinsics=intrinsics)


def grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """(height, width) mask that is True also up to `pixels` beside, above and below."""
    for axis in (0, 1):
        near = mask.copy()
        for shift in range(1, pixels + 1):
            low, high = [slice(None)] * 2, [slice(None)] * 2
            low[axis], high[axis] = slice(None, -shift), slice(shift, None)
            near[tuple(high)] |= mask[tuple(low)]
            near[tuple(low)] |= mask[tuple(high)]
        mask = near
    return mask
