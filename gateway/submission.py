"""From the body of a submit call to the record on a lane topic. Nothing of the body is repeated in an error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field, ValidationError, field_validator

from gateway import ids
from gateway.problems import Kind, Problem, invalid
from schemas.codec import MAX_REQUEST_BYTES, DecodeError, decode_request, why_not_json
from schemas.ids import home, key_of
from schemas.request import AUTO_MODEL, InferenceTask, Message, Parameters
from schemas.topics import Lane
from streams.deadlines import LONGEST_MS, deadline_ms
from streams.errors import InvalidRequest
from streams.task import effective_parameters, fingerprint_of

_LONGEST_S = LONGEST_MS / 1000
TASK_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
_OF_THE_RECORD = tuple(name for name in InferenceTask.model_fields if name not in ("task_id", "tenant"))


def _exactly(schema: dict[str, Any]) -> None:
    """Say in the description what the types do not: null as good as absent, a lane in any case, one of two deadlines."""
    fields, null = schema["properties"], {"type": "null"}
    any_case = "|".join("".join(f"[{letter.upper()}{letter}]" for letter in lane) for lane in Lane)
    lane = {"type": "string", "pattern": f"^({any_case})$", "description": f"{', '.join(Lane)}, in any case."}
    fields["priority"] = {"anyOf": [lane, null], "default": "normal"}
    fields["schema_version"] = {"anyOf": [{"type": "integer", "const": 1}, null], "default": 1}
    fields["webhook_url"] = {**null, "description": "Webhooks are not there yet."}
    fields["task_id"] = {
        "anyOf": [{"type": "string", "pattern": TASK_ID_PATTERN, "not": {"pattern": f"^({ids.GIVEN})$"}}, null],
        "description": "Absent: the gateway gives one. The forms `<lane>.<n>.<n>` and `…:replay.<n>.<n>` are Triage's own.",
    }
    fields["tenant"]["description"] = "The caller's tenant counts, whatever this says."
    fields["created_at_ms"]["description"] = "With it only the distance to `deadline_at_ms` counts, not the clock."
    fields["deadline_at_ms"]["description"] = (
        "For the answer; in the future, and at most 71 h ahead. Not with `timeout_s`."
    )
    fields["timeout_s"]["description"] = "For the answer, from acceptance. Not with `deadline_at_ms`."
    both = {"timeout_s": {"type": "number"}, "deadline_at_ms": {"type": "integer"}}
    schema["not"] = {"required": list(both), "properties": both}


class SubmitBody(InferenceTask):
    """A request (only `messages` is required), its lane, and its time.

    `tenant` is the caller's, whatever the body says. `timeout_s` counts from acceptance and excludes `deadline_at_ms`. Unknown fields
    are ignored, and null is as good as absent.
    """

    model_config = ConfigDict(frozen=True, strict=True, json_schema_extra=_exactly)

    schema_version: Literal[1] = 1
    priority: Annotated[Lane, Field(description="In any case.")] = Lane.NORMAL
    timeout_s: Annotated[float, Field(gt=0, le=_LONGEST_S)] | None = None
    webhook_url: Annotated[str, Field(max_length=2048)] | None = None

    @field_validator("priority", mode="before")
    @classmethod
    def _any_case(cls, given: object) -> object:
        lanes: dict[object, Lane] = {lane.value: lane for lane in Lane}
        return lanes.get(given.lower(), given) if isinstance(given, str) else given


_KNOWN_NAMES = frozenset(
    {*SubmitBody.model_fields, "older_than_s", "mode", "ttl_s", *Message.__annotations__, *Parameters.__annotations__}
)


@dataclass(frozen=True, slots=True)
class Submission:
    """A request ready to be written: `value` goes to `partition` of its lane's topic under `key`.

    `due_ms` is its deadline if Kafka takes it now. `model` None: routing chooses.
    """

    task_id: str
    lane: Lane
    partition: int
    key: bytes
    value: bytes
    tenant: str
    model: str | None
    due_ms: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A submit call that is right in itself: what it asks, `fingerprint`, and for whom. Whether its time has passed is not known yet."""

    tenant: str
    body: SubmitBody
    fields: dict[str, Any]
    fingerprint: str

    @property
    def has_deadline(self) -> bool:
        """Whether the caller gave one."""
        return self.body.timeout_s is not None or self.body.deadline_at_ms is not None

    @property
    def asked(self) -> str:
        """Return what stands for the whole call, its lane and time included."""
        whole = [self.tenant, self.fields, self.body.priority, self.body.timeout_s]
        return ids.hash_of(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS))

    def submission(self, task_id: str, partitions: int, *, now_ms: int, batch_id: str | None = None) -> Submission:
        """Return the record of the call, accepted at `now_ms`; `batch_id` takes the place of the body's.

        Raises: Problem 422 when its deadline has passed or is too far, 413 when the record would exceed 1 MiB.
        """
        fields = self.fields | {"created_at_ms": now_ms, **_due(self.body, now_ms)}
        if batch_id is not None:
            fields["batch_id"] = batch_id
        value = _encoded({"task_id": task_id, "tenant": self.tenant, **fields})
        due_ms = _checked_as_the_worker_does(value, now_ms)
        model = None if self.body.model == AUTO_MODEL else self.body.model
        partition = home(task_id, partitions)
        return Submission(task_id, self.body.priority, partition, key_of(task_id), value, self.tenant, model, due_ms)

    def is_of(self, lane: Lane, value: bytes | None) -> bool:
        """Whether a request that lies on `lane` asks for the same: all fields alike, and the same deadline, or the same time for it."""
        try:
            theirs = orjson.loads(value or b"")
        except orjson.JSONDecodeError:
            return False
        if lane is not self.body.priority or not isinstance(theirs, dict):
            return False
        times = ("created_at_ms", "deadline_at_ms")
        ours = {"task_id": self.body.task_id, "tenant": self.tenant, **self.fields}
        if {k: v for k, v in theirs.items() if k not in times} != {k: v for k, v in ours.items() if k not in times}:
            return False
        due_ms, created_ms = theirs.get("deadline_at_ms"), theirs.get("created_at_ms")
        if not isinstance(due_ms, int) or not isinstance(created_ms, int):
            return due_ms is None and self.body.deadline_at_ms is None and self.body.timeout_s is None
        return self._asks_for(due_ms, created_ms)

    def _asks_for(self, due_ms: int, created_ms: int) -> bool:
        body = self.body
        if body.timeout_s is not None:
            return due_ms - created_ms == _timeout_ms(body.timeout_s)
        if body.deadline_at_ms is None or body.created_at_ms is None:
            return due_ms == body.deadline_at_ms
        return due_ms - created_ms == body.deadline_at_ms - body.created_at_ms


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises: Problem 400 or 422."""
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        told = why_not_json(error.msg, "body") if body else "the body is empty"
        raise Problem(Kind.UNPARSABLE, told) from None
    if not isinstance(raw, dict):
        raise invalid("", "must be a JSON object")
    _refuse_twice(body)
    return raw


def drafted(raw: object, tenant: str) -> Draft:
    """Return what a submit call asks. Raises: Problem 422 with a JSON pointer for each fault."""
    if not isinstance(raw, dict):
        raise invalid("", "must be a JSON object")
    body = _validated(raw)
    fields = {name: raw[name] for name in _OF_THE_RECORD if raw.get(name) is not None}
    return Draft(tenant, body, fields, _fingerprint(body, tenant))


def _refuse_twice(body: bytes) -> None:
    """Refuse an object that has a name twice: readers differ in which of the two they take. Source: RFC 8259 section 4."""
    try:
        _STRICT.decode(body.decode())
    except _Twice:
        raise Problem(Kind.UNPARSABLE, "an object in the body has a name twice") from None
    except RecursionError:
        raise Problem(Kind.UNPARSABLE, why_not_json("depth limit", "body")) from None


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len({name for name, _ in pairs}) < len(pairs):
        raise _Twice


_STRICT = json.JSONDecoder(object_pairs_hook=_once)


def _validated(raw: dict[str, Any]) -> SubmitBody:
    given = {name: value for name, value in raw.items() if name in SubmitBody.model_fields and value is not None}
    try:
        body = SubmitBody.model_validate(given)
    except ValidationError as error:
        raise faults_of(error) from None
    if body.timeout_s is not None and body.deadline_at_ms is not None:
        raise invalid("/timeout_s", "give timeout_s or deadline_at_ms, not both")
    if body.task_id is not None and ids.is_given(body.task_id):
        raise invalid("/task_id", "is of a form that Triage itself gives")
    if body.webhook_url is not None:
        raise invalid("/webhook_url", "webhooks are not there yet")
    return body


def faults_of(error: ValidationError) -> Problem:
    """Return the problem of a body that is not what it must be, with each fault; nothing of the body is repeated."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    rows = [(_pointer(fault["loc"]), _told(fault["type"], fault["msg"])) for fault in faults]
    return Problem(Kind.INVALID, "; ".join(f"{at or '/'}: {told}" for at, told in rows[:3]), errors=rows)


def _due(body: SubmitBody, now_ms: int) -> dict[str, int]:
    """Return the deadline on the gateway's clock; with the caller's `created_at_ms` only the difference counts."""
    if body.timeout_s is not None:
        return {"deadline_at_ms": now_ms + _timeout_ms(body.timeout_s)}
    if body.deadline_at_ms is None:
        return {}
    due_ms = body.deadline_at_ms if body.created_at_ms is None else body.deadline_at_ms - body.created_at_ms + now_ms
    if due_ms <= now_ms:
        raise invalid("/deadline_at_ms", "has passed")
    return {"deadline_at_ms": due_ms}


def _timeout_ms(timeout_s: float) -> int:
    return max(round(timeout_s * 1000), 1)


def _fingerprint(body: SubmitBody, tenant: str) -> str:
    request = body.model_copy(update={"tenant": tenant})
    try:
        return fingerprint_of(request, effective_parameters(request))
    except (TypeError, ValueError):  # what orjson does not write
        raise invalid("/messages", "cannot be written as JSON") from None


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


def _checked_as_the_worker_does(value: bytes, now_ms: int) -> int:
    """Return the deadline; refuse here what a worker would dead-letter. Raises: Problem 422."""
    try:
        return deadline_ms(decode_request(value), now_ms)
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
