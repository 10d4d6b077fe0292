"""Single records by their offset: results for those who ask, and requests that are cancelled. The newest few hundred are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, NoError, NotLeaderForPartitionError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from gateway.ports import Stored, Unavailable
from streams.settings import KafkaSettings
from wire.connection import BROKER_FAILURES, client_options

MOST_KEPT = 256
MOST_KEPT_BYTES = 8 << 20
_READ_S = 5.0
# A read wants one record: the rest of a large fetch would be thrown away. Kafka sends a batch that is larger all the same.
_FETCH_BYTES = 16 << 10
_RETRY_S = 0.02
_READ_UNCOMMITTED = 0  # the view has seen the record, so it is committed


@dataclass
class Kept:
    """The records read last, by place; bounded by count and by bytes."""

    most: int = MOST_KEPT
    most_bytes: int = MOST_KEPT_BYTES
    _records: OrderedDict[tuple[str, int, int], Stored] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, place: tuple[str, int, int]) -> Stored | None:
        found = self._records.get(place)
        if found is not None:
            self._records.move_to_end(place)
        return found

    def put(self, place: tuple[str, int, int], record: Stored) -> None:
        size = len(record.value or b"")
        if place in self._records or size > self.most_bytes // 4:
            return
        self._records[place] = record
        self._bytes += size
        while len(self._records) > self.most or self._bytes > self.most_bytes:
            _, old = self._records.popitem(last=False)
            self._bytes -= len(old.value or b"")


class Answers:
    """Reads single records, one fetch request each.

    No consumer: that reads on behind the record it was asked for, and the next reader waits for this long poll.
    """

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        self._client = AIOKafkaClient(**client_options(kafka, client_id=f"{client_id}-answers"))
        self.kept = Kept()

    async def start(self, *topics: str) -> None:
        """Connect, and get to know where `topics` lie, which would take the first reader a quarter of a second."""
        await self._client.bootstrap()
        await self._client.set_topics(topics)

    async def stop(self) -> None:
        await self._client.close()

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        """Return the record at this offset, None when the log no longer has it. Raises: Unavailable."""
        place = (topic, partition, offset)
        found = self.kept.get(place)
        if found is not None:
            return found
        try:
            async with asyncio.timeout(_READ_S):
                found = await self._fetch(TopicPartition(topic, partition), offset)
        except BROKER_FAILURES as error:
            raise Unavailable("Kafka does not give the record") from error
        if found is not None:
            self.kept.put(place, found)
        return found

    async def _fetch(self, tp: TopicPartition, offset: int) -> Stored | None:
        while True:
            try:
                return await self._ask(tp, offset)
            except OffsetOutOfRangeError:
                return None
            except KafkaError as error:
                if not error.retriable:
                    raise
                await self._client.force_metadata_update()
                await asyncio.sleep(_RETRY_S)

    async def _ask(self, tp: TopicPartition, offset: int) -> Stored | None:
        leader = self._client.cluster.leader_for_partition(tp)
        if leader is None or leader < 0:
            raise NotLeaderForPartitionError(tp)
        place = (tp.topic, [(tp.partition, offset, _FETCH_BYTES)])
        request = FetchRequest(0, 1, _FETCH_BYTES, _READ_UNCOMMITTED, [place])
        response = await self._client.send(leader, request)
        ((_, ((_, code, *_, data),)),) = response.topics
        if (error := for_code(code)) is not NoError:
            raise error(tp)
        if not data:  # a new leader that does not know yet how far the log is durable
            raise NotLeaderForPartitionError(tp)
        return _record_at(data, offset)


def _record_at(data: bytes, offset: int) -> Stored | None:
    """Return the record at `offset` of fetched bytes, which begin with the batch that holds it."""
    batches: Any = MemoryRecords(data)
    while batches.has_next():
        for record in batches.next_batch():
            if record.offset >= offset:
                # Behind the oldest record that is kept, Kafka gives that one instead.
                return Stored(record.value, record.headers) if record.offset == offset else None
    return None
