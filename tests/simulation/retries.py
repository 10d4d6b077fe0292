"""`agents/retries.py` in virtual time: retry records go to the dispatcher when they are due."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from agents.delivery import Delivery
from schemas import headers as names
from schemas.headers import Headers
from schemas.result import Source
from schemas.topics import Lane, RetryTier
from streams.acks import InOrderAcks
from tests.simulation.broker import Broker, Group, Place, Record
from tests.simulation.checks import Checks
from tests.simulation.dispatch import DispatchLoop
from tests.simulation.history import History
from tests.simulation.intake import REVOKE_DRAIN_S, Bounds, new_task
from tests.simulation.world import Actor, Sleep, Steps, World

_POLL_S = 0.25
_COMMIT_EVERY_S = 1.0
_RETRY_S = 1.0


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
        self._held: dict[Place, deque[Record]] = {}
        self._positions: dict[Place, int] = {}
        self._acks: dict[Place, InOrderAcks[int]] = defaultdict(InOrderAcks)
        self._done: dict[Place, int] = {}
        self._generation = 0
        self.generation = -1
        self._committed_s = 0.0
        self._next_turn_s: float | None = None
        self._is_stopped = False
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
            self.world.spawn(self.worker, self._turn())

    def _turn(self) -> Steps[None]:
        for place, held in self._held.items():
            self._fetch(place, held)
        now_ms = self._receiver.dispatcher.clock.ms(self._now())
        for place, held in list(self._held.items()):
            self._hand_on(place, held, now_ms)
            if held:
                self._turn_by(self.world.now_s + max((_due_ms(held[0]) - now_ms) / 1000, _POLL_S))
        if self._done:
            if self._now() - self._committed_s >= _COMMIT_EVERY_S:
                yield from self._commit_or_restart()
            else:
                self._soon()

    def _fetch(self, place: Place, held: deque[Record]) -> None:
        room = self._bounds.held - len(held)
        records = self.broker.logs[place][self._positions[place] :][: max(room, 0)]
        held.extend(records)
        self._positions[place] += len(records)

    def _hand_on(self, place: Place, held: deque[Record], now_ms: int) -> None:
        if self.is_closed or not self._past.is_caught_up(place):
            return
        while held and _due_ms(held[0]) <= now_ms and self._acks[place].span < self._bounds.span:
            record = held[0]
            if self._receiver.waiting(_lane(record.headers)) >= self._bounds.waiting:
                return
            held.popleft()
            self._acks[place].add(record.offset, record.offset + 1)
            self._take(record)

    def _take(self, record: Record) -> None:
        delivery = self._delivery(record)
        task_id = names.find(record.headers, names.TASK_ID)
        due_ms = _number(record.headers, names.DEADLINE_MS)
        assert task_id is not None
        assert due_ms is not None
        if self._past.is_finished((task_id, record.partition)):
            self.world.fire("retry due after its end")
            delivery.complete()
            return
        task = new_task(delivery, record.value, task_id, due_ms, self._receiver.dispatcher.clock, self._now())
        task.attempts = _number(record.headers, names.ATTEMPTS) or 0
        task.hops = _number(record.headers, names.HOPS) or 0
        self._checks.taken(task, self._now())
        self._receiver.accept(task)

    def _delivery(self, record: Record) -> Delivery:
        return Delivery(
            owner=self,
            group=self.group.name,
            lane=_lane(record.headers),
            record=Source(record.topic, record.partition, record.offset),
            source=Source.parse(names.find(record.headers, names.SOURCE) or ""),
            generation=self._generation,
            key=record.key.encode(),
            value=record.value,
            headers=record.headers,
            appended_ms=_number(record.headers, names.APPENDED_MS) or record.timestamp,
        )

    # Acknowledgement

    def complete(self, delivery: Delivery) -> None:
        if delivery.generation != self._generation:
            self.world.fire("completed for an old generation")
            return
        place = (delivery.record.topic, delivery.partition)
        released = self._acks[place].complete(delivery.offset)
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
        if is_lost:
            self._done = done | self._done
        return not is_lost

    def _store(self, done: dict[Place, int]) -> None:
        self.group.commit(self, self.generation, done)

    def _commit_or_restart(self) -> Steps[None]:
        if not (yield from self._commit()):
            self._forget()
            self._stop_flow()
            self.group.leave(self)
            self.generation, self.is_member = -1, False
            yield Sleep(_RETRY_S)
            if not self._is_stopped:
                self.start()

    def _stop_flow(self) -> None:
        for place in self._positions:
            self.broker.readers[place].pop(self, None)
        self._positions.clear()

    # Rebalances

    def revoking(self) -> Steps[None]:
        if not self._held:
            return
        self._held.clear()
        self._receiver.withdraw(self, running=False)
        yield from self._receiver.let_go(self, REVOKE_DRAIN_S)
        yield from self._commit()
        self._forget()

    def assigned(self, places: list[Place], generation: int) -> None:
        self._forget()
        self._stop_flow()
        self.generation = generation
        self._held = {place: deque() for place in places}
        for topic in self._topics:
            self._past.follow(topic, [partition for owned, partition in self._held if owned == topic])
        for place in places:
            self._positions[place] = self.group.committed.get(place, 0)
            self.broker.readers[place][self] = self._soon
        self._soon()

    def _forget(self) -> None:
        self._generation += 1
        self._receiver.withdraw(self, running=True)
        self._held.clear()
        self._acks.clear()
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
        return {place: acks.unfinished for place, acks in self._acks.items() if acks.unfinished}


def _due_ms(record: Record) -> int:
    return _number(record.headers, names.NOT_BEFORE_MS) or 0


def _lane(headers: Headers) -> Lane:
    return Lane(names.find(headers, names.LANE) or Lane.LOW)


def _number(headers: Headers, name: str) -> int | None:
    text = names.find(headers, name)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None
