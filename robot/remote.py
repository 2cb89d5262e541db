"""The robot's wireless remote as an operator: sticks while R2 is held, keys as requests.

L2+B is not here: control itself damps on it, with nobody in between. A remote that is switched off
repeats its last word, so sticks count only while R2 is held and news keep coming.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from drivers.unitree_wire import KEY
from robot.messages import Ask, Codec, Health, Message, Status, Truth
from robot.teleop import KEY_LIMIT, Teleop

FRESH_NS = 250_000_000  # a dead man's key counts for so long (faults.md 5)
DEAD_ZONE = 0.05  # of a stick's way
RUN = KEY["R2"]
# Keys that must be held together, and what the last of them to be pressed asks.
BUTTONS: tuple[tuple[int, Ask], ...] = (
    (KEY["L1"] | KEY["R1"], Ask.ACQUIRE),
    (KEY["R1"] | KEY["A"], Ask.ARM),
    (KEY["R1"] | KEY["up"], Ask.STAND_UP),
    (KEY["R1"] | KEY["start"], Ask.START_POLICY),
    (KEY["R1"] | KEY["select"], Ask.HOLD),
    (KEY["R1"] | KEY["Y"], Ask.ENGAGE),
    (KEY["R1"] | KEY["X"], Ask.SOFT_STOP),
    (KEY["R1"] | KEY["F1"], Ask.RESET),
    (KEY["L1"] | KEY["B"], Ask.ESTOP),
)


class Remote(Teleop):
    """The stage: health and status in, commands and requests out.

    Args:
        codecs: topic name to layout.
        nonce: identifies this operator; random if not given.
    """

    def __init__(self, codecs: dict[str, Codec], nonce: int | None = None) -> None:
        super().__init__(codecs, "remote", None, automatic=False, walk=True, nonce=nonce)
        self._held, self._heard_ns = 0, -FRESH_NS
        self._sticks = np.zeros(3)  # vx, vy, yaw rate as shares

    def hear_health(self, health: Health, now_ns: int) -> Iterator[Message]:
        """Take news of the remote; the requests that keys make."""
        keys, before = int(health.keys), self._held
        self._held, self._heard_ns = keys, now_ns
        lx, ly, rx, _ = health.axes.tolist()
        sticks = np.array((ly, -lx, -rx))
        self._sticks = np.where(np.abs(sticks) > DEAD_ZONE, np.clip(sticks, -1.0, 1.0), 0.0)
        for buttons, ask in BUTTONS:
            if keys & buttons == buttons and before & buttons != buttons:
                yield self._ask(ask, now_ns)

    def velocity(self, now_ns: int) -> np.ndarray:
        """(3,) m/s, m/s, rad/s; zero unless R2 is held and the remote is heard."""
        if self._held & RUN and now_ns - self._heard_ns < FRESH_NS:
            return self._sticks * KEY_LIMIT
        return np.zeros(3)

    def step(
        self, status: Status | None, truth: Truth | None, now_ns: int
    ) -> Iterator[tuple[str, Message, bool]]:
        """As any operator, but silent until the lease is its own or asked for."""
        if status is not None and (status.lease == self._nonce or self._asked is not None):
            yield from super().step(status, truth, now_ns)

    def _next(self, status: Status, truth: Truth | None) -> Ask:
        return Ask.NONE  # every step is a person's
