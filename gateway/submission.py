"""From the body of a submit call to the record on a lane topic. Nothing of the body is repeated in an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import ConfigDict, Field, ValidationError, field_validator

from gateway.ids import new_task_id
from gateway.problems import Kind, Problem, invalid
from schemas.codec import MAX_REQUEST_BYTES, DecodeError, decode_request, why_not_json
from schemas.ids import home, key_of
from schemas.request import InferenceTask, Message, Parameters
from schemas.topics import Lane
from streams.deadlines import LONGEST_MS, deadline_ms
from streams.errors import InvalidRequest
from streams.task import effective_parameters, fingerprint_of

_LONGEST_S = LONGEST_MS / 1000
_OF_THE_RECORD = tuple(name for name in InferenceTask.model_fields if name not in ("task_id", "tenant"))


class SubmitBody(InferenceTask):
    """The body of a submit call: a request (only `messages` is required), its lane, and its time.

    `task_id` and `tenant` are set by the gateway, whatever the body says. `timeout_s` counts from acceptance and excludes
    `deadline_at_ms`. Unknown fields are ignored.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    priority: Annotated[Lane, Field(description="In any case.")] = Lane.NORMAL
    timeout_s: Annotated[float, Field(gt=0, le=_LONGEST_S)] | None = None
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None

    @field_validator("priority", mode="before")
    @classmethod
    def _any_case(cls, given: object) -> object:
        lanes: dict[object, Lane] = {lane.value: lane for lane in Lane}
        return lanes.get(given.lower(), given) if isinstance(given, str) else given


_KNOWN_NAMES = frozenset(
    {*SubmitBody.model_fields, "mode", "ttl_s", *Message.__annotations__, *Parameters.__annotations__}
)


@dataclass(frozen=True, slots=True)
class Submission:
    """A request ready to be written: `value` goes to `partition` of its lane's topic under `key`."""

    task_id: str
    lane: Lane
    partition: int
    key: bytes
    value: bytes


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises: Problem 400 or 422."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        told = why_not_json(error.msg, "body") if body else "the body is empty"
        raise Problem(Kind.UNPARSABLE, told) from None
    if not isinstance(raw, dict):
        raise invalid("", "must be a JSON object")
    return raw


def submission(raw: dict[str, Any], tenant: str, partitions: int, *, now_ms: int, random: bytes) -> Submission:
    """Return the record of a submit call that is accepted at `now_ms`.

    Raises: Problem 422 with a JSON pointer for each fault, 413 when the record would exceed 1 MiB.
    """
    body = _validated(raw)
    fields = {name: raw[name] for name in _OF_THE_RECORD if raw.get(name) is not None}
    fields |= {"created_at_ms": now_ms, **_due(body, now_ms)}
    task_id = _task_id(body, tenant, now_ms, random)
    value = _encoded({"task_id": task_id, "tenant": tenant, **fields})
    _check_as_the_worker_does(value, now_ms)
    return Submission(task_id, body.priority, home(task_id, partitions), key_of(task_id), value)


def _validated(raw: dict[str, Any]) -> SubmitBody:
    given = {name: value for name, value in raw.items() if name in SubmitBody.model_fields and value is not None}
    # Theirs are not used, so they cannot be wrong.
    given.pop("task_id", None)
    given.pop("tenant", None)
    try:
        body = SubmitBody.model_validate(given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        rows = [(_pointer(fault["loc"]), _told(fault["type"], fault["msg"])) for fault in faults]
        raise Problem(Kind.INVALID, "; ".join(f"{at or '/'}: {told}" for at, told in rows[:3]), errors=rows) from None
    if body.timeout_s is not None and body.deadline_at_ms is not None:
        raise invalid("/timeout_s", "give timeout_s or deadline_at_ms, not both")
    if body.webhook_url is not None:
        raise invalid("/webhook_url", "webhooks are not there yet")
    return body


def _due(body: SubmitBody, now_ms: int) -> dict[str, int]:
    """Return the deadline on the gateway's clock; with the caller's `created_at_ms` only the difference counts."""
    if body.timeout_s is not None:
        return {"deadline_at_ms": now_ms + max(round(body.timeout_s * 1000), 1)}
    if body.deadline_at_ms is None:
        return {}
    due_ms = body.deadline_at_ms if body.created_at_ms is None else body.deadline_at_ms - body.created_at_ms + now_ms
    if due_ms <= now_ms:
        raise invalid("/deadline_at_ms", "has passed")
    return {"deadline_at_ms": due_ms}


def _task_id(body: SubmitBody, tenant: str, now_ms: int, random: bytes) -> str:
    request = body.model_copy(update={"tenant": tenant})
    try:
        asked = fingerprint_of(request, effective_parameters(request))
    except (TypeError, ValueError):  # what orjson does not write
        raise invalid("/messages", "cannot be written as JSON") from None
    return new_task_id(asked, now_ms, random)


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        value = orjson.dumps(fields)
    except (TypeError, ValueError):
        raise invalid("", "cannot be written as JSON") from None
    if len(value) > MAX_REQUEST_BYTES:
        raise Problem(
            Kind.TOO_LARGE, f"the record would have {len(value)} bytes; at most {MAX_REQUEST_BYTES} are taken"
        )
    return value


def _check_as_the_worker_does(value: bytes, now_ms: int) -> None:
    """Refuse here what a worker would dead-letter. Raises: Problem 422."""
    try:
        deadline_ms(decode_request(value), now_ms)
    except DecodeError as error:
        pointer = "/schema_version" if error.type == "unsupported_schema" else ""
        raise invalid(pointer, error.detail) from None
    except InvalidRequest as error:
        raise invalid("/deadline_at_ms", error.detail.partition(": ")[2] or error.detail) from None


def _pointer(loc: tuple[int | str, ...]) -> str:
    """Return the JSON pointer of a fault, up to the first name that its sender chose or that is a kind of pydantic's."""
    known = []
    for part in loc:
        if not isinstance(part, int) and part not in _KNOWN_NAMES:
            break
        known.append(f"/{part}")
    return "".join(known)


def _told(kind: str, told: str) -> str:
    return f"must be one of {', '.join(Lane)}" if kind in ("enum", "is_instance_of") else told
