"""One worker in virtual time: its part of the lane topics, what it holds, and what decides for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cli.simulation.arrivals import Arrival
from schemas.topics import Lane
from streams.dispatcher import Effect
from streams.errors import ServingError
from streams.ports import Answer, Probe
from streams.task import Task


class Decides(Protocol):
    """What a run asks: the Dispatcher, or the yardstick."""

    @property
    def next_deadline_s(self) -> float | None: ...
    def accept(self, task: Task, *, now_s: float) -> list[Effect]: ...
    def step(self, now_s: float) -> list[Effect]: ...
    def answered(self, task: Task, answer: Answer, *, now_s: float) -> list[Effect]: ...
    def failed(self, task: Task, error: ServingError, *, now_s: float) -> list[Effect]: ...
    def probed(self, backend: str, probe: Probe, *, now_s: float) -> list[Effect]: ...
    def waiting(self, lane: Lane) -> int: ...
    def has_room(self, lane: Lane, share: float = 1.0) -> bool: ...
    def __len__(self) -> int: ...


@dataclass(eq=False)
class Worker:
    """Takes in what there is room for, and has effects carried out by `perform`.

    `has_lanes` is False for one queue, in the order in which tasks came.
    """

    decides: Decides
    has_lanes: bool
    task_of: Callable[[Arrival], Task]
    perform: Callable[[Worker, Iterable[Effect]], None]
    unfetched: int = 0
    """Tasks that wait in Kafka."""
    _topics: dict[Lane, deque[Arrival]] = field(default_factory=lambda: {lane: deque() for lane in Lane})

    def put(self, arrival: Arrival) -> None:
        """Append a task to its topic."""
        self._topics[arrival.kind.lane if self.has_lanes else Lane.NORMAL].append(arrival)
        self.unfetched += 1

    def turn(self, now_s: float) -> None:
        """Do what is due now."""
        self._fetch(now_s)
        self.perform(self, self.decides.step(now_s))
        while self._fetch(now_s):
            self.perform(self, self.decides.step(now_s))

    def accept(self, task: Task, now_s: float) -> None:
        self.perform(self, self.decides.accept(task, now_s=now_s))

    def _fetch(self, now_s: float) -> bool:
        """Take in what there is room for; return whether something came."""
        came = False
        if not self.unfetched:
            return came
        for lane, topic in self._topics.items():
            while topic and self.decides.has_room(lane):
                self.unfetched -= 1
                self.accept(self.task_of(topic.popleft()), now_s)
                came = True
        return came
