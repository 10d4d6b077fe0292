"""Follows the results log of the partitions this worker owns, so that a redelivered request that has an outcome is not run again.

On assignment the log is read from five minutes before the first uncommitted request; a lane's intake of a partition waits until that
is done. A reader without a group: it commits nothing and causes no rebalance.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from agents.transport import GULP_BYTES, GULP_WAIT_MS
from schemas import headers as names
from schemas.codec import DecodeError, decode
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane
from streams.outcome import FinishedIndex
from streams.settings import KafkaSettings
from wire.connection import QUICK_RETRIES, client_options, consumer_options
from wire.logs import get_logger
from wire.reading import committed_offsets

LOOK_BACK_MS = 5 * 60_000
_POLL_MS = 200
_RETRY_S = 0.25
_FIRST_RECORD_TIMEOUT_S = 5.0

log = get_logger(__name__)


class FinishedFollower:
    """Feeds a FinishedIndex from the results log. `follow` says which partitions of which lane matter."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        self._kafka, self._names, self._client_id = kafka, kafka.names, client_id
        self.index = FinishedIndex()
        self._owned: dict[Lane, set[int]] = {lane: set() for lane in Lane}
        self._asked: set[tuple[Lane, int]] = set()
        self._targets: dict[tuple[Lane, int], int] = {}
        self._ready: dict[tuple[Lane, int], asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._positions: dict[int, int] = {}

    # What the intake asks

    def is_caught_up(self, lane: Lane, partition: int) -> bool:
        event = self._ready.get((lane, partition))
        return event is not None and event.is_set()

    async def caught_up(self, lane: Lane, partition: int) -> None:
        """Return when the log has been read for this lane's partition."""
        await self._ready.setdefault((lane, partition), asyncio.Event()).wait()

    def is_finished(self, task_id: str, partition: int) -> bool:
        return self.index.outcome_of(task_id, partition) is not None

    def follow(self, lane: Lane, partitions: Iterable[int]) -> None:
        """Take note of a lane's partitions after a rebalance; what was held of others is forgotten."""
        owned = set(partitions)
        for partition in self._owned[lane] - owned:
            self.index.release(self._names.requests(lane), partition)
            if (event := self._ready.pop((lane, partition), None)) is not None:
                event.set()  # who waits for it looks again, and finds the partition gone
            self._targets.pop((lane, partition), None)
        # A partition kept over a rebalance needs no second look: its log was followed without a break.
        fresh = {(lane, p) for p in owned if not self.is_caught_up(lane, p)}
        self._owned[lane] = owned
        self._asked |= fresh
        self._changed.set()

    def committed(self, topic: str, partition: int, offset: int) -> None:
        self.index.commit(topic, partition, offset)

    # The reader

    async def run(self) -> None:
        """Read until cancelled; a broker's failure is waited out."""
        while True:
            options = consumer_options(self._kafka, client_id=f"{self._client_id}-finished") | QUICK_RETRIES
            # This worker's own results are known without it; others' matter at the next rebalance. So it reads in gulps.
            consumer = AIOKafkaConsumer(**options | {"fetch_min_bytes": GULP_BYTES, "fetch_max_wait_ms": GULP_WAIT_MS})
            try:
                await consumer.start()
                await self._read(consumer)
            except KafkaError as error:
                log.warning("results log not readable; trying again", error=type(error).__name__)
                self._asked |= {(lane, p) for lane, owned in self._owned.items() for p in owned}
                self._positions.clear()
                self._changed.set()
                await asyncio.sleep(_RETRY_S)
            finally:
                await consumer.stop()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            if self._changed.is_set() or not self._positions:
                await self._changed.wait()
                self._changed.clear()
                await self._reassign(consumer)
                continue
            for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    self.observe(record.key, record.value, record.headers, tp.partition)
                self._positions[tp.partition] = records[-1].offset + 1
            if self._targets:
                await self._notice_caught_up(consumer)

    def observe(self, key: bytes | None, value: bytes, headers: names.Headers, partition: int) -> None:
        """Take note of a results record. One written by others may lack our headers and is parsed; one that cannot be read is skipped."""
        try:
            source, outcome = names.find(headers, names.SOURCE), names.find(headers, names.OUTCOME)
            if key is None or source is None or outcome is None:
                result = decode(Result, value)
                self.index.observe(result.task_id, result.source, result.outcome)
            else:
                self.index.observe(key.decode(), Source.parse(source), Outcome(outcome))
        except (DecodeError, ValueError):
            log.warning("results record not understood", partition=partition)

    async def _reassign(self, consumer: AIOKafkaConsumer) -> None:
        asked, self._asked = self._asked, set()
        try:
            starts = await self._starts(consumer, asked) if asked else {}
        except BaseException:
            self._asked |= asked
            raise
        wanted = {p for owned in self._owned.values() for p in owned}
        if not wanted:
            self._positions.clear()
            return
        for partition, offset in starts.items():
            self._positions[partition] = min(offset, self._positions.get(partition, offset))
        self._positions = {p: self._positions[p] for p in wanted if p in self._positions}
        consumer.assign([self._tp(p) for p in self._positions])
        for partition, offset in self._positions.items():
            consumer.seek(self._tp(partition), offset)
        ends = await consumer.end_offsets([self._tp(p) for _, p in asked if p in wanted])
        for lane, partition in asked:
            if partition in self._owned[lane]:
                self._targets[lane, partition] = ends[self._tp(partition)]
        await self._notice_caught_up(consumer)

    async def _notice_caught_up(self, consumer: AIOKafkaConsumer) -> None:
        for (lane, partition), end in list(self._targets.items()):
            # The consumer's own position also moves over transaction markers, which carry no record.
            position = await consumer.position(self._tp(partition))
            if position >= end:
                del self._targets[lane, partition]
                self._ready.setdefault((lane, partition), asyncio.Event()).set()

    async def _starts(self, consumer: AIOKafkaConsumer, asked: set[tuple[Lane, int]]) -> dict[int, int]:
        """Return, per partition number, where in the results log to begin."""
        committed = await self._committed(asked)
        for tp, offset in committed.items():
            self.index.commit(tp.topic, tp.partition, offset)
        first_ms: dict[int, int] = {}
        for tp, appended_ms in (await self._first_appended_ms(committed)).items():
            first_ms[tp.partition] = min(appended_ms, first_ms.get(tp.partition, appended_ms))
        ends = await consumer.end_offsets({self._tp(p) for _, p in asked})
        looked_up = {self._tp(p): max(ms - LOOK_BACK_MS, 0) for p, ms in first_ms.items()}
        found = await consumer.offsets_for_times(looked_up) if looked_up else {}
        starts = {tp.partition: end for tp, end in ends.items()}
        starts.update({tp.partition: at.offset for tp, at in found.items() if at is not None})
        return starts

    async def _committed(self, asked: set[tuple[Lane, int]]) -> dict[TopicPartition, int]:
        """Return the next offset each lane's group reads of each partition; 0 where it never committed."""
        admin = AIOKafkaAdminClient(
            **client_options(self._kafka, client_id=f"{self._client_id}-offsets") | QUICK_RETRIES
        )
        await admin.start()
        offsets: dict[TopicPartition, int] = {}
        try:
            for lane in {lane for lane, _ in asked}:
                tps = [TopicPartition(self._names.requests(lane), p) for of, p in asked if of is lane]
                offsets |= await committed_offsets(admin, self._names.group(lane.value), tps)
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
            await reader.stop()

    async def _first_of(
        self, reader: AIOKafkaConsumer, offsets: dict[TopicPartition, int]
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

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._names.results, partition)
