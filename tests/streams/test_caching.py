"""The answer cache and the table's bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.cache import CacheEntry
from schemas.result import Output
from streams.caching import MOST_REMOVALS_PER_EVENT, AnswerCache, CacheIndex

keys = st.sampled_from("abcdef")


def entry(stored_at_ms: int = 0, expires_at_ms: int = 1000) -> CacheEntry:
    return CacheEntry(Output(f"at {stored_at_ms}"), None, None, stored_at_ms, expires_at_ms, "default")


def test_an_answer_is_good_until_it_expires() -> None:
    cache = AnswerCache(10, 1000)
    cache.put("a", entry(), 10)
    assert (entry(), None, None) == (cache.get("a", 999), cache.get("a", 1000), cache.get("b", 0))
    assert (1, 2) == (cache.hits, cache.misses)


def test_the_newest_answer_wins_whatever_order_they_arrive_in() -> None:
    cache = AnswerCache(10, 1000)
    cache.put("a", entry(5), 10)
    cache.put("a", entry(3), 20)
    assert (entry(5), 10) == (cache.get("a", 0), cache.size_bytes)
    cache.put("a", entry(7), 30)
    assert (entry(7), 30) == (cache.get("a", 0), cache.size_bytes)


def test_the_least_recently_used_goes_first() -> None:
    cache = AnswerCache(2, 1000)
    cache.put("a", entry(), 10)
    cache.put("b", entry(), 10)
    cache.get("a", 0)
    cache.put("c", entry(), 10)
    assert (None, 2) == (cache.get("b", 0), len(cache))


def test_an_answer_larger_than_the_cache_is_not_kept_and_zero_entries_turn_it_off() -> None:
    cache = AnswerCache(10, 100)
    cache.put("a", entry(), 101)
    off = AnswerCache(0, 100)
    off.put("a", entry(), 1)
    assert (0, 0, 0, 0) == (len(cache), cache.size_bytes, len(off), off.size_bytes)


def test_a_removed_answer_is_gone() -> None:
    cache = AnswerCache(10, 100)
    cache.put("a", entry(), 10)
    cache.remove("a")
    cache.remove("a")
    assert (None, 0) == (cache.get("a", 0), cache.size_bytes)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), keys, st.integers(0, 5), st.integers(0, 60)),
            st.tuples(st.just("get"), keys, st.integers(0, 2000), st.just(0)),
            st.tuples(st.just("remove"), keys, st.just(0), st.just(0)),
        )
    )
)
def test_the_bounds_hold_and_no_answer_is_old(done: list[tuple[str, str, int, int]]) -> None:
    cache = AnswerCache(3, 100)
    newest: dict[str, int] = {}
    for what, key, number, size in done:
        if what == "put":
            cache.put(key, entry(number, 1000), size)
            newest[key] = max(number, newest.get(key, 0))
        elif what == "remove":
            cache.remove(key)
            newest.pop(key, None)
        else:
            found = cache.get(key, number)
            assert found is None or number < 1000
            if found is not None and newest.get(key) is not None:
                assert found.stored_at_ms <= newest[key]
        assert len(cache) <= 3
        assert 0 <= cache.size_bytes <= 100
        assert sum(size for _, size in cache._entries.values()) == cache.size_bytes


# The table


def test_expired_entries_at_the_old_end_are_removed() -> None:
    index = CacheIndex(100, 10_000, 1)
    for key, expires_at_ms in (("a", 10), ("b", 20), ("c", 30)):
        index.put(0, key, expires_at_ms, 10)
    assert (["a", "b"], [], 1) == (index.removals(0, 20), index.removals(0, 20), index.count(0))


def test_the_oldest_beyond_the_partitions_share_of_the_bounds_are_removed() -> None:
    by_count, by_bytes = CacheIndex(4, 10_000, 2), CacheIndex(100, 60, 2)
    for index in (by_count, by_bytes):
        for key in "abc":
            index.put(0, key, 1000, 12)
            index.put(1, key, 1000, 1)
    assert (["a"], ["a"]) == (by_count.removals(0, 0), by_bytes.removals(0, 0))
    assert [] == by_bytes.removals(1, 0)


def test_an_entry_that_is_written_again_is_the_newest() -> None:
    index = CacheIndex(2, 10_000, 1)
    for key in "aba":
        index.put(0, key, 1000, 10)
    index.put(0, "c", 1000, 10)
    assert ["b"] == index.removals(0, 0)


def test_with_the_cache_turned_off_nothing_stays_in_the_table() -> None:
    index = CacheIndex(0, 10_000, 12)
    index.put(0, "a", 1000, 10)
    assert ["a"] == index.removals(0, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), keys | st.text(max_size=3), st.integers(0, 100), st.integers(1, 40)), max_size=80
    ),
    st.integers(1, 6),
    st.integers(0, 100),
)
def test_a_removal_after_each_write_keeps_every_partition_within_its_bounds(
    written: list[tuple[int, str, int, int]], most: int, now_ms: int
) -> None:
    index = CacheIndex(2 * most, 200, 2)
    held: dict[int, set[str]] = {0: set(), 1: set()}
    for partition, key, expires_at_ms, size in written:
        index.put(partition, key, expires_at_ms, size)
        held[partition].add(key)
        removed = index.removals(partition, now_ms)
        assert len(removed) == len(set(removed)) <= MOST_REMOVALS_PER_EVENT
        held[partition] -= set(removed)
        assert len(held[partition]) == index.count(partition) <= most
        assert index._bytes[partition] == sum(size for _, size in index._keys[partition].values()) <= 100


def test_no_event_removes_more_than_eight() -> None:
    index = CacheIndex(100, 10_000, 1)
    for number in range(20):
        index.put(0, str(number), 10, 10)
    assert [8, 8, 4, 0] == [len(index.removals(0, 10)) for _ in range(4)]
