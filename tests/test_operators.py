"""The console's operators and the real control in lockstep: hold to run, stale, replayed, gone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from robot import control
from robot.bus import Outbox
from robot.console.access import Role
from robot.console.arms import SPEED, ArmWish
from robot.console.chaos import Chaos
from robot.console.operators import DEADMAN_NS, FULL_NS, ROLE, ZERO_NS, Operator, Operators
from robot.console.wire import Drive, ToJoints, ToPoint, ToPose
from robot.messages import VALID_ARMS, Ask, Mode
from robot.modes import TRANSITIONS
from tests.test_faults import CODECS, ROBOT, SHORT, Case

MS = 1_000_000
TURN_NS, SAMPLE_NS = 10 * MS, 50 * MS  # of the console and of its page


class House:
    """Control in lockstep, the console's stage, and hands that hold sticks."""

    def __init__(self) -> None:
        self.case = Case().reach(Mode.POLICY)
        self.lockstep = self.case.lockstep
        self.stage = Operators(CODECS, 1.0, ArmWish(ROBOT))
        self.stage.hear_policy(self.lockstep.pilot.info)
        self.boxes = {t: Outbox(CODECS[t], 7000) for t in ("command.console", "request.console")}
        self.hands: dict[int, tuple[bool, float]] = {}  # nonce: deadman, forward
        self.held: ToJoints | ToPose | ToPoint | None = None  # of the arms, by whoever has hands
        self.delay_ns = 0
        self.console_alive = True
        self.seq = 0
        self.next_ns = self.next_sample_ns = self.lockstep.now_ns

    def open(self, role: Role = Role.ARM, nonce: int = 501) -> Operator:
        page = self.stage.join(f"browser {nonce}", role, nonce)
        self.run(20)
        return page

    def publish(self, outs) -> None:
        for out in outs:
            if not out.again:
                self.boxes[out.topic].stamp(out.message, out.stamp_ns)
            self.lockstep.post_frame(out.topic, bytes(out.message.payload))

    def run(self, ms: int) -> None:
        for _ in range(ms // 2):
            now = self.lockstep.now_ns
            if self.console_alive and now >= self.next_ns:
                self.next_ns += TURN_NS
                self.stage.hear(self.case.status, now)
                self.stage.arms.hear(self.lockstep.control.policy_input)
                self.publish(self.stage.step(now))
                if now >= self.next_sample_ns:
                    self.next_sample_ns += SAMPLE_NS
                    for page in list(self.stage.pages):
                        if page.nonce in self.hands:
                            self.sample(page, *self.hands[page.nonce])
            self.lockstep.step()

    def sample(self, page: Operator, deadman: bool, x: float, seq: int | None = None) -> None:
        self.seq += 1
        now = self.lockstep.now_ns
        drive = Drive(
            t="drive", seq=seq or self.seq, c=0.0, deadman=deadman, x=x, y=0.0, yaw=0.0,
            arms=self.held,
        )  # fmt: skip
        self.publish(self.stage.sample(page, drive, now - self.delay_ns, now))

    def ask(self, page: Operator, ask: Ask) -> tuple[bool, str]:
        """Ask and wait for control's answer."""
        now = self.lockstep.now_ns
        self.publish(self.stage.ask(page, ask, now, now))
        for _ in range(100):
            if self.stage.answered:
                _, asked, ok, reason, _ = self.stage.answered.pop(0)
                assert asked == ask
                return ok, reason
            self.run(2)
        raise AssertionError("no answer")

    def driving(self, forward: float = 0.5) -> Operator:
        """A page that has taken the lease from the script and drives."""
        page = self.open()
        assert self.ask(page, Ask.ACQUIRE) == (True, "")
        self.hands[page.nonce] = (False, 0.0)
        self.run(200)
        self.hands[page.nonce] = (True, forward)
        self.run(200)
        self.stage.answered.clear()
        assert self.mode == Mode.POLICY and page.engaged
        assert self.velocity == pytest.approx(forward)
        return page

    @property
    def mode(self) -> Mode:
        return self.case.mode

    @property
    def velocity(self) -> float:
        return float(self.lockstep.control.policy_input.velocity[0])

    @property
    def arms(self) -> np.ndarray:
        """(A,) what the policy is told of the arms, rad; a copy."""
        return self.lockstep.control.policy_input.arm_joint_pos.copy()

    def ms_until(self, done, most_ms: int) -> int:
        begin = self.lockstep.now_ns
        while not done():
            assert self.lockstep.now_ns - begin < most_ms * MS, f"still {self.mode.name}"
            self.run(2)
        return (self.lockstep.now_ns - begin) // MS


@pytest.fixture(autouse=True)
def short_ramps(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, seconds in SHORT.items():
        monkeypatch.setitem(control.RAMP_S, source, seconds)


@pytest.fixture
def house() -> House:
    return House()


def test_the_budgets_are_those_of_the_fault_table():
    assert (DEADMAN_NS, FULL_NS, ZERO_NS) == (250 * MS, 80 * MS, 200 * MS)
    arms = ArmWish(ROBOT)
    stage = Operators(CODECS, 1.0, arms)
    shares = [stage.speed_share(ms * MS) for ms in (0, 80, 110, 140, 200, 500)]
    assert shares == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.0, 0.0])
    assert Operators(CODECS, 10.0, arms).speed_share(1400 * MS) == pytest.approx(0.5)


def test_holding_drives_and_letting_go_holds_with_the_same_message(house):
    page = house.driving()
    house.hands[page.nonce] = (False, 0.0)
    house.next_sample_ns = house.lockstep.now_ns
    assert house.ms_until(lambda: house.mode == Mode.HOLD, 60) <= 12
    assert house.case.status.cause == 255, "asked for, not a fault"
    house.run(1000)
    assert house.mode == Mode.HOLD and house.velocity == 0.0
    assert house.lockstep.control.authority.holder == page.nonce, "it may go on when it likes"
    house.hands[page.nonce] = (True, -0.3)
    house.run(300)
    assert house.mode == Mode.POLICY and house.velocity == pytest.approx(-0.3)


@pytest.mark.parametrize("what", ["network", "console"])
def test_cut_off_while_driving_it_holds_after_200_ms_and_the_lease_is_gone_after_500(house, what):
    """The browser is killed without a word, or the console's process is."""
    page = house.driving()
    if what == "network":
        del house.hands[page.nonce]
    else:
        house.console_alive = False
    begin = house.lockstep.control.authority.command_ns
    house.ms_until(lambda: house.mode == Mode.HOLD, 220)
    assert house.lockstep.now_ns - begin <= 204 * MS
    house.ms_until(lambda: house.lockstep.control.authority.holder != page.nonce, 520)
    assert house.lockstep.now_ns - begin <= 512 * MS
    house.console_alive = True
    house.run(100)
    assert house.stage.driver is None
    house.run(2000)
    assert house.mode == Mode.HOLD and house.velocity == 0.0, "nothing moves by itself"


@pytest.mark.parametrize("stall_ms", [220, 400, 1000])
def test_a_stalled_event_loop_is_a_hold_and_what_piled_up_meanwhile_moves_nothing(house, stall_ms):
    """The page goes on sending, the console's loop takes nothing in, and then all of it at once."""
    page = house.driving()
    begin = house.lockstep.control.authority.command_ns
    house.console_alive = False
    pile = []  # when each sample was taken
    for _ in range(stall_ms // 10):
        if not pile or house.lockstep.now_ns - pile[-1] >= SAMPLE_NS:
            pile.append(house.lockstep.now_ns)
        house.run(10)
        if house.mode == Mode.HOLD and house.lockstep.now_ns - begin > 204 * MS:
            continue
        assert house.lockstep.now_ns - begin <= 212 * MS, "the budget of commands, in control"
    assert house.mode == Mode.HOLD and house.velocity == 0.0
    refused = page.refused
    house.console_alive = True
    for taken_ns in pile:
        house.delay_ns = house.lockstep.now_ns - taken_ns
        house.sample(page, True, 0.5)
    house.delay_ns = 0
    old = sum(house.lockstep.now_ns - taken_ns > ZERO_NS for taken_ns in pile)
    assert page.refused - refused == old, "old ones are not even sent on"
    house.run(1000)  # the key stays down
    assert house.mode == Mode.HOLD and house.velocity == 0.0 and not page.engaged
    house.lockstep.operator_present = False  # the script would take a lease that is gone
    house.hands[page.nonce] = (False, 0.0)
    house.run(100)
    house.hands[page.nonce] = (True, 0.5)
    house.run(300)
    assert (house.mode == Mode.POLICY) == (stall_ms < 500), "after 500 ms the lease is gone, too"


def test_who_comes_back_takes_control_lets_go_and_engages(house):
    page = house.driving()
    del house.hands[page.nonce]
    house.lockstep.operator_present = False  # the script would take the lease
    house.run(1500)
    house.hands[page.nonce] = (True, 0.5)  # the key is still down
    house.run(300)
    assert house.mode == Mode.HOLD and page.refused > 0
    assert house.ask(page, Ask.ACQUIRE) == (True, "")
    house.run(300)
    assert house.mode == Mode.HOLD and not page.engaged, "it was never let go"
    house.hands[page.nonce] = (False, 0.0)
    house.run(100)
    house.hands[page.nonce] = (True, 0.5)
    house.run(300)
    assert house.mode == Mode.POLICY and house.velocity == pytest.approx(0.5)


def test_a_press_soon_after_letting_go_counts(house):
    page = house.driving()
    del house.hands[page.nonce]  # only the key's own samples, none of the page's clock
    house.sample(page, False, 0.0)
    house.run(30)
    assert house.mode == Mode.HOLD and page.neutral
    house.sample(page, True, 0.5)
    house.run(30)
    assert house.mode == Mode.POLICY and house.velocity == pytest.approx(0.5)


def test_a_page_that_closes_while_driving_holds_at_once(house):
    page = house.driving()
    house.publish(house.stage.leave(page, house.lockstep.now_ns))
    assert house.ms_until(lambda: house.mode == Mode.HOLD, 20) <= 4


def test_a_hold_by_somebody_else_ends_driving_until_the_key_was_let_go(house):
    page, other = house.driving(), house.open(Role.OBSERVE, nonce=502)
    assert house.ask(other, Ask.HOLD) == (True, "")
    house.run(500)
    assert house.mode == Mode.HOLD and not page.engaged and house.velocity == 0.0
    house.hands[page.nonce] = (False, 0.0)
    house.run(100)
    house.hands[page.nonce] = (True, 0.5)
    house.run(300)
    assert house.mode == Mode.POLICY


def test_old_samples_slow_down_then_do_not_count(house):
    page = house.driving()
    house.delay_ns = 140 * MS
    house.run(300)
    assert house.velocity == pytest.approx(0.25), "half way between full and nothing"
    house.delay_ns = 300 * MS
    refused = page.refused
    house.ms_until(lambda: house.mode == Mode.HOLD, 300)
    house.run(300)
    assert page.refused > refused and house.mode == Mode.HOLD and not page.engaged


def test_a_replayed_sample_changes_nothing(house):
    page = house.driving()
    house.hands[page.nonce] = (False, 0.0)
    house.run(300)
    before = house.lockstep.control.authority.command.seq
    for seq in (1, page.seq - 1, page.seq):
        house.sample(page, True, 1.0, seq=seq)
    house.lockstep.step()
    assert page.refused >= 3 and house.mode == Mode.HOLD and house.velocity == 0.0
    assert house.lockstep.control.authority.command.seq == before


def test_of_two_pages_one_drives(house):
    page, other = house.driving(), house.open(nonce=502)
    assert house.ask(other, Ask.ACQUIRE) == (
        False, f"{page.name} drives; it must release control first",
    )  # fmt: skip
    house.hands[other.nonce] = (True, -1.0)
    house.run(300)
    assert other.refused > 0 and house.velocity == pytest.approx(0.5)
    # Control itself refuses what the console would let through.
    other_ask = house.stage._ask(other, Ask.ACQUIRE, 0, house.lockstep.now_ns)
    house.publish([other_ask])
    house.run(20)
    assert house.stage.answered.pop()[2:4] == (
        False, "ACQUIRE is refused: console drives, and its rank is not below yours",
    )  # fmt: skip
    house.hands = {page.nonce: (False, 0.0)}
    house.lockstep.operator_present = False  # the script would be quicker than people
    house.run(100)
    house.stage.answered.clear()
    assert house.ask(page, Ask.RELEASE) == (True, "")
    house.run(20)
    assert house.ask(other, Ask.ACQUIRE) == (True, "")
    house.run(20)
    assert house.stage.driver is other


def test_a_stop_by_an_observer_damps_in_one_tick_and_no_arming_comes_before_it(house):
    page = house.driving()
    watcher = house.open(Role.OBSERVE, nonce=502)
    now = house.lockstep.now_ns
    house.publish(house.stage.ask(watcher, Ask.ESTOP, now, now))
    house.lockstep.step()
    assert house.mode == Mode.ESTOP and not house.lockstep.control.cmd.stiffness.any()
    house.run(100)
    assert watcher.stop_ms > 0.0 and page.stop_ms < 0.0
    assert house.stage.answered.pop(0)[1:3] == (Ask.ESTOP, True)
    assert house.ask(page, Ask.RESET) == (True, "")
    house.run(20)
    assert house.ask(page, Ask.ARM) == (False, "press STOP once first: the stop drill")
    assert house.ask(page, Ask.ESTOP) == (True, "")
    assert 0.0 < page.stop_ms < 50.0
    house.run(20)
    assert house.ask(page, Ask.RESET) == (True, "")
    house.run(20)
    assert house.stage.why_not(page, Ask.ARM) == ""
    assert "arm only" not in house.stage.why_not(watcher, Ask.ARM)
    assert house.stage.why_not(watcher, Ask.ARM) == "this page may observe only"


def test_a_stop_is_repeated_until_it_is_answered_and_said_twice_is_one(house):
    page, twice = house.open(), house.open(nonce=502)
    house.console_alive = False
    now = house.lockstep.now_ns
    house.stage.hear(house.case.status, now)
    (first,) = house.stage.ask(page, Ask.ESTOP, now, now)
    house.boxes[first.topic].stamp(first.message, now)  # numbered, but lost on its way
    (again,) = house.stage.ask(twice, Ask.ESTOP, now, now)
    assert again.again and again.message is first.message
    sent = [out for ms in range(0, 5000, 10) for out in house.stage.step(now + ms * MS)]
    assert len(sent) == 99 and all(out.message is first.message and out.again for out in sent)
    house.publish(sent[-1:])
    house.console_alive = True
    house.run(20)
    assert house.mode == Mode.ESTOP and page.stop_ms > 0.0 and twice.stop_ms > 0.0


def test_who_may_not_is_told_why(house):
    roles = {role: house.open(role, nonce=600 + role) for role in Role}
    house.run(20)
    for ask, least in ROLE.items():
        for role, page in roles.items():
            why = house.stage.why_not(page, ask)
            assert (why == f"this page may {role.name.lower()} only") == (role < least), (ask, role)
    assert {ask for ask, least in ROLE.items() if least == Role.OBSERVE} == {
        Ask.ESTOP, Ask.SOFT_STOP, Ask.HOLD,
    }  # fmt: skip
    assert set(ROLE) == {t.ask for t in TRANSITIONS} | {Ask.ACQUIRE, Ask.RELEASE}
    page = roles[Role.ARM]
    assert house.stage.why_not(page, Ask.STAND) == "possible in HOLD"
    assert house.stage.why_not(page, Ask.RESET) == "possible in ESTOP, FAULT"
    assert house.stage.why_not(page, Ask.HOLD) == house.stage.why_not(page, Ask.ACQUIRE) == ""


def test_a_bad_network_is_as_bad_as_it_was_told_to_be():
    draw = random.Random(3)
    assert Chaos().fate_ns(draw) == 0
    fates = [Chaos(delay_ms=20.0, jitter_ms=30.0, loss=0.25).fate_ns(draw) for _ in range(4000)]
    late = [fate for fate in fates if fate is not None]
    assert 0.22 < 1 - len(late) / len(fates) < 0.28
    assert 20 * MS <= min(late) < 21 * MS and 49 * MS < max(late) <= 50 * MS
    assert {Chaos(loss=1.0).fate_ns(draw) for _ in range(100)} == {None}


# --- arms -------------------------------------------------------------------------------------


def held_in_force(house: House) -> bool:
    return bool(house.lockstep.control.policy_input.command_valid & VALID_ARMS)


@pytest.mark.parametrize("forward", [0.0, 0.4])
def test_a_held_slider_moves_its_joint_no_faster_than_allowed_and_walking_goes_on(house, forward):
    page = house.driving()
    measured = house.case.driver.last.joint_pos[ROBOT.arm_joints]
    assert not held_in_force(house), "arms nobody touched are the policy's own"
    house.hands[page.nonce] = (True, forward)
    house.held = ToJoints(joints=[(3, 1.2)])
    house.run(100)
    assert held_in_force(house)
    ways = [house.arms]
    np.testing.assert_allclose(ways[0], measured, atol=0.15)
    for _ in range(60):
        house.run(20)
        ways.append(house.arms)
    steps = np.abs(np.diff(ways, axis=0))
    assert steps.max() <= SPEED * 0.05 + 1e-9, "never more than a sample's step"
    assert steps[:10, 3].sum() == pytest.approx(SPEED * 0.2, abs=0.05)
    np.testing.assert_allclose(ways[-1][3], 1.2, atol=1e-6)
    assert steps[:, [0, 1, 2, 4, 5, 6]].max() < 0.01, "the others stay"
    assert house.mode == Mode.POLICY and house.velocity == pytest.approx(forward)


def test_letting_go_arms_stay_and_moving_them_again_begins_there(house):
    page = house.driving()
    house.hands[page.nonce], house.held = (True, 0.0), ToPose(pose=3)
    house.run(500)
    house.hands[page.nonce], house.held = (False, 0.0), None
    house.ms_until(lambda: house.mode == Mode.HOLD, 70)
    there = house.arms
    house.run(1000)
    np.testing.assert_array_equal(house.arms, there)
    assert held_in_force(house)
    house.hands[page.nonce] = (True, 0.2)
    house.run(500)
    assert house.mode == Mode.POLICY and house.velocity == pytest.approx(0.2)
    np.testing.assert_array_equal(house.arms, there, "driving alone leaves arms where they are")
    house.held = ToPose(pose=0)
    before = house.arms
    for _ in range(100):
        house.run(20)
        assert np.abs(house.arms - before).max() <= SPEED * 0.05 + 1e-9
        before = house.arms
    np.testing.assert_allclose(before, house.stage.arms.poses[0].arm_joint_pos, atol=1e-6)


def test_a_hand_is_drawn_to_a_point(house):
    page = house.driving()
    stage = house.stage.arms
    house.hands[page.nonce], house.held = (True, 0.0), ToPoint(hand=0, at=(0.3, 0.2, 0.2))
    house.run(3000)
    assert np.linalg.norm(stage.hands.points(house.arms)[0] - (0.3, 0.2, 0.2)) < 0.01


@pytest.mark.parametrize("what", ["network", "stop", "old", "page"])
def test_whatever_ends_driving_ends_the_arms(house, what):
    page = house.driving()
    house.hands[page.nonce], house.held = (True, 0.0), ToPose(pose=4)
    house.run(300)
    moving = house.arms
    house.run(60)
    assert np.abs(house.arms - moving).max() > 0.02
    if what == "network":
        del house.hands[page.nonce]
    elif what == "stop":
        assert house.ask(page, Ask.ESTOP) == (True, "")
        assert house.mode == Mode.ESTOP and not held_in_force(house)
    elif what == "old":
        house.delay_ns = ZERO_NS + MS
    else:
        house.publish(house.stage.leave(page, house.lockstep.now_ns))
        del house.hands[page.nonce]
    house.run(250)
    assert house.mode == (Mode.ESTOP if what == "stop" else Mode.HOLD)
    still = house.arms
    house.run(500)
    np.testing.assert_array_equal(house.arms, still)


def test_rows_that_do_not_exist_move_nothing(house):
    page = house.driving()
    house.hands[page.nonce] = (True, 0.0)
    for held in (ToJoints(joints=[(31, 1.0)]), ToPose(pose=31), ToPoint(hand=31, at=(0, 0, 0))):
        house.held = held
        house.run(200)
        before = house.arms
        house.run(200)
        np.testing.assert_allclose(house.arms, before, atol=1e-9)
    assert house.mode == Mode.POLICY
