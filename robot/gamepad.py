"""A gamepad of this computer as an operator: hold to run with the right shoulder, buttons ask.

The robot moves only while the right shoulder button is held; letting go is a HOLD, and so is
unplugging. After anything that its operator did not do, letting go once comes before driving on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robot.gamepad_device import (
    EAST,
    LEFT_SHOULDER,
    LEFT_STICK,
    LEFT_X,
    LEFT_Y,
    RIGHT_SHOULDER,
    RIGHT_STICK,
    RIGHT_X,
    SELECT,
    SOUTH,
    START,
    Axis,
    Button,
    Event,
)
from robot.messages import Ask, Codec, Message, Mode, Request, Status, Truth
from robot.teleop import KEY_LIMIT, KEYS, Key, Teleop

SOURCE = "gamepad"
RUN = RIGHT_SHOULDER
DEAD_ZONE = 0.12  # of a stick's way: worn ones rest beside their middle
# Buttons that must be held together, and what the last of them to go down does. The two upper face
# buttons are left out: drivers do not agree on which of them is north.
BUTTONS: tuple[tuple[frozenset[int], Key], ...] = (
    (frozenset({EAST}), KEYS[" "]),
    (frozenset({LEFT_SHOULDER, SELECT}), Key("select", "take control", ask=Ask.ACQUIRE)),
    (frozenset({LEFT_SHOULDER, START}), KEYS["g"]),
    (frozenset({LEFT_SHOULDER, SOUTH}), KEYS["s"]),
    (frozenset({LEFT_SHOULDER, LEFT_STICK}), KEYS["r"]),
    (frozenset({LEFT_SHOULDER, RIGHT_STICK}), KEYS["c"]),
)


class Gamepad(Teleop):
    """The stage: the pad's events and status in, commands and requests out.

    Args:
        codecs: topic name to layout.
        nonce: identifies this operator; random if not given.
    """

    def __init__(self, codecs: dict[str, Codec], nonce: int | None = None) -> None:
        super().__init__(
            codecs, SOURCE, None, automatic=False, walk=True, nonce=nonce, stepwise=True
        )
        self._down: set[int] = set()
        self._sticks = {LEFT_X: 0.0, LEFT_Y: 0.0, RIGHT_X: 0.0}
        self._neutral = True  # let go since anything else happened
        self._ran = False  # the robot may move because of us

    @property
    def runs(self) -> bool:
        """True while the deadman is held, and counts."""
        return RUN in self._down and self._neutral

    def hear(self, event: Event, now_ns: int) -> Iterator[Request]:
        """Take an event of the pad; the requests that it makes."""
        if isinstance(event, Axis):
            self._sticks[event.code] = event.share if abs(event.share) > DEAD_ZONE else 0.0
        elif not isinstance(event, Button):
            self.let_go(now_ns)
        elif not event.down:
            self._down.discard(event.code)
            self._neutral |= event.code == RUN
            self._next_command_ns = min(self._next_command_ns, now_ns)  # said at once
        else:
            self._down.add(event.code)
            for buttons, key in BUTTONS:
                if event.code in buttons and buttons <= self._down:
                    request = self.press(key, now_ns)
                    yield from (request,) if request else ()

    def let_go(self, now_ns: int) -> None:
        """Nothing is held any more: the pad is gone, or it is not known what is held."""
        self._down.clear()
        self._sticks = dict.fromkeys(self._sticks, 0.0)
        self._neutral = True
        self._next_command_ns = min(self._next_command_ns, now_ns)

    def velocity(self, now_ns: int) -> np.ndarray:
        """(3,) m/s, m/s, rad/s; zero unless the deadman is held."""
        if not self.runs:
            return np.zeros(3)
        left, back, turn = (self._sticks[code] for code in (LEFT_X, LEFT_Y, RIGHT_X))
        return np.array((-back, -left, -turn)) * KEY_LIMIT

    def step(
        self, status: Status | None, truth: Truth | None, now_ns: int
    ) -> Iterator[tuple[str, Message, bool]]:
        """As any operator, but silent until the lease is its own or asked for."""
        if status is None:
            return
        mode = Mode(status.mode)
        if mode != self._mode and (self._mode, mode) != (Mode.HOLD, Mode.POLICY):
            self._neutral = RUN not in self._down
        self._mode = mode
        if status.lease == self._nonce or self._asked is not None:
            yield from super().step(status, truth, now_ns)

    def _next(self, status: Status, truth: Truth | None) -> Ask:
        """Holding on engages, letting go holds; every other step is a button's."""
        mode = Mode(status.mode)
        self._ran = self.runs or (self._ran and mode == Mode.POLICY)
        if status.lease != self._nonce:
            return Ask.NONE
        if mode == Mode.HOLD and self.runs:
            return Ask.ENGAGE
        return Ask.HOLD if mode == Mode.POLICY and self._ran and not self.runs else Ask.NONE
