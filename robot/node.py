"""What every child process shares: its configuration, bus, signals and readiness."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from robot import clock
from robot.config import UserError
from robot.messages import Codec
from robot.model import load_robot
from robot.realtime import RealtimeConfig, die_with_parent, make_context
from robot.runs import RunConfig, softened
from robot.topics import make_codecs

RUN_FILE = "run.json"  # the run's configuration, in the runtime directory
CONSOLE_FILE = "console.txt"  # the console's address, or why there is none, likewise


class Node:
    """A child's side of its process.

    Args:
        name: row of nodes.NODES.
        directory: the private runtime directory.
        config: the run.
        ready_fd: descriptor to write to once this node is ready; -1: nobody waits.
    """

    def __init__(self, name: str, directory: Path, config: RunConfig, ready_fd: int = -1) -> None:
        self.name, self.directory, self.config = name, directory, config
        self.simulated = config.simulated
        self.robot = softened(load_robot(config.robot), config)
        self.codecs = make_codecs(self.robot)
        realtime = config.realtime if name == "control" else RealtimeConfig()
        self.context, self.context_report = make_context(realtime)
        self.stopping = False
        self._ready_fd = ready_fd

    def pick(self, *topics: str) -> dict[str, Codec]:
        """Codecs of these topics, as a Subscriber wants them."""
        return {topic: self.codecs[topic] for topic in topics}

    def ready(self) -> None:
        """Tell the manager that sockets are bound and everything is loaded."""
        if self._ready_fd >= 0:
            os.write(self._ready_fd, b"1")
            os.close(self._ready_fd)
            self._ready_fd = -1

    def say(self, text: str) -> None:
        """One line for people."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def stop(self, *_: object) -> None:
        """Leave the main loop at its next turn (signal handler)."""
        self.stopping = True

    def sleep_until(self, deadline_ns: int) -> None:
        """Wait for a moment of the loop's schedule."""
        remaining = deadline_ns - clock.now_ns()
        if remaining > 0:
            time.sleep(remaining * 1e-9)


def main(arguments: Iterable[str] | None = None) -> int:
    """Entry of `python -m robot.node`, called by the manager."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("entry", help="module with a main(node)")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--parent", type=int, default=0, help="die when this process does")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.parent:
        # Control gets the chance to damp before it ends, and the recorder to write that down.
        asked = options.name in ("control", "recorder")
        number = signal.SIGTERM if asked else signal.SIGKILL
        die_with_parent(number, options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the manager stops us, in its order
    try:
        config = RunConfig.model_validate_json((options.directory / RUN_FILE).read_text())
        node = Node(options.name, options.directory, config, options.ready_fd)
        signal.signal(signal.SIGTERM, node.stop)
        importlib.import_module(options.entry).main(node)
    except UserError as error:
        print(f"{options.name}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
