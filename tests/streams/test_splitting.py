"""A batch that fails as a whole: who is to blame, who is not, and at what price."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.result import ErrorType, Output, Usage
from streams.errors import (
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    InternalError,
    Poisonous,
)
from streams.ports import Answer, Reply
from streams.splitting import Splitting, is_split

FINE = Answer(Output("fine", "stop"), Usage(1, 1, 2))
ITEMS = st.integers(2, 40)
SPLIT = [BackendRejected, BackendProtocolError, BackendFailed]
Ask = Callable[[Sequence[int]], BackendError | None]


def run(count: int, ask: Ask, order: Sequence[int] = ()) -> tuple[dict[int, Reply], int]:
    """Return each item's end and the number of calls; `ask` says how a call fails, `order` which open call ends next."""
    splitting = Splitting(range(count))
    open_calls = deque([list(range(count))])
    ends: dict[int, Reply] = {}
    calls = 0
    picks = iter(order)
    while open_calls:
        open_calls.rotate(next(picks, 0))
        part = open_calls.popleft()
        calls += 1
        error = ask(part)
        step = splitting.failed(part, error) if error else splitting.replied([(item, FINE) for item in part])
        for item, reply in step.ends:
            assert item not in ends, "an item ended twice"
            ends[item] = reply
        open_calls += step.calls
    return ends, calls


def fails_with(error: type[BackendError], bad: set[int]) -> Ask:
    return lambda part: error() if bad & set(part) else None


@given(count=ITEMS, data=st.data(), order=st.lists(st.integers(0, 5), max_size=60), kind=st.sampled_from(SPLIT))
def test_should_blame_the_one_bad_item_and_answer_all_others(
    count: int, data: st.DataObject, order: list[int], kind: type[BackendError]
) -> None:
    bad = data.draw(st.integers(0, count - 1))
    ends, calls = run(count, fails_with(kind, {bad}), order)
    assert set(range(count)) == set(ends)
    assert [bad] == [item for item, reply in ends.items() if reply is not FINE]
    blamed = ends[bad]
    assert isinstance(blamed, Poisonous)
    assert ErrorType.POISON is blamed.type
    assert calls <= 1 + 2 * math.ceil(math.log2(count))


@given(
    count=ITEMS,
    data=st.data(),
    order=st.lists(st.integers(0, 5), max_size=60),
    kind=st.sampled_from([BackendRejected, BackendProtocolError]),
)
def test_should_find_several_bad_items_and_harm_none_of_the_others(
    count: int, data: st.DataObject, order: list[int], kind: type[BackendError]
) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    ends, calls = run(count, fails_with(kind, bad), order)
    assert set(range(count)) == set(ends)
    assert bad == {item for item, reply in ends.items() if isinstance(reply, Poisonous)}
    assert set(range(count)) - bad == {item for item, reply in ends.items() if reply is FINE}
    assert calls - 1 <= min(len(bad) * 2 * math.ceil(math.log2(count)), 2 * count - 2)


@given(count=ITEMS, kind=st.sampled_from(SPLIT), order=st.lists(st.integers(0, 5), max_size=60))
def test_should_blame_the_server_when_nothing_of_a_batch_was_answered(
    count: int, kind: type[BackendError], order: list[int]
) -> None:
    ends, calls = run(count, lambda _part: kind(), order)
    assert {kind} == {type(reply) for reply in ends.values()}
    assert set(range(count)) == set(ends)
    assert calls <= 2 * count - 1
    if kind is BackendFailed:
        assert calls <= 1 + 2 * math.ceil(math.log2(count))


@given(count=ITEMS, bad=st.sets(st.integers(0, 39), min_size=2), order=st.lists(st.integers(0, 5), max_size=60))
def test_should_let_the_mates_of_several_that_break_the_server_be_tried_again(
    count: int, bad: set[int], order: list[int]
) -> None:
    bad = {item % count for item in bad}
    ends, calls = run(count, fails_with(BackendFailed, bad), order)
    assert set(range(count)) == set(ends)
    assert not [item for item, reply in ends.items() if isinstance(reply, Poisonous) and item not in bad]
    assert all(reply is FINE or reply.retriable for item, reply in ends.items() if item not in bad)  # type: ignore[union-attr]
    assert calls <= 1 + 2 * math.ceil(math.log2(count))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BackendFailed(), True),
        (BackendRejected(), True),
        (BackendProtocolError(), True),
        (BackendOverloaded(), False),
        (BackendUnavailable(), False),
        (BackendTimeout(), False),
        (InternalError(), False),
    ],
)
def test_should_split_only_what_another_part_may_not_meet(error: BackendError, expected: bool) -> None:
    assert expected is is_split(error)
    ends, calls = run(8, lambda part: error if len(part) == 8 else None)
    assert (expected, 3 if expected else 1) == ([*ends.values()] == [FINE] * 8, calls)


def test_should_let_no_one_wait_for_a_part_that_was_given_up() -> None:
    splitting = Splitting("ab")
    assert [["a"], ["b"]] == splitting.failed("ab", BackendRejected()).calls
    assert [] == splitting.failed("a", BackendRejected("too long")).ends  # held until its mate is answered
    (end,) = splitting.replied([]).ends
    assert ("a", BackendRejected) == (end[0], type(end[1]))


def test_should_blame_an_item_at_once_when_a_mate_was_answered_before() -> None:
    splitting = Splitting("ab")
    splitting.failed("ab", BackendRejected())
    splitting.replied([("b", FINE)])
    ((item, reply),) = splitting.failed("a", BackendRejected("HTTP 400")).ends
    assert isinstance(reply, Poisonous)
    assert ("a", "fails alone after its batch was split: HTTP 400") == (item, reply.detail)


def test_should_count_the_calls_of_every_place_alike() -> None:
    calls = Counter(run(16, fails_with(BackendRejected, {bad}))[1] for bad in range(16))
    assert Counter({9: 16}) == calls
