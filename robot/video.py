"""Renders a recorded motion off screen into a clip, after the run, so that it disturbs nothing.

In a process of its own: MuJoCo chooses its GL once, on import, and a broken GL may end a process.
"""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.model import Robot, compile_model, load_robot
from robot.runs import TerrainConfig
from robot.terrain import Terrain, terrain_of

FRAME_RATE = 25
WIDTH, HEIGHT = 640, 360  # without a GPU, larger frames take longer than the motion itself
CAMERA = "tracking"
FLAT = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)  # likewise
ROUND = (14, 8)  # facets of a capsule around and along; half of MuJoCo's, half of the time

Pose = tuple[float, NDArray[np.float64]]  # s, qpos


def write_clip(
    path: Path, robot: Robot, poses: list[Pose], terrain: TerrainConfig | None = None
) -> str:
    """Write `poses` as H.264 in an MP4 file, in simulated real time.

    Returns:
        One line: what was written, or why nothing was (no GL, no poses).
    """
    if len(poses) < 2:
        return "not written: nothing was simulated"
    ground = (terrain or TerrainConfig()).model_dump_json()
    motion = io.BytesIO()
    np.save(motion, np.array(resample(poses)))
    done = subprocess.run(
        [sys.executable, "-m", "robot.video", str(robot.path), str(path.absolute()), ground],
        input=motion.getvalue(),
        capture_output=True,
        env={"MUJOCO_GL": "egl"} | os.environ,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit code {done.returncode}"
        return f"not written: no GL for rendering off screen ({why})"
    return f"{path}: {int(done.stdout) / FRAME_RATE:.1f} s at {FRAME_RATE} frames per second"


def resample(poses: list[Pose]) -> list[NDArray[np.float64]]:
    """The pose nearest before each frame's time."""
    times = np.array([time for time, _ in poses])
    frames = np.arange(times[0], times[-1], 1.0 / FRAME_RATE)
    return [poses[i][1] for i in np.searchsorted(times, frames, side="right") - 1]


def render(
    robot: Robot, motion: NDArray[np.float64], terrain: Terrain
) -> Iterator[NDArray[np.uint8]]:
    """(HEIGHT, WIDTH, 3) frames of `motion`, (frames, nq) qpos."""
    model = compile_model(robot, terrain=terrain)
    model.vis.quality.offsamples = 0
    model.vis.quality.numslices, model.vis.quality.numstacks = ROUND
    data = mujoco.MjData(model)
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for flag in FLAT:
            renderer.scene.flags[flag] = False
        for qpos in motion:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=CAMERA)
            yield renderer.render()


def encode(path: Path, frames: Iterator[NDArray[np.uint8]]) -> int:
    """Write the frames; returns how many. Without a first frame no file is begun."""
    import av

    first = next(frames)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FRAME_RATE)
        count = 0
        for frame in itertools.chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        container.mux(stream.encode(None))
    return count


if __name__ == "__main__":
    shown, clip, ground = sys.argv[1:]
    stage = terrain_of(TerrainConfig.model_validate_json(ground))
    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    print(encode(Path(clip), render(load_robot(shown), given, stage)))
