"""Keeps an absolute schedule: late ticks skip whole periods, keep phase and are counted."""

from __future__ import annotations

import time
from collections.abc import Callable

now_ns = time.monotonic_ns  # the one clock of the runtime; the wall clock may jump


def sleep_ns(duration_ns: int) -> None:
    """Wait."""
    # time.sleep is clock_nanosleep on the monotonic clock inside (Python >= 3.11).
    time.sleep(duration_ns * 1e-9)


class Rate:
    """Wakes once per period on a fixed grid of times.

    Args:
        period_ns: length of a period.
        now: the clock; tests bring their own.
        sleep: waits for a number of nanoseconds.

    Attributes:
        skipped: whole periods passed over so far.
        executed: periods that were woken for so far.
        start_ns: the schedule's origin; tick k is due at start_ns + k * period_ns.
    """

    def __init__(
        self,
        period_ns: int,
        now: Callable[[], int] = now_ns,
        sleep: Callable[[int], None] = sleep_ns,
    ) -> None:
        self.period_ns, self._now, self._sleep = period_ns, now, sleep
        self.skipped = self.executed = 0
        self.start_ns = now()
        self.deadline_ns = self.start_ns

    def wait(self) -> int:
        """Sleep until the next period begins; returns how late we woke, in ns.

        A loop that overran finds its deadline in the past: the periods that have wholly passed are
        skipped, the one in progress is executed late. Never a burst.
        """
        self.deadline_ns += self.period_ns
        remaining = self.deadline_ns - self._now()
        if remaining > 0:
            self._sleep(remaining)
        late = self._now() - self.deadline_ns
        if late >= self.period_ns:
            passed = late // self.period_ns
            self.skipped += passed
            self.deadline_ns += passed * self.period_ns
            late -= passed * self.period_ns
        self.executed += 1
        return late


class Pace:
    """How fast a counter advances, told by its last two readings.

    Attributes:
        per_s: 0 until there are two.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None
        self.per_s = 0.0

    def read(self, stamp_ns: int, count: int) -> None:
        """Take a reading; one that is no newer than the last tells nothing of the pace."""
        if self._before and stamp_ns > self._before[0]:
            self.per_s = (count - self._before[1]) / (stamp_ns - self._before[0]) * 1e9
        self._before = (stamp_ns, count)
