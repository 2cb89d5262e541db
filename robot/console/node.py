"""The console's process: a web server on this computer alone, and the bus, in one event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from robot.bus import Publisher, Subscriber
from robot.clock import now_ns
from robot.console.access import Access, Role, own_hosts
from robot.console.desk import Desk
from robot.console.operators import SOURCE, Out
from robot.node import CONSOLE_FILE, Node
from robot.topics import CAMERA

if TYPE_CHECKING:
    import uvicorn  # imported where it may be missing

HOST = "127.0.0.1"  # nothing binds beyond this computer
TURN_S = 0.01
POSE_TURNS, STATE_TURNS = 3, 10  # 33 pictures and 10 tables per second


class Bus:
    """The console's sockets.

    Args:
        node: gives context, directory and layouts.
    """

    def __init__(self, node: Node) -> None:
        topics = (f"command.{SOURCE}", f"request.{SOURCE}")
        self._publishers = {
            t: Publisher(node.context, node.directory, t, node.codecs[t]) for t in topics
        }
        told = node.pick("status", "policy_info", "timing", "recorder")
        self.told = Subscriber(node.context, node.directory, told)
        # Only the newest of these is looked at, once per picture.
        topics = ("low_state", "truth", f"frame.{CAMERA}", "height_map")
        self.seen = [Subscriber(node.context, node.directory, node.pick(topic)) for topic in topics]

    def publish(self, out: Out) -> None:
        """Send, or send again."""
        publisher = self._publishers[out.topic]
        if out.again:
            publisher.repeat(out.message)
        else:
            publisher.send(out.message, out.stamp_ns)

    def close(self) -> None:
        """Close the sockets."""
        for one in (*self._publishers.values(), self.told, *self.seen):
            one.close()


def main(node: Node) -> None:
    """Serve until told to stop; where a package is missing, say so in one line and end well."""
    address_file = node.directory / CONSOLE_FILE
    try:
        import uvicorn

        from robot.console.server import Server, uvicorn_options
    except ImportError as error:
        text = f"no console: the package {error.name} is not installed; everything else runs"
        _write(address_file, text)
        node.say(text)
        return
    bus, access = Bus(node), Access()
    desk = Desk(node, access, bus.publish)
    listener = listen(node.config.console.port)
    port = listener.getsockname()[1]
    desk.address = f"http://{HOST}:{port}"

    def renew() -> None:
        """The run's own door always has one unused token, in a file that only its user reads."""
        if not access.open:
            _write(address_file, f"{desk.address}/?token={access.issue(Role.ARM, None)}")

    renew()
    server = Server(desk, access, own_hosts(port), f"plexus_console_{port}", renew)
    web = uvicorn.Server(uvicorn.Config(server.app, **uvicorn_options()))
    node.say(f"the console is at {address_file.read_text().strip()}")
    node.ready()
    try:
        asyncio.run(_serve(node, web, listener, desk, bus))
    finally:
        bus.close()


async def _serve(
    node: Node, web: uvicorn.Server, listener: socket.socket, desk: Desk, bus: Bus
) -> None:
    # It takes the signals over while it runs, and hands them back to `node` when it ends.
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    await _turn(node, serving, desk, bus)
    web.should_exit = True
    await serving


async def _turn(node: Node, serving: asyncio.Task[None], desk: Desk, bus: Bus) -> None:
    """100 turns per second: hear the bus, let time pass, show what is new."""
    turns = 0
    while not node.stopping and not serving.done():
        urgent = False
        while message := bus.told.receive():
            urgent |= desk.take(message.copy())
        now = now_ns()
        desk.turn(now)
        if turns % POSE_TURNS == 0:
            for subscriber in bus.seen:
                if message := subscriber.newest():
                    desk.take(message.copy())
            desk.show_pose()
        if urgent or turns % STATE_TURNS == 0:
            desk.show_state(now)
        turns += 1
        await asyncio.sleep(TURN_S)


def listen(port: int) -> socket.socket:
    """A listening socket on this computer alone; where the port is taken, on any free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.bind((HOST, 0))
    listener.listen()  # from now on the port is taken
    return listener


def _write(path: Path, text: str) -> None:
    """Replace the file at once; it may hold a token, so nobody else reads it."""
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    scratch.rename(path)
