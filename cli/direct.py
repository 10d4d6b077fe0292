"""Single tasks straight through Kafka: what the verbs do when no gateway is named."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from aiokafka import TopicPartition

from cli.errors import Failed, NoSuchTask
from cli.explaining import backlog, ended, pending
from cli.heard import listen
from cli.lookup import Ended, Pending, find, first_result, partition_count
from gateway.records import metadata_of
from schemas import headers as header_names
from schemas.codec import encode
from schemas.headers import Headers
from schemas.ids import home, key_of
from schemas.result import Result
from schemas.topics import Lane
from streams.outcome import cancelled, result_headers
from streams.settings import KafkaSettings, ModelSettings
from wire.clock import wall_ms
from wire.connection import BrokersUnreachable
from wire.producing import DurableProducer
from wire.reading import LogReader, log_reader

_SEND_S = 30.0
_NOBODY_S = 10.0


async def submit(
    kafka: KafkaSettings, lane: Lane, task_id: str, value: bytes, *, wait: bool, deadline_s: float | None = None
) -> bytes:
    """Send the request; return where it lies, or with `wait` the record of its outcome.

    Raises: Failed when nobody has ended it for ten seconds after its deadline.
    """
    topic = kafka.names.requests(lane)
    async with log_reader(kafka, client_id="triage-submit") as reader:
        partition = home(task_id, await partition_count(reader, topic))
        results = TopicPartition(kafka.names.results, partition)
        before = await reader.ends([results]) if wait else {}
        offset = await _append(kafka, topic, partition, key_of(task_id), value, ())
        if not wait:
            return orjson.dumps({"task_id": task_id, "topic": topic, "partition": partition, "offset": offset})
        print(f"triage: {task_id} is sent; waiting for its answer", file=sys.stderr)
        try:
            async with asyncio.timeout(None if deadline_s is None else deadline_s + _NOBODY_S):
                async for record in reader.follow(before):
                    if record.key == task_id.encode() and record.value is not None:
                        found: bytes = record.value
                        return found
        except TimeoutError:
            raise Failed(
                f"The deadline of {task_id} passed {_NOBODY_S:g} s ago and nobody ended it: no worker and no gateway runs "
                "(`triage health` shows what does)."
            ) from None
    raise AssertionError("a log that is followed has no end")


async def look(kafka: KafkaSettings, task_id: str, partition: int | None) -> Ended | Pending:
    """Return what is known of a task. Raises: NoSuchTask, Failed, BrokersUnreachable."""
    async with log_reader(kafka, client_id="triage-look") as reader:
        return await _known(reader, kafka, task_id, partition)


async def explain(
    kafka: KafkaSettings, task_id: str, partition: int | None, models: Sequence[ModelSettings]
) -> dict[str, Any]:
    """Return why a task stands where it does, or how it ended. Raises: NoSuchTask, Failed, BrokersUnreachable."""
    async with log_reader(kafka, client_id="triage-explain") as reader:
        found = await _known(reader, kafka, task_id, partition)
        if isinstance(found, Ended):
            return ended(found)
        now_ms, heard = await listen(reader, [kafka.names.workers])
        spans = await backlog(reader, kafka.names)
        return pending(found, heard.values(), spans, kafka.names, models, now_ms=now_ms)


async def cancel(kafka: KafkaSettings, task_id: str, partition: int | None) -> Ended:
    """End a task as cancelled unless it has ended; return its outcome, which is what is first in the log.

    Raises: NoSuchTask, Failed, BrokersUnreachable.
    """
    async with log_reader(kafka, client_id="triage-cancel") as reader:
        found = await _known(reader, kafka, task_id, partition)
        if isinstance(found, Ended):
            return found
        result = cancellation(found, now_ms=wall_ms())
        headers = result_headers(result, header_names.copied(found.headers), None)
        results = TopicPartition(kafka.names.results, found.entry.partition)
        offset = await _append(kafka, results.topic, results.partition, task_id.encode(), encode(result), headers)
        first = await first_result(reader, results, task_id, found.results_end, offset + 1)
    if first is None:
        raise Failed(f"The cancellation of {task_id} is written, but cannot be read yet: `triage status` tells.")
    return first


def cancellation(task: Pending, *, now_ms: int) -> Result:
    """Return the record that ends a task as cancelled.

    `now_ms` is this machine's, since nothing was appended yet that would tell Kafka's; it is not let go behind what is known of
    the task.
    """
    entry = task.entry
    return cancelled(
        entry.task_id,
        entry.tenant,
        entry.lane,
        task.source,
        agent_type=entry.agent_type,
        batch_id=entry.batch_id,
        metadata=metadata_of(task.value),
        attempts=entry.attempts,
        created_at_ms=entry.created_at_ms,
        dispatched_at_ms=entry.started_at_ms,
        now_ms=max(now_ms, entry.appended_ms, entry.started_at_ms or 0),
    )


async def watch(kafka: KafkaSettings, show: Callable[[Any], None]) -> None:
    """Give `show` every record of the results log as it arrives, until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with log_reader(kafka, client_id="triage-watch") as reader:
        count = await partition_count(reader, kafka.names.results)
        tps = [TopicPartition(kafka.names.results, number) for number in range(count)]
        async for record in reader.follow(await reader.ends(tps), stop):
            show(record)


async def _known(reader: LogReader, kafka: KafkaSettings, task_id: str, partition: int | None) -> Ended | Pending:
    found = await find(reader, kafka.names, task_id, partition)
    if found is None:
        where = "on any partition" if partition is None else f"on partition {partition}"
        raise NoSuchTask(f"No task {task_id} is known {where}.")
    return found


async def _append(kafka: KafkaSettings, topic: str, partition: int, key: bytes, value: bytes, headers: Headers) -> int:
    producer = DurableProducer(kafka, client_id="triage-cli")
    try:
        async with asyncio.timeout(_SEND_S):
            await producer.start()
            return await producer.write(topic, partition, key=key, value=value, headers=headers)
    except TimeoutError:
        raise BrokersUnreachable(kafka, f"no acknowledgement within {_SEND_S:g} s") from None
    finally:
        await producer.stop()
