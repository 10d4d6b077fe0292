"""Intake: one Faust app per lane hands each record of its topic to the dispatcher, and acknowledges in offset order.

The agent is thin, and no exception leaves it: an event that is never acknowledged holds its partition for ever.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from aiokafka import TopicPartition
from faust.types import TP

from agents.delivery import REVOKE_DRAIN_S, Delivery, Owner
from agents.metrics import WorkerMetrics
from agents.transport import App
from schemas.codec import DecodeError, decode_request
from schemas.ids import made_id
from schemas.request import DEFAULT_TENANT, CachePolicy, InferenceTask
from schemas.result import ErrorType, Source
from schemas.topics import Lane
from streams.acks import InOrderAcks
from streams.brokertime import BrokerClock
from streams.cost import cost_tokens
from streams.deadlines import deadline_ms
from streams.errors import RequestError
from streams.task import Task, TaskKey, effective_parameters, fingerprint_of
from streams.watchdog import Reading, Watchdog
from wire.clock import monotonic_s
from wire.logs import get_logger

# Offsets between the oldest unfinished and the newest fetched request of a partition: bounds what a kill -9 delivers again.
MOST_SPAN = 512
_NO_GENERATION = -1

log = get_logger(__name__)


class Receiver(Protocol):
    """Who takes what was read: the dispatch loop."""

    def accept(self, task: Task) -> None: ...
    def reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None: ...
    def is_held(self, key: TaskKey) -> bool: ...
    def has_room(self, lane: Lane, share: float = 1.0) -> bool: ...
    def is_heavy(self, lane: Lane) -> bool: ...
    def withdraw(self, owner: Owner, *, running: bool) -> None: ...
    async def let_go(self, owner: Owner, timeout_s: float) -> None: ...


class Past(Protocol):
    """What the logs say of tasks and of the partitions that were read."""

    def is_caught_up(self, topic: str, partition: int) -> bool: ...
    async def caught_up(self, topic: str, partition: int) -> None: ...
    def is_finished(self, key: TaskKey) -> bool: ...
    def follow(self, topic: str, partitions: Iterable[int]) -> None: ...
    def committed(self, topic: str, partition: int, offset: int) -> None: ...


def new_task(delivery: Delivery, request: InferenceTask, task_id: str, due_ms: int, clock: BrokerClock) -> Task:
    """Return the task of a request that was taken in now; `due_ms` is its deadline in broker time."""
    now_s = monotonic_s()
    parameters = effective_parameters(request)
    max_tokens = parameters["max_tokens"]
    task = Task(
        task_id=task_id,
        lane=delivery.lane,
        tenant=request.tenant or DEFAULT_TENANT,
        request=request,
        sources=[delivery.source],
        place=(delivery.record.topic, delivery.record.partition),
        deliveries=[delivery],
        origin=delivery,
        headers=delivery.headers,
        appended_ms=delivery.appended_ms,
        deadline_ms=due_ms,
        accepted_ms=clock.ms(now_s),
        accepted_s=now_s,
        deadline_s=clock.monotonic_s(due_ms, now_s=now_s),
        cost_tokens=cost_tokens(request.messages, max_tokens if isinstance(max_tokens, int) else 0),
        size_bytes=len(delivery.value or b""),
        parameters=parameters,
        cache=request.cache or CachePolicy(),
    )
    if task.fills_cache:
        task.fingerprint = fingerprint_of(request, parameters)
    return task


class LaneIntake:
    """Owns a lane's deliveries from Faust's stream until they are acknowledged. Runs in the worker's loop only."""

    def __init__(
        self,
        lane: Lane,
        app: App,
        topic: str,
        *,
        clock: BrokerClock,
        receiver: Receiver,
        past: Past,
        metrics: WorkerMetrics,
    ) -> None:
        self.lane, self.app, self.topic = lane, app, topic
        self._clock, self._receiver, self._past, self._metrics = clock, receiver, past, metrics
        self._acks: dict[int, InOrderAcks[Any]] = defaultdict(InOrderAcks)
        self._generation = _NO_GENERATION
        self._changed = asyncio.Event()
        # What was fetched of a partition whose span is full; nothing more of it is, see `is_full`.
        self._overflow: dict[int, deque[Delivery]] = defaultdict(deque)
        self._taking: set[int] = set()
        self._is_blocked = self._is_revoking = False
        self.is_closed = False
        self.joined = asyncio.Event()
        self.partitions: set[int] = set()
        self.fetched_through: dict[int, int] = {}
        self.watchdog = Watchdog()
        app.observer = self
        channel = app.topic(topic, key_serializer="raw", value_serializer="raw", allow_empty=True)
        app.agent(channel, name=f"intake-{lane.value}")(self._consume)

    async def _consume(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                await self._admit(event)
            except Exception as error:  # noqa: BLE001 - an exception here would lose the event and restart the agent
                log.error("intake failed", lane=self.lane.value, error=type(error).__name__, detail=str(error))

    async def _admit(self, event: Any) -> None:
        message = event.message
        generation = message.generation_id
        if self._is_over(generation) or generation != self.app.consumer_generation_id:
            return  # not acknowledged: the partition's next owner gets it
        source = Source(message.topic, message.partition, message.offset)
        delivery = Delivery(
            owner=self,
            group=self.app.conf.id,
            lane=self.lane,
            record=source,
            source=source,
            generation=generation,
            key=message.key,
            value=message.value,
            headers=message.headers or (),
            appended_ms=int(message.timestamp * 1000 + 0.5),
        )
        self._acks[message.partition].add(message.offset, event)
        self.fetched_through[message.partition] = message.offset
        while not self._past.is_caught_up(self.topic, message.partition):
            await self._past.caught_up(self.topic, message.partition)
            if self._is_over(generation):
                return
        self._overflow[message.partition].append(delivery)
        self._take_what_fits(message.partition)
        await self._room(generation)

    def _is_over(self, generation: int) -> bool:
        """Whether what was delivered in a generation is left to the partition's next owner."""
        return self.is_closed or self._is_revoking or generation != self._generation

    def _take_what_fits(self, partition: int) -> None:
        """Take in what was delivered of a partition and lies within its span."""
        if partition in self._taking:  # what ends as it is taken comes back here: the loop below goes on with it
            return
        waiting, acks = self._overflow[partition], self._acks[partition]
        self._taking.add(partition)
        try:
            while waiting and waiting[0].offset - (acks.oldest or 0) < MOST_SPAN:
                self._take_or_reject(waiting.popleft())
        finally:
            self._taking.discard(partition)

    def _take_or_reject(self, delivery: Delivery) -> None:
        try:
            self._take(delivery)
        except Exception as error:  # noqa: BLE001 - whatever a record does to us, it gets an outcome
            log.error("request not understood", lane=self.lane.value, error=type(error).__name__)
            task_id = made_id(self.lane, delivery.partition, delivery.offset)
            self._reject(delivery, DecodeError(ErrorType.INTERNAL, "the request could not be handled"), task_id)

    def _take(self, delivery: Delivery) -> None:
        """Decode a record and hand it over; what cannot be read is rejected, what has an outcome is completed."""
        source = delivery.source
        task_id = made_id(self.lane, source.partition, source.offset)
        try:
            request = decode_request(delivery.value)
            task_id = request.task_id or task_id
            due_ms = deadline_ms(request, delivery.appended_ms)
        except DecodeError as error:
            self._reject(delivery, error, error.task_id or task_id)
            return
        except RequestError as error:
            self._reject(delivery, DecodeError(error.type, error.detail, tenant=request.tenant), task_id)
            return
        key = (task_id, source.partition)
        if self._past.is_finished(key):
            self._metrics.redelivered[self.lane].inc()
            delivery.complete()
            return
        if self._receiver.is_held(key):
            self._metrics.redelivered[self.lane].inc()
        else:
            self._metrics.accepted[self.lane].inc()
        self._receiver.accept(new_task(delivery, request, task_id, due_ms, self._clock))

    def _reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        self._metrics.rejected.labels(error.type.value).inc()
        if self._past.is_finished((task_id, delivery.partition)):
            delivery.complete()
        else:
            self._receiver.reject(delivery, error, task_id)

    async def _room(self, generation: int) -> None:
        """Wait until the lane's bound leaves room: the backlog stays in Kafka."""
        try:
            while not self._is_over(generation) and not self._receiver.has_room(self.lane):
                self._is_blocked = True
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._is_blocked = False

    def is_full(self, partition: int) -> bool:
        """Whether nothing more of a partition is to be fetched now: one task at its head holds all behind it up, but no other.

        Of a lane that is full of large tasks neither: what is fetched beyond would be large, too.
        """
        return self._acks[partition].span >= MOST_SPAN or self._receiver.is_heavy(self.lane)

    def complete(self, delivery: Delivery) -> None:
        """Acknowledge what may be acknowledged now that this delivery is done. A delivery of an old generation changes nothing."""
        if delivery.generation != self._generation:
            return
        for event in self._acks[delivery.partition].complete(delivery.offset):
            event.ack()
        if self._overflow[delivery.partition] and not self._is_over(delivery.generation):
            self._take_what_fits(delivery.partition)
        self.wake()

    def wake(self) -> None:
        """Look again whether there is room."""
        self._changed.set()

    def close(self) -> None:
        """Take nothing more in; what arrives is left to the next owner."""
        self.is_closed = True
        self.wake()

    # PartitionsObserver

    async def revoking(self, partitions: set[TP]) -> None:
        self._is_revoking = True
        self._overflow.clear()
        # A worker that drains holds nobody up: its calls go on as long as its drain does, and the next owner waits for them.
        await self._receiver.let_go(self, 0.0 if self.is_closed else REVOKE_DRAIN_S)
        # What is acknowledged by now is committed next; an acknowledgement after that would be committed for a generation that is over.
        self._generation = _NO_GENERATION

    async def assigned(self, partitions: set[TP], generation: int) -> None:
        self._receiver.withdraw(self, running=True)
        self._is_revoking = False
        self._acks.clear()
        self._overflow.clear()
        self.fetched_through.clear()
        self._generation = generation
        self.partitions = {tp.partition for tp in partitions if tp.topic == self.topic}
        self._metrics.rebalances[self.lane].inc()
        log.info("partitions assigned", lane=self.lane.value, partitions=sorted(self.partitions), generation=generation)
        self.wake()
        self._past.follow(self.topic, self.partitions)
        self.joined.set()

    def committed(self, offsets: Mapping[TP, int]) -> None:
        for tp, offset in offsets.items():
            self._past.committed(tp.topic, tp.partition, offset)

    def reading(self, asked: Mapping[TopicPartition, int]) -> dict[int, Reading]:
        """Return how far each partition was read, what there is to read, and whether this side is what holds it up.

        `asked`: ends that were asked for by another client than the one that fetches.
        """
        ends = self.app.read_to_and_ends(self.topic)
        return {
            partition: Reading(
                read_to,
                max(end, asked.get(TopicPartition(self.topic, partition), 0)),
                has_room=not self._is_blocked and not self.is_full(partition),
            )
            for partition, (read_to, end) in ends.items()
            if self._past.is_caught_up(self.topic, partition)
        }

    def __repr__(self) -> str:
        return f"LaneIntake({self.lane.value}, generation={self._generation}, partitions={sorted(self.partitions)})"
