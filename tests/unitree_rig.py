"""An emulated G1 that is stepped by tests, and the driver that goes on with it tick by tick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from drivers.unitree import UnitreeDriver
from robot.messages import LowCmd
from robot.model import Robot, load_robot
from robot.runs import UnitreeConfig
from robot.topics import make_codecs
from tests.conftest import ROOT

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
DOMAIN = 20 + os.getpid() % 100  # test runs beside each other do not meet
MS = 1_000_000
LOOP = {"interface": "lo", "network": "127.0.0.0/8", "emulator": True, "trust_signs": True}


class SteppedEmulator:
    """`plexus emulate g1 --stepped` in its own process.

    Args:
        folder: for what it says on stderr.
        options: further ones of the command line.
        domain: of DDS.
    """

    def __init__(self, folder: Path, *options: str, domain: int = DOMAIN) -> None:
        self.domain, self.err_path = domain, folder / "emulator.txt"
        command = [sys.executable, "-m", "robot.cli", "emulate", "g1", "--stepped", *options]
        with self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, "--domain", str(domain)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd=ROOT, text=True,
            )  # fmt: skip
        self.drivers: list[SteppedDriver] = []
        self.last: dict[str, Any] = self.order()

    def order(self, **order: Any) -> dict[str, Any]:
        """Give an order; returns the report, and remembers it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.err_path.read_text()
        self.last = json.loads(line)
        assert "error" not in self.last, self.last
        return self.last

    @property
    def now_ns(self) -> int:
        """Its clock."""
        return int(self.last["ms"]) * MS

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


class SteppedDriver(UnitreeDriver):
    """The driver on the emulator's clock: whoever waits or writes lets the emulator go on.

    What is on its way between the two processes is waited for, so that nothing depends on how fast
    this computer is.

    Args:
        emulator: the other end.
        start: further orders to the emulator before the driver opens.
        options: of UnitreeConfig.
    """

    def __init__(
        self,
        emulator: SteppedEmulator,
        robot: Robot = ROBOT,
        start: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.emulator, self._start = emulator, start or {}
        config = UnitreeConfig(**(LOOP | {"domain": emulator.domain, "hang": True} | options))
        super().__init__(
            robot, config, now=lambda: emulator.now_ns, sleep=lambda ns: self._step_ns(ns)
        )
        emulator.drivers.append(self)
        self._baseline: int | None = None
        self._written = self._heard_before = 0

    def open(self) -> None:
        fresh = self._participant is None
        if fresh:
            self.emulator.order(**({"fresh": True, "prop": True} | self._start))
        super().open()
        if not fresh:
            return
        if self._commands is not None:
            self._await(lambda: self._commands.readers > 0)  # type: ignore[union-attr]
        self._heard_before = self.emulator.last["received"]
        self._written = 0
        self.emulator.order(prop=False, reset=True)

    def write(self, cmd: LowCmd) -> None:
        try:
            super().write(cmd)
        finally:  # time passes, also where nothing could be sent
            self.step(2)

    def _send(self, values: np.ndarray) -> bool:
        sent = super()._send(values)
        self._written += sent
        return sent

    def step(self, ms: int) -> None:
        """Let the emulator go on, once it has heard all that was written."""
        self.emulator.order(step=ms, after=self._heard_before + self._written)
        self._catch_up()

    @property
    def heard(self) -> int:
        """States that came in, good or not."""
        counts = self.watch.counts
        return counts.accepted + counts.refused + counts.repeated + counts.implausible

    def _step_ns(self, ns: int) -> None:
        """Time passes while the driver waits, in pieces that its reader can hold."""
        left = max(1, ns // MS)
        while left:
            piece = min(left, 20)
            left -= piece
            self.emulator.order(step=piece)
            time.sleep(5e-4)  # for what only real time brings: the two sides find each other
            if self._participant is not None and hasattr(self, "_states"):
                self._catch_up()

    def _catch_up(self) -> None:
        sent = self.emulator.last["sent"]
        if self._baseline is None:
            self._drain()
            if self.heard:
                self._baseline = sent - self.heard
            return
        due = sent - self._baseline
        if not self._await(lambda: self._drain() is not None and self.heard >= due):
            self._baseline = sent - self.heard

    @staticmethod
    def _await(check: Any, seconds: float = 1.0) -> bool:
        """Wait in real time for what is on its way; True if it came."""
        deadline = time.monotonic() + seconds
        while not check():
            if time.monotonic() > deadline:
                return False
            time.sleep(2e-5)
        return True
