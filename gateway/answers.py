"""Single records by their offset: results for those who ask, and requests that are cancelled. The newest few hundred are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway.ports import Stored, Unavailable
from streams.settings import KafkaSettings
from wire.connection import consumer_options

MOST_KEPT = 256
MOST_KEPT_BYTES = 8 << 20
_READ_S = 5.0
# A read wants one record: the rest of a large fetch would be thrown away. Kafka sends a record that is larger all the same.
_FETCH_BYTES = 16 << 10
_RETRY_MS = 20


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
    """Reads single records with a consumer of its own, one at a time; about half a millisecond each."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        options = consumer_options(kafka, client_id=f"{client_id}-answers")
        small = {
            "retry_backoff_ms": _RETRY_MS,
            "max_partition_fetch_bytes": _FETCH_BYTES,
        }
        self._consumer = AIOKafkaConsumer(**options | small)
        self._turn = asyncio.Lock()
        self.kept = Kept()

    async def start(self, first: TopicPartition) -> None:
        """Connect, and get to know where `first` lies, which would take the first reader a quarter of a second."""
        await self._consumer.start()
        self._consumer.assign([first])
        self._consumer.pause(first)
        await self._consumer.position(first)
        self._consumer.unsubscribe()

    async def stop(self) -> None:
        await self._consumer.stop()

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        """Return the record at this offset, None when the log no longer has it. Raises: Unavailable."""
        place = (topic, partition, offset)
        found = self.kept.get(place)
        if found is not None:
            return found
        try:
            async with asyncio.timeout(_READ_S), self._turn:
                found = await self._fetch(TopicPartition(topic, partition), offset)
        except (TimeoutError, KafkaError) as error:
            raise Unavailable("Kafka does not give the record") from error
        if found is not None:
            self.kept.put(place, found)
        return found

    async def _fetch(self, tp: TopicPartition, offset: int) -> Stored | None:
        if tp not in self._consumer.assignment():
            self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        record = await self._consumer.getone(tp)
        # Behind the oldest record that is kept, Kafka gives that one instead.
        return Stored(record.value, record.headers) if record.offset == offset else None
