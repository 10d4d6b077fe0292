"""Virtual time, and a seeded order of everything that happens in it."""

from __future__ import annotations

import contextlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, TypeVar

EPOCH_MS = 1_795_420_000_000
"""What the brokers' clocks show when the world begins, but for the skew of each."""

_T = TypeVar("_T")


class Violation(AssertionError):
    """A promise was broken. `name` says which."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class Crashed(Exception):
    """The process whose code runs has just ended."""


class Actor(Protocol):
    """A process. What is due for one that ended is dropped, for one that stands still it waits."""

    id: str
    may_end: bool
    is_alive: bool
    is_paused: bool
    stash: list[Callable[[], None]]

    def crash(self) -> None: ...


class Wait(Protocol):
    """What a process can wait for; it is resumed with the ticket it had when it began to wait."""

    def begin(self, process: Process) -> None: ...


Steps = Generator[Wait, Any, _T]
"""A coroutine of the shell: it yields where the shell awaits."""


class Process:
    """One running coroutine of an actor."""

    __slots__ = ("actor", "is_done", "steps", "ticket", "world")

    def __init__(self, world: World, actor: Actor, steps: Steps[Any]) -> None:
        self.world, self.actor, self.steps = world, actor, steps
        self.is_done, self.ticket = False, 0

    def resume(self, ticket: int, value: object = None, error: Exception | None = None) -> None:
        if self.is_done or ticket != self.ticket or not self.actor.is_alive:
            return
        self.ticket += 1
        try:
            wait = self.steps.send(value) if error is None else self.steps.throw(error)
        except StopIteration:
            self.is_done = True
            return
        wait.begin(self)

    def cancel(self) -> None:
        self.is_done = True


@dataclass(slots=True)
class Sleep:
    """Wait for so many seconds."""

    seconds: float

    def begin(self, process: Process) -> None:
        ticket = process.ticket
        process.world.after(self.seconds, lambda: process.resume(ticket), process.actor)


@dataclass
class Signal:
    """Wakes whoever waits when it is set; `wait` takes a bound in seconds."""

    is_set: bool = False
    _waiting: list[tuple[Process, int]] = field(default_factory=list)

    def set(self) -> None:
        self.is_set = True
        waiting, self._waiting = self._waiting, []
        for process, ticket in waiting:
            process.world.after(0.0, _resumption(process, ticket), process.actor)

    def clear(self) -> None:
        self.is_set = False

    def wait(self, at_most_s: float | None = None) -> Wait:
        return _Until(self, at_most_s)

    def join(self, process: Process) -> None:
        self._waiting.append((process, process.ticket))


@dataclass(slots=True)
class _Until:
    signal: Signal
    at_most_s: float | None

    def begin(self, process: Process) -> None:
        if self.signal.is_set:
            process.world.after(0.0, _resumption(process, process.ticket), process.actor)
            return
        self.signal.join(process)
        if self.at_most_s is not None:
            process.world.after(self.at_most_s, _resumption(process, process.ticket), process.actor)


def _resumption(process: Process, ticket: int) -> Callable[[], None]:
    return lambda: process.resume(ticket)


@dataclass
class Chances:
    """How likely each fault is, per occasion, while faults are on."""

    produce_failed: float = 0.0
    ack_lost: float = 0.0
    produce_delayed: float = 0.0
    crash: float = 0.0
    commit_failed: float = 0.0
    backend_failed: float = 0.0
    backend_hangs: float = 0.0


@dataclass
class World:
    """Everything happens by `at`, in the order of time; what is due at once comes in a drawn order.

    `crash_at`: the boundary at which the process that stands there ends (counted from 1), None for crashes by chance alone.
    """

    seed: int
    chances: Chances = field(default_factory=Chances)
    crash_at: int | None = None
    lines: list[str] | None = None
    now_s: float = 0.0
    boundaries: int = 0
    disruptions: int = 0
    has_faults: bool = True
    fired: Counter[str] = field(default_factory=Counter)
    _queue: list[tuple[float, float, int, Callable[[], None], Actor | None]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def say(self, who: str, *what: object) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now_s:9.3f}  {who:<8} {' '.join(map(str, what))}")

    def fire(self, kind: str, *, disrupts: bool = False) -> None:
        """Count a fault of a kind; one that `disrupts` may make work run again."""
        self.fired[kind] += 1
        self.disruptions += disrupts

    def happens(self, chance: float) -> bool:
        return self.has_faults and chance > 0 and self.rng.random() < chance

    def at(self, at_s: float, do: Callable[[], None], actor: Actor | None = None) -> None:
        heapq.heappush(self._queue, (max(at_s, self.now_s), self.rng.random(), next(self._numbers), do, actor))

    def after(self, seconds: float, do: Callable[[], None], actor: Actor | None = None) -> None:
        self.at(self.now_s + seconds, do, actor)

    def spawn(self, actor: Actor, steps: Steps[Any]) -> Process:
        """Begin a coroutine in the next turn of its process's loop."""
        process = Process(self, actor, steps)
        self.after(0.0, lambda: process.resume(0), actor)
        return process

    def boundary(self, actor: Actor, where: str) -> None:
        """Say that the code of a process stands before or after something durable. Raises: Crashed."""
        if self._ends_here(actor, where):
            raise Crashed

    def boundary_beyond(self, actor: Actor, where: str) -> None:
        """The same, where the brokers' code runs and not the process's own."""
        self._ends_here(actor, where)

    def run(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            at_s, _, _, do, actor = heapq.heappop(self._queue)
            self.now_s = at_s
            self._do(do, actor)
        self.now_s = until_s

    def resume(self, actor: Actor) -> None:
        """Let a process that stood still go on: what came meanwhile is done in the order in which it came."""
        actor.is_paused = False
        stash, actor.stash = actor.stash, []
        for do in stash:
            self._do(do, actor)

    def _do(self, do: Callable[[], None], actor: Actor | None) -> None:
        if actor is not None:
            if not actor.is_alive:
                return
            if actor.is_paused:
                actor.stash.append(do)
                return
        with contextlib.suppress(Crashed):
            do()

    def _ends_here(self, actor: Actor, where: str) -> bool:
        if not actor.may_end or not actor.is_alive or not self.has_faults:
            return False
        self.boundaries += 1
        if self.boundaries != self.crash_at and not self.happens(self.chances.crash):
            return False
        self.say(actor.id, "ends", where)
        self.fire(f"crash {where}", disrupts=True)
        actor.crash()
        return True
