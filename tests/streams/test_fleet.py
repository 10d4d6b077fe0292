"""What the dispatcher knows of the cards, and when it knows nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas.gpu import GpuId, GPUMetrics, GpuProcess, GpuSource
from streams.fleet import Fleet, Limit, Pool, foreign_bytes, pools_of
from streams.forecast import Forecast, NoForecast
from streams.pressure import MemoryPressureLevel
from streams.settings import BackendSettings

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


def test_a_broken_card_loses_its_backend() -> None:
    assert fleet(replace(sample("a", 10), faults=["xid_48"])).lost(["a"], now_s=0)


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


def told(cards: Fleet, now_s: float) -> list[tuple[str, Any, Any, str]]:
    return [(each.gpu, each.before, each.after, each.cause) for each in cards.changes(now_s=now_s)]


def test_should_tell_each_change_of_level_once_with_its_cause() -> None:
    cards = fleet(sample("a", 10))
    assert [("a", None, LOW, "10% of 0.0 GiB used")] == told(cards, 0)
    assert [] == told(cards, 0)
    cards.observe(sample("a", 11, at_ms=1), now_s=1, age_s=0)
    assert [] == told(cards, 1)
    cards.observe(sample("a", 90, at_ms=2), now_s=2, age_s=0)
    assert [("a", LOW, CRITICAL, "90% of 0.0 GiB used")] == told(cards, 2)
    assert [("a", CRITICAL, None, "no sample for more than 5 s")] == told(cards, 8)
    assert [] == told(cards, 9)


@pytest.mark.parametrize(
    ("bad", "age_s", "cause"),
    [
        (sample("a", lost=True, at_ms=1), 0, "the card is lost"),
        (sample("a", 101, at_ms=1), 0, "no memory reading: implausible: 101 bytes used of 100"),
        (sample("a", None, at_ms=1), 0, "no memory reading"),
        (sample("a", 10, at_ms=1), -60, "its sample is 60 s ahead of the brokers' time"),
    ],
)
def test_should_tell_why_a_level_is_not_known_any_more(bad: GPUMetrics, age_s: float, cause: str) -> None:
    cards = fleet(sample("a", 10))
    told(cards, 0)
    cards.observe(bad, now_s=1, age_s=age_s)
    assert [("a", LOW, None, cause)] == told(cards, 1)


def test_should_keep_the_last_hundred_samples_of_each_card_once() -> None:
    cards = Fleet()
    for second in range(120):
        for _ in range(2):  # the table is read more often than it is written
            cards.observe(sample("a", second % 100, at_ms=second * 1000), now_s=second, age_s=0)
    assert list(range(20_000, 120_000, 1000)) == [each.sampled_at_ms for each in cards.history("h:0")]
    assert () == cards.history("b")


def test_should_begin_the_history_anew_where_a_hosts_clock_was_set_back() -> None:
    cards = fleet(sample("a", 10, at_ms=9000))
    cards.observe(sample("a", 20, at_ms=1000), now_s=10, age_s=0)
    assert [1000] == [each.sampled_at_ms for each in cards.history("a")]


def test_should_not_let_an_instance_stand_for_its_card() -> None:
    cards = fleet(sample("a", 90), sample("MIG-1", 10))
    assert CRITICAL is cards.pressure_of(["h:0"], now_s=0)
    assert LOW is cards.pressure_of(["MIG-1"], now_s=0)


def using(*sizes: int | None, used: int = 92) -> GPUMetrics:
    """Return a sample of a card of 100 bytes whose processes hold so many each."""
    return replace(sample("a", used), processes=[GpuProcess(n, "p", size) for n, size in enumerate(sizes)])


@pytest.mark.parametrize(
    ("card", "pools", "expected"),
    [
        (using(), [], 92),
        (using(), [90], 2),
        (using(), [40, 40], 12),
        (using(), [95], 0),
        (using(90), [None], 0),
        (using(70, 20), [None], 20),
        (using(45, 44, 3), [None, None], 3),
        (using(45, 44, 3), [45, None], 3),
        (using(90, None), [None], None),
        (using(), [None], None),
        (sample("a", None), [90], None),
    ],
)
def test_should_tell_what_others_use_of_a_card(card: GPUMetrics, pools: list[int | None], expected: int | None) -> None:
    assert expected == foreign_bytes(card, pools)


def test_should_not_take_a_servers_own_pool_for_pressure() -> None:
    vllm = BackendSettings(name="v", kind="vllm", url="http://v", gpus=["a"])
    for processes, level in [((92,), None), ((80, 12), CRITICAL), ((), None)]:
        cards = Fleet(pools=pools_of([vllm]))
        cards.observe(using(*processes), now_s=0, age_s=0)
        assert level is cards.pressure_of(["a"], now_s=0, owns_memory=True)


def test_should_count_every_known_servers_pool_of_a_card() -> None:
    first = BackendSettings(name="1", kind="vllm", url="http://v", gpus=["h:0"], pool_bytes=45)
    second = BackendSettings(name="2", kind="llamacpp", url="http://v", gpus=["a"], pool_bytes=46)
    cards = Fleet(pools=pools_of([first, second, BackendSettings(name="3", url="http://v", gpus=["a"])]))
    cards.observe(sample("a", 92), now_s=0, age_s=0)
    assert None is cards.pressure_of(["a"], now_s=0, owns_memory=True, pool_bytes=45)
    assert None is cards.pressure_of(["a"], now_s=0, pool_bytes=46)
    assert CRITICAL is cards.pressure_of(["a"], now_s=0)


def test_should_hold_to_foreign_use_for_the_dwell() -> None:
    cards = Fleet(pools=[Pool(("a",), 80)])
    levels = []
    for second, used in enumerate([92, 84, 84, 84, 84, 84, 84, 84]):
        cards.observe(sample("a", used, at_ms=second * 1000), now_s=second, age_s=0)
        levels.append(cards.pressure_of(["a"], now_s=second, owns_memory=True))
    assert [False] * 6 + [True] * 2 == [level is None for level in levels]


def filling(per_s: float, *, start: float = 50, seconds: int = 30, pools: list[Pool] | None = None) -> Fleet:
    """Return a fleet with card a, of 10,000 bytes, that filled by so many per cent a second."""
    cards = Fleet(pools=pools or [])
    for second in range(seconds):
        used = round(100 * (start + per_s * second))
        cards.observe(sample("a", used, total=10_000, at_ms=second * 1000), now_s=second, age_s=0)
    return cards


def test_should_forecast_from_a_cards_history() -> None:
    found = filling(0.5).forecast("h:0", now_s=29)
    assert isinstance(found, Forecast)
    assert 0.945 == pytest.approx(found.at(60).used_ratio, abs=0.001)
    assert 11.0 == pytest.approx(found.seconds_to(0.70), abs=0.1)
    assert NoForecast("no fresh sample") == filling(0.5).forecast("a", now_s=60)
    assert NoForecast("only 5 samples of at least 20") == filling(0.5, seconds=5).forecast("a", now_s=4)


@pytest.mark.parametrize(
    ("per_s", "start", "pools", "may_place"),
    [
        (0.9, 50, [], False),  # full in 24 s
        (0.1, 50, [], True),  # full in seven minutes
        (0.0, 98, [], True),  # full by design, and stands still
        (-0.5, 98, [], True),
        (0.9, 50, [Pool(("a",), 7000)], False),  # others push in
        (0.9, 50, [Pool(("a",), None)], True),  # nobody can say whose it is: the server's own, then
    ],
)
def test_should_stop_placing_before_memory_runs_out(
    per_s: float, start: float, pools: list[Pool], may_place: bool
) -> None:
    limit = filling(per_s, start=start, pools=pools).limit_of(["a"], now_s=29, owns_memory=bool(pools))
    assert (may_place, False) == (limit.may_place, limit.is_out)
    assert ("memory is about to run out" if not may_place else None) == limit.reason


def test_should_place_again_only_a_while_after_memory_stopped_rising() -> None:
    cards = filling(0.9)
    allowed = []
    for second in range(30, 60):
        cards.observe(sample("a", 5000, total=10_000, at_ms=second * 1000), now_s=second, age_s=0)
        allowed.append(cards.limit_of(["a"], now_s=second).may_place)
    assert sorted(allowed) == allowed
    assert 9 == allowed.count(False)


@pytest.mark.parametrize(
    ("lost", "faults", "why"), [(True, [], "lost"), (False, ["xid_79", "reset_required"], "xid_79, reset_required")]
)
def test_should_take_a_broken_card_out_and_bring_it_back_slowly(lost: bool, faults: list[str], why: str) -> None:
    cards = fleet(sample("a", 10), sample("b", 10, index=1))
    assert Limit() == cards.limit_of(["a", "b"], now_s=0)
    cards.observe(replace(sample("a", at_ms=1, lost=lost), faults=faults), now_s=1, age_s=0)
    assert Limit(0.0, True, False, why, "a") == cards.limit_of(["a", "b"], now_s=1)
    assert Limit() == cards.limit_of(["b"], now_s=1)
    cards.observe(sample("a", 10, at_ms=2), now_s=2, age_s=0)
    assert Limit(0.25, reason="recovering", gpu="a") == cards.limit_of(["a", "b"], now_s=2)


def test_should_not_hold_a_backend_out_by_a_card_that_is_not_heard_of() -> None:
    cards = fleet(replace(sample("a", 10), faults=["xid_48"]))
    assert cards.limit_of(["a"], now_s=1).is_out
    assert not cards.limit_of(["a"], now_s=6).is_out
    for second in range(6, 900):
        cards.changes(now_s=second)
    assert Limit() == cards.limit_of(["a"], now_s=900)


def test_should_lower_a_backends_factor_by_its_hottest_card() -> None:
    cool = replace(sample("a", 10), temperature_c=50.0, temperature_limit_c=90.0)
    hot = replace(sample("b", 10, index=1), temperature_c=89.0, temperature_limit_c=90.0)
    assert Limit(0.8, reason="89 °C, limit 90 °C", gpu="b") == fleet(cool, hot).limit_of(["h:0", "h:1"], now_s=0)


@pytest.mark.parametrize(
    "lie",
    [
        {"memory_used_bytes": -1},
        {"memory_used_bytes": NAN},
        {"temperature_c": NAN},
        {"temperature_c": -273.0},
        {"utilization_ratio": 7.0},
        {"power_w": -1.0},
        {"sm_clock_mhz": 10**9},
        {"temperature_limit_c": 0.0},
    ],
)
def test_should_not_be_limited_by_a_lie(lie: dict[str, Any]) -> None:
    assert Limit() == fleet(replace(sample("a", 10), **lie)).limit_of(["a"], now_s=0)
