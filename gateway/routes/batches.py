"""Many tasks in one call: `/v1/async/submit-batch` and `/v1/async/batch-status/…`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway import bodies, examples
from gateway.batches import MOST_BYTES
from gateway.ports import Unavailable
from gateway.problems import Problem, problem_of
from gateway.routes.async_tasks import BODY_PROBLEMS, PROBLEMS, accepted
from gateway.routes.replies import (
    CallerHere,
    described,
    gateway_of,
    idempotency_key,
    json_body,
    json_response,
    takes_json,
    told_bytes,
    trace_headers,
)

router = APIRouter(prefix="/v1/async", tags=["tasks"])

_SUBMIT = takes_json(bodies.BATCH_REFERENCE, examples.SUBMIT_BATCH, keyed=True)


@router.post(
    "/submit-batch",
    status_code=202,
    openapi_extra=_SUBMIT,
    responses={202: described(bodies.BatchSubmitted, "What is accepted is durable."), **BODY_PROBLEMS},
)
async def submit_batch(request: Request, caller: CallerHere) -> Response:
    """Hand up to 10,000 requests in, 64 MiB in all. A wrong one is told in `rejected` and does not fail the others.

    After a 503 the same call with the same `Idempotency-Key` writes what is missing.
    """
    gateway = gateway_of(request)
    try:
        caller.require("submit")
        batches = gateway.calls.batches
        async with batches.room(told_bytes(request)):
            key = idempotency_key(request)
            body = await json_body(request, MOST_BYTES)
            answer = await batches.submit(caller, body, trace_headers(request), key)
    except (Problem, Unavailable) as error:
        gateway.metrics.rejected.labels(problem_of(error).kind.name_in_type).inc()
        raise
    return accepted(answer, f"/v1/async/batch-status/{answer.body['batch_id']}")


@router.get(
    "/batch-status/{batch_id}", responses={200: described(bodies.BatchStatus, "How its tasks stand."), **PROBLEMS}
)
async def batch_status(request: Request, batch_id: str, caller: CallerHere) -> Response:
    """Say how the tasks of a batch stand. `total` is how many were accepted, `index` the place in the submitted list."""
    caller.require("read")
    return json_response(await gateway_of(request).calls.batches.status(caller, batch_id))
