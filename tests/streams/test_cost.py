"""Estimated tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.result import Usage
from streams.cost import ENOUGH_SAMPLES, Costs, cost_tokens, prompt_tokens, shares
from streams.task import Task
from tests.support.tasks import make_task


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([], 0),
        ([{"role": "user"}], 4),
        ([{"role": "user", "content": None}], 4),
        ([{"role": "user", "content": "x" * 40}], 14),
        ([{"role": "system", "content": "x" * 40}, {"role": "user", "content": "x" * 7}], 19),
        ([{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}], 14),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": 5}]}], 1028),
    ],
)
def test_four_characters_are_a_token_and_each_message_costs_four_more(
    messages: list[dict[str, Any]], tokens: int
) -> None:
    assert tokens == prompt_tokens(messages)
    assert tokens + 128 == cost_tokens(messages, 128)


@given(total=st.integers(0, 1_000_000), weights=st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
def test_should_share_out_all_tokens_by_weight(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert total == sum(parts)
    assert len(weights) == len(parts)
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        exact = total * weight / whole if whole else total / len(weights)
        assert abs(part - exact) <= 1


def test_should_share_ten_in_three_as_three_four_three() -> None:
    assert [3, 4, 3] == shares(10, [1, 1, 1])


def task(max_tokens: int = 1000, prompt: int = 100, **fields: Any) -> Task:
    made = make_task(cost_tokens=prompt + max_tokens, parameters={"max_tokens": max_tokens}, **fields)
    made.bound_tokens = made.cost_tokens
    return made


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt, completion, prompt + completion)


def test_should_count_the_longest_answer_until_twenty_are_known() -> None:
    costs = Costs()
    for _ in range(ENOUGH_SAMPLES - 1):
        costs.learn(task(), usage(100, 10))
    assert 1100 == costs.expected(task())
    costs.learn(task(), usage(100, 10))
    assert 110 == costs.expected(task())


def test_should_add_the_mean_deviation_to_the_mean() -> None:
    costs = Costs()
    for number in range(400):
        costs.learn(task(), usage(100, 40 if number % 2 else 60))
    assert 160 == pytest.approx(costs.expected(task()), abs=2)


def test_should_tell_classes_apart_by_agent_type_and_model() -> None:
    costs = Costs()
    for _ in range(ENOUGH_SAMPLES):
        costs.learn(task(agent_type="summary", model="tiny"), usage(100, 10))
    assert 110 == costs.expected(task(agent_type="summary", model="tiny"))
    assert 1100 == costs.expected(task(agent_type="summary", model="mid"))
    assert 1100 == costs.expected(task(agent_type="triage", model="tiny"))


def test_should_learn_how_many_characters_a_model_takes_for_a_token() -> None:
    costs = Costs()
    for _ in range(ENOUGH_SAMPLES):
        costs.learn(task(model="tiny"), usage(150, 10))
    assert 160 == costs.expected(task(model="tiny"))
    assert 1100 == costs.expected(task(model="mid"))


def test_should_follow_when_answers_become_longer() -> None:
    costs = Costs()
    for completion in [10] * 100 + [500] * 100:
        costs.learn(task(), usage(100, completion))
    assert 600 <= costs.expected(task()) <= 700


@given(
    taken=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=60),
    max_tokens=st.integers(1, 4096),
    prompt=st.integers(0, 4096),
)
def test_should_expect_no_longer_answer_than_is_allowed_and_never_nothing(
    taken: list[tuple[int, int]], max_tokens: int, prompt: int
) -> None:
    costs = Costs()
    for row in taken:
        costs.learn(task(), usage(*row))
    expected = costs.expected(task(max_tokens, prompt))
    assert 1 <= expected <= max(prompt * 8 + max_tokens, 1)


@given(st.lists(st.integers(0, 3000), min_size=ENOUGH_SAMPLES, max_size=60), st.integers(1, 4096), st.integers(1, 4096))
def test_should_expect_more_of_what_may_be_longer(taken: list[int], one: int, other: int) -> None:
    costs = Costs()
    for completion in taken:
        costs.learn(task(), usage(100, completion))
    costs_of = [costs.expected(task(max_tokens)) for max_tokens in sorted((one, other))]
    assert all(shorter <= longer for shorter, longer in pairwise(costs_of))


def test_should_remember_only_the_classes_used_last() -> None:
    costs = Costs(most_classes=8)
    for number in range(100):
        for _ in range(ENOUGH_SAMPLES):
            costs.learn(task(agent_type=f"type-{number}", model=f"model-{number}"), usage(100, 10))
    assert 16 == len(costs)
    assert 110 == costs.expected(task(agent_type="type-99", model="model-99"))
    assert 1100 == costs.expected(task(agent_type="type-0", model="model-0"))
