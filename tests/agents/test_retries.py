"""Retry records without Kafka: which is due, which is refused, who holds whom up."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from agents.intake import MOST_SPAN
from agents.retries import RetryIntake
from schemas.topics import Lane, RetryTier, TopicNames
from streams.settings import KafkaSettings
from tests.support.intakes import Read, Taker, clock, metrics
from tests.support.stack import request
from tests.support.tasks import EPOCH_MS

NAMES = TopicNames()
TOPIC = NAMES.retry(RetryTier.FIVE_SECONDS)
TP = TopicPartition(TOPIC, 0)


class Consumer:
    """Hands out what it was given, once; `committed` and `held` are what was asked of it."""

    def __init__(self, *records: Any) -> None:
        self.records = list(records)
        self.committed: dict[TopicPartition, int] = {}
        self.held: set[TopicPartition] = set()

    async def getmany(self, **_: object) -> dict[TopicPartition, list[Any]]:
        records, self.records = self.records, []
        return {TP: records} if records else {}

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.committed |= offsets

    def paused(self) -> set[TopicPartition]:
        return self.held

    def pause(self, tp: TopicPartition) -> None:
        self.held.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        self.held.discard(tp)


def record(
    offset: int, of: str = "high", *, at_ms: int = EPOCH_MS - 5000, headers: Mapping[str, str | None] = {}
) -> Any:
    rows: dict[str, str | None] = {
        "task_id": f"t-{offset}",
        "lane": of,
        "attempts": "3",
        "hops": "1",
        "not_before_ms": str(at_ms + 5000),
        "deadline_ms": str(EPOCH_MS + 600_000),
        "appended_ms": str(EPOCH_MS - 9000),
        "source": f"{NAMES.prefix}.requests.{of}/0/{offset}",
    }
    told = [(f"triage.{name}", text.encode()) for name, text in {**rows, **headers}.items() if text is not None]
    return SimpleNamespace(
        topic=TOPIC, partition=0, offset=offset, key=b"k", value=request(), headers=told, timestamp=at_ms
    )


async def intake_of(taker: Taker, past: Read | None = None) -> RetryIntake:
    intake = RetryIntake(
        KafkaSettings(),
        clock=clock(),
        receiver=taker,
        past=past or Read(),
        metrics=metrics(),
        client_id="test",
        session_s=6,
    )
    await intake.on_partitions_assigned([TP])
    return intake


async def test_a_due_record_becomes_its_task_again() -> None:
    taker = Taker()
    consumer: Any = Consumer(record(0))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    (task,) = taker.taken
    assert ("t-0", Lane.HIGH, 3, 1, EPOCH_MS + 600_000, 0) == (
        task.task_id,
        task.lane,
        task.attempts,
        task.hops,
        task.deadline_ms,
        task.source.offset,
    )
    assert (TOPIC, 0) == task.place


async def test_a_record_that_is_not_due_waits_and_those_behind_it_too() -> None:
    taker = Taker()
    consumer: Any = Consumer(record(0, at_ms=EPOCH_MS), record(1, at_ms=EPOCH_MS))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert [] == taker.taken


async def test_a_full_lane_holds_no_other_lanes_retries_up() -> None:
    taker = Taker(full={Lane.LOW: 2.0})
    consumer: Any = Consumer(record(0, "low"), *(record(offset, "critical") for offset in range(1, 6)))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert ["critical"] * 5 == [task.lane.value for task in taker.taken]


async def test_a_lane_that_stands_at_its_bound_still_takes_its_retries() -> None:
    taker = Taker(full={Lane.LOW: 1.0})
    consumer: Any = Consumer(record(0, "low"))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert 1 == len(taker.taken)


async def test_commits_are_in_offset_order_whatever_the_lanes_order() -> None:
    taker = Taker(full={Lane.LOW: 2.0})
    consumer: Any = Consumer(record(0, "low"), record(1, "critical"))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    taker.taken[0].deliveries[0].complete()  # type: ignore[attr-defined]
    await intake._commit(consumer)
    assert {} == consumer.committed
    taker.full = {}
    await intake._turn(consumer)
    taker.taken[1].deliveries[0].complete()  # type: ignore[attr-defined]
    await intake._commit(consumer)
    assert {TP: 2} == consumer.committed


async def test_a_finished_task_is_passed_over() -> None:
    taker = Taker()
    consumer: Any = Consumer(record(0))
    intake = await intake_of(taker, Read({("t-0", 0)}))
    await intake._turn(consumer)
    await intake._commit(consumer)
    assert ([], {TP: 1}) == (taker.taken, consumer.committed)


@pytest.mark.parametrize(
    "headers",
    [
        {"not_before_ms": "--5"},
        {"not_before_ms": "9" * 5000},
        {"appended_ms": "-1"},
        {"attempts": "9" * 25},
        {"deadline_ms": None},
        {"source": f"{NAMES.prefix}.requests.high/99/5"},
        {"source": "elsewhere/0/5"},
        {"source": None},
        {"task_id": None},
        {"task_id": "no spaces please"},
        {"lane": "low"},  # and not that of the source
    ],
)
async def test_what_is_no_retry_is_rejected_under_a_name_of_its_own_and_ends_nothing_else(
    headers: dict[str, str | None],
) -> None:
    taker = Taker()
    consumer: Any = Consumer(record(4, headers=headers), record(5))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert [(f"{TOPIC}.0.4", "this is no record of a retry")] == taker.rejected
    assert ["t-5"] == [task.task_id for task in taker.taken]


async def test_a_far_time_in_a_header_holds_its_partition_up_no_longer_than_the_topics_delay() -> None:
    taker = Taker()
    consumer: Any = Consumer(record(0, headers={"not_before_ms": str(EPOCH_MS + 10**9)}))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert 1 == len(taker.taken)


async def test_a_partition_of_which_enough_is_held_is_paused_until_it_is_less() -> None:
    taker = Taker()
    consumer: Any = Consumer(*(record(offset, at_ms=EPOCH_MS) for offset in range(100)))
    intake = await intake_of(taker)
    await intake._turn(consumer)
    assert {TP} == consumer.held
    intake._partitions[TP].queues[Lane.HIGH].clear()
    await intake._turn(consumer)
    assert set() == consumer.held


async def test_a_long_span_pauses_too() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    for start in range(0, MOST_SPAN, 64):
        consumer: Any = Consumer(*(record(offset) for offset in range(start, start + 64)))
        await intake._turn(consumer)
    assert ({TP}, MOST_SPAN) == (consumer.held, len(taker.taken))
