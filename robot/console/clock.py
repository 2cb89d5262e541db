"""Estimates where a browser's clock stands against ours, from pings, with a bound on the error."""

from __future__ import annotations

from collections import deque

WINDOW_NS = 30_000_000_000  # pings older than this say nothing about a clock that drifts


class BrowserClock:
    """The offset of the ping with the shortest way there and back, of the last 30 s.

    Half that way bounds the error, whatever part of it was which direction's.
    """

    def __init__(self) -> None:
        self._pings: deque[tuple[int, int, int]] = deque()  # (received, round trip, offset) ns

    def hear(self, sent_ns: int, browser_ms: float, now_ns: int) -> None:
        """Take the answer to a ping; one that we cannot have sent is ignored."""
        if not 0 <= now_ns - sent_ns <= WINDOW_NS:
            return
        offset = (sent_ns + now_ns) // 2 - round(browser_ms * 1e6)
        self._pings.append((now_ns, now_ns - sent_ns, offset))
        # Few enough to be searched: one ping per half second.
        while len(self._pings) > 1 and now_ns - self._pings[0][0] > WINDOW_NS:
            self._pings.popleft()
        if len(self._pings) > 200:
            self._pings.popleft()

    @property
    def known(self) -> bool:
        """True once a ping has come back."""
        return bool(self._pings)

    @property
    def round_trip_ns(self) -> int:
        """Of the best ping; the offset is off by at most half of it."""
        return min(trip for _, trip, _ in self._pings)

    def to_ours(self, browser_ms: float) -> int:
        """A moment of the browser's clock on ours, in ns."""
        return round(browser_ms * 1e6) + self._offset_ns

    def to_theirs(self, ours_ns: int) -> float:
        """A moment of our clock on the browser's, in ms."""
        return (ours_ns - self._offset_ns) * 1e-6

    @property
    def _offset_ns(self) -> int:
        return min(self._pings, key=lambda ping: ping[1])[2]
