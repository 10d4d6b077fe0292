"""Outcomes: the record that ends a task, and the rule that decides between several.

The outcome of a task is the first record of its task_id in the results log of its partition, in offset order. So every race
(cancel, expiry, a worker thought dead, a record sent twice) is decided by the log, alike for every reader, for ever.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

from schemas import headers as names
from schemas.cache import CacheEntry
from schemas.result import BatchRef, ErrorType, Outcome, Output, Result, ResultError, Routing, Source, Timing, Usage
from schemas.topics import Lane
from streams.errors import DeadlineExpired, ServingError
from streams.task import Task, TaskKey


def first_outcomes(records: Iterable[tuple[str, int, Outcome]]) -> dict[TaskKey, Outcome]:
    """Return each task's outcome from (task_id, partition, outcome) rows in offset order per partition."""
    outcomes: dict[TaskKey, Outcome] = {}
    for task_id, partition, outcome in records:
        outcomes.setdefault((task_id, partition), outcome)
    return outcomes


@dataclass
class FinishedIndex:
    """Tasks with an outcome whose request is not yet committed: what a redelivered request is checked against.

    Fed from the results log, pruned by commits, so it holds only finished-but-uncommitted tasks and those ended from outside before
    they were read. Feeding the same record twice changes nothing. A lane's partition is followed from its first `commit` (of 0
    where there was none) until its `release`: the results of a partition number come from all lanes, and those of a lane that
    another worker reads would never be pruned here.
    """

    _outcomes: dict[TaskKey, Outcome] = field(default_factory=dict)
    _by_source: dict[tuple[str, int], list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    _committed: dict[tuple[str, int], int] = field(default_factory=dict)

    def observe(self, task_id: str, source: Source, outcome: Outcome) -> None:
        """Take note of a terminal record; the first one of a task stays. Ignored for a place that is not followed."""
        place = (source.topic, source.partition)
        key = (task_id, source.partition)
        committed = self._committed.get(place)
        if committed is None or source.offset < committed or key in self._outcomes:
            return
        self._outcomes[key] = outcome
        heapq.heappush(self._by_source[place], (source.offset, task_id))

    def outcome_of(self, task_id: str, partition: int) -> Outcome | None:
        return self._outcomes.get((task_id, partition))

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """Forget tasks whose request lies below `offset`, the next to be read of a lane's partition."""
        place = (topic, partition)
        self._committed[place] = max(offset, self._committed.get(place, 0))
        heap = self._by_source.get(place)
        while heap and heap[0][0] < offset:
            _, task_id = heapq.heappop(heap)
            self._outcomes.pop((task_id, partition), None)

    def release(self, topic: str, partition: int) -> None:
        """Forget a lane's partition that is no longer ours."""
        for _, task_id in self._by_source.pop((topic, partition), []):
            self._outcomes.pop((task_id, partition), None)
        self._committed.pop((topic, partition), None)

    def __len__(self) -> int:
        return len(self._outcomes)


@dataclass(frozen=True, slots=True)
class Served:
    """How a task was served: what its result says besides the answer."""

    backend: str
    model: str
    batch: BatchRef
    reason: str
    pressure: str | None
    dropped: tuple[str, ...] = ()


def completed(task: Task, served: Served, output: Output, usage: Usage | None, *, now_s: float, now_ms: int) -> Result:
    """Return the result of a task that a backend answered."""
    return _result(
        task,
        Outcome.COMPLETED,
        now_s,
        now_ms,
        served=served,
        output=output,
        usage=usage,
    )


def answered_from_cache(task: Task, entry: CacheEntry, *, now_s: float, now_ms: int) -> Result:
    """Return the result of a task that the cache answered: no backend, no batch, no attempt, the stored usage."""
    timing = Timing(
        created_at_ms=task.request.created_at_ms or task.appended_ms,
        accepted_at_ms=task.accepted_ms,
        dispatched_at_ms=None,
        finished_at_ms=now_ms,
        queue_ms=_ms(now_s - task.accepted_s),
        inference_ms=0.0,
    )
    return Result(
        task_id=task.task_id,
        tenant=task.tenant,
        outcome=Outcome.COMPLETED,
        priority=task.lane,
        source=task.source,
        agent_type=task.request.agent_type,
        batch_id=task.request.batch_id,
        metadata=task.request.metadata or {},
        model=entry.model,
        output=entry.answer,
        usage=entry.usage,
        cached=True,
        timing=timing,
        routing=Routing(reason="cached answer"),
    )


def ended(
    task: Task, error: ResultError, outcome: Outcome, *, now_s: float, now_ms: int, served: Served | None = None
) -> Result:
    """Return the result of a task that ends without an answer."""
    return _result(task, outcome, now_s, now_ms, served=served, error=error)


def failed(task: Task, error: ServingError, *, now_s: float, now_ms: int, served: Served | None = None) -> Result:
    """Return the result of a task that ends with `error`; retriable ones end so only when their tries are used up."""
    described = error.as_result()
    if error.retriable:
        described = ResultError(
            ErrorType.RETRIES_EXHAUSTED,
            f"every try failed; the last: {error.detail}",
            retriable=True,
            last=error.type.value,
        )
    return ended(task, described, error.outcome, now_s=now_s, now_ms=now_ms, served=served)


def rejected(
    task_id: str, tenant: str, lane: Lane, source: Source, error: ResultError, *, appended_ms: int, now_ms: int
) -> Result:
    """Return the result of a record that could not be read as a request."""
    return Result(
        task_id=task_id,
        tenant=tenant,
        outcome=Outcome.FAILED,
        priority=lane,
        source=source,
        error=error,
        timing=Timing(created_at_ms=appended_ms, accepted_at_ms=now_ms, finished_at_ms=now_ms),
    )


def cancelled(
    task_id: str,
    tenant: str,
    lane: Lane,
    source: Source,
    *,
    agent_type: str | None,
    batch_id: str | None,
    metadata: dict[str, str],
    attempts: int,
    created_at_ms: int,
    dispatched_at_ms: int | None,
    now_ms: int,
) -> Result:
    """Return the result of a task that its caller ends; whoever writes it need not have served it."""
    return Result(
        task_id=task_id,
        tenant=tenant,
        outcome=Outcome.CANCELLED,
        priority=lane,
        source=source,
        agent_type=agent_type,
        error=ResultError(ErrorType.CANCELLED, "cancelled by its caller"),
        attempts=attempts,
        batch_id=batch_id,
        timing=Timing(created_at_ms=created_at_ms, dispatched_at_ms=dispatched_at_ms, finished_at_ms=now_ms),
        metadata=metadata,
    )


class Known(TypedDict):
    """What is known of a task outside of the workers, as `cancelled` takes it."""

    agent_type: str | None
    batch_id: str | None
    metadata: dict[str, str]
    attempts: int
    created_at_ms: int
    dispatched_at_ms: int | None
    now_ms: int


def expired(task_id: str, tenant: str, lane: Lane, source: Source, **known: Unpack[Known]) -> Result:
    """Return the result of a task whose deadline passed in Kafka; it says what one that is cancelled there would."""
    error = DeadlineExpired().as_result()
    return replace(cancelled(task_id, tenant, lane, source, **known), outcome=Outcome.EXPIRED, error=error)


def result_headers(
    result: Result, copied: Iterable[tuple[str, bytes]], cacheable: str | None
) -> list[tuple[str, bytes]]:
    """Return a result's headers, so that readers need not parse its value. `cacheable`: `<fingerprint>;<ttl_s>` or None."""
    headers = [
        (names.TENANT, result.tenant.encode()),
        (names.OUTCOME, result.outcome.value.encode()),
        (names.SOURCE, str(result.source).encode()),
        names.CONTENT_TYPE,
        *copied,
    ]
    if cacheable is not None:
        headers.append((names.CACHEABLE, cacheable.encode()))
    return headers


def cacheable(task: Task, result: Result) -> str | None:
    """Return the `triage.cacheable` header of a result, None when it is not to be stored.

    Stored are completed answers that ended by themselves (`stop`, `length`) and call no tools.
    """
    output = result.output
    if result.outcome is not Outcome.COMPLETED or result.cached or not task.fills_cache or output is None:
        return None
    if output.finish_reason not in ("stop", "length") or output.tool_calls or task.fingerprint is None:
        return None
    return f"{task.fingerprint};{task.cache.ttl_s}"


def _result(
    task: Task,
    outcome: Outcome,
    now_s: float,
    now_ms: int,
    *,
    served: Served | None = None,
    output: Output | None = None,
    usage: Usage | None = None,
    error: ResultError | None = None,
) -> Result:
    dispatched_s = task.dispatched_s
    return Result(
        task_id=task.task_id,
        tenant=task.tenant,
        outcome=outcome,
        priority=task.lane,
        source=task.source,
        agent_type=task.request.agent_type,
        model=served.model if served else task.model,
        backend=served.backend if served else None,
        output=output,
        usage=usage,
        error=error,
        attempts=task.attempts,
        batch=served.batch if served else None,
        batch_id=task.request.batch_id,
        timing=Timing(
            created_at_ms=task.request.created_at_ms or task.appended_ms,
            accepted_at_ms=task.accepted_ms,
            dispatched_at_ms=task.dispatched_ms,
            finished_at_ms=now_ms,
            queue_ms=_ms((now_s if dispatched_s is None else dispatched_s) - task.accepted_s),
            inference_ms=None if dispatched_s is None else _ms(now_s - dispatched_s),
        ),
        routing=Routing(served.reason, served.pressure, list(served.dropped)) if served else Routing(),
        metadata=task.request.metadata or {},
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
