"""A small world: logs, a group with generations, one backend, and the clock that moves them all. Times are broker milliseconds."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from tests.faults.bugs import Bug

Line = dict[str, Any]
LANE, RETRY = "t.requests.normal", "t.retry.5s"
PARTITIONS = 3
LIMIT = 4
EPOCH_MS = 1_795_420_000_000.0
_ORDER = ("fault", "requests", "retry", "dead", "results", "progress", "commits")


@dataclass
class Request:
    """What a task is like. `fails`: how often it fails before it is answered; `due_ms` None: no deadline."""

    task: str
    tenant: str
    nonce: str
    partition: int
    takes_ms: float
    fails: int = 0
    refused: bool = False
    unreadable: bool = False
    crashes: bool = False
    due_ms: float | None = None


class Owner(Protocol):
    """Whoever sends a record: what was sent just before its death may get lost."""

    alive: bool


class World:
    """Owns the clock and the logs; everything in it happens in `run`, in the order of time."""

    def __init__(self, seed: int, bug: Bug | None = None) -> None:
        self.rng = random.Random(seed)
        self.bug = bug
        self.now_ms = EPOCH_MS
        self.requests: dict[str, Request] = {}
        self.places: dict[tuple[str, int], list[Line]] = {
            (topic, number): [] for topic in (LANE, RETRY) for number in range(PARTITIONS)
        }
        self.sources: dict[str, str] = {}  # where each task's request is
        self.committed: Counter[tuple[str, int]] = Counter()
        self.generation = 0
        self.results: dict[str, list[Line]] = defaultdict(list)
        self.pending: dict[str, Line] = {}  # results that were sent and are not in the log
        self.started_ms: dict[str, list[float]] = defaultdict(list)
        self.calls: dict[str, Callable[[], None]] = {}
        self._ends: Counter[tuple[str, int]] = Counter()
        self._logs: dict[str, list[Line]] = {kind: [] for kind in _ORDER}
        self._seen: list[Line] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.see("backend", who="backend", backend="b1", limit=LIMIT)

    def has(self, bug: Bug) -> bool:
        return self.bug is bug

    def after(self, delay_ms: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_ms + delay_ms, next(self._numbers), do))

    def some_ms(self, least: float, most: float) -> float:
        return self.rng.uniform(least, most)

    def run(self, is_over: Callable[[], bool], most_ms: float) -> None:
        until_ms = EPOCH_MS + most_ms
        while self._due and not is_over():
            at_ms, _, do = heapq.heappop(self._due)
            if at_ms > until_ms:
                break
            self.now_ms = at_ms
            do()

    def lines(self) -> list[Line]:
        """Return the history, in the order in which it is judged."""
        ends = [
            {"what": "dumped", "topic": topic, "partition": number, "first": 0, "end": end}
            for (topic, number), end in self._ends.items()
        ]
        self.see("finished", who="test")
        logs = [line for kind in _ORDER for line in self._logs[kind]]
        return [*logs, *ends, *sorted(self._seen, key=lambda line: line["at_ms"])]

    # What is written down.

    def see(self, what: str, **fields: Any) -> None:
        self._seen.append({"what": what, "at_ms": self.now_ms, **fields})

    def fault(self, name: str, phase: str) -> None:
        self._logs["fault"].append({"what": "fault", "fault": name, "phase": phase, "at_ms": self.now_ms})

    def append(self, kind: str, what: str, topic: str, number: int, **fields: Any) -> Line:
        """Append a record; the broker's time has whole milliseconds."""
        where = (topic, number)
        place = {"topic": topic, "partition": number, "offset": self._ends[where], "at_ms": int(self.now_ms)}
        line = {"what": what, **place, **fields}
        self._ends[where] += 1
        self._logs[kind].append(line)
        if where in self.places:
            self.places[where].append(line)
        if what == "request":
            self.sources.setdefault(line["task"], f"{topic}/{number}/{line['offset']}")
        if what == "result":
            self.pending.pop(line["task"], None)
            self.results[line["task"]].append(line)
        return line

    def send(
        self, owner: Owner, kind: str, what: str, topic: str, number: int, then: Callable[[], None], **fields: Any
    ) -> None:
        """Append a record a little later, and tell its sender later still, if that one lives."""
        if what == "result":
            self.pending[fields["task"]] = fields

        def arrive() -> None:
            if owner.alive or self.rng.random() < 0.5:
                self.append(kind, what, topic, number, **fields)
                self.after(self.some_ms(1, 10), lambda: then() if owner.alive else None)

        self.after(self.some_ms(2, 40), arrive)

    def result(self, owner: Owner, request: Request, outcome: str, then: Callable[[], None], **fields: Any) -> None:
        number = fields.pop("partition", request.partition)
        row = {
            "task": request.task,
            "tenant": request.tenant,
            "outcome": outcome,
            "answer": None,
            "batch": None,
            "digest": f"{outcome}-{next(self._numbers)}",
            "source": self.sources[request.task],
            **fields,
        }
        self.send(owner, "results", "result", "t.results", number, then, **row)

    def first(self, task: str) -> Line | None:
        return self.results[task][0] if self.results[task] else None

    # The group's coordinator.

    def next_generation(self) -> int:
        self.generation += 1
        line = {"what": "generation", "group": "t-normal", "generation": self.generation, "at_ms": int(self.now_ms)}
        self._logs["commits"].append(line)
        return self.generation

    def commit(self, place: tuple[str, int], offset: int, generation: int) -> bool:
        """Take a commit; one of a generation that is over is refused."""
        if generation != self.generation and not self.has(Bug.ZOMBIE_COMMIT):
            return False
        self.committed[place] = offset
        topic, number = place
        line = {"what": "commit", "group": "t-normal", "topic": topic, "partition": number, "offset": offset}
        self._logs["commits"].append({**line, "at_ms": int(self.now_ms), "generation": generation})
        return True

    # The backend, which says itself what it runs.

    def call(self, request: Request, then: Callable[[], None]) -> str:
        """Begin a call; `then` is told when it is answered."""
        call = f"call-{next(self._numbers)}"
        self.calls[call] = then
        self.see("began", who="backend", backend="b1", call=call, nonce=request.nonce)
        self.after(request.takes_ms, lambda: self.hang_up(call, answered=True))
        return call

    def hang_up(self, call: str, *, answered: bool = False) -> None:
        """End a call that runs: the answer is out, or the caller has gone."""
        if call not in self.calls:
            return
        then = self.calls.pop(call)
        self.see("ended", who="backend", backend="b1", call=call, how="answered" if answered else "left")
        if answered:
            then()
