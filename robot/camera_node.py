"""The process of a camera: publishes its pictures, and comes back by itself when it was gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from drivers.cameras import make_camera
from drivers.cameras.camera import Camera, CameraFault
from robot import clock
from robot.bus import Publisher, Subscriber
from robot.config import UserError
from robot.messages import Frame, Truth
from robot.node import Node
from robot.topics import CAMERA_OF

TURN_MS = 50  # longest wait for a picture, and so for the order to stop
RETRY_S = 0.5  # between attempts to open a camera that is gone


def main(node: Node) -> None:
    """Read and publish until told to stop."""
    os.nice(10)  # a picture may come late, a command may not
    subscriber = Subscriber(node.context, node.directory, node.pick("truth"))

    def truths() -> Iterator[Truth]:
        while message := subscriber.receive():
            if isinstance(message, Truth):
                yield message

    name = CAMERA_OF[node.name]
    topic = f"frame.{name}"
    try:
        camera = make_camera(node.config, node.robot, name, truths)
        connected = connect(node, camera)
    except UserError as error:
        node.say(f"no camera: {error}; everything else runs")
        return
    publisher = Publisher(node.context, node.directory, topic, node.codecs[topic])
    frame: Frame = node.codecs[topic].new()
    node.ready()
    while not node.stopping:
        if not connected:
            time.sleep(RETRY_S)
            connected = connect(node, camera, again=True)
            continue
        try:
            if camera.read(frame, TURN_MS):
                frame.t_pub_ns = clock.now_ns()
                publisher.send(frame, frame.t_mid_ns)
        except CameraFault as fault:
            node.say(f"{fault}; tried again every {RETRY_S:g} s")
            camera.close()
            connected = False
    camera.close()


def connect(node: Node, camera: Camera, again: bool = False) -> bool:
    """Open it and say what was got; what is missing is said once."""
    try:
        camera.open()
    except CameraFault as fault:
        if not again:
            node.say(f"no camera: {fault}; tried again every {RETRY_S:g} s")
        return False
    node.say(camera.describe())
    return True
