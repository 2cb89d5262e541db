"""The kernel's records: which devices are gamepads, what their bytes mean, what an end of them is.

No pad and no uinput were at hand: the bytes are laid out by hand as linux/input.h has them, and go
through a named pipe; only the question for the ranges of the sticks is answered by the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from robot import gamepad_device
from robot.gamepad_device import (
    EAST,
    GET_AXIS,
    LEFT_X,
    LEFT_Y,
    RECORD,
    RIGHT_SHOULDER,
    RIGHT_X,
    Axis,
    Button,
    Found,
    Missed,
    Pad,
    PadGone,
    find,
)

# A pad for the Xbox 360 and an ordinary keyboard, as their drivers tell in sysfs.
PAD = {"name": "Microsoft X-Box 360 pad", "key": "7cdb000000000000 0 0 0 0", "abs": "3003f"}
KEYBOARD = {"name": "AT Translated Set 2 keyboard", "key": "402000000 3803078f800d001 "
            "feffffdfffefffff fffffffffffffffe", "abs": "0"}  # fmt: skip
MOUSE = {"name": "a mouse", "key": "1f0000 0 0 0 0", "abs": "0"}


def plug(system: Path, event: str, device: dict[str, str]) -> None:
    folder = system / event / "device" / "capabilities"
    folder.mkdir(parents=True)
    (folder.parent / "name").write_text(device["name"] + "\n")
    (folder / "key").write_text(device["key"] + "\n")
    (folder / "abs").write_text(device["abs"] + "\n")


def record(kind: int, code: int, value: int) -> bytes:
    return RECORD.pack(1700000000, 123456, kind, code, value)


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """A named pipe in the place of a device, and its writing end."""
    path = tmp_path / "event7"
    os.mkfifo(path)
    ranges = {LEFT_X: (-32768, 32767), LEFT_Y: (-32768, 32767), RIGHT_X: (0, 255)}
    monkeypatch.setattr(gamepad_device, "axis_ranges", lambda descriptor: ranges)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield path, descriptor
    os.close(descriptor)


def test_the_numbers_are_the_kernels():
    assert RECORD.size == 24 and GET_AXIS == 0x80184540


def test_gamepads_are_told_from_keyboards_and_mice(tmp_path: Path):
    for event, device in {"event0": KEYBOARD, "event12": PAD, "event3": MOUSE}.items():
        plug(tmp_path, event, device)
    plug(tmp_path, "event4", PAD | {"abs": "3"})  # no right stick: not a layout that we know
    (tmp_path / "event5").mkdir()  # going away
    (tmp_path / "mice").mkdir()
    assert list(find(tmp_path, Path("/dev/input"))) == [
        Found(Path("/dev/input/event12"), "Microsoft X-Box 360 pad")
    ]
    assert list(find(tmp_path / "nothing", Path("/dev/input"))) == []


def test_records_become_events_also_when_they_come_in_pieces(pipe):
    path, writer = pipe
    pad = Pad(Found(path, "a pad"))
    assert list(pad.read()) == [], "nothing yet is no end"
    data = b"".join((
        record(1, RIGHT_SHOULDER, 1), record(3, LEFT_Y, -32768), record(3, LEFT_X, 32767),
        record(3, RIGHT_X, 255), record(3, 0x11, 1), record(0, 0, 0), record(1, EAST, 2),
        record(4, 4, 589825), record(1, RIGHT_SHOULDER, 0), record(0, 3, 0),
    ))  # fmt: skip
    events = []
    for at in range(0, len(data), 17):
        os.write(writer, data[at : at + 17])
        events += pad.read()
    assert events == [
        Button(RIGHT_SHOULDER, True), Axis(LEFT_Y, -1.0), Axis(LEFT_X, 1.0), Axis(RIGHT_X, 1.0),
        Button(RIGHT_SHOULDER, False), Missed(),
    ]  # fmt: skip
    pad.close()


def test_a_stick_in_the_middle_is_nothing_whatever_its_range(pipe):
    path, writer = pipe
    pad = Pad(Found(path, "a pad"))
    os.write(writer, record(3, LEFT_X, 0) + record(3, RIGHT_X, 128) + record(3, LEFT_Y, 40000))
    shares = [event.share for event in pad.read() if isinstance(event, Axis)]
    assert shares == pytest.approx([0.0, 0.0, 1.0], abs=0.005)
    pad.close()


def test_an_end_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "event7"
    os.mkfifo(path)
    monkeypatch.setattr(gamepad_device, "axis_ranges", lambda descriptor: {})
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    pad = Pad(Found(path, "a pad"))
    os.write(writer, record(1, EAST, 1)[:10])
    os.close(writer)
    with pytest.raises(PadGone):
        list(pad.read())
    pad.close()


def test_what_does_not_answer_as_an_input_device_is_not_opened(tmp_path: Path):
    (tmp_path / "event7").write_bytes(b"")
    with pytest.raises(OSError, match="ioctl"):
        Pad(Found(tmp_path / "event7", "a file"))
    with pytest.raises(FileNotFoundError):
        Pad(Found(tmp_path / "event8", "gone"))
