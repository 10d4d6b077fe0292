"""Records of work under way: `started`, pieces of a streamed answer, and a worker's snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from schemas.topics import Lane


@dataclass(frozen=True, slots=True)
class Started:
    """A batch was sent to a backend. One per batch and partition; `tasks` rows are (task_id, topic, offset, attempt)."""

    batch_id: str
    worker: str
    backend: str
    tasks: list[tuple[str, str, int, int]]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Released:
    """Starts that ended without an outcome, by the worker that made them: a failed try, or a call given up. Rows as in `Started`."""

    worker: str
    released: list[tuple[str, str, int, int]]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; `seq` counts from 0 within an attempt."""

    task_id: str
    attempt: int
    seq: int
    delta: str


@dataclass(frozen=True, slots=True)
class Pace:
    """What was sent to backends in those of the last 60 s in which something had to wait: their service rate, whatever the demand.

    `seconds` 0.0: nothing had to wait.
    """

    tasks: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LaneState:
    """What a worker holds of a lane. `oldest_wait_s` 0.0: nothing waits; `done_per_minute` counts outcomes of the last 60 s.

    `tokens` are those that wait, `sent_tokens` those that were sent to backends within the last 60 s: both are costs as they were
    estimated at intake. `weight` 0: not told.
    """

    waiting: int
    in_flight: int
    oldest_wait_s: float
    done_per_minute: int
    tokens: int = 0
    sent_tokens: int = 0
    weight: int = 0
    pace: Pace = field(default_factory=Pace)


class Gate(StrEnum):
    """What the tasks of a class wait for."""

    TURN = "turn"
    """Other lanes' share: it is their turn."""
    TENANT = "tenant"
    """Other tenants' share of the lane."""
    ORDER = "order"
    """Tasks of its own lane and tenant that are due earlier, or shorter."""
    BUDGET = "budget"
    """Work marked `budget: batch` has had its share while live work waits."""
    WINDOW = "window"
    NO_FREE_SLOT = "no_free_slot"
    BREAKER = "breaker"
    """Every backend that could take it is up, and paused after failures."""
    BACKEND_DOWN = "backend_down"
    NO_BACKEND = "no_backend"
    SHED = "shed"
    """The low lane is deferred: every backend that could take it is at CRITICAL."""
    RETRY_DELAY = "retry_delay"


@dataclass(frozen=True, slots=True)
class ClassState:
    """The waiting tasks of one lane, tenant and model (None: routing chooses), and what they wait for since `since_ms`."""

    lane: Lane
    tenant: str
    model: str | None
    waiting: int
    tokens: int
    gate: Gate
    since_ms: int


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A model server as a worker sees it. `reason` says why it is not up; `latency_ema_s` is None before a first answer.

    `paused`: it is up, and gets nothing for a while after failures. `pressure` None: not known. `any_model`: it takes requests for
    any model name. `lost`: a card of its has fallen off. `kept` are free slots by the lane that alone may use them.
    """

    name: str
    kind: str
    up: bool
    in_flight: int
    limit: int
    models: list[str]
    latency_ema_s: float | None = None
    failure_ratio: float = 0.0
    draining: bool = False
    reason: str | None = None
    paused: bool = False
    pressure: str | None = None
    any_model: bool = False
    lost: bool = False
    kept: dict[str, int] = field(default_factory=dict)

    def free(self, lane: Lane) -> int:
        """Return how many calls of a lane may start now."""
        kept = sum(slots for name, slots in self.kept.items() if name != lane.value)
        return max(self.limit - self.in_flight - kept, 0)


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What a worker holds, by lane name.

    `in_flight` lists task ids at backends; `fetched_through` maps `topic/partition` to the newest fetched offset; `classes` has at
    most 256 rows, the longest waiting first. `pace` is that of all lanes together. `strict`: a lane is served when those above are empty.
    """

    worker: str
    host: str
    pid: int
    at_ms: int
    draining: bool = False
    lanes: dict[str, LaneState] = field(default_factory=dict)
    in_flight: list[str] = field(default_factory=list)
    fetched_through: dict[str, int] = field(default_factory=dict)
    classes: list[ClassState] = field(default_factory=list)
    backends: list[BackendStatus] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)
    strict: bool = False
