"""What holds for the level of a card whatever its memory does."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streams.pressure import MemoryPressureLevel, PressureGauge
from streams.settings import PressureSettings

SETTINGS = PressureSettings()
ratios = st.floats(0, 1)
gaps_s = st.floats(0, 20)


def levels(signal: list[tuple[float, float]]) -> list[MemoryPressureLevel]:
    """Return the level after each (ratio, seconds since the last one)."""
    gauge, now_s, found = PressureGauge(), 0.0, []
    for ratio, gap_s in signal:
        now_s += gap_s
        found.append(gauge.update(ratio, now_s))
    return found


def raw(ratio: float) -> MemoryPressureLevel:
    return MemoryPressureLevel(sum(ratio >= threshold for threshold in SETTINGS.thresholds))


@given(st.sampled_from(SETTINGS.thresholds), st.lists(st.tuples(st.floats(-0.0299, 0.0299), gaps_s), min_size=1))
def test_a_signal_within_the_hysteresis_changes_the_level_at_most_once_and_upwards(
    threshold: float, signal: list[tuple[float, float]]
) -> None:
    found = levels([(threshold + offset, gap_s) for offset, gap_s in signal])
    changes = [(before, after) for before, after in pairwise(found) if before is not after]
    assert len(changes) <= 1
    assert all(after > before for before, after in changes)


@given(st.lists(st.tuples(ratios, gaps_s), min_size=1))
def test_a_rising_signal_gives_rising_levels(signal: list[tuple[float, float]]) -> None:
    rising = sorted(ratio for ratio, _ in signal)
    found = levels(list(zip(rising, (gap_s for _, gap_s in signal), strict=True)))
    assert sorted(found) == found


@given(st.lists(st.tuples(ratios, gaps_s), min_size=1))
def test_a_falling_signal_gives_falling_levels(signal: list[tuple[float, float]]) -> None:
    falling = sorted((ratio for ratio, _ in signal), reverse=True)
    found = levels(list(zip(falling, (gap_s for _, gap_s in signal), strict=True)))
    assert sorted(found, reverse=True) == found


@given(ratios, st.lists(gaps_s, min_size=1))
def test_a_constant_signal_has_the_level_of_its_ratio(ratio: float, gaps: list[float]) -> None:
    assert {raw(ratio)} == set(levels([(ratio, gap_s) for gap_s in gaps]))


@given(st.lists(st.tuples(ratios, gaps_s), min_size=1))
def test_the_level_is_never_below_that_of_the_ratio(signal: list[tuple[float, float]]) -> None:
    assert all(level >= raw(ratio) for level, (ratio, _) in zip(levels(signal), signal, strict=True))


@given(st.lists(st.tuples(ratios, gaps_s), min_size=1))
def test_a_level_is_left_downwards_only_after_the_dwell(signal: list[tuple[float, float]]) -> None:
    found = levels(signal)
    now_s = changed_s = 0.0
    for (_, gap_s), before, after in zip(signal, [found[0], *found], found, strict=False):
        now_s += gap_s
        if after < before:
            assert now_s - changed_s >= SETTINGS.dwell_s
        if after is not before or now_s == 0.0:
            changed_s = now_s
