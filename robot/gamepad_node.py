"""The gamepad's process: waits for a pad, sends what its stage makes of it; unplugged is let go."""

from __future__ import annotations

import time

from robot import clock, gamepad_device
from robot.bus import Subscriber
from robot.gamepad import SOURCE, Gamepad
from robot.gamepad_device import Pad, PadGone
from robot.messages import Status
from robot.node import Node
from robot.teleop_node import Sender

TURN_S = 0.01
LOOK_S = 1.0  # how often a pad is looked for while there is none
NONE = "no gamepad is plugged in; waiting for one"


def main(node: Node) -> None:
    """Drive by the pad until told to stop."""
    sender = Sender(node, SOURCE)
    subscriber = Subscriber(node.context, node.directory, node.pick("status"))
    node.ready()
    try:
        loop(node, Gamepad(node.codecs), sender, subscriber)
    finally:
        subscriber.close()
        sender.close()


def loop(node: Node, stage: Gamepad, sender: Sender, subscriber: Subscriber) -> None:
    """100 turns per second, and at once when the pad speaks."""
    finder = Finder(node)
    pad: Pad | None = None
    status: Status | None = None
    while not node.stopping:
        pad = pad or finder.look()
        try:
            for event in pad.read() if pad else ():
                for request in stage.hear(event, clock.now_ns()):
                    sender.send(f"request.{SOURCE}", request, False, clock.now_ns())
        except PadGone:
            stage.let_go(clock.now_ns())
            finder.lose(pad)
            pad = None
        newest = subscriber.newest()
        if isinstance(newest, Status):
            status = newest.copy()
        now = clock.now_ns()
        for topic, out, again in stage.step(status, None, now):
            sender.send(topic, out, again, now)
        if pad:
            pad.wait(TURN_S)
        else:
            time.sleep(TURN_S)
    if pad:
        pad.close()


class Finder:
    """Looks for a pad once a second, and says each thing once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._said = ""
        self._next = 0.0

    def look(self) -> Pad | None:
        """The first pad that can be opened."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + LOOK_S
        why = NONE
        for found in gamepad_device.find(gamepad_device.SYSTEM, gamepad_device.DEVICES):
            try:
                pad = Pad(found)
            except PermissionError:
                why = (
                    f"{found.name} at {found.path} may not be read by this user; "
                    "waiting: `usermod -aG input USER` as root, then log in again"
                )
            except OSError as error:
                why = f"{found.name} at {found.path}: {error.strerror}; waiting for another one"
            else:
                self._say(f"{pad.name}: hold the right shoulder button to move")
                return pad
        self._say(why)
        return None

    def lose(self, pad: Pad | None) -> None:
        """The pad is gone."""
        if pad:
            pad.close()
            self._say(f"{pad.name} is gone: let go")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._node.say(text)
