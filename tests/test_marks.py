"""Remarks: who may, what is kept of them, and that they reach the log of a real run."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from robot.console.access import Role
from robot.console.marks import LATEST_NS, SILENT_NS, TOPIC, Marks
from robot.console.operators import Out
from robot.console.wire import MAX_NOTE, Mark
from robot.log import Log
from robot.log_info import info
from robot.messages import EventKind
from robot.model import load_robot
from robot.node import CONSOLE_FILE
from robot.topics import make_codecs
from tests.conftest import eventually
from tests.test_console import House, Page

MS = 1_000_000
NOW = 100_000 * MS
CODECS = make_codecs(load_robot("g1"))


def remark(note: str = "", kind: str = "mark") -> Mark:
    return Mark.model_validate({"t": "mark", "kind": kind, "note": note, "c": 1.0})


@pytest.fixture
def marks() -> Marks:
    made = Marks(CODECS[TOPIC], timing_factor=1.0)
    status = CODECS["recorder"].new()
    status.recording = 1
    made.hear(status, NOW)
    return made


def made(marks: Marks, mark: Mark, pressed: int = NOW, now: int = NOW) -> tuple[int, str, int]:
    out = marks.make("browser 1", Role.DRIVE, mark, pressed, now)
    assert isinstance(out, Out) and out.topic == TOPIC
    return int(out.message.kind), out.message.text, out.stamp_ns  # type: ignore[attr-defined]


def test_a_remark_has_its_kind_its_author_and_the_time_of_the_press(marks: Marks):
    assert made(marks, remark("left foot slips"), NOW - 40 * MS) == (
        EventKind.MARK, "browser 1: left foot slips", NOW - 40 * MS,
    )  # fmt: skip
    assert made(marks, remark()) == (EventKind.MARK, "browser 1", NOW)
    for pressed in (NOW + 1, NOW - LATEST_NS - 1):
        assert made(marks, remark(), pressed)[2] == NOW, "nobody marks another time than now"


def test_an_episode_is_begun_and_ended_and_the_next_ends_the_one_before(marks: Marks):
    end = remark(kind="end")
    assert marks.make("b", Role.DRIVE, end, NOW, NOW) == "no episode was begun on this console"
    made(marks, remark("stairs", "begin"))
    told = marks.to_dict(Role.DRIVE, NOW + 1500 * MS)
    assert (told["episode"], told["episode_s"], told["why"]) == ("stairs", 2, "")
    made(marks, remark("ramp", "begin"))
    assert marks.to_dict(Role.DRIVE, NOW)["episode"] == "ramp"
    assert made(marks, end)[0] == EventKind.EPISODE_END
    assert marks.to_dict(Role.DRIVE, NOW)["episode_s"] is None


@pytest.mark.parametrize(
    ("note", "kept"),
    [
        ("Füße größer", "browser 1: Fue groer"),
        ("a\tb\n\x1b[31mc", "browser 1: a b [31mc"),
        ("x" * MAX_NOTE, "browser 1: " + "x" * MAX_NOTE),
    ],
    ids=["accents", "control characters", "long"],
)
def test_a_note_is_kept_as_a_log_can_hold_it(marks: Marks, note: str, kept: str):
    assert made(marks, remark(note))[1] == kept


def test_what_cannot_be_marked_is_told_why(marks: Marks):
    assert marks.why_not(Role.OBSERVE, NOW) == "this page may observe only"
    assert marks.why_not(Role.DRIVE, NOW + SILENT_NS) == ""
    assert marks.why_not(Role.DRIVE, NOW + SILENT_NS + MS) == "no word from the recorder for 2 s"
    assert Marks(CODECS[TOPIC], 1.0).why_not(Role.ARM, NOW) == "this run is not logged"
    full = CODECS["recorder"].new()
    full.warning = "the disk is full"
    marks.hear(full, NOW)
    assert marks.make("b", Role.ARM, remark(), NOW, NOW) == "not recording: the disk is full"
    full.recording = 1
    lost = "a note is kept in ASCII; nothing of this one would be left"
    assert marks.make("b", Role.ARM, remark("走る"), NOW, NOW) == lost


def test_marks_are_few(marks: Marks):
    outs = [marks.make("b", Role.ARM, remark(), NOW, NOW) for _ in range(30)]
    assert outs[-1] == "too many marks at a time"
    assert sum(isinstance(out, Out) for out in outs) == 20


# --- in the console's process ---------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "rt")
    yield made
    made.close()


def test_a_page_marks_once_the_run_is_logged_and_everybody_is_told(house: House):
    page = house.page()
    house.until(lambda: page.you().get("marks"))
    assert page.you()["marks"]["why"] == "this run is not logged"
    page.send(t="mark", kind="mark", note="too early", c=page.clock())
    house.until(lambda: page.you()["note"] == "this run is not logged")
    recorder = house.node.codecs["recorder"].new()
    recorder.recording = 1
    house.recorder = recorder
    house.until(lambda: page.you()["marks"]["why"] == "")
    page.send(t="mark", kind="begin", note="over the mat", c=page.clock())
    house.until(lambda: house.events)
    (event,) = house.events
    assert (event.kind, event.text) == (EventKind.EPISODE_BEGIN, "browser 1: over the mat")
    house.until(lambda: page.you()["marks"]["episode"] == "over the mat")
    said = "browser 1 began an episode: over the mat"
    house.until(lambda: said in [row["text"] for row in page.hear()["events"]["events"]])


def test_a_mark_reaches_the_log_of_a_real_run(launch, runtime_dir: Path, log_dir: Path):
    run = launch(
        "run", "loopback", "--headless", "--console", "yes", "--log", "yes", "--timing-factor",
        "30", "--policy", "none",
    )  # fmt: skip
    file = runtime_dir / CONSOLE_FILE
    eventually(lambda: file.exists() or run.process.poll() is not None, 60.0)
    assert run.process.poll() is None, run.err

    address = urlsplit(file.read_text().strip())
    assert address.port
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=20)
    connection.request("GET", f"/?{address.query}")
    cookie = connection.getresponse().getheader("set-cookie", "").partition(";")[0]
    connection.close()
    with ExitStack() as pages:
        own = f"http://{address.netloc}"
        page = Page(SimpleNamespace(port=address.port, own=own, pages=pages), cookie)  # type: ignore[arg-type]  # all of a House that it uses
        eventually(lambda: page.you().get("marks", {}).get("why") == "", 30.0)
        page.send(t="mark", kind="mark", note="here", c=page.clock())
        eventually(lambda: "browser 1 marked: here" in str(page.hear()["events"]), 20.0)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 0
    (folder,) = log_dir.iterdir()
    told = info(Log(folder))
    assert [(row["kind"], row["text"]) for row in told["marks"]] == [("MARK", "browser 1: here")]
    assert 0.0 < told["marks"][0]["t_s"] < told["duration_s"]
