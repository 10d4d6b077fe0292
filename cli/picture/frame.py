"""What the picture shows at one moment: values only, as `triage top --json` prints them."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.topics import Lane


@dataclass(frozen=True, slots=True)
class LaneRow:
    """A lane. What is None is not known.

    `waiting` counts records that no worker has fetched, and tasks that wait in workers. `ended_by_second` has the outcomes of the
    last 60 s, the newest last; `outcomes` counts them by kind. Latency runs from the request's creation to the result's append,
    over the last 60 s. `share_ratio` is its part of the tokens that were sent to backends in the last 60 s, `weight_ratio` its weight's
    part of all. `gate` is what most of what waits is held by; None: nothing is.
    """

    lane: Lane
    waiting: int
    in_flight: int
    rate_10s_per_minute: int
    rate_60s_per_minute: int
    ended_by_second: list[int]
    p50_s: float | None
    p95_s: float | None
    oldest_wait_s: float | None
    outcomes: dict[str, int]
    share_ratio: float | None = None
    weight_ratio: float | None = None
    gate: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch that left for a backend. `ended` of its `size` tasks have an outcome; `is_orphaned`: its worker is gone before that."""

    id: str
    lane: Lane | None
    size: int
    ended: int
    worker: str
    backend: str
    age_s: float
    is_orphaned: bool


@dataclass(frozen=True, slots=True)
class BackendRow:
    """A model server as its workers see it together. `latency_s` is their mean, None before a first answer."""

    name: str
    kind: str
    workers: int
    up_for: int
    draining: bool
    reason: str | None
    in_flight: int
    limit: int
    latency_s: float | None

    @property
    def is_up(self) -> bool:
        return self.up_for == self.workers


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker that was heard of within five seconds."""

    id: str
    host: str
    pid: int
    draining: bool
    waiting: int
    in_flight: int
    age_s: float


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A card's newest sample. `pressure` None: not known, which a stale or lost card's never is."""

    uuid: str
    index: int
    name: str
    host: str
    used_bytes: int | None
    total_bytes: int | None
    utilization_ratio: float | None
    temperature_c: float | None
    pressure: str | None
    age_s: float
    stale: bool
    lost: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened, in a sentence."""

    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture at `at_ms` (broker time). `run_again` counts starts of tasks that had been started in another batch before.

    `decisions` counts the results of the last 60 s by why their backend was chosen, the commonest first.
    """

    at_ms: int
    lanes: list[LaneRow]
    batches: list[BatchRow]
    backends: list[BackendRow]
    workers: list[WorkerRow]
    gpus: list[GpuRow]
    run_again: int
    notices: list[Notice] = field(default_factory=list)
    decisions: dict[str, int] = field(default_factory=dict)
