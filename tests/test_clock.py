"""Rate: keeps phase, skips whole periods, never bursts. Pace: of two readings."""

import pytest

from robot.clock import Pace, Rate

MS = 1_000_000


class FakeClock:
    def __init__(self) -> None:
        self.t = 0
        self.error = 0  # ns, every sleep ends this late

    def now(self) -> int:
        return self.t

    def sleep(self, ns: int) -> None:
        assert ns > 0
        self.t += ns + self.error


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_lateness_does_not_add_up(clock: FakeClock):
    clock.error = MS // 10
    rate = Rate(2 * MS, clock.now, clock.sleep)
    for tick in range(1, 1001):
        assert rate.wait() == MS // 10
        assert clock.t == tick * 2 * MS + MS // 10
    assert (rate.executed, rate.skipped) == (1000, 0)


def test_overrun_skips_whole_periods_and_keeps_phase(clock: FakeClock):
    rate = Rate(2 * MS, clock.now, clock.sleep)
    rate.wait()  # t = 2 ms
    clock.t += 7 * MS  # t = 9 ms: the ticks at 4 and 6 have passed, the one at 8 is in progress
    assert rate.wait() == 1 * MS
    assert (rate.executed, rate.skipped) == (2, 2)
    assert rate.wait() == 0
    assert clock.t == 10 * MS


def test_a_short_overrun_is_executed_late_and_not_skipped(clock: FakeClock):
    rate = Rate(2 * MS, clock.now, clock.sleep)
    rate.wait()
    clock.t += 3 * MS  # t = 5: the tick at 4 is 1 ms late
    assert rate.wait() == 1 * MS
    assert rate.skipped == 0
    assert rate.wait() == 0 and clock.t == 6 * MS


@pytest.mark.parametrize("load_ms", [0, 1, 3, 5, 17, 100])
def test_executed_plus_skipped_is_elapsed_over_period(clock: FakeClock, load_ms: int):
    rate = Rate(2 * MS, clock.now, clock.sleep)
    for i in range(500):
        rate.wait()
        clock.t += load_ms * MS * (i % 7 == 0)
    rate.wait()
    assert abs(rate.executed + rate.skipped - (clock.t - rate.start_ns) // (2 * MS)) <= 1


def test_real_clock_waits_for_real():
    rate = Rate(5 * MS)
    for _ in range(10):
        assert rate.wait() >= 0
    assert rate.executed == 10


def test_a_pace_is_that_of_the_last_two_readings() -> None:
    pace = Pace()
    assert pace.per_s == 0.0
    pace.read(1_000 * MS, 500)
    assert pace.per_s == 0.0
    pace.read(1_500 * MS, 700)
    assert pace.per_s == pytest.approx(400.0)
    pace.read(1_500 * MS, 900)  # no time has passed: nothing is known anew
    assert pace.per_s == pytest.approx(400.0)
    pace.read(2_500 * MS, 1_000)
    assert pace.per_s == pytest.approx(100.0)
