"""What goes wrong over HTTP: the one catalogue of problem types, and their bodies. Source: RFC 9457.

A problem says what to change and repeats nothing of what was sent.
"""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.ports import OutcomeUnknown, Unavailable
from wire.logs import get_logger

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

log = get_logger(__name__)


class Kind(Enum):
    """Every problem: its name in `type`, its status, its title, and what to do about it."""

    UNPARSABLE = (
        "unparsable",
        400,
        "The body is not JSON",
        "Send one JSON object in UTF-8: no NaN or infinity, no name twice in an object, at most 128 levels deep.",
    )
    FORBIDDEN = (
        "forbidden",
        403,
        "The token does not allow this",
        "Ask for a token with the scope that `detail` names.",
    )
    NOT_FOUND = (
        "not-found",
        404,
        "There is no such task",
        "Check the id. Another tenant's tasks and batches answer so too.",
    )
    NO_ROUTE = ("no-such-route", 404, "There is no such route", "`/docs` lists every route.")
    METHOD = (
        "method-not-allowed",
        405,
        "The route does not take this method",
        "The header `Allow` names what it takes.",
    )
    ENDED = (
        "task-has-ended",
        409,
        "The task has ended",
        "Nothing is left to cancel: `outcome` says how it ended, and that never changes.",
    )
    ID_TAKEN = (
        "task-id-taken",
        409,
        "The task_id is taken",
        "A task of this id is there that asks for something else, or is no longer known well enough to compare. Take another id, "
        "or none.",
    )
    GONE = (
        "gone",
        410,
        "The task is past its retention",
        "Results are kept for seven days, unless a cleanup had them forgotten before.",
    )
    TOO_LARGE = (
        "too-large",
        413,
        "The request is too large",
        "Send less: a request has at most 1 MiB, also as the record that is written; a list of them 64 MiB.",
    )
    MEDIA = (
        "unsupported-media-type",
        415,
        "The body must be application/json",
        "Send `Content-Type: application/json`.",
    )
    INVALID = (
        "invalid",
        422,
        "The request is not what it must be",
        "`errors` names each wrong field by its JSON pointer, and what is expected there. Query parameters and headers are under "
        "`/query` and `/header`.",
    )
    KEY_REUSED = (
        "idempotency-key-reused",
        422,
        "The Idempotency-Key was used for another body",
        "Take a new key for a new request. A key stands for its first body for seven days.",
    )
    INTERNAL = (
        "internal",
        500,
        "Something went wrong inside the gateway",
        "The gateway's log has it under `trace_id`; please report it.",
    )
    UNAVAILABLE = (
        "unavailable",
        503,
        "The gateway cannot answer now",
        "Kafka is away, or the gateway has not read the logs far enough. Nothing was stored; come back after `Retry-After` seconds.",
    )
    INFEASIBLE = (
        "deadline-infeasible",
        503,
        "The deadline cannot be met now",
        "More is before it than the backends serve until then: `estimate` says when it would start. Nothing was stored; give it more "
        "time, take a more urgent lane, or come back after `Retry-After` seconds.",
    )
    OUTCOME_UNKNOWN = (
        "outcome-unknown",
        503,
        "It is not known whether the request was taken",
        "Kafka did not acknowledge it in time, and it may still be written. Send it again with the same `Idempotency-Key` or "
        "`task_id`: then it is one task whatever happened.",
    )
    LANE_FULL = (
        "lane-full",
        503,
        "The lane is over half of its retention",
        "Its oldest request has waited for more than 36 of the 72 hours that Kafka keeps it. Nothing was stored; come back after "
        "`Retry-After` seconds, or take another lane.",
    )

    @property
    def name_in_type(self) -> str:
        return self.value[0]

    @property
    def type(self) -> str:
        return f"urn:triage:problem:{self.name_in_type}"

    @property
    def status(self) -> int:
        return self.value[1]

    @property
    def title(self) -> str:
        return self.value[2]

    @property
    def remedy(self) -> str:
        return self.value[3]


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_BY_STATUS = {404: Kind.NO_ROUTE, 405: Kind.METHOD}


class Problem(Exception):
    """An answer that is a problem. `errors` are (JSON pointer, what is expected); `more` are members of its own."""

    def __init__(
        self,
        kind: Kind,
        detail: str | None = None,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(kind.title)
        self.kind, self.detail, self.errors = kind, detail, errors
        self.headers = dict(headers or {})
        self.more = more


def problem_of(error: Problem | Unavailable) -> Problem:
    """Return which problem an error comes out as."""
    if isinstance(error, Problem):
        return error
    return Problem(Kind.OUTCOME_UNKNOWN if isinstance(error, OutcomeUnknown) else Kind.UNAVAILABLE, str(error) or None)


def invalid(pointer: str, detail: str) -> Problem:
    """Return the problem of one wrong field."""
    return Problem(Kind.INVALID, f"{pointer or 'the body'}: {detail}", errors=[(pointer, detail)])


def described(problem: Problem) -> dict[str, Any]:
    """Return a problem as JSON, without the trace id that only a response of its own has."""
    kind = problem.kind
    return {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail or kind.title,
        "errors": [{"pointer": pointer, "detail": detail} for pointer, detail in problem.errors],
        **problem.more,
    }


def openai_form(problem: Problem) -> dict[str, Any]:
    """Return a problem as OpenAI's clients expect an error. Source: the `error` object of OpenAI's API reference."""
    kind = problem.kind
    pointer = problem.errors[0][0] if problem.errors else ""
    error = {
        "message": problem.detail or kind.title,
        "type": _OPENAI_TYPES.get(kind.status, "server_error" if kind.status >= 500 else "invalid_request_error"),
        "param": pointer.strip("/").replace("/", ".") or None,
        "code": kind.name_in_type.replace("-", "_"),
    }
    return {"error": error}


def response(problem: Problem, trace_id: str) -> Response:
    """Return the problem's HTTP response; a 503 says when to come back."""
    headers = dict(problem.headers)
    if problem.kind.status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    body = orjson.dumps({**described(problem), "trace_id": trace_id})
    return Response(body, problem.kind.status, headers, MEDIA_TYPE)


def trace_id_of(request: Request) -> str:
    """Return the caller's trace id (W3C `traceparent`), else a new one."""
    given = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    return given[1] if given else secrets.token_hex(16)


def install(app: FastAPI) -> None:
    """Let every error of `app` come out as a problem."""
    app.add_exception_handler(Problem, _foreseen)
    app.add_exception_handler(Unavailable, _foreseen)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unforeseen)


def response_to(request: Request, error: Problem | Unavailable) -> Response:
    """Return what a call gets that ended in `error`."""
    return response(problem_of(error), trace_id_of(request))


async def _foreseen(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem | Unavailable)
    return response_to(request, error)


async def _left(request: Request, error: Exception) -> Response:
    """Nobody reads this: the caller hung up before its body was there."""
    return Response(status_code=400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, Kind.INTERNAL if error.status_code >= 500 else Kind.INVALID)
    return response(Problem(kind, headers=error.headers), trace_id_of(request))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    rows = [("/" + "/".join(str(part) for part in each["loc"]), str(each["msg"])) for each in error.errors()]
    return response(Problem(Kind.INVALID, errors=rows), trace_id_of(request))


async def _unforeseen(request: Request, error: Exception) -> Response:
    trace_id = trace_id_of(request)
    log.error("request failed inside the gateway", error=type(error).__name__, at=_place(error), trace_id=trace_id)
    return response(Problem(Kind.INTERNAL), trace_id)


def _place(error: Exception) -> str:
    """Return where an error came up, `file:line`; its text is left out, since it may quote what was sent."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
