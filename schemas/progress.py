"""Records of work under way: `started`, pieces of a streamed answer, and a worker's snapshot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A batch was sent to a backend. One per batch and partition; `tasks` rows are (task_id, topic, offset, attempt)."""

    batch_id: str
    worker: str
    backend: str
    tasks: list[tuple[str, str, int, int]]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; `seq` counts from 0 within an attempt."""

    task_id: str
    attempt: int
    seq: int
    delta: str


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What a worker holds.

    `in_flight` lists task ids at backends; `fetched_through` maps `topic/partition` to the newest fetched offset.
    """

    worker: str
    host: str
    pid: int
    at_ms: int
    draining: bool = False
    waiting: dict[str, int] | None = None
    in_flight: list[str] | None = None
    fetched_through: dict[str, int] | None = None
