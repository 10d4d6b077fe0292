"""The log reader's own state: what intake waits for, and records that others wrote."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agents.history import History
from schemas.codec import encode
from schemas.progress import Started, WorkerSnapshot
from schemas.topics import Lane, RetryTier, TopicNames
from streams.redelivery import Start
from streams.settings import KafkaSettings
from streams.task import TaskKey

NAMES = TopicNames()
LOW, RETRY = NAMES.requests(Lane.LOW), NAMES.retry(RetryTier.FIVE_SECONDS)


def history() -> History:
    return History(KafkaSettings(), client_id="test", worker="me")


def record(topic: str, key: bytes | None, value: bytes | None, partition: int = 0, **headers: bytes | None) -> Any:
    rows = [(f"triage.{name}", text) for name, text in headers.items()]
    return SimpleNamespace(topic=topic, key=key, value=value, headers=rows, partition=partition, timestamp=1000)


async def test_who_waits_for_a_partition_that_was_given_back_is_let_go() -> None:
    past = history()
    past.follow(LOW, [4, 5])
    waiting = asyncio.create_task(past.caught_up(LOW, 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    past.follow(LOW, [4])
    await asyncio.wait_for(waiting, 1)
    assert not past.is_caught_up(LOW, 5)


def test_a_commit_that_comes_after_a_partition_was_given_back_does_not_follow_it_again() -> None:
    past = history()
    past.follow(LOW, [0])
    past.committed(LOW, 0, 5)
    past.follow(LOW, [])
    past.committed(LOW, 0, 6)
    past.observe(record(NAMES.results, b"a", b"{}", source=f"{LOW}/0/7".encode(), outcome=b"completed"))
    assert past.index.outcome_of("a", 0) is None


@pytest.mark.parametrize("null", [None, b"\xff"])
def test_a_results_record_that_others_wrote_badly_does_not_end_the_reader(null: bytes | None) -> None:
    past = history()
    past.index.commit(LOW, 0, 0)
    past.observe(record(NAMES.results, b"a", b"not json", source=null, outcome=b"completed"))
    past.observe(record(NAMES.results, b"a", b"{}", source=b"nonsense", outcome=b"completed"))
    past.observe(record(NAMES.progress, b"b", b"nonsense"))
    past.observe(record(NAMES.workers, b"w1", b"nonsense"))
    assert not past.is_finished(("a", 0))


def test_every_terminal_record_is_told_and_ends_what_was_started() -> None:
    past = history()
    told: list[TaskKey] = []
    past.on_outcome = told.append
    started = Started("b-1", "w1", "llama-1", [("a", LOW, 7, 1)], 900)
    past.observe(record(NAMES.progress, b"b-1", encode(started)))
    assert [Start("w1", 1, 900)] == past.starts.of(("a", 0))
    past.observe(record(NAMES.results, b"a", b"{}", source=f"{LOW}/0/7".encode(), outcome=b"cancelled"))
    assert ([("a", 0)], []) == (told, past.starts.of(("a", 0)))


def test_an_outcome_is_remembered_for_retries_whose_request_was_committed_long_ago() -> None:
    past = history()
    past.follow(RETRY, [0])
    past.committed(LOW, 0, 100)
    past.observe(record(NAMES.results, b"a", b"{}", source=f"{LOW}/0/7".encode(), outcome=b"completed"))
    assert past.is_finished(("a", 0))


def test_a_result_that_names_another_partition_number_says_nothing_of_either() -> None:
    past = history()
    past.observe(record(NAMES.results, b"a", b"{}", source=f"{LOW}/7/1".encode(), outcome=b"completed"))
    assert [False, False] == [past.is_finished(("a", partition)) for partition in (0, 7)]


def test_other_workers_are_known_by_their_snapshots_and_gateways_are_none() -> None:
    past = history()
    for name in ("w1", "gateway/g1", "me"):
        snapshot = WorkerSnapshot(name, "host", 1, 900, in_flight=["a"])
        past.observe(record(NAMES.workers, name.encode(), encode(snapshot)))
    assert (1, True) == (past.peers.live(1000), past.peers.runs("a", [], 1000))
    past.observe(record(NAMES.workers, b"w1", None))
    assert (0, False) == (past.peers.live(1000), past.peers.runs("a", [], 1000))


def test_a_partition_that_was_lost_and_got_again_is_looked_up_anew() -> None:
    past = history()
    past.follow(LOW, [0])
    past._begun.add((LOW, 0))
    past.follow(LOW, [])
    past.follow(LOW, [0])
    assert (LOW, 0) not in past._begun
