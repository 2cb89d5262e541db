"""The console's process over real HTTP, WebSockets and bus: who is refused, and nothing changes."""

from __future__ import annotations

import http.client
import json
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from robot.bus import Publisher, Subscriber
from robot.console import node as console_node
from robot.console.access import MAX_VISITS, TOKEN_LIFE_NS, Access, Bucket, Role, own_hosts, refusal
from robot.console.clock import BrowserClock
from robot.console.server import BURST, MAX_MISTAKES, MAX_PAGES
from robot.console.wire import MAX_BYTES, Drive, ToPoint, parse
from robot.messages import (
    VALID_ARMS,
    VALID_VELOCITY,
    Ask,
    ChangeState,
    Command,
    Encoding,
    Event,
    Frame,
    Message,
    Mode,
    PolicyChoice,
    PolicyInfo,
    RecorderStatus,
    Request,
    Status,
    Truth,
)
from robot.node import CONSOLE_FILE, Node
from robot.runs import load_run
from robot.topics import source_index
from tests.conftest import eventually

MS = 1_000_000
# What we say for others.
TOLD = (
    "status", "policy_info", "policy_change", "policy_input", "recorder", "truth", "frame.head_rgb",
)  # fmt: skip


class House:
    """A console in a thread of its own, and a control that we play."""

    def __init__(self, folder: Path, **options: Any) -> None:
        folder.mkdir(mode=0o700)
        self.logs = folder.parent / "logs"
        run = load_run(
            "loopback",
            {"console.port": 0, "timing_factor": 5.0, "log.folder": str(self.logs), **options},
        )
        self.node = Node("console", folder, run)
        self.said: list[str] = []
        self.node.say = self.said.append  # type: ignore[method-assign]
        self.context = zmq.Context()
        codecs = self.node.codecs
        self.publishers = {t: Publisher(self.context, folder, t, codecs[t]) for t in TOLD}
        self.inputs = codecs["policy_input"]
        self.truth: Truth = codecs["truth"].new()
        self.frame: Frame = codecs["frame.head_rgb"].new()
        heard = self.node.pick(
            "command.console", "request.console", "event.console", "policy_choice"
        )
        self.subscriber = Subscriber(self.context, folder, heard, every=True)
        self.status: Status = codecs["status"].new()
        self.status.mode, self.status.source = Mode.PASSIVE, 255
        self.info: PolicyInfo = codecs["policy_info"].new()
        self.info.velocity_min[:], self.info.velocity_max[:] = -0.5, 1.0
        self.pages = ExitStack()
        self.commands: list[Command] = []
        self.requests: list[Request] = []
        self.events: list[Event] = []
        self.choices: list[PolicyChoice] = []
        self.recorder: RecorderStatus | None = None  # told once there is one
        self.thread = threading.Thread(target=console_node.main, args=(self.node,))
        self.thread.start()
        self.file = folder / CONSOLE_FILE
        eventually(self.file.exists)
        self.port = int(self.address.split(":")[2].split("/")[0])
        eventually(self.answers)

    @property
    def address(self) -> str:
        return self.file.read_text().strip()

    @property
    def token(self) -> str:
        return self.address.partition("token=")[2]

    @property
    def own(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        with suppress(OSError):
            return self.http("GET", "/")[0] == 403
        return False

    def http(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers, body; underscores in header names are hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        result = answer.status, dict(answer.getheaders()), answer.read().decode()
        connection.close()
        return result

    def cookie(self, token: str | None = None) -> str:
        """A cookie for a token, by default for the run's own."""
        status, headers, _ = self.http("GET", f"/?token={token or self.token}")
        assert status == 200
        return headers["set-cookie"].partition(";")[0]

    def page(self, cookie: str | None = None) -> Page:
        return Page(self, cookie or self.cookie())

    def handshake(self, **headers: str) -> int:
        """HTTP status of a WebSocket handshake with these headers and no others of ours."""
        given = {
            "Host": f"127.0.0.1:{self.port}", "Connection": "Upgrade", "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        } | headers  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as stream:
            stream.sendall(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
            return int(stream.recv(4096).split()[1])

    def turn(self) -> None:
        """Control's part: hear, answer requests, tell the status."""
        while message := self.subscriber.receive():
            self.hear(message)
        now = time.monotonic_ns()
        self.status.now_ns = now
        self.publishers["status"].send(self.status, now)
        self.publishers["policy_info"].send(self.info, now)
        if self.recorder:
            self.publishers["recorder"].send(self.recorder, now)

    def tell_picture(self, number: int) -> int:
        """Frame and pose of now; returns ns."""
        now, frame, truth = time.monotonic_ns(), self.frame, self.truth
        frame.camera_id, frame.encoding, frame.size = "head_rgb", Encoding.JPEG, 4
        frame.t_mid_ns, frame.dropped = now, number
        truth.base_quat_wxyz[:] = (1.0, 0.0, 0.0, 0.0)
        self.publishers["frame.head_rgb"].send(frame, now)
        self.publishers["truth"].send(truth, now)
        return now

    def change(self, state: ChangeState, text: str) -> None:
        """The manager's answer to the newest choice."""
        message, choice = self.node.codecs["policy_change"].new(), self.choices[-1]
        message.answer_instance, message.answer_seq = choice.origin
        message.policy_id, message.state, message.text = choice.policy_id, state, text
        self.publishers["policy_change"].send(message, time.monotonic_ns())

    def tell_input(self, told: Message) -> bool:
        return self.publishers["policy_input"].send(told, time.monotonic_ns()) > 0

    def hear(self, message: Message) -> None:
        if isinstance(message, Command):
            self.commands.append(message.copy())
            return
        if isinstance(message, Event):
            self.events.append(message.copy())
            return
        if isinstance(message, PolicyChoice):
            self.choices.append(message.copy())
            return
        assert isinstance(message, Request)
        status, ask = self.status, Ask(message.ask)
        self.requests.append(message.copy())
        status.answer_instance, status.answer_seq = message.instance, message.seq
        status.answer_ask, status.answer_ok, status.reason = ask, 1, ""
        if ask == Ask.ACQUIRE:
            status.lease, status.source = message.lease, message.source
        elif ask == Ask.ESTOP:
            status.mode = Mode.ESTOP

    def until(self, check: Any, seconds: float = 10.0) -> Any:
        def turned() -> Any:
            self.turn()
            return check()

        return eventually(turned, seconds)

    def asks(self) -> list[Ask]:
        return [Ask(request.ask) for request in self.requests]

    def refusals(self) -> list[str]:
        return [line for line in self.said if line.startswith("refused: ")]

    def close(self) -> None:
        self.pages.close()
        self.node.stopping = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.subscriber.close()
        for publisher in self.publishers.values():
            publisher.close()
        self.context.term()
        self.node.context.term()


class Page:
    """A browser's side of a WebSocket, with a clock that runs 5 s behind ours."""

    def __init__(self, house: House, cookie: str) -> None:
        self.house, self.seq = house, 0
        self.socket: ClientConnection = house.pages.enter_context(connect(
            f"ws://127.0.0.1:{house.port}/ws", origin=house.own,  # type: ignore[arg-type]
            additional_headers={"Cookie": cookie}, max_size=1 << 22, compression=None,
            close_timeout=0.2,  # of a page that never read what it was sent
        ))  # fmt: skip
        self.heard: dict[str, Any] = {}
        self.poses: list[bytes] = []
        self.cameras: list[dict[str, Any]] = []
        self.end = (0, "")  # code and reason with which it was cut off

    @staticmethod
    def clock() -> float:
        return time.monotonic_ns() * 1e-6 - 5000.0

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def ask(self, ask: Ask) -> None:
        self.send(t="ask", ask=int(ask), c=self.clock())

    def drive(
        self, deadman: bool, x: float = 0.0, seq: int | None = None, c: float = -1, **more: Any
    ) -> None:
        self.seq += 1
        clock = self.clock() if c < 0 else c
        self.send(
            t="drive", seq=seq or self.seq, c=clock, deadman=deadman, x=x, y=0, yaw=-x, **more
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """Take in what has come; pings are answered."""
        with suppress(TimeoutError):
            while True:
                data = self.socket.recv(timeout=0.01)
                if isinstance(data, bytes):
                    self.poses.append(data)
                    continue
                message = json.loads(data)
                self.heard[message["t"]] = message
                if message["t"] == "camera":
                    self.cameras.append(message)
                if message["t"] == "ping":
                    self.send(t="pong", s=message["s"], c=self.clock())
        return self.heard

    def you(self) -> dict[str, Any]:
        return self.hear().get("state", {}).get("you", {})

    def shown(self) -> dict[str, Any]:
        return self.hear().get("state", {}).get("all", {})

    def takes_control(self) -> None:
        self.house.until(lambda: self.you().get("bound_ms") is not None)
        self.ask(Ask.ACQUIRE)
        self.house.until(lambda: self.you().get("drives"))

    def is_cut_off(self) -> bool:
        try:
            self.hear()
        except ConnectionClosed as end:
            self.end = (end.rcvd.code, end.rcvd.reason) if end.rcvd else (0, "")
            return True
        return False


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "rt")
    yield made
    made.close()


# --- the door -------------------------------------------------------------------------------------


def test_without_a_token_or_with_a_wrong_one_nobody_comes_in(house):
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={house.token}x", "/index.html"):
        status, headers, body = house.http("GET", path)
        assert status in (403, 404) and "set-cookie" not in headers, path
        assert "<html" not in body
    for path in ("/main.js", "/console.css", "/../node.py", "/%2e%2e/node.py"):
        assert house.http("GET", path)[0] == 404
    assert house.handshake(Origin=house.own) == 403
    assert house.handshake(Origin=house.own, Cookie="plexus_console=x") == 403
    assert house.http("POST", "/stop", Origin=house.own)[0] == 403
    house.turn()
    assert not house.requests and not house.commands
    assert {"refused: a browser with a wrong token", "refused: one without a token",
            "refused: a WebSocket without a cookie", "refused: a stop without a cookie",
            } <= set(house.refusals())  # fmt: skip
    assert not any(house.token in line for line in house.refusals())


def test_a_token_counts_once_and_there_is_a_fresh_one(house):
    token = house.token
    status, headers, body = house.http("GET", f"/?token={token}")
    assert status == 200 and "main.js" in body
    cookie = headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age"))
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert house.http("GET", f"/?token={token}")[0] == 403, "used"
    assert house.token not in ("", token)
    assert stat.S_IMODE(house.file.stat().st_mode) == 0o600
    named = cookie.partition(";")[0]
    assert house.http("GET", "/main.js", Cookie=named)[0] == 200
    assert house.http("GET", "/main.js", Cookie=named[:-1])[0] == 404


def test_foreign_hosts_and_origins_are_refused_whatever_they_know(house):
    cookie = house.cookie()
    good = f"127.0.0.1:{house.port}"
    for host in ("evil.example", f"evil.example:{house.port}", "127.0.0.1", "127.0.0.1:1"):
        assert house.http("GET", "/", Host=host, Cookie=cookie)[0] == 403, host
        assert house.handshake(Host=host, Origin=house.own, Cookie=cookie) == 403, host
    for origin in ("http://evil.example", "null", f"https://{good}", "http://127.0.0.1:1"):
        assert house.http("POST", "/stop", Origin=origin, Cookie=cookie)[0] == 403, origin
        assert house.http("GET", "/", Origin=origin, Cookie=cookie)[0] == 403, origin
        assert house.handshake(Origin=origin, Cookie=cookie) == 403, origin
    assert house.http("POST", "/stop", Cookie=cookie)[0] == 403, "none at all"
    assert house.handshake(Cookie=cookie) == 403
    house.turn()
    assert not house.requests
    assert any("Host evil.example is not this console" in line for line in house.refusals())
    assert any("Origin http://evil.example is foreign" in line for line in house.refusals())
    assert house.handshake(Origin=house.own, Cookie=cookie) == 101
    local = f"localhost:{house.port}"
    assert house.handshake(Host=local, Origin=f"http://{local}", Cookie=cookie) == 101


def test_it_listens_on_this_computer_alone(house):
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    ours = [row.split()[1] for row in listening.splitlines() if f":{house.port:04X} " in row]
    assert "0100007F" in {address.split(":")[0] for address in ours}
    assert not any(set(address.split(":")[0]) == {"0"} for address in ours)


def test_everybody_who_is_in_may_stop_also_without_a_websocket(house):
    page = house.page()
    house.until(lambda: "state" in page.hear())
    page.send(t="invite", role=int(Role.OBSERVE))
    address = house.until(lambda: page.hear().get("invite"))["address"]
    door = house.address
    watcher = house.cookie(address.partition("token=")[2])
    assert house.address == door, "a link between people leaves the run's own door as it is"
    assert house.http("POST", "/stop", Origin=house.own, Cookie=watcher)[0] == 204
    house.until(lambda: Ask.ESTOP in house.asks())
    other = house.page(watcher)
    house.until(lambda: other.you())
    for ask in (Ask.ACQUIRE, Ask.ARM, Ask.RESET):
        other.ask(ask)
        house.until(lambda: other.you()["note"] == "this page may observe only")
    other.send(t="invite", role=int(Role.ARM))
    house.until(lambda: other.you()["pages"] == 2)
    assert "invite" not in other.hear() and set(house.asks()) == {Ask.ESTOP}


# --- driving --------------------------------------------------------------------------------------


def test_a_sample_becomes_a_command_with_the_time_of_its_capture(house):
    page = house.page()
    page.takes_control()
    page.drive(False)
    before = time.monotonic_ns()
    page.drive(True, x=0.5)
    after = time.monotonic_ns()
    house.until(lambda: len(house.commands) >= 2)
    idle, command = house.commands[0], house.commands[1]
    assert idle.velocity.tolist() == [0, 0, 0]
    assert command.velocity.tolist() == [0.5, 0.0, -0.25], "shares of the policy's ranges"
    assert command.source == source_index("console") and command.lease == house.status.lease
    bound_ns = page.you()["bound_ms"] * MS + MS
    assert before - bound_ns <= command.stamp_ns <= after + bound_ns


def test_what_is_held_of_the_arms_becomes_their_targets_from_where_control_has_them(house):
    page = house.page()
    page.takes_control()
    told = house.inputs.new()
    told.arm_joint_pos[:], told.command_valid = 0.25, VALID_ARMS
    rows = page.hear()["hello"]["arms"]["rows"]
    house.until(lambda: house.tell_input(told) and page.shown().get("arms") == [0.25] * len(rows))
    page.drive(False)
    for _ in range(3):
        page.drive(True, arms={"joints": [[3, 0.9]]})
        time.sleep(0.03)
    house.until(lambda: len(house.commands) >= 4)
    idle, first, *_, last = house.commands
    assert (idle.valid, last.valid) == (VALID_VELOCITY, VALID_VELOCITY | VALID_ARMS)
    assert first.arm_joint_pos.tolist() == [0.25] * len(rows)
    assert 0.25 < last.arm_joint_pos[3] < 0.4 and last.arm_joint_pos[2] == 0.25
    page.drive(False, arms={"joints": [[3, 0.9]]})
    house.until(lambda: house.commands[-1].valid == VALID_VELOCITY)


def test_samples_of_others_and_replays_never_reach_the_bus(house):
    cookie = house.cookie()
    page, other = house.page(cookie), house.page(cookie)
    page.takes_control()
    other.drive(True, x=1.0)
    other.drive(True, x=1.0)
    page.drive(False, seq=7)
    page.drive(True, x=1.0, seq=7)
    page.drive(True, x=1.0, seq=3)
    old = page.clock() - 1500.0
    page.drive(True, x=1.0, seq=8, c=old)
    house.until(lambda: page.you()["refused"] == 3 and other.you()["refused"] == 2)
    house.until(lambda: house.commands)  # it and the page are told by two ways
    assert [command.velocity.tolist() for command in house.commands] == [[0, 0, 0]]
    assert set(house.asks()) == {Ask.ACQUIRE}


def test_a_rehearsed_network_delays_and_loses_samples_but_never_a_stop(house):
    page = house.page()
    page.takes_control()
    page.send(t="rehearse", delay_ms=120.0, jitter_ms=0.0, loss=0.0)
    house.until(lambda: page.hear()["state"]["all"]["rehearsed"])
    sent_ns = time.monotonic_ns()
    page.drive(False)
    page.drive(True, x=1.0)
    house.until(lambda: len(house.commands) == 2)
    assert time.monotonic_ns() - sent_ns >= 120 * MS
    assert house.commands[1].stamp_ns < sent_ns + 60 * MS, "the time of its capture all the same"
    house.until(lambda: page.you()["age_ms"] >= 100.0)
    page.send(t="rehearse", delay_ms=0.0, jitter_ms=0.0, loss=1.0)
    for _ in range(20):
        page.drive(True, x=1.0)
    page.ask(Ask.ESTOP)
    house.until(lambda: Ask.ESTOP in house.asks())
    assert len(house.commands) == 2


def test_a_browser_that_dies_while_driving_is_a_hold(house):
    page = house.page()
    page.takes_control()
    house.status.mode = Mode.POLICY
    house.until(lambda: page.hear()["state"]["all"]["mode"] == "POLICY")
    page.drive(False)
    page.drive(True, x=1.0)
    house.until(lambda: any(command.velocity[0] > 0 for command in house.commands))
    house.requests.clear()
    page.socket.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
    house.until(lambda: Ask.HOLD in house.asks())


# --- what is not a message ------------------------------------------------------------------------

BAD = [
    "", "{", "[]", "null", "1", '"drive"', "{}", '{"t":"estop"}', '{"t":"drive"}',
    '{"t":"ask","ask":99,"c":1}', '{"t":"ask","ask":0,"c":1}', '{"t":"ask","ask":"ARM","c":1}',
    '{"t":"ask","ask":11,"c":NaN}', '{"t":"ask","ask":11,"c":1e400}',
    '{"t":"drive","seq":1,"c":1,"deadman":1,"x":0,"y":0,"yaw":0}',
    '{"t":"drive","seq":1,"c":1,"deadman":true,"x":1.01,"y":0,"yaw":0}',
    '{"t":"drive","seq":1,"c":1,"deadman":true,"x":Infinity,"y":0,"yaw":0}',
    '{"t":"drive","seq":-1,"c":1,"deadman":true,"x":0,"y":0,"yaw":0}',
    '{"t":"drive","seq":1,"c":1,"deadman":true,"x":0,"y":0,"yaw":0,"lease":5}',
    '{"t":"invite","role":4}', '{"t":"mark","kind":"delete","note":"","c":1}',
    '{"t":"mark","kind":"mark","note":"%s","c":1}' % ("x" * 141), '{"t":"watch","replay":1}',
    "[" * 500, '{"t":' * 100,
    *(
        f'{{"t":"drive","seq":1,"c":1,"deadman":true,"x":0,"y":0,"yaw":0,"arms":{arms}}}'
        for arms in (
            "{}", "[]", "3", '{"pose":-1}', '{"pose":0,"hand":0}', '{"joints":[]}',
            '{"joints":[[0]]}', '{"joints":[[32,0.0]]}', '{"joints":[[0,7.1]]}',
            '{"joints":[[0,NaN]]}', '{"hand":0}', '{"hand":0,"at":[0,0]}',
            '{"hand":0,"at":[0,0,9]}',
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_a_message_is_refused_in_one_sentence(text):
    reason = parse(text)
    assert isinstance(reason, str) and reason and "\n" not in reason


def test_a_message_is_read_exactly():
    text = '{"t":"drive","seq":1,"c":2.5,"deadman":true,"x":0,"y":-1,"yaw":0.5}'
    assert parse(text) == Drive(t="drive", seq=1, c=2.5, deadman=True, x=0.0, y=-1.0, yaw=0.5)
    held = parse(text[:-1] + ',"arms":{"hand":1,"at":[0.3,-0.2,1]}}')
    assert isinstance(held, Drive) and held.arms == ToPoint(hand=1, at=(0.3, -0.2, 1.0))
    assert parse(text + " " * MAX_BYTES) == f"{len(text) + MAX_BYTES} bytes; at most 1024 are read"


def test_malformed_oversized_and_flooding_pages_are_cut_off_and_nobody_else_notices(house):
    cookie = house.cookie()
    witness = house.page(cookie)
    house.until(lambda: witness.you())
    malformed, binary, large, flood = (house.page(cookie) for _ in range(4))
    with suppress(ConnectionClosed):
        for text in BAD[:MAX_MISTAKES]:
            malformed.socket.send(text)
    with suppress(ConnectionClosed):
        for _ in range(MAX_MISTAKES):
            binary.socket.send(b"\x80\x04]")
    with suppress(ConnectionClosed):
        large.socket.send("x" * (1 << 20))
    with suppress(ConnectionClosed, OSError):
        for _ in range(3 * BURST):
            flood.send(t="pong", s=1, c=1.0)
    for page in (malformed, binary, large, flood):
        house.until(page.is_cut_off)
    house.until(lambda: witness.you()["pages"] == 1)
    assert not house.requests and not house.commands
    assert malformed.end == binary.end == (1008, "too many malformed messages")
    assert flood.end == (1008, "too many messages") and large.end[0] == 1009
    assert house.refusals()
    witness.ask(Ask.ESTOP)
    house.until(lambda: house.asks() == [Ask.ESTOP])


def test_pages_and_half_open_connections_are_bounded(house):
    cookie = house.cookie()
    pages = [house.page(cookie) for _ in range(MAX_PAGES)]
    assert house.handshake(Origin=house.own, Cookie=cookie) == 403
    streams = [socket.create_connection(("127.0.0.1", house.port)) for _ in range(200)]
    for stream in streams:
        with suppress(OSError):  # beyond the limit they are closed already
            stream.sendall(b"GET / HTTP/1.1\r\nHost: x")  # and never goes on
    pages[0].ask(Ask.ESTOP)
    house.until(lambda: house.asks() == [Ask.ESTOP])
    for stream in streams:
        stream.close()


# --- its parts ------------------------------------------------------------------------------------


def test_tokens_end_and_are_few():
    access = Access()
    assert not access.open
    own = access.issue(Role.ARM, None)
    assert access.open
    short = access.issue(Role.DRIVE, until_ns=TOKEN_LIFE_NS)
    assert access.redeem(short, TOKEN_LIFE_NS + 1) is None
    assert access.redeem(short, 0) is None, "also a late try uses it up"
    for _ in range(50):
        access.issue(Role.OBSERVE, until_ns=1)
    cookie = access.redeem(own, 0)
    visit = access.visit(cookie, 0)
    assert visit and visit.role == Role.ARM and access.visit(cookie, visit.until_ns + 1) is None
    for _ in range(MAX_VISITS):
        assert access.redeem(access.issue(Role.OBSERVE, None), 0)
    assert access.visit(cookie, 0) is None, "the oldest goes first"
    assert access.visit(None, 0) is access.visit("", 0) is None


def test_a_bucket_lets_a_burst_through_and_then_its_rate():
    bucket = Bucket(rate=10.0, burst=3)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(ms * MS) for ms in (50, 100, 101, 200)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("headers", "needed", "why"),
    [
        ([(b"host", b"localhost:8")], False, ""),
        ([(b"host", b"localhost:8")], True, "no Origin was given"),
        ([(b"host", b"localhost:8"), (b"origin", b"http://localhost:8")], True, ""),
        ([(b"host", b"localhost:8"), (b"origin", b"http://127.0.0.1:8")], True,
         "Origin http://127.0.0.1:8 is foreign"),
        ([], False, "Host none is not this console"),
        ([(b"host", b"localhost:8"), (b"host", b"evil")], False,
         "Host localhost:8, evil is not this console"),
    ],
)  # fmt: skip
def test_a_door_reads_headers(headers, needed, why):
    assert refusal(own_hosts(8), "http", headers, needed) == why


def test_a_clock_is_taken_from_the_quickest_ping_of_the_last_half_minute():
    clock = BrowserClock()
    assert not clock.known
    clock.hear(sent_ns=1000 * MS, browser_ms=500.0, now_ns=1100 * MS)
    assert clock.known and clock.round_trip_ns == 100 * MS
    assert clock.to_ours(500.0) == 1050 * MS
    clock.hear(sent_ns=2000 * MS, browser_ms=1499.0, now_ns=2004 * MS)
    assert clock.round_trip_ns == 4 * MS and clock.to_ours(1499.0) == 2002 * MS
    assert clock.to_theirs(2002 * MS) == 1499.0
    for now in (50_000 * MS, 1000 * MS):
        clock.hear(sent_ns=now + 1, browser_ms=0.0, now_ns=now)  # from the future
    clock.hear(sent_ns=40_000 * MS, browser_ms=39_000.0, now_ns=40_060 * MS)
    assert clock.round_trip_ns == 60 * MS, "the quick one is too long ago"


def test_where_a_package_is_missing_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    folder = tmp_path / "rt"
    folder.mkdir(mode=0o700)
    node = Node("console", folder, load_run("loopback"))
    said: list[str] = []
    node.say = said.append  # type: ignore[method-assign]
    console_node.main(node)
    node.context.term()
    assert said == ["no console: the package uvicorn is not installed; everything else runs"]
    assert (folder / CONSOLE_FILE).read_text().strip() == said[0]


def test_a_taken_port_is_no_reason_not_to_serve():
    (first,) = console_node.listen(0)
    (second,) = console_node.listen(first.getsockname()[1])
    with first, second:
        assert second.getsockname()[0] == "127.0.0.1"
        assert second.getsockname()[1] not in (0, first.getsockname()[1])


def test_a_cameras_next_picture_comes_when_the_last_one_is_shown(house: House):
    page = house.page()
    house.until(lambda: page.you().get("bound_ms") is not None)
    times: list[int] = []

    def tell() -> int:
        times.append(house.tell_picture(len(times)))
        page.hear()
        return len(page.cameras)

    house.until(tell)
    sent = len(times) + 20
    house.until(lambda: tell() and len(times) > sent)
    assert len(page.cameras) == 1, "it was not shown yet"
    page.send(t="seen", camera="head_rgb")
    house.until(lambda: tell() == 2)
    first, second = page.cameras
    assert second["dropped"] >= sent - 1, "the newest, none of those between"
    for told in (first, second):
        assert told["camera"] == "head_rgb" and told["jpeg"] == "AAAAAA=="
        ours = times[told["dropped"]] * 1e-6
        assert abs(told["taken"] - (ours - 5000.0)) < 250.0, (
            "when it was taken, on the page's clock"
        )
    (taken,) = struct.unpack("<d", page.poses[-1][:8])
    assert min(abs(taken - (ns * 1e-6 - 5000.0)) for ns in times) < 250.0
    assert (len(page.poses[-1]) - 8) % 28 == 0


ID = "00c0ffee00c0ffee"


def test_who_drives_and_may_arm_chooses_a_policy_and_sees_what_becomes_of_it(house: House):
    page, other = house.page(), house.page()
    why = {name: lambda name=name: page.you().get(name, "?") for name in ("choose", "note")}
    house.until(lambda: why["choose"]() == "take control first")
    page.send(t="choose", policy=ID)
    house.until(lambda: why["note"]() == "take control first")
    page.takes_control()
    house.until(lambda: why["choose"]() == "" and other.you()["choose"] == "take control first")
    house.status.mode = Mode.HOLD
    house.until(lambda: "in HOLD the policy moves the robot" in why["choose"]())
    page.send(t="choose", policy=ID)
    house.until(lambda: "in HOLD the policy moves the robot" in why["note"]())
    assert not house.choices
    house.status.mode = Mode.STAND
    house.until(lambda: page.you()["why"]["START_POLICY"] == "" == why["choose"]())
    page.send(t="choose", policy=ID)
    house.until(lambda: house.choices)
    (choice,) = house.choices
    said = choice.policy_id, choice.lease, choice.source
    assert said == (int(ID, 16), house.status.lease, source_index("console"))
    busy = "a policy is being loaded"
    house.until(lambda: why["choose"]() == page.you()["why"]["START_POLICY"] == busy)
    house.change(ChangeState.LOADING, "checking the file")
    loading = {"id": ID, "state": "LOADING", "text": "checking the file"}
    house.until(lambda: other.shown()["change"] == loading)
    count = len(house.choices)
    page.send(t="choose", policy=ID)
    page.ask(Ask.START_POLICY)
    house.until(lambda: page.you()["note"] == "a policy is being loaded")
    assert len(house.choices) == count and Ask.START_POLICY not in house.asks()
    house.change(ChangeState.REFUSED, "its test vectors lie")
    house.until(lambda: other.shown()["change"]["state"] == "REFUSED" and why["choose"]() == "")
    assert "policy: not loaded: its test vectors lie" in house.said

    page.send(t="choose", policy=ID)
    house.until(lambda: house.choices[-1].seq == 2)
    house.change(ChangeState.READY, "other")
    house.info.policy_id = int(ID, 16)
    house.until(lambda: "policy: other is loaded" in house.said)
    house.until(lambda: (page.shown().get("policy") or {}).get("id") == ID)
    page.ask(Ask.START_POLICY)
    house.until(lambda: Ask.START_POLICY in house.asks())
    assert house.requests[-1].policy_id == int(ID, 16), "the one that pages show, and no other"


def test_a_choice_that_nobody_answers_is_given_up(house: House):
    page = house.page()
    page.takes_control()
    house.status.mode = Mode.STAND
    house.until(lambda: page.you()["choose"] == "")
    page.send(t="choose", policy=ID)
    house.until(lambda: page.you()["note"] == "no answer from the manager")
    assert page.you()["choose"] == "" and page.you()["why"]["START_POLICY"] == ""


def test_whoever_may_not_arm_chooses_nothing(house: House):
    own = house.page()
    own.send(t="invite", role=int(Role.DRIVE))
    house.until(lambda: "invite" in own.hear())
    page = house.page(house.cookie(own.heard["invite"]["address"].partition("token=")[2]))
    page.takes_control()
    page.send(t="choose", policy=ID)
    house.until(lambda: page.you()["note"] == page.you()["choose"] == "this page may drive only")
    for bad in ("c0ffee", ID.upper(), f"{ID}0", "../../etc/passwd"):
        page.send(t="choose", policy=bad)
    house.until(lambda: len([line for line in house.refusals() if "policy" in line]) == 4)
    assert not house.choices
