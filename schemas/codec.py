"""Bytes <-> records. What cannot be read raises DecodeError with a reason, never with the payload in its text."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from schemas.ids import TASK_ID
from schemas.request import SCHEMA_VERSION, CachePolicy, InferenceTask, Message, Parameters
from schemas.result import ErrorType

MIB = 1 << 20
MAX_REQUEST_BYTES = MIB
# What is read must be writable again: orjson reads 1024 levels and writes 254.
MAX_DEPTH = 128
# Every Confluent-framed value begins with this byte and the schema's id in four more.
_REGISTRY_MAGIC = 0
_REGISTRY_PREFIX_BYTES = 5

_Record = TypeVar("_Record")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
_DESCRIBED_FAULTS = 3
MAX_NAME_CHARACTERS = 256
_KNOWN_NAMES = frozenset(
    {*InferenceTask.model_fields, *CachePolicy.model_fields, *Message.__annotations__, *Parameters.__annotations__}
)


class DecodeError(ValueError):
    """A value is not the record it should be. `task_id` is the producer's own id where it could be read."""

    def __init__(self, type_: ErrorType, detail: str, *, task_id: str | None = None, tenant: str | None = None) -> None:
        super().__init__(detail)
        self.type = type_
        self.detail = detail
        self.task_id = task_id
        self.tenant = tenant


def encode(record: object) -> bytes:
    """Return a record (a dataclass of `schemas`) as JSON bytes."""
    return orjson.dumps(record)


def decode(kind: type[_Record], value: bytes) -> _Record:
    """Return the record in `value`; unknown fields are ignored, so that a newer version's records can be read.

    Raises: DecodeError.
    """
    try:
        record: _Record = _adapter(kind).validate_json(value)
    except ValidationError as error:
        raise DecodeError(ErrorType.INVALID_REQUEST, _describe(error)) from None
    return record


def _adapter(kind: Any) -> TypeAdapter[Any]:
    found = _ADAPTERS.get(kind)
    if found is None:
        found = _ADAPTERS[kind] = TypeAdapter(kind)
    return found


def decode_request(value: bytes | None) -> InferenceTask:
    """Return the request in a lane record's value.

    Raises: DecodeError with `invalid_request`, `unsupported_schema` or `request_too_large`; the record is to be dead-lettered.
    """
    if not value:
        raise DecodeError(ErrorType.INVALID_REQUEST, "the value is empty")
    if len(value) > MAX_REQUEST_BYTES:
        raise DecodeError(
            ErrorType.REQUEST_TOO_LARGE, f"the value has {len(value)} bytes; at most {MAX_REQUEST_BYTES} are taken"
        )
    raw = _parse(value)
    version = raw.get("schema_version")
    if version is None:
        raw.pop("schema_version", None)  # null is absent, as for every other field
    elif type(version) is int and version != SCHEMA_VERSION:
        raise DecodeError(
            ErrorType.UNSUPPORTED_SCHEMA,
            f"schema_version {version} is not one this version reads (1)",
            **_identity(raw),
        )
    try:
        return InferenceTask.model_validate(raw)
    except ValidationError as error:
        raise DecodeError(ErrorType.INVALID_REQUEST, _describe(error), **_identity(raw)) from None


def fingerprint(tenant: str, model_or_agent_type: str | None, messages: object, parameters: object) -> str:
    """Return the hex SHA-256 over the canonical JSON (sorted keys, no spaces) of what makes two requests the same question."""
    canonical = orjson.dumps([tenant, model_or_agent_type, messages, parameters], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


def _parse(value: bytes) -> dict[str, Any]:
    try:
        raw = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise DecodeError(ErrorType.INVALID_REQUEST, _unreadable(value, error.msg)) from None
    if not isinstance(raw, dict):
        raise DecodeError(ErrorType.INVALID_REQUEST, "the value is not a JSON object")
    # Counting brackets is quick and never too low.
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and _is_deeper(raw, MAX_DEPTH):
        raise DecodeError(
            ErrorType.INVALID_REQUEST, f"the value is nested more than {MAX_DEPTH} levels deep", **_identity(raw)
        )
    return raw


def _is_deeper(document: object, levels: int) -> bool:
    """Whether lists and objects are nested in more than so many levels; walks level by level, without recursion."""
    level: list[Any] = [document]
    for _ in range(levels):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _unreadable(value: bytes, cause: str) -> str:
    if value[0] == _REGISTRY_MAGIC and len(value) >= _REGISTRY_PREFIX_BYTES:
        schema_id = int.from_bytes(value[1:_REGISTRY_PREFIX_BYTES], "big")
        return f"the value begins with a Schema Registry prefix (schema id {schema_id}); send plain JSON"
    return why_not_json(cause, "value")


def why_not_json(cause: str, what: str) -> str:
    """Return a sentence for orjson's reason. Valid JSON that it does not take is told apart; nothing of the text is quoted."""
    if cause.startswith("depth limit"):
        return f"the {what} is nested more than {MAX_DEPTH} levels deep"
    if cause.startswith("number is infinity"):
        return f"the {what} has a number that is too large"
    return f"the {what} is not JSON in UTF-8"


def _identity(raw: dict[str, Any]) -> dict[str, str | None]:
    """Return what can be said of whose request it was, from a request that is otherwise wrong."""
    task_id, tenant = raw.get("task_id"), raw.get("tenant")
    return {
        "task_id": task_id if isinstance(task_id, str) and TASK_ID.fullmatch(task_id) else None,
        "tenant": tenant if isinstance(tenant, str) and 0 < len(tenant) <= MAX_NAME_CHARACTERS else None,
    }


def _describe(error: ValidationError) -> str:
    """Return the first few faults as `field: what is expected`; neither values nor keys chosen by the sender are repeated."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults[:_DESCRIBED_FAULTS]]
    if len(faults) > _DESCRIBED_FAULTS:
        lines.append(f"and {len(faults) - _DESCRIBED_FAULTS} more")
    return "; ".join(lines)


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) if isinstance(part, int) or part in _KNOWN_NAMES else "*" for part in loc) or "value"
