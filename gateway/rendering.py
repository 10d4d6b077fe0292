"""The bodies of the task routes, from what the view and the log say."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from gateway.finished import Finished
from gateway.recent import mean
from gateway.view import Unfinished, View
from schemas.result import Outcome
from schemas.topics import Lane
from streams.estimating import Estimate
from streams.quantiles import quantile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

QUEUED, PROCESSING = "queued", "processing"


def rfc3339(epoch_ms: object) -> str | None:
    """Return a time as RFC 3339 UTC with milliseconds; None for none, or for one that no calendar has."""
    if not isinstance(epoch_ms, int):
        return None
    try:
        at = _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return None
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def state_of(entry: Unfinished) -> str:
    return QUEUED if entry.is_waiting else PROCESSING


def unfinished_status(
    entry: Unfinished, position: int | None = None, estimate: Estimate | None = None
) -> dict[str, Any]:
    return {
        "task_id": entry.task_id,
        "status": state_of(entry),
        "priority": entry.lane.value,
        "agent_type": entry.agent_type,
        "created_at": rfc3339(entry.created_at_ms),
        "started_at": rfc3339(entry.started_at_ms),
        "finished_at": None,
        "attempts": entry.attempts,
        "position": position,
        "estimate": None if estimate is None else asdict(estimate),
        "error": None,
        "batch_id": entry.batch_id,
    }


def finished_status(row: Finished, body: dict[str, Any]) -> dict[str, Any]:
    """Return the status of a task that has ended, from its place in the log and its result record."""
    timing = body.get("timing")
    timing = timing if isinstance(timing, dict) else {}
    return {
        "task_id": row.task_id,
        "status": row.outcome.value,
        "priority": row.lane.value,
        "agent_type": body.get("agent_type"),
        "created_at": rfc3339(timing.get("created_at_ms")),
        "started_at": rfc3339(timing.get("dispatched_at_ms")),
        "finished_at": rfc3339(row.at_ms),
        "attempts": body.get("attempts", 0),
        "position": None,
        "estimate": None,
        "error": body.get("error"),
        "batch_id": body.get("batch_id") or row.batch_id,
    }


def was_before(body: dict[str, Any]) -> str:
    """Return what a cancelled task was when it was cancelled, as its result tells."""
    return PROCESSING if body.get("attempts") else QUEUED


def result_body(value: bytes | None) -> dict[str, Any]:
    """Return a result record as JSON; empty when it is not an object, as a foreign writer's may be."""
    try:
        raw = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return {}
    return raw if isinstance(raw, dict) else {}


def stats(view: View, workers: int, now_ms: int) -> dict[str, Any]:
    """Return counts over every task in the logs, and rates, durations and cache lookups over the last five minutes."""
    counts = view.finished.counts()
    by_outcome = {outcome: sum(counts.get((lane, outcome), 0) for lane in Lane) for outcome in Outcome}
    judged = sum(by_outcome.values()) - by_outcome[Outcome.CANCELLED]
    samples = view.recent.samples(now_ms)
    return {
        "queued": sum(view.waiting(lane) for lane in Lane),
        "processing": sum(view.in_flight(lane) for lane in Lane),
        **{outcome.value: count for outcome, count in by_outcome.items()},
        "workers": workers,
        "avg_processing_ms": mean([each.inference_ms for each in samples if each.inference_ms is not None]),
        "throughput_per_minute": view.recent.per_minute(now_ms),
        "success_ratio": round(by_outcome[Outcome.COMPLETED] / judged, 4) if judged else None,
        "cache": {
            "hits": sum(each.is_cached for each in samples),
            "misses": sum(each.completed and not each.is_cached for each in samples),
        },
        "lanes": {lane.value: _lane_stats(view, lane, now_ms) for lane in Lane},
        "models": {
            name: {"latency_ema_ms": _rounded(rates.latency_ema_ms), "failure_ratio": round(rates.failure_ratio, 4)}
            for name, rates in view.recent.models.items()
        },
    }


def _lane_stats(view: View, lane: Lane, now_ms: int) -> dict[str, Any]:
    samples = view.recent.samples(now_ms)
    queued = [each.queue_ms for each in samples if each.lane is lane and each.queue_ms is not None]
    oldest_ms = view.oldest_ms(lane)
    return {
        "waiting": view.waiting(lane),
        "in_flight": view.in_flight(lane),
        "oldest_wait_s": None if oldest_ms is None else max(now_ms - oldest_ms, 0) / 1000,
        "rate_per_minute": view.recent.per_minute(now_ms, lane),
        "queue_ms_p50": quantile(queued, 0.5),
        "queue_ms_p99": quantile(queued, 0.99),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
