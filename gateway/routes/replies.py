"""JSON in and out, and what a route finds in its application."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

import orjson
from fastapi import Depends, Request, Response

from gateway.callers import Caller, caller
from gateway.core import Gateway
from gateway.problems import Kind, Problem, invalid
from gateway.tasks import Tasks
from schemas.headers import Headers

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MOST_DIGITS = 18
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


def json_response(body: object, status: int = 200, **headers: str) -> Response:
    """Return a JSON response; an underscore in a header's name stands for a dash."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(orjson.dumps(body), status, named, "application/json")


# Called by the routes and no dependencies: each of those costs a call a tenth of a millisecond.
def gateway_of(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


def tasks_of(request: Request) -> Tasks:
    return gateway_of(request).tasks


CallerHere: TypeAlias = Annotated[Caller, Depends(caller)]


def told_bytes(request: Request) -> int | None:
    """Return the length that a request tells of its body, None when it tells none."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isdecimal() and len(told) <= _MOST_DIGITS else None


def takes_json(schema: dict[str, Any], examples: dict[str, Any], *, keyed: bool = False) -> dict[str, Any]:
    """Return a route's description of the JSON body that it reads itself; `keyed`: it takes an `Idempotency-Key`."""
    content = {"application/json": {"schema": schema, "examples": examples}}
    described_body = {"requestBody": {"required": True, "content": content}}
    return {"parameters": [KEY_PARAMETER], **described_body} if keyed else described_body


async def json_body(request: Request, most_bytes: int) -> bytes:
    """Return the body of a JSON request; no more than `most_bytes` of it is ever held. Raises: Problem 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(Kind.MEDIA)
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and (len(told) > _MOST_DIGITS or int(told) > most_bytes):
        raise _too_large(most_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    return bytes(body)


def idempotency_key(request: Request) -> str | None:
    """Return the caller's `Idempotency-Key`, None when there is none. Raises: Problem 422."""
    given = request.headers.get("idempotency-key")
    if given is not None and _IDEMPOTENCY_KEY.fullmatch(given) is None:
        raise invalid("/header/Idempotency-Key", "must be 1 to 255 visible ASCII characters")
    return given


KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body again is the same task again, for at least 24 hours.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": "ward7-2026-11-24-0031",
}


def trace_headers(request: Request) -> Headers:
    """Return the caller's W3C trace context as record headers, which travel on into the result."""
    found: list[tuple[str, bytes]] = []
    for name, form in (("traceparent", _TRACEPARENT), ("tracestate", _TRACESTATE)):
        given = request.headers.get(name)
        if given is not None and form.fullmatch(given):
            found.append((name, given.encode()))
    return found


def _too_large(most_bytes: int) -> Problem:
    return Problem(Kind.TOO_LARGE, f"the body may have {most_bytes} bytes", headers={"Connection": "close"})


def described(model: Any, text: str) -> dict[str, Any]:
    """Return an entry of a route's `responses`."""
    return {"model": model, "description": text}
