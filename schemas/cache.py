"""The cache table's value: an answer that may be given again."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.result import Output, Usage


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An answer under its fingerprint. `expires_at_ms` (broker time) is what counts, whatever the topic still holds."""

    answer: Output
    usage: Usage | None
    model: str | None
    stored_at_ms: int
    expires_at_ms: int
    tenant: str
