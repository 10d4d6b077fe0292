"""Tasks for tests of decisions: everything has a default, a test names what it is about."""

from __future__ import annotations

from itertools import count
from typing import Any

from schemas.request import CachePolicy, InferenceTask
from schemas.result import Output, Source, Usage
from schemas.topics import Lane, TopicNames
from streams.ports import Answer
from streams.task import Task, effective_parameters, fingerprint_of

NAMES = TopicNames()
LONG_S = 71 * 3600.0
EPOCH_MS = 1_795_420_000_000
"""What the broker's clock shows when the monotonic one shows 0."""

_offsets = count()


def make_task(
    task_id: str | None = None,
    lane: Lane = Lane.NORMAL,
    *,
    now_s: float = 0.0,
    deadline_s: float | None = None,
    cost_tokens: int = 100,
    partition: int = 0,
    offset: int | None = None,
    delivery: object = None,
    cache: CachePolicy | None = None,
    text: str = "hello",
    **fields: Any,
) -> Task:
    """Return a task that was taken in at `now_s`; `fields` are the request's, `deadline_s` is monotonic (default in 71 h)."""
    offset = next(_offsets) if offset is None else offset
    request = InferenceTask.model_validate({"messages": [{"role": "user", "content": text}], **fields})
    due_s = now_s + LONG_S if deadline_s is None else deadline_s
    source = Source(NAMES.requests(lane), partition, offset)
    policy = cache or CachePolicy(mode="bypass")
    parameters = effective_parameters(request)
    now_ms = EPOCH_MS + int(now_s * 1000)
    return Task(
        task_id=task_id or f"task-{offset}",
        lane=lane,
        tenant=request.tenant or "default",
        request=request,
        sources=[source],
        place=(source.topic, source.partition),
        deliveries=[source if delivery is None else delivery],
        origin=source if delivery is None else delivery,
        headers=(),
        appended_ms=now_ms,
        deadline_ms=EPOCH_MS + int(due_s * 1000),
        accepted_ms=now_ms,
        accepted_s=now_s,
        deadline_s=due_s,
        cost_tokens=cost_tokens,
        parameters=parameters,
        cache=policy,
        fingerprint=None if policy.mode == "bypass" else fingerprint_of(request, parameters),
    )


def answer(text: str = "fine", finish_reason: str = "stop") -> Answer:
    """Return what a backend might say."""
    return Answer(Output(text, finish_reason), Usage(3, 1, 4))
