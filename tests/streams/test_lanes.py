"""Whose turn it is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.topics import Lane
from streams.lanes import DeficitRoundRobin

WEIGHTS = {Lane.CRITICAL: 8, Lane.HIGH: 4, Lane.NORMAL: 2, Lane.LOW: 1}
lanes = st.sampled_from(Lane)


def serve(turns: DeficitRoundRobin, next_cost: dict[Lane, Callable[[], int]], *, tokens: int) -> Counter[Lane]:
    """Let lanes with an endless backlog send until so many tokens are sent; return the tokens of each."""
    heads = {lane: cost() for lane, cost in next_cost.items()}
    served: Counter[Lane] = Counter()
    while served.total() < tokens:
        lane = turns.pick(heads)
        served[lane] += heads[lane]
        turns.spend(lane, heads[lane], alone=len(heads) == 1)
        heads[lane] = next_cost[lane]()
    return served


def test_fifteen_turns_of_equal_cost_follow_the_weights() -> None:
    served = serve(DeficitRoundRobin(WEIGHTS), dict.fromkeys(Lane, lambda: 64), tokens=15 * 64)
    assert {lane: weight * 64 for lane, weight in WEIGHTS.items()} == dict(served)


SIZES = [(1, 20), (50, 600), (1, 2000), (2000, 2500)]


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(lanes, st.integers(1, 10), min_size=2),
    st.lists(st.sampled_from(SIZES), min_size=4, max_size=4),
    st.integers(),
)
def test_over_a_long_backlog_each_lane_gets_its_share_within_5_percent(
    weights: dict[Lane, int], sizes: list[tuple[int, int]], seed: int
) -> None:
    dice = random.Random(seed)

    def cost(lane: Lane) -> Callable[[], int]:
        low, high = sizes[list(Lane).index(lane)]
        return lambda: dice.randint(low, high)

    total = sum(weights.values())
    # Long enough for the least lane to send a hundred of the largest requests.
    largest = max(sizes[list(Lane).index(lane)][1] for lane in weights)
    served = serve(DeficitRoundRobin(weights), {lane: cost(lane) for lane in weights}, tokens=100 * largest * total)
    for lane, weight in weights.items():
        assert served[lane] == pytest.approx(served.total() * weight / total, rel=0.05)


def test_the_most_urgent_goes_first() -> None:
    assert Lane.CRITICAL is DeficitRoundRobin(WEIGHTS).pick(dict.fromkeys(reversed(Lane), 300))


def test_served_alone_a_lane_is_not_charged() -> None:
    turns = DeficitRoundRobin(WEIGHTS)
    for _ in range(1000):
        assert Lane.LOW is turns.pick({Lane.LOW: 500})
        turns.spend(Lane.LOW, 500, alone=True)
    served = serve(turns, dict.fromkeys((Lane.NORMAL, Lane.LOW), lambda: 64), tokens=64 * 30)
    assert {Lane.NORMAL: 64 * 20, Lane.LOW: 64 * 10} == dict(served)


def test_a_lane_without_work_gains_no_credit() -> None:
    turns = DeficitRoundRobin(WEIGHTS)
    serve(turns, dict.fromkeys((Lane.NORMAL, Lane.LOW), lambda: 64), tokens=640_000)
    turns.forget(Lane.HIGH)
    served = serve(turns, dict.fromkeys((Lane.HIGH, Lane.NORMAL, Lane.LOW), lambda: 64), tokens=64 * 70)
    assert 64 * 40 == pytest.approx(served[Lane.HIGH], abs=4 * 64)


def test_a_lane_that_runs_dry_loses_its_credit_and_keeps_its_debt() -> None:
    turns = DeficitRoundRobin({Lane.NORMAL: 1, Lane.LOW: 1})
    lane = turns.pick(dict.fromkeys(turns.weights, 64))
    turns.spend(lane, 64 * 11, alone=False)  # a batch: its head's cost was covered, the other ten are owed
    turns.forget(lane)
    served = serve(turns, dict.fromkeys(turns.weights, lambda: 64), tokens=64 * 10)
    assert 0 == served[lane]


def test_a_debt_is_paid_off_while_another_lane_is_served_alone() -> None:
    turns = DeficitRoundRobin({Lane.HIGH: 4, Lane.LOW: 1})
    assert Lane.HIGH is turns.pick({Lane.HIGH: 64, Lane.LOW: 64})
    turns.spend(Lane.HIGH, 4000, alone=False)
    turns.forget(Lane.HIGH)
    turns.spend(Lane.LOW, 1000, alone=True)
    served = serve(turns, dict.fromkeys(turns.weights, lambda: 64), tokens=64 * 20)
    assert 64 * 16 == pytest.approx(served[Lane.HIGH], abs=2 * 64)


def test_a_lane_that_was_served_far_beyond_its_share_is_not_shut_out_for_ever() -> None:
    turns = DeficitRoundRobin({Lane.CRITICAL: 1, Lane.LOW: 1})
    for _ in range(1000):
        turns.spend(Lane.CRITICAL, 100_000, alone=False)
    served = serve(turns, dict.fromkeys((Lane.CRITICAL, Lane.LOW), lambda: 64), tokens=100_000)
    assert served[Lane.CRITICAL] > 0


def test_one_huge_request_costs_no_long_loop() -> None:
    turns = DeficitRoundRobin({Lane.LOW: 1, Lane.NORMAL: 1})
    gains = 0

    class Counting(dict[Lane, float]):
        def __setitem__(self, lane: Lane, value: float) -> None:
            nonlocal gains
            gains += 1
            super().__setitem__(lane, value)

    turns._deficit = Counting(turns._deficit)
    turns.pick({Lane.LOW: 10**12, Lane.NORMAL: 10**12})
    assert gains < 10


@given(st.lists(st.tuples(st.dictionaries(lanes, st.integers(1, 10**6), min_size=1), st.booleans()), max_size=60))
def test_a_turn_goes_to_a_lane_that_asked_and_never_takes_long(asked: list[tuple[dict[Lane, int], bool]]) -> None:
    turns = DeficitRoundRobin(WEIGHTS)
    for costs, runs_dry in asked:
        lane = turns.pick(costs)
        assert lane in costs
        turns.spend(lane, costs[lane], alone=len(costs) == 1)
        if runs_dry:
            turns.forget(lane)


def test_should_pay_back_what_was_charged_and_not_taken() -> None:
    """Two lanes of one weight, each charged 100 a task; one takes 50 of it: corrected, it is served twice as many tasks."""
    lanes = DeficitRoundRobin({Lane.HIGH: 1, Lane.LOW: 1})
    served = Counter[Lane]()
    for _ in range(3000):
        lane = lanes.pick({Lane.HIGH: 100, Lane.LOW: 100})
        lanes.spend(lane, 100, alone=False)
        served[lane] += 1
        if lane is Lane.LOW:
            lanes.correct(lane, -50)
    assert 2 == pytest.approx(served[Lane.LOW] / served[Lane.HIGH], rel=0.05)
