"""Broker time from produce acknowledgements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.brokertime import BrokerClock

SKEW_MS = 1_795_420_000_000


def test_it_is_not_known_before_the_first_acknowledgement() -> None:
    clock = BrokerClock()
    assert not clock.is_set
    with pytest.raises(RuntimeError, match="not known before the first acknowledgement"):
        clock.ms(1.0)


def test_the_acknowledgement_that_took_least_time_back_counts() -> None:
    clock = BrokerClock()
    for now_s, back_ms in ((1.0, 80), (2.0, 5), (3.0, 40)):
        clock.observe(SKEW_MS + int(now_s * 1000) - back_ms, now_s=now_s)
    assert clock.is_set
    assert SKEW_MS + 4000 - 5 == clock.ms(4.0)
    assert 6.005 == pytest.approx(clock.monotonic_s(SKEW_MS + 6000, now_s=4.0))


def test_a_good_estimate_outlives_its_stretch_by_one_and_then_follows_the_brokers_clock() -> None:
    clock = BrokerClock()
    clock.observe(SKEW_MS, now_s=0.0)
    clock.observe(SKEW_MS + 11_000 - 500, now_s=11.0)  # the broker's clock is set back by half a second
    assert SKEW_MS + 11_000 == clock.ms(11.0)
    clock.observe(SKEW_MS + 22_000 - 500, now_s=22.0)
    assert SKEW_MS + 22_000 - 500 == clock.ms(22.0)


@given(st.lists(st.tuples(st.floats(0.001, 30), st.integers(0, 200)), min_size=1, max_size=30))
def test_with_a_steady_broker_it_is_late_by_no_more_than_the_quickest_way_back_and_never_early(
    acknowledgements: list[tuple[float, int]],
) -> None:
    clock, now_s, recent = BrokerClock(), 0.0, 200
    for wait_s, back_ms in acknowledgements:
        now_s += wait_s
        clock.observe(SKEW_MS + int(now_s * 1000) - back_ms, now_s=now_s)
        recent = back_ms
    late_ms = SKEW_MS + now_s * 1000 - clock.ms(now_s)
    assert -1 <= late_ms <= recent + 2


@given(st.floats(0, 1e6), st.integers(-10_000, 10_000))
def test_to_monotonic_seconds_and_back_is_the_identity(now_s: float, ahead_ms: int) -> None:
    clock = BrokerClock()
    clock.observe(SKEW_MS, now_s=0.0)
    at_ms = clock.ms(now_s) + ahead_ms
    assert at_ms == pytest.approx(clock.ms(clock.monotonic_s(at_ms, now_s=now_s)), abs=1)
