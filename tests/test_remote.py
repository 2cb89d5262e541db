"""The wireless remote: sticks count while R2 is held and news come; each key asks once."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.unitree_wire import KEY
from robot.messages import Ask, Command, Health, Request, Status
from robot.model import load_robot
from robot.remote import BUTTONS, FRESH_NS, Remote
from robot.teleop import KEY_LIMIT
from robot.topics import make_codecs

CODECS = make_codecs(load_robot("g1"))
MS = 1_000_000


def health(*keys: str, lx: float = 0.0, ly: float = 0.0, rx: float = 0.0) -> Health:
    message: Health = CODECS["health"].new()
    message.keys = sum(KEY[key] for key in keys)
    message.axes[:] = lx, ly, rx, 0.0
    return message


@pytest.fixture
def remote() -> Remote:
    return Remote(CODECS, nonce=7)


def test_sticks_count_only_while_r2_is_held_and_the_remote_is_heard(remote: Remote):
    assert list(remote.hear_health(health(ly=1.0, lx=0.5, rx=-1.0), 0)) == []
    assert remote.velocity(1).tolist() == [0, 0, 0]
    assert list(remote.hear_health(health("R2", ly=1.0, lx=0.5, rx=-1.0), 10)) == []
    np.testing.assert_allclose(remote.velocity(11), KEY_LIMIT * (1.0, -0.5, 1.0))
    assert remote.velocity(10 + FRESH_NS).tolist() == [0, 0, 0], "a dead remote says nothing more"
    list(remote.hear_health(health("R2", ly=0.04, lx=2.0), 20))
    np.testing.assert_allclose(remote.velocity(21), KEY_LIMIT * (0.0, -1.0, 0.0))


@pytest.mark.parametrize(("buttons", "ask"), BUTTONS, ids=lambda value: str(value))
def test_a_key_asks_once_until_it_is_let_go(remote: Remote, buttons: int, ask: Ask):
    names = [name for name, bit in KEY.items() if buttons & bit]
    for _ in range(2):
        (request,) = remote.hear_health(health(*names), 5)
        assert isinstance(request, Request)
        assert (request.ask, request.lease) == (ask, 7)
        assert list(remote.hear_health(health(*names), 6)) == []
        assert list(remote.hear_health(health(names[0]), 7)) == []


def test_l2_and_b_are_controls_own(remote: Remote):
    assert list(remote.hear_health(health("L2", "B"), 5)) == []


def test_it_is_silent_until_it_drives(remote: Remote):
    status: Status = CODECS["status"].new()
    assert list(remote.step(status, None, 0)) == [] and list(remote.step(None, None, 0)) == []
    status.lease = 7
    list(remote.hear_health(health("R2", ly=1.0), 50 * MS))
    ((topic, command, again),) = remote.step(status, None, 60 * MS)
    assert (topic, again) == ("command.remote", False)
    assert isinstance(command, Command) and command.velocity[0] == KEY_LIMIT[0]
