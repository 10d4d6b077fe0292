"""A yardstick: one queue for all lanes, first come first served, as a plain queue with a worker does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.result import BatchRef
from schemas.topics import Lane
from streams import outcome
from streams.brokertime import BrokerClock
from streams.dispatcher import Batch, Effect, Finish, Send
from streams.errors import BackendUnavailable, DeadlineExpired, ServingError
from streams.outcome import Served
from streams.ports import Answer, Probe
from streams.settings import BackendSettings, Settings
from streams.task import Task, TaskKey

_REASON = "next in line"


@dataclass
class Fifo:
    """Sends the head of the queue to the least busy backend that has its model and a free slot; until there is one all wait.

    A task whose deadline has passed is dropped when it reaches the head; one whose call fails goes back to the head.
    """

    settings: Settings
    clock: BrokerClock
    new_batch_id: Callable[[], str]
    next_deadline_s: float | None = None
    _queue: deque[Task] = field(default_factory=deque)
    _running: dict[TaskKey, tuple[Task, Served]] = field(default_factory=dict)
    _busy: dict[str, int] = field(default_factory=dict)
    _up: set[str] = field(default_factory=set)
    _waiting: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def waiting(self, lane: Lane) -> int:
        return self._waiting[lane]

    def has_room(self, lane: Lane, share: float = 1.0) -> bool:
        """Whether it takes one more in: a queue without lanes takes all there is."""
        return True

    def __len__(self) -> int:
        return len(self._queue) + len(self._running)

    def probed(self, backend: str, probe: Probe, *, now_s: float) -> list[Effect]:
        if probe.up:
            self._up.add(backend)
        else:
            self._up.discard(backend)
        return []

    def accept(self, task: Task, *, now_s: float) -> list[Effect]:
        self._queue.append(task)
        self._waiting[task.lane] += 1
        return []

    def answered(self, task: Task, answer: Answer, *, now_s: float) -> list[Effect]:
        _, served = self._end(task)
        now_ms = self.clock.ms(now_s)
        return [Finish(task, outcome.completed(task, served, answer.output, answer.usage, now_s=now_s, now_ms=now_ms))]

    def failed(self, task: Task, error: ServingError, *, now_s: float) -> list[Effect]:
        _, served = self._end(task)
        if isinstance(error, BackendUnavailable):
            self._up.discard(served.backend)
        self._queue.appendleft(task)
        self._waiting[task.lane] += 1
        return []

    def step(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue:
            task = self._queue[0]
            backend = self._backend_for(task)
            if task.deadline_s > now_s and backend is None:
                break
            self._queue.popleft()
            self._waiting[task.lane] -= 1
            if backend is None or task.deadline_s <= now_s:
                late = outcome.failed(task, DeadlineExpired(), now_s=now_s, now_ms=self.clock.ms(now_s))
                effects.append(Finish(task, late))
            else:
                effects.append(Send(self._launch(task, backend, now_s)))
        return effects

    def _backend_for(self, task: Task) -> BackendSettings | None:
        able = [
            row
            for row in self.settings.backends
            if row.name in self._up
            and (task.model is None or task.model in row.models)
            and self._busy.get(row.name, 0) < (row.max_concurrency or 1)
        ]
        return min(able, key=lambda row: self._busy.get(row.name, 0) / (row.max_concurrency or 1), default=None)

    def _launch(self, task: Task, backend: BackendSettings, now_s: float) -> Batch:
        model = task.model or backend.models[0]
        batch = Batch(self.new_batch_id(), backend.name, model, [task], _REASON, None)
        self._busy[backend.name] = self._busy.get(backend.name, 0) + 1
        task.attempts += 1
        task.dispatched_s, task.dispatched_ms = now_s, self.clock.ms(now_s)
        self._running[task.key] = (task, Served(backend.name, model, BatchRef(batch.id, 1), _REASON, None))
        return batch

    def _end(self, task: Task) -> tuple[Task, Served]:
        found = self._running.pop(task.key)
        self._busy[found[1].backend] -= 1
        return found
