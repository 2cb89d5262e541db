"""Earlier runs: listed, lent whole, replayed; to whom, how many at a time, and by no path."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from robot.config import UserError
from robot.console import library as library_module
from robot.console.library import FRAMES_PER_S, NO_MODE, WINDOW_S, Library
from robot.console.shapes import FIXED_HEIGHT
from robot.console.shelf import MAX_READERS
from robot.log import Log
from robot.messages import Ask, EventKind, Mode
from robot.model import compile_model, load_robot
from robot.topics import make_codecs
from tests.conftest import ROOT
from tests.logs import series, write_log
from tests.test_console import House

ROBOT = load_robot("g1")
CODECS = make_codecs(ROBOT)
S = 10**9  # ns
WALK, STOP = "20261124T033000Z-sim-1a2b", "20261124T043000Z-sim-3c4d"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    for name, source in ((WALK, "walk"), (STOP, "stop")):
        shutil.copytree(ROOT / "tests" / "data" / "logs" / source, folder / name)
    return folder


@pytest.fixture
def library(logs: Path) -> Library:
    return Library(logs, ROBOT)


def rows(library: Library) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in map(json.loads, library.rows())}


def facts(library: Library, run: str) -> dict[str, Any]:
    return json.loads(b"".join(library.facts(run)))


def frames(library: Library, run: str, window: int) -> np.ndarray:
    data = np.frombuffer(b"".join(library.frames(run, window)), np.float32)
    return data.reshape(-1, facts(library, run)["stride"])


def test_runs_are_listed_newest_first_and_links_are_none(library: Library, logs: Path):
    (logs / "20261125T000000Z-elsewhere").symlink_to(logs / WALK)
    (logs / "notes").mkdir()
    listed = rows(library)
    assert list(listed) == [STOP, WALK]
    assert listed[WALK]["duration_s"] == pytest.approx(8.99)
    assert listed[WALK]["state"] == "finished" and listed[WALK]["policy"] == "swaying.onnx"
    assert list(Library(logs / "none", ROBOT).rows()) == []


@pytest.mark.parametrize("run", ["", WALK, "../logs", f"../logs/{WALK}", ".", "0" * 16])
def test_only_an_id_of_the_list_is_a_run(library: Library, run: str):
    for ask in (library.facts, library.archive, lambda run: library.frames(run, 0)):
        with pytest.raises(UserError, match="no such run"):
            next(ask(run))


def test_an_archive_holds_the_very_files(library: Library, logs: Path):
    shutil.copy(logs / WALK / "000.mcap", logs / WALK / "001.mcap")
    data = b"".join(library.archive(rows(library)[WALK]["id"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [f"{WALK}/000.mcap", f"{WALK}/001.mcap"]
        for name in archive.getnames():
            file = archive.extractfile(name)
            assert file and file.read() == (logs / name).read_bytes()


def test_a_file_that_gets_its_final_name_or_is_cut_meanwhile_leaves_the_archive_whole(
    library: Library, logs: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(library_module, "PIECE", 1 << 16)
    first, second = logs / WALK / "000.mcap", logs / WALK / "001.mcap.partial"
    shutil.copy(first, second)
    pieces = library.archive(rows(library)[WALK]["id"])
    got = [next(pieces), next(pieces)]
    second.rename(logs / WALK / "001.mcap")
    with first.open("r+b") as file:
        file.truncate(100_000)
    data = b"".join([*got, *pieces])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [f"{WALK}/000.mcap", f"{WALK}/001.mcap.partial"]
        file = archive.extractfile(f"{WALK}/001.mcap.partial")
        assert file and file.read() == (logs / WALK / "001.mcap").read_bytes()


def test_what_is_no_regular_file_is_not_lent(library: Library, logs: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (logs / WALK / "001.mcap").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=f"run {WALK}: "):
        list(library.archive(rows(library)[WALK]["id"]))


def test_a_replay_shows_the_poses_that_were_logged(library: Library, logs: Path):
    run = rows(library)[WALK]["id"]
    told, log = facts(library, run), Log(logs / WALK)
    shown = frames(library, run, 0)
    assert (told["duration_s"], told["window_s"]) == (pytest.approx(8.99), WINDOW_S)
    truth = log.read("truth", ["log_time_ns", "base_pos_w", "base_quat_wxyz", "joint_pos"])
    times = (truth["log_time_ns"].astype(np.int64) - log.start_ns) * 1e-9
    assert len(shown) == pytest.approx(told["duration_s"] * FRAMES_PER_S, abs=2)
    assert (np.diff(shown[:, 0]) > 0.0).all()
    model = compile_model(ROBOT)
    data = mujoco.MjData(model)
    for row in (0, len(shown) // 2, len(shown) - 1):
        source = truth[np.abs(times - shown[row, 0]).argmin()]
        data.qpos[:] = np.r_[source["base_pos_w"], source["base_quat_wxyz"], source["joint_pos"]]
        mujoco.mj_kinematics(model, data)
        bodies = shown[row, 2:].reshape(-1, 7)
        np.testing.assert_allclose(bodies[:, :3], data.xpos[1:], atol=1e-6)
        np.testing.assert_allclose(bodies[:, 3:], data.xquat[1:], atol=1e-6)
    modes = [told["modes"][str(int(mode))] for mode in shown[:, 1]]
    assert modes[0] == "PASSIVE" and modes[-1] == "POLICY"
    with pytest.raises(UserError, match=r"window 1: the run lasts 9\.0 s"):
        next(library.frames(run, 1))


def test_a_robots_log_without_ground_truth_is_drawn_at_one_place_and_gaps_stay(tmp_path: Path):
    ms = [i * 4 for i in range(500) if not 100 <= i < 300]  # 0 to 0.4 s and 1.2 to 2 s
    states = series(
        CODECS["low_state"], np.array(ms) * S // 1000, joint_pos=np.zeros((len(ms), 29)),
        imu_quat_wxyz=np.tile([1.0, 0.0, 0.0, 0.0], (len(ms), 1)),
    )  # fmt: skip
    events = series(
        CODECS["event.console"], [S], kind=[EventKind.MARK], text=["browser 1: slips"]
    )  # fmt: skip
    write_log(tmp_path / "logs", {"low_state": states, "event.console": events})
    library = Library(tmp_path / "logs", ROBOT)
    (run,) = (row["id"] for row in rows(library).values())
    shown = frames(library, run, 0)
    assert shown[:, 2:5] == pytest.approx(np.tile([0.0, 0.0, FIXED_HEIGHT], (len(shown), 1)))
    assert (shown[:, 1] == NO_MODE).all()
    assert ((shown[:, 0] < 0.401) | (shown[:, 0] > 1.199)).all() and len(shown) == 32
    (mark,) = facts(library, run)["marks"]
    assert mark["kind"] == "MARK" and mark["text"] == "browser 1: slips"


@pytest.mark.parametrize(
    ("robot", "topic", "why"),
    [
        ("h1", "low_state", "this run is of robot 'h1'; this console draws g1"),
        ("g1", "low_cmd", "this run's log does not tell where the robot was"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path: Path, robot: str, topic: str, why: str):
    write_log(tmp_path / "logs", {topic: series(CODECS[topic], [0, S])}, robot=robot)
    library = Library(tmp_path / "logs", ROBOT)
    (run,) = (row["id"] for row in rows(library).values())
    with pytest.raises(UserError, match=why):
        facts(library, run)


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def house(logs: Path, tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "rt")
    yield made
    made.close()


def listed(house: House, cookie: str) -> dict[str, str]:
    status, headers, body = house.http("GET", "/runs", Cookie=cookie)
    assert status == 200 and headers["cache-control"] == "no-store"
    return {row["name"]: row["id"] for row in map(json.loads, body.splitlines())}


def test_only_who_is_in_is_lent_anything(house: House):
    cookie = house.cookie()
    run = listed(house, cookie)[WALK]
    for path in ("/runs", f"/runs/{run}", f"/runs/{run}/archive", f"/runs/{run}/frames/0"):
        assert house.http("GET", path)[0] == 404, path
        assert house.http("GET", path, Cookie=cookie, Origin="http://evil.example")[0] == 403
        assert house.http("POST", path, Cookie=cookie, Origin=house.own)[0] == 405
    for path in ("..", "%2e%2e%2f", WALK, f"..%2flogs%2f{WALK}", f"{run}/../{run}"):
        for rest in ("", "/archive", "/frames/0"):
            status, _, body = house.http("GET", f"/runs/{path}{rest}", Cookie=cookie)
            assert status == 404 and str(house.logs) not in body, path
    for window in ("-1", "1.5", "99", "9" * 400, "x"):
        assert house.http("GET", f"/runs/{run}/frames/{window}", Cookie=cookie)[0] == 404


def test_a_run_is_downloaded_and_replayed(house: House):
    cookie = house.cookie()
    run = listed(house, cookie)[WALK]
    stream = Reader(house, f"/runs/{run}/archive", cookie)
    data = stream.rest()
    assert f'filename="{WALK}.tar"' in stream.head
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile(f"{WALK}/000.mcap")
        assert file and file.read() == (house.logs / WALK / "000.mcap").read_bytes()
    told = json.loads(house.http("GET", f"/runs/{run}", Cookie=cookie)[2])
    shown = np.frombuffer(Reader(house, f"/runs/{run}/frames/0", cookie).rest(), np.float32)
    assert len(shown) == pytest.approx(told["stride"] * 225, abs=told["stride"] * 2)


def test_readers_are_few_and_who_goes_away_ends_the_reading(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    ended = threading.Semaphore(0)

    def endless(self: Library, run: str) -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1 << 16)
        finally:
            ended.release()

    monkeypatch.setattr(Library, "archive", endless)
    cookie = house.cookie()
    run = listed(house, cookie)[WALK]
    readers = [Reader(house, f"/runs/{run}/archive", cookie) for _ in range(MAX_READERS)]
    assert all(reader.head.startswith("HTTP/1.1 200") for reader in readers)
    assert house.http("GET", "/runs", Cookie=cookie)[0] == 503
    # They take nothing, and nobody else notices.
    page = house.page(cookie)
    page.ask(Ask.ESTOP)
    house.until(lambda: house.asks() == [Ask.ESTOP])
    for reader in readers:
        reader.socket.close()
    assert all(ended.acquire(timeout=10.0) for _ in readers)
    house.until(lambda: house.http("GET", "/runs", Cookie=cookie)[0] == 200)


class Reader:
    """A connection that has asked for something and read the answer's head."""

    def __init__(self, house: House, path: str, cookie: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", house.port), timeout=20)
        host = f"127.0.0.1:{house.port}"
        asked = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close"
        self.socket.sendall(f"{asked}\r\n\r\n".encode())
        self.data = b""
        while b"\r\n\r\n" not in self.data:
            self.data += self.socket.recv(1 << 16)
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        self.head = head.decode()

    def rest(self) -> bytes:
        """The body, out of its chunks."""
        while piece := self.socket.recv(1 << 20):
            self.data += piece
        self.socket.close()
        body, left = b"", self.data
        while left:
            size, _, left = left.partition(b"\r\n")
            body, left = body + left[: int(size, 16)], left[int(size, 16) + 2 :]
        return body


# --- whose view shows a replay --------------------------------------------------------------------


def test_who_watches_a_replay_cannot_drive_and_who_drives_cannot_watch(house: House):
    page = house.page()
    page.takes_control()
    page.send(t="watch", replay=True)
    house.until(lambda: "release control first" in page.you()["note"])
    assert not page.you()["watches"]
    other = house.page(house.cookie())
    house.until(lambda: other.you().get("bound_ms") is not None)
    other.send(t="watch", replay=True)
    house.until(lambda: other.you()["watches"])
    why = other.you()["why"]
    assert {why[ask.name] for ask in (Ask.ACQUIRE, Ask.ARM, Ask.ENGAGE, Ask.RESET)} == {
        "this page shows a replay"
    }
    house.requests.clear()
    other.ask(Ask.ACQUIRE)
    house.until(lambda: other.you()["note"] == "this page shows a replay")
    other.drive(False)
    other.drive(True, x=1.0)
    house.until(lambda: other.you()["refused"] == 2)
    assert not house.commands and not house.requests
    house.status.mode = Mode.POLICY
    other.ask(Ask.ESTOP)
    house.until(lambda: house.asks() == [Ask.ESTOP])
    other.send(t="watch", replay=False)
    house.until(lambda: not other.you()["watches"])
