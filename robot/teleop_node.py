"""The operator's process: reads keys, shows the live table, sends what the teleop stage says."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live

from robot import clock
from robot.bus import Publisher, Subscriber
from robot.messages import (
    Health,
    HeightMap,
    Message,
    PolicyInfo,
    RecorderStatus,
    Status,
    Timing,
    Truth,
)
from robot.node import CONSOLE_FILE, Node
from robot.remote import Remote
from robot.teleop import KEYS, ArmSwing, Key, Teleop
from robot.terminal import View

PERIOD_NS = 20_000_000
REFRESH = 5  # table updates per second


class Keyboard:
    """Keys of a terminal, without waiting for Enter and without echo."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = b""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Character mode while inside; the terminal is as before afterwards."""
        before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        try:
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)

    def pressed(self) -> Iterator[Key]:
        """Known keys pressed since the last call."""
        while select.select([self._descriptor], [], [], 0)[0]:
            data = os.read(self._descriptor, 64)
            if not data:
                return
            self._pending += data
        while self._pending:
            text = next((k for k in KEYS if self._pending.startswith(k.encode())), None)
            if text is None and self._pending in (b"\x1b", b"\x1b["):
                return  # the rest of an arrow key is still to come
            self._pending = self._pending[len(text.encode()) if text else 1 :]
            if text:
                yield KEYS[text]


def main(node: Node) -> None:
    """Command at 20 Hz, requests until answered; with a terminal also keys and the table."""
    run = node.config
    descriptor = sys.stdin.fileno() if sys.stdin else -1
    live = run.operator.keyboard and descriptor >= 0 and os.isatty(descriptor)
    source = "keyboard" if live and run.operator.velocity is None else "script"
    fixed = run.operator.velocity if live else run.operator.velocity or (0.0, 0.0, 0.0)
    arms = ArmSwing(node.robot) if run.operator.arms == "swinging" else None
    automatic, walk = run.operator.automatic and run.simulated, run.policy is not None
    teleop = Teleop(
        node.codecs, source, fixed, automatic, walk, arms=arms, stepwise=not run.simulated
    )
    operators = [(teleop, Sender(node, source))]
    if run.driver == "unitree":
        operators.append((Remote(node.codecs), Sender(node, "remote")))
    heard = node.pick(
        "status",
        "truth",
        "timing",
        "policy_info",
        "policy_change",
        "recorder",
        "health",
        "height_map",
    )
    subscriber = Subscriber(node.context, node.directory, heard)
    view = View(teleop, run, node.directory / CONSOLE_FILE)
    node.ready()
    with contextlib.ExitStack() as stack:
        keyboard, table = None, None
        if live:
            keyboard = Keyboard(descriptor)
            stack.enter_context(keyboard.open())
            table = stack.enter_context(Live(console=Console(), auto_refresh=False, screen=False))
        loop(node, operators, subscriber, keyboard, table, view)


class Sender:
    """Publishes what the stage yields; a repetition goes out unchanged."""

    def __init__(self, node: Node, source: str) -> None:
        topics = (f"command.{source}", f"request.{source}")
        self._publishers = {
            t: Publisher(node.context, node.directory, t, node.codecs[t]) for t in topics
        }

    def send(self, topic: str, message: Message, again: bool, now_ns: int) -> None:
        """Stamp and send, or send again."""
        if again:
            self._publishers[topic].repeat(message)
        else:
            self._publishers[topic].send(message, now_ns)

    def close(self) -> None:
        """Close the sockets."""
        for publisher in self._publishers.values():
            publisher.close()


def loop(
    node: Node,
    operators: list[tuple[Teleop, Sender]],
    subscriber: Subscriber,
    keyboard: Keyboard | None,
    table: Live | None,
    view: View,
) -> None:
    """50 turns per second until stopped or the operator quits; the first operator has the keys."""
    teleop, sender = operators[0]
    status: Status | None = None
    truth: Truth | None = None
    deadline = next_view = clock.now_ns()
    while not node.stopping and not teleop.done:
        while message := subscriber.receive():
            if isinstance(message, Status):
                status = message.copy()
            elif isinstance(message, Truth):
                truth = message.copy()
            elif isinstance(message, Health):
                hear_remote(operators[1:], message)
            elif isinstance(message, Timing | PolicyInfo | RecorderStatus | HeightMap):
                view.hear(message.copy())
        now = clock.now_ns()
        if keyboard:
            for key in keyboard.pressed():
                if request := teleop.press(key, now):
                    sender.send(f"request.{teleop.source}", request, False, now)
        for each, to in operators:
            for topic, out, again in each.step(status, truth, now):
                to.send(topic, out, again, now)
        if table and now >= next_view:
            next_view = now + 1_000_000_000 // REFRESH
            table.update(view.render(status, truth, now), refresh=True)
        deadline = max(deadline + PERIOD_NS, now)
        node.sleep_until(deadline)


def hear_remote(operators: list[tuple[Teleop, Sender]], health: Health) -> None:
    """Let the remote, where there is one, make requests of its keys."""
    now = clock.now_ns()
    for remote, sender in operators:
        if isinstance(remote, Remote):
            for request in remote.hear_health(health, now):
                sender.send(f"request.{remote.source}", request, False, now)
