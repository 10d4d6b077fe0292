"""Retry topics: each has one delay, so the head of a partition is always the next that is due.

A plain consumer group reads them (aiokafka's own pause works; only Faust's loses records). A due record enters the same dispatcher as the
lanes' requests, and is acknowledged in the same way: in offset order, once its outcome or its next hand-over is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from agents.delivery import REVOKE_DRAIN_S, Delivery
from agents.intake import MOST_SPAN, Past, Receiver, new_task
from agents.metrics import WorkerMetrics
from schemas import headers as names
from schemas.codec import DecodeError, decode_request
from schemas.result import ErrorType, Source
from schemas.retry import Retry
from schemas.topics import MIB, Lane, RetryTier
from streams.acks import InOrderAcks
from streams.brokertime import BrokerClock
from streams.dispatcher import HandOver
from streams.settings import KafkaSettings
from streams.watchdog import Reading
from wire.clock import monotonic_s
from wire.connection import BROKER_FAILURES, consumer_options
from wire.logs import get_logger
from wire.reading import stop_consumer

_POLL_S = 0.25
_COMMIT_EVERY_S = 1.0
_RETRY_S = 1.0
_REBALANCE_S = 30.0
# Records of a partition that are held while they are not due; the partition is paused with them and resumed below them.
_MOST_HELD, _MOST_HELD_BYTES = 64, MIB
# Of a lane's bounds: its retries have room beyond what its requests may fill.
_SHARE = 1.25

log = get_logger(__name__)


def headers_of(effect: HandOver, origin: Delivery) -> list[tuple[str, bytes]]:
    """Return a retry record's headers: the request's own, and what the next worker must know."""
    task = effect.task
    rows = {
        names.TASK_ID: task.task_id,
        names.LANE: task.lane.value,
        names.ATTEMPTS: task.attempts,
        names.HOPS: effect.hops,
        names.NOT_BEFORE_MS: effect.not_before_ms,
        names.DEADLINE_MS: task.deadline_ms,
        names.APPENDED_MS: task.appended_ms,
        names.SOURCE: task.source,
        names.ERROR_TYPE: effect.error.type.value if effect.error is not None else None,
    }
    ours = [(name, str(value).encode()) for name, value in rows.items() if value is not None]
    return [*names.own(origin.headers), *ours]


@dataclass(slots=True)
class _Held:
    """A record that was fetched, and when it is due. `retry` None: it is no record of a retry."""

    record: Any
    retry: Retry | None
    due_ms: int

    @property
    def size_bytes(self) -> int:
        return len(self.record.value or b"")


class _Partition:
    """What was fetched of one partition: a queue for each lane, so that a full lane holds no other one up."""

    def __init__(self) -> None:
        self.acks: InOrderAcks[int] = InOrderAcks()
        self.queues: dict[Lane, deque[_Held]] = {lane: deque() for lane in Lane}

    @property
    def is_full(self) -> bool:
        held = [each for queue in self.queues.values() for each in queue]
        return (
            len(held) >= _MOST_HELD
            or sum(each.size_bytes for each in held) >= _MOST_HELD_BYTES
            or self.acks.span >= MOST_SPAN
        )


class RetryIntake(ConsumerRebalanceListener):  # type: ignore[misc]
    """Owns retry records from the fetch until they are acknowledged. Runs in the worker's loop only."""

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        clock: BrokerClock,
        receiver: Receiver,
        past: Past,
        metrics: WorkerMetrics,
        client_id: str,
        session_s: float,
    ) -> None:
        self._kafka, self._names, self._client_id, self._session_s = kafka, kafka.names, client_id, session_s
        self._clock, self._receiver, self._past, self._metrics = clock, receiver, past, metrics
        self._topics = [self._names.retry(tier) for tier in RetryTier]
        self._delays_ms = {self._names.retry(tier): tier.delay_ms for tier in RetryTier}
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._done: dict[TopicPartition, int] = {}
        self._generation = 0
        self._committed_s = 0.0
        self._consumer: AIOKafkaConsumer | None = None
        self.is_closed = False
        self._stopped = asyncio.Event()

    # The reader

    async def run(self) -> None:
        """Read until cancelled; a broker's failure is waited out with a new consumer."""
        while True:
            self._consumer = consumer = AIOKafkaConsumer(**self._options())
            try:
                await consumer.start()
                consumer.subscribe(self._topics, listener=self)
                while not self._stopped.is_set():
                    await self._turn(consumer)
                await asyncio.Event().wait()  # stopped: the end comes by a cancellation
            except BROKER_FAILURES as error:
                log.warning("retry topics not readable; trying again", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            finally:
                self._forget()
                with contextlib.suppress(KafkaError):
                    await stop_consumer(consumer)

    def _options(self) -> dict[str, Any]:
        instance = self._kafka.group_instance_id
        return consumer_options(self._kafka, client_id=f"{self._client_id}-retry") | {
            "group_id": self._names.group("retry"),
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "session_timeout_ms": int(self._session_s * 1000),
            "heartbeat_interval_ms": int(self._session_s * 250),
            "rebalance_timeout_ms": int(_REBALANCE_S * 1000),
            "group_instance_id": f"{instance}-{self._names.group('retry')}" if instance else None,
        }

    async def _turn(self, consumer: AIOKafkaConsumer) -> None:
        """Fetch what came, hand on what is due, commit what is done."""
        for tp, records in (await consumer.getmany(timeout_ms=int(_POLL_S * 1000), max_records=_MOST_HELD)).items():
            partition = self._partitions.get(tp)
            if partition is not None:
                for record in records:
                    self._hold(partition, record)
        now_ms = self._clock.ms(monotonic_s())
        for tp, partition in self._partitions.items():
            if not self.is_closed and self._past.is_caught_up(tp.topic, tp.partition):
                for lane, queue in partition.queues.items():
                    self._hand_on(lane, queue, now_ms)
            self._throttle(consumer, tp, is_full=partition.is_full)
        if monotonic_s() - self._committed_s >= _COMMIT_EVERY_S:
            await self._commit(consumer)

    def _hold(self, partition: _Partition, record: Any) -> None:
        partition.acks.add(record.offset, record.offset + 1)
        try:
            retry = Retry.parse(record.headers, record.partition, self._names)
        except ValueError:
            # One that others wrote: it is rejected in its turn, with the least urgent.
            partition.queues[Lane.LOW].append(_Held(record, None, 0))
            return
        # Never later than the topic's delay, whatever the header says: the records behind it wait for it.
        due_ms = min(retry.not_before_ms, record.timestamp + self._delays_ms[record.topic])
        partition.queues[retry.lane].append(_Held(record, retry, due_ms))

    def _hand_on(self, lane: Lane, queue: deque[_Held], now_ms: int) -> None:
        # A lane whose requests stand at its bound must not keep its retries out for ever: they have room of their own beyond it.
        while queue and queue[0].due_ms <= now_ms and self._receiver.has_room(lane, _SHARE):
            self._take(queue.popleft())

    def _throttle(self, consumer: AIOKafkaConsumer, tp: TopicPartition, *, is_full: bool) -> None:
        is_paused = tp in consumer.paused()
        if is_full and not is_paused:
            consumer.pause(tp)
        elif not is_full and is_paused:
            consumer.resume(tp)

    def _take(self, held: _Held) -> None:
        record, retry = held.record, held.retry
        delivery = self._delivery(record, retry)
        if retry is None:
            # A name like those made for lane records would be another task's.
            made = f"{record.topic}.{record.partition}.{record.offset}"
            error = DecodeError(ErrorType.INVALID_REQUEST, "this is no record of a retry")
            self._receiver.reject(delivery, error, made)
            return
        if self._past.is_finished((retry.task_id, record.partition)):
            self._metrics.redelivered[retry.lane].inc()
            delivery.complete()
            return
        try:
            task = new_task(delivery, decode_request(record.value), retry.task_id, retry.deadline_ms, self._clock)
            task.attempts, task.hops = retry.attempts, retry.hops
            self._receiver.accept(task)
        except DecodeError as error:
            self._receiver.reject(delivery, error, retry.task_id)
        except Exception as error:  # noqa: BLE001 - whatever a record does to us, it gets an outcome
            log.error("retry not understood", source=str(delivery.record), error=type(error).__name__)
            unhandled = DecodeError(ErrorType.INTERNAL, "the retry could not be handled")
            self._receiver.reject(delivery, unhandled, retry.task_id)

    def _delivery(self, record: Any, retry: Retry | None) -> Delivery:
        place = Source(record.topic, record.partition, record.offset)
        return Delivery(
            owner=self,
            group=self._names.group("retry"),
            lane=Lane.LOW if retry is None else retry.lane,
            record=place,
            source=place if retry is None else retry.source,
            generation=self._generation,
            key=record.key,
            value=record.value,
            headers=record.headers,
            appended_ms=record.timestamp if retry is None else retry.appended_ms,
        )

    @property
    def partitions(self) -> list[TopicPartition]:
        return list(self._partitions)

    def reading(self, asked: Mapping[TopicPartition, int]) -> dict[int, Reading]:
        """Return how far each partition was read, numbered in any order that stays the same; `asked`: ends that another client told."""
        consumer = self._consumer
        if consumer is None:
            return {}
        found = {}
        for number, (tp, partition) in enumerate(sorted(self._partitions.items(), key=lambda item: item[0])):
            state = consumer._subscription.subscription.assignment.state_value(tp)
            if state is not None and state.has_valid_position:
                end = max(state.lso or 0, asked.get(tp, 0))
                found[number] = Reading(state.position, end, has_room=not partition.is_full)
        return found

    # Acknowledgement

    def complete(self, delivery: Delivery) -> None:
        """Release what may be committed now that this delivery is done. A delivery of an old generation changes nothing."""
        if delivery.generation != self._generation:
            return
        tp = TopicPartition(delivery.record.topic, delivery.partition)
        released = self._partitions[tp].acks.complete(delivery.offset)
        if released:
            self._done[tp] = released[-1]

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        self._committed_s = monotonic_s()
        done, self._done = self._done, {}
        if not done:
            return
        try:
            await consumer.commit(done)
        except CommitFailedError:  # a rebalance came before: the records are delivered again
            log.info("retry offsets not committed", partitions=len(done))

    # Rebalances

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if not self._partitions:
            return
        for partition in self._partitions.values():
            partition.queues = {lane: deque() for lane in Lane}
        await self._receiver.let_go(self, 0.0 if self.is_closed else REVOKE_DRAIN_S)
        if self._consumer is not None:
            with contextlib.suppress(KafkaError):
                await self._commit(self._consumer)
        self._forget()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._forget()
        self._partitions = {tp: _Partition() for tp in assigned}
        for topic in self._topics:
            self._past.follow(topic, [tp.partition for tp in self._partitions if tp.topic == topic])

    def _forget(self) -> None:
        """Begin a new generation: what is completed of the old one must not be committed."""
        self._generation += 1
        self._receiver.withdraw(self, running=True)
        self._partitions = {}
        self._done.clear()

    # The end

    def close(self) -> None:
        """Hand nothing more on; what is held is left to the next owner."""
        self.is_closed = True

    async def stop(self) -> None:
        """Commit what is done and leave the group."""
        self._stopped.set()
        consumer = self._consumer
        if consumer is not None:
            with contextlib.suppress(KafkaError):
                await self._commit(consumer)
            await stop_consumer(consumer)

    def __repr__(self) -> str:
        return f"RetryIntake(generation={self._generation}, partitions={len(self._partitions)})"
