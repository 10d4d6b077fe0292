"""The lines of an OpenAI batch file: in, requests with an id that follows from the file; out, answers by `custom_id`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.chat import answer_body, http_status, request_fields
from schemas.codec import DecodeError, decode, decode_request, why_not_json
from schemas.ids import home, key_of
from schemas.result import Result

URL = "/v1/chat/completions"
ROW_BEGINS = b'{"id":"batch_req_'
_ID_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the file. `fields` are those of a request without its times; the same line of the same run has the same `task_id`."""

    number: int
    custom_id: str
    task_id: str
    fields: dict[str, Any]

    @property
    def key(self) -> bytes:
        return key_of(self.task_id)

    def partition(self, partitions: int) -> int:
        return home(self.task_id, partitions)

    def record(self, created_at_ms: int, deadline_ms: int | None) -> bytes:
        """Return the request's record; `deadline_ms` counts from `created_at_ms`, None: none is asked for."""
        due = {} if deadline_ms is None else {"deadline_at_ms": created_at_ms + deadline_ms}
        return orjson.dumps({"task_id": self.task_id, **self.fields, "created_at_ms": created_at_ms, **due})


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request, and why; the line is not repeated."""

    number: int
    why: str


class _Wrong(ValueError):
    pass


def read(lines: Iterable[bytes], run: str) -> tuple[list[Line], list[BadLine]]:
    """Return the requests of a batch file and its bad lines; empty lines are neither. `run` names the file, and with it its tasks."""
    good: dict[str, Line] = {}
    bad: list[BadLine] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _line(number, text, run)
            if line.custom_id in good:
                raise _Wrong(f"its custom_id is that of line {good[line.custom_id].number}")
            good[line.custom_id] = line
        except _Wrong as wrong:
            bad.append(BadLine(number, str(wrong)))
    return list(good.values()), bad


def answer(line: Line, value: bytes) -> bytes:
    """Return the line of the output file for a result record. Raises: DecodeError when it is none."""
    result = decode(Result, value)
    response = {"status_code": http_status(result), "request_id": line.task_id, "body": answer_body(result)}
    return _written(line, response, None)


def unanswered(line: Line, code: str, message: str) -> bytes:
    """Return the line of the output file for a request that has no result to be read."""
    return _written(line, None, {"code": code, "message": message})


def done(lines: Iterable[bytes]) -> dict[str, bool]:
    """Return by `custom_id` whether it completed, from lines of an output file. Raises: ValueError with the number of one that is none."""
    found: dict[str, bool] = {}
    for number, text in enumerate(lines, 1):
        try:
            row = orjson.loads(text)
            response = row["response"]
            found[row["custom_id"]] = response is not None and response["status_code"] == 200
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ValueError(number) from None
    return found


def _line(number: int, text: bytes, run: str) -> Line:
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Wrong(why_not_json(error.msg, "line")) from None
    if not isinstance(row, dict):
        raise _Wrong("it is not a JSON object")
    custom_id, body = row.get("custom_id"), row.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise _Wrong("it needs a custom_id, which is text")
    if row.get("method", "POST") != "POST" or row.get("url") != URL:
        raise _Wrong(f"its method and url must be POST {URL}")
    if not isinstance(body, dict):
        raise _Wrong("its body must be a JSON object")
    asked = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(orjson.dumps([run, custom_id]) + asked).hexdigest()
    fields = {**request_fields(body), "budget": "batch"}
    line = Line(number, custom_id, f"batch-{digest[:_ID_CHARACTERS]}", fields)
    try:
        decode_request(line.record(0, None))
    except DecodeError as error:
        raise _Wrong(error.detail) from None
    return line


def _written(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    row = {"id": f"batch_req_{line.task_id}", "custom_id": line.custom_id, "response": response, "error": error}
    return orjson.dumps(row) + b"\n"
