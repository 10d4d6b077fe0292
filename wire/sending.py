"""One idempotent producer of aiokafka, from its start to its certain end; `wire/producing.py` owns them one after the other.

What aiokafka 0.14 lacks is put right here, in private parts of it, which the pinned release keeps where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import IllegalOperation, KafkaError, UnknownTopicOrPartitionError
from aiokafka.protocol.produce import ProduceRequest

from schemas.headers import Headers

# What Kafka's record and batch framing adds, generously.
OVERHEAD_BYTES = 512
_END_S = 5.0
_LOG_APPEND_TIME = 1
_NO_LEADER = (None, -1)


class Replaced(KafkaError):  # type: ignore[misc]
    """The producer that held the record was replaced; the record is to be sent again."""


class StoodStill(KafkaError):  # type: ignore[misc]
    """The producer does not try what it holds, or one of its tasks ended; what it holds is to be sent again by another."""


@dataclass(eq=False, slots=True)
class Record:
    """A record on its way.

    `is_alone`: it is in a batch of its own. `is_suspect`: a batch that it was in was refused. `is_sent`: a producer took it, ever.
    `losses` counts the failures that were its own.
    """

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    is_alone: bool = False
    is_suspect: bool = False
    is_sent: bool = False
    losses: int = 0
    absent_since_s: float | None = None
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = len(self.key or b"") + len(self.value or b"") + OVERHEAD_BYTES
        for name, value in self.headers:
            self.size_bytes += len(name) + len(value or b"") + 8


class Sender:
    """Takes records and gives a future for each, in which it ends with its metadata or with its batch's error.

    `on_appended(timestamp_ms)` hears the broker's time of each batch before its records end. `on_lost(self, error)` hears of each batch
    that failed, whoever still waits for its records, and of a task of aiokafka's that ended: the sender is of no use then.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        *,
        on_appended: Callable[[int], None],
        on_lost: Callable[[Sender, BaseException], None],
    ) -> None:
        self._producer = producer
        self._on_appended, self._on_lost = on_appended, on_lost
        self._accumulator = producer._message_accumulator
        self._leader = producer.client.cluster.leader_for_partition
        self._requests: set[asyncio.Task[None]] = set()
        self._lost_alone: set[asyncio.Future[Any]] = set()
        # Else a batch for a partition without a leader expires after `request_timeout_ms`, and with it the partition's sequence.
        self._accumulator._batch_ttl = float("inf")
        self._send_request = producer._sender._send_produce_req
        producer._sender._send_produce_req = self._request
        self._ask = producer.client.send
        producer.client.send = self._apart

    @classmethod
    async def opened(
        cls,
        options: Mapping[str, Any],
        *,
        on_appended: Callable[[int], None],
        on_lost: Callable[[Sender, BaseException], None],
    ) -> Sender:
        """Return a started sender. Raises: KafkaError when no broker answers or gives out a producer id."""
        producer = AIOKafkaProducer(**options)
        sender = cls(producer, on_appended=on_appended, on_lost=on_lost)
        try:
            await producer.start()
        except BaseException:
            await sender.close(0)
            raise
        # Without the second one, whose end aiokafka does not notice, whoever waits for new metadata waits for ever.
        for task in (producer._sender.sender_task, producer.client._sync_task):
            task.add_done_callback(sender._died)
        return sender

    async def send(self, record: Record) -> asyncio.Future[Any]:
        """Hand a record over; `record.is_alone` puts it into a batch of its own.

        Raises: KafkaError; the record was not taken then.
        """
        producer, topic, partition = self._producer, record.topic, record.partition
        if self._leader(TopicPartition(topic, partition)) is None and partition not in await producer.partitions_for(
            topic
        ):
            producer.client.force_metadata_update()
            raise UnknownTopicOrPartitionError
        headers = record.headers if isinstance(record.headers, list) else list(record.headers)
        future: asyncio.Future[Any]
        if record.is_alone:
            batch = producer.create_batch()
            batch.append(key=record.key, value=record.value, timestamp=None, headers=headers)
            batch.close()
            future = await producer.send_batch(batch, topic, partition=partition)
        else:
            future = await producer.send(topic, record.value, record.key, partition, headers=headers)
        record.is_sent = True
        return future

    def was_alone(self, future: asyncio.Future[Any]) -> bool:
        """Return whether a record that failed was the only one of its batch, though it was not sent so."""
        return future in self._lost_alone

    def held_until(self, record: Record, future: asyncio.Future[Any]) -> asyncio.Future[Any] | None:
        """Return what ends when a record that was given up is no longer kept, None when it is not."""
        for batch in self._batches(record.topic):
            if batch.future is future or any(each is future for each, _ in batch._msg_futures):
                return cast(asyncio.Future[Any], batch.future)
        return None

    def absent_topics(self) -> set[str]:
        """Return the topics of pending records which the brokers say are not there."""
        known = self._producer.client.cluster.partitions_for_topic
        return {topic for topic in {batch.tp.topic for batch in self._batches()} if known(topic) is None}

    def tries(self) -> dict[Any, int]:
        """Return how often each batch was tried that is the next of a partition with a leader."""
        heads = [batches[0] for batches in self._accumulator._batches.values() if batches]
        return {batch: batch.retry_count for batch in heads if self._leader(batch.tp) not in _NO_LEADER}

    def fail(self, topic: str, error: Exception) -> None:
        """End what is pending for a topic; the sender has lost batches then."""
        for batch in self._batches(topic):
            _fail(batch, error)
        self._on_lost(self, error)

    def _batches(self, topic: str | None = None) -> list[Any]:
        """Return the batches that are filling, waiting or on their way."""
        waiting = [batch for batches in self._accumulator._batches.values() for batch in batches]
        found = [*waiting, *self._accumulator._pending_batches]
        return [batch for batch in found if topic is None or batch.tp.topic == topic]

    async def close(self, flush_s: float) -> None:
        """Wait up to `flush_s` for what is pending, then end every task and connection; what is left ends in `Replaced`."""
        client = self._producer.client
        if client._sync_task is not None and client._sync_task.done():
            client._sync_task = None  # its error would come out again, before the connections are closed
        try:
            async with asyncio.timeout(flush_s):
                await self._producer.stop()
        except (TimeoutError, KafkaError, IllegalOperation):
            pass  # what was not acknowledged is told below
        finally:
            await self._end()

    async def _end(self) -> None:
        self._producer._closed = True  # no warning of a producer that was dropped: it ends here
        task = self._producer._sender.sender_task
        running = {each for each in (task, *self._requests) if each is not None and not each.done()}
        for each in running:
            each.cancel()
        if running:
            await asyncio.wait(running, timeout=_END_S)
        for batch in self._batches():
            _fail(batch, Replaced())
        self._accumulator._exception = Replaced()
        await self._producer.client.close()

    async def _request(self, node_id: int, batches: Mapping[Any, Any]) -> None:
        """Send batches in a task that is known here: aiokafka's sender, cancelled, waits for its requests, for ever with a hung broker."""
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        for batch in batches.values():
            if batch.retry_count == 1:  # its first time
                batch.future.add_done_callback(partial(self._ended, batch))
        try:
            await self._send_request(node_id, batches)
        finally:
            self._requests.discard(task)

    async def _apart(self, node_id: int, request: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """Send records on a connection of their own. A broker answers a connection's requests in order: metadata that is asked for behind
        records waits until these are copied, up to 10 s when a broker is away, and every partition that needs it waits too."""
        own = ConnectionGroup.COORDINATION if isinstance(request, ProduceRequest) else group
        return await self._ask(node_id, request, group=own)

    def _ended(self, batch: Any, future: asyncio.Future[Any]) -> None:
        error = future.exception()
        if error is None:
            if future.result().timestamp_type == _LOG_APPEND_TIME:  # else it is this machine's own
                self._on_appended(future.result().timestamp)
            return
        if len(batch._msg_futures) == 1:
            self._lost_alone.add(batch._msg_futures[0][0])
        self._on_lost(self, error)

    def _died(self, task: asyncio.Task[None]) -> None:
        """Tell that a task ended. aiokafka's sender takes a cancellation that reaches it for its own, and ends without an error."""
        error = None if task.cancelled() else task.exception()
        if not self._producer._closed:
            self._on_lost(self, error or StoodStill())


def _fail(batch: Any, error: Exception) -> None:
    batch.failure(error)
    if (waiter := batch._drain_waiter).done() and not waiter.cancelled():
        waiter.exception()  # mostly nobody waits for it, and an exception that nobody sees is logged
