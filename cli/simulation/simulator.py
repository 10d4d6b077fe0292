"""Discrete events around the workers' Dispatchers: what arrives, what is sent, what is answered, in virtual time.

It does what a worker's shell does, with the lane topics as plain queues: records are fetched in their order while the lane has room in
the worker, every change is followed by a step, hand-overs come back when they are due, and a server that went away is looked at
every half second.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from cli.simulation.account import Account
from cli.simulation.arrivals import Arrival, arrivals
from cli.simulation.fifo import Fifo
from cli.simulation.policy import Policy
from cli.simulation.scenario import BackendModel, Change, Scenario
from cli.simulation.server import Call, Server
from cli.simulation.worker import Worker
from schemas.request import CachePolicy
from schemas.result import Output, Source, Usage
from schemas.topics import Lane, TopicNames
from streams.brokertime import BrokerClock
from streams.caching import AnswerCache
from streams.deadlines import LONGEST_MS
from streams.dispatcher import Abort, Batch, Dispatcher, Effect, Finish, HandOver, Send
from streams.errors import BackendUnavailable
from streams.fleet import Fleet
from streams.ports import Answer, Probe
from streams.task import Task

_PARTITIONS = 12
_EPOCH_MS = 1_795_420_000_000
_PROBE_S = 0.5
_MOST_STEPS_AT_ONCE = 10_000
_NO_CACHE = CachePolicy(mode="bypass")
_OUTPUT = Output("simulated", "stop")


@dataclass
class Simulation:
    """One policy on one scenario. `advance` runs it; the account may be read at any time between.

    A worker holds as much of a lane as the settings allow: the rest waits in Kafka.
    """

    scenario: Scenario
    policy: Policy
    now_s: float = 0.0
    account: Account = field(default_factory=Account)
    _events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _calls: dict[Task, Call] = field(default_factory=dict)
    _in_retry: int = 0

    def __post_init__(self) -> None:
        self.settings = self.scenario.worker_settings(self.policy)
        self._clock = BrokerClock()
        self._clock.observe(_EPOCH_MS, now_s=0.0)
        self._names, self._offsets = TopicNames(), count()
        self._keys = random.Random(f"{self.scenario.seed}/keys")  # noqa: S311 - a model, not a secret
        self.workers = [self._new_worker() for _ in range(self.scenario.workers)]
        self.servers = {row.name: self._new_server(row) for row in self.scenario.backends}
        for number, load in enumerate(self.scenario.loads):
            coming = arrivals(load, f"{self.scenario.seed}/{number}", self.scenario.seconds)
            self._expect(coming)

    def advance(self, until_s: float) -> None:
        """Let virtual time pass. What is due at `until_s` itself is done."""
        steps = 0
        while True:
            at_s = self._events[0][0] if self._events else math.inf
            due_s = [worker.decides.next_deadline_s for worker in self.workers]
            at_s = min(at_s, *(max(each_s, self.now_s) for each_s in due_s if each_s is not None), math.inf)
            if at_s > until_s:
                break
            steps = steps + 1 if at_s == self.now_s else 0
            if steps > _MOST_STEPS_AT_ONCE:
                raise RuntimeError("the dispatcher asks for steps without end")
            self.now_s = at_s
            while self._events and self._events[0][0] <= at_s:
                heapq.heappop(self._events)[2](at_s)
            for worker in self.workers:
                worker.turn(at_s)
        self.now_s = until_s

    @property
    def lost(self) -> int:
        """Tasks that have no outcome and that nobody holds."""
        ended = sum(sum(tally.ends.values()) for tally in self.account.lanes.values())
        offered = sum(tally.offered for tally in self.account.lanes.values())
        held = sum(worker.unfetched + len(worker.decides) for worker in self.workers)
        return offered - ended - held - self._in_retry

    def figures(self) -> dict[str, Any]:
        """Return the run as one JSON object."""
        weights = {lane: self.settings.lanes[lane].weight for lane in Lane}
        return {
            "policy": self.policy.value,
            "simulated_s": round(self.now_s, 3),
            "lost": self.lost,
            "ended_twice": self.account.ended_twice,
            **self.account.figures(weights),
            "backends": {
                name: {
                    "busy_ratio": round(server.busy_s / (server.row.slots * self.now_s), 4) if self.now_s else 0.0,
                    "swaps": server.swaps,
                }
                for name, server in self.servers.items()
            },
        }

    # Arrivals

    def _expect(self, coming: Any) -> None:
        arrival = next(coming, None)
        if arrival is not None:
            self._at(arrival.at_s, partial(self._arrived, arrival, coming))

    def _arrived(self, arrival: Arrival, coming: Any, now_s: float) -> None:
        self.account.offered(arrival)
        number = self._keys.randrange(len(self.workers)) if len(self.workers) > 1 else 0
        self.workers[number].put(arrival)
        self._expect(coming)

    def _task(self, arrival: Arrival) -> Task:
        kind, now_s = arrival.kind, self.now_s
        offset = next(self._offsets)
        source = Source(self._names.requests(kind.lane), offset % _PARTITIONS, offset)
        due_s = min(arrival.due_s, arrival.at_s + LONGEST_MS / 1000)
        return Task(
            task_id=f"{kind.lane.value}.{offset}",
            lane=kind.lane,
            tenant=kind.tenant,
            request=kind.request,
            sources=[source],
            place=(source.topic, source.partition),
            deliveries=[arrival],
            origin=arrival,
            headers=(),
            appended_ms=self._clock.ms(arrival.at_s),
            deadline_ms=self._clock.ms(due_s),
            accepted_ms=self._clock.ms(now_s),
            accepted_s=now_s,
            deadline_s=due_s,
            cost_tokens=arrival.prompt_tokens + kind.max_tokens,
            parameters=kind.parameters,
            cache=_NO_CACHE,
        )

    # Effects

    def _perform(self, worker: Worker, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(worker, effect.batch)
            elif isinstance(effect, Finish):
                self.account.ended(_arrival(effect.task), effect.result.outcome, self.now_s)
            elif isinstance(effect, HandOver):
                self._in_retry += 1
                due_s = self._clock.monotonic_s(effect.not_before_ms, now_s=self.now_s)
                self._at(max(due_s, self.now_s), partial(self._come_back, worker, effect))
            elif isinstance(effect, Abort):
                call = self._calls.pop(effect.task)
                self.servers[call.backend].close(call, self.now_s)

    def _send(self, worker: Worker, batch: Batch) -> None:
        server = self.servers[batch.backend]
        for task in batch.tasks:
            arrival = _arrival(task)
            self.account.started(arrival, self.now_s)
            call = self._calls[task] = Call(task, arrival, worker, batch.backend, batch.model)
            if server.is_down:
                self._at(self.now_s, partial(self._fail, call))
            else:
                server.call(call, self.now_s)

    def _answer(self, call: Call, now_s: float) -> None:
        del self._calls[call.task]
        arrival = call.arrival
        answer = Answer(_OUTPUT, Usage(arrival.prompt_tokens, arrival.answer_tokens, arrival.tokens))
        self._perform(call.worker, call.worker.decides.answered(call.task, answer, now_s=now_s))

    def _fail(self, call: Call, now_s: float) -> None:
        if self._calls.get(call.task) is call:
            del self._calls[call.task]
            error = BackendUnavailable("connection refused")
            self._perform(call.worker, call.worker.decides.failed(call.task, error, now_s=now_s))

    def _come_back(self, worker: Worker, effect: HandOver, now_s: float) -> None:
        """A retry topic gives the task back, as a new delivery."""
        self._in_retry -= 1
        task = self._task(_arrival(effect.task))
        task.task_id, task.hops = effect.task.task_id, effect.hops
        task.attempts = task.past_attempts = effect.task.attempts
        worker.accept(task, now_s)

    # Servers

    def _new_server(self, row: BackendModel) -> Server:
        server = Server(row, at=self._at, answer=self._answer)
        self._at(0.0, partial(self._look_at, server))
        for change in row.changes:
            self._at(change.at_s, partial(self._change, server, change))
            self._at(change.at_s + change.for_s, partial(self._recover, server, change))
        return server

    def _change(self, server: Server, change: Change, now_s: float) -> None:
        server.slowdown = change.slowdown
        if change.down:
            for call in server.die():
                self._fail(call, now_s)
            self._look_at(server, now_s)

    def _recover(self, server: Server, change: Change, now_s: float) -> None:
        server.slowdown = 1.0
        if change.down:
            server.is_down = False
            self._at(math.floor(now_s / _PROBE_S + 1) * _PROBE_S, partial(self._look_at, server))

    def _look_at(self, server: Server, now_s: float) -> None:
        row = server.row
        if server.is_down:
            probe = Probe(up=False, reason="connection refused")
        else:
            probe = Probe(up=True, models=tuple(row.models), slots=row.slots)
        for worker in self.workers:
            self._perform(worker, worker.decides.probed(row.name, probe, now_s=now_s))

    def _at(self, when_s: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what))

    def _new_worker(self) -> Worker:
        settings, numbers = self.settings, count(1)

        def new_batch_id() -> str:
            return f"batch-{next(numbers)}"

        if self.policy is Policy.FIFO:
            return Worker(Fifo(settings, self._clock, new_batch_id), False, self._task, self._perform)
        fleet = Fleet(settings.gpus.stale_after_s, settings.pressure)
        dispatcher = Dispatcher(settings, self._clock, fleet, AnswerCache(0, 0), new_batch_id)
        return Worker(dispatcher, True, self._task, self._perform)


def _arrival(task: Task) -> Arrival:
    assert isinstance(task.origin, Arrival)
    return task.origin
