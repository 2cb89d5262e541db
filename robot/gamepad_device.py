"""Finds a gamepad of this computer and reads its events, with nothing but the kernel's own records.

It knows no robot. Source: linux/input.h, input-event-codes.h and Documentation/input/gamepad.rst.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/class/input")  # what there is, readable for everybody
DEVICES = Path("/dev/input")

RECORD = struct.Struct("@llHHi")  # seconds, microseconds, type, code, value: 24 bytes on 64 bit
ABSOLUTE = struct.Struct("@6i")  # value, minimum, maximum, fuzz, flat, resolution
SYNC, KEY, AXIS = 0, 1, 3  # types
DROPPED = 3  # code of SYNC: the kernel's buffer was full, events are missing
AGAIN = 2  # value of KEY: a repetition

SOUTH, EAST = 0x130, 0x131
LEFT_SHOULDER, RIGHT_SHOULDER = 0x136, 0x137
SELECT, START, LEFT_STICK, RIGHT_STICK = 0x13A, 0x13B, 0x13D, 0x13E
LEFT_X, LEFT_Y, RIGHT_X = 0x00, 0x01, 0x03
AXES = (LEFT_X, LEFT_Y, RIGHT_X)
GET_AXIS = 2 << 30 | ABSOLUTE.size << 16 | ord("E") << 8 | 0x40  # EVIOCGABS, plus the axis' code


class PadGone(Exception):
    """The device was unplugged, or cannot be read any more."""


@dataclass(frozen=True)
class Button:
    """A button went down or up."""

    code: int
    down: bool


@dataclass(frozen=True)
class Axis:
    """A stick was moved; `share` is -1 to 1 of its way, left and forward negative."""

    code: int
    share: float


@dataclass(frozen=True)
class Missed:
    """Events were lost: what is held is not known any more."""


Event = Button | Axis | Missed


@dataclass(frozen=True)
class Found:
    """A device with the buttons and sticks of a gamepad.

    Attributes:
        name: as the device says it.
    """

    path: Path
    name: str


def find(system: Path, devices: Path) -> Iterator[Found]:
    """Gamepads that are plugged in, readable or not, told from keyboards by what they can do."""
    for folder in sorted(system.glob("event*")):
        try:
            keys = _bits((folder / "device/capabilities/key").read_text())
            axes = _bits((folder / "device/capabilities/abs").read_text())
            name = (folder / "device/name").read_text().strip()
        except (OSError, ValueError):
            continue  # gone while we looked
        if keys >> SOUTH & 1 and keys >> RIGHT_SHOULDER & 1 and all(axes >> a & 1 for a in AXES):
            yield Found(devices / folder.name, name)


def _bits(text: str) -> int:
    """A bit mask of sysfs: 64-bit words in hexadecimal, the highest first."""
    value = 0
    for word in text.split():
        value = value << 64 | int(word, 16)
    return value


def axis_ranges(descriptor: int) -> dict[int, tuple[int, int]]:
    """Least and greatest value of each of AXES.

    Raises:
        OSError: the device does not tell.
    """
    ranges = {}
    for code in AXES:
        answer = fcntl.ioctl(descriptor, GET_AXIS + code, bytes(ABSOLUTE.size))
        _, low, high, *_ = ABSOLUTE.unpack(answer)
        ranges[code] = (low, high)
    return ranges


class Pad:
    """An open gamepad.

    Args:
        found: which.

    Raises:
        OSError: it may not be opened, or is gone.
    """

    def __init__(self, found: Found) -> None:
        self.name = found.name
        self._pending = b""
        self._descriptor = os.open(found.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._ranges = axis_ranges(self._descriptor)
        except OSError:
            self.close()
            raise

    def wait(self, seconds: float) -> None:
        """Until there is something to read, but no longer."""
        select.select([self._descriptor], [], [], seconds)

    def read(self) -> Iterator[Event]:
        """What happened since the last call.

        Raises:
            PadGone: nothing more will come.
        """
        while True:
            try:
                data = os.read(self._descriptor, 64 * RECORD.size)
            except BlockingIOError:
                return
            except OSError as error:
                raise PadGone from error
            if not data:
                raise PadGone
            self._pending += data
            whole = len(self._pending) - len(self._pending) % RECORD.size
            records, self._pending = self._pending[:whole], self._pending[whole:]
            for _, _, kind, code, value in RECORD.iter_unpack(records):
                if (event := self._event(kind, code, value)) is not None:
                    yield event

    def _event(self, kind: int, code: int, value: int) -> Event | None:
        if kind == SYNC and code == DROPPED:
            return Missed()
        if kind == KEY and value != AGAIN:
            return Button(code, bool(value))
        if kind == AXIS and code in self._ranges:
            low, high = self._ranges[code]
            share = (2 * value - low - high) / max(high - low, 1)
            return Axis(code, min(1.0, max(-1.0, share)))
        return None

    def close(self) -> None:
        """Let the device go."""
        os.close(self._descriptor)
