"""Where this worker's partitions end, asked every ten seconds through a client of its own, for the watchdog.

A consumer learns of an end with what it fetches: one that fetches no more knows of nothing to read, and looks well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.settings import KafkaSettings
from wire.connection import BROKER_FAILURES, QUICK_RETRIES, consumer_options
from wire.reading import stop_consumer

_EVERY_S = 10.0
_ASK_S = 5.0


class AskedEnds:
    """`now` holds the newest answers; it is empty while brokers do not answer: then nobody stands still by his own fault."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str, wanted: Callable[[], Iterable[TopicPartition]]) -> None:
        self._options = consumer_options(kafka, client_id=f"{client_id}-ends") | QUICK_RETRIES
        self._wanted = wanted
        self.now: Mapping[TopicPartition, int] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            consumer = AIOKafkaConsumer(**self._options)
            try:
                await consumer.start()
                while True:
                    await self.ask(consumer)
                    await asyncio.sleep(_EVERY_S)
            except BROKER_FAILURES:
                self.now = {}
                await asyncio.sleep(_EVERY_S)
            finally:
                await stop_consumer(consumer)

    async def ask(self, consumer: AIOKafkaConsumer) -> None:
        """Raises: what a client raises when brokers fail it."""
        wanted = list(self._wanted())
        async with asyncio.timeout(_ASK_S):
            self.now = await consumer.end_offsets(wanted) if wanted else {}
