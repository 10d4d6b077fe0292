"""The Dispatcher: what is sent where, and when. No I/O and no clock of its own.

It owns every task from `accept` until the effect that ends it, and each task ends exactly once: in one `Finish`, `HandOver` or
`Drop`, or by `withdraw` when its partition goes to another worker. One loop owns the dispatcher and is its only writer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import orjson

from schemas.progress import Gate
from schemas.result import BatchRef, Result
from schemas.topics import Lane, RetryTier
from streams import outcome
from streams.backends import BackendState
from streams.batching import RouteClass, Window
from streams.brokertime import BrokerClock
from streams.caching import AnswerCache
from streams.coalescing import Coalescing, is_more_urgent, regroup
from streams.cost import Costs
from streams.errors import (
    BackendOverloaded,
    BackendRejected,
    BackendUnavailable,
    DeadlineExpired,
    Quarantined,
    ServingError,
    UnknownModel,
)
from streams.fleet import Fleet
from streams.lanes import DeficitRoundRobin
from streams.outcome import Served
from streams.ports import Answer, Probe
from streams.pressure import MemoryPressureLevel
from streams.retrying import (
    PARKED_AFTER_S,
    InPlaceRetries,
    RetryBudget,
    asked_pause_s,
    next_tier,
    parking_tier,
)
from streams.routing import MATRIX, Candidate, ModelDecision, Router, Want
from streams.settings import ModelSettings, Settings
from streams.task import Task, TaskKey
from streams.waiting import Loads, WaitingCounts

_STALE_EXPIRIES = 256
_PARKING_EVERY_S = 1.0
MOST_CRASHES = 3
"""Workers that may end while they run a task; after the third it runs alone once, and after a fourth it is given up."""
_UNSIZED = ModelSettings(name="")


@dataclass(frozen=True, slots=True)
class Batch:
    """Compatible tasks for one backend. A kind that takes one conversation per call gets them as concurrent calls."""

    id: str
    backend: str
    model: str
    tasks: Sequence[Task]
    reason: str
    pressure: str | None

    @property
    def tokens(self) -> int:
        return sum(task.cost_tokens for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a batch to its backend; report each task with `answered` or `failed`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Finish:
    """A task has its outcome: make the result durable, then acknowledge the task's deliveries."""

    task: Task
    result: Result
    cacheable: str | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """Write the task's request to a retry topic, durably, then acknowledge its deliveries: the task is no longer held here.

    `error` is what failed last, None when the task was parked; `hops` counts the retry topics it has failed its way into.
    """

    task: Task
    tier: RetryTier
    not_before_ms: int
    hops: int
    error: ServingError | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """A task gets its outcome elsewhere: acknowledge the deliveries it has left."""

    task: Task


@dataclass(frozen=True, slots=True)
class Abort:
    """Close the running call of a task that already has its outcome; its answer is not reported."""

    task: Task


Effect: TypeAlias = Send | Finish | HandOver | Drop | Abort


@dataclass(slots=True)
class _Running:
    """A call. `task` is the one it was begun for, by which the shell knows it; `owner` the one that it is for now, another one once
    that has left and an identical task has taken its place.
    """

    task: Task
    owner: Task
    served: Served
    backend: BackendState
    is_charged: bool = False
    """Whether its lane was charged its cost, and is to be paid back, or to pay, what it took less or more."""


@dataclass
class Dispatcher:
    """Lanes, windows and backends behind one surface: `accept`, `step`, `answered`, `failed`, `withdraw`, and `next_deadline_s`.

    `new_batch_id` names batches. All times are monotonic seconds given by the caller; broker time comes from `clock`.
    """

    settings: Settings
    clock: BrokerClock
    fleet: Fleet
    cache: AnswerCache
    new_batch_id: Callable[[], str]
    retries: InPlaceRetries | None = None
    costs: Costs = field(default_factory=Costs)
    next_deadline_s: float | None = None
    backends: dict[str, BackendState] = field(default_factory=dict)
    waiting_counts: WaitingCounts = field(default_factory=WaitingCounts)
    loads: Loads = field(default_factory=Loads)
    _windows: dict[Lane, dict[RouteClass, Window]] = field(default_factory=lambda: {lane: {} for lane in Lane})
    _tasks: dict[TaskKey, Task] = field(default_factory=dict)
    _waiting: dict[TaskKey, tuple[RouteClass, bytes]] = field(default_factory=dict)
    _running: dict[TaskKey, _Running] = field(default_factory=dict)
    _calls: dict[Task, _Running] = field(default_factory=dict)
    _coalescing: Coalescing = field(default_factory=Coalescing)
    _elsewhere: dict[TaskKey, Task] = field(default_factory=dict)
    _suspects: dict[TaskKey, Task] = field(default_factory=dict)
    _suspect: Task | None = None
    _delayed: list[tuple[float, int, Task]] = field(default_factory=list)
    _expiries: list[tuple[float, int, Task]] = field(default_factory=list)
    _newest_sent: dict[tuple[str, int], int] = field(default_factory=dict)
    _parking_s: float = 0.0
    _sequence: int = 0
    _router: Router = field(default_factory=Router)

    def __post_init__(self) -> None:
        lanes = self.settings.lanes
        reserved = {lane: lanes[lane].reserved_slots for lane in Lane if lanes[lane].reserved_slots}
        self.backends = {row.name: BackendState(row, reserved) for row in self.settings.backends}
        self._turns = DeficitRoundRobin({lane: lanes[lane].weight for lane in Lane})
        self._models = {name: row for row in self.settings.models for name in (row.name, *row.aliases)}
        self._agent_types = {agent_type for row in self.settings.models for agent_type in row.agent_types}
        retry = self.settings.retry
        self._tiers = [RetryTier(name) for name in retry.tiers] if retry.enabled else []
        self.retries = self.retries or InPlaceRetries(retry.enabled, RetryBudget(retry.budget_ratio))

    # Intake

    def accept(self, task: Task, *, now_s: float, elsewhere: bool = False) -> list[Effect]:
        """Take a task in. One that is held already (redelivered) gives its deliveries to it and ends with it.

        `elsewhere`: another worker still runs it, so it is held back until `reconsider` says otherwise. Which task has crashed
        how many workers is told by its `crashes`: with three it is a suspect and runs once more, in a batch of its own and beside no
        other suspect, so that another end of the worker is put down to it alone; with four it is given up.
        """
        held = self._tasks.get(task.key)
        if held is not None:
            held.sources.extend(task.sources)
            held.deliveries.extend(task.deliveries)
            return []
        if task.deadline_s <= now_s:
            return [self._end(task, DeadlineExpired(), now_s)]
        if task.crashes > MOST_CRASHES and not elsewhere:
            return [self._end(task, Quarantined(), now_s)]
        entry = (
            self.cache.get(task.fingerprint, self.clock.ms(now_s)) if task.wants_cache and task.fingerprint else None
        )
        if entry is not None:
            result = outcome.answered_from_cache(task, entry, now_s=now_s, now_ms=self.clock.ms(now_s))
            return [Finish(task, result)]
        if self._is_unknown_model(task):
            return [self._end(task, UnknownModel(), now_s)]
        task.bound_tokens = task.bound_tokens or task.cost_tokens
        task.cost_tokens = self.costs.expected(task)
        self._sequence += 1
        task.sequence = self._sequence
        task.tries_left = 0 if task.hops else self.settings.retry.in_place_tries
        self._tasks[task.key] = task
        self.loads.add(task)
        self._drop_stale_expiries()
        heapq.heappush(self._expiries, (task.deadline_s, task.sequence, task))
        if elsewhere:
            self._elsewhere[task.key] = task
        else:
            self._admit(task)
        return []

    def reconsider(self, still: Callable[[Task], bool], *, now_s: float) -> list[Effect]:
        """Queue the tasks that are held back for another worker's sake and for which `still` is false: it will not end them.

        One that has crashed too many workers meanwhile is given up.
        """
        effects: list[Effect] = []
        for task in [task for task in self._elsewhere.values() if not still(task)]:
            if task.crashes > MOST_CRASHES:
                self._forget(task)
                effects.append(self._end(task, Quarantined(), now_s))
            else:
                del self._elsewhere[task.key]
                self._admit(task)
        return effects

    def withdraw(self, keep: Callable[[object], bool], *, running: bool) -> list[Task]:
        """Let go of deliveries for which `keep` is false: their partition is gone. Return the tasks that have none left.

        Tasks that wait are given up: the next owner gets them. `running`: deliveries of running tasks are let go of too; such a task
        goes on, its result is written all the same, and the log decides.
        """
        gone = []
        for task in list(self._tasks.values()):
            is_running = task.key in self._running or self._follows_a_call(task)
            if is_running and not running:
                continue
            task.deliveries[:] = [delivery for delivery in task.deliveries if keep(delivery)]
            if not task.deliveries and not is_running:
                self._forget(task)
                gone.append(task)
        return gone

    def cancel(self, key: TaskKey) -> list[Effect]:
        """Let go of a task that got its outcome from outside, and of its running call; nothing when it is not held."""
        task = self._tasks.get(key)
        if task is None:
            return []
        call = self._forget(task)
        return [Drop(task)] if call is None else [Abort(call), Drop(task)]

    # Backends

    def probed(self, backend: str, probe: Probe, *, now_s: float) -> list[Effect]:
        """Take note of a look at a backend. A model that no backend has, each having answered, ends the tasks that name it."""
        state = self.backends[backend]
        if probe.up or state.probe is None:
            state.probe = probe
        state.up, state.down_reason = probe.up, probe.reason
        waiting = [task for task in self._held_waiting() if self._is_unknown_model(task)]
        unknown = [each for task in waiting for each in (task, *self._coalescing.followers(task))]
        for task in unknown:
            self._forget(task)
        return [self._end(task, UnknownModel(), now_s) for task in unknown]

    def answered(self, task: Task, answer: Answer, *, now_s: float) -> list[Effect]:
        """A backend answered the call of a task, and of those that wait for its answer. Ignored when nobody does."""
        running = self._finish_call(task)
        if running is None:
            return []
        latency_s = now_s - (now_s if task.dispatched_s is None else task.dispatched_s)
        running.backend.observe(running.served.model, latency_s)
        if answer.usage is not None:
            self.costs.learn(task, answer.usage)
            if running.is_charged:
                self._correct(task, answer.usage.total_tokens)
        served = running.served if not answer.dropped else _with_dropped(running.served, answer.dropped)
        now_ms = self.clock.ms(now_s)
        effects: list[Effect] = []
        for member in self._members(running):
            self._forget(member)
            result = outcome.completed(member, served, answer.output, answer.usage, now_s=now_s, now_ms=now_ms)
            # One entry for the cache is enough.
            cacheable = None if effects else outcome.cacheable(member, result)
            effects.append(Finish(member, _shared(result, member, task), cacheable))
        return effects

    def failed(self, task: Task, error: ServingError, *, now_s: float) -> list[Effect]:
        """A call failed: try again within this worker, through a retry topic, or end the task, and those that waited for its answer.

        Ignored when nobody does. A task whose partition went to another worker meanwhile is let go of: that worker has it.
        Identical tasks are tried again as one, and where that is over each goes its own way: to the retry topic that is its next, or to
        the end. They meet again where they come back.
        """
        running = self._finish_call(task)
        if running is None:
            return []
        members = self._members(running)
        effects: list[Effect] = []
        for member in [each for each in members if now_s >= each.deadline_s]:
            # The call was cut off by the deadline, or failed as it passed.
            members.remove(member)
            self._forget(member)
            effects.append(self._end(member, DeadlineExpired(), now_s, running.served))
        if not members:
            return effects
        if not isinstance(error, BackendRejected):  # that one is the request's fault
            running.backend.observe(running.served.model, None)
        self._note_failure(running.backend, error, now_s)
        for member in [each for each in members if not each.deliveries]:
            members.remove(member)
            self._forget(member)
            effects.append(Drop(member))
        if members and not self._try_again(members, error, now_s):
            for member in members:
                self._forget(member)
                effects.append(_shared_end(self._after_last_try(member, error, now_s, running.served), task))
        return effects

    def _try_again(self, members: Sequence[Task], error: ServingError, now_s: float) -> bool:
        """Have the first of identical tasks, and with it the others, tried again within this worker, if that may be."""
        leader = members[0]
        assert self.retries is not None
        delay_s = self.retries.delay_s(error, tries_left=leader.tries_left, attempts=leader.attempts)
        if delay_s is None or now_s + delay_s >= leader.deadline_s:
            return False
        leader.tries_left -= 1
        for member in members:
            member.dispatched_s = member.dispatched_ms = None
        self.loads.add(leader)
        heapq.heappush(self._delayed, (now_s + delay_s, leader.sequence, leader))
        regroup(self._coalescing, members)
        return True

    # Time

    def step(self, now_s: float) -> list[Effect]:
        """Return everything that is due now, and set `next_deadline_s` to when to call again (None: on the next change)."""
        effects: list[Effect] = list(self._expire(now_s))
        self._let_one_suspect_through()
        while self._delayed and self._delayed[0][0] <= now_s:
            _, _, task = heapq.heappop(self._delayed)
            if self._tasks.get(task.key) is task:
                self._enqueue(task, first=True)
        while (batch := self._next_batch(now_s)) is not None:
            effects.append(Send(batch))
        effects += self._park(now_s)
        self.next_deadline_s = self._when_next(now_s)
        return effects

    # What is held, for snapshots and metrics

    def waiting(self, lane: Lane) -> int:
        """Return how many tasks of a lane are held and not with a backend; those that wait for an identical one's answer are some."""
        return self.waiting_counts.lanes[lane] + self._coalescing.following(lane)

    def has_room(self, lane: Lane, share: float = 1.0) -> bool:
        """Whether a lane may take one more task in: what it holds is bounded by requests, bytes and tokens."""
        return self.loads.lanes[lane].has_room(self.settings.lanes[lane], share)

    def is_heavy(self, lane: Lane) -> bool:
        """Whether a lane is full of few large tasks."""
        return self.loads.lanes[lane].is_heavy(self.settings.lanes[lane])

    def gate(self, lane: Lane, model: str | None, *, now_s: float) -> Gate:
        """Return what a waiting class is held up by: the first thing that would have to change for it to move."""
        route = (model, None)
        fitting = [c for c in self._candidates(lane, now_s) if _may_serve(c, route)]
        able = [c for c in fitting if c.up]
        if not able:
            return Gate.BACKEND_DOWN if fitting else Gate.NO_BACKEND
        if lane is Lane.LOW and self._router.sheds_low(Want(model, None, 0), able):
            return Gate.SHED
        if not any(c.limit > c.in_flight for c in able):
            return Gate.NO_FREE_SLOT
        windows = [self._windows[lane].get((model, agent_type)) for agent_type in (None, *self._agent_types)]
        is_idle = any(c.in_flight == 0 for c in able)
        is_ready = any(window and window.ready(now_s, idle=is_idle) is not None for window in windows)
        return Gate.TURN if is_ready else Gate.WINDOW

    def oldest_wait_s(self, lane: Lane, now_s: float) -> float:
        return max((now_s - task.accepted_s for window in self._windows[lane].values() for task in window), default=0.0)

    @property
    def running(self) -> list[Task]:
        return [entry.owner for entry in self._running.values()]

    @property
    def following(self) -> list[Task]:
        """Return the tasks that wait for the answer to a call that was begun for an identical one."""
        return [each for entry in self._running.values() for each in self._coalescing.followers(entry.owner)]

    def runs(self, task: Task) -> bool:
        """Whether the call that was begun for this very task, not another of its key, is wanted by anybody."""
        return task in self._calls

    def has(self, task: Task) -> bool:
        """Whether this very task is held, not another of its key."""
        return self._tasks.get(task.key) is task

    def holds(self, key: TaskKey) -> bool:
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"Dispatcher({len(self._tasks)} tasks, {len(self._running)} running)"

    # Inside

    def _admit(self, task: Task) -> None:
        if task.crashes == MOST_CRASHES:
            self._suspects[task.key] = task
        elif not self._follows(task):
            self._enqueue(task)

    def _follows(self, task: Task) -> bool:
        """Have a task wait for an identical one's answer, if there is one. One that still waits gives its place up to a more urgent one."""
        leader = self._coalescing.join(task) if task.may_coalesce else None
        if leader is not None and leader.key in self._waiting and is_more_urgent(task, leader):
            self._take_out(leader)
            self._coalescing.lead(task)
            return False
        return leader is not None

    def _follows_a_call(self, task: Task) -> bool:
        leader = self._coalescing.leader_of(task)
        return leader is not None and leader.key in self._running

    def _let_one_suspect_through(self) -> None:
        if self._suspect is None and self._suspects:
            self._suspect = next(iter(self._suspects.values()))
            del self._suspects[self._suspect.key]
            self._enqueue(self._suspect)

    def _enqueue(self, task: Task, *, first: bool = False) -> None:
        agent_type = task.request.agent_type
        route = (task.model, agent_type if agent_type in self._agent_types else None)
        group = orjson.dumps(task.parameters, option=orjson.OPT_SORT_KEYS)
        if task is self._suspect:  # a batch of its own
            group = orjson.dumps([task.key, task.sequence])
        windows = self._windows[task.lane]
        window = windows.get(route)
        if window is None:
            lane = self.settings.lanes[task.lane]
            window = windows[route] = Window(lane.window_ms / 1000, lane.max_batch_requests, lane.max_batch_tokens)
        self._waiting[task.key] = (route, group)
        self.waiting_counts.add(task)
        window.add_first(task, group) if first else window.add(task, group)

    def _next_batch(self, now_s: float) -> Batch | None:
        offers: dict[Lane, tuple[Window, bytes, ModelDecision, int]] = {}
        for lane in Lane:
            offer = self._offer(lane, now_s)
            if offer is not None:
                offers[lane] = offer
        if not offers:
            return None
        lane = self._turns.pick({lane: window.head(key).cost_tokens for lane, (window, key, _, _) in offers.items()})
        window, key, decision, free = offers[lane]
        batch = self._launch(window.take(key, free), decision, now_s)
        alone = len(offers) == 1 and not any(
            self._waits_for(batch.backend, each, now_s) for each in Lane if each != lane
        )
        self._turns.spend(lane, batch.tokens, alone=alone)
        for task in batch.tasks:
            self._running[task.key].is_charged = not alone
        self._tidy(lane)
        return batch

    def _offer(self, lane: Lane, now_s: float) -> tuple[Window, bytes, ModelDecision, int] | None:
        """Return what the lane would send now: of its ready groups that a backend can take, the one that has waited longest."""
        best: tuple[Window, bytes, ModelDecision, int] | None = None
        candidates = self._candidates(lane, now_s) if self._windows[lane] else []
        for route, window in self._windows[lane].items():
            able = [c for c in candidates if c.up and c.limit > c.in_flight and _may_serve(c, route)]
            if not able:
                continue
            window.lead_s = min(c.latency_ema_s or 0.0 for c in able)
            key = window.ready(now_s, idle=any(c.in_flight == 0 for c in able))
            if key is None or (best is not None and best[0].head(best[1]).sequence < window.head(key).sequence):
                continue
            head = window.head(key)
            tokens = _within_context(head.bound_tokens, [c for c in candidates if _may_serve(c, route)])
            want = Want(head.model, head.request.agent_type, tokens)
            if lane is Lane.LOW and self._router.sheds_low(want, candidates):
                continue
            decision = self._router.choose(want, candidates)
            if isinstance(decision, ModelDecision):
                best = (window, key, decision, self._free(self.backends[decision.backend], lane, now_s))
        return best

    def _waits_for(self, backend: str, lane: Lane, now_s: float) -> bool:
        """Whether a lane has tasks that the backend would take, had it room for that lane."""
        if not self._windows[lane]:
            return False
        found = [c for c in self._candidates(lane, now_s) if c.backend == backend]
        if lane is Lane.LOW and all(MATRIX[c.pressure].sheds_low for c in found):
            return False
        return any(_may_serve(c, route) for c in found for route in self._windows[lane])

    def _candidates(self, lane: Lane, now_s: float) -> list[Candidate]:
        found = []
        for state in self.backends.values():
            pressure = self._pressure(state, now_s)
            up = state.up and state.paused_until_s <= now_s
            free = self._free(state, lane, now_s)
            lost = bool(state.settings.gpus) and self.fleet.lost(state.settings.gpus, now_s=now_s)
            for model in state.models:
                known = self._models.get(model, _UNSIZED)
                found.append(
                    Candidate(
                        backend=state.name,
                        kind=state.settings.kind,
                        model=model,
                        size=known.size,
                        in_flight=state.busy,
                        limit=state.busy + free,
                        latency_ema_s=state.latency_s.get(model),
                        failure_ratio=state.failure_ratio,
                        pressure=pressure,
                        up=up,
                        draining=state.draining,
                        lost=lost,
                        agent_types=frozenset(known.agent_types),
                        context_tokens=known.context_tokens or (state.probe.context_tokens if state.probe else None),
                        aliases=frozenset((known.name, *known.aliases)) if known.name else frozenset(),
                        any_model=state.settings.any_model,
                    )
                )
        return found

    def _pressure(self, state: BackendState, now_s: float) -> MemoryPressureLevel | None:
        gpus = state.settings.gpus
        if not gpus:
            return None
        return self.fleet.pressure_of(
            gpus, now_s=now_s, owns_memory=state.settings.kind == "vllm", pool_bytes=state.settings.pool_bytes
        )

    def _free(self, state: BackendState, lane: Lane, now_s: float) -> int:
        return state.free(lane, sequential=MATRIX[self._pressure(state, now_s)].sequential)

    def _launch(self, tasks: list[Task], decision: ModelDecision, now_s: float) -> Batch:
        state = self.backends[decision.backend]
        pressure = decision.pressure.name if decision.pressure is not None else None
        batch = Batch(self.new_batch_id(), state.name, decision.model, tasks, decision.reason, pressure)
        served = Served(state.name, decision.model, BatchRef(batch.id, len(tasks)), decision.reason, pressure)
        state.start(tasks[0].lane, len(tasks))
        now_ms = self.clock.ms(now_s)
        for task in tasks:
            task.attempts += 1
            task.dispatched_s, task.dispatched_ms = now_s, now_ms
            del self._waiting[task.key]
            self.waiting_counts.remove(task)
            self.loads.remove(task)
            self._running[task.key] = self._calls[task] = _Running(task, task, served, state)
            self._newest_sent[task.place] = max(task.sequence, self._newest_sent.get(task.place, 0))
        return batch

    def _finish_call(self, task: Task) -> _Running | None:
        running = self._calls.pop(task, None)
        if running is None:
            return None
        del self._running[running.owner.key]
        running.backend.finish(task.lane)
        assert self.retries is not None
        self.retries.budget.earn()
        return running

    def _members(self, running: _Running) -> list[Task]:
        """Return those whom a call that has ended was for; their group is dissolved. Each was dispatched with it, or as it joined it."""
        call = running.task
        members = [running.owner, *self._coalescing.dissolve(running.owner)]
        for member in members:
            if member is not call and call.dispatched_s is not None and call.dispatched_ms is not None:
                member.dispatched_s = max(call.dispatched_s, member.accepted_s)
                member.dispatched_ms = max(call.dispatched_ms, member.accepted_ms)
        return members

    def _correct(self, task: Task, tokens: int) -> None:
        """Have a lane pay for what a task took and not for what it was expected to; one without work gains no credit by it."""
        self._turns.correct(task.lane, tokens - task.cost_tokens)
        if not self._windows[task.lane]:
            self._turns.forget(task.lane)

    def _note_failure(self, state: BackendState, error: ServingError, now_s: float) -> None:
        if isinstance(error, BackendOverloaded):
            state.pause(error.retry_after_s, now_s=now_s)
        elif isinstance(error, BackendUnavailable):
            state.up, state.down_reason = False, error.type.value

    def _after_last_try(self, task: Task, error: ServingError, now_s: float, served: Served) -> Effect:
        now_ms = self.clock.ms(now_s)  # what is written is in broker time, and rounds otherwise than seconds do
        left_s = (task.deadline_ms - now_ms) / 1000
        tier = next_tier(self._tiers, task.hops, asked_s=asked_pause_s(error), left_s=left_s)
        if tier is None or not error.retriable:
            return self._end(task, error, now_s, served)
        hops = self._tiers.index(tier) + 1
        return HandOver(task, tier, now_ms + tier.delay_ms, hops, error)

    def _park(self, now_s: float) -> Iterator[Effect]:
        """Hand over, once a second, what no backend could take for 30 s while a later request of its partition was sent.

        It holds its partition up. What merely waits for a slot does not: it moves on as slots become free.
        """
        if now_s < self._parking_s:
            return
        self._parking_s = now_s + _PARKING_EVERY_S
        since_s = now_s - PARKED_AFTER_S
        for lane in Lane:
            for window in self._shut_windows(lane, now_s):
                for task in [task for task in window.waiting_since(since_s) if self._is_overtaken(task)]:
                    self._forget(task)
                    tier = parking_tier(lane, task.deadline_s - now_s)
                    yield HandOver(task, tier, self.clock.ms(now_s) + tier.delay_ms, task.hops)

    def _is_overtaken(self, task: Task) -> bool:
        return self._newest_sent.get(task.place, 0) > task.sequence

    def _shut_windows(self, lane: Lane, now_s: float) -> list[Window]:
        """Return the windows of classes that no backend has taken for 30 s, also with a free slot."""
        candidates = self._candidates(lane, now_s) if self._windows[lane] else []
        found = []
        for route, window in self._windows[lane].items():
            able = [c for c in candidates if c.up and not c.draining and not c.lost and _may_serve(c, route)]
            if able and not (lane is Lane.LOW and self._router.sheds_low(Want(route[0], route[1], 0), able)):
                window.shut_since_s = None
                continue
            window.shut_since_s = now_s if window.shut_since_s is None else window.shut_since_s
            if now_s - window.shut_since_s >= PARKED_AFTER_S:
                found.append(window)
        return found

    def _end(self, task: Task, error: ServingError, now_s: float, served: Served | None = None) -> Finish:
        result = outcome.failed(task, error, now_s=now_s, now_ms=self.clock.ms(now_s), served=served)
        return Finish(task, result)

    def _expire(self, now_s: float) -> Iterator[Effect]:
        while self._expiries and self._expiries[0][0] <= now_s:
            _, _, task = heapq.heappop(self._expiries)
            if self._tasks.get(task.key) is not task:
                continue
            running = self._running.get(task.key)
            call = self._forget(task)
            if call is not None:
                yield Abort(call)
            yield self._end(task, DeadlineExpired(), now_s, running.served if running else None)

    def _drop_stale_expiries(self) -> None:
        """Keep the heap within twice what is held: most tasks end long before their deadline (71 h when none was given)."""
        if len(self._expiries) > 2 * len(self._tasks) + _STALE_EXPIRIES:
            self._expiries = [entry for entry in self._expiries if self._tasks.get(entry[2].key) is entry[2]]
            heapq.heapify(self._expiries)

    def _forget(self, task: Task) -> Task | None:
        """Let a task go from wherever it is. An identical one that follows it takes its place, and its call.

        Return the task of the call that is to be closed, None when none is.
        """
        self._tasks.pop(task.key, None)
        self.loads.remove(task)
        self._elsewhere.pop(task.key, None)
        self._suspects.pop(task.key, None)
        if task is self._suspect:
            self._suspect = None
        self._take_out(task)
        heir = self._coalescing.leave(task)
        running = self._running.pop(task.key, None)
        if heir is not None and running is not None:
            running.owner = heir
            self.loads.remove(heir)
            self._running[heir.key] = running
            return None
        if heir is not None:
            self._enqueue(heir)
        if running is None:
            return None
        running.backend.finish(running.task.lane)
        del self._calls[running.task]
        return running.task

    def _take_out(self, task: Task) -> None:
        """Take a task out of its window, where it stands in one."""
        place = self._waiting.pop(task.key, None)
        if place is not None:
            route, group = place
            self._windows[task.lane][route].remove(task, group)
            self.waiting_counts.remove(task)
            self._tidy(task.lane)

    def _tidy(self, lane: Lane) -> None:
        """Drop empty windows, so that their number is bounded by what waits; a lane without work keeps no credit."""
        windows = self._windows[lane]
        for route in [route for route, window in windows.items() if not window.waiting]:
            del windows[route]
        if not windows:
            self._turns.forget(lane)

    def _held_waiting(self) -> Iterable[Task]:
        return [self._tasks[key] for key in self._waiting]

    def _is_unknown_model(self, task: Task) -> bool:
        if task.model is None or task.model in self._models or not self.backends:
            return False
        if not all(state.has_answered or state.settings.models for state in self.backends.values()):
            return False
        return not any(state.settings.any_model or task.model in state.models for state in self.backends.values())

    def _when_next(self, now_s: float) -> float | None:
        times = [window.next_ready_s() for windows in self._windows.values() for window in windows.values()]
        due = [at for at in times if at is not None and at > now_s]
        due += [state.paused_until_s for state in self.backends.values() if state.paused_until_s > now_s]
        if any(self._windows.values()):
            due.append(self._parking_s)  # to see which classes no backend takes, and since when
        if self._suspects and self._suspect is None:
            due.append(now_s)
        if self._delayed:
            due.append(self._delayed[0][0])
        if self._expiries:
            due.append(self._expiries[0][0])
        return min(due, default=None)


def _may_serve(candidate: Candidate, route: RouteClass) -> bool:
    model, agent_type = route
    if model is not None:
        return model == candidate.model or model in candidate.aliases or candidate.any_model
    return agent_type is None or agent_type in candidate.agent_types


def _within_context(tokens: int, candidates: Sequence[Candidate]) -> int:
    """Return the estimate, cut to the longest context there is: its server counts exactly, and refuses what is too long.

    Refused here, the task would hold up the others of its group until its deadline.
    """
    contexts = [c.context_tokens for c in candidates if c.context_tokens is not None]
    return min(tokens, max(contexts)) if contexts and len(contexts) == len(candidates) else tokens


def _shared(result: Result, member: Task, call: Task) -> Result:
    """Return a task's result with the one whose call it shared, if it is another."""
    return result if member is call else replace(result, coalesced_with=call.task_id)


def _shared_end(effect: Effect, call: Task) -> Effect:
    return replace(effect, result=_shared(effect.result, effect.task, call)) if isinstance(effect, Finish) else effect


def _with_dropped(served: Served, dropped: tuple[str, ...]) -> Served:
    return Served(served.backend, served.model, served.batch, served.reason, served.pressure, dropped)
