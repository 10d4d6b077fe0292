"""How much waits, per lane and per class, kept up as tasks come and go so that nobody has to count them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.topics import Lane
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
