"""A task as the dispatcher holds it, from intake to its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.codec import fingerprint
from schemas.headers import Headers
from schemas.ids import made_id
from schemas.request import AUTO_MODEL, DEFAULT_MAX_TOKENS, DEFAULT_TENANT, CachePolicy, InferenceTask
from schemas.result import Source
from schemas.topics import Lane

TaskKey = tuple[str, int]
"""A task: its id and its partition number (the same id on two partition numbers is two tasks)."""


@dataclass(slots=True, eq=False)
class Task:
    """A request that was taken in. Owned by the Dispatcher from `accept` until the effect that ends it.

    `sources` are the lane records it answers for, `deliveries` the shell's handles to acknowledge them: more than one when the
    same request was delivered again while it was held; `origin` is
    the first of them, kept for a dead letter's bytes. The dispatcher does not look into a delivery.
    `place` is the topic and partition of the record that was delivered: what it holds up while it waits.
    `attempts` counts starts, `past_attempts` those before the record that was delivered, `tries_left` tries within this worker, `hops`
    the retry topics it failed its way through, `crashes` the workers that ended while they ran it. It is not run before `not_before_s`,
    infinite while another worker runs it. `cost_tokens` are what it is expected to take, `bound_tokens` the most it may take: both are
    frozen at intake. `size_bytes` are those of its record's value. `deadline_s` and `accepted_s` are monotonic; the `_ms` times are
    broker time.
    """

    task_id: str
    lane: Lane
    tenant: str
    request: InferenceTask
    sources: list[Source]
    deliveries: list[object]
    origin: object
    headers: Headers
    appended_ms: int
    deadline_ms: int
    accepted_ms: int
    accepted_s: float
    deadline_s: float
    cost_tokens: int
    parameters: dict[str, object] = field(default_factory=dict)
    cache: CachePolicy = field(default_factory=CachePolicy)
    fingerprint: str | None = None
    attempts: int = 0
    past_attempts: int = 0
    tries_left: int = 0
    hops: int = 0
    crashes: int = 0
    dispatched_ms: int | None = None
    dispatched_s: float | None = None
    not_before_s: float = 0.0
    place: tuple[str, int] = ("", 0)
    sequence: int = 0
    bound_tokens: int = 0
    size_bytes: int = 0

    @property
    def key(self) -> TaskKey:
        return self.task_id, self.sources[0].partition

    @property
    def source(self) -> Source:
        """Return the first lane record: the one the result names."""
        return self.sources[0]

    @property
    def model(self) -> str | None:
        """Return the model asked for, None when routing chooses."""
        model = self.request.model
        return None if model in (None, AUTO_MODEL) else model

    @property
    def wants_cache(self) -> bool:
        """Whether an answer may come from the cache."""
        return self.cache.mode == "use"

    @property
    def fills_cache(self) -> bool:
        """Whether its answer may be stored."""
        return self.cache.mode != "bypass"

    @property
    def may_coalesce(self) -> bool:
        """Whether it may share a call with an identical task. One that may have ended a worker runs for itself."""
        return self.fills_cache and self.fingerprint is not None and not self.request.stream and not self.crashes

    def __repr__(self) -> str:
        return f"Task({self.task_id!r}, {self.lane.value}, attempts={self.attempts})"


def task_id_of(request: InferenceTask, source: Source, lane: Lane) -> str:
    return request.task_id or made_id(lane, source.partition, source.offset)


def effective_parameters(request: InferenceTask) -> dict[str, object]:
    """Return the sampling fields to be sent: those set, without nulls, with `max_tokens` always there.

    `max_completion_tokens`, OpenAI's newer name for it, is taken for `max_tokens`.
    """
    given = {name: value for name, value in (request.parameters or {}).items() if value is not None}
    newer = given.pop("max_completion_tokens", None)
    given.setdefault("max_tokens", DEFAULT_MAX_TOKENS if newer is None else newer)
    return given


def fingerprint_of(request: InferenceTask, parameters: dict[str, object]) -> str:
    """Return the cache key: tenant, model or agent type, messages and parameters; not id, deadline, priority or metadata."""
    model = None if request.model in (None, AUTO_MODEL) else request.model
    return fingerprint(request.tenant or DEFAULT_TENANT, model or request.agent_type, request.messages, parameters)
