"""Follows the cache table's changelog, all partitions, without a group: into the answers this worker gives, and the table's index."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.cache import CacheEntry
from schemas.codec import DecodeError, decode
from streams.caching import AnswerCache, CacheIndex
from streams.settings import KafkaSettings
from wire.connection import BROKER_FAILURES, consumer_options
from wire.logs import get_logger
from wire.reading import stop_consumer

_POLL_MS = 500
_RETRY_S = 1.0

log = get_logger(__name__)


class CacheFollower:
    """Reads the changelog from its beginning (it is kept for an hour) and goes on with it."""

    def __init__(self, kafka: KafkaSettings, cache: AnswerCache, index: CacheIndex, *, client_id: str) -> None:
        self._kafka, self._client_id = kafka, client_id
        self._topic = kafka.names.cache_changelog
        self._cache, self._index = cache, index

    async def run(self) -> None:
        """Read until cancelled; a broker's failure is waited out and costs only hits."""
        positions: dict[TopicPartition, int] = {}
        while True:
            options = consumer_options(self._kafka, client_id=f"{self._client_id}-cache")
            # A long poll returns when there is something: a longer one costs an idle worker less.
            consumer = AIOKafkaConsumer(**options | {"fetch_max_wait_ms": _POLL_MS})
            try:
                await consumer.start()
                await self._read(consumer, positions)
            except BROKER_FAILURES as error:
                log.warning("cache changelog not readable; trying again", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            finally:
                await stop_consumer(consumer)

    async def _read(self, consumer: AIOKafkaConsumer, positions: dict[TopicPartition, int]) -> None:
        tps = [TopicPartition(self._topic, p) for p in range(self._kafka.partitions)]
        consumer.assign(tps)
        for tp in tps:
            if tp in positions:
                consumer.seek(tp, positions[tp])
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    self.observe(tp.partition, record.key, record.value)
                positions[tp] = records[-1].offset + 1

    def observe(self, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Take an entry or a tombstone; what cannot be read is skipped, since it costs no more than a hit."""
        if key is None:
            return
        fingerprint = key.decode(errors="replace")
        if value is None:
            # The answer may live on under another partition, and has its own time of expiry.
            self._index.remove(partition, fingerprint)
            return
        try:
            entry = decode(CacheEntry, value)
        except DecodeError:
            log.warning("cache entry not understood", partition=partition)
            return
        self._index.put(partition, fingerprint, entry.expires_at_ms, len(value))
        self._cache.put(fingerprint, entry, len(value))
