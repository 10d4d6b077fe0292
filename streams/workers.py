"""What the live workers' snapshots say together: backlog, pace and gates of each lane, and the backends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from schemas.progress import BackendStatus, ClassState, Gate, LaneState, Pace, WorkerSnapshot
from schemas.topics import Lane

HELD_UP = frozenset({Gate.TURN, Gate.TENANT, Gate.ORDER, Gate.BUDGET, Gate.NO_FREE_SLOT})
"""Gates that open as calls end: what waits there has a pace."""
_Class: TypeAlias = tuple[Lane, str, str | None]
_WEIGHTS = {Lane.CRITICAL: 8, Lane.HIGH: 4, Lane.NORMAL: 2, Lane.LOW: 1}


@dataclass(frozen=True, slots=True)
class Rate:
    """Tasks and tokens a second, told from so many tasks; 0: nothing was measured."""

    tasks_per_s: float = 0.0
    tokens_per_s: float = 0.0
    counted: int = 0

    @property
    def is_known(self) -> bool:
        return self.counted > 0


@dataclass(frozen=True, slots=True)
class LaneTotals:
    """A lane over all workers. `waiting` are those that a worker has fetched, `tenants` counts them as far as snapshots tell.

    `mean_tokens` is the cost of one of its tasks, 0.0 where nothing is known of any.
    """

    waiting: int
    mean_tokens: float
    weight: int
    rate: Rate
    tenants: Mapping[str, int]
    is_held_up: bool


@dataclass(frozen=True)
class Workers:
    """The snapshots of the workers that are alive, read together. None of them: nobody serves."""

    snapshots: tuple[WorkerSnapshot, ...] = ()
    lanes: Mapping[Lane, LaneTotals] = field(default_factory=dict)
    rate: Rate = Rate()
    backends: Mapping[str, BackendStatus] = field(default_factory=dict)
    fetched_through: Mapping[str, int] = field(default_factory=dict)
    in_flight: frozenset[str] = frozenset()
    is_strict: bool = False
    classes: Mapping[_Class, tuple[tuple[Mapping[str, int], ClassState], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshots: Iterable[WorkerSnapshot]) -> Workers:
        found = tuple(snapshots)
        fetched: dict[str, int] = {}
        classes: dict[_Class, tuple[tuple[Mapping[str, int], ClassState], ...]] = {}
        for snapshot in found:
            for row in snapshot.classes:
                key = (row.lane, row.tenant, row.model)
                classes[key] = (*classes.get(key, ()), (snapshot.fetched_through, row))
            for place, offset in snapshot.fetched_through.items():
                fetched[place] = max(offset, fetched.get(place, -1))
        return cls(
            snapshots=found,
            lanes={lane: _lane(lane, found) for lane in Lane},
            rate=rate_of(snapshot.pace for snapshot in found),
            backends=_backends(found),
            fetched_through=fetched,
            in_flight=frozenset(task_id for snapshot in found for task_id in snapshot.in_flight),
            is_strict=any(snapshot.strict for snapshot in found),
            classes=classes,
        )

    def class_of(self, lane: Lane, tenant: str, model: str | None, place: str) -> ClassState | None:
        """Return the row of a class, that of the worker which reads `place` (topic/partition) where several have one."""
        rows = self.classes.get((lane, tenant, model), ())
        return next((row for fetched, row in rows if place in fetched), rows[0][1] if rows else None)

    @property
    def fastest_s(self) -> float:
        """Return the shortest mean latency of a backend, 0.0 before any was called."""
        return min((row.latency_ema_s for row in self.backends.values() if row.latency_ema_s is not None), default=0.0)


def _lane(lane: Lane, snapshots: tuple[WorkerSnapshot, ...]) -> LaneTotals:
    states = [state for each in snapshots if (state := each.lanes.get(lane.value)) is not None]
    rows = [row for each in snapshots for row in each.classes if row.lane is lane]
    tenants: dict[str, int] = {}
    for row in rows:
        tenants[row.tenant] = tenants.get(row.tenant, 0) + row.waiting
    return LaneTotals(
        waiting=sum(state.waiting for state in states),
        mean_tokens=_mean_tokens(states),
        weight=max((state.weight for state in states), default=0) or _WEIGHTS[lane],
        rate=rate_of(state.pace for state in states),
        tenants=tenants,
        is_held_up=any(row.gate in HELD_UP for row in rows),
    )


def _mean_tokens(states: list[LaneState]) -> float:
    waiting, tokens = sum(state.waiting for state in states), sum(state.tokens for state in states)
    if waiting and tokens:
        return tokens / waiting
    sent, sent_tokens = sum(state.pace.tasks for state in states), sum(state.pace.tokens for state in states)
    return sent_tokens / sent if sent else 0.0


def rate_of(paces: Iterable[Pace]) -> Rate:
    """Return rates in sum, one for each worker: each has its own seconds in which something had to wait."""
    known = [pace for pace in paces if pace.seconds > 0]
    return Rate(
        sum(pace.tasks / pace.seconds for pace in known),
        sum(pace.tokens / pace.seconds for pace in known),
        sum(pace.tasks for pace in known),
    )


def _backends(snapshots: tuple[WorkerSnapshot, ...]) -> Mapping[str, BackendStatus]:
    found: dict[str, BackendStatus] = {}
    for snapshot in snapshots:
        for row in snapshot.backends:
            known = found.get(row.name)
            found[row.name] = row if known is None else _merged(known, row)
    return found


def _merged(one: BackendStatus, other: BackendStatus) -> BackendStatus:
    """Return a backend as two workers see it: up when one of them sees it up."""
    better, up = (one, other), one.up or other.up
    latencies = [row.latency_ema_s for row in better if row.latency_ema_s is not None]
    return replace(
        one,
        up=up,
        in_flight=one.in_flight + other.in_flight,
        limit=one.limit + other.limit,
        models=sorted({*one.models, *other.models}),
        latency_ema_s=sum(latencies) / len(latencies) if latencies else None,
        failure_ratio=max(one.failure_ratio, other.failure_ratio),
        draining=one.draining and other.draining,
        reason=None if up else one.reason or other.reason,
        paused=all(row.paused for row in better if row.up) if up else False,
        pressure=one.pressure or other.pressure,
        lost=one.lost or other.lost,
        kept={lane: one.kept.get(lane, 0) + other.kept.get(lane, 0) for lane in {*one.kept, *other.kept}},
    )
