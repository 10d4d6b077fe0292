"""`agents/history.py` in virtual time: follows outcomes, starts and snapshots for the partitions a worker owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agents.history import LOOK_BACK_MS
from schemas.progress import Released, Started
from schemas.result import Outcome, Result, Source
from streams.outcome import FinishedIndex
from streams.redelivery import Peers, RecentEnds, Redelivery, StartsIndex
from streams.task import TaskKey
from tests.simulation.broker import Broker, Group, Place, Record
from tests.simulation.world import Actor, Signal, Sleep, Steps, World

_LOOK_UP_S = (0.005, 0.1)
_READ_S = (0.005, 0.3)


@dataclass(eq=False)
class Followed:
    ready: Signal = field(default_factory=Signal)
    targets: dict[Place, int] | None = None


class History:
    """What the logs say. `seen` holds every task of which this worker read a terminal record."""

    def __init__(
        self, world: World, broker: Broker, groups: Mapping[str, Group], retries: set[str], actor: Actor
    ) -> None:
        self.world, self.broker, self.actor = world, broker, actor
        self.index, self.ends, self.peers = FinishedIndex(), RecentEnds(), Peers(actor.id)
        self.starts = StartsIndex(self.ends)
        self.redelivery = Redelivery(self.starts, self.peers)
        self.on_outcome: Callable[[TaskKey], None] = lambda _key: None
        self.seen: dict[TaskKey, None] = {}
        self._groups, self._retries = groups, retries
        self._places: dict[Place, Followed] = {}
        self._positions: dict[Place, int] = {}
        self._due: dict[Place, None] = {}
        self._begun: set[Place] = set()
        self._workers: Place = (broker.names.workers, 0)
        self._changed = Signal()

    # What the intake asks

    def is_caught_up(self, place: Place) -> bool:
        followed = self._places.get(place)
        return followed is not None and followed.ready.is_set

    def caught_up(self, place: Place) -> Steps[None]:
        followed = self._places.get(place)
        if followed is not None:
            yield followed.ready.wait()

    def is_finished(self, key: TaskKey) -> bool:
        return self.index.outcome_of(*key) is not None or key in self.ends

    def follow(self, topic: str, partitions: Iterable[int]) -> None:
        owned = list(partitions)
        for place in [place for place in self._places if place[0] == topic]:
            self._places.pop(place).ready.set()
            if place[1] not in owned:
                self.index.release(*place)
        for partition in owned:
            self._places[topic, partition] = Followed()
        followed = {partition for _, partition in self._places}
        for partition in {log[1] for log in self._positions if log != self._workers} - followed:
            self.starts.release(partition)
        self._changed.set()

    def ended(self, key: TaskKey, source: Source, outcome: Outcome) -> None:
        self.index.observe(key[0], source, outcome)
        self.ends.add(key)
        self.starts.ended(key)

    def committed(self, place: Place, offset: int) -> None:
        if place in self._places and place[0] not in self._retries:
            self.index.commit(*place, offset)

    # The reader

    def run(self) -> Steps[None]:
        while True:
            yield self._changed.wait()
            self._changed.clear()
            yield from self._reassign()

    def stop(self) -> None:
        self._positions.clear()
        self._listen()

    def observe(self, record: Record) -> None:
        if record.topic == self.broker.names.results:
            self._observe_result(record.value, record.partition)
        elif record.topic == self.broker.names.progress:
            self._observe_progress(record.value, record.partition)
        else:
            self.peers.observe(record.key, record.value, record.timestamp)

    def _observe_progress(self, value: Started | Released, partition: int) -> None:
        if isinstance(value, Released):
            self.starts.released(value, partition)
        else:
            self.starts.observe(value, partition)

    def _observe_result(self, result: Result, partition: int) -> None:
        key = (result.task_id, partition)
        self.ended(key, result.source, result.outcome)
        self.seen[key] = None
        self.on_outcome(key)

    def _reassign(self) -> Steps[None]:
        asked = {place: followed for place, followed in self._places.items() if followed.targets is None}
        new = [place for place in asked if place not in self._begun]
        starts = (yield from self._starts(new)) if new else {}
        self._begun = {place for place in (*self._begun, *new) if place in self._places}
        wanted = {log: None for _, partition in self._places for log in self._logs(partition)}
        if self._places:
            wanted[self._workers] = None
            starts.setdefault(self._workers, self._positions.get(self._workers, 0))
        for log, offset in starts.items():
            self._positions[log] = min(offset, self._positions.get(log, offset))
        self._positions = {log: offset for log, offset in self._positions.items() if log in wanted}
        self._listen()
        if asked:
            yield from self._look_up()
        for place, followed in asked.items():
            if self._places.get(place) is followed:
                followed.targets = {log: self.broker.end(log) for log in (*self._logs(place[1]), self._workers)}
        self._notice_caught_up()

    def _starts(self, asked: list[Place]) -> Steps[dict[Place, int]]:
        yield from self._look_up()
        ends = {log: self.broker.end(log) for _, partition in asked for log in self._logs(partition)}
        yield from self._look_up()
        committed = {place: self._groups[place[0]].committed.get(place, 0) for place in asked}
        for place, offset in committed.items():
            if place[0] not in self._retries and place in self._places:
                self.index.commit(*place, offset)
        yield from self._look_up()
        first_ms: dict[int, int] = {}
        for place, offset in committed.items():
            if offset < self.broker.end(place):
                appended_ms = self.broker.logs[place][offset].timestamp
                first_ms[place[1]] = min(appended_ms, first_ms.get(place[1], appended_ms))
        yield from self._look_up()
        looked_up = {
            log: max(ms - LOOK_BACK_MS, 0) for partition, ms in first_ms.items() for log in self._logs(partition)
        }
        found = {log: self.broker.first_since(log, ms) for log, ms in looked_up.items()}
        return ends | {log: offset for log, offset in found.items() if offset < self.broker.end(log)}

    def _look_up(self) -> Steps[None]:
        yield Sleep(self.world.rng.uniform(*_LOOK_UP_S) + max(self.broker.away_until_s - self.world.now_s, 0.0))

    def _listen(self) -> None:
        for log, readers in self.broker.readers.items():
            if log not in self._positions:
                readers.pop(self, None)
        for log in self._positions:
            self.broker.readers[log][self] = self._appended
            self._appended(log)

    def _appended(self, log: Place) -> None:
        if log not in self._due:
            self._due[log] = None
            wait_s = self.world.rng.uniform(*_READ_S)
            self.world.at(max(self.world.now_s + wait_s, self.broker.away_until_s), lambda: self._read(log), self.actor)

    def _read(self, log: Place) -> None:
        self._due.pop(log, None)
        position = self._positions.get(log)
        if position is None:
            return
        records = self.broker.logs[log][position:]
        for record in records:
            self.observe(record)
        self._positions[log] = position + len(records)
        self._notice_caught_up()

    def _notice_caught_up(self) -> None:
        for followed in self._places.values():
            if followed.targets is None or followed.ready.is_set:
                continue
            for log, end in list(followed.targets.items()):
                if log not in self._positions or self._positions[log] >= end:
                    del followed.targets[log]
            if not followed.targets:
                followed.ready.set()

    def _logs(self, partition: int) -> tuple[Place, Place]:
        return (self.broker.names.results, partition), (self.broker.names.progress, partition)
