"""The audit record: what somebody did to a deployment, on a topic that is kept for a year. Its key is the writer's id."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """An action is on record before it begins, and again with what came of it."""

    BEGAN = "began"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One of the two records of an action; both have the same `writer` and `action_id`.

    `at_ms` is the writer's own clock; the broker's is the record's timestamp. `who` is the writer's OS user, `filters` what was
    asked for, `counts` how many it is about (began) and how they ended (ended); `offsets` the first and the last offset by
    partition number. `error` says why it ended early, None when it did not.
    """

    at_ms: int
    writer: str
    who: str
    action: str
    action_id: str
    phase: Phase
    filters: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    error: str | None = None
    schema_version: int = 1
