"""What a card's heat leaves of its work: case by case, whatever the heat does, and in a loop with a card that gets hot."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.gpu_sources.silicon import GENERIC, Drive, Silicon
from streams.thermal import BRAKES, LEAST_FACTOR, ThermalGauge, Warmth, coolness, slope_c_per_s

LIMIT_C = 90.0


def warm(*temperatures: float | None, reasons: tuple[str, ...] = (), limit_c: float | None = LIMIT_C) -> list[Warmth]:
    """Return one reading a second; `reasons` are the last one's."""
    last = len(temperatures) - 1
    return [
        Warmth(second, temperature, limit_c, reasons if second == last else ())
        for second, temperature in enumerate(temperatures)
    ]


@pytest.mark.parametrize(
    ("recent", "factor", "reason"),
    [
        (warm(60.0), 1.0, None),
        (warm(86.9), 1.0, None),
        (warm(87.0), 0.8, "87 °C, limit 90 °C"),
        (warm(*[76.0 + 1.5 * second for second in range(6)]), 0.8, "84 °C, rising to 98 °C, limit 90 °C"),
        (warm(*[84.0 - second for second in range(6)]), 1.0, None),
        (warm(60.0, reasons=("sw_power_cap", "gpu_idle")), 1.0, None),
        (warm(60.0, reasons=("hw_thermal_slowdown",)), 0.5, "hw_thermal_slowdown"),
        (warm(None, reasons=("hw_power_brake_slowdown", "hw_slowdown")), 0.5, "hw_power_brake_slowdown, hw_slowdown"),
        (warm(83.0, limit_c=None), 0.8, "83 °C, limit 85 °C"),
        (warm(None), 1.0, None),
        ([], 1.0, None),
    ],
)
def test_should_lower_the_factor_before_the_limit(recent: list[Warmth], factor: float, reason: str | None) -> None:
    gauge = ThermalGauge()
    assert (factor, reason) == (gauge.update(recent, 0), gauge.reason)


def test_should_cut_once_in_five_seconds_down_to_a_quarter() -> None:
    gauge = ThermalGauge()
    found = [gauge.update(warm(95.0), second) for second in range(50)]
    assert [0.8] * 5 + [0.64] * 5 == [pytest.approx(each) for each in found[:10]]
    assert LEAST_FACTOR == found[-1]


def test_should_raise_slowly_when_cool_and_keep_still_between() -> None:
    gauge = ThermalGauge(factor=0.5, _cut_at_s=0.0)
    assert [0.5] * 60 == [gauge.update(warm(84.0), second) for second in range(60)]
    found = [gauge.update(warm(60.0), second) for second in range(60, 721)]
    assert 0.55 == found[0]
    assert 0.85 == pytest.approx(found[60])
    assert 1.0 == found[-1]
    assert max(later - sooner for sooner, later in pairwise(found)) <= 0.051


def test_should_wait_half_a_minute_after_a_cut_before_raising() -> None:
    gauge = ThermalGauge()
    gauge.update(warm(95.0), 0)
    found = [gauge.update(warm(50.0), second) for second in range(1, 41)]
    assert 29 == found.count(0.8)
    assert "recovering" == gauge.reason


def test_should_say_nothing_any_more_once_it_is_whole() -> None:
    gauge = ThermalGauge()
    gauge.update(warm(95.0), 0)
    for second in range(1, 900):
        gauge.update(warm(50.0), second)
    assert (1.0, None) == (gauge.factor, gauge.reason)


@pytest.mark.parametrize(
    ("temperature_c", "limit_c", "score"),
    [(60.0, 90.0, 1.0), (80.0, 90.0, 0.5), (90.0, 90.0, 0.0), (99.0, 90.0, 0.0), (None, 90.0, 0.5), (75.0, None, 0.5)],
)
def test_should_score_how_cool_a_card_is(temperature_c: float | None, limit_c: float | None, score: float) -> None:
    assert score == coolness(temperature_c, limit_c)


def test_should_take_the_slope_over_the_last_half_minute() -> None:
    assert 0.5 == pytest.approx(slope_c_per_s(warm(*[60.0] * 60, *[60 + 0.5 * n for n in range(31)])))
    assert 0.0 == slope_c_per_s(warm(60.0, 70.0, 80.0, 90.0))


readings = st.lists(
    st.tuples(
        st.none() | st.floats(20, 110),
        st.lists(st.sampled_from([*BRAKES, "sw_power_cap", "gpu_idle"]), max_size=2),
        st.floats(0.2, 8),
    ),
    min_size=1,
    max_size=60,
)


@given(readings)
def test_a_factor_stays_within_its_bounds_and_rises_slowly(rows: list[tuple[float | None, list[str], float]]) -> None:
    gauge, recent, now_s = ThermalGauge(), list[Warmth](), 0.0
    before, cut_s, raised_s = 1.0, float("-inf"), float("-inf")
    for temperature_c, reasons, gap_s in rows:
        now_s += gap_s
        recent.append(Warmth(now_s, temperature_c, LIMIT_C, tuple(reasons)))
        factor = gauge.update(recent, now_s)
        assert LEAST_FACTOR <= factor <= 1
        if factor > before:
            assert factor - before <= 0.0501
            assert now_s - cut_s >= 30
            assert now_s - raised_s >= 10
            raised_s = now_s
        if factor < before:
            assert now_s - cut_s >= 5
            cut_s = now_s
        before = factor


@given(st.lists(st.floats(20, 81.9), min_size=1, max_size=40))
def test_a_card_that_never_rises_above_cool_is_never_held_back(temperatures: list[float]) -> None:
    falling = sorted(temperatures, reverse=True)
    gauge = ThermalGauge()
    for second in range(len(falling)):
        assert 1.0 == gauge.update(warm(*falling[: second + 1]), second)


@given(st.floats(20, 110), st.floats(0, 30))
def test_a_hotter_card_is_never_left_more(temperature_c: float, more_c: float) -> None:
    assert ThermalGauge().update(warm(temperature_c + more_c), 0) <= ThermalGauge().update(warm(temperature_c), 0)


def in_a_loop(cooling: float, seconds: int) -> list[tuple[float, float]]:
    """Return (factor, temperature) by second of a busy card whose load is what the factor leaves; cooling fails at second 60."""
    card, gauge, recent, found = Silicon(GENERIC), ThermalGauge(), list[Warmth](), list[tuple[float, float]]()
    for second in range(1000, 1000 + seconds):
        left = cooling if second >= 1060 else 1.0
        card.advance(second, lambda _, left=left: Drive(0.95 * gauge.factor, 0.5, left))  # type: ignore[misc]
        load = 0.95 * gauge.factor
        recent.append(Warmth(second, card.temperature_c, GENERIC.limit_c, tuple(card.clock_event_reasons(load))))
        found.append((gauge.update(recent[-40:], second), card.temperature_c))
    return found


@pytest.mark.parametrize("cooling", [0.75, 0.6, 0.45])
def test_should_keep_a_card_with_a_weak_fan_from_the_limit_without_flapping(cooling: float) -> None:
    found = in_a_loop(cooling, 1200)
    assert {1.0} == {factor for factor, _ in found[:60]}
    settled = found[300:]
    assert max(temperature_c for _, temperature_c in found) < GENERIC.limit_c
    turns = [later - sooner for (sooner, _), (later, _) in pairwise(settled) if later != sooner]
    assert sum(a * b < 0 for a, b in pairwise(turns)) <= 4
    assert min(factor for factor, _ in settled) >= LEAST_FACTOR
