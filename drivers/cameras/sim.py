"""A camera in the simulated world, of depth or colour, fed by what the simulation says on the bus.

It draws the world from `truth` in its own process, so its cost never touches control. Exposures lie
on a grid of their own: the robot's pose is interpolated between the two truths around each.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.cameras.camera import Eye, describe_frame
from drivers.cameras.colour import ColourEye
from drivers.cameras.noise import Delivery, disturb, draw, misplace
from robot.calibration import Calibration, check_pinhole
from robot.config import UserError
from robot.messages import Encoding, Frame, FrameClock, FrameSource, Truth
from robot.model import Robot, compile_model
from robot.raycast import DepthRays
from robot.rotations import quat_between
from robot.runs import CameraNoise, RunConfig
from robot.terrain import terrain_of

EXPOSURE_NS = 8_000_000  # as a D435 indoors; all rows at once
POLL_S = 0.004
STALE_NS = 200_000_000  # exposures that we come to later than that are lost, not made up for
GAP_NS = 500_000_000  # truths further apart are no motion to interpolate


@dataclass(frozen=True)
class _Pose:
    """The simulated robot at one time."""

    stamp_ns: int
    sim_time_ns: int
    qpos: NDArray[np.float64]


@dataclass(frozen=True)
class _Picture:
    """A picture on its way."""

    due_ns: int
    frame_id: int
    t_mid_ns: int
    sim_time_ns: int
    pixels: NDArray[np.uint8]


class DepthEye:
    """Sees depth by ray casting, with what a depth camera does wrong."""

    def __init__(
        self,
        model: mujoco.MjModel,
        calibration: Calibration,
        really: Calibration,
        noise: CameraNoise | None,
        rng: np.random.Generator,
    ) -> None:
        self._scale, self._rng = calibration.file.depth_scale_m, rng
        self._drawn = draw(noise, 1, rng) if noise else None
        self._rays = DepthRays(model, really)

    def describe(self) -> str:
        """What it sees."""
        return "depth by ray casting"

    def see(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """A z16 picture of the scene, whose bodies are in place."""
        depth = self._rays.depth(data)
        if self._drawn:
            depth = disturb(depth[None], self._drawn, self._rng)[0]
        steps = np.minimum(np.round(depth / self._scale), np.iinfo(np.uint16).max)
        return steps.astype("<u2").reshape(-1).view(np.uint8)


class SimCamera:
    """Pictures of the simulated world.

    Args:
        run: noise and seed.
        robot: the robot, seen by its own camera too.
        calibration: what the camera is said to be; with noise it really is a little different.
        truths: what the simulation said since it was asked last.
        now: the clock, ns.

    Raises:
        UserError: the calibration is of neither z16 nor jpeg, or has bent rays; or no GL for jpeg.
    """

    def __init__(
        self,
        run: RunConfig,
        robot: Robot,
        calibration: Calibration,
        truths: Callable[[], Iterable[Truth]],
        now: Callable[[], int],
    ) -> None:
        check_pinhole(calibration, "the simulated camera")
        if calibration.encoding not in (Encoding.Z16, Encoding.JPEG):
            raise UserError(
                f"{calibration.path}: encoding: got {calibration.file.encoding}, expected z16 or "
                "jpeg: the simulated camera sees depth, or colour as JPEG"
            )
        self._calibration, self._truths, self._now = calibration, truths, now
        self._noise = run.camera.noise
        self._rng = np.random.default_rng([run.seed, 1])  # not the sensors' noise
        self._model = compile_model(robot, terrain=terrain_of(run.sim.terrain))
        self._data = mujoco.MjData(self._model)
        noise, rng = self._noise, self._rng
        really = misplace(calibration, noise, rng) if noise else calibration
        self._eye: Eye = (
            DepthEye(self._model, calibration, really, noise, rng)
            if calibration.encoding == Encoding.Z16
            else ColourEye(self._model, really)
        )
        self._delivery = Delivery(noise, rng) if noise else None
        self._period_ns = round(1e9 / calibration.file.rate_hz)
        self._before: _Pose | None = None
        self._next_ns = self._count = self._dropped = 0
        self._waiting: deque[_Picture] = deque()
        self._last: _Picture | None = None

    def open(self) -> None:
        """Nothing to connect to."""

    def describe(self) -> str:
        """What is simulated."""
        file = self._calibration.file
        noise = "with noise and delay" if self._noise else "without noise or delay"
        size = f"{file.width} x {file.height} at {file.rate_hz:g} Hz"
        return f"simulated {self._eye.describe()}, {size}, {noise}"

    def read(self, frame: Frame, timeout_ms: int) -> bool:
        """The next picture whose time has come."""
        deadline = time.monotonic() + timeout_ms * 1e-3
        while True:
            for truth in self._truths():
                self._hear(truth)
            if self._waiting and self._waiting[0].due_ns <= self._now():
                self._fill(frame, self._waiting.popleft())
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0.0:
                return False
            time.sleep(min(remaining, POLL_S))

    def close(self) -> None:
        """Nothing to let go."""

    def _hear(self, truth: Truth) -> None:
        """Take the exposures between the last truth and this one."""
        qpos = np.concatenate([truth.base_pos_w, truth.base_quat_wxyz, truth.joint_pos])
        pose = _Pose(truth.stamp_ns, truth.sim_time_ns, qpos)
        before, self._before = self._before, pose
        if before is None or not 0 < pose.stamp_ns - before.stamp_ns < GAP_NS:
            self._next_ns = pose.stamp_ns
            return
        while self._next_ns <= pose.stamp_ns:
            self._expose(before, pose, self._next_ns)
            self._next_ns += self._period_ns

    def _expose(self, before: _Pose, after: _Pose, t_mid_ns: int) -> None:
        self._count += 1
        delivery = self._delivery
        fate = delivery.fate(t_mid_ns) if delivery else "sent"
        if fate == "lost" or self._now() - t_mid_ns > STALE_NS:
            self._dropped += 1
            return
        latency = delivery.latency_ns(t_mid_ns) if delivery else EXPOSURE_NS // 2
        if fate == "frozen" and self._last is not None:
            last = self._last
            again = _Picture(t_mid_ns + latency, last.frame_id, last.t_mid_ns, last.sim_time_ns,
                             last.pixels)  # fmt: skip
            self._waiting.append(again)
            return
        share = (t_mid_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
        sim_ns = before.sim_time_ns + share * (after.sim_time_ns - before.sim_time_ns)
        pixels = self._draw_world(_between(before.qpos, after.qpos, share))
        due = t_mid_ns + latency
        self._last = _Picture(due, self._count, t_mid_ns, round(sim_ns), pixels)
        self._waiting.append(self._last)

    def _draw_world(self, qpos: NDArray[np.float64]) -> NDArray[np.uint8]:
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        return self._eye.see(self._data)

    def _fill(self, frame: Frame, picture: _Picture) -> None:
        describe_frame(frame, self._calibration, FrameSource.SIM)
        frame.frame_id, frame.dropped = picture.frame_id, self._dropped
        frame.t_mid_ns = picture.t_mid_ns
        frame.t_sof_ns = picture.t_mid_ns - EXPOSURE_NS // 2
        frame.t_eof_ns = picture.t_mid_ns + EXPOSURE_NS // 2
        frame.t_recv_ns = max(self._now(), frame.t_eof_ns)
        frame.sim_time_ns, frame.clock = picture.sim_time_ns, int(FrameClock.MONOTONIC)
        frame.exposure_us = EXPOSURE_NS * 1e-3
        frame.size = len(picture.pixels)
        frame.data[: frame.size], frame.data[frame.size :] = picture.pixels, 0


def _between(a: NDArray[np.float64], b: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """qpos between two of them."""
    out = a + share * (b - a)
    out[3:7] = quat_between(a[3:7], b[3:7], share)
    return out
