"""How much waits, per lane and per class, and how much a lane holds: kept up as tasks come and go so that nobody has to count them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.topics import Lane
from streams.settings import LaneSettings
from streams.task import Task


class ClassKey(NamedTuple):
    """What a gate belongs to: a lane, a tenant and the model asked for (None: routing chooses)."""

    lane: Lane
    tenant: str
    model: str | None


@dataclass(slots=True)
class ClassCount:
    """The tasks that wait, and their tokens; `since_s` is when the class began to have some."""

    since_s: float
    members: set[Task] = field(default_factory=set)
    tokens: int = 0

    @property
    def tasks(self) -> int:
        return len(self.members)


@dataclass
class WaitingCounts:
    """Counts of waiting tasks. A class that has none is dropped."""

    lanes: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    classes: dict[ClassKey, ClassCount] = field(default_factory=dict)

    def add(self, task: Task) -> None:
        count = self.classes.setdefault(class_of(task), ClassCount(task.accepted_s))
        count.members.add(task)
        count.tokens += task.cost_tokens
        self.lanes[task.lane] += 1

    def remove(self, task: Task) -> None:
        key = class_of(task)
        count = self.classes[key]
        count.members.remove(task)
        count.tokens -= task.cost_tokens
        self.lanes[task.lane] -= 1
        if not count.members:
            del self.classes[key]


def class_of(task: Task) -> ClassKey:
    """Return the class that a task belongs to while it waits."""
    return ClassKey(task.lane, task.tenant, task.model)


@dataclass(slots=True)
class Load:
    """What a lane holds that is not with a backend, wherever it waits. `size_bytes` are those of the records."""

    requests: int = 0
    size_bytes: int = 0
    tokens: int = 0

    def has_room(self, settings: LaneSettings, share: float = 1.0) -> bool:
        """Whether one more task may be taken in, of whatever size; `share` is how much of the bounds counts."""
        return self.requests < settings.max_waiting_requests * share and not self.is_heavy(settings, share)

    def is_heavy(self, settings: LaneSettings, share: float = 1.0) -> bool:
        """Whether few tasks make it full, so that what was fetched already would take much more memory."""
        return (
            self.size_bytes >= settings.max_waiting_bytes * share or self.tokens >= settings.max_waiting_tokens * share
        )


@dataclass
class Loads:
    """Each lane's load. A task counts once, from `add` until `remove`, however often either is said."""

    lanes: dict[Lane, Load] = field(default_factory=lambda: {lane: Load() for lane in Lane})
    _tasks: set[Task] = field(default_factory=set)

    def add(self, task: Task) -> None:
        if task not in self._tasks:
            self._tasks.add(task)
            self._count(task, 1)

    def remove(self, task: Task) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
            self._count(task, -1)

    def _count(self, task: Task, sign: int) -> None:
        load = self.lanes[task.lane]
        load.requests += sign
        load.size_bytes += sign * task.size_bytes
        load.tokens += sign * task.cost_tokens

    def __len__(self) -> int:
        return len(self._tasks)
