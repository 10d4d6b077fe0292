"""The follower of the results log, without a log: what its intake is told, and what it makes of records."""

from __future__ import annotations

import asyncio
from typing import Any

from agents.finished import FinishedFollower
from schemas.result import Outcome
from schemas.topics import Lane
from streams.settings import KafkaSettings


def follower() -> FinishedFollower:
    return FinishedFollower(KafkaSettings(), client_id="test")


async def test_who_waits_for_a_partition_that_goes_to_another_worker_is_not_left_waiting() -> None:
    finished = follower()
    finished.follow(Lane.LOW, [4, 5])
    waiting = asyncio.create_task(finished.caught_up(Lane.LOW, 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    finished.follow(Lane.LOW, [4])
    await asyncio.wait_for(waiting, 1)
    assert not finished.is_caught_up(Lane.LOW, 5)


def test_a_record_of_another_producer_that_makes_no_sense_is_passed_over() -> None:
    finished = follower()
    null: Any = None
    finished.index.commit("triage.requests.low", 0, 0)
    finished.observe(b"a", b"not json", [("triage.source", null), ("triage.outcome", b"completed")], 0)
    finished.observe(b"a", b"{}", [("triage.source", b"nonsense"), ("triage.outcome", b"completed")], 0)
    assert not finished.is_finished("a", 0)
    headers = [("triage.source", b"triage.requests.low/0/3"), ("triage.outcome", b"cancelled")]
    finished.observe(b"a", b"", headers, 0)
    assert finished.index.outcome_of("a", 0) is Outcome.CANCELLED
