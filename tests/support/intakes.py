"""What stands around an intake in its tests: who takes requests, what the logs say, and an app without Faust."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from agents.delivery import Delivery, Owner
from agents.metrics import WorkerMetrics
from schemas.codec import DecodeError
from schemas.topics import Lane
from streams.brokertime import BrokerClock
from streams.task import Task, TaskKey
from tests.support.tasks import EPOCH_MS
from wire.clock import monotonic_s


@dataclass
class Taker:
    """A Receiver that keeps what it was given. `waits_s`: how long it was to wait for calls.

    `full` lanes hold this share of what they may; `heavy` ones are full of few large tasks.
    """

    taken: list[Task] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    full: dict[Lane, float] = field(default_factory=dict)
    heavy: set[Lane] = field(default_factory=set)
    waits_s: list[float] = field(default_factory=list)

    def accept(self, task: Task) -> None:
        self.taken.append(task)

    def reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        self.rejected.append((task_id, error.detail))

    def is_held(self, key: TaskKey) -> bool:
        return False

    def has_room(self, lane: Lane, share: float = 1.0) -> bool:
        return self.full.get(lane, 0.0) < share

    def is_heavy(self, lane: Lane) -> bool:
        return lane in self.heavy

    def withdraw(self, owner: Owner, *, running: bool) -> None:
        self.taken.clear()

    async def let_go(self, owner: Owner, timeout_s: float) -> None:
        self.waits_s.append(timeout_s)
        self.taken.clear()


@dataclass
class Read:
    """A Past that has read everything; `finished` tasks have their outcome."""

    finished: set[TaskKey] = field(default_factory=set)

    def is_caught_up(self, topic: str, partition: int) -> bool:
        return True

    async def caught_up(self, topic: str, partition: int) -> None:
        return

    def is_finished(self, key: TaskKey) -> bool:
        return key in self.finished

    def follow(self, topic: str, partitions: Iterable[int]) -> None:
        return

    def committed(self, topic: str, partition: int, offset: int) -> None:
        return


class BareApp:
    """What LaneIntake wants of a Faust app."""

    conf = SimpleNamespace(id="group")
    consumer_generation_id = 1
    observer: Any = None
    ends: dict[int, tuple[int, int]]

    def __init__(self) -> None:
        self.ends = {}

    def topic(self, *_: object, **__: object) -> None:
        return None

    def agent(self, *_: object, **__: object) -> Any:
        return lambda consume: consume

    def read_to_and_ends(self, _topic: str) -> dict[int, tuple[int, int]]:
        return self.ends


def clock() -> BrokerClock:
    made = BrokerClock()
    made.observe(EPOCH_MS, now_s=monotonic_s())
    return made


def metrics() -> WorkerMetrics:
    return WorkerMetrics(CollectorRegistry())
