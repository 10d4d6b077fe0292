"""`triage submit`, `result` and `watch`: single tasks, straight through Kafka."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from cli.errors import Failed, NoSuchTask
from schemas.topics import Lane

if TYPE_CHECKING:
    from cli.results import Watched
    from streams.settings import KafkaSettings

Config: TypeAlias = Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")]
Gateway: TypeAlias = Annotated[str | None, typer.Option(metavar="URL", help="Through this gateway, not Kafka.")]
Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_SEND_S = 30.0


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
        bool, typer.Option("--json", help="One JSON object: the place, with --wait the result.")
    ] = False,
    config: Config = None,
) -> None:
    """Send a request and print its task_id, or with --wait its answer.

    With --wait: exit code 0 when it completed, 1 for any other outcome.
    """
    from cli.results import show
    from schemas.codec import DecodeError, decode_request

    lane = _lane(priority)
    task_id = f"cli-{uuid.uuid4().hex}"
    content = sys.stdin.read() if text == "-" else text
    value = _request(task_id, content, tenant, model, agent_type, max_tokens, _duration_ms(deadline))
    try:
        decode_request(value)
    except DecodeError as error:
        raise typer.BadParameter(error.detail) from None
    kafka = _kafka(config, gateway)
    sent = asyncio.run(_submit(kafka, lane, task_id, value, wait=wait))
    if wait:
        raise typer.Exit(show(sent, as_json=as_json))
    typer.echo(sent if as_json else task_id)


def result(
    task_id: Id,
    partition: Annotated[int | None, typer.Option(min=0, help="Look on this partition number alone.")] = None,
    gateway: Gateway = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result record.")] = False,
    config: Config = None,
) -> None:
    """Print a task's answer, read from the results log.

    Exit code 0 when it completed, 1 for any other outcome or while it is unfinished, 4 when nothing is known of it.
    """
    from cli.results import show
    from schemas.ids import is_task_id

    if not is_task_id(task_id):
        raise NoSuchTask("That is no task_id: they are 1 to 128 of the characters A-Z a-z 0-9 . _ : -")
    value = asyncio.run(_result(_kafka(config, gateway), task_id, partition))
    raise typer.Exit(show(value, as_json=as_json))


def watch(
    gateway: Gateway = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result record, a line each.")] = False,
    config: Config = None,
) -> None:
    """Print results as they arrive: task_id, lane, outcome, model and backend, milliseconds. Ctrl-C ends it."""
    from cli.results import Watched

    kafka = _kafka(config, gateway)
    show = Watched(typer.echo, as_json=as_json)
    try:
        asyncio.run(_watch(kafka, show))
    except BrokenPipeError:
        return  # the reader of our output has gone, and `cli.main.run` deals with what is left of it


# What is asked


def _kafka(config: Path | None, gateway: str | None) -> KafkaSettings:
    from cli.configuration import load
    from wire.logs import configure

    if gateway is not None:
        raise Failed("--gateway is not there yet: leave it out to go straight to Kafka.")
    settings = load(config).settings
    configure("console", "error")
    return settings.kafka


def _lane(priority: str) -> Lane:
    try:
        return Lane(priority.lower())
    except ValueError:
        names = ", ".join(Lane)
        raise typer.BadParameter(f"{priority!r} is none of {names}.", param_hint="--priority") from None


def _duration_ms(text: str | None) -> int | None:
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


def _request(
    task_id: str,
    content: str,
    tenant: str | None,
    model: str | None,
    agent_type: str | None,
    max_tokens: int | None,
    deadline_ms: int | None,
) -> bytes:
    import orjson

    from wire.clock import wall_ms

    created_at_ms = wall_ms()  # only its distance to the deadline counts
    fields = {
        "task_id": task_id,
        "tenant": tenant,
        "agent_type": agent_type,
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "parameters": None if max_tokens is None else {"max_tokens": max_tokens},
        "created_at_ms": created_at_ms,
        "deadline_at_ms": None if deadline_ms is None else created_at_ms + deadline_ms,
    }
    try:
        return orjson.dumps({name: value for name, value in fields.items() if value is not None})
    except TypeError:
        raise typer.BadParameter("the text is not UTF-8.") from None


async def _submit(kafka: KafkaSettings, lane: Lane, task_id: str, value: bytes, *, wait: bool) -> bytes:
    """Send the request; return where it lies, or with `wait` the record of its outcome."""
    import orjson
    from aiokafka import TopicPartition

    from cli.lookup import partition_count
    from schemas.ids import home, key_of
    from wire.connection import BrokersUnreachable
    from wire.producing import DurableProducer
    from wire.reading import log_reader

    topic = kafka.names.requests(lane)
    async with log_reader(kafka, client_id="triage-submit") as reader:
        partition = home(task_id, await partition_count(reader, topic))
        results = TopicPartition(kafka.names.results, partition)
        before = await reader.ends([results]) if wait else {}
        producer = DurableProducer(kafka, client_id="triage-submit")
        try:
            async with asyncio.timeout(_SEND_S):
                await producer.start()
                offset = await producer.write(topic, partition, key=key_of(task_id), value=value)
        except TimeoutError:
            raise BrokersUnreachable(kafka, f"no acknowledgement within {_SEND_S:g} s") from None
        finally:
            await producer.stop()
        if not wait:
            return orjson.dumps({"task_id": task_id, "topic": topic, "partition": partition, "offset": offset})
        print(f"triage: {task_id} is sent; waiting for its answer", file=sys.stderr)
        async for record in reader.follow(before):
            if record.key == task_id.encode() and record.value is not None:
                found: bytes = record.value
                return found
    raise AssertionError("a log that is followed has no end")


async def _result(kafka: KafkaSettings, task_id: str, partition: int | None) -> bytes:
    from cli.lookup import Standing, find_result, standing
    from wire.reading import log_reader

    async with log_reader(kafka, client_id="triage-result") as reader:
        found = await find_result(reader, kafka.names, task_id, partition)
        if found is not None:
            return found
        stands = await standing(reader, kafka.names, task_id, partition)
    if stands is None:
        where = "on any partition" if partition is None else f"on partition {partition}"
        raise NoSuchTask(f"No task {task_id} is known {where}.")
    told = "a backend was given it" if stands is Standing.PROCESSING else "it waits on its lane"
    raise Failed(f"{task_id} is unfinished ({stands.value}): {told}.")


async def _watch(kafka: KafkaSettings, show: Watched) -> None:
    from aiokafka import TopicPartition

    from cli.lookup import partition_count
    from wire.reading import log_reader

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with log_reader(kafka, client_id="triage-watch") as reader:
        count = await partition_count(reader, kafka.names.results)
        tps = [TopicPartition(kafka.names.results, number) for number in range(count)]
        async for record in reader.follow(await reader.ends(tps), stop):
            show(record)
