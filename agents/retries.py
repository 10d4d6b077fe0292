"""Retry topics: each has one delay, so the head of a partition is always the next that is due.

A plain consumer group reads them (aiokafka's own pause works; only Faust's loses records). A due record enters the same dispatcher as the
lanes' requests, and is acknowledged in the same way: in offset order, once its outcome or its next hand-over is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from agents.delivery import Delivery
from agents.intake import MOST_SPAN, MOST_WAITING, Past, Receiver, new_task
from agents.metrics import WorkerMetrics
from schemas import headers as names
from schemas.codec import DecodeError, decode_request
from schemas.headers import Headers
from schemas.result import ErrorType, Source
from schemas.topics import MIB, Lane, RetryTier
from streams.acks import InOrderAcks
from streams.brokertime import BrokerClock
from streams.dispatcher import HandOver
from streams.settings import KafkaSettings
from streams.task import Task
from wire.clock import monotonic_s
from wire.connection import consumer_options
from wire.logs import get_logger
from wire.reading import stop_consumer

REVOKE_DRAIN_S = 3.0
_POLL_S = 0.25
_COMMIT_EVERY_S = 1.0
_RETRY_S = 1.0
_REBALANCE_S = 30.0
# Records of a partition that are held while they are not due; the partition is paused with them and resumed below them.
_MOST_HELD, _MOST_HELD_BYTES = 64, MIB

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


class _Held:
    """A record that was fetched, and when it is due."""

    __slots__ = ("due_ms", "record", "size_bytes")

    def __init__(self, record: Any) -> None:
        self.record, self.size_bytes = record, len(record.value or b"")
        self.due_ms = _number(record.headers, names.NOT_BEFORE_MS) or 0


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
        self._held: dict[TopicPartition, deque[_Held]] = {}
        self._acks: dict[TopicPartition, InOrderAcks[int]] = defaultdict(InOrderAcks)
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
            except KafkaError as error:
                log.warning("retry topics not readable; trying again", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)
            finally:
                self._forget()
                with contextlib.suppress(KafkaError):
                    await stop_consumer(consumer)

    def _options(self) -> dict[str, Any]:
        return consumer_options(self._kafka, client_id=f"{self._client_id}-retry") | {
            "group_id": self._names.group("retry"),
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "session_timeout_ms": int(self._session_s * 1000),
            "heartbeat_interval_ms": int(self._session_s * 250),
            "rebalance_timeout_ms": int(_REBALANCE_S * 1000),
        }

    async def _turn(self, consumer: AIOKafkaConsumer) -> None:
        """Fetch what came, hand on what is due, commit what is done."""
        for tp, records in (await consumer.getmany(timeout_ms=int(_POLL_S * 1000), max_records=_MOST_HELD)).items():
            if tp in self._held:
                self._held[tp].extend(map(_Held, records))
        now_ms = self._clock.ms(monotonic_s())
        for tp, held in self._held.items():
            self._hand_on(tp, held, now_ms)
            self._throttle(consumer, tp, held)
        if monotonic_s() - self._committed_s >= _COMMIT_EVERY_S:
            await self._commit(consumer)

    def _hand_on(self, tp: TopicPartition, held: deque[_Held], now_ms: int) -> None:
        if self.is_closed or not self._past.is_caught_up(tp.topic, tp.partition):
            return
        while held and held[0].due_ms <= now_ms and self._acks[tp].span < MOST_SPAN:
            record = held[0].record
            if self._receiver.waiting(_lane(record.headers)) >= MOST_WAITING[_lane(record.headers)]:
                return
            held.popleft()
            self._acks[tp].add(record.offset, record.offset + 1)
            self._take(record)

    def _throttle(self, consumer: AIOKafkaConsumer, tp: TopicPartition, held: deque[_Held]) -> None:
        is_paused = tp in consumer.paused()
        fill_ratio = max(len(held) / _MOST_HELD, sum(each.size_bytes for each in held) / _MOST_HELD_BYTES)
        if fill_ratio >= 1 and not is_paused:
            consumer.pause(tp)
        elif fill_ratio < 0.5 and is_paused:
            consumer.resume(tp)

    def _take(self, record: Any) -> None:
        delivery = self._delivery(record)
        task_id = names.find(record.headers, names.TASK_ID)
        try:
            self._receiver.accept(self._task(record, delivery, task_id))
        except _Finished:
            self._metrics.redelivered[delivery.lane].inc()
            delivery.complete()
        except Exception as error:  # noqa: BLE001 - whatever a record does to us, it gets an outcome
            log.error("retry not understood", source=str(delivery.record), error=type(error).__name__)
            # One that others wrote may name no task. A name like those made for lane records would be another task's.
            made = task_id or f"{record.topic}.{record.partition}.{record.offset}"
            told = error if isinstance(error, DecodeError) else None
            cause = told or DecodeError(ErrorType.INVALID_REQUEST, "this is no record of a retry")
            self._receiver.reject(delivery, cause, made)

    def _task(self, record: Any, delivery: Delivery, task_id: str | None) -> Task:
        """Return the task of a retry record. Raises: _Finished, DecodeError, ValueError."""
        due_ms = _number(record.headers, names.DEADLINE_MS)
        if task_id is None or due_ms is None:
            raise ValueError("no headers of a retry")
        if self._past.is_finished((task_id, record.partition)):
            raise _Finished
        task = new_task(delivery, decode_request(record.value), task_id, due_ms, self._clock)
        task.attempts = _number(record.headers, names.ATTEMPTS) or 0
        task.hops = _number(record.headers, names.HOPS) or 0
        return task

    def _delivery(self, record: Any) -> Delivery:
        place = Source(record.topic, record.partition, record.offset)
        source = names.find(record.headers, names.SOURCE)
        try:
            lane_record = Source.parse(source) if source else place
        except ValueError:
            lane_record = place
        return Delivery(
            owner=self,
            group=self._names.group("retry"),
            lane=_lane(record.headers),
            record=place,
            source=lane_record,
            generation=self._generation,
            key=record.key,
            value=record.value,
            headers=record.headers,
            appended_ms=_number(record.headers, names.APPENDED_MS) or record.timestamp,
        )

    # Acknowledgement

    def complete(self, delivery: Delivery) -> None:
        """Release what may be committed now that this delivery is done. A delivery of an old generation changes nothing."""
        if delivery.generation != self._generation:
            return
        tp = TopicPartition(delivery.record.topic, delivery.partition)
        released = self._acks[tp].complete(delivery.offset)
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
        except KafkaError:
            self._done = done | self._done
            raise

    # Rebalances

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if not self._held:
            return
        self._held.clear()
        self._receiver.withdraw(self, running=False)
        await self._receiver.let_go(self, REVOKE_DRAIN_S)
        if self._consumer is not None:
            with contextlib.suppress(KafkaError):
                await self._commit(self._consumer)
        self._forget()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._forget()
        self._held = {tp: deque() for tp in assigned}
        for topic in self._topics:
            self._past.follow(topic, [tp.partition for tp in self._held if tp.topic == topic])

    def _forget(self) -> None:
        """Begin a new generation: what is completed of the old one must not be committed."""
        self._generation += 1
        self._receiver.withdraw(self, running=True)
        self._held.clear()
        self._acks.clear()
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
        return f"RetryIntake(generation={self._generation}, partitions={len(self._held)})"


class _Finished(Exception):
    """The task has its outcome."""


def _lane(headers: Headers) -> Lane:
    """Return a retry's lane; one that others wrote without saying waits with the least urgent."""
    try:
        return Lane(names.find(headers, names.LANE) or Lane.LOW)
    except ValueError:
        return Lane.LOW


def _number(headers: Headers, name: str) -> int | None:
    text = names.find(headers, name)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None
