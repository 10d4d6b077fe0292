"""A worker's producer, as `wire/producing.py` promises it: what it is given becomes durable, perhaps twice, perhaps late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.headers import Headers
from tests.simulation.broker import Broker, Place, Record
from tests.simulation.world import Actor, Process, Signal, Steps, World
from wire.producing import RecordTooLarge

_LATENCY_S = (0.001, 0.02)
_NOTICED_S = 0.3
_STOP_S = 5.0
_APART_S = 1e-6


class ProducerClosed(Exception):
    """The process is stopping."""


@dataclass(slots=True, eq=False)
class Write:
    """Wait until a record is durable; gives its offset. `problem`: why it will never be written."""

    producer: Producer
    topic: str
    partition: int
    key: str
    value: object
    headers: Headers
    problem: Exception | None = None
    process: Process | None = None
    ticket: int = 0
    attempt: int = 0

    def begin(self, process: Process) -> None:
        self.process, self.ticket = process, process.ticket
        self.producer.take(self)

    def end(self, value: object = None, error: Exception | None = None) -> None:
        if self.process is not None:
            self.process.resume(self.ticket, value, error)


class Producer:
    """Writes for one process, in order within a partition. `on_appended(timestamp)` hears of each acknowledged record."""

    def __init__(self, world: World, broker: Broker, actor: Actor, on_appended: Callable[[int], None]) -> None:
        self.world, self.broker, self.actor, self._on_appended = world, broker, actor, on_appended
        self._pending: dict[Write, None] = {}
        self._newest: dict[Place, float] = {}
        self._flushed = Signal()
        self.is_closed = False

    def write(self, topic: str, partition: int, key: str, value: object, headers: Headers = ()) -> Write:
        return Write(self, topic, partition, key, value, headers)

    def too_large(self) -> Write:
        return Write(self, "", 0, "", None, (), problem=RecordTooLarge("too large"))

    def post(self, topic: str, partition: int, key: str, value: object) -> None:
        """Hand a record over without waiting; one that fails is lost."""
        self.take(Write(self, topic, partition, key, value, ()))

    def stop(self) -> Steps[None]:
        """Flush for at most 5 s; what is not acknowledged by then fails."""
        self.is_closed = True
        if self._pending:
            yield self._flushed.wait(_STOP_S)
        pending, self._pending = self._pending, {}
        for write in pending:
            write.end(error=ProducerClosed())

    def take(self, write: Write) -> None:
        problem = ProducerClosed() if self.is_closed else write.problem
        if problem is not None:
            self.world.after(0.0, lambda: write.end(error=problem), self.actor)
            return
        self._pending[write] = None
        self._attempt(write)

    def _attempt(self, write: Write) -> None:
        if write not in self._pending:
            return
        world, chances = self.world, self.world.chances
        write.attempt += 1
        attempt = write.attempt
        world.boundary(self.actor, "before a produce")
        delay_s = world.rng.uniform(*_LATENCY_S)
        if world.happens(chances.produce_delayed):
            world.fire("produce delayed", disrupts=True)
            delay_s += world.rng.uniform(0.5, 4.0)
        place = (write.topic, write.partition)
        at_s = max(world.now_s + delay_s, self.broker.away_until_s, self._newest.get(place, 0.0) + _APART_S)
        self._newest[place] = at_s
        if world.happens(chances.produce_failed):
            world.fire("produce failed", disrupts=True)
            world.at(at_s + _NOTICED_S, self.failed, self.actor)
            return
        is_ack_lost = world.happens(chances.ack_lost)
        world.at(at_s, lambda: self._arrive(write, attempt, is_ack_lost))

    def _arrive(self, write: Write, attempt: int, is_ack_lost: bool) -> None:
        if not self.actor.is_alive and self.world.rng.random() < 0.5:
            return
        record = self.broker.append(write.topic, write.partition, write.key, write.value, write.headers)
        self.world.boundary_beyond(self.actor, "between append and acknowledgement")
        if is_ack_lost:
            self.world.fire("acknowledgement lost", disrupts=True)
            self.world.after(_NOTICED_S, self.failed, self.actor)
        else:
            back_s = self.world.rng.uniform(*_LATENCY_S)
            self.world.after(back_s, lambda: self._acknowledged(write, attempt, record), self.actor)

    def _acknowledged(self, write: Write, attempt: int, record: Record) -> None:
        if write not in self._pending or attempt != write.attempt:
            return
        del self._pending[write]
        self._on_appended(record.timestamp)
        self.world.boundary(self.actor, "after a produce")
        write.end(record.offset)
        if not self._pending:
            self._flushed.set()

    def failed(self) -> None:
        """Replace the producer: what waits for an acknowledgement is sent again, what was only posted is lost."""
        pending = list(self._pending)
        if self.is_closed:
            self._flushed.set()
            return
        for write in pending:
            if write.process is None:
                del self._pending[write]
            else:
                write.attempt += 1
                self.world.after(self.world.rng.uniform(0.02, 0.3), self._again(write, write.attempt), self.actor)

    def _again(self, write: Write, attempt: int) -> Callable[[], None]:
        return lambda: self._attempt(write) if write.attempt == attempt else None
