"""A gamepad drives control in lockstep, and its process reads a pipe with the kernel's records."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from robot import control, gamepad_device, gamepad_node
from robot.bus import Outbox, Publisher, Subscriber
from robot.gamepad import DEAD_ZONE, RUN, Gamepad
from robot.gamepad_device import (
    EAST,
    LEFT_SHOULDER,
    LEFT_STICK,
    LEFT_X,
    LEFT_Y,
    RIGHT_STICK,
    RIGHT_X,
    SELECT,
    SOUTH,
    START,
    Axis,
    Button,
    Event,
    Missed,
)
from robot.messages import Ask, Command, Mode, Request, Status
from robot.node import Node
from robot.runs import load_run
from robot.teleop import KEY_LIMIT
from robot.topics import source_index
from tests.conftest import eventually
from tests.test_faults import CODECS, SHORT, Case
from tests.test_gamepad_device import PAD, plug, record

MS = 1_000_000
TURN_NS = 10 * MS


class Rig:
    """Control in lockstep, walking by a script, and a pad in somebody's hands."""

    def __init__(self, mode: Mode = Mode.POLICY) -> None:
        self.case = Case().reach(mode)
        self.lockstep = self.case.lockstep
        self.stage = Gamepad(CODECS, nonce=9)
        self.boxes = {t: Outbox(CODECS[t], 8000) for t in ("command.gamepad", "request.gamepad")}
        self.next_ns = self.lockstep.now_ns
        self.alive = True

    def post(self, topic: str, message: Command | Request, again: bool) -> None:
        if not again:
            self.boxes[topic].stamp(message, self.lockstep.now_ns)
        self.lockstep.post_frame(topic, bytes(message.payload))

    def hands(self, *events: Event) -> None:
        for event in events:
            for request in self.stage.hear(event, self.lockstep.now_ns):
                self.post("request.gamepad", request, False)

    def press(self, *codes: int) -> None:
        self.hands(*(Button(code, True) for code in codes))

    def drop(self, *codes: int) -> None:
        self.hands(*(Button(code, False) for code in codes))

    def run(self, ms: int) -> None:
        for _ in range(ms // 2):
            now = self.lockstep.now_ns
            if self.alive and now >= self.next_ns:
                self.next_ns = now + TURN_NS
                for topic, message, again in self.stage.step(self.case.status, None, now):
                    assert isinstance(message, Command | Request)
                    self.post(topic, message, again)
            self.lockstep.step()

    def driving(self) -> Rig:
        self.press(LEFT_SHOULDER, SELECT)
        self.run(60)
        self.drop(LEFT_SHOULDER, SELECT)
        assert self.lockstep.control.authority.source == source_index("gamepad")
        self.press(RUN)
        self.hands(Axis(LEFT_Y, -0.5))
        self.run(100)
        assert self.mode == Mode.POLICY
        np.testing.assert_allclose(self.velocity, (0.5, 0.0, 0.0))
        return self

    @property
    def mode(self) -> Mode:
        return self.case.mode

    @property
    def velocity(self) -> np.ndarray:
        return self.lockstep.control.policy_input.velocity.copy()


@pytest.fixture(autouse=True)
def short_ramps(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, seconds in SHORT.items():
        monkeypatch.setitem(control.RAMP_S, source, seconds)


def test_sticks_count_only_while_the_right_shoulder_is_held():
    stage = Gamepad(CODECS, nonce=9)
    sticks = (Axis(LEFT_Y, -1.0), Axis(LEFT_X, 0.5), Axis(RIGHT_X, -1.0))
    for event in sticks:
        assert list(stage.hear(event, 0)) == []
    assert stage.velocity(0).tolist() == [0, 0, 0]
    list(stage.hear(Button(RUN, True), 0))
    np.testing.assert_allclose(stage.velocity(0), KEY_LIMIT * (1.0, -0.5, 1.0))
    list(stage.hear(Axis(LEFT_X, DEAD_ZONE), 0))
    assert stage.velocity(0)[1] == 0.0, "a worn stick rests beside its middle"


def test_it_says_nothing_until_it_has_asked_for_the_lease():
    rig = Rig()
    rig.press(RUN)
    rig.hands(Axis(LEFT_Y, -1.0))
    rig.run(200)
    assert rig.boxes["command.gamepad"].seq == rig.boxes["request.gamepad"].seq == 0
    assert rig.mode == Mode.POLICY and not rig.velocity.any()


def test_letting_go_holds_and_holding_goes_on():
    rig = Rig().driving()
    rig.drop(RUN)
    rig.run(34)  # one turn of its process and one policy tick; the next command is 50 ms away
    assert not rig.velocity.any()
    rig.run(30)
    assert rig.mode == Mode.HOLD and rig.case.status.cause == 255
    rig.run(1000)
    assert rig.mode == Mode.HOLD, "the stick is still forward"
    rig.press(RUN)
    rig.run(100)
    assert rig.mode == Mode.POLICY and rig.velocity[0] == pytest.approx(0.5)


@pytest.mark.parametrize("how", ["unplugged", "missed", "process"])
def test_a_pad_that_is_gone_has_let_go(how):
    rig = Rig().driving()
    if how == "unplugged":
        rig.stage.let_go(rig.lockstep.now_ns)
    elif how == "missed":
        rig.hands(Missed())
    else:
        rig.alive = False
    rig.run(220)
    assert rig.mode == Mode.HOLD and not rig.velocity.any()
    rig.run(500)
    assert rig.mode == Mode.HOLD
    if how == "process":
        assert rig.lockstep.control.authority.holder != 9, "the lease has run out"


def test_a_hold_by_somebody_else_ends_driving_until_the_button_was_let_go():
    rig = Rig().driving()
    rig.case.asks(Ask.HOLD, "keyboard", lease=77)
    rig.run(500)
    assert rig.mode == Mode.HOLD and not rig.velocity.any()
    rig.drop(RUN)
    rig.press(RUN)
    rig.run(100)
    assert rig.mode == Mode.POLICY and rig.velocity[0] == pytest.approx(0.5)


def test_the_right_face_button_stops_without_any_lease():
    rig = Rig()
    rig.press(EAST)
    rig.run(4)
    assert rig.mode == Mode.ESTOP


def test_after_a_stop_it_resets_and_goes_one_step_a_press():
    rig = Rig().driving()
    rig.press(EAST)
    rig.run(60)
    rig.drop(EAST, RUN)
    assert rig.mode == Mode.ESTOP
    rig.press(LEFT_SHOULDER)
    for button, mode in ((LEFT_STICK, Mode.PASSIVE), (START, Mode.DAMP)):
        rig.press(button)
        rig.run(60)
        assert rig.mode == mode, rig.case.status.reason
        rig.drop(button)
        rig.run(200)
        assert rig.mode == mode, "nothing goes on by itself"


def test_it_hands_over_and_stops_softly():
    rig = Rig().driving()
    rig.press(LEFT_SHOULDER, RIGHT_STICK)
    rig.run(60)
    assert rig.lockstep.control.authority.source != source_index("gamepad")
    rig.drop(RIGHT_STICK)
    rig.press(SOUTH)
    rig.run(20)
    assert rig.mode == Mode.SOFT_STOP


# --- the process ------------------------------------------------------------------------------


class House:
    """The gamepad's process in a thread, its pad a pipe, and a control that we play."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (runtime := folder / "rt").mkdir(mode=0o700)
        self.system, self.devices = folder / "sys", folder / "dev"
        self.devices.mkdir()
        monkeypatch.setattr(gamepad_device, "SYSTEM", self.system)
        monkeypatch.setattr(gamepad_device, "DEVICES", self.devices)
        monkeypatch.setattr(gamepad_node, "LOOK_S", 0.05)
        ranges = dict.fromkeys(gamepad_device.AXES, (-32768, 32767))
        monkeypatch.setattr(gamepad_device, "axis_ranges", lambda descriptor: ranges)
        self.node = Node("gamepad", runtime, load_run("loopback"))
        self.said: list[str] = []
        self.node.say = self.said.append  # type: ignore[method-assign]
        self.context = zmq.Context()
        codecs = self.node.codecs
        self.publisher = Publisher(self.context, runtime, "status", codecs["status"])
        heard = self.node.pick("command.gamepad", "request.gamepad")
        self.subscriber = Subscriber(self.context, runtime, heard, every=True)
        self.status: Status = codecs["status"].new()
        self.status.mode, self.status.source = Mode.POLICY, 255
        self.asked: list[Ask] = []
        self.wish = np.zeros(3)
        self.thread = threading.Thread(target=gamepad_node.main, args=(self.node,))
        self.thread.start()
        assert eventually(lambda: self.said[:]) == [gamepad_node.NONE]

    def turn(self) -> House:
        while message := self.subscriber.receive():
            if isinstance(message, Command):
                self.wish = message.velocity.copy()
                continue
            assert isinstance(message, Request)
            status = self.status
            self.asked.append(Ask(message.ask))
            status.answer_instance, status.answer_seq = message.instance, message.seq
            status.answer_ask, status.answer_ok = message.ask, 1
            if message.ask == Ask.ACQUIRE:
                status.lease, status.source = message.lease, message.source
            elif message.ask == Ask.HOLD:
                status.mode = Mode.HOLD
        self.publisher.send(self.status, self.status.stamp_ns + 1)
        return self

    def close(self) -> None:
        self.node.stopping = True
        self.thread.join(20)
        self.subscriber.close()
        self.publisher.close()
        self.context.term()
        self.node.context.term()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    made = House(tmp_path, monkeypatch)
    yield made
    made.close()


def test_it_waits_for_a_pad_drives_by_it_and_unplugged_is_a_hold(house: House):
    eventually(lambda: house.said)
    assert house.said == [gamepad_node.NONE], "said once"
    os.mkfifo(house.devices / "event7")
    writer = os.open(house.devices / "event7", os.O_RDWR | os.O_NONBLOCK)
    plug(house.system, "event7", PAD)
    eventually(lambda: len(house.said) == 2)
    assert house.said[1] == f"{PAD['name']}: hold the right shoulder button to move"
    os.write(writer, record(1, LEFT_SHOULDER, 1) + record(1, SELECT, 1))
    eventually(lambda: house.turn().asked == [Ask.ACQUIRE])
    os.write(writer, record(3, LEFT_Y, -32768) + record(1, RUN, 1))
    eventually(lambda: house.turn().wish[0] == KEY_LIMIT[0])
    (house.system / "event7" / "device" / "name").unlink()
    os.close(writer)
    eventually(lambda: Ask.HOLD in house.turn().asked and not house.wish.any())
    eventually(lambda: house.said[2:] == [f"{PAD['name']} is gone: let go", gamepad_node.NONE])


def test_a_pad_that_may_not_be_read_is_one_line(house: House, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gamepad_device, "axis_ranges", refuse)
    (house.devices / "event7").write_bytes(b"")
    plug(house.system, "event7", PAD)
    eventually(lambda: house.said[1:])
    assert house.said[1:] == [
        f"{PAD['name']} at {house.devices / 'event7'} may not be read by this user; "
        "waiting: `usermod -aG input USER` as root, then log in again"
    ]
