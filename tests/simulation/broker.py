"""A model of Kafka: partitioned logs, and groups with generations."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.headers import Headers
from schemas.topics import TopicNames
from tests.simulation.world import EPOCH_MS, Actor, Steps, World

Place = tuple[str, int]
"""A partition of a topic."""

SESSION_S = 6.0
_REBALANCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in its log; `timestamp` is its broker's append time."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str
    value: Any
    headers: Headers


class Watcher(Protocol):
    """Who checks what becomes durable."""

    def appended(self, record: Record) -> None: ...
    def committed(self, group: str, place: Place, before: int, after: int, *, is_fenced: bool) -> None: ...


class Broker:
    """The logs. Partition numbers are led by brokers whose clocks differ by `skew_ms`; while away, nothing is appended or read."""

    def __init__(self, world: World, watcher: Watcher, skew_ms: Mapping[int, int]) -> None:
        self.world, self.watcher, self._skew_ms = world, watcher, skew_ms
        self.names = TopicNames()
        self.logs: dict[Place, list[Record]] = defaultdict(list)
        self.readers: dict[Place, dict[object, Callable[[Place], None]]] = defaultdict(dict)
        self.away_until_s = 0.0

    def now_ms(self, partition: int = 0) -> int:
        return EPOCH_MS + int(self.world.now_s * 1000) + self._skew_ms.get(partition, 0)

    def append(self, topic: str, partition: int, key: str, value: object, headers: Headers = ()) -> Record:
        log = self.logs[topic, partition]
        record = Record(topic, partition, len(log), self.now_ms(partition), key, value, headers)
        log.append(record)
        self.watcher.appended(record)
        for told in list(self.readers[topic, partition].values()):
            told((topic, partition))
        return record

    def end(self, place: Place) -> int:
        return len(self.logs[place])

    def first_since(self, place: Place, timestamp: int) -> int:
        """Return the offset of the first record of that time or later, the end of the log when there is none."""
        return bisect_left(self.logs[place], timestamp, key=lambda record: record.timestamp)


class Member(Protocol):
    """One consumer of a group."""

    worker: Actor
    generation: int
    is_member: bool

    def revoking(self) -> Steps[None]: ...
    def assigned(self, places: list[Place], generation: int) -> None: ...


class Group:
    """A consumer group with eager rebalances. Members learn of one by their heartbeats; who is silent for a session is put out."""

    def __init__(self, world: World, broker: Broker, name: str, topics: Iterable[str], partitions: int) -> None:
        self.world, self.broker, self.name = world, broker, name
        self.places = [(topic, partition) for topic in topics for partition in range(partitions)]
        self.committed: dict[Place, int] = {}
        self.generation = 0
        self._members: dict[Member, bool] = {}
        self._leaving: dict[Member, None] = {}
        self._owners: dict[Place, Member] = {}
        self._is_preparing = False
        self._round = 0

    def has(self, member: Member) -> bool:
        return member in self._members

    def join(self, member: Member) -> None:
        self._members[member] = True
        self._prepare()

    def leave(self, member: Member) -> None:
        if self._members.pop(member, None) is not None:
            self._prepare()

    def rejoin(self, member: Member) -> None:
        """A member hears that it was put out."""
        if member not in self._members:
            self._tell(member)

    def commit(self, member: Member, generation: int, offsets: Mapping[Place, int]) -> bool:
        """Return whether the offsets were taken; those of another generation are refused."""
        if self.is_fenced(member, generation):
            self.world.fire("commit refused")
            return False
        self.store(member, generation, offsets)
        return True

    def is_fenced(self, member: Member, generation: int) -> bool:
        return member not in self._members or generation != self.generation

    def store(self, member: Member, generation: int, offsets: Mapping[Place, int]) -> None:
        is_fenced = self.is_fenced(member, generation)
        for place, offset in offsets.items():
            before = self.committed.get(place, 0)
            self.committed[place] = offset
            self.broker.watcher.committed(self.name, place, before, offset, is_fenced=is_fenced)

    def _prepare(self) -> None:
        if self._is_preparing:
            self._complete_when_ready()
            return
        self._is_preparing, self._round = True, self._round + 1
        self.world.fire("rebalance")
        number = self._round
        for member in self._members:
            if member.generation >= 0:
                self._members[member] = False
                self._tell(member)
        self.world.after(_REBALANCE_S, lambda: self._put_out(number))
        self.world.after(0.05, self._complete_when_ready)

    def _tell(self, member: Member) -> None:
        heartbeat_s = self.world.rng.uniform(0.2, SESSION_S / 4)
        self.world.after(heartbeat_s, lambda: self._hears(member), member.worker)

    def _hears(self, member: Member) -> None:
        is_in = self._members.get(member, False) or (member in self._members and not self._is_preparing)
        if not is_in and member not in self._leaving:
            self._leaving[member] = None
            self.world.spawn(member.worker, self._let_go(member))

    def _let_go(self, member: Member) -> Steps[None]:
        yield from member.revoking()
        self._leaving.pop(member, None)
        if member in self._members:
            self._members[member] = True
            self._complete_when_ready()
        elif member.is_member:
            self.join(member)

    def _put_out(self, number: int) -> None:
        if self._is_preparing and number == self._round:
            self._members = {member: True for member, is_ready in self._members.items() if is_ready}
            self._complete_when_ready()

    def _complete_when_ready(self) -> None:
        if not self._is_preparing or not all(self._members.values()):
            return
        self._is_preparing = False
        self.generation += 1
        generation = self.generation
        shares = self._shares()
        self.world.say("group", self.name, "generation", generation, {m.worker.id: p for m, p in shares.items()})
        for member, places in shares.items():
            self.world.after(
                self.world.rng.uniform(0.005, 0.1), self._assignment(member, places, generation), member.worker
            )

    def _assignment(self, member: Member, places: list[Place], generation: int) -> Callable[[], None]:
        return lambda: member.assigned(places, generation) if not self.is_fenced(member, generation) else None

    def _shares(self) -> dict[Member, list[Place]]:
        members = list(self._members)
        shares: dict[Member, list[Place]] = {member: [] for member in members}
        if not members:
            return shares
        self.world.rng.shuffle(members)
        is_sticky = self.world.rng.random() < 0.5
        most = -(-len(self.places) // len(members))
        for number, place in enumerate(self.places):
            owner = self._owners.get(place)
            if not (is_sticky and owner is not None and owner in shares and len(shares[owner]) < most):
                owner = min(members, key=lambda m: (len(shares[m]), (members.index(m) + number) % len(members)))
            shares[owner].append(place)
            self._owners[place] = owner
        return shares
