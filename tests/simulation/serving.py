"""Model servers: they answer, late, out of order, wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from schemas.request import InferenceTask
from schemas.result import Output, Usage
from streams.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ServingError,
)
from streams.ports import Answer, Call, Probe
from tests.simulation.world import Actor, Process, World

HUGE, DEEP, POISON, STUBBORN, WIDE, BAD = "huge", "deep", "poison", "stubborn", "wide", "bad"
"""What a request's text may begin with: an answer too large for a result, one that cannot be encoded, the end of the worker, a
failure at every try, such a failure of a request that is too large for a retry topic, and one that is refused, with its batch."""


def answer_to(text: str) -> str:
    return f"answer to {text}"


def text_of(request: InferenceTask) -> str:
    return str(request.messages[0].get("content"))


@dataclass
class Server:
    """One model server. `outages` are times at which it refuses connections; `slow_s` is the mean of an answer's time.

    `takes_batches`: one call may be for several tasks; what befalls one of them befalls the call.
    """

    world: World
    name: str
    model: str
    slots: int
    slow_s: float
    outages: Sequence[tuple[float, float]] = ()
    takes_batches: bool = False
    running: dict[tuple[str, int], None] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)

    @property
    def is_up(self) -> bool:
        return not any(begin <= self.world.now_s < end for begin, end in self.outages)

    def was_up_since(self, since_s: float) -> bool:
        return not any(begin < self.world.now_s and end > since_s for begin, end in self.outages)

    def probe(self) -> Probe:
        return Probe(True, (self.model,)) if self.is_up else Probe(False, reason="connection refused")

    def busy(self, worker: str) -> int:
        return sum(owner == worker for owner, _ in self.running)

    def complete(self, actor: Actor, calls: Sequence[Call], *, timeout_s: float) -> Answering:
        return Answering(self, actor, calls, timeout_s)

    def forget(self, worker: str) -> None:
        """A worker's connections are gone."""
        for entry in [entry for entry in self.running if entry[0] == worker]:
            del self.running[entry]

    def begin(self, worker: str) -> tuple[str, int]:
        entry = (worker, next(self._numbers))
        self.running[entry] = None
        return entry

    def end(self, entry: tuple[str, int]) -> None:
        if entry in self.running and next(iter(self.running)) != entry:
            self.world.fire("answers out of order")
        self.running.pop(entry, None)

    def failure(self) -> ServingError:
        rng = self.world.rng
        kinds: list[ServingError] = [
            BackendOverloaded(retry_after_s=rng.uniform(0.1, 8.0)),
            BackendOverloaded(),
            BackendUnavailable("refused"),
            BackendFailed("out of order"),
            BackendTimeout("slow"),
            BackendRejected("no"),
            BackendProtocolError("what"),
        ]
        return rng.choice(kinds)


@dataclass(slots=True, eq=False)
class Answering:
    """Wait for one answer to each call; gives Answers in their order or raises a ServingError. `close` closes the connection."""

    server: Server
    actor: Actor
    calls: Sequence[Call]
    timeout_s: float
    entries: list[tuple[str, int]] = field(default_factory=list)

    def close(self) -> None:
        for entry in self.entries:
            self.server.running.pop(entry, None)

    def begin(self, process: Process) -> None:
        server, world, rng = self.server, self.server.world, self.server.world.rng
        ticket = process.ticket
        self.entries = [server.begin(self.actor.id) for _ in self.calls]
        texts = [str(call.messages[-1].get("content")) for call in self.calls]
        traits = {text.partition(" ")[0] for text in texts}
        reply: list[Answer] | ServingError = [Answer(Output(answer_to(text), "stop"), Usage(3, 1, 4)) for text in texts]
        takes_s = min(rng.expovariate(1 / server.slow_s) + 0.01, 18.0)
        if not server.is_up:
            world.fire("backend down")
            reply, takes_s = BackendUnavailable("refused"), 0.005
        elif traits & {STUBBORN, WIDE}:
            reply, takes_s = server.failure() if rng.random() < 0.3 else BackendTimeout("slow"), 0.1
            world.fire(f"backend {type(reply).__name__}")
        elif BAD in traits:
            reply, takes_s = BackendRejected("bad"), 0.01
        elif world.happens(world.chances.backend_hangs):
            world.fire("backend hangs")
            takes_s = self.timeout_s + 1.0
        elif world.happens(world.chances.backend_failed):
            reply, takes_s = server.failure(), rng.uniform(0.005, 0.5)
            world.fire(f"backend {type(reply).__name__}")
        if POISON in traits:
            world.after(rng.uniform(0.05, 0.4), lambda: self._kill(process, ticket), self.actor)
        if takes_s > self.timeout_s:
            reply, takes_s = BackendTimeout("no answer in time"), self.timeout_s
        world.after(takes_s, lambda: self._end(process, ticket, reply), self.actor)

    def _kill(self, process: Process, ticket: int) -> None:
        if not process.is_done and process.ticket == ticket:
            world = self.server.world
            world.say(self.actor.id, "ends, poisoned by one of", [call.task_id for call in self.calls])
            world.fire("poison", disrupts=True)
            self.actor.crash()

    def _end(self, process: Process, ticket: int, reply: list[Answer] | ServingError) -> None:
        if process.is_done or process.ticket != ticket:
            return
        for entry in self.entries:
            self.server.end(entry)
        if isinstance(reply, ServingError):
            process.resume(ticket, error=reply)
        else:
            process.resume(ticket, reply)
