"""The console's process: a web server, beyond this computer by TLS only, beside the bus."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robot.bus import Publisher, Subscriber
from robot.clock import now_ns
from robot.config import UserError
from robot.console import marks, picks
from robot.console.access import Access, Role, own_hosts
from robot.console.desk import Desk
from robot.console.operators import SOURCE, Out
from robot.console.tls import own_certificate, write_private
from robot.node import CONSOLE_FILE, Node
from robot.topics import CAMERA_OF

if TYPE_CHECKING:
    import uvicorn  # imported where it may be missing

HOST = "127.0.0.1"  # without TLS nothing binds beyond this computer
TURN_S = 0.01
POSE_TURNS, STATE_TURNS = 3, 10  # 33 pictures and 10 tables per second


class Bus:
    """The console's sockets.

    Args:
        node: gives context, directory and layouts.
    """

    def __init__(self, node: Node) -> None:
        topics = (f"command.{SOURCE}", f"request.{SOURCE}", marks.TOPIC, picks.TOPIC)
        self._publishers = {
            t: Publisher(node.context, node.directory, t, node.codecs[t]) for t in topics
        }
        told = node.pick("status", "policy_info", "policy_change", "timing", "recorder")
        self.told = Subscriber(node.context, node.directory, told)
        # Only the newest of these is looked at, once per picture.
        frames = (f"frame.{camera}" for camera in CAMERA_OF.values())
        topics = ("low_state", "truth", "policy_input", "height_map", *frames)
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
        write_private(address_file, f"{text}\n")
        node.say(text)
        return
    host = node.config.console.host
    certificate = own_certificate(host) if host else None
    listeners = listen(node.config.console.port, host)
    bus, access = Bus(node), Access()
    desk = Desk(node, access, bus.publish)
    port, scheme = listeners[0].getsockname()[1], "https" if certificate else "http"
    desk.address = f"{scheme}://{host or HOST}:{port}"
    told = f"certificate SHA-256 {certificate.fingerprint}\n" if certificate else ""

    def renew() -> None:
        """The run's own door always has one unused token, in a file that only its user reads."""
        if not access.open:
            token = access.issue(Role.ARM, None)
            write_private(address_file, f"{desk.address}/?token={token}\n{told}")

    renew()
    hosts = own_hosts(port, host)
    server = Server(desk, access, hosts, scheme, f"plexus_console_{port}", renew)
    options = uvicorn_options(certificate.path if certificate else None)
    web = uvicorn.Server(uvicorn.Config(server.app, **options))
    for line in address_file.read_text().splitlines():
        node.say(f"the console's {'address is ' if '://' in line else ''}{line}")
    node.ready()
    try:
        asyncio.run(_serve(node, web, listeners, desk, bus))
    finally:
        bus.close()


async def _serve(
    node: Node, web: uvicorn.Server, listeners: Sequence[socket.socket], desk: Desk, bus: Bus
) -> None:
    # It takes the signals over while it runs, and hands them back to `node` when it ends.
    serving = asyncio.create_task(web.serve(sockets=list(listeners)))
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
            desk.show_cameras()
        turns += 1
        await asyncio.sleep(TURN_S)


def listen(port: int, host: str | None = None) -> list[socket.socket]:
    """Listening sockets: on loopback, and on the host's address where there is one; one port.

    Where the port is taken, any free one.

    Raises:
        UserError: no such host, it is not this computer, or the port is taken there.
    """
    places = [HOST, *([address_of(host)] if host else [])]
    listeners: list[socket.socket] = []
    for place in dict.fromkeys(places):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place, port))
        except OSError as error:
            if listeners:
                for one in (*listeners, listener):
                    one.close()
                raise UserError(
                    f"console.host {host}: no listening at {place}: {error.strerror}; expected "
                    "an address of this computer"
                ) from None
            listener.bind((place, 0))
        listener.listen()  # from now on the port is taken
        listeners.append(listener)
        port = listener.getsockname()[1]
    return listeners


def address_of(host: str) -> str:
    """The IPv4 address that a host stands for.

    Raises:
        UserError: none, or one that only this computer reaches, as a name in its own files may.
    """
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"console.host {host}: {error.strerror}; expected a name of this computer"
        ) from None
    address = str(found[0][4][0])
    if address.startswith("127.") and address != host:
        raise UserError(
            f"console.host {host}: stands for {address} here, which only this computer reaches; "
            "expected the address itself"
        )
    return address
