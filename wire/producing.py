"""The one owner of the idempotent producer: what it is given becomes durable, or it says that it cannot.

aiokafka 0.14 takes a batch's sequence numbers when it is drained and never gives them back: an idempotent producer that loses one
batch fails every later record of that partition. So batches never expire, records that are too large are refused before they take
a number, and any other final failure replaces the producer and sends again what was not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, ProducerClosed

from schemas.headers import Headers
from schemas.topics import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES
from streams.settings import KafkaSettings
from wire.connection import producer_options, wait_for_brokers
from wire.logs import get_logger

_STOP_TIMEOUT_S = 5.0
_START_RETRY_S = 0.5
# What Kafka's record and batch framing adds, generously.
_OVERHEAD_BYTES = 512

log = get_logger(__name__)


class RecordTooLarge(ValueError):
    """The record is larger than its topic takes; it will never be written."""


class _Replaced(KafkaError):  # type: ignore[misc]
    """The producer that held the record was replaced; the record is to be sent again."""


class DurableProducer:
    """Writes records and says when they are durable (acks=all). A record may be written twice: readers take the first.

    `on_appended(timestamp_ms)` hears the broker's time of each acknowledged record, `on_replaced()` each replacement.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        client_id: str,
        on_appended: Callable[[int], None] = lambda _ms: None,
        on_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        self._kafka = kafka
        # A batch must fit the smallest topic; a dead letter may be larger and then goes in a batch of its own.
        options = producer_options(kafka, client_id=client_id)
        self._options = options | {"max_request_size": MAX_DEAD_LETTER_BYTES - _OVERHEAD_BYTES}
        self._limits = {kafka.names.dead_letters: MAX_DEAD_LETTER_BYTES}
        self._on_appended = on_appended
        self._on_replaced = on_replaced
        self._producer: AIOKafkaProducer | None = None
        self._pending: set[asyncio.Future[Any]] = set()
        self._replacing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._producer = await self._started()

    async def stop(self) -> None:
        """Flush for at most 5 s and close; what is not acknowledged by then fails."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._retire(producer)
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def write(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        """Return the record's offset once it is durable, however long the brokers are away.

        Raises: RecordTooLarge; ProducerClosed after `stop`.
        """
        limit = self._limits.get(topic, MAX_RECORD_BYTES)
        if _size_bytes(key, value, headers) > limit:
            raise RecordTooLarge(f"{len(value or b'')} bytes for {topic}, which takes {limit}")
        while True:
            producer = self._current()
            future: asyncio.Future[Any] | None = None
            try:
                future = await self._send(producer, topic, partition, key, value, headers)
                metadata = await future
            except MessageSizeTooLargeError as error:
                raise RecordTooLarge(f"{len(value or b'')} bytes for {topic}") from error
            except KafkaTimeoutError:
                continue  # the batch before it is still open: this record was not taken
            except KafkaError as error:
                if self._producer is None:
                    raise ProducerClosed from error
                await self._replace(producer, error)
            else:
                self._on_appended(metadata.timestamp)
                return int(metadata.offset)
            finally:
                if future is not None:
                    self._pending.discard(future)

    async def post(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> None:
        """Hand a record over without waiting for its acknowledgement; if it fails it is lost, and the next `write` heals the producer."""
        try:
            future = await self._send(self._current(), topic, partition, key, value, headers)
        except KafkaError as error:
            log.warning("record not sent", topic=topic, error=type(error).__name__)
            return
        future.add_done_callback(self._posted)

    def _posted(self, future: asyncio.Future[Any]) -> None:
        self._pending.discard(future)
        if not future.cancelled() and future.exception() is None:
            self._on_appended(future.result().timestamp)

    async def _send(
        self,
        producer: AIOKafkaProducer,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await producer.send(
            topic, value=value, key=key, partition=partition, headers=_as_list(headers)
        )
        self._pending.add(future)
        return future

    def _current(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise ProducerClosed
        return self._producer

    async def _replace(self, failed: AIOKafkaProducer, error: BaseException) -> None:
        """Put a new producer in the place of `failed`, once; whoever still waits on the old one is told to send again."""
        async with self._replacing:
            if self._producer is not failed:
                return
            reason = type(error).__name__
            log.warning("producer replaced: it lost a batch, which would block its partition", error=reason)
            self._on_replaced()
            await wait_for_brokers(self._kafka, log=log)
            self._producer = await self._started()
            pending, self._pending = self._pending, set()
            for future in pending:
                if not future.done():
                    future.set_exception(_Replaced())
                    future.exception()  # posted records have nobody who asks
            task = asyncio.create_task(self._retire(failed))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _started(self) -> AIOKafkaProducer:
        while True:
            await wait_for_brokers(self._kafka, log=log)
            producer = AIOKafkaProducer(**self._options)
            try:
                await producer.start()
                break
            except KafkaError as error:  # a broker that answers may not be ready to give out producer ids
                log.warning("producer not started; trying again", error=type(error).__name__)
                await producer.stop()
                await asyncio.sleep(_START_RETRY_S)
        # Else a batch for a partition without a leader expires after `request_timeout_ms`, and with it the partition's sequence.
        producer._message_accumulator._batch_ttl = float("inf")
        return producer

    async def _retire(self, producer: AIOKafkaProducer) -> None:
        try:
            await asyncio.wait_for(producer.stop(), _STOP_TIMEOUT_S)
        except (TimeoutError, KafkaError, IllegalOperation):
            log.warning("producer closed with records unacknowledged")


def _size_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return (
        len(key or b"")
        + len(value or b"")
        + sum(len(name) + len(text or b"") + 8 for name, text in headers)
        + _OVERHEAD_BYTES
    )


def _as_list(headers: Headers) -> Sequence[tuple[str, bytes]]:
    return headers if isinstance(headers, list) else list(headers)
