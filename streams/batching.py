"""Windows: compatible tasks of a lane wait for company, and leave together.

Compatible are tasks that ask for the same model with the same parameters. The window of a group is set by its oldest member and not
moved by later ones, so a slow trickle is still sent in time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from streams.task import Task

RouteClass = tuple[str | None, str | None]
"""What routing looks at: the pinned model or None, and the agent type where a model is set up for it, else None."""


@dataclass(slots=True)
class Group:
    """Compatible tasks in order of arrival."""

    tasks: deque[Task] = field(default_factory=deque)
    tokens: int = 0

    def is_full(self, max_requests: int, max_tokens: int) -> bool:
        return len(self.tasks) >= max_requests or self.tokens >= max_tokens


@dataclass
class Window:
    """The waiting tasks of one lane and route class, grouped by parameters.

    Times are monotonic seconds given by the caller. `oldest` is amortised O(log n): groups are kept in a heap by their head's
    sequence number, entries that no longer match their group are dropped when met.
    """

    window_s: float
    max_requests: int
    max_tokens: int
    _groups: dict[bytes, Group] = field(default_factory=dict)
    _heads: list[tuple[int, bytes]] = field(default_factory=list)
    _full: dict[bytes, None] = field(default_factory=dict)
    waiting: int = 0
    tokens: int = 0
    shut_since_s: float | None = None
    """Since when no backend would take this class, None while one does."""
    lead_s: float = 0.0
    """An answer's expected time: a group whose head's deadline would be missed by waiting leaves that much before it."""

    def add(self, task: Task, key: bytes) -> None:
        self._join(task, key, first=False)

    def add_first(self, task: Task, key: bytes) -> None:
        """Put a task back before the others of its group: it has waited already."""
        self._join(task, key, first=True)

    def _join(self, task: Task, key: bytes, *, first: bool) -> None:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group()
        if first or not group.tasks:
            heapq.heappush(self._heads, (task.sequence, key))
        if first:
            group.tasks.appendleft(task)
        else:
            group.tasks.append(task)
        group.tokens += task.cost_tokens
        self.waiting += 1
        self.tokens += task.cost_tokens
        if group.is_full(self.max_requests, self.max_tokens):
            self._full[key] = None

    def remove(self, task: Task, key: bytes) -> bool:
        """Take a task out wherever it stands; False when it is not here."""
        group = self._groups.get(key)
        if group is None or task not in group.tasks:
            return False
        was_head = group.tasks[0] is task
        group.tasks.remove(task)
        self._took(key, group, [task], was_head=was_head)
        return True

    def ready(self, now_s: float, *, idle: bool) -> bytes | None:
        """Return the group that may leave now: the oldest when its window is over, else a full one.

        In that order, or a group that is filled again as quickly as it leaves would hold up all others for ever.
        `idle`: a backend for this class has nothing to do, so waiting would gain nothing.
        """
        oldest = self._oldest()
        if oldest is None or idle or now_s >= self._leaves_at_s(oldest):
            return oldest
        return next(iter(self._full), None)

    def next_ready_s(self) -> float | None:
        """Return when the oldest group's window is over, None when nothing waits."""
        key = self._oldest()
        return None if key is None else self._leaves_at_s(key)

    def head(self, key: bytes) -> Task:
        return self._groups[key].tasks[0]

    def take(self, key: bytes, at_most: int) -> list[Task]:
        """Remove and return the group's oldest members: no more than `at_most`, a batch's requests, or a batch's tokens (but one)."""
        group = self._groups[key]
        taken: list[Task] = []
        tokens = 0
        room = min(at_most, self.max_requests)
        while group.tasks and len(taken) < room:
            cost = group.tasks[0].cost_tokens
            if taken and tokens + cost > self.max_tokens:
                break
            taken.append(group.tasks.popleft())
            tokens += cost
        self._took(key, group, taken, was_head=True)
        return taken

    def __iter__(self) -> Iterator[Task]:
        for group in self._groups.values():
            yield from group.tasks

    def waiting_since(self, since_s: float) -> Iterator[Task]:
        """Yield the members that were taken in at `since_s` or before."""
        for group in self._groups.values():
            for task in group.tasks:
                if task.accepted_s > since_s:
                    break
                yield task

    def _oldest(self) -> bytes | None:
        while self._heads:
            sequence, key = self._heads[0]
            group = self._groups.get(key)
            if group is not None and group.tasks and group.tasks[0].sequence == sequence:
                return key
            heapq.heappop(self._heads)
        return None

    def _leaves_at_s(self, key: bytes) -> float:
        head = self.head(key)
        return min(head.accepted_s + self.window_s, head.deadline_s - self.lead_s)

    def _took(self, key: bytes, group: Group, taken: list[Task], *, was_head: bool) -> None:
        cost = sum(task.cost_tokens for task in taken)
        group.tokens -= cost
        self.tokens -= cost
        self.waiting -= len(taken)
        if not group.is_full(self.max_requests, self.max_tokens):
            self._full.pop(key, None)
        if not group.tasks:
            del self._groups[key]
        elif was_head:
            heapq.heappush(self._heads, (group.tasks[0].sequence, key))
