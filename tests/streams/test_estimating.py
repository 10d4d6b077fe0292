"""Positions and waits, from snapshots alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.progress import Gate, Pace
from schemas.topics import Lane
from streams.estimating import Ahead, Rank, after, ahead, estimate
from streams.workers import Rate, Workers
from tests.support.snapshots import busy_backend, row, worker

NOBODY = dict.fromkeys(Lane, 0)


def test_a_fetched_task_waits_for_those_of_its_lane_that_are_due_earlier() -> None:
    workers = Workers.of([worker(row(waiting=10))])
    found = ahead(workers, Lane.NORMAL, "default", Rank(9, 4), {**NOBODY, Lane.NORMAL: 10}, is_fetched=True)
    assert (Ahead(4, 4, 400), 5) == (found, found.position)


def test_one_still_in_kafka_waits_for_those_that_must_be_fetched_before_it() -> None:
    workers = Workers.of([worker(row(waiting=10))])
    waiting = {**NOBODY, Lane.NORMAL: 51}
    early, late = (Rank(50, due) for due in (0, 50))
    assert 40 == ahead(workers, Lane.NORMAL, "default", early, waiting, is_fetched=False).in_lane
    assert 50 == ahead(workers, Lane.NORMAL, "default", late, waiting, is_fetched=False).in_lane


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        (
            Lane.CRITICAL,
            1 + 0 + 1 + 0 + 0,
        ),  # of high half its own two tasks; of normal and low less than half a task
        (Lane.NORMAL, 1 + 8 + 4 + 1),  # four times its own two tasks of critical, twice of high, half of low
        (Lane.LOW, 1 + 16 + 8 + 4),
    ],
)
def test_of_other_lanes_as_much_starts_before_as_the_weights_give(lane: Lane, expected: int) -> None:
    workers = Workers.of([worker(*(row(lane=each, waiting=30) for each in Lane))])
    found = ahead(workers, lane, "default", Rank(1, 1), dict.fromkeys(Lane, 30), is_fetched=True)
    assert (1, expected, 100 * expected) == (found.in_lane, found.tasks, found.tokens)


def test_no_more_of_another_lane_starts_before_than_waits_there() -> None:
    workers = Workers.of([worker(row(lane=Lane.CRITICAL, waiting=3), row(lane=Lane.LOW, waiting=30))])
    waiting = {**NOBODY, Lane.CRITICAL: 3, Lane.LOW: 30}
    assert 10 + 3 == ahead(workers, Lane.LOW, "default", Rank(10, 10), waiting, is_fetched=True).tasks


def test_where_the_policy_is_strict_all_above_start_before_and_none_below() -> None:
    workers = Workers.of([worker(*(row(lane=each, waiting=30) for each in Lane), strict=True)])
    found = ahead(workers, Lane.NORMAL, "default", Rank(5, 5), dict.fromkeys(Lane, 30), is_fetched=True)
    assert 5 + 60 == found.tasks


def test_a_tenant_does_not_wait_for_the_whole_backlog_of_another() -> None:
    rows = [row(tenant="noisy", waiting=100), row(tenant="quiet", waiting=1)]
    workers, waiting = Workers.of([worker(*rows)]), {**NOBODY, Lane.NORMAL: 101}
    quiet = ahead(workers, Lane.NORMAL, "quiet", Rank(100, 100), waiting, is_fetched=True)
    noisy = ahead(workers, Lane.NORMAL, "noisy", Rank(99, 99), waiting, is_fetched=True)
    assert (1, 99) == (quiet.in_lane, noisy.in_lane)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Lane), st.sampled_from("abc"), st.integers(0, 300)), max_size=8),
    st.sampled_from(Lane),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.booleans(),
)
def test_a_position_is_never_beyond_what_waits(
    held: list[tuple[Lane, str, int]], lane: Lane, older: int, due: int, is_fetched: bool
) -> None:
    workers = Workers.of([worker(*(row(lane=each, tenant=t, waiting=n) for each, t, n in held))])
    waiting = {each: 1000 + workers.lanes[each].waiting for each in Lane}
    rank = Rank(older, due)
    found = ahead(workers, lane, "a", rank, waiting, is_fetched=is_fetched)
    assert 0 <= found.in_lane <= max(older, due)
    assert found.in_lane <= found.tasks <= sum(waiting.values())


HELD_UP = worker(row(waiting=50), paces={Lane.NORMAL: Pace(100, 10_000, 50.0)}, pace=Pace(400, 40_000, 50.0))


def test_a_lane_that_had_to_wait_goes_on_at_its_own_pace() -> None:
    found = estimate(Workers.of([HELD_UP]), Lane.NORMAL, Ahead(39, 160, 16_000))
    assert found is not None
    assert (20.0, 0.91) == (found.wait_s, found.confidence)  # 40 departures at 2 a second
    assert 10.0 < found.low_s < 20.0 < found.high_s < 30.0


def test_a_lane_that_has_not_goes_at_the_pace_of_all() -> None:
    found = estimate(Workers.of([HELD_UP]), Lane.HIGH, Ahead(3, 79, 8000))
    assert found is not None
    assert 10.0 == found.wait_s  # 80 departures at 8 a second


def test_several_workers_serve_at_the_sum_of_their_paces() -> None:
    workers = Workers.of([HELD_UP, replace(HELD_UP, worker="w2")])
    assert Rate(4.0, 400.0, 200) == workers.lanes[Lane.NORMAL].rate
    assert Rate(16.0, 1600.0, 800) == workers.rate


def test_before_anything_was_measured_slots_and_latencies_tell_and_little_is_trusted() -> None:
    found = estimate(Workers.of([worker(row())]), Lane.NORMAL, Ahead(15, 15, 1500))
    assert found is not None
    assert (2.0, 0.1) == (found.wait_s, found.confidence)  # 16 departures, 4 slots of 0.5 s
    assert (
        estimate(Workers.of([worker(row(), backends=[busy_backend(latency_ema_s=None)])]), Lane.NORMAL, Ahead(0, 0, 0))
        is None
    )


def test_with_a_free_slot_and_nothing_before_it_a_task_starts_at_once() -> None:
    found = estimate(Workers.of([worker(backends=[busy_backend(in_flight=1)])]), Lane.LOW, Ahead(0, 0, 0))
    assert found is not None
    assert (0.0, True) == (found.low_s, found.high_s <= 0.5)


@pytest.mark.parametrize("state", ["up", "paused", "draining", "lost"])
def test_nothing_is_guessed_while_no_backend_serves(state: str) -> None:
    changed: dict[str, Any] = {state: state != "up"}
    backend = busy_backend(**changed)
    assert estimate(Workers.of([replace(HELD_UP, backends=[backend])]), Lane.NORMAL, Ahead(1, 1, 100)) is None


def test_more_ahead_is_never_a_shorter_wait() -> None:
    waits = [estimate(Workers.of([HELD_UP]), Lane.NORMAL, Ahead(n, n, n)) for n in range(100)]
    found = [each.wait_s for each in waits if each is not None]
    assert sorted(found) == found
    assert len(found) == 100


def test_a_delay_comes_on_top() -> None:
    found = estimate(Workers.of([HELD_UP]), Lane.NORMAL, Ahead(39, 39, 3900))
    later = after(5.0, found)
    assert found is not None
    assert later is not None
    assert (found.wait_s + 5, found.high_s + 5) == (later.wait_s, later.high_s)
    assert after(5.0, None) is None


def test_a_window_is_no_reason_to_take_a_lane_for_held_up() -> None:
    workers = Workers.of([worker(row(Gate.WINDOW))])
    assert not workers.lanes[Lane.NORMAL].is_held_up
