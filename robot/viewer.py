"""A window with the robot, fed from the bus; where there is no display it says so in one line."""

from __future__ import annotations

import os
import sys
import time
import warnings

from robot.bus import Subscriber
from robot.messages import LowState, Truth
from robot.model import compile_model
from robot.node import Node
from robot.terrain import terrain_of

FRAME_S = 1.0 / 30.0


def has_display() -> bool:
    """True if a window can be opened here."""
    if sys.platform != "linux":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def can_draw() -> bool:
    """Try it with a hidden window, since MuJoCo ends the process where it cannot open its own."""
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not glfw.init():
            return False
        glfw.window_hint(glfw.VISIBLE, glfw.FALSE)
        window = glfw.create_window(1, 1, "", None, None)
        glfw.default_window_hints()
        if window:
            glfw.destroy_window(window)
        return bool(window)


def main(node: Node) -> None:
    """Show truth where a simulation tells it, else the measured joints on a fixed base."""
    if not has_display():
        node.say("no display here, so no window; everything else runs")
        return
    try:
        import mujoco.viewer
    except ImportError as error:
        node.say(f"no window: {error}")
        return
    if not can_draw():
        node.say("the display cannot be opened, so no window; everything else runs")
        return
    model = compile_model(node.robot, terrain=terrain_of(node.config.sim.terrain))
    data = mujoco.MjData(model)
    data.qpos[:7] = (0.0, 0.0, 0.8, 1.0, 0.0, 0.0, 0.0)
    topic = "truth" if node.config.driver == "sim" else "low_state"
    subscriber = Subscriber(node.context, node.directory, node.pick(topic))
    os.nice(10)  # a picture may come late, a command may not
    with mujoco.viewer.launch_passive(
        model, data, show_left_ui=False, show_right_ui=False
    ) as window:
        window.cam.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        window.cam.trackbodyid = 1
        window.cam.distance, window.cam.elevation, window.cam.azimuth = 2.6, -12.0, 140.0
        node.ready()
        while window.is_running() and not node.stopping:
            begin = time.monotonic()
            message = subscriber.newest()
            if isinstance(message, Truth):
                data.qpos[:3] = message.base_pos_w
                data.qpos[3:7] = message.base_quat_wxyz
                data.qpos[7:] = message.joint_pos
            elif isinstance(message, LowState):
                data.qpos[3:7] = message.imu_quat_wxyz
                data.qpos[7:] = message.joint_pos
            mujoco.mj_forward(model, data)
            window.sync()
            time.sleep(max(0.0, FRAME_S - (time.monotonic() - begin)))
