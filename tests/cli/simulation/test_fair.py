"""What each lane is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.simulation.fair import due_tokens, split
from schemas.topics import Lane

WEIGHTS = {Lane.CRITICAL: 8.0, Lane.HIGH: 4.0, Lane.NORMAL: 2.0, Lane.LOW: 1.0}
amounts = st.floats(0, 1e6)
wants = st.dictionaries(st.sampled_from(Lane), amounts, min_size=1)


def test_should_split_by_weight_and_hand_on_what_a_lane_leaves() -> None:
    assert {Lane.HIGH: 30, Lane.NORMAL: 70} == split(
        100, {Lane.HIGH: 30, Lane.NORMAL: 90}, {Lane.HIGH: 3, Lane.NORMAL: 1}
    )
    assert {Lane.HIGH: 80, Lane.NORMAL: 40} == split(120, {Lane.HIGH: 100, Lane.NORMAL: 100}, WEIGHTS)


@given(amounts, wants)
def test_should_give_nobody_more_than_wanted_and_leave_nothing_over_that_is_wanted(
    tokens: float, wanted: dict[Lane, float]
) -> None:
    given = split(tokens, wanted, WEIGHTS)
    assert all(0 <= given[lane] <= wanted[lane] + 1e-6 for lane in wanted)
    assert min(tokens, sum(wanted.values())) == pytest.approx(sum(given.values()), rel=1e-9, abs=1e-6)


@given(amounts, wants)
def test_should_give_a_lane_that_wants_more_no_less_by_weight_than_any_other(
    tokens: float, wanted: dict[Lane, float]
) -> None:
    given = split(tokens, wanted, WEIGHTS)
    served = {lane: given[lane] / WEIGHTS[lane] for lane in wanted}
    hungry = [lane for lane in wanted if given[lane] < wanted[lane] - 1e-6]
    assert all(served[lane] >= max(served.values()) - 1e-6 * (1 + max(served.values())) for lane in hungry)


def test_should_keep_what_waits_from_second_to_second_and_drop_what_went_away() -> None:
    offered = {Lane.HIGH: [60.0, 0.0, 30.0], Lane.NORMAL: [60.0, -20.0]}
    assert {Lane.HIGH: 90.0, Lane.NORMAL: 40.0} == due_tokens(offered, [30.0, 60.0, 60.0], WEIGHTS)
