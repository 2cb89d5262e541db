"""Keys run out, requests are repeated unchanged until answered, a person has the last word."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from robot.bus import Outbox
from robot.messages import VALID_ARMS, Ask, Command, Message, Mode, Request, Status, Truth
from robot.model import load_robot
from robot.teleop import ARM_PERIOD_NS, KEYS, ArmSwing, Key, Teleop
from robot.topics import make_codecs, source_index

CODECS = make_codecs(load_robot("g1"))
MS = 1_000_000
UP, LEFT, RIGHT_STEP, SPACE = KEYS["\x1b[A"], KEYS["\x1b[D"], KEYS["d"], KEYS[" "]
CONTROL = 77  # instance of the control process


class Desk:
    """An operator's stage, what it sent, and a control that answers as it is told."""

    def __init__(self, source: str = "keyboard", **options: object) -> None:
        defaults: dict = {"velocity": None, "automatic": False, "walk": True, "nonce": 5}
        self.teleop = Teleop(CODECS, source, **{**defaults, **options})
        self.status: Status = CODECS["status"].new()
        self.status.instance, self.status.lease, self.status.mode = CONTROL, 5, Mode.PASSIVE
        self.truth: Truth | None = None
        self.requests = Outbox(CODECS["request.keyboard"], 3)
        self.now_ns = 0

    def step(self, ms: float = 20) -> list[tuple[str, Message, bool]]:
        """What is sent at this moment; then time goes on."""
        sent = list(self.stamped())
        self.now_ns += int(ms * MS)
        return sent

    def stamped(self) -> Iterator[tuple[str, Message, bool]]:
        for topic, message, again in self.teleop.step(self.status, self.truth, self.now_ns):
            if isinstance(message, Request) and not again:
                self.requests.stamp(message, self.now_ns)
            yield topic, message.copy(), again

    def asked(self, ms: float = 20) -> list[Ask]:
        return [Ask(m.ask) for _, m, _ in self.step(ms) if isinstance(m, Request)]

    def answer(self, ok: bool = True, reason: str = "") -> None:
        """Control answers the newest request."""
        self.status.answer_instance, self.status.answer_seq = 3, self.requests.seq
        self.status.answer_ok, self.status.reason = ok, reason


def test_commands_come_every_50_ms_with_lease_and_source():
    desk = Desk("script", velocity=(0.5, 0.0, 0.1))
    times = []
    for tick in range(200):
        for topic, message, again in desk.step(ms=2):
            assert isinstance(message, Command) and topic == "command.script" and not again
            assert (message.lease, message.source, message.valid) == (5, source_index("script"), 1)
            assert message.velocity.tolist() == [0.5, 0.0, 0.1]
            times.append(2 * tick)
    assert times == list(range(0, 400, 50))


def test_without_a_status_there_is_nothing_to_ask():
    teleop = Teleop(CODECS, "script", (0, 0, 0), automatic=True, walk=True)
    assert [topic for topic, _, _ in teleop.step(None, None, 0)] == ["command.script"]
    assert [topic for topic, _, _ in teleop.step(None, None, 1)] == []


def test_every_operator_has_a_nonce_of_its_own():
    leases = set()
    for _ in range(50):
        (_, message, _), *_ = Teleop(CODECS, "script", None, False, False).step(None, None, 0)
        assert isinstance(message, Command)
        leases.add(message.lease)
    assert len(leases) == 50 and 0 not in leases


# --- keys -----------------------------------------------------------------------------------------


def test_keys_add_up_and_run_out_after_one_second():
    teleop = Desk().teleop
    assert teleop.velocity(0).tolist() == [0, 0, 0]
    assert teleop.press(UP, 0) is None
    teleop.press(UP, 100 * MS)
    teleop.press(LEFT, 200 * MS)
    teleop.press(RIGHT_STEP, 300 * MS)
    assert teleop.velocity(300 * MS) == pytest.approx([0.2, -0.1, 0.2])
    assert teleop.velocity(1300 * MS - 1) == pytest.approx([0.2, -0.1, 0.2])
    assert teleop.velocity(1300 * MS).tolist() == [0, 0, 0]
    teleop.press(UP, 1300 * MS)
    assert teleop.velocity(1300 * MS) == pytest.approx([0.1, 0, 0]), "what ran out is forgotten"


def test_keys_stop_at_their_limit_in_both_directions():
    teleop = Desk().teleop
    for key, axis, limit in (("\x1b[A", 0, 1.0), ("a", 1, 0.5), ("\x1b[D", 2, 1.0)):
        opposite = {"\x1b[A": "\x1b[B", "a": "d", "\x1b[D": "\x1b[C"}[key]
        for _ in range(30):
            teleop.press(KEYS[key], 0)
        assert teleop.velocity(0)[axis] == pytest.approx(limit)
        for _ in range(30):
            teleop.press(KEYS[opposite], 0)
        assert teleop.velocity(0)[axis] == pytest.approx(-limit)


def test_the_keyboard_sends_what_keys_say_and_a_script_what_it_was_given():
    desk, script = Desk(), Desk("script", velocity=(0.3, 0, 0))
    for one in (desk, script):
        one.teleop.press(UP, 0)
    (_, message, _), *_ = desk.step(1000)
    assert isinstance(message, Command) and message.velocity == pytest.approx([0.1, 0, 0])
    (_, message, _), *_ = desk.step()
    assert isinstance(message, Command) and message.velocity.tolist() == [0, 0, 0]
    (topic, message, _), *_ = script.step()
    assert isinstance(message, Command) and topic == "command.script"
    assert message.velocity == pytest.approx([0.3, 0, 0])


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.label)
def test_each_key_does_one_thing(key: Key):
    desk = Desk()
    request = desk.teleop.press(key, 0)
    if key.ask == Ask.NONE:
        assert request is None
    else:
        assert request is not None and (request.ask, request.lease) == (key.ask, 5)
        assert request.source == source_index("keyboard")
    assert desk.teleop.done == (key.label == "q")
    assert desk.teleop.automatic == (key.label == "g")
    assert np.any(desk.teleop.velocity(0)) == any(key.direction)
    assert any(key.direction) + (key.ask != Ask.NONE) + key.go + key.quit == 1


# --- requests -------------------------------------------------------------------------------------


def test_a_request_is_sent_again_unchanged_until_it_is_answered():
    desk = Desk()
    message = desk.teleop.press(KEYS["h"], 0)
    assert message is not None
    desk.requests.stamp(message, 0)
    first = bytes(message.payload)
    repeated = []
    for tick in range(11):
        for topic, again, is_again in desk.step(ms=20):
            if isinstance(again, Request):
                assert is_again and topic == "request.keyboard" and bytes(again.payload) == first
                repeated.append(20 * tick)
    assert repeated == [60, 120, 180]  # every 50 ms, as often as the stage is stepped
    desk.answer()
    assert desk.asked(500) == desk.asked(500) == []


def test_the_answer_to_anothers_request_is_not_ours():
    desk = Desk(automatic=True)
    desk.status.answer_instance, desk.status.answer_seq = 4, 1
    assert desk.asked(60) == [Ask.ARM]
    assert desk.asked(60) == [Ask.ARM], "repeated"
    desk.status.answer_instance, desk.status.answer_seq = 3, 9
    assert desk.asked(60) == [Ask.ARM]
    desk.answer()
    desk.status.mode = Mode.DAMP
    assert desk.asked() == [Ask.STAND_UP]


def test_a_request_without_answer_is_given_up_after_two_seconds():
    desk = Desk()
    message = desk.teleop.press(KEYS["h"], 0)
    assert message is not None
    desk.requests.stamp(message, 0)
    desk.now_ns = 2000 * MS
    assert desk.asked(0.001) == [Ask.HOLD]
    assert desk.asked() == []
    assert desk.teleop.note == "HOLD: no answer from control"


def test_an_e_stop_without_answer_is_never_given_up():
    desk = Desk()
    message = desk.teleop.press(KEYS[" "], 0)
    assert message is not None
    desk.requests.stamp(message, 0)
    desk.now_ns = 60_000 * MS
    assert set(desk.asked()) == {Ask.ESTOP}


def test_a_refusal_is_noted_and_a_step_of_the_procedure_tried_again_after_300_ms():
    desk = Desk(automatic=True)
    assert desk.asked() == [Ask.ARM]
    desk.answer(ok=False, reason="ARM is refused: a fault forbids it: tilt")
    assert desk.asked(299) == []
    assert desk.teleop.note == "ARM is refused: a fault forbids it: tilt"
    assert desk.asked(1) == []
    assert desk.asked(0) == [Ask.ARM]
    desk.answer()
    desk.status.mode = Mode.DAMP
    assert desk.asked() == [Ask.STAND_UP]
    assert desk.teleop.note == ""


# --- the procedure --------------------------------------------------------------------------------


def test_first_the_lease_and_only_if_it_is_free():
    desk = Desk()
    desk.status.lease = 99
    assert desk.asked() == []
    desk.status.lease = 0
    assert desk.asked() == [Ask.ACQUIRE]
    desk.answer()
    desk.status.lease = 5
    assert desk.asked() == [], "by itself a keyboard goes no further"


def test_the_way_to_the_walk_is_one_request_per_mode_in_order():
    desk, asked = Desk(automatic=True), []
    desk.status.lease = 0
    desk.truth = CODECS["truth"].new()
    mode_after = {
        Ask.ARM: Mode.DAMP, Ask.STAND_UP: Mode.STANDUP, Ask.START_POLICY: Mode.POLICY,
    }  # fmt: skip
    for tick in range(40):
        for ask in desk.asked():
            asked.append(ask)
            desk.answer()
            desk.status.lease = 5
            desk.status.mode = mode_after.get(ask, desk.status.mode)
        if tick == 5:
            assert asked == [Ask.ACQUIRE], "its people have not hoisted it yet"
            assert desk.truth is not None
            desk.truth.hanging = 1
        if tick == 20:
            assert asked == [Ask.ACQUIRE, Ask.ARM, Ask.STAND_UP], "standing up takes its time"
            desk.status.mode = Mode.STAND
        if tick == 30:
            assert asked[-1] == Ask.STAND_UP, "it hangs on the gantry"
            assert desk.truth is not None
            desk.truth.released = 1
    assert asked == [Ask.ACQUIRE, Ask.ARM, Ask.STAND_UP, Ask.START_POLICY]


@pytest.mark.parametrize(("walk", "asked"), [(True, [Ask.START_POLICY]), (False, [])])
def test_the_procedure_ends_in_stand_where_there_is_no_policy(walk, asked):
    desk = Desk(automatic=True, walk=walk)
    desk.status.mode = Mode.STAND
    assert desk.asked() == asked


@pytest.mark.parametrize("mode", [Mode.STANDUP, Mode.POLICY, Mode.HOLD, Mode.SOFT_STOP])
def test_in_other_modes_the_procedure_waits(mode):
    desk = Desk(automatic=True)
    desk.status.mode = mode
    assert desk.asked() == [] and desk.teleop.automatic


@pytest.mark.parametrize("mode", [Mode.FAULT, Mode.ESTOP])
def test_after_a_latch_nothing_goes_on_by_itself(mode):
    desk = Desk(automatic=True)
    desk.status.mode = mode
    assert desk.asked() == []
    desk.status.mode = Mode.PASSIVE
    assert desk.asked() == [] and not desk.teleop.automatic
    desk.teleop.press(KEYS["g"], desk.now_ns)
    assert desk.asked() == [Ask.ARM]


def test_after_a_restart_of_control_nothing_goes_on_by_itself():
    desk = Desk(automatic=True)
    desk.status.mode = Mode.POLICY
    desk.step()
    desk.status.instance, desk.status.mode, desk.status.lease = CONTROL + 1, Mode.PASSIVE, 0
    assert desk.asked() == [Ask.ACQUIRE]
    desk.answer()
    desk.status.lease = 5
    assert desk.asked() == desk.asked() == []
    assert not desk.teleop.automatic


@pytest.mark.parametrize("key", [SPACE, KEYS["s"]])
def test_a_stop_by_hand_ends_the_procedure(key):
    desk = Desk(automatic=True)
    message = desk.teleop.press(key, 0)
    assert message is not None and not desk.teleop.automatic
    desk.requests.stamp(message, 0)
    desk.answer()
    assert desk.asked() == desk.asked() == []


def test_a_stop_replaces_a_request_under_way():
    desk = Desk(automatic=True)
    assert desk.asked() == [Ask.ARM]
    stop = desk.teleop.press(SPACE, desk.now_ns)
    assert stop is not None
    desk.requests.stamp(stop, desk.now_ns)
    desk.now_ns += 60 * MS
    assert desk.asked() == [Ask.ESTOP]


def test_c_hands_over_and_the_keyboard_stays_away_until_a_key_drives_again():
    desk = Desk(automatic=True)
    message = desk.teleop.press(KEYS["c"], 0)
    assert message is not None and message.ask == Ask.RELEASE and not desk.teleop.automatic
    desk.requests.stamp(message, 0)
    desk.answer()
    desk.status.lease = 0
    assert desk.asked(500) == desk.asked(500) == []
    stop = desk.teleop.press(SPACE, desk.now_ns)
    assert stop is not None
    desk.requests.stamp(stop, desk.now_ns)
    desk.answer()
    assert desk.asked(500) == desk.asked(500) == [], "a stop takes nothing over"
    desk.teleop.press(UP, desk.now_ns)
    assert desk.asked() == [Ask.ACQUIRE]


def test_once_somebody_else_drove_nothing_starts_by_itself():
    desk = Desk(automatic=True)
    desk.status.lease = 99
    assert desk.asked() == []
    desk.status.lease = 0
    assert desk.asked() == [Ask.ACQUIRE]
    desk.answer()
    desk.status.lease = 5
    assert desk.asked(500) == desk.asked(500) == [] and not desk.teleop.automatic


def test_arms_are_commanded_only_when_they_shall_swing():
    desk = Desk("script", velocity=(0.5, 0.0, 0.0))
    sent = [m for _, m, _ in desk.step() if isinstance(m, Command)]
    assert len(sent) == 1 and not sent[0].valid & VALID_ARMS
    robot = load_robot("g1")
    swing = ArmSwing(robot)
    desk = Desk("script", velocity=(0.5, 0.0, 0.0), arms=swing)
    desk.now_ns = ARM_PERIOD_NS // 4
    (sent,) = [m for _, m, _ in desk.step() if isinstance(m, Command)]
    assert isinstance(sent, Command) and sent.valid & VALID_ARMS
    names = [robot.joint_names[row] for row in robot.arm_joints]
    moved = dict(
        zip(names, sent.arm_joint_pos - robot.stand_joint_pos[robot.arm_joints], strict=True)
    )
    assert moved["left_shoulder_pitch_joint"] == pytest.approx(0.4)
    assert moved["right_elbow_joint"] == pytest.approx(-0.3)
    assert moved["left_wrist_yaw_joint"] == 0.0


def test_swinging_arms_are_no_faster_than_control_lets_them_be():
    swing = ArmSwing(load_robot("g1"))
    poses = np.array([swing.at(20 * MS * i) for i in range(300)])
    speed = np.abs(np.diff(poses, axis=0)).max() / 0.02
    assert 0.8 < speed < 1.0  # control.ARM_SPEED
    low, high = load_robot("g1").position_limit[load_robot("g1").arm_joints].T
    assert (poses > low).all() and (poses < high).all()


def test_on_a_robot_go_takes_one_step_and_nothing_goes_on_by_itself():
    desk = Desk(stepwise=True)
    for mode, ask in ((Mode.PASSIVE, Ask.ARM), (Mode.DAMP, Ask.STAND_UP),
                      (Mode.STAND, Ask.START_POLICY)):  # fmt: skip
        desk.status.mode = mode
        assert desk.asked() == []
        request = desk.teleop.press(KEYS["g"], desk.now_ns)
        assert request is not None and request.ask == ask
        desk.requests.stamp(request, desk.now_ns)
        desk.answer()
        assert desk.asked() == [] and not desk.teleop.automatic
        desk.now_ns += 1000 * MS
    for mode in (Mode.POLICY, Mode.FAULT, Mode.STANDUP):
        desk.status.mode = mode
        desk.asked()
        assert desk.teleop.press(KEYS["g"], desk.now_ns) is None
    alone = Desk(stepwise=True, walk=False)
    alone.status.mode = Mode.STAND
    alone.asked()
    assert alone.teleop.press(KEYS["g"], 0) is None
