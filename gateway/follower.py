"""Follows the logs without a group and feeds the view: commits nothing, causes no rebalance.

First what is there is read: lanes, retries and results, then progress from the oldest task that has no outcome. From then on the
view is live.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from gateway.answers import Kept
from gateway.ends import Ends
from gateway.fleet import Fleet
from gateway.ports import Stored, Unavailable
from gateway.starts import LOOK_BACK_MS, Followed, starts
from gateway.tasks import REQUESTS_KEPT_MS, RESULTS_KEPT_MS
from gateway.view import View
from gateway.waiters import Waiters
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import BROKER_FAILURES, BrokersUnreachable, consumer_options
from wire.logs import get_logger
from wire.reading import stop_consumer

_POLL_MS = 100
_RETRY_S = 0.5
_REACH_S = 2.0
# A fetch names every partition and costs a millisecond of CPU; one for each record that comes would fill the loop.
_GATHER_S = 0.01
# Fetches are small, since all of a fetch is in memory at once; a larger record is sent all the same.
_FETCH_BYTES = 512 << 10
# A fetch is answered as soon as there is something; a quiet gateway need not ask more often.
_FETCH_WAIT_MS = 500
# Rows for one transaction: many while the past is read, few when calls wait for the same loop.
_ROWS_PAST, _ROWS_LIVE, _FLUSH_S = 30_000, 200, 0.2
# Looking through a million unfinished tasks takes a tenth of a second.
_FORGET_S, _SWEEP_S = 600.0, 1.0
# After a cleanup, rows looked at in one go: 10 ms.
_FORGOTTEN_ROWS = 10_000

log = get_logger(__name__)


class Follower:
    """Feeds `view`, `fleet`, `waiters` and `kept` in one loop, their only writer. `caught_up` is set when the past was read."""

    def __init__(
        self,
        kafka: KafkaSettings,
        view: View,
        fleet: Fleet,
        waiters: Waiters,
        kept: Kept,
        ends: Ends,
        *,
        client_id: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._kafka, self._client_id, self._now_ms = kafka, client_id, now_ms
        self._view, self._fleet, self._waiters, self._kept, self._ends = view, fleet, waiters, kept, ends
        self.followed = Followed.of(kafka)
        self.caught_up = asyncio.Event()
        self._positions: dict[TopicPartition, int] = {}
        self._reaching: list[tuple[Mapping[TopicPartition, int], asyncio.Future[None]]] = []
        self._hurry = asyncio.Event()
        self._flushed_s = self._forgot_s = self._swept_s = monotonic_s()
        self._feeds = self._routes()

    async def run(self) -> None:
        """Follow until cancelled; a broker's failure is waited out, and the reading goes on where it was."""
        while True:
            options = consumer_options(self._kafka, client_id=f"{self._client_id}-view")
            ours = {"max_partition_fetch_bytes": _FETCH_BYTES, "fetch_max_wait_ms": _FETCH_WAIT_MS}
            consumer = AIOKafkaConsumer(**options | ours)
            try:
                await consumer.start()
                if not self.caught_up.is_set():
                    with _collecting_later():
                        await self._catch_up(consumer)
                    self.caught_up.set()
                self._seek(consumer)
                while True:
                    await self._pump(consumer)
                    await self._gather()
            except (*BROKER_FAILURES, BrokersUnreachable, Unavailable) as error:
                log.warning("logs not readable; trying again", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            finally:
                await stop_consumer(consumer)

    # How far the view is

    async def reach(self, tps: Sequence[TopicPartition]) -> None:
        """Return when the view has read what these partitions hold now. Raises: Unavailable when it takes more than 2 s."""
        read = {tp: self._positions.get(tp, 0) for tp in tps}
        ends = await self._ends.of(tps)
        if any(ends[tp] < offset for tp, offset in read.items()):
            raise Unavailable("a broker answered that leads no more")
        if not await self.reach_offsets(ends, _REACH_S):
            raise Unavailable("the view is behind the logs")

    async def reach_offsets(self, ends: Mapping[TopicPartition, int], timeout_s: float) -> bool:
        """Return whether the view has read up to these offsets within `timeout_s`."""
        ahead = {tp: end for tp, end in ends.items() if self._positions.get(tp, 0) < end}
        if not ahead:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (ahead, future)
        self._reaching.append(waiting)
        self._hurry.set()
        try:
            await asyncio.wait({future}, timeout=timeout_s)
            return future.done()
        finally:
            self._reaching.remove(waiting)

    # Reading the past

    async def _catch_up(self, consumer: AIOKafkaConsumer) -> None:
        began_s = monotonic_s()
        self._view.is_live = False
        self._positions = positions = await self._first_offsets()
        for tp, lane in self.followed.lanes.items():
            self._view.begins(lane, tp.partition, self._positions[tp])
        # What is to be forgotten is known before the rows that it is about.
        self._positions = {self.followed.state: positions[self.followed.state]}
        self._seek(consumer)
        await self._read_to(consumer, await self._ends.of(self._positions))
        self._positions = positions | self._positions
        self._seek(consumer)
        await self._read_to(consumer, await self._ends.of(self._positions))
        # Starts matter only of tasks that have no outcome; and who they are is known now.
        oldest_ms, recent_ms = self._view.oldest_unfinished_ms(), self._now_ms() - LOOK_BACK_MS
        progress = await self._ends.at_time(self.followed.progress, min(oldest_ms or recent_ms, recent_ms))
        self._positions |= progress
        self._seek(consumer)
        await self._read_to(consumer, await self._ends.of(progress))
        self._flush()
        self._view.is_live = True
        log.info("view has caught up", took_s=round(monotonic_s() - began_s, 2))

    async def _first_offsets(self) -> dict[TopicPartition, int]:
        stored = self._view.finished.offsets()
        ends = await self._ends.of(self.followed.results)
        if any(stored.get(tp.partition, 0) > end for tp, end in ends.items()):
            log.warning("the results log is another one than the view's file was made from; reading it anew")
            self._view.finished.clear()
            stored = {}
        return await starts(self._kafka, self.followed, self._ends, stored, self._now_ms(), client_id=self._client_id)

    async def _read_to(self, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> None:
        while left := {tp: end for tp, end in ends.items() if self._positions[tp] < end}:
            await self._pump(consumer)
            await self._refresh(consumer, left)

    def _seek(self, consumer: AIOKafkaConsumer) -> None:
        consumer.assign(list(self._positions))
        for tp, offset in self._positions.items():
            consumer.seek(tp, offset)

    # Feeding

    async def _pump(self, consumer: AIOKafkaConsumer) -> None:
        """Feed what has come, store it, and wake who waited for it."""
        for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
            self._feeds[tp](tp, records)
            self._positions[tp] = records[-1].offset + 1
        self._flush_when_due()
        self._forget_when_due()
        for ends, future in list(self._reaching):
            await self._refresh(consumer, ends)
            if not future.done() and all(self._positions[tp] >= end for tp, end in ends.items()):
                future.set_result(None)
        await asyncio.sleep(0)

    async def _gather(self) -> None:
        """Let records gather for a moment, unless somebody waits for the view."""
        if not self._reaching:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), _GATHER_S)

    async def _refresh(self, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> None:
        """Look where the consumer stands: it also moves over transaction markers and compacted offsets, which carry no record."""
        for tp, end in ends.items():
            if self._positions[tp] < end:
                self._positions[tp] = await consumer.position(tp)

    def _routes(self) -> dict[TopicPartition, Callable[[TopicPartition, list[Any]], None]]:
        followed = self.followed
        return {
            **dict.fromkeys(followed.lanes, self._feed_lane),
            **dict.fromkeys(followed.retries, self._feed_retries),
            **dict.fromkeys(followed.progress, self._feed_progress),
            **dict.fromkeys(followed.results, self._feed_results),
            followed.workers: self._feed_snapshots,
            followed.gpus: self._feed_samples,
            followed.state: self._feed_state,
        }

    def _feed_lane(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        lane = self.followed.lanes[tp]
        for record in records:
            task_id = self._view.lane_record(
                lane, tp.partition, record.offset, record.timestamp, record.value, record.headers
            )
            self._waiters.changed((task_id, tp.partition))

    def _feed_retries(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        for record in records:
            self._view.retry_record(tp.partition, record.headers, record.value)

    def _feed_progress(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        for record in records:
            for task_id in self._view.progress_record(tp.partition, record.value, record.offset):
                self._waiters.changed((task_id, tp.partition))

    def _feed_results(self, tp: TopicPartition, records: list[Any]) -> None:
        view, partition, is_live = self._view, tp.partition, self._view.is_live
        for record in records:
            task_id = view.result_record(
                partition, record.offset, record.timestamp, record.key, record.headers, record.value
            )
            if is_live and task_id is not None:
                self._kept.put((tp.topic, partition, record.offset), Stored(record.value, record.headers))
                self._waiters.wake((task_id, partition))
        view.finished.consumed(partition, records[-1].offset + 1)

    def _feed_snapshots(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        for record in records:
            self._fleet.snapshot(record.key, record.value, record.timestamp)

    def _feed_samples(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        for record in records:
            self._fleet.sample(record.key, record.value, record.timestamp)

    def _feed_state(self, tp: TopicPartition, records: Iterable[Any]) -> None:
        for record in records:
            self._view.state_record(record.key, record.value)

    def _forget_when_due(self) -> None:
        now_s = monotonic_s()
        if self._view.is_live and self._view.finished.has_more_to_forget:
            self._view.finished.forget_older(self._now_ms() - RESULTS_KEPT_MS, looked_at=_FORGOTTEN_ROWS)
        if not self._view.is_live or now_s - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now_s
        self._view.finished.forget_older(self._now_ms() - RESULTS_KEPT_MS)
        if now_s - self._forgot_s > _FORGET_S:
            self._forgot_s = now_s
            # Their requests are past retention, so nobody can run them any more.
            if count := self._view.forget_older(self._now_ms() - REQUESTS_KEPT_MS):
                log.warning("tasks without an outcome are past their retention", count=count)

    def _flush_when_due(self) -> None:
        finished = self._view.finished
        is_live, unwritten = self._view.is_live, finished.unwritten + finished.groups.unwritten
        is_late = is_live and monotonic_s() - self._flushed_s > _FLUSH_S
        if is_late or unwritten >= (_ROWS_LIVE if is_live else _ROWS_PAST):
            self._flush()

    def _flush(self) -> None:
        self._view.finished.flush()
        self._flushed_s = monotonic_s()


@contextlib.contextmanager
def _collecting_later() -> Iterator[None]:
    """Put garbage collection off: looking through a million short-lived records takes a third of the time to read them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
