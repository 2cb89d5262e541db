"""One lease, upwards in rank only; who falls silent first loses the say, then the lease."""

from __future__ import annotations

import pytest

from robot.authority import EXPIRY_NS, HOLD_NS, Authority
from robot.messages import Ask, Command, Request
from robot.model import load_robot
from robot.modes import TRANSITIONS
from robot.topics import SOURCES, make_codecs, source_index

CODECS = make_codecs(load_robot("g1"))
MS = 1_000_000
SCRIPT, KEYBOARD = source_index("script"), source_index("keyboard")
ALICE, BOB = 11, 22  # nonces


def make(timing_factor: float = 1.0) -> Authority:
    return Authority(CODECS["command.script"].new(), timing_factor)


def request(ask: Ask, lease: int, source: int = SCRIPT) -> Request:
    message: Request = CODECS["request.script"].new()
    message.ask, message.lease, message.source = ask, lease, source
    return message


def command(lease: int, stamp_ns: int, source: int = SCRIPT, vx: float = 0.5) -> Command:
    message: Command = CODECS["command.script"].new()
    message.lease, message.source, message.velocity[0] = lease, source, vx
    message.stamp(1, 1, stamp_ns)
    return message


def held(lease: int = ALICE, source: int = SCRIPT) -> Authority:
    authority = make()
    assert authority.ask(request(Ask.ACQUIRE, lease, source), 0) == (True, "")
    return authority


def test_the_limits_are_those_of_the_budget():
    assert (HOLD_NS, EXPIRY_NS) == (200 * MS, 500 * MS)
    slow = make(timing_factor=10.0)
    assert (slow.hold_ns, slow.expiry_ns) == (2000 * MS, 5000 * MS)


def test_at_first_nobody_drives():
    authority = make()
    assert (authority.holder, authority.source) == (0, 255)
    assert not authority.holds(request(Ask.ARM, 0))
    assert not authority.fresh(0) and authority.command_age_ns(99) == -1
    authority.hear(command(0, 0), 0)
    authority.hear(command(ALICE, 0), 0)
    assert authority.refused == 2 and not authority.fresh(0)


def test_the_holder_drives_and_only_the_holder():
    authority = held()
    authority.hear(command(ALICE, 5), 5)
    assert authority.fresh(5) and authority.command.velocity[0] == 0.5
    authority.hear(command(BOB, 6, vx=9.0), 6)
    authority.hear(command(ALICE, 6, source=KEYBOARD, vx=9.0), 6)
    assert authority.command.velocity[0] == 0.5 and authority.refused == 2
    assert authority.holds(request(Ask.ARM, ALICE))
    assert not authority.holds(request(Ask.ARM, BOB))


def test_a_second_operator_of_the_same_rank_is_refused_and_told_why():
    authority = held()
    reason = "ACQUIRE is refused: script drives, and its rank is not below yours"
    assert authority.ask(request(Ask.ACQUIRE, BOB), 1) == (False, reason)
    assert authority.holder == ALICE


def test_the_lease_goes_upwards_in_rank_only():
    assert SOURCES[KEYBOARD].rank > SOURCES[SCRIPT].rank
    authority = held()
    authority.hear(command(ALICE, 5), 5)
    assert authority.ask(request(Ask.ACQUIRE, BOB, KEYBOARD), 6) == (True, "")
    assert (authority.holder, authority.source) == (BOB, KEYBOARD)
    assert not authority.fresh(6), "the command of another is not taken over with the lease"
    reason = "ACQUIRE is refused: keyboard drives, and its rank is not below yours"
    assert authority.ask(request(Ask.ACQUIRE, ALICE), 7) == (False, reason)


def test_acquiring_what_one_holds_renews_it_and_keeps_the_command():
    authority = held()
    authority.hear(command(ALICE, 100 * MS), 100 * MS)
    assert authority.ask(request(Ask.ACQUIRE, ALICE), 150 * MS) == (True, "")
    assert authority.fresh(150 * MS)
    authority.expire(650 * MS)
    assert authority.holder == ALICE
    authority.expire(650 * MS + 1)
    assert authority.holder == 0


def test_release_is_the_holders_alone():
    authority = held()
    reason = "RELEASE is refused: another source holds the lease"
    assert authority.ask(request(Ask.RELEASE, BOB), 1) == (False, reason)
    assert authority.ask(request(Ask.RELEASE, ALICE), 1) == (True, "")
    assert (authority.holder, authority.source, authority.command_ns) == (0, 255, -1)


@pytest.mark.parametrize(("lease", "source"), [(0, SCRIPT), (ALICE, len(SOURCES)), (ALICE, 255)])
@pytest.mark.parametrize("ask", [Ask.ACQUIRE, Ask.RELEASE])
def test_unknown_sources_and_nobodys_nonce_are_refused(ask, lease, source):
    reason = f"source {source} is unknown or its nonce is 0"
    assert make().ask(request(ask, lease, source), 0) == (False, reason)


@pytest.mark.parametrize(
    ("age_ms", "taken"), [(0, True), (200, True), (200.001, False), (2000, False),
                          (-200, True), (-200.001, False), (-1e9, False)],
)  # fmt: skip
def test_old_commands_and_those_from_the_future_are_dropped(age_ms, taken):
    authority, now_ns = held(), 10_000 * MS
    authority.hear(command(ALICE, now_ns - int(age_ms * MS)), now_ns)
    assert bool(authority.command.velocity[0] == 0.5) is taken
    assert authority.refused == (not taken)


def test_a_command_is_fresh_for_200_ms_and_the_lease_lasts_500():
    authority = held()
    authority.hear(command(ALICE, 1000 * MS), 1000 * MS)
    assert authority.command_age_ns(1100 * MS) == 100 * MS
    assert authority.command_age_ns(999 * MS) == 0, "stamped after the tick took its time"
    assert authority.fresh(1200 * MS) and not authority.fresh(1200 * MS + 1)
    authority.expire(1500 * MS)
    assert authority.holder == ALICE
    authority.expire(1500 * MS + 1)
    assert (authority.holder, authority.source) == (0, 255)
    assert not authority.holds(request(Ask.ARM, ALICE))
    authority.expire(9000 * MS)


def test_asking_for_less_motion_needs_no_lease():
    without = {t.ask for t in TRANSITIONS if "lease" not in t.guards}
    assert without == {Ask.ESTOP, Ask.SOFT_STOP, Ask.HOLD, Ask.DISARM}
