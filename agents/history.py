"""Follows the logs of the partitions this worker owns: outcomes, starts, and the other workers' snapshots.

A redelivered request that has an outcome is not run again, nor is one that another worker still runs. On assignment the results and the
progress of a partition number are read from five minutes before the first uncommitted request; intake of the partition waits until that
is done. A reader without a group: it commits nothing and causes no rebalance.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from agents.transport import GULP_BYTES, GULP_WAIT_MS
from schemas import headers as names
from schemas.codec import DecodeError, decode
from schemas.progress import Released, Started, WorkerSnapshot
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane, RetryTier
from streams.outcome import FinishedIndex
from streams.redelivery import Peers, RecentEnds, Redelivery, StartsIndex
from streams.settings import KafkaSettings
from streams.task import TaskKey
from wire.connection import BROKER_FAILURES, QUICK_RETRIES, client_options, consumer_options
from wire.logs import get_logger
from wire.reading import committed_offsets, stop_consumer

LOOK_BACK_MS = 5 * 60_000
_POLL_MS = 200
_RETRY_S = 0.25
_FIRST_RECORD_TIMEOUT_S = 5.0
# A gateway's snapshot has a key of its own kind and says nothing of work.
_GATEWAY = b"gateway/"

log = get_logger(__name__)

Place = tuple[str, int]
"""A partition of a lane topic or of a retry topic."""


@dataclass(slots=True, eq=False)
class _Followed:
    """A place from `follow` on. `targets` are the log ends to be read to; None until they were looked up."""

    ready: asyncio.Event = field(default_factory=asyncio.Event)
    targets: dict[TopicPartition, int] | None = None


class History:
    """What the logs say. `follow` says which partitions of which topic matter, `on_outcome` is told of each terminal record."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str, worker: str) -> None:
        self._kafka, self._names, self._client_id = kafka, kafka.names, client_id
        self.index, self.ends, self.peers = FinishedIndex(), RecentEnds(), Peers(worker)
        self.starts = StartsIndex(self.ends)
        self.redelivery = Redelivery(self.starts, self.peers)
        self.on_outcome: Callable[[TaskKey], None] = lambda _key: None
        self._groups = {self._names.requests(lane): self._names.group(lane.value) for lane in Lane}
        self._groups |= {self._names.retry(tier): self._names.group("retry") for tier in RetryTier}
        self._retries = {self._names.retry(tier) for tier in RetryTier}
        self._places: dict[Place, _Followed] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._begun: set[Place] = set()
        self._workers = TopicPartition(self._names.workers, 0)
        self._changed = asyncio.Event()

    # What the intake asks

    def is_caught_up(self, topic: str, partition: int) -> bool:
        place = self._places.get((topic, partition))
        return place is not None and place.ready.is_set()

    async def caught_up(self, topic: str, partition: int) -> None:
        """Return when the logs have been read for this partition, or when it is no longer followed."""
        place = self._places.get((topic, partition))
        if place is not None:
            await place.ready.wait()

    def is_finished(self, key: TaskKey) -> bool:
        """Whether a request that was fetched has an outcome already."""
        return self.index.outcome_of(*key) is not None or key in self.ends

    def follow(self, topic: str, partitions: Iterable[int]) -> None:
        """Take note of a topic's partitions after a rebalance; what was held of others is forgotten.

        A partition that was kept was followed without a break, but somebody may have had it in between (a worker that slept through
        a generation): its logs are read to where they end now, from where they were read to.
        """
        owned = set(partitions)
        for place in [place for place in self._places if place[0] == topic]:
            self._places.pop(place).ready.set()  # who waits for it looks again
            if place[1] not in owned:
                self.index.release(*place)
                self._begun.discard(place)
        for partition in owned:
            self._places[topic, partition] = _Followed()
        followed = {partition for _, partition in self._places}
        for partition in {tp.partition for tp in self._positions if tp != self._workers} - followed:
            self.starts.release(partition)
        self._changed.set()

    def ended(self, key: TaskKey, source: Source, outcome: Outcome) -> None:
        """Take note of a terminal record, this worker's own too: it knows of them before it reads them."""
        self.index.observe(key[0], source, outcome)
        self.ends.add(key)
        self.starts.ended(key)

    @property
    def reading(self) -> tuple[bool, int]:
        """Return whether some partition's logs are still to be caught up with, and how far all logs were read, in one number."""
        return any(not each.ready.is_set() for each in self._places.values()), sum(self._positions.values())

    def committed(self, topic: str, partition: int, offset: int) -> None:
        if (topic, partition) in self._places and topic not in self._retries:
            self.index.commit(topic, partition, offset)

    # The reader

    async def run(self) -> None:
        """Read until cancelled; a broker's failure is waited out."""
        while True:
            options = consumer_options(self._kafka, client_id=f"{self._client_id}-history") | QUICK_RETRIES
            # This worker's own results are known without it; others' matter at the next rebalance. So it reads in gulps.
            consumer = AIOKafkaConsumer(**options | {"fetch_min_bytes": GULP_BYTES, "fetch_max_wait_ms": GULP_WAIT_MS})
            try:
                await consumer.start()
                await self._read(consumer)
            except BROKER_FAILURES as error:
                log.warning("logs not readable; trying again", error=type(error).__name__)
                for place, followed in self._places.items():
                    if not followed.ready.is_set():
                        self._places[place] = _Followed(followed.ready)
                        self._begun.discard(place)
                self._changed.set()
                await asyncio.sleep(_RETRY_S)
            finally:
                await stop_consumer(consumer)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        self._changed.set()  # a new consumer has nothing assigned
        while True:
            if self._changed.is_set() or not self._positions:
                await self._changed.wait()
                self._changed.clear()
                await self._reassign(consumer)
                continue
            for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    self.observe(record)
                self._positions[tp] = records[-1].offset + 1
            await self._notice_caught_up(consumer)

    def observe(self, record: Any) -> None:
        """Take note of a record. One that cannot be read is skipped: it says nothing."""
        try:
            if record.topic == self._names.results:
                self._observe_result(record.key, record.value, record.headers, record.partition)
            elif record.topic == self._names.progress:
                self._observe_progress(record.value or b"", record.partition)
            elif record.key and not record.key.startswith(_GATEWAY):
                snapshot = None if record.value is None else decode(WorkerSnapshot, record.value)
                self.peers.observe(record.key.decode(), snapshot, record.timestamp)
        except (DecodeError, ValueError):
            log.warning("record not understood", topic=record.topic, partition=record.partition)

    def _observe_progress(self, value: bytes, partition: int) -> None:
        if b'"released"' in value:
            self.starts.released(decode(Released, value), partition)
        else:
            self.starts.observe(decode(Started, value), partition)

    def _observe_result(self, key: bytes | None, value: bytes, headers: names.Headers, partition: int) -> None:
        """Take note of a terminal record. One written by others may lack our headers and is parsed."""
        source, outcome = names.find(headers, names.SOURCE), names.find(headers, names.OUTCOME)
        if key is None or source is None or outcome is None:
            result = decode(Result, value)
            task_id, at, how = result.task_id, result.source, result.outcome
        else:
            task_id, at, how = key.decode(), Source.parse(source), Outcome(outcome)
        if at.partition != partition:
            raise ValueError("a result of another partition number")
        self.ended((task_id, partition), at, how)
        self.on_outcome((task_id, partition))

    async def _reassign(self, consumer: AIOKafkaConsumer) -> None:
        asked = {place: followed for place, followed in self._places.items() if followed.targets is None}
        new = [place for place in asked if place not in self._begun]
        starts = await self._starts(consumer, new) if new else {}
        self._begun |= {place for place in new if self._places.get(place) is asked[place]}
        wanted = {tp for _, partition in self._places for tp in self._logs(partition)}
        if self._places:
            wanted.add(self._workers)
            starts.setdefault(self._workers, self._positions.get(self._workers, 0))
        for tp, offset in starts.items():
            self._positions[tp] = min(offset, self._positions.get(tp, offset))
        self._positions = {tp: offset for tp, offset in self._positions.items() if tp in wanted}
        consumer.assign(list(self._positions))
        for tp, offset in self._positions.items():
            consumer.seek(tp, offset)
        ends = await consumer.end_offsets(list(self._positions)) if asked else {}
        for place, followed in asked.items():
            # A place that was given back and got again meanwhile is another one: it was noted for the next round.
            if self._places.get(place) is followed:
                logs = [*self._logs(place[1]), self._workers]
                followed.targets = {tp: ends[tp] for tp in logs if tp in ends}
        await self._notice_caught_up(consumer)

    async def _notice_caught_up(self, consumer: AIOKafkaConsumer) -> None:
        waiting = [each for each in self._places.values() if each.targets is not None and not each.ready.is_set()]
        for followed in waiting:
            assert followed.targets is not None
            for tp, end in list(followed.targets.items()):
                # The consumer's own position also moves over transaction markers, which carry no record.
                if tp not in self._positions or await consumer.position(tp) >= end:
                    del followed.targets[tp]
            if not followed.targets:
                followed.ready.set()

    async def _starts(self, consumer: AIOKafkaConsumer, asked: Iterable[Place]) -> dict[TopicPartition, int]:
        """Return where in the logs to begin, for the partition numbers of places."""
        # Before the lanes are looked at: what is appended and cancelled in between must lie behind it.
        ends = dict(await consumer.end_offsets([tp for _, partition in asked for tp in self._logs(partition)]))
        committed = await self._committed(asked)
        for tp, offset in committed.items():
            if tp.topic not in self._retries and (tp.topic, tp.partition) in self._places:
                self.index.commit(tp.topic, tp.partition, offset)
        first_ms: dict[int, int] = {}
        for tp, appended_ms in (await self._first_appended_ms(committed)).items():
            first_ms[tp.partition] = min(appended_ms, first_ms.get(tp.partition, appended_ms))
        looked_up = {tp: max(ms - LOOK_BACK_MS, 0) for p, ms in first_ms.items() for tp in self._logs(p)}
        found = await consumer.offsets_for_times(looked_up) if looked_up else {}
        return ends | {tp: at.offset for tp, at in found.items() if at is not None}

    async def _committed(self, asked: Iterable[Place]) -> dict[TopicPartition, int]:
        """Return the next offset that its group reads of each place; 0 where it never committed."""
        admin = AIOKafkaAdminClient(
            **client_options(self._kafka, client_id=f"{self._client_id}-offsets") | QUICK_RETRIES
        )
        by_group: dict[str, list[TopicPartition]] = {}
        for topic, partition in asked:
            by_group.setdefault(self._groups[topic], []).append(TopicPartition(topic, partition))
        await admin.start()
        offsets: dict[TopicPartition, int] = {}
        try:
            for group, tps in by_group.items():
                offsets |= await committed_offsets(admin, group, tps)
        finally:
            await admin.close()
        return offsets

    async def _first_appended_ms(self, offsets: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return when the record at (or first after) each offset was appended, for partitions that have one."""
        options = consumer_options(self._kafka, client_id=f"{self._client_id}-first") | QUICK_RETRIES
        reader = AIOKafkaConsumer(**options | {"max_poll_records": 1})
        await reader.start()
        try:
            ends = await reader.end_offsets(list(offsets))
            missing = {tp: offset for tp, offset in offsets.items() if ends[tp] > offset}
            return await self._first_of(reader, missing) if missing else {}
        finally:
            await stop_consumer(reader)

    async def _first_of(
        self, reader: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = {}
        reader.assign(list(offsets))
        for tp, offset in offsets.items():
            reader.seek(tp, offset)
        # Not seen in time (a transaction that hangs, a hole at the head): the log is read from its beginning, which is always right.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_RECORD_TIMEOUT_S):
                while len(found) < len(offsets):
                    for tp, records in (await reader.getmany(timeout_ms=_POLL_MS)).items():
                        found[tp] = records[0].timestamp
                        reader.pause(tp)
        return {tp: found.get(tp, 0) for tp in offsets}

    def _logs(self, partition: int) -> tuple[TopicPartition, TopicPartition]:
        return TopicPartition(self._names.results, partition), TopicPartition(self._names.progress, partition)
