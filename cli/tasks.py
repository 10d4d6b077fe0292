"""`triage submit`, `result`, `status`, `explain`, `cancel` and `watch`: single tasks, straight through Kafka or through a gateway."""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cli.errors import Failed, NoSuchTask
from schemas.topics import Lane

if TYPE_CHECKING:
    from streams.settings import KafkaSettings, Settings

Config: TypeAlias = Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")]
Gateway: TypeAlias = Annotated[str | None, typer.Option(metavar="URL", help="Through this gateway, not Kafka.")]
Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
Partition: TypeAlias = Annotated[int | None, typer.Option(min=0, help="Look on this partition number alone.")]

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def submit(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="What to ask; - reads it from stdin.")],
    priority: Annotated[str, typer.Option(metavar="|".join(Lane), help="The lane.")] = Lane.NORMAL.value,
    tenant: Annotated[str | None, typer.Option(help="Whose request it is; absent: default.")] = None,
    model: Annotated[str | None, typer.Option(help="Absent: routing chooses.")] = None,
    agent_type: Annotated[str | None, typer.Option(help="Routing takes a model that is set up for it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; absent: 256.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="30s", help="For the answer, from now: 500ms, 30s, 5m.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    gateway: Gateway = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: the place or the gateway's answer, with --wait the result.")
    ] = False,
    config: Config = None,
) -> None:
    """Send a request and print its task_id, or with --wait its answer.

    With --wait: exit code 0 when it completed, 1 for any other outcome.
    """
    lane, deadline_ms = lane_of(priority), duration_ms(deadline)
    content = sys.stdin.read() if text == "-" else text
    fields = _fields(content, tenant, model, agent_type, max_tokens)
    if gateway is not None:
        _submit_to(gateway, lane, fields, deadline_ms, wait=wait, as_json=as_json)
        return
    from cli.direct import submit as send
    from cli.results import show

    task_id = f"cli-{uuid.uuid4().hex}"
    value = _request(task_id, fields, deadline_ms)
    due_s = None if deadline_ms is None else deadline_ms / 1000
    sent = asyncio.run(send(kafka_of(config), lane, task_id, value, wait=wait, deadline_s=due_s))
    if wait:
        raise typer.Exit(show(sent, as_json=as_json))
    typer.echo(sent if as_json else task_id)


def result(
    task_id: Id,
    partition: Partition = None,
    gateway: Gateway = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result record.")] = False,
    config: Config = None,
) -> None:
    """Print a task's answer, read from the results log.

    Exit code 0 when it completed, 1 for any other outcome or while it is unfinished, 4 when nothing is known of it.
    """
    from cli.results import show

    _check_id(task_id)
    if gateway is None:
        from cli.direct import look
        from cli.lookup import Ended
        from gateway.rendering import state_of

        found = asyncio.run(look(kafka_of(config), task_id, partition))
        if isinstance(found, Ended):
            raise typer.Exit(show(found.record.value, as_json=as_json))
        raise _unfinished(task_id, state_of(found.entry))
    import orjson

    from cli.remote import Gateway as Remote

    _refuse_partition(partition)
    has_ended, body = Remote(gateway).result(task_id)
    if has_ended:
        raise typer.Exit(show(body, as_json=as_json))
    raise _unfinished(task_id, str(orjson.loads(body).get("status")))


def status(
    task_id: Id,
    partition: Partition = None,
    gateway: Gateway = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, as the gateway's status route has it.")
    ] = False,
    config: Config = None,
) -> None:
    """Say where a task stands: queued, processing, or its outcome; times are UTC.

    Exit code 0 when it is known, 4 when nothing is known of it.
    """
    import orjson

    _check_id(task_id)
    if gateway is None:
        from cli.direct import look
        from cli.results import status_body, status_lines

        body = status_body(asyncio.run(look(kafka_of(config), task_id, partition)))
    else:
        from cli.remote import Gateway as Remote
        from cli.results import status_lines

        _refuse_partition(partition)
        body = Remote(gateway).status(task_id)
    typer.echo(orjson.dumps(body) if as_json else "\n".join(status_lines(body)))


def explain(
    task_id: Id,
    partition: Partition = None,
    gateway: Gateway = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, as the gateway's explain route has it.")
    ] = False,
    config: Config = None,
) -> None:
    """Say what holds a task, how much is before it and when it starts, or how it ended.

    Exit code 0 when it is known, 4 when nothing is known of it.
    """
    import orjson

    from cli.results import explained_lines

    _check_id(task_id)
    if gateway is None:
        from cli.direct import explain as look_into

        settings = _settings(config)
        body = asyncio.run(look_into(settings.kafka, task_id, partition, settings.models))
    else:
        from cli.remote import Gateway as Remote

        _refuse_partition(partition)
        body = Remote(gateway).explain(task_id)
    typer.echo(orjson.dumps(body) if as_json else "\n".join(explained_lines(body)))


def cancel(
    task_id: Id,
    partition: Partition = None,
    gateway: Gateway = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: task_id, status, was.")] = False,
    config: Config = None,
) -> None:
    """End a task as cancelled, unless it has ended: the first record in the results log decides.

    Exit code 0 when it is cancelled, also by an earlier call; 1 when it had another outcome; 4 when nothing is known of it.
    """
    from cli.results import cancelled_body, show_cancelled

    _check_id(task_id)
    if gateway is None:
        from cli.direct import cancel as end

        body = cancelled_body(asyncio.run(end(kafka_of(config), task_id, partition)))
    else:
        from cli.remote import Gateway as Remote

        _refuse_partition(partition)
        body = Remote(gateway).cancel(task_id)
    raise typer.Exit(show_cancelled(body, as_json=as_json))


def watch(
    gateway: Gateway = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result record, a line each.")] = False,
    config: Config = None,
) -> None:
    """Print results as they arrive: task_id, lane, outcome, model and backend, milliseconds. Ctrl-C ends it."""
    if gateway is not None:
        raise typer.BadParameter(
            "a gateway has no route for everybody's results; leave it out to watch through Kafka.",
            param_hint="--gateway",
        )
    from cli.direct import watch as follow
    from cli.results import Watched

    kafka = kafka_of(config)
    show = Watched(typer.echo, as_json=as_json)
    try:
        asyncio.run(follow(kafka, show))
    except BrokenPipeError:
        return  # the reader of our output has gone, and `cli.main.run` deals with what is left of it


# What is asked


def kafka_of(config: Path | None) -> KafkaSettings:
    return _settings(config).kafka


def _settings(config: Path | None) -> Settings:
    from cli.configuration import load
    from wire.logs import configure

    settings = load(config).settings
    configure("console", "error")
    return settings


def _check_id(task_id: str) -> None:
    """Refuse what no task can be called: as unknown as any other id that nobody has. Raises: NoSuchTask."""
    from schemas.ids import is_task_id

    if not is_task_id(task_id):
        raise NoSuchTask("That is no task_id: they are 1 to 128 of the characters A-Z a-z 0-9 . _ : -")


def _refuse_partition(partition: int | None) -> None:
    if partition is not None:
        raise typer.BadParameter("a gateway looks on every partition; leave it out.", param_hint="--partition")


def _unfinished(task_id: str, state: str) -> Failed:
    told = "a backend was given it" if state == "processing" else "it waits on its lane"
    return Failed(f"{task_id} is unfinished ({state}): {told}.")


def lane_of(priority: str) -> Lane:
    name = priority.lower()
    try:
        return Lane(name)
    except ValueError:
        near = get_close_matches(name, list(Lane), n=1)
        told = f"; did you mean {near[0]}?" if near else "."
        raise typer.BadParameter(f"{priority!r} is none of {', '.join(Lane)}{told}", param_hint="--priority") from None


def duration_ms(text: str | None) -> int | None:
    from streams.deadlines import LONGEST_MS

    if text is None:
        return None
    parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)", text.strip())
    if parts is None:
        raise typer.BadParameter(f"{text!r} is no duration such as 500ms, 30s or 5m.", param_hint="--deadline")
    duration_ms = round(float(parts[1]) * _UNITS_MS[parts[2]])
    if not 0 < duration_ms <= LONGEST_MS:
        raise typer.BadParameter("must be more than nothing and at most 71h.", param_hint="--deadline")
    return duration_ms


def _fields(
    content: str, tenant: str | None, model: str | None, agent_type: str | None, max_tokens: int | None
) -> dict[str, Any]:
    """Return the fields of the request that were given."""
    fields = {
        "tenant": tenant,
        "agent_type": agent_type,
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "parameters": None if max_tokens is None else {"max_tokens": max_tokens},
    }
    return {name: value for name, value in fields.items() if value is not None}


def _request(task_id: str, fields: dict[str, Any], deadline_ms: int | None) -> bytes:
    """Return the request's record. Raises: typer.BadParameter for what a worker would not take."""
    from schemas.codec import DecodeError, decode_request
    from wire.clock import wall_ms

    created_at_ms = wall_ms()  # only its distance to the deadline counts
    due = {} if deadline_ms is None else {"deadline_at_ms": created_at_ms + deadline_ms}
    value = _encoded({"task_id": task_id, **fields, "created_at_ms": created_at_ms, **due})
    try:
        decode_request(value)
    except DecodeError as error:
        raise typer.BadParameter(error.detail) from None
    return value


def _encoded(fields: dict[str, Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(fields)
    except TypeError:
        raise typer.BadParameter("the text is not UTF-8.") from None


def _submit_to(
    url: str, lane: Lane, fields: dict[str, Any], deadline_ms: int | None, *, wait: bool, as_json: bool
) -> None:
    import orjson

    from cli.remote import Gateway as Remote
    from cli.results import show

    if "tenant" in fields:
        raise typer.BadParameter("the gateway knows whose the request is from who calls.", param_hint="--tenant")
    due = {} if deadline_ms is None else {"timeout_s": deadline_ms / 1000}
    remote = Remote(url)
    sent = remote.submit(_encoded({**fields, "priority": lane.value, **due}))
    task_id = str(sent.get("task_id"))
    if not wait:
        typer.echo(orjson.dumps(sent) if as_json else task_id)
        return
    print(f"triage: {task_id} is sent; waiting for its answer", file=sys.stderr)
    raise typer.Exit(show(remote.answer(task_id), as_json=as_json))
