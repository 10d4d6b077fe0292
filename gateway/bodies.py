"""The bodies of the HTTP API, for its description in OpenAPI. Answers are written as plain JSON of these forms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import models_json_schema

from gateway import examples
from gateway.batches import MOST_TASKS
from gateway.cleanup import CleanupBody
from gateway.fleet import BackendView, GpuView
from gateway.submission import SubmitBody
from schemas.result import Result, ResultError
from schemas.topics import Lane

_REFERENCE = "#/components/schemas/{model}"
SUBMIT_REFERENCE = {"$ref": _REFERENCE.format(model=SubmitBody.__name__)}
BATCH_REFERENCE = {"$ref": _REFERENCE.format(model="SubmitBatchBody")}
CLEANUP_REFERENCE = {"$ref": _REFERENCE.format(model=CleanupBody.__name__)}

StatusName = Literal["queued", "processing", "completed", "failed", "cancelled", "expired"]


class Estimate(BaseModel):
    """Seconds until it is sent to a backend: about `wait_s`, for eight of ten tasks between `low_s` and `high_s`."""

    wait_s: float
    low_s: float
    high_s: float
    confidence: float


class Links(BaseModel):
    """Where to go on."""

    status: str
    result: str
    cancel: str
    explain: str


class SubmitBatchBody(BaseModel):
    """Requests, each a body of `/v1/async/submit`. One that is wrong is told in `rejected` and does not fail the others."""

    tasks: Annotated[
        list[Annotated[Any, WithJsonSchema({"anyOf": [SUBMIT_REFERENCE, {}]})]],
        Field(min_length=1, max_length=MOST_TASKS),
    ]


class Submitted(BaseModel):
    """A request that was taken, now or by an earlier call of the same."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SUBMITTED]})

    task_id: str
    status: Literal["queued"]
    priority: Lane
    position: int | None
    estimate: Estimate | None
    links: Links


class Status(BaseModel):
    """Where a task stands. Times are RFC 3339 UTC; `position` counts from 1, null when it is not known."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.STATUS]})

    task_id: str
    status: StatusName
    priority: Lane
    agent_type: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    attempts: int
    position: int | None
    estimate: Estimate | None
    error: ResultError | None
    batch_id: str | None


class Considered(BaseModel):
    """A model on a backend as routing looks at it now: its score, or the filter that refused it."""

    backend: str
    model: str
    score: float | None
    why_not: str | None


class RoutingBody(BaseModel):
    """Why a backend was chosen."""

    reason: str | None
    pressure: str | None
    dropped: list[str]


class Explained(BaseModel):
    """Why a task stands where it does, or how it ended.

    `gate` is what holds it: `turn`, `tenant`, `order`, `budget`, `window`, `no_free_slot`, `breaker`, `backend_down`, `no_backend`,
    `shed`, `retry_delay`, `not_fetched`, `no_worker`, `running`; null when it has ended, or is not known. `reason` says it in words.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAINED]})

    task_id: str
    status: StatusName
    lane: Lane
    position: int | None
    tokens_ahead: int | None
    gate: str | None
    reason: str
    estimate: Estimate | None
    considered: list[Considered]
    dispatched_at: str | None
    finished_at: str | None
    backend: str | None
    model: str | None
    routing: RoutingBody | None
    error: ResultError | None


class ResultBody(BaseModel):
    """The result record, with its outcome as `status` too."""

    model_config = {"json_schema_extra": {"allOf": [{"$ref": _REFERENCE.format(model=Result.__name__)}]}}

    status: Literal["completed", "failed", "cancelled", "expired"]


class Cancelled(BaseModel):
    """A task that ended as cancelled; `was` is what it was before."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.CANCELLED]})

    task_id: str
    status: Literal["cancelled"]
    was: Literal["queued", "processing"]


class CacheStats(BaseModel):
    """Completed tasks of the last five minutes: answered from the cache, or not."""

    hits: int
    misses: int


class LaneStats(BaseModel):
    """One lane's figures."""

    waiting: int
    in_flight: int
    oldest_wait_s: float | None
    rate_per_minute: int
    queue_ms_p50: float | None
    queue_ms_p99: float | None


class ModelStats(BaseModel):
    """One model's figures."""

    latency_ema_ms: float | None
    failure_ratio: float


class Stats(BaseModel):
    """The queue's figures."""

    queued: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    workers: int
    avg_processing_ms: float | None
    throughput_per_minute: int
    success_ratio: float | None
    cache: CacheStats
    lanes: dict[Lane, LaneStats]
    models: dict[str, ModelStats]


class Health(BaseModel):
    """How the gateway and what it stands on are."""

    status: Literal["healthy", "degraded", "unhealthy"]
    reasons: list[str]
    kafka: Literal["reachable", "unreachable", "waiting"]
    workers: int
    backends: list[BackendView]
    gpus: list[GpuView]


class FieldError(BaseModel):
    """One fault: where (JSON pointer), and what is expected there."""

    pointer: str
    detail: str


class ItemProblem(BaseModel):
    """What is wrong with one of several requests; as a problem, without a trace id."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]


class ProblemBody(ItemProblem):
    """RFC 9457."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PROBLEM]})

    trace_id: str


class Rejected(BaseModel):
    """A request that was not taken, by its place in the submitted list."""

    index: int
    error: ItemProblem


class BatchSubmitted(BaseModel):
    """A batch; `task_ids` are the accepted ones in their order."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BATCH_SUBMITTED]})

    batch_id: str
    task_ids: list[str]
    accepted: int
    rejected: list[Rejected]


class BatchTask(BaseModel):
    """A task of a batch; `index` is its place in the submitted list."""

    task_id: str
    index: int
    status: StatusName


class BatchStatus(BaseModel):
    """How the tasks of a batch stand. `pending` have no outcome; `forgotten` ones, by a cleanup or their retention, are not listed."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BATCH_STATUS]})

    batch_id: str
    total: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    pending: int
    forgotten: int
    tasks: list[BatchTask]


class Forgotten(BaseModel):
    """How many finished tasks a cleanup had forgotten that were not before."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.FORGOTTEN]})

    forgotten: int


class _ResultRecord(BaseModel):
    record: Result


def extra_schemas() -> dict[str, Any]:
    """Return the schemas that no route names by itself: the submit body and the result record."""
    _, found = models_json_schema(
        [
            (SubmitBody, "validation"),
            (SubmitBatchBody, "validation"),
            (CleanupBody, "validation"),
            (_ResultRecord, "serialization"),
        ],
        ref_template=_REFERENCE,
    )
    return {name: schema for name, schema in found["$defs"].items() if name != _ResultRecord.__name__}
