"""A model server in virtual time: slots, service times, one model at a time, slow and dead stretches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cli.simulation.arrivals import Arrival
from cli.simulation.scenario import BackendModel
from cli.simulation.worker import Worker
from streams.task import Task


@dataclass(slots=True, eq=False)
class Call:
    """One call. `is_open` until it ended, failed or was closed by its caller."""

    task: Task
    arrival: Arrival
    worker: Worker
    backend: str
    model: str
    is_open: bool = True


@dataclass
class Server:
    """Serves calls first come first served. `at(when_s, what)` plans something; `answer` is told of each call that ends.

    A call's time is drawn when its slot becomes free: what runs is not slowed down by a change that comes later.
    """

    row: BackendModel
    at: Callable[[float, Callable[[float], None]], None]
    answer: Callable[[Call, float], None]
    slowdown: float = 1.0
    is_down: bool = False
    loaded: str | None = None
    swaps: int = 0
    busy_s: float = 0.0
    _waiting: deque[Call] = field(default_factory=deque)
    _running: set[Call] = field(default_factory=set)
    _loading_until_s: float = 0.0

    def call(self, call: Call, now_s: float) -> None:
        self._waiting.append(call)
        self._pump(now_s)

    def close(self, call: Call, now_s: float) -> None:
        """The caller hangs up, and the server stops working on it."""
        call.is_open = False
        self._running.discard(call)
        self._pump(now_s)

    def die(self) -> list[Call]:
        """Be down from now on; return the calls that fail by it."""
        self.is_down, self.loaded, self._loading_until_s = True, None, 0.0
        broken = [call for call in (*self._running, *self._waiting) if call.is_open]
        for call in broken:
            call.is_open = False
        self._running.clear()
        self._waiting.clear()
        return sorted(broken, key=lambda call: call.task.sequence)

    def service_s(self, arrival: Arrival) -> float:
        """Return how long a call takes that begins now."""
        row = self.row
        ms = row.fixed_ms + row.prompt_token_ms * arrival.prompt_tokens + row.answer_token_ms * arrival.answer_tokens
        return ms / 1000 * self.slowdown * math.exp(row.noise * arrival.noise)

    def _pump(self, now_s: float) -> None:
        while self._waiting and len(self._running) < self.row.slots and now_s >= self._loading_until_s:
            call = self._waiting[0]
            if not call.is_open:
                self._waiting.popleft()
            elif self.row.one_model and call.model != self.loaded:
                if self._running:
                    return
                self._load(call.model, now_s)
            else:
                self._waiting.popleft()
                self._begin(call, now_s)

    def _load(self, model: str, now_s: float) -> None:
        self.swaps += self.loaded is not None
        self.loaded = model
        if self.row.swap_s:
            self._loading_until_s = now_s + self.row.swap_s
            self.at(self._loading_until_s, self._pump)

    def _begin(self, call: Call, now_s: float) -> None:
        self._running.add(call)
        service_s = self.service_s(call.arrival)
        self.busy_s += service_s

        def end(ended_s: float) -> None:
            if call.is_open:
                call.is_open = False
                self._running.discard(call)
                self.answer(call, ended_s)
                self._pump(ended_s)

        self.at(now_s + service_s, end)
