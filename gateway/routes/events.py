"""Statuses as they change: `/v1/async/events`, Server-Sent Events. Source: WHATWG HTML, section 9.2."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from gateway import bodies, examples
from gateway.events import Told
from gateway.following import Event
from gateway.ports import Unavailable
from gateway.problems import Problem, invalid
from gateway.routes.async_tasks import PROBLEMS
from gateway.routes.replies import CallerHere, described, gateway_of

router = APIRouter(prefix="/v1/async", tags=["tasks"])

_MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# How long a browser waits before it comes again.
_RETRY_MS = 2_000
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event that was received: the stream goes on behind it.",
    "schema": {
        "type": "string",
        "pattern": r"^[0-9]{1,9}/([0-9]{1,4}:[0-9]{1,18}-[0-9]{1,18}(,[0-9]{1,4}:[0-9]{1,18}-[0-9]{1,18})*)?$",
    },
    "example": "1/3:17-0",
}
_STREAM = {
    "description": "One `status` event for each change, until all have ended.",
    "content": {_MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.EVENTS}},
}


@router.get(
    "/events",
    openapi_extra={"parameters": [_LAST_EVENT_ID]},
    response_class=StreamingResponse,
    responses={
        200: _STREAM,
        204: {
            "description": "All have ended, and `Last-Event-ID` says that all of it was received: do not come again."
        },
        422: described(
            bodies.ProblemBody, "Neither a task nor a batch is named, or both, or the last event's id is none."
        ),
        **PROBLEMS,
    },
)
async def events(
    request: Request,
    caller: CallerHere,
    task_id: Annotated[str | None, Query(description="A task's id.")] = None,
    batch_id: Annotated[str | None, Query(description="A batch's id.")] = None,
) -> Response:
    """Follow the status of a task, or of every task of a batch; data is the status body. Name one of the two."""
    caller.require("read")
    following = gateway_of(request).calls.following
    told = _told(request)
    if (task_id is None) is (batch_id is None):
        raise invalid("/query/task_id", "name a task_id or a batch_id, one of them")
    if task_id is not None:
        followed = await following.task(caller, task_id)
    else:
        followed = await following.batch(caller, batch_id or "")
    if following.has_ended(followed, told):
        return Response(status_code=204)
    return _Stream(_lines(following.events(followed, told)), media_type=_MEDIA_TYPE, headers=_HEADERS)


class _Stream(StreamingResponse):
    """A response that lets go of what it follows as soon as its reader is gone."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


async def _lines(events: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % _RETRY_MS
    async with aclosing(events):  # type: ignore[type-var]
        try:
            async for event in events:
                yield b": keep-alive\n\n" if event is None else _line(event)
        except (Problem, Unavailable):
            return  # whoever reads comes again with the id of the last event, and is told then


def _line(event: Event) -> bytes:
    return b"id: %s\nevent: status\ndata: %s\n\n" % (event.id.encode(), orjson.dumps(event.body))


def _told(request: Request) -> Told:
    given = request.headers.get("last-event-id")
    found = Told() if not given else Told.parse(given)
    if found is None:
        raise invalid("/header/Last-Event-ID", "must be the id of an event of such a stream")
    return found
