"""How results and standings look on a terminal."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import orjson
import typer

from cli.errors import FAILED, OK, Failed
from cli.lookup import Ended, Pending
from gateway.finished import Finished
from gateway.rendering import finished_status, result_body, rfc3339, unfinished_status, was_before
from schemas.codec import DecodeError, decode
from schemas.result import Outcome, Result
from streams.estimating import SURE

_REMEMBERED_IDS = 10_000


class Watched:
    """Prints each task's outcome once; a later record of a task (sent again, or late) changes nothing and is not shown."""

    def __init__(self, echo: Callable[[Any], None], *, as_json: bool) -> None:
        self._echo, self._as_json = echo, as_json
        self._seen: OrderedDict[tuple[bytes, int], None] = OrderedDict()

    def __call__(self, record: Any) -> None:
        key = (record.key, record.partition)
        if record.value is None or key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED_IDS:
            self._seen.popitem(last=False)
        if self._as_json:
            self._echo(record.value)
        else:
            try:
                self._echo(line(decode(Result, record.value)))
            except DecodeError:
                self._echo(f"{record.partition}/{record.offset}: not a result of Triage's")
        sys.stdout.flush()


def line(result: Result) -> str:
    """Return one line about a result: task_id, lane, outcome, model and backend, milliseconds; - where there is none."""
    timing = result.timing
    known = [part for part in (timing.queue_ms, timing.inference_ms) if part is not None]
    place = "cache" if result.cached else "/".join(filter(None, (result.model, result.backend))) or "-"
    took = f"{sum(known):.0f} ms" if known else "-"
    return f"{result.task_id}  {result.priority.value:8}  {result.outcome.value:9}  {place}  {took}"


def show(value: bytes, *, as_json: bool) -> int:
    """Print the answer in a result record, or why there is none on stderr; return the exit code."""
    found = _decoded(value)
    if as_json:
        typer.echo(value)
    if found.outcome is not Outcome.COMPLETED:
        told = f"{found.error.type.value}: {found.error.detail}" if found.error else "no reason is given"
        print(f"triage: {found.task_id} {found.outcome.value}: {told}", file=sys.stderr)
        return FAILED
    if not as_json:
        typer.echo(_answer(found))
    return OK


def status_body(found: Ended | Pending) -> dict[str, Any]:
    """Return the gateway's status body of a task, and besides: `source`, the place of its request, and `retry`.

    `retry` says on which topic it waits for another try, and until when; None when it does not.
    """
    if isinstance(found, Pending):
        tried = found.next_try
        retry = tried and {"topic": tried.topic, "not_before": rfc3339(tried.not_before_ms)}
        return {**unfinished_status(found.entry, None), "source": asdict(found.source), "retry": retry}
    record = found.record
    body = result_body(record.value)
    return {**finished_status(row_of(found), body), "source": body.get("source"), "retry": None}


def row_of(found: Ended) -> Finished:
    """Return an outcome as a gateway's view keeps it. Raises: Failed when it is no result."""
    record, result = found.record, _decoded(found.record.value)
    return Finished(
        task_id=result.task_id,
        partition=record.partition,
        tenant=result.tenant,
        outcome=result.outcome,
        lane=result.priority,
        offset=record.offset,
        at_ms=record.timestamp,
        batch_id=result.batch_id,
    )


def status_lines(body: dict[str, Any]) -> list[str]:
    """Return a status as lines for people; what is not known has none."""
    source, retry, error, estimate = (body.get(name) or {} for name in ("source", "retry", "error", "estimate"))
    rows = {
        "lane": body.get("priority"),
        "place": source and f"partition {source.get('partition')}, offset {source.get('offset')}",
        "agent type": body.get("agent_type"),
        "batch": body.get("batch_id"),
        "created": body.get("created_at"),
        "started": body.get("started_at"),
        "finished": body.get("finished_at"),
        "attempts": str(body.get("attempts") or 0),
        "next try": retry and f"not before {retry.get('not_before')}, on {retry.get('topic')}",
        "position": body.get("position"),
        "starts": estimate and wait_told(estimate),
        "error": error and f"{error.get('type')}: {error.get('detail')}",
    }
    shown = [f"  {name:11} {value}" for name, value in rows.items() if value]
    return [f"{body.get('task_id')} is {body.get('status')}", *shown]


def wait_told(estimate: Mapping[str, Any]) -> str:
    """Return an estimate in words."""
    low_s, high_s = (_seconds(estimate.get(name)) for name in ("low_s", "high_s"))
    sure = estimate.get("confidence") or 0
    doubt = "" if sure >= SURE else ", a guess from little"
    return f"in about {_seconds(estimate.get('wait_s'))} ({low_s} to {high_s}{doubt})"


def _seconds(value: object) -> str:
    return f"{value:.1f} s" if isinstance(value, int | float) else "?"


def explained_lines(body: dict[str, Any]) -> list[str]:
    """Return an explanation as lines for people; what is not known has none."""
    estimate, error, routing = (body.get(name) or {} for name in ("estimate", "error", "routing"))
    position, tokens = body.get("position"), body.get("tokens_ahead")
    rows = {
        "lane": body.get("lane"),
        "gate": body.get("gate"),
        "position": position and f"{position}, {tokens} tokens before it",
        "starts": estimate and wait_told(estimate),
        "dispatched": body.get("dispatched_at"),
        "finished": body.get("finished_at"),
        "backend": body.get("backend"),
        "routing": routing.get("reason"),
        "error": error and f"{error.get('type')}: {error.get('detail')}",
    }
    lines = [f"{body.get('task_id')} is {body.get('status')}. {body.get('reason')}"]
    lines += [f"  {name:11} {value}" for name, value in rows.items() if value]
    considered = body.get("considered") or []
    for number, each in enumerate(considered):
        score, why_not = each.get("score"), each.get("why_not")
        verdict = f"score {score:.2f}" if score is not None else f"no: {why_not}"
        lines.append(f"  {'' if number else 'considered':11} {each.get('backend')} with {each.get('model')}: {verdict}")
    return lines


def cancelled_body(found: Ended) -> dict[str, Any]:
    """Return what a cancellation came to: the outcome, and what the task was before it if that is `cancelled`."""
    result = _decoded(found.record.value)
    was = was_before(result_body(found.record.value)) if result.outcome is Outcome.CANCELLED else None
    return {"task_id": result.task_id, "status": result.outcome.value, "was": was}


def show_cancelled(body: dict[str, Any], *, as_json: bool) -> int:
    """Print what a cancellation came to, and return the exit code: 0 when the task is cancelled now, however it came about."""
    if as_json:
        typer.echo(orjson.dumps(body))
    if body.get("status") != Outcome.CANCELLED.value:
        print(f"triage: {body.get('task_id')} is not cancelled: its outcome is {body.get('status')}", file=sys.stderr)
        return FAILED
    if not as_json:
        typer.echo(f"{body.get('task_id')} is cancelled; it was {body.get('was')}")
    return OK


def _decoded(value: bytes) -> Result:
    try:
        return decode(Result, value)
    except DecodeError as error:
        raise Failed(f"The record in the results log is not a result: {error.detail}.") from None


def _answer(result: Result) -> str:
    output = result.output
    if output is None:
        return ""
    if output.content is None and output.tool_calls:
        return orjson.dumps(output.tool_calls).decode()
    return output.content or output.refusal or ""
