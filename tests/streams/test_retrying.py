"""Tries in place: how many, how soon, how much of the traffic."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import RetryTier
from streams.errors import BackendOverloaded, BackendRejected, BackendTimeout, CapacityError, ServingError
from streams.retrying import InPlaceRetries, RetryBudget, next_tier


def retries(*, enabled: bool = True, ratio: float = 0.1, seed: int = 0) -> InPlaceRetries:
    return InPlaceRetries(enabled, RetryBudget(ratio), random.Random(seed))


@pytest.mark.parametrize(("attempts", "ceiling_s"), [(1, 0.2), (2, 0.4), (3, 0.8), (99, 10.0)])
def test_the_wait_is_drawn_from_below_a_ceiling_that_doubles_up_to_10_s(attempts: int, ceiling_s: float) -> None:
    waits = [retries(seed=seed).delay_s(BackendTimeout(), tries_left=1, attempts=attempts) for seed in range(200)]
    found = [wait for wait in waits if wait is not None]
    assert 200 == len(found)
    assert 0 <= min(found) < ceiling_s / 4
    assert 3 * ceiling_s / 4 < max(found) <= ceiling_s


def test_it_is_never_sooner_than_the_server_asked() -> None:
    assert 5.0 == retries().delay_s(BackendOverloaded(retry_after_s=5), tries_left=1, attempts=1)


def test_a_longer_pause_than_five_seconds_is_not_waited_for_in_place() -> None:
    assert retries().delay_s(BackendOverloaded(retry_after_s=5.1), tries_left=1, attempts=1) is None


@pytest.mark.parametrize(
    ("error", "tries_left", "enabled", "ratio"),
    [
        (BackendRejected(), 2, True, 0.1),
        (ServingError(), 2, True, 0.1),
        (BackendTimeout(), 0, True, 0.1),
        (BackendTimeout(), 2, False, 0.1),
        (BackendTimeout(), 2, True, 0.0),
    ],
    ids=["final", "unknown", "no tries left", "turned off", "no budget"],
)
def test_there_is_no_further_try(error: ServingError, tries_left: int, enabled: bool, ratio: float) -> None:
    assert retries(enabled=enabled, ratio=ratio).delay_s(error, tries_left=tries_left, attempts=1) is None


def test_what_cannot_be_tried_again_costs_nothing_of_the_budget() -> None:
    policy = retries()
    for _ in range(100):
        policy.delay_s(BackendRejected(), tries_left=2, attempts=1)
    assert policy.delay_s(CapacityError(), tries_left=2, attempts=1) is not None


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=400))
def test_retries_are_at_most_ten_and_their_share_of_the_calls(ratio: float, calls: list[bool]) -> None:
    budget = RetryBudget(ratio)
    taken = 0
    for is_retry in calls:
        if is_retry:
            taken += budget.take()
        else:
            budget.earn()
    assert taken <= 10 + ratio * len(calls) + 1e-6


def test_a_long_quiet_time_saves_up_no_more_than_a_hundred() -> None:
    budget = RetryBudget(1.0)
    for _ in range(10_000):
        budget.earn()
    assert 100 == sum(budget.take() for _ in range(1000))


TIERS = list(RetryTier)


@pytest.mark.parametrize(
    ("hops", "asked_s", "left_s", "expected"),
    [
        (0, 0.0, 3600.0, RetryTier.FIVE_SECONDS),
        (1, 0.0, 3600.0, RetryTier.SIXTY_SECONDS),
        (2, 0.0, 3600.0, RetryTier.TEN_MINUTES),
        (3, 0.0, 3600.0, None),
        (0, 5.0, 3600.0, RetryTier.FIVE_SECONDS),
        (0, 5.1, 3600.0, RetryTier.SIXTY_SECONDS),
        (0, 7200.0, 3600.0, RetryTier.TEN_MINUTES),  # the longest there is
        (0, 0.0, 5.0, None),  # it would begin at the deadline
        (0, 0.0, 5.1, RetryTier.FIVE_SECONDS),
        (1, 0.0, 60.0, None),
    ],
)
def test_the_next_retry_topic(hops: int, asked_s: float, left_s: float, expected: RetryTier | None) -> None:
    assert expected == next_tier(TIERS, hops, asked_s=asked_s, left_s=left_s)


@given(st.integers(0, 3), st.floats(0, 10_000), st.floats(0, 300_000), st.integers(0, 3))
def test_retry_topics_come_to_an_end_and_none_begins_after_the_deadline(
    hops: int, asked_s: float, left_s: float, count: int
) -> None:
    tiers = TIERS[:count]
    taken = 0
    while (tier := next_tier(tiers, hops, asked_s=asked_s, left_s=left_s)) is not None:
        assert tier.delay_ms < left_s * 1000
        hops = tiers.index(tier) + 1
        taken += 1
    assert taken <= len(tiers)


def error_types() -> list[type[ServingError]]:
    found, left = [], [ServingError]
    while left:
        each = left.pop()
        found.append(each)
        left += each.__subclasses__()
    return [each for each in found if each.__module__ == "streams.errors"]


def test_what_is_retried_is_this_and_nothing_else() -> None:
    """Of what may pass by itself: no room, no answer, no connection. A refusal, an answer not understood, a deadline stay so."""
    expected = {"CapacityError", "BackendUnavailable", "BackendFailed", "BackendOverloaded", "BackendTimeout"}
    assert expected == {each.__name__ for each in error_types() if each.retriable}
