"""Why a task waits: its place, the gate it stands at in plain words, and the backends it could go to.

A gate belongs to a class (lane, tenant, model); a task's own explanation follows from what the logs say of it and from the workers'
snapshots. Nothing is said of another tenant but that there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.progress import BackendStatus, ClassState, Gate
from schemas.topics import Lane
from streams import estimating
from streams.estimating import Ahead, Estimate, Rank
from streams.pressure import MemoryPressureLevel
from streams.routing import Candidate, Considered, Router, Want
from streams.settings import ModelSettings
from streams.workers import Workers

NO_WORKER, NOT_FETCHED, RUNNING = "no_worker", "not_fetched", "running"
"""Besides the gates of a class: where a task stands that no worker holds as waiting."""
SHUT = frozenset({Gate.BREAKER, Gate.BACKEND_DOWN, Gate.NO_BACKEND, Gate.SHED})
"""Gates that no call's end opens: how long they stay shut is not known."""
_UNSIZED = ModelSettings(name="")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the logs say of a task without an outcome. `model` None: routing chooses. `place` is its lane record's topic/partition.

    `backend` is that of its newest start. `next_try_ms` None: it is in no retry topic; else it is not taken before.
    """

    task_id: str
    lane: Lane
    tenant: str
    model: str | None
    agent_type: str | None
    cost_tokens: int
    place: str
    offset: int
    attempts: int = 0
    backend: str | None = None
    started_ms: int | None = None
    next_try_ms: int | None = None

    @property
    def waits(self) -> bool:
        """Whether nobody has it at a backend, as far as the logs tell."""
        return self.attempts == 0 or self.next_try_ms is not None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a task stands. `gate` is a Gate's value or one of this module's; `position` None: not known, or nothing it waits behind."""

    lane: Lane
    position: int | None
    tokens_ahead: int | None
    gate: str | None
    reason: str
    estimate: Estimate | None
    considered: tuple[Considered, ...] = ()


def explain(
    entry: Entry,
    rank: Rank,
    waiting: Mapping[Lane, int],
    workers: Workers,
    models: Sequence[ModelSettings] = (),
    *,
    is_fresh: bool,
    now_ms: int,
) -> Explanation:
    """Return where a task stands at `now_ms` (broker time).

    `rank` and `waiting` come from the logs, as in `estimating.ahead`. `is_fresh` False: the snapshots are too old for a position or
    an estimate, which are None then. `models` are the settings', for the sizes and agent types that routing looks at.
    """
    gate, reason = _gate(entry, workers, models, now_ms)
    considered = considered_for(entry, workers, models)
    if not entry.waits or not workers.snapshots or not is_fresh:
        return Explanation(entry.lane, None, None, gate, reason, None, considered)
    before, guess = standing(entry, rank, waiting, workers, now_ms=now_ms)
    if gate == Gate.RETRY_DELAY:  # who comes while it is away may start before it
        return Explanation(entry.lane, None, None, gate, reason, guess, considered)
    return Explanation(entry.lane, before.position, before.tokens, gate, reason, guess, considered)


def standing(
    entry: Entry, rank: Rank, waiting: Mapping[Lane, int], workers: Workers, *, now_ms: int
) -> tuple[Ahead, Estimate | None]:
    """Return what starts before a task that waits, and when it starts; no estimate while its class stands at a gate that is shut."""
    before = estimating.ahead(workers, entry.lane, entry.tenant, rank, waiting, is_fetched=_is_fetched(entry, workers))
    row = workers.class_of(entry.lane, entry.tenant, entry.model, entry.place)
    if row is not None and row.gate in SHUT:
        return before, None
    return before, estimating.after(delay_s(entry, now_ms), estimating.estimate(workers, entry.lane, before))


def considered_for(entry: Entry, workers: Workers, models: Sequence[ModelSettings] = ()) -> tuple[Considered, ...]:
    """Return every model of every backend as routing looks at it for this task now: its score, or the filter that refused it."""
    want = Want(entry.model, entry.agent_type, entry.cost_tokens)
    return Router().choose(want, _candidates(workers.backends.values(), models, entry.lane), explain=True).considered


def delay_s(entry: Entry, now_ms: int) -> float:
    """Return how long a task stays in its retry topic, 0.0 when it is in none."""
    return max((entry.next_try_ms or 0) - now_ms, 0) / 1000


def _is_fetched(entry: Entry, workers: Workers) -> bool:
    """Whether a worker has taken it in; of one in a retry topic the snapshots do not tell, and it counts as not fetched."""
    return entry.next_try_ms is None and workers.fetched_through.get(entry.place, -1) >= entry.offset


# Gates


def _gate(entry: Entry, workers: Workers, models: Sequence[ModelSettings], now_ms: int) -> tuple[str | None, str]:
    row = workers.class_of(entry.lane, entry.tenant, entry.model, entry.place)
    if entry.next_try_ms is not None:
        return _between_tries(entry, row, workers, now_ms)
    if not entry.waits:
        return _started(entry, row, workers)
    if not workers.snapshots:
        return NO_WORKER, "No worker has been heard of for five seconds: the request stays in Kafka until one runs."
    if not _is_fetched(entry, workers):
        return NOT_FETCHED, _not_fetched(entry, row, workers)
    if row is None:
        return None, (
            "A worker has fetched it, and its newest snapshot does not name its class: it came a moment ago, is being ended, waits "
            "for the answer to an identical task, or for another worker that still runs it."
        )
    return row.gate.value, told(row, workers)


def _started(entry: Entry, row: ClassState | None, workers: Workers) -> tuple[str | None, str]:
    where = f" on the backend {entry.backend}" if entry.backend else ""
    if entry.task_id in workers.in_flight:
        return RUNNING, f"It is running{where}, attempt {entry.attempts}."
    if not workers.snapshots:
        return (
            NO_WORKER,
            f"It was started{where}, and no worker has been heard of for five seconds: one that comes runs it again.",
        )
    if all((entry.started_ms or 0) >= each.at_ms for each in workers.snapshots):
        return RUNNING, f"It was sent{where} a moment ago, attempt {entry.attempts}."
    if row is not None:
        return (
            row.gate.value,
            f"Attempt {entry.attempts}{where} came to nothing, and its worker tries again. {told(row, workers)}",
        )
    return None, (
        f"It was started{where}, attempt {entry.attempts}, and no worker's newest snapshot names it: it ended a moment ago, or its "
        "worker is gone and another one runs it again."
    )


def _between_tries(entry: Entry, row: ClassState | None, workers: Workers, now_ms: int) -> tuple[str | None, str]:
    tried = f"after attempt {entry.attempts}" if entry.attempts else "since no backend could take it"
    left_s = delay_s(entry, now_ms)
    if left_s > 0:
        return Gate.RETRY_DELAY.value, f"It waits in a retry topic, {tried}, for {left_s:.0f} s more."
    if not workers.snapshots:
        return (
            NO_WORKER,
            f"It waits in a retry topic, {tried}, and is due; no worker has been heard of for five seconds.",
        )
    if row is None:
        return (
            NOT_FETCHED,
            f"It waits in a retry topic, {tried}, and is due: a worker takes it in as soon as its lane has room.",
        )
    return row.gate.value, f"Its delay in a retry topic, {tried}, is over. {told(row, workers)}"


def _not_fetched(entry: Entry, row: ClassState | None, workers: Workers) -> str:
    read_to = workers.fetched_through.get(entry.place)
    held = workers.lanes[entry.lane].waiting
    if read_to is None:
        first = "It is still in Kafka, and no worker has fetched anything of its partition yet."
    else:
        before = entry.offset - read_to - 1
        told_before = f"{_count(before, 'record')} of its partition before it" if before else "next in its partition"
        first = f"It is still in Kafka, {told_before}: workers fetch as much of a lane as they may hold, now {_count(held, 'task')}."
    return f"{first} Of its class: {told(row, workers)}" if row is not None else first


def told(row: ClassState, workers: Workers) -> str:
    """Return in a sentence what the tasks of a class wait for."""
    lane, gate = row.lane, row.gate
    if gate is Gate.TURN:
        return f"It is other lanes' turn: {_turn(lane, workers)}."
    if gate is Gate.TENANT:
        return f"Other tenants of the lane {lane.value} are served first: this one has had its share."
    if gate is Gate.ORDER:
        return "Tasks of its own lane and tenant that are due earlier, or shorter, go first."
    if gate is Gate.BUDGET:
        return "It is marked as batch work, which has had its share of the slots while live work waits."
    if gate is Gate.WINDOW:
        return "Its batch waits a moment for company: it leaves when it is full or its window is over."
    if gate is Gate.NO_FREE_SLOT:
        return f"Every backend that could take it is busy: {_busy(row, workers)}."
    if gate is Gate.BREAKER:
        return f"Every backend that could take it is paused after failures: {_names(row, workers)}."
    if gate is Gate.BACKEND_DOWN:
        return f"Every backend that could take it is down: {_down(row, workers)}."
    if gate is Gate.NO_BACKEND:
        return "No backend has " + ("any model yet." if row.model is None else f"the model {row.model}.")
    if gate is Gate.SHED:
        return "The low lane is put off: the GPUs of every backend that could take it are at CRITICAL memory pressure."
    return "It waits a moment in its worker before another try."


def _turn(lane: Lane, workers: Workers) -> str:
    if workers.is_strict:
        return f"a lane above {lane.value} has work waiting, and the policy is strict"
    others = [each for each, totals in workers.lanes.items() if each is not lane and totals.waiting]
    weights = ", ".join(f"{each.value} {workers.lanes[each].weight}" for each in others)
    return f"{lane.value} has weight {workers.lanes[lane].weight}" + (f" against {weights}" if weights else "")


def _fitting(row: ClassState, workers: Workers) -> list[BackendStatus]:
    """Return the backends that have the model of a class, or any where routing chooses."""
    found = workers.backends.values()
    return [each for each in found if row.model is None or row.model in each.models or each.any_model] or list(found)


def _busy(row: ClassState, workers: Workers) -> str:
    up = [each for each in _fitting(row, workers) if each.up]
    return "; ".join(
        f"{each.name} runs {each.in_flight} of {_count(each.limit, 'call')}{_kept(each, row.lane)}" for each in up
    )


def _kept(backend: BackendStatus, lane: Lane) -> str:
    lanes = [name for name in backend.kept if name != lane.value]
    return f" and keeps the rest for {', '.join(lanes)}" if lanes and backend.in_flight < backend.limit else ""


def _down(row: ClassState, workers: Workers) -> str:
    return "; ".join(
        f"{each.name} ({'draining' if each.up else each.reason or 'no reason is known'})"
        for each in _fitting(row, workers)
    )


def _names(row: ClassState, workers: Workers) -> str:
    return ", ".join(each.name for each in _fitting(row, workers))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


# Candidates


def _candidates(backends: Iterable[BackendStatus], models: Sequence[ModelSettings], lane: Lane) -> list[Candidate]:
    known = {name: row for row in models for name in (row.name, *row.aliases)}
    return [_candidate(each, model, known.get(model, _UNSIZED), lane) for each in backends for model in each.models]


def _candidate(backend: BackendStatus, model: str, known: ModelSettings, lane: Lane) -> Candidate:
    return Candidate(
        backend=backend.name,
        kind=backend.kind,
        model=model,
        size=known.size,
        in_flight=backend.in_flight,
        limit=backend.in_flight + backend.free(lane),
        latency_ema_s=backend.latency_ema_s,
        failure_ratio=backend.failure_ratio,
        pressure=MemoryPressureLevel.__members__.get(backend.pressure or ""),
        up=backend.up and not backend.paused,
        draining=backend.draining,
        lost=backend.lost,
        agent_types=frozenset(known.agent_types),
        context_tokens=known.context_tokens,
        aliases=frozenset((known.name, *known.aliases)) if known.name else frozenset(),
        any_model=backend.any_model,
    )
