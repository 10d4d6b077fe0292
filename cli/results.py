"""How results look on a terminal."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson
import typer

from cli.errors import FAILED, OK, Failed
from schemas.codec import DecodeError, decode
from schemas.result import Outcome, Result

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
    try:
        found = decode(Result, value)
    except DecodeError as error:
        raise Failed(f"The record in the results log is not a result: {error.detail}.") from None
    if as_json:
        typer.echo(value)
    if found.outcome is not Outcome.COMPLETED:
        told = f"{found.error.type.value}: {found.error.detail}" if found.error else "no reason is given"
        print(f"triage: {found.task_id} {found.outcome.value}: {told}", file=sys.stderr)
        return FAILED
    if not as_json:
        typer.echo(_answer(found))
    return OK


def _answer(result: Result) -> str:
    output = result.output
    if output is None:
        return ""
    if output.content is None and output.tool_calls:
        return orjson.dumps(output.tool_calls).decode()
    return output.content or output.refusal or ""
