"""The process of perception: the newest frame only, and a height map also when none comes."""

from __future__ import annotations

import os

from robot import clock
from robot.bus import Publisher, Subscriber
from robot.config import UserError
from robot.messages import Frame, LowState, PerceptionTiming
from robot.node import Node
from robot.perception import Perception
from robot.topics import CAMERA

IDLE_MS = 50  # without a frame for so long, the age of the map is told all the same
STATES_MS = 10  # between looks at the states: none of them may be lost


def main(node: Node) -> None:
    """Hear states, wait for frames, publish; without a depth camera, say so and end."""
    os.nice(5)  # a map may come late, a command may not
    topic = f"frame.{CAMERA}"
    try:
        perception = Perception(
            node.robot, node.robot.cameras[CAMERA], node.codecs, node.config.timing_factor
        )
    except UserError as error:
        node.say(f"no perception: {error}; everything else runs")
        return
    frames = Subscriber(node.context, node.directory, node.pick(topic))
    states = Subscriber(node.context, node.directory, node.pick("low_state"), every=True)
    out = {
        name: Publisher(node.context, node.directory, name, node.codecs[name])
        for name in ("height_map", "perception_timing")
    }
    timing: PerceptionTiming = node.codecs["perception_timing"].new()
    node.ready()
    told_ns = clock.now_ns()
    while not node.stopping:
        frame, taken_ns = frames.newest(STATES_MS), clock.now_ns()
        while state := states.receive():
            if isinstance(state, LowState):
                perception.hear(state)
        if isinstance(frame, Frame):
            out["height_map"].send(perception.step(frame, taken_ns), taken_ns)
            measure(timing, frame, taken_ns, clock.now_ns())
            out["perception_timing"].send(timing, taken_ns)
        elif taken_ns - told_ns > IDLE_MS * 1_000_000:
            out["height_map"].send(perception.step(None, taken_ns), taken_ns)
        else:
            continue
        told_ns = taken_ns


def measure(timing: PerceptionTiming, frame: Frame, taken_ns: int, done_ns: int) -> None:
    """Fill in what each stage of one frame took."""
    timing.frame_seq = frame.seq
    timing.capture_ms = (frame.t_recv_ns - frame.t_mid_ns) * 1e-6
    timing.driver_ms = (frame.t_pub_ns - frame.t_recv_ns) * 1e-6
    timing.bus_ms = (taken_ns - frame.t_pub_ns) * 1e-6
    timing.compute_ms = (done_ns - taken_ns) * 1e-6
    timing.total_ms = (done_ns - frame.t_mid_ns) * 1e-6
