"""The result record: the one outcome of a task, and what travels beside it in headers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from schemas.request import SCHEMA_VERSION
from schemas.topics import Lane


class Outcome(StrEnum):
    """How a task ended. The first record of a task in the results log decides, for ever."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ErrorType(StrEnum):
    """Why a task did not complete: the closed list of `error.type`."""

    DEADLINE_EXPIRED = "deadline_expired"
    DEADLINE_INFEASIBLE = "deadline_infeasible"
    CANCELLED = "cancelled"
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_SCHEMA = "unsupported_schema"
    UNKNOWN_MODEL = "unknown_model"
    REQUEST_TOO_LARGE = "request_too_large"
    BACKEND_TIMEOUT = "backend_timeout"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BACKEND_REJECTED = "backend_rejected"
    BACKEND_PROTOCOL = "backend_protocol"
    RETRIES_EXHAUSTED = "retries_exhausted"
    POISON = "poison"
    QUARANTINED = "quarantined"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Source:
    """The place of the lane record that a task came from."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `topic/partition/offset`. Raises: ValueError when it is not that."""
        topic, partition, offset = text.rsplit("/", 2)
        return cls(topic, int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Output:
    """What the model said."""

    content: str | None
    finish_reason: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the backend counted them; where it counted several tasks together, this one's estimated share."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ResultError:
    """Why a task did not complete. `detail` never holds prompt or answer text; `last` is the cause behind `retries_exhausted`."""

    type: ErrorType
    detail: str
    retriable: bool = False
    last: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRef:
    """The batch a task was sent in; `size` counts its tasks."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Broker time in epoch milliseconds, and two durations. `accepted` is intake in a worker; `queue_ms` = dispatched − accepted."""

    created_at_ms: int | None = None
    accepted_at_ms: int | None = None
    dispatched_at_ms: int | None = None
    finished_at_ms: int | None = None
    queue_ms: float | None = None
    inference_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """Why this backend, the pressure it was under, and which of the request's parameters it does not take."""

    reason: str | None = None
    pressure: str | None = None
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """A terminal record. Every field is always present in its JSON, `null` where it does not apply."""

    task_id: str
    tenant: str
    outcome: Outcome
    priority: Lane
    source: Source
    agent_type: str | None = None
    model: str | None = None
    backend: str | None = None
    output: Output | None = None
    usage: Usage | None = None
    error: ResultError | None = None
    cached: bool = False
    coalesced_with: str | None = None
    attempts: int = 0
    batch: BatchRef | None = None
    batch_id: str | None = None
    timing: Timing = field(default_factory=Timing)
    routing: Routing = field(default_factory=Routing)
    metadata: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
