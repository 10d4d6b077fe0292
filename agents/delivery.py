"""One delivery of a request to this worker, from a lane topic or from a retry topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.headers import Headers
from schemas.result import Source
from schemas.topics import Lane

# How long a revoke waits for running calls before it tells the next owner of them.
REVOKE_DRAIN_S = 3.0


class Owner(Protocol):
    """Who acknowledges a delivery."""

    def complete(self, delivery: Delivery) -> None: ...


@dataclass(slots=True, eq=False)
class Delivery:
    """A request as it was delivered, to be completed once its task's outcome or its hand-over is durable.

    `source` is the lane record, also of a retry; `record` is the record that was delivered, of the group `group`.
    """

    owner: Owner
    group: str
    lane: Lane
    record: Source
    source: Source
    generation: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    appended_ms: int

    @property
    def partition(self) -> int:
        return self.record.partition

    @property
    def offset(self) -> int:
        return self.record.offset

    def complete(self) -> None:
        self.owner.complete(self)
