"""Task ids, and the partition each is looked for on."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import home, is_task_id, key_of, made_id, murmur2, partition_of, replay_id
from schemas.topics import Lane

task_ids = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
counts = st.integers(1, 512)


@given(st.binary(max_size=200))
def test_the_hash_is_kafkas(data: bytes) -> None:
    assert reference(data) & 0xFFFFFFFF == murmur2(data)


@given(st.binary(max_size=64), counts)
def test_a_keyed_record_is_placed_as_kafkas_default_partitioner_does(key: bytes, partitions: int) -> None:
    assert (reference(key) & 0x7FFFFFFF) % partitions == partition_of(key, partitions)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("ward7-018f", True),
        ("a", True),
        ("x" * 128, True),
        ("0a1b:0190f6c6d1e27000a0b1c2d3e4f50617", True),
        ("", False),
        ("x" * 129, False),
        ("with space", False),
        ("umlaut-ä", False),
        ("trailing\n", False),
        (7, False),
        (None, False),
    ],
)
def test_what_may_be_an_id(text: object, is_one: bool) -> None:
    assert is_one == is_task_id(text)


@given(st.sampled_from(Lane), st.data(), counts, st.integers(0, 2**63 - 1))
def test_a_made_id_names_its_partition(lane: Lane, data: st.DataObject, partitions: int, offset: int) -> None:
    partition = data.draw(st.integers(0, partitions - 1))
    made = made_id(lane, partition, offset)
    assert is_task_id(made)
    assert partition == home(made, partitions)


@given(task_ids, st.data(), counts, st.integers(0, 2**63 - 1))
def test_a_replayed_id_names_its_partition_is_valid_and_is_the_same_each_time(
    task_id: str, data: st.DataObject, partitions: int, offset: int
) -> None:
    partition = data.draw(st.integers(0, partitions - 1))
    replayed = replay_id(task_id, partition, offset)
    assert is_task_id(replayed)
    assert replayed == replay_id(task_id, partition, offset)
    assert replayed.startswith(task_id[:96])
    assert partition == home(replayed, partitions)


def test_replaying_a_replay_names_the_newest_place() -> None:
    again = replay_id(replay_id("ward7-1", 2, 10), 3, 11)
    assert "ward7-1:replay.2.10:replay.3.11" == again
    assert 3 == home(again, 12)


@given(task_ids, counts)
def test_any_id_has_a_home_among_the_partitions(task_id: str, partitions: int) -> None:
    assert 0 <= home(task_id, partitions) < partitions


@given(st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True), counts)
def test_an_id_is_at_home_where_a_producer_that_keys_by_it_puts_it(task_id: str, partitions: int) -> None:
    assert partition_of(task_id.encode(), partitions) == home(task_id, partitions)


@given(st.from_regex(r"[a-f0-9]{4}", fullmatch=True), st.from_regex(r"[a-f0-9]{32}", fullmatch=True), counts)
def test_ids_that_share_the_part_before_the_colon_share_their_home(prefix: str, rest: str, partitions: int) -> None:
    assert prefix.encode() == key_of(f"{prefix}:{rest}")
    assert home(prefix, partitions) == home(f"{prefix}:{rest}", partitions)


@pytest.mark.parametrize(
    ("task_id", "key"), [("ward7-018f", b"ward7-018f"), ("0a1b:rest", b"0a1b"), ("a:b:c", b"a"), (":b", b"")]
)
def test_the_key_is_the_part_before_the_first_colon(task_id: str, key: bytes) -> None:
    assert key == key_of(task_id)


@pytest.mark.parametrize("task_id", ["high.12.5", "high.3", "urgent.3.5", "high.3.5.7", "xhigh.3.5", "high.-1.5"])
def test_what_is_not_a_made_id_of_these_partitions_is_hashed(task_id: str) -> None:
    assert partition_of(task_id.encode(), 12) == home(task_id, 12)
