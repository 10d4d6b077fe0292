"""`agents/intake.py` on `agents/transport.py`, in virtual time: a lane's records go to the dispatcher, and are acknowledged in order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from agents.delivery import REVOKE_DRAIN_S, Delivery
from schemas.codec import DecodeError
from schemas.ids import made_id
from schemas.request import DEFAULT_TENANT, CachePolicy, InferenceTask
from schemas.result import ErrorType, Source
from schemas.topics import Lane
from streams.acks import InOrderAcks
from streams.brokertime import BrokerClock
from streams.cost import cost_tokens
from streams.deadlines import deadline_ms
from streams.errors import RequestError
from streams.task import Task, effective_parameters, fingerprint_of
from tests.simulation.broker import Broker, Group, Place, Record
from tests.simulation.checks import Checks
from tests.simulation.dispatch import DispatchLoop
from tests.simulation.history import History
from tests.simulation.world import Actor, Signal, Sleep, Steps, World

_COMMIT_EVERY_S = 1.0
_NO_GENERATION = -1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an intake may hold: offsets of a partition, waiting tasks of a lane, retry records of a partition that were not handed on,
    and retries of a lane beyond `waiting`.
    """

    span: int
    waiting: int
    held: int
    own_room: int


def new_task(
    delivery: Delivery, request: InferenceTask, task_id: str, due_ms: int, clock: BrokerClock, now_s: float
) -> Task:
    parameters = effective_parameters(request)
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
        cost_tokens=cost_tokens(request.messages, 16),
        parameters=parameters,
        cache=request.cache or CachePolicy(),
    )
    if task.fills_cache:
        task.fingerprint = fingerprint_of(request, parameters)
    return task


class LaneIntake:
    """One lane's consumer in one worker."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        worker: Actor,
        lane: Lane,
        group: Group,
        receiver: DispatchLoop,
        past: History,
        checks: Checks,
        bounds: Bounds,
        *,
        now: Callable[[], float],
    ) -> None:
        self.world, self.broker, self.worker, self.lane, self.group = world, broker, worker, lane, group
        self.topic = broker.names.requests(lane)
        self._receiver, self._past, self._checks, self._bounds, self._now = receiver, past, checks, bounds, now
        self._acks: dict[int, InOrderAcks[int]] = defaultdict(InOrderAcks)
        self._acked: dict[Place, int] = {}
        self._generation = self.generation = _NO_GENERATION
        self._changed, self._arrived = Signal(), Signal()
        self._queue: deque[tuple[Record, int]] = deque()
        self._positions: dict[Place, int] = {}
        self._shut: dict[Place, None] = {}
        self._due: dict[Place, None] = {}
        # What was fetched of a partition whose span is full; nothing more of it is, see `is_full`.
        self._overflow: dict[int, deque[Delivery]] = defaultdict(deque)
        self._is_committing = self._is_revoking = False
        self.is_member = self.is_closed = False

    def start(self) -> None:
        self.world.spawn(self.worker, self._consume())
        self.is_member = True
        self.group.join(self)

    # Fetching

    def _appended(self, place: Place) -> None:
        if place not in self._due:
            self._due[place] = None
            at_s = max(self.world.now_s + self.world.rng.uniform(0.001, 0.1), self.broker.away_until_s)
            self.world.at(at_s, lambda: self._fetch(place), self.worker)

    def _fetch(self, place: Place) -> None:
        self._due.pop(place, None)
        position = self._positions.get(place)
        if position is None:
            return
        if self.is_full(place[1]):
            self.world.fire("a full span")
            self._shut[place] = None
            return
        records = self.broker.logs[place][position : position + 16]
        self._queue.extend((record, self.generation) for record in records)
        self._positions[place] = position + len(records)
        if self._positions[place] < self.broker.end(place):
            self._appended(place)
        self._arrived.set()

    def _stop_flow(self) -> None:
        for place in self._positions:
            self.broker.readers[place].pop(self, None)
        self._positions.clear()
        self._shut.clear()
        self._queue.clear()

    def _consume(self) -> Steps[None]:
        while True:
            while self._queue:
                record, generation = self._queue.popleft()
                yield from self._admit(record, generation)
            self._arrived.clear()
            yield self._arrived.wait()

    def _admit(self, record: Record, generation: int) -> Steps[None]:
        if self._is_over(generation) or generation != self.generation:
            return
        source = Source(record.topic, record.partition, record.offset)
        delivery = Delivery(
            owner=self,
            group=self.group.name,
            lane=self.lane,
            record=source,
            source=source,
            generation=generation,
            key=record.key.encode(),
            value=record.value,
            headers=record.headers,
            appended_ms=record.timestamp,
        )
        self._acks[record.partition].add(record.offset, record.offset)
        place = (self.topic, record.partition)
        while not self._past.is_caught_up(place):
            yield from self._past.caught_up(place)
            if self._is_over(generation):
                return
        self._overflow[record.partition].append(delivery)
        self._take_what_fits(record.partition)
        yield from self._room(generation)

    def _is_over(self, generation: int) -> bool:
        return self.is_closed or self._is_revoking or generation != self._generation

    def _take_what_fits(self, partition: int) -> None:
        waiting, acks = self._overflow[partition], self._acks[partition]
        while waiting and waiting[0].offset - (acks.oldest or 0) < self._bounds.span:
            self._take(waiting.popleft())

    def _take(self, delivery: Delivery) -> None:
        source = delivery.source
        oldest = self._acks[source.partition].oldest
        assert oldest is not None
        self._checks.span(self.worker, source.offset - oldest + 1, self._bounds.span)
        task_id = made_id(self.lane, source.partition, source.offset)
        request: object = delivery.value
        if not isinstance(request, InferenceTask):
            self._reject(delivery, DecodeError(ErrorType.INVALID_REQUEST, "no request"), task_id)
            return
        task_id = request.task_id or task_id
        try:
            due_ms = deadline_ms(request, delivery.appended_ms)
        except RequestError as error:
            self._reject(delivery, DecodeError(error.type, error.detail), task_id)
            return
        if self._past.is_finished((task_id, source.partition)):
            self.world.fire("delivered after its end")
            delivery.complete()
            return
        task = new_task(delivery, request, task_id, due_ms, self._receiver.dispatcher.clock, self._now())
        self._checks.taken(task, self._now())
        self._receiver.accept(task)

    def _reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        if self._past.is_finished((task_id, delivery.partition)):
            delivery.complete()
        else:
            self._receiver.reject(delivery, error, task_id)

    def _room(self, generation: int) -> Steps[None]:
        while not self._is_over(generation) and self._receiver.held(self.lane) >= self._bounds.waiting:
            self.world.fire("no room")
            self._changed.clear()
            yield self._changed.wait()

    def is_full(self, partition: int) -> bool:
        return self._acks[partition].span >= self._bounds.span

    def complete(self, delivery: Delivery) -> None:
        if delivery.generation != self._generation:
            self.world.fire("completed for an old generation")
            return
        for offset in self._acks[delivery.partition].complete(delivery.offset):
            self._acknowledge(delivery.partition, offset)
        if self._overflow[delivery.partition] and not self._is_over(delivery.generation):
            self.world.fire("taken out of the overflow")
            self._take_what_fits(delivery.partition)
        for place in [place for place in self._shut if not self.is_full(place[1])]:
            del self._shut[place]
            self._appended(place)
        self.wake()

    def _acknowledge(self, partition: int, offset: int) -> None:
        self._acked[self.topic, partition] = offset + 1
        if not self._is_committing:
            self._is_committing = True
            self.world.spawn(self.worker, self._commit_soon())

    def wake(self) -> None:
        self._changed.set()

    def close(self) -> None:
        self.is_closed = True
        self.wake()

    # Commits

    def _commit_soon(self) -> Steps[None]:
        yield Sleep(self.world.rng.uniform(0.0, _COMMIT_EVERY_S))
        self._is_committing = False
        yield from self.commit()

    def commit(self) -> Steps[None]:
        offsets, self._acked = self._acked, {}
        if not offsets:
            return
        self.world.boundary(self.worker, "before a commit")
        yield Sleep(self.world.rng.uniform(0.0005, 0.01) + max(self.broker.away_until_s - self.world.now_s, 0.0))
        is_lost = self.world.happens(self.world.chances.commit_failed)
        if is_lost:
            self.world.fire("commit failed")
            if self.world.rng.random() < 0.5:
                return
        if not self._store(offsets) or is_lost:
            return
        self.world.boundary(self.worker, "after a commit")
        for place, offset in offsets.items():
            self._past.committed(place, offset)

    def _store(self, offsets: dict[Place, int]) -> bool:
        return self.group.commit(self, self.generation, offsets)

    # Rebalances

    def revoking(self) -> Steps[None]:
        if not self._positions:
            return
        self._stop_flow()
        self._is_revoking = True
        self._overflow.clear()
        yield from self._receiver.let_go(self, REVOKE_DRAIN_S)
        self._generation = _NO_GENERATION
        yield from self.commit()

    def assigned(self, places: list[Place], generation: int) -> None:
        self.world.say(self.worker.id, "owns", places, "generation", generation)
        self._stop_flow()
        self._receiver.withdraw(self, running=True)
        self._is_revoking = False
        self._forget_acks()
        self._overflow.clear()
        self._generation = self.generation = generation
        self.wake()
        self._past.follow(self.topic, [partition for _, partition in places])
        for place in places:
            self._positions[place] = self.group.committed.get(place, 0)
            self.broker.readers[place][self] = self._appended
            self._appended(place)

    def _forget_acks(self) -> None:
        self._acks.clear()
        self._acked.clear()

    # The end

    def stop(self) -> Steps[None]:
        self.is_member = False
        self._stop_flow()
        yield from self.commit()
        self.group.leave(self)

    @property
    def unfinished(self) -> dict[Place, list[int]]:
        return {(self.topic, p): acks.unfinished for p, acks in self._acks.items() if acks.unfinished}
