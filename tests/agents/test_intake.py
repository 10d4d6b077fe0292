"""A lane's intake without Faust: what it takes, when it waits, and what wakes it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from faust.types import TP

from agents.delivery import REVOKE_DRAIN_S, Delivery
from agents.intake import MOST_SPAN, LaneIntake
from schemas.topics import Lane, TopicNames
from streams.watchdog import Watchdog
from tests.support.intakes import BareApp, Read, Taker, clock, metrics
from tests.support.stack import request
from tests.support.tasks import EPOCH_MS

TOPIC = TopicNames().requests(Lane.LOW)


async def intake_of(taker: Taker, app: BareApp | None = None, past: Read | None = None) -> LaneIntake:
    made: Any = app or BareApp()
    intake = LaneIntake(Lane.LOW, made, TOPIC, clock=clock(), receiver=taker, past=past or Read(), metrics=metrics())
    await intake.assigned({TP(TOPIC, 0), TP(TOPIC, 1)}, 1)
    return intake


class Event:
    """A record as Faust hands it over; `acked` once it was acknowledged."""

    def __init__(self, partition: int, offset: int, value: bytes = request(), generation: int = 1) -> None:
        self.acked = False
        self.message = SimpleNamespace(
            generation_id=generation,
            topic=TOPIC,
            partition=partition,
            offset=offset,
            key=None,
            value=value,
            headers=[],
            timestamp=EPOCH_MS / 1000,
        )

    def ack(self) -> None:
        self.acked = True


def complete(taker: Taker, offset: int) -> None:
    (task,) = [task for task in taker.taken if (task.source.partition, task.source.offset) == (0, offset)]
    (delivery,) = task.deliveries
    assert isinstance(delivery, Delivery)
    delivery.complete()


async def test_a_task_that_holds_its_partition_up_holds_no_other_up() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    for offset in range(MOST_SPAN + 20):  # what was fetched before it was full
        await asyncio.wait_for(intake._admit(Event(0, offset)), 1)
    assert (MOST_SPAN, True, False) == (len(taker.taken), intake.is_full(0), intake.is_full(1))
    await asyncio.wait_for(intake._admit(Event(1, 7)), 1)
    assert 7 == taker.taken[-1].source.offset
    complete(taker, 0)
    assert MOST_SPAN == taker.taken[-1].source.offset  # one more fits
    for offset in range(1, MOST_SPAN):
        complete(taker, offset)
    assert [*range(MOST_SPAN, MOST_SPAN + 20)] == [task.source.offset for task in taker.taken[-20:]]
    assert not intake.is_full(0)


async def test_the_watchdog_does_not_blame_a_lane_that_is_full() -> None:
    app, taker = BareApp(), Taker(full={Lane.LOW: 1.0})
    app.ends = {0: (1, 9), 1: (0, 5000)}
    intake = await intake_of(taker, app)
    blocked = asyncio.create_task(intake._admit(Event(0, 0)))
    await asyncio.sleep(0)
    watchdog = Watchdog(after_s=10.0)
    assert [None] * 20 == [watchdog.look(intake.reading({}), now_s=float(second)) for second in range(20)]
    blocked.cancel()


async def test_a_lane_whose_fetcher_is_dead_is_stuck_though_it_knows_of_nothing_to_read() -> None:
    app = BareApp()
    app.ends = {0: (5, 5), 1: (0, 0)}
    intake = await intake_of(Taker(), app)
    watchdog = Watchdog(after_s=10.0)
    asked = {TopicPartition(TOPIC, 0): 9, TopicPartition(TOPIC, 1): 0}
    found = [watchdog.look(intake.reading(asked), now_s=float(second)) for second in range(11)]
    assert [None] * 10 + [0] == found
    assert [None] * 20 == [watchdog.look(intake.reading({}), now_s=float(second)) for second in range(11, 31)]


async def test_should_fetch_nothing_more_of_a_lane_that_is_full_of_large_tasks() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    assert [False, False] == [intake.is_full(partition) for partition in (0, 1)]
    taker.heavy = {Lane.LOW}
    assert [True, True] == [intake.is_full(partition) for partition in (0, 1)]
    taker.heavy = {Lane.NORMAL}
    assert [False, False] == [intake.is_full(partition) for partition in (0, 1)]


async def test_it_goes_on_as_soon_as_fewer_tasks_wait() -> None:
    taker = Taker(full={Lane.LOW: 1.0})
    intake = await intake_of(taker)
    blocked = asyncio.create_task(intake._admit(Event(0, 0)))
    await asyncio.sleep(0)
    assert not blocked.done()
    taker.full = {}
    intake.wake()  # as the dispatch loop does after whatever it sent
    await asyncio.wait_for(blocked, 1)


async def test_what_was_fetched_and_not_taken_is_left_to_the_next_owner() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    events = [Event(0, offset) for offset in range(MOST_SPAN + 5)]
    for event in events:
        await intake._admit(event)
    taken = list(taker.taken)
    await intake.revoking({TP(TOPIC, 0)})
    for task in taken:
        for delivery in task.deliveries:
            assert isinstance(delivery, Delivery)
            delivery.complete()
    await intake._admit(Event(0, MOST_SPAN + 5))
    assert ([], [False] * len(events)) == (taker.taken, [event.acked for event in events])


async def test_a_worker_that_drains_lets_its_partitions_go_at_once() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    await intake.revoking({TP(TOPIC, 0)})
    await intake.assigned({TP(TOPIC, 0)}, 2)
    intake.close()
    await intake.revoking({TP(TOPIC, 0)})
    assert [REVOKE_DRAIN_S, 0.0] == taker.waits_s


async def test_acknowledgement_is_in_offset_order_and_of_this_generation_only() -> None:
    taker = Taker()
    intake = await intake_of(taker)
    events = [Event(0, offset) for offset in (3, 4, 5)]
    for event in events:
        await intake._admit(event)
    complete(taker, 4)
    assert [False] * 3 == [event.acked for event in events]
    complete(taker, 3)
    assert [True, True, False] == [event.acked for event in events]
    late = next(task for task in taker.taken if task.source.offset == 5)
    await intake.assigned({TP(TOPIC, 0)}, 2)
    for delivery in late.deliveries:
        assert isinstance(delivery, Delivery)
        delivery.complete()
    assert not events[2].acked


async def test_a_request_that_has_its_outcome_is_acknowledged_and_not_run() -> None:
    taker = Taker()
    intake = await intake_of(taker, past=Read({("done", 0)}))
    event = Event(0, 0, request(task_id="done"))
    await intake._admit(event)
    assert ([], True) == (taker.taken, event.acked)


async def test_a_long_row_of_ended_tasks_behind_a_slow_one_is_passed_over() -> None:
    """Each ends as it is taken, which takes the next: more of them than Python's stack is deep."""
    count, taker = 3 * MOST_SPAN, Taker()
    past = Read({(f"t-{offset}", 0) for offset in range(1, count)})
    intake = await intake_of(taker, past=past)
    events = [Event(0, offset, request(task_id=f"t-{offset}")) for offset in range(count)]
    for event in events:
        await intake._admit(event)
    complete(taker, 0)
    assert ([], count, False) == (taker.rejected, sum(event.acked for event in events), intake.is_full(0))
