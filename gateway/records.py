"""What the view takes from a request's bytes: who and how much, never the text.

It follows the workers' reading of the same bytes: a record gets here the id that its result will carry, however wrong it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from sys import intern
from typing import Any

import orjson

from schemas.codec import MAX_NAME_CHARACTERS, MAX_REQUEST_BYTES
from schemas.ids import is_task_id
from schemas.request import DEFAULT_MAX_TOKENS, DEFAULT_TENANT
from streams.cost import cost_tokens

_MOST_EPOCH_MS = 1 << 53


@dataclass(frozen=True, slots=True)
class Glance:
    """The fields of a request that a status needs. `task_id` None: the record has none of its own, so its place names it."""

    task_id: str | None = None
    tenant: str = DEFAULT_TENANT
    agent_type: str | None = None
    batch_id: str | None = None
    created_at_ms: int | None = None
    cost_tokens: int = 0


def glance(value: bytes | None) -> Glance:
    """Return what can be told of a request; a field that is not what it should be counts as absent."""
    if not value or len(value) > MAX_REQUEST_BYTES:
        return Glance()
    try:
        raw = orjson.loads(value)
    except orjson.JSONDecodeError:
        return Glance()
    if not isinstance(raw, dict):
        return Glance()
    task_id, created_at_ms = raw.get("task_id"), raw.get("created_at_ms")
    return Glance(
        task_id=task_id if is_task_id(task_id) else None,
        tenant=_name(raw, "tenant") or DEFAULT_TENANT,
        agent_type=_name(raw, "agent_type"),
        batch_id=_name(raw, "batch_id"),
        created_at_ms=created_at_ms if type(created_at_ms) is int and 0 <= created_at_ms <= _MOST_EPOCH_MS else None,
        cost_tokens=_cost(raw),
    )


def metadata_of(value: bytes | None) -> dict[str, str]:
    """Return a request's metadata, which its result repeats; empty when it is not text to text."""
    try:
        raw = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return {}
    found = raw.get("metadata") if isinstance(raw, dict) else None
    is_text = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    return found if is_text and isinstance(found, dict) else {}


def _name(raw: dict[str, Any], field: str) -> str | None:
    given = raw.get(field)
    return intern(given) if isinstance(given, str) and 0 < len(given) <= MAX_NAME_CHARACTERS else None


def _cost(raw: dict[str, Any]) -> int:
    parameters = raw.get("parameters")
    asked = parameters.get("max_tokens") if isinstance(parameters, dict) else None
    try:
        return cost_tokens(raw["messages"], asked if type(asked) is int else DEFAULT_MAX_TOKENS)
    except (KeyError, TypeError, AttributeError):
        return 0
