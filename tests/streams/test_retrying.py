"""Tries in place: how many, how soon, how much of the traffic."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import BackendOverloaded, BackendRejected, BackendTimeout, CapacityError, ServingError
from streams.retrying import InPlaceRetries, RetryBudget


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
    assert 30.0 == retries().delay_s(BackendOverloaded(retry_after_s=30), tries_left=1, attempts=1)


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
