"""Shows the motion of a log in MuJoCo's viewer, with a time line, or as a clip: level R0."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot.config import UserError
from robot.log import Log
from robot.model import Robot, compile_model
from robot.terrain import terrain_of
from robot.video import Pose, write_clip
from robot.viewer import FRAME_S, can_draw, has_display
from sim2real.motion import Motion
from sim2real.replay import setup_of

SPACE, RIGHT, LEFT, DOWN, UP = 32, 262, 263, 264, 265  # key codes of GLFW
JUMP_S, LEAP_S = 1.0, 10.0
BAR = 40  # characters of the time line
HELP = "space: pause   left, right: 1 s   up, down: 10 s"


@dataclass
class Player:
    """Where we are in a motion; keys move us.

    Attributes:
        begin_s, end_s: of the motion, s since the start of the log.
        now_s: what is shown.
        paused: time stands still.
    """

    begin_s: float
    end_s: float
    now_s: float
    paused: bool = False

    def press(self, code: int) -> None:
        """Take a key; others than ours are passed over."""
        if code == SPACE:
            self.paused = not self.paused
        jump = {RIGHT: JUMP_S, LEFT: -JUMP_S, UP: LEAP_S, DOWN: -LEAP_S}.get(code, 0.0)
        self.now_s = min(max(self.now_s + jump, self.begin_s), self.end_s)

    def advance(self, seconds: float) -> None:
        """So much real time has passed; at the end the motion begins again."""
        if self.paused:
            return
        self.now_s += seconds
        if self.now_s >= self.end_s:
            self.now_s = self.begin_s

    def line(self) -> str:
        """The time line as text."""
        share = (self.now_s - self.begin_s) / max(self.end_s - self.begin_s, 1e-9)
        at = min(BAR - 1, int(share * BAR))
        state = "paused" if self.paused else ""
        return f"[{'=' * at}|{'-' * (BAR - 1 - at)}] {self.now_s:.2f} / {self.end_s:.2f} s {state}"


def look(
    log: Log,
    folder: Path,
    between: tuple[float, float] | None = None,
    video: Path | None = None,
) -> dict[str, Any]:
    """Level R0: what did it look like?

    Args:
        log: of any robot.
        folder: scratch, for what the log has attached.
        between: s since the start of the log; None: all of it.
        video: an MP4 file to write.

    Returns:
        What was shown, or why not, in `notes`.

    Raises:
        UserError: the log has no motion there, or the clip's folder does not exist.
    """
    if video and not video.absolute().parent.is_dir():
        raise UserError(f"{video}: there is no folder {video.absolute().parent} to write it to")
    run, robot = setup_of(log, folder)
    motion = Motion(log, run, robot)
    poses = motion.poses(between)
    notes = [f"{poses[0][0]:.2f} to {poses[-1][0]:.2f} s of the log, {len(poses)} poses"]
    if video:
        notes.append(write_clip(video, robot, poses, run.sim.terrain))
    if not has_display():
        notes.append("no display here, so no window" + ("" if video else "; --video writes a clip"))
    elif not can_draw():
        notes.append("the display cannot be opened, so no window")
    else:
        show(robot, poses, motion)
    return {
        "level": "R0", "log": str(log.path), "verdict": "done",
        "base": "truth" if motion.has_truth else "imu and feet",
        "begin_s": poses[0][0], "end_s": poses[-1][0], "poses": len(poses),
        "notes": [*notes, *motion.notes, *log.damage],
    }  # fmt: skip


def show(robot: Robot, poses: list[Pose], motion: Motion) -> None:
    """A window that plays the poses at real time until it is closed."""
    import mujoco.viewer

    model = compile_model(robot, terrain=terrain_of(motion.run.sim.terrain))
    data = mujoco.MjData(model)
    player = Player(poses[0][0], poses[-1][0], poses[0][0])
    times = [time_s for time_s, _ in poses]
    corner = mujoco.mjtGridPos.mjGRID_BOTTOMLEFT
    font = mujoco.mjtFontScale.mjFONTSCALE_150
    with mujoco.viewer.launch_passive(
        model, data, key_callback=player.press, show_left_ui=False, show_right_ui=False
    ) as window:
        window.cam.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        window.cam.trackbodyid = 1
        window.cam.distance, window.cam.elevation, window.cam.azimuth = 2.6, -12.0, 140.0
        last = time.monotonic()
        while window.is_running():
            begin = time.monotonic()
            player.advance(begin - last)
            last = begin
            at = max(0, bisect.bisect_right(times, player.now_s) - 1)
            data.qpos[:] = poses[at][1]
            row = int(np.searchsorted(motion.times_s, times[at] - 1e-9))
            mujoco.mj_forward(model, data)
            window.set_texts((font, corner, f"{player.line()} {motion.mode_name(row)}", HELP))
            window.sync()
            time.sleep(max(0.0, FRAME_S - (time.monotonic() - begin)))
