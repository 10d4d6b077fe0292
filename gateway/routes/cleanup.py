"""Forget finished tasks: `/v1/async/cleanup`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway import bodies, examples
from gateway.routes.async_tasks import BODY_PROBLEMS
from gateway.routes.replies import CallerHere, described, gateway_of, json_body, json_response, takes_json

router = APIRouter(prefix="/v1/async", tags=["tasks"])

_MOST_BYTES = 4096
_BODY = takes_json(bodies.CLEANUP_REFERENCE, examples.CLEANUP)


@router.post(
    "/cleanup",
    openapi_extra=_BODY,
    responses={200: described(bodies.Forgotten, "Every gateway forgets them within five seconds."), **BODY_PROBLEMS},
)
async def cleanup(request: Request, caller: CallerHere) -> Response:
    """Forget the tenant's tasks that ended long enough ago: from then on they are 410, for good. Unfinished tasks stay."""
    caller.require("admin")
    calls = gateway_of(request).calls
    body = await json_body(request, _MOST_BYTES)
    return json_response(await calls.cleanup.forget(caller, body))
