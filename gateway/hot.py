"""The calls that come by the thousand, answered before FastAPI's router: it costs more than what they ask for.

The routes stand in FastAPI all the same, where they are described, and where every other method and spelling of them arrives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import problems
from gateway.callers import caller
from gateway.ports import Unavailable
from gateway.problems import Problem
from gateway.routes import async_tasks

_SUBMIT, _STATUS = "/v1/async/submit", "/v1/async/status/"


class Hot:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _call(scope) if scope["type"] == "http" else None
        if call is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await call(request)
        except (Problem, Unavailable) as error:
            response = problems.response_to(request, error)
        except ClientDisconnect:
            return
        await response(scope, receive, send)


def _call(scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
    """Return what answers this call here, None when the router does."""
    path: str = scope["path"]
    if scope["method"] == "POST" and path == _SUBMIT:
        return _submit
    if scope["method"] == "GET" and path.startswith(_STATUS) and "/" not in path[len(_STATUS) :]:
        return _status if len(path) > len(_STATUS) else None
    return None


async def _submit(request: Request) -> Response:
    return await async_tasks.submit(request, await caller(request))


async def _status(request: Request) -> Response:
    return await async_tasks.status(request, request.scope["path"][len(_STATUS) :], await caller(request))
