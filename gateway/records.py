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
from schemas.request import AUTO_MODEL, DEFAULT_MAX_TOKENS, DEFAULT_TENANT, SCHEMA_VERSION
from streams.cost import cost_tokens
from streams.deadlines import LONGEST_MS

_MOST_EPOCH_MS = 1 << 53


@dataclass(frozen=True, slots=True)
class Glance:
    """The fields of a request that a status needs. `task_id` None: the record has none of its own, so its place names it.

    `has_deadline` False: a worker refuses the record for its form, its version or its times, so none holds.
    """

    task_id: str | None = None
    tenant: str = DEFAULT_TENANT
    agent_type: str | None = None
    model: str | None = None
    batch_id: str | None = None
    created_at_ms: int | None = None
    cost_tokens: int = 0
    deadline_at_ms: int | None = None
    has_deadline: bool = False

    def deadline_ms(self, appended_ms: int) -> int | None:
        """Return the deadline in broker time as `streams/deadlines.py` does, None where a worker refuses the record."""
        if not self.has_deadline:
            return None
        asked = self.deadline_at_ms
        if asked is None:
            return appended_ms + LONGEST_MS
        due = asked if self.created_at_ms is None else appended_ms + asked - self.created_at_ms
        return due if due - appended_ms <= LONGEST_MS else None


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
    task_id, created_at_ms, deadline_at_ms = raw.get("task_id"), raw.get("created_at_ms"), raw.get("deadline_at_ms")
    times = [at_ms for at_ms in (created_at_ms, deadline_at_ms) if at_ms is not None]
    return Glance(
        task_id=task_id if is_task_id(task_id) else None,
        tenant=_name(raw, "tenant") or DEFAULT_TENANT,
        agent_type=_name(raw, "agent_type"),
        model=_model(raw),
        batch_id=_name(raw, "batch_id"),
        created_at_ms=created_at_ms if _is_time(created_at_ms) else None,
        cost_tokens=_cost(raw),
        deadline_at_ms=deadline_at_ms if _is_time(deadline_at_ms) else None,
        has_deadline=_is_our_version(raw) and all(map(_is_time, times)),
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


def _is_time(given: object) -> bool:
    return type(given) is int and 0 <= given <= _MOST_EPOCH_MS


def _is_our_version(raw: dict[str, Any]) -> bool:
    version = raw.get("schema_version")
    return version is None or (type(version) is int and version == SCHEMA_VERSION)


def _name(raw: dict[str, Any], field: str) -> str | None:
    given = raw.get(field)
    return intern(given) if isinstance(given, str) and 0 < len(given) <= MAX_NAME_CHARACTERS else None


def _model(raw: dict[str, Any]) -> str | None:
    """Return the model that is asked for, None when routing chooses."""
    found = _name(raw, "model")
    return None if found == AUTO_MODEL else found


def _cost(raw: dict[str, Any]) -> int:
    parameters = raw.get("parameters")
    asked = parameters.get("max_tokens") if isinstance(parameters, dict) else None
    try:
        return cost_tokens(raw["messages"], asked if type(asked) is int else DEFAULT_MAX_TOKENS)
    except (KeyError, TypeError, AttributeError):
        return 0
