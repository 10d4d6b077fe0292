"""What the dispatcher knows of the cards, and when it knows nothing."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.gpu import GpuId, GPUMetrics, GpuSource
from streams.fleet import Fleet
from streams.pressure import MemoryPressureLevel

LOW, NORMAL, HIGH, CRITICAL = MemoryPressureLevel
NAN = float("nan")


def sample(
    uuid: str = "a", used: Any = 10, *, total: Any = 100, at_ms: int = 0, index: int = 0, lost: bool = False
) -> GPUMetrics:
    """Return a sample of a card on host h."""
    gpu = GpuId(uuid, index, "card", "h")
    return GPUMetrics(gpu, GpuSource.NVML, at_ms, memory_total_bytes=total, memory_used_bytes=used, lost=lost)


def fleet(*samples: GPUMetrics) -> Fleet:
    """Return a fleet that saw the samples at second 0."""
    found = Fleet()
    for each in samples:
        found.observe(each, now_s=0, age_s=0)
    return found


def test_nothing_is_known_of_a_card_never_seen() -> None:
    assert Fleet().pressure_of(["a"], now_s=0) is None
    assert Fleet().lost(["a"], now_s=0) is False


def test_a_backend_has_the_worst_of_its_cards() -> None:
    cards = fleet(sample("a", 10), sample("b", 75, index=1))
    assert HIGH is cards.pressure_of(["a", "b"], now_s=0)
    assert LOW is cards.pressure_of(["a"], now_s=0)
    assert cards.levels(now_s=0) == {"a": LOW, "b": HIGH}


def test_an_unknown_card_leaves_the_worst_of_the_known() -> None:
    assert HIGH is fleet(sample("a", 75)).pressure_of(["a", "never seen"], now_s=0)


def test_a_backend_without_cards_has_no_level() -> None:
    assert fleet(sample("a", 99)).pressure_of([], now_s=0) is None


def test_a_card_is_found_by_host_and_index() -> None:
    cards = fleet(sample("a", 10, index=0), sample("b", 99, index=1))
    assert CRITICAL is cards.pressure_of(["h:1"], now_s=0)
    cards.observe(sample("c", 55, index=1), now_s=1, age_s=0)
    assert NORMAL is cards.pressure_of(["h:1"], now_s=1)


def test_a_card_becomes_unknown_when_its_sample_is_stale() -> None:
    cards = fleet(sample("a", 99))
    assert CRITICAL is cards.pressure_of(["a"], now_s=5)
    assert cards.pressure_of(["a"], now_s=5.1) is None
    assert cards.levels(now_s=5.1) == {"a": None}


def test_a_sample_that_arrives_stale_tells_nothing() -> None:
    cards = Fleet()
    cards.observe(sample("a", 99), now_s=100, age_s=6)
    assert cards.pressure_of(["a"], now_s=100) is None


@pytest.mark.parametrize(
    ("used", "total"),
    [(101, 100), (-1, 100), (NAN, 100), (1, NAN), (1, float("inf")), (0, 0), (1, -5), (None, 100), (1, None)],
)
def test_a_sample_that_cannot_be_makes_its_card_unknown(used: Any, total: Any) -> None:
    cards = fleet(sample("a", 10), sample("a", used, total=total, at_ms=1))
    assert cards.pressure_of(["a"], now_s=0) is None


def test_a_sample_from_the_future_makes_its_card_unknown_until_the_next_good_one() -> None:
    cards = fleet(sample("a", 10, at_ms=1000))
    cards.observe(sample("a", 10, at_ms=3_600_000), now_s=1, age_s=-3599)
    assert cards.pressure_of(["a"], now_s=1) is None
    cards.observe(sample("a", 10, at_ms=2000), now_s=2, age_s=0)
    assert LOW is cards.pressure_of(["a"], now_s=2)


def test_an_older_sample_is_ignored() -> None:
    cards = fleet(sample("a", 99, at_ms=2000))
    cards.observe(sample("a", 10, at_ms=1000), now_s=0, age_s=0)
    assert CRITICAL is cards.pressure_of(["a"], now_s=0)


def test_a_host_whose_clock_was_set_back_is_heard_once_its_last_sample_is_stale() -> None:
    cards = fleet(sample("a", 99, at_ms=9_000_000))
    cards.observe(sample("a", 10, at_ms=1000), now_s=6, age_s=0)
    assert LOW is cards.pressure_of(["a"], now_s=6)


def test_a_lost_card_loses_its_backend_and_has_no_level() -> None:
    cards = fleet(sample("a", 10), sample("b", None, index=1, lost=True))
    assert cards.lost(["a", "b"], now_s=0)
    assert not cards.lost(["a"], now_s=0)
    assert cards.pressure_of(["b"], now_s=0) is None


def test_a_lost_card_whose_sample_is_stale_is_unknown() -> None:
    assert fleet(sample("a", lost=True)).lost(["a"], now_s=6) is False


def test_a_lost_card_may_come_back() -> None:
    cards = fleet(sample("a", lost=True))
    cards.observe(sample("a", 10, at_ms=1), now_s=1, age_s=0)
    assert not cards.lost(["a"], now_s=1)
    assert LOW is cards.pressure_of(["a"], now_s=1)


def test_a_server_that_owns_its_memory_is_not_under_its_own_pressure() -> None:
    cards = fleet(sample("a", 92))
    assert cards.pressure_of(["a"], now_s=0, owns_memory=True) is None
    assert cards.pressure_of(["a"], now_s=0, owns_memory=True, pool_bytes=90) is None
    assert CRITICAL is cards.pressure_of(["a"], now_s=0, owns_memory=True, pool_bytes=60)


def test_an_observation_returns_the_change_it_caused() -> None:
    cards = fleet(sample("a", 10))
    assert cards.observe(sample("a", 11, at_ms=1), now_s=1, age_s=0) is None
    change = cards.observe(sample("a", 90, at_ms=2), now_s=2, age_s=0)
    assert change is not None
    assert (change.before, change.after, change.used_ratio) == (LOW, CRITICAL, 0.9)
