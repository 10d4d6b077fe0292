"""Workers' snapshots for tests: everything has a default, a test names what it is about."""

from __future__ import annotations

from typing import Any

from schemas.progress import BackendStatus, ClassState, Gate, LaneState, Pace, WorkerSnapshot
from schemas.topics import Lane, TopicNames
from tests.support.tasks import EPOCH_MS

NAMES = TopicNames()
WEIGHTS = {Lane.CRITICAL: 8, Lane.HIGH: 4, Lane.NORMAL: 2, Lane.LOW: 1}


def busy_backend(name: str = "b1", **fields: Any) -> BackendStatus:
    """Return a backend that is up and has no free slot."""
    given: dict[str, Any] = {"kind": "openai", "up": True, "in_flight": 4, "limit": 4, "models": ["tiny"]}
    return BackendStatus(name=name, **given | {"latency_ema_s": 0.5, **fields})


def row(
    gate: Gate = Gate.NO_FREE_SLOT,
    lane: Lane = Lane.NORMAL,
    *,
    tenant: str = "default",
    model: str | None = None,
    waiting: int = 1,
) -> ClassState:
    """Return a class whose tasks cost 100 tokens each."""
    return ClassState(lane, tenant, model, waiting, 100 * waiting, gate, EPOCH_MS)


def worker(
    *rows: ClassState,
    name: str = "w1",
    paces: dict[Lane, Pace] | None = None,
    pace: Pace | None = None,
    backends: list[BackendStatus] | None = None,
    read: dict[str, int] | None = None,
    **fields: Any,
) -> WorkerSnapshot:
    """Return the snapshot of a worker that holds the tasks of these classes. `read` maps lane/partition to a fetched offset."""
    lanes = {}
    for lane in Lane:
        waiting = sum(each.waiting for each in rows if each.lane is lane)
        state = LaneState(
            waiting, 0, 0.0, 0, tokens=100 * waiting, weight=WEIGHTS[lane], pace=(paces or {}).get(lane, Pace())
        )
        lanes[lane.value] = state
    return WorkerSnapshot(
        worker=name,
        host="host",
        pid=1,
        at_ms=EPOCH_MS,
        lanes=lanes,
        classes=list(rows),
        fetched_through={f"{NAMES.prefix}.requests.{place}": offset for place, offset in (read or {}).items()},
        backends=[busy_backend()] if backends is None else backends,
        pace=pace or Pace(),
        **fields,
    )
