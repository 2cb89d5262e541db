"""Renders a recorded motion off screen into a clip, after the run, so that it disturbs nothing."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot.model import Robot, compile_model

FRAME_RATE = 25
WIDTH, HEIGHT = 960, 540
CAMERA = "tracking"


def write_clip(path: Path, robot: Robot, poses: list[tuple[float, NDArray[np.float64]]]) -> str:
    """Write `poses` (seconds, qpos) as H.264 in an MP4 file, in simulated real time.

    Returns:
        One line: what was written, or why nothing was (no GL, no poses).
    """
    if len(poses) < 2:
        return "not written: nothing was simulated"
    import mujoco

    model = compile_model(robot)
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    data = mujoco.MjData(model)
    try:
        renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    except Exception as error:  # every GL platform has exceptions of its own
        return f"not written: no GL for rendering off screen ({error})"
    frames = (_render(renderer, model, data, qpos) for qpos in _resample(poses))
    with renderer:
        count = _encode(path, frames)
    return f"{path}: {count / FRAME_RATE:.1f} s at {FRAME_RATE} frames per second"


def _resample(poses: list[tuple[float, NDArray[np.float64]]]) -> list[NDArray[np.float64]]:
    """The pose nearest before each frame's time."""
    times = np.array([time for time, _ in poses])
    frames = np.arange(times[0], times[-1], 1.0 / FRAME_RATE)
    return [poses[i][1] for i in np.searchsorted(times, frames, side="right") - 1]


def _render(renderer, model, data, qpos: NDArray[np.float64]) -> NDArray[np.uint8]:
    import mujoco

    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, camera=CAMERA)
    return renderer.render()


def _encode(path: Path, frames) -> int:
    import av

    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FRAME_RATE)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        container.mux(stream.encode(None))
    return count
