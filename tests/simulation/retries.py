"""`agents/retries.py` in virtual time: retry records go to the dispatcher when they are due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agents.delivery import REVOKE_DRAIN_S, Delivery
from schemas.codec import DecodeError
from schemas.request import InferenceTask
from schemas.result import ErrorType, Source
from schemas.retry import Retry
from schemas.topics import Lane, RetryTier
from streams.acks import InOrderAcks
from tests.simulation.broker import Broker, Group, Place, Record
from tests.simulation.checks import Checks
from tests.simulation.dispatch import DispatchLoop
from tests.simulation.history import History
from tests.simulation.intake import Bounds, new_task
from tests.simulation.world import Actor, Sleep, Steps, World

_POLL_S = 0.25
_COMMIT_EVERY_S = 1.0
_RETRY_S = 1.0


@dataclass(slots=True)
class Held:
    """A record that was fetched, and when it is due. `retry` None: it is no record of a retry."""

    record: Record
    retry: Retry | None
    due_ms: int


class Partition:
    """What was fetched of one partition: a queue for each lane, so that a full lane holds no other one up."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.acks: InOrderAcks[int] = InOrderAcks()
        self.queues: dict[Lane, deque[Held]] = {lane: deque() for lane in Lane}

    @property
    def is_full(self) -> bool:
        held = sum(len(queue) for queue in self.queues.values())
        return held >= self._bounds.held or self.acks.span >= self._bounds.span


class RetryIntake:
    """The retry topics' consumer in one worker."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        worker: Actor,
        group: Group,
        receiver: DispatchLoop,
        past: History,
        checks: Checks,
        bounds: Bounds,
        *,
        now: Callable[[], float],
    ) -> None:
        self.world, self.broker, self.worker, self.group = world, broker, worker, group
        self._receiver, self._past, self._checks, self._bounds, self._now = receiver, past, checks, bounds, now
        self._topics = [broker.names.retry(tier) for tier in RetryTier]
        self._delays_ms = {broker.names.retry(tier): tier.delay_ms for tier in RetryTier}
        self._partitions: dict[Place, Partition] = {}
        self._positions: dict[Place, int] = {}
        self._done: dict[Place, int] = {}
        self._generation = 0
        self.generation = -1
        self._committed_s = 0.0
        self._next_turn_s: float | None = None
        self._is_stopped = self._is_waiting = False
        self.is_member = self.is_closed = False

    def start(self) -> None:
        self.is_member = True
        self.group.join(self)

    # The reader

    def _turn_by(self, at_s: float) -> None:
        if self._next_turn_s is None or at_s < self._next_turn_s:
            self._next_turn_s = at_s
            self.world.at(at_s, lambda: self._turned(at_s), self.worker)

    def _soon(self, _place: object = None) -> None:
        self._turn_by(max(self.world.now_s + self.world.rng.uniform(0.0, _POLL_S), self.broker.away_until_s))

    def _turned(self, at_s: float) -> None:
        if self._next_turn_s == at_s and not self._is_stopped:
            self._next_turn_s = None
            if not self._is_waiting:
                self.world.spawn(self.worker, self._turn())

    def _turn(self) -> Steps[None]:
        for place, partition in self._partitions.items():
            self._fetch(place, partition)
        now_ms = self._receiver.dispatcher.clock.ms(self._now())
        for place, partition in list(self._partitions.items()):
            if not self.is_closed and self._past.is_caught_up(place):
                for lane, queue in partition.queues.items():
                    self._hand_on(lane, queue, now_ms)
        self._look_again(now_ms)
        if self._done:
            if self._now() - self._committed_s >= _COMMIT_EVERY_S:
                yield from self._commit_or_restart()
            else:
                self._soon()

    def _look_again(self, now_ms: int) -> None:
        """See to it that the next turn, of those that the product takes again and again, comes when there may be something to do."""
        for place, partition in self._partitions.items():
            dues = [queue[0].due_ms for queue in partition.queues.values() if queue]
            if dues:
                self._turn_by(self.world.now_s + max((min(dues) - now_ms) / 1000, _POLL_S))
            if not partition.is_full and self._positions[place] < self.broker.end(place):
                self._soon()

    def _fetch(self, place: Place, partition: Partition) -> None:
        if partition.is_full:
            self.world.fire("retries paused")
            return
        records = self.broker.logs[place][self._positions[place] :][: self._bounds.held]
        for record in records:
            self._hold(partition, record)
        self._positions[place] += len(records)

    def _hold(self, partition: Partition, record: Record) -> None:
        partition.acks.add(record.offset, record.offset + 1)
        try:
            retry = Retry.parse(record.headers, record.partition, self.broker.names)
        except ValueError:
            partition.queues[Lane.LOW].append(Held(record, None, 0))
            return
        due_ms = min(retry.not_before_ms, record.timestamp + self._delays_ms[record.topic])
        partition.queues[retry.lane].append(Held(record, retry, due_ms))

    def _hand_on(self, lane: Lane, queue: deque[Held], now_ms: int) -> None:
        most = self._bounds.waiting + self._bounds.own_room
        while queue and queue[0].due_ms <= now_ms and self._receiver.held(lane) < most:
            if self._receiver.held(lane) >= self._bounds.waiting:
                self.world.fire("a retry in its own room")
            self._take(queue.popleft())

    def _take(self, held: Held) -> None:
        record, retry = held.record, held.retry
        delivery = self._delivery(record, retry)
        if retry is None:
            self.world.fire("no retry")
            made = f"{record.topic}.{record.partition}.{record.offset}"
            error = DecodeError(ErrorType.INVALID_REQUEST, "this is no record of a retry")
            self._receiver.reject(delivery, error, made)
            return
        if self._past.is_finished((retry.task_id, record.partition)):
            self.world.fire("retry due after its end")
            delivery.complete()
            return
        request = record.value
        assert isinstance(request, InferenceTask)
        clock = self._receiver.dispatcher.clock
        task = new_task(delivery, request, retry.task_id, retry.deadline_ms, clock, self._now())
        task.attempts, task.hops = retry.attempts, retry.hops
        self._checks.taken(task, self._now())
        self._receiver.accept(task)

    def _delivery(self, record: Record, retry: Retry | None) -> Delivery:
        place = Source(record.topic, record.partition, record.offset)
        return Delivery(
            owner=self,
            group=self.group.name,
            lane=Lane.LOW if retry is None else retry.lane,
            record=place,
            source=place if retry is None else retry.source,
            generation=self._generation,
            key=record.key.encode(),
            value=record.value,
            headers=record.headers,
            appended_ms=record.timestamp if retry is None else retry.appended_ms,
        )

    # Acknowledgement

    def complete(self, delivery: Delivery) -> None:
        if delivery.generation != self._generation:
            self.world.fire("completed for an old generation")
            return
        place = (delivery.record.topic, delivery.partition)
        released = self._partitions[place].acks.complete(delivery.offset)
        if released:
            self._done[place] = released[-1]
        self._soon()

    def _commit(self) -> Steps[bool]:
        self._committed_s = self._now()
        done, self._done = self._done, {}
        if not done:
            return True
        self.world.boundary(self.worker, "before a commit")
        yield Sleep(self.world.rng.uniform(0.0005, 0.01) + max(self.broker.away_until_s - self.world.now_s, 0.0))
        is_lost = self.world.happens(self.world.chances.commit_failed)
        if is_lost:
            self.world.fire("commit failed")
        if not is_lost or self.world.rng.random() < 0.5:
            self._store(done)
            self.world.boundary(self.worker, "after a commit")
        return not is_lost

    def _store(self, done: dict[Place, int]) -> None:
        self.group.commit(self, self.generation, done)

    def _commit_or_restart(self) -> Steps[None]:
        if not (yield from self._commit()):
            self._is_waiting = True
            yield Sleep(_RETRY_S)
            self._is_waiting = False
            self._forget()
            self._stop_flow()
            self.group.leave(self)
            self.generation, self.is_member = -1, False
            if not self._is_stopped:
                self.start()

    def _stop_flow(self) -> None:
        for place in self._positions:
            self.broker.readers[place].pop(self, None)
        self._positions.clear()

    # Rebalances

    def revoking(self) -> Steps[None]:
        if not self._partitions:
            return
        for partition in self._partitions.values():
            partition.queues = {lane: deque() for lane in Lane}
        yield from self._receiver.let_go(self, REVOKE_DRAIN_S)
        yield from self._commit()
        self._forget()

    def assigned(self, places: list[Place], generation: int) -> None:
        self._forget()
        self._stop_flow()
        self.generation = generation
        self._partitions = {place: Partition(self._bounds) for place in places}
        for topic in self._topics:
            self._past.follow(topic, [partition for owned, partition in self._partitions if owned == topic])
        for place in places:
            self._positions[place] = self.group.committed.get(place, 0)
            self.broker.readers[place][self] = self._soon
        self._soon()

    def _forget(self) -> None:
        self._generation += 1
        self._receiver.withdraw(self, running=True)
        self._partitions = {}
        self._done.clear()

    # The end

    def close(self) -> None:
        self.is_closed = True

    def stop(self) -> Steps[None]:
        self._is_stopped, self.is_member = True, False
        yield from self._commit()
        self._stop_flow()
        self.group.leave(self)

    @property
    def unfinished(self) -> dict[Place, list[int]]:
        return {place: part.acks.unfinished for place, part in self._partitions.items() if part.acks.unfinished}
