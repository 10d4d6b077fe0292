"""Why a task stands where it does, or how it ended: the bodies of the explain route."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gateway.rendering import rfc3339, state_of
from gateway.view import Unfinished
from schemas.result import Outcome
from schemas.topics import TopicNames
from streams.explaining import Entry, Explanation


def entry_of(entry: Unfinished, topics: TopicNames) -> Entry:
    """Return a task of the view as `explain` takes it."""
    return Entry(
        task_id=entry.task_id,
        lane=entry.lane,
        tenant=entry.tenant,
        model=entry.model,
        agent_type=entry.agent_type,
        cost_tokens=entry.cost_tokens,
        place=f"{topics.requests(entry.lane)}/{entry.partition}",
        offset=entry.offset,
        attempts=entry.attempts,
        backend=entry.backend,
        started_ms=entry.started_at_ms,
        next_try_ms=entry.next_try_ms,
    )


def unfinished(entry: Unfinished, found: Explanation) -> dict[str, Any]:
    """Return why a task without an outcome stands where it does."""
    return {
        "task_id": entry.task_id,
        "status": state_of(entry),
        **asdict(found),
        "dispatched_at": rfc3339(entry.started_at_ms),
        "finished_at": None,
        "backend": entry.backend,
        "model": entry.model,
        "routing": None,
        "error": None,
    }


def finished(status: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return what happened to a task that has ended, from its status and its result record."""
    routing, error = body.get("routing"), status["error"]
    return {
        "task_id": status["task_id"],
        "status": status["status"],
        "lane": status["priority"],
        "position": None,
        "tokens_ahead": None,
        "gate": None,
        "reason": _what_happened(status, body),
        "estimate": None,
        "considered": [],
        "dispatched_at": status["started_at"],
        "finished_at": status["finished_at"],
        "backend": body.get("backend"),
        "model": body.get("model"),
        "routing": routing if isinstance(routing, dict) else None,
        "error": error,
    }


def _what_happened(status: dict[str, Any], body: dict[str, Any]) -> str:
    """Return in a sentence how a task ended; nothing of its text."""
    ended, attempts, error = status["status"], status["attempts"], status["error"]
    routing = body.get("routing")
    why = routing.get("reason") if isinstance(routing, dict) else None
    timing = body.get("timing")
    queue_ms = timing.get("queue_ms") if isinstance(timing, dict) else None
    waited = f" after {queue_ms / 1000:.1f} s in its worker's queue" if isinstance(queue_ms, int | float) else ""
    if body.get("cached") is True:
        return "It completed with an answer from the cache: no backend was called."
    if body.get("coalesced_with"):
        return f"It {ended} together with an identical task that was under way: one call answered both."
    if ended == Outcome.COMPLETED.value:
        chosen = f", chosen as: {why}" if why else ""
        return f"It completed on {body.get('backend')} with {body.get('model')}{waited}{chosen}."
    kind = error.get("type") if isinstance(error, dict) else None
    told = f" ({kind})" if kind and kind != ended else ""
    ran = f"after {attempts} attempt{'' if attempts == 1 else 's'}" if attempts else "before any backend was given it"
    return f"It {'was ' * (ended == Outcome.CANCELLED.value)}{ended}{told} {ran}."
