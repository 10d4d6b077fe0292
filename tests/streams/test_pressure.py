"""The level of one card, case by case."""

from __future__ import annotations

import pytest

from streams.pressure import MemoryPressureLevel, PressureGauge
from streams.settings import PressureSettings

LOW, NORMAL, HIGH, CRITICAL = MemoryPressureLevel

# The row in the docstring of PressureGauge.
WORKED = [
    (0, 0.40, LOW),
    (1, 0.71, HIGH),
    (2, 0.69, HIGH),
    (3, 0.66, HIGH),
    (6, 0.66, NORMAL),
    (7, 0.66, NORMAL),
    (8, 0.86, CRITICAL),
    (12, 0.30, CRITICAL),
    (13, 0.30, LOW),
]


@pytest.mark.parametrize(
    ("ratio", "level"),
    [(0.0, LOW), (0.4999, LOW), (0.5, NORMAL), (0.6999, NORMAL), (0.7, HIGH), (0.85, CRITICAL), (1.0, CRITICAL)],
)
def test_the_first_sample_gives_the_level_of_its_ratio(ratio: float, level: MemoryPressureLevel) -> None:
    assert level is PressureGauge().update(ratio, 0)


def test_the_worked_row_holds() -> None:
    gauge = PressureGauge()
    assert [level for _, _, level in WORKED] == [gauge.update(ratio, at_s) for at_s, ratio, _ in WORKED]


def test_a_level_is_kept_at_exactly_the_hysteresis_below_its_threshold() -> None:
    gauge = PressureGauge(PressureSettings(hysteresis=0.125, dwell_s=0))
    gauge.update(0.5, 0)
    assert NORMAL is gauge.update(0.375, 1)
    assert LOW is gauge.update(0.3749, 2)


def test_a_sample_at_the_threshold_renews_the_dwell() -> None:
    gauge = PressureGauge()
    gauge.update(0.75, 0)
    gauge.update(0.75, 4)
    assert HIGH is gauge.update(0.1, 8.9)
    assert LOW is gauge.update(0.1, 9)


def test_a_change_tells_the_ratio_that_caused_it() -> None:
    gauge = PressureGauge()
    gauge.update(0.1, 0)
    gauge.update(0.9, 3)
    change = gauge.last_change
    assert change is not None
    assert (change.before, change.after, change.used_ratio, change.at_s) == (LOW, CRITICAL, 0.9, 3)
