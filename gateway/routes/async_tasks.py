"""Tasks over HTTP: `/v1/async/…`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from gateway import bodies, examples
from gateway.ports import Unavailable
from gateway.problems import Problem, problem_of
from gateway.routes.replies import (
    CallerHere,
    described,
    gateway_of,
    idempotency_key,
    json_body,
    json_response,
    takes_json,
    tasks_of,
    trace_headers,
)
from gateway.tasks import Answer
from schemas.topics import Lane

router = APIRouter(prefix="/v1/async", tags=["tasks"])


def accepted(answer: Answer, place: str) -> Response:
    """Return the response to a call that was taken, now or before; `place` is where to look next."""
    replayed = {"Idempotent_Replayed": "true"} if answer.replayed else {}
    return json_response(answer.body, answer.status, Location=place, Retry_After=_POLL_AFTER_S, **replayed)


LONGEST_WAIT_S = 60
_POLL_AFTER_S = "1"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    403: described(bodies.ProblemBody, "The token lacks the scope."),
    404: described(bodies.ProblemBody, "Unknown, or another tenant's."),
    410: described(bodies.ProblemBody, "Past its retention, or forgotten by a cleanup."),
    503: described(bodies.ProblemBody, "Kafka is away or the view has not caught up; come back after Retry-After."),
}
BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: described(bodies.ProblemBody, "Not JSON."),
    403: PROBLEMS[403],
    413: described(bodies.ProblemBody, "The body, or the record to be written, is too large."),
    415: described(bodies.ProblemBody, "Not application/json."),
    422: described(bodies.ProblemBody, "A field is not what it must be."),
    503: described(
        bodies.ProblemBody,
        "Not taken, or not known whether it was (see `type`). That of `deadline-infeasible` has `position` and `estimate`.",
    ),
}
_SUBMIT = takes_json(bodies.SUBMIT_REFERENCE, examples.SUBMIT, keyed=True)


@router.post(
    "/submit",
    status_code=202,
    openapi_extra=_SUBMIT,
    responses={
        202: described(bodies.Submitted, "The request is durable."),
        409: described(bodies.ProblemBody, "The body's `task_id` is taken by another task."),
        **BODY_PROBLEMS,
    },
)
async def submit(request: Request, caller: CallerHere) -> Response:
    """Hand a request in. 202 means that Kafka has it, and that it ends in exactly one outcome.

    With an `Idempotency-Key`, or a `task_id` of your own, the same call again is the same task again (header `Idempotent-Replayed`).
    """
    gateway = gateway_of(request)
    try:
        caller.require("submit")
        gateway.tasks.require_room()
        key = idempotency_key(request)
        body = await json_body(request, gateway.settings.gateway.max_body_bytes)
        answer = await gateway.tasks.submit(caller, body, trace_headers(request), key)
    except (Problem, Unavailable) as error:
        gateway.metrics.rejected.labels(problem_of(error).kind.name_in_type).inc()
        raise
    if not answer.replayed:
        gateway.metrics.accepted[Lane(answer.body["priority"])].inc()
    return accepted(answer, answer.body["links"]["status"])


@router.get("/status/{task_id}", responses={200: described(bodies.Status, "Where it stands."), **PROBLEMS})
async def status(request: Request, task_id: str, caller: CallerHere) -> Response:
    """Say where a task stands."""
    caller.require("read")
    return json_response(await tasks_of(request).status(caller, task_id))


@router.get(
    "/explain/{task_id}", responses={200: described(bodies.Explained, "Why it waits, or how it ended."), **PROBLEMS}
)
async def explain(request: Request, task_id: str, caller: CallerHere) -> Response:
    """Say in words what holds a task, how much is before it, and which backends were considered; or how it ended."""
    caller.require("read")
    return json_response(await tasks_of(request).explain(caller, task_id))


@router.get(
    "/result/{task_id}",
    responses={
        200: described(bodies.ResultBody, "The result record."),
        202: described(bodies.Status, "Not finished yet: its status."),
        422: described(bodies.ProblemBody, "`wait` is not a number of seconds from 0 to 60."),
        **PROBLEMS,
    },
)
async def result(
    request: Request,
    task_id: str,
    caller: CallerHere,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="Seconds to wait for it.")] = 0,
) -> Response:
    """Return a task's result, waiting for it when asked to."""
    caller.require("read")
    answer = await tasks_of(request).result(caller, task_id, wait)
    headers = {"Retry_After": _POLL_AFTER_S} if answer.status == 202 else {}
    return json_response(answer.body, answer.status, **headers)


@router.delete(
    "/cancel/{task_id}",
    responses={
        200: described(bodies.Cancelled, "It ended as cancelled."),
        202: described(bodies.Status, "The cancellation is written; the log has not answered in 2 s."),
        409: described(bodies.ProblemBody, "It had ended otherwise: `outcome`."),
        **PROBLEMS,
    },
)
async def cancel(request: Request, task_id: str, caller: CallerHere) -> Response:
    """Cancel a task; what is first in the results log is what it ended as."""
    caller.require("cancel")
    answer = await tasks_of(request).cancel(caller, task_id)
    return json_response(answer.body, answer.status)


@router.get(
    "/stats",
    responses={200: described(bodies.Stats, "The queue's figures."), 403: PROBLEMS[403], 503: PROBLEMS[503]},
)
async def stats(request: Request, caller: CallerHere) -> Response:
    """Count tasks and tell rates; rates, durations and cache lookups are of the last five minutes."""
    caller.require("read")
    return json_response(tasks_of(request).stats())
