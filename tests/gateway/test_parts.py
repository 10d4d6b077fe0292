"""Ids, ranks, a glance at a request, rates, kept records."""

from __future__ import annotations

import uuid
from bisect import bisect_left

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.answers import Kept
from gateway.ids import made_at_ms, new_task_id, uuid7_hex
from gateway.ports import Stored
from gateway.ranks import Ranks
from gateway.recent import Recent
from gateway.records import Glance, glance, metadata_of
from gateway.rendering import rfc3339
from schemas.codec import DecodeError, decode_request, encode
from schemas.ids import home, is_task_id
from schemas.result import Outcome
from schemas.topics import Lane
from streams.deadlines import LONGEST_MS, deadline_ms
from streams.errors import InvalidRequest
from streams.quantiles import quantile as percentile
from tests.gateway.fakes import NOW_MS, make_result


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_a_uuid7_is_one_and_tells_its_time(at_ms: int, random: bytes) -> None:
    found = uuid.UUID(uuid7_hex(at_ms, random))
    assert (7, uuid.RFC_4122, at_ms) == (found.version, found.variant, found.int >> 80)
    task_id = new_task_id("abcdef", at_ms, random)
    assert is_task_id(task_id)
    assert at_ms == made_at_ms(task_id)


@pytest.mark.parametrize("text", ["normal.1.2", "t", "abcd:018f", f"abcd:{uuid.UUID(int=0).hex}"])
def test_other_ids_tell_no_time(text: str) -> None:
    assert made_at_ms(text) is None


def test_ids_that_ask_the_same_share_a_partition() -> None:
    assert home(new_task_id("abcd", 1, b"x" * 10), 12) == home(new_task_id("abcd", 2, b"y" * 10), 12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=200))
def test_ranks_are_those_of_a_sorted_list(steps: list[tuple[bool, int]]) -> None:
    ranks, plain = Ranks[int](), list[int]()
    for is_new, member in steps:
        if is_new:
            ranks.add(member)
            plain.insert(bisect_left(plain, member), member)
        elif member in plain:
            ranks.remove(member)
            plain.remove(member)
        assert (len(plain), plain[0] if plain else None) == (len(ranks), ranks.first)
        assert bisect_left(plain, member) == ranks.before(member)
        assert plain[:3] == ranks.smallest(3)


def test_ranks_of_many_are_kept_in_chunks() -> None:
    ranks = Ranks[int]()
    for member in range(10_000):
        ranks.add(member * 7919 % 10_000)
    assert len(ranks._chunks) > 4
    assert list(range(3000)) == ranks.smallest(3000)
    assert [0, 1234, 9999] == [ranks.before(member) for member in (0, 1234, 9999)]
    for member in range(0, 10_000, 2):
        ranks.remove(member)
    assert (5000, 1, 617) == (len(ranks), ranks.first, ranks.before(1234))
    with pytest.raises(KeyError):
        ranks.remove(1234)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Glance()),
        (b"", Glance()),
        (b"[1]", Glance()),
        (b"\xff", Glance()),
        (b'{"task_id": 5, "tenant": "", "created_at_ms": true, "messages": 3}', Glance()),
        (b'{"task_id": "a b"}', Glance(has_deadline=True)),
        (b"{" + b" " * (1 << 20) + b"}", Glance()),
        (
            orjson.dumps(
                {"task_id": "t", "tenant": "w", "agent_type": "a", "batch_id": "b", "created_at_ms": 5, "messages": []}
            ),
            Glance("t", "w", "a", None, "b", 5, 256, has_deadline=True),
        ),
        (b'{"model": "auto"}', Glance(has_deadline=True)),
        (b'{"model": "tiny"}', Glance(model="tiny", has_deadline=True)),
        (
            b'{"messages": [{"role": "user", "content": "12345678"}], "parameters": {"max_tokens": 10}}',
            Glance(cost_tokens=16, has_deadline=True),
        ),
    ],
)
def test_glance(value: bytes | None, expected: Glance) -> None:
    assert expected == glance(value)


_TIMES = st.none() | st.integers(-1, 1 << 54) | st.integers(NOW_MS - 1, NOW_MS + LONGEST_MS + 1) | st.just("soon")


@given(_TIMES, _TIMES, st.sampled_from([None, 1, 2, "1", True]))
@example(NOW_MS, NOW_MS + LONGEST_MS, 1)
@example(NOW_MS, NOW_MS + LONGEST_MS + 1, 1)
def test_a_deadline_is_the_worker_s_and_there_is_none_where_a_worker_refuses(
    created_at_ms: object, deadline_at_ms: object, version: object
) -> None:
    fields = {"created_at_ms": created_at_ms, "deadline_at_ms": deadline_at_ms, "schema_version": version}
    value = orjson.dumps({"messages": [{"role": "user", "content": "x"}], **fields})
    try:
        expected = deadline_ms(decode_request(value), NOW_MS)
    except (DecodeError, InvalidRequest):
        expected = None
    assert expected == glance(value).deadline_ms(NOW_MS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, {}), (b"x", {}), (b'{"metadata": {"a": 1}}', {}), (b'{"metadata": {"a": "b"}}', {"a": "b"})],
)
def test_metadata(value: bytes | None, expected: dict[str, str]) -> None:
    assert expected == metadata_of(value)


@pytest.mark.parametrize(
    ("epoch_ms", "expected"),
    [(None, None), (0, "1970-01-01T00:00:00.000Z"), (NOW_MS + 7, "2026-11-23T07:46:40.007Z"), (1 << 53, None)],
)
def test_times(epoch_ms: int | None, expected: str | None) -> None:
    assert expected == rfc3339(epoch_ms)


def test_rates_forget_what_is_older_than_five_minutes() -> None:
    recent = Recent()
    for minute in range(10):
        recent.observe(Lane.HIGH, Outcome.COMPLETED, NOW_MS + minute * 60_000, encode(make_result("t")))
    now_ms = NOW_MS + 9 * 60_000
    assert (6, 2, 2, 0) == (
        len(recent.samples(now_ms)),
        recent.per_minute(now_ms),
        recent.per_minute(now_ms, Lane.HIGH),
        recent.per_minute(now_ms, Lane.LOW),
    )
    assert [4.0] * 6 == [each.inference_ms for each in recent.samples(now_ms)]


def test_a_value_that_cannot_be_read_still_counts() -> None:
    recent = Recent()
    for value in (None, b"[]", b"{", b'{"timing": 3, "model": "m"}'):
        recent.observe(Lane.HIGH, Outcome.FAILED, NOW_MS, value)
    assert (4, {}) == (recent.per_minute(NOW_MS), recent.models)


def test_percentile() -> None:
    assert (None, 3.0, 5.0) == (percentile([], 0.5), percentile([5, 1, 3], 0.5), percentile([5, 1, 3], 0.99))


def test_kept_records_are_bounded_by_count_and_by_bytes() -> None:
    kept = Kept(most=3, most_bytes=100)
    for offset in range(4):
        kept.put(("r", 0, offset), Stored(b"x" * 10, ()))
    assert [False, True, True, True] == [kept.get(("r", 0, offset)) is not None for offset in range(4)]
    kept.put(("r", 0, 9), Stored(b"x" * 50, ()))
    assert kept.get(("r", 0, 9)) is None
    for offset in range(4, 9):
        kept.put(("r", 0, offset), Stored(b"x" * 25, ()))
    assert 3 == len(kept._records)
