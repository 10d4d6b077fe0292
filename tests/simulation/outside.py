"""Clients and the gateway: they submit, cancel, let expire what waits in Kafka, and tell outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.request import InferenceTask
from schemas.result import ErrorType, Outcome, Result, ResultError, Source
from schemas.topics import Lane
from streams.deadlines import deadline_ms
from streams.errors import RequestError
from streams.task import TaskKey
from tests.simulation.broker import Broker, Place, Record
from tests.simulation.checks import Checks
from tests.simulation.producing import Producer
from tests.simulation.world import Steps, World


@dataclass(slots=True)
class Entry:
    """A task that the gateway knows to be unfinished."""

    lane: Lane
    source: Source
    due_ms: int


class Gateway:
    """A gateway process that neither dies nor stands still; its view is late."""

    def __init__(self, world: World, broker: Broker, checks: Checks, partitions: int, lanes: list[Lane]) -> None:
        self.world, self.broker, self.checks = world, broker, checks
        self.id, self.may_end, self.is_alive, self.is_paused = "gateway", False, True, False
        self.stash: list[Callable[[], None]] = []
        self.producer = Producer(world, broker, self, lambda _timestamp: None)
        self.unfinished: dict[TaskKey, Entry] = {}
        self.ended: dict[TaskKey, None] = {}
        self._lanes = {broker.names.requests(lane): lane for lane in lanes}
        self._positions: dict[Place, int] = {}
        self._due: dict[Place, None] = {}
        for topic in (*self._lanes, broker.names.results):
            for partition in range(partitions):
                self._positions[topic, partition] = 0
                broker.readers[topic, partition][self] = self._appended

    def crash(self) -> None:
        """A gateway is not ended here: it would lose nothing but its view."""

    # Submissions

    def submit(self, lane: Lane, partition: int, task_id: str, value: InferenceTask | None) -> None:
        self.world.spawn(self, self._submit(lane, partition, task_id, value))

    def _submit(self, lane: Lane, partition: int, task_id: str, value: InferenceTask | None) -> Steps[None]:
        yield self.producer.write(self.broker.names.requests(lane), partition, task_id, value)
        if value is not None:
            self.checks.acknowledged[task_id, partition] = None

    # The view

    def _appended(self, place: Place) -> None:
        if place not in self._due:
            self._due[place] = None
            at_s = max(self.world.now_s + self.world.rng.uniform(0.001, 0.2), self.broker.away_until_s)
            self.world.at(at_s, lambda: self._read(place), self)

    def _read(self, place: Place) -> None:
        self._due.pop(place, None)
        records = self.broker.logs[place][self._positions[place] :]
        self._positions[place] += len(records)
        for record in records:
            if record.topic in self._lanes:
                self._learn(record)
            else:
                self._ended((record.key, record.partition), record.value.outcome)

    def _learn(self, record: Record) -> None:
        request = record.value
        key = (record.key, record.partition)
        if not isinstance(request, InferenceTask) or key in self.ended or key in self.unfinished:
            return
        try:
            due_ms = deadline_ms(request, record.timestamp)
        except RequestError:
            return
        source = Source(record.topic, record.partition, record.offset)
        self.unfinished[key] = Entry(self._lanes[record.topic], source, due_ms)
        if request.deadline_at_ms is not None:
            wait_s = (due_ms - self.broker.now_ms(record.partition)) / 1000
            self.world.after(max(wait_s, 0.0) + self.world.rng.uniform(0.0, 2.0), lambda: self._expire(key), self)

    def _ended(self, key: TaskKey, outcome: Outcome) -> None:
        self.unfinished.pop(key, None)
        if key not in self.ended:
            self.ended[key] = None
            self.checks.tells(key, outcome)

    # What it writes

    def cancel(self, key: TaskKey) -> None:
        if key in self.unfinished:
            self.world.fire("cancel")
            self.world.spawn(self, self._write(key, Outcome.CANCELLED, ErrorType.CANCELLED))

    def _expire(self, key: TaskKey) -> None:
        if key in self.unfinished:
            self.world.fire("expired by the gateway")
            self.world.spawn(self, self._write(key, Outcome.EXPIRED, ErrorType.DEADLINE_EXPIRED))

    def _write(self, key: TaskKey, outcome: Outcome, error: ErrorType) -> Steps[None]:
        entry = self.unfinished[key]
        result = Result(key[0], "default", outcome, entry.lane, entry.source, error=ResultError(error, "ended"))
        yield self.producer.write(self.broker.names.results, key[1], key[0], result)
