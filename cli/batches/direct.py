"""A batch straight through Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from aiokafka import TopicPartition

from cli.batches.lines import Line
from cli.batches.output import Output
from cli.lookup import partition_count
from schemas.headers import CONTENT_TYPE
from schemas.topics import Lane
from streams.settings import KafkaSettings
from wire.clock import wall_ms
from wire.producing import DurableProducer
from wire.reading import Record, log_reader

_AT_ONCE = 256


async def run(
    kafka: KafkaSettings,
    lane: Lane,
    lines: Mapping[str, Line],
    output: Output,
    deadline_ms: int | None,
    show: Callable[[], None],
) -> None:
    """Ask what has no outcome in the results log, and write each outcome to `output` as it comes, until all are there.

    Raises: BrokersUnreachable, Failed, WriteRefused.
    """
    async with log_reader(kafka, client_id="triage-batch") as reader:
        count = await partition_count(reader, kafka.names.requests(lane))
        left = dict(lines)
        places = [
            TopicPartition(kafka.names.results, number) for number in {each.partition(count) for each in left.values()}
        ]
        ends = await reader.ends(places)
        async for record in reader.read(await reader.starts(places), ends):
            _take(record, count, left, output)
        show()
        if not left:
            return
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(_send(kafka, lane, list(left.values()), count, deadline_ms))
            async for record in reader.follow(ends, stop):
                if _take(record, count, left, output):
                    show()
                if not left:
                    stop.set()


def _take(record: Record, count: int, left: dict[str, Line], output: Output) -> bool:
    """Write a record of the results log that is the first of one of ours, on the partition where it is looked for."""
    line = left.get((record.key or b"").decode(errors="replace"))
    if line is None or record.value is None or line.partition(count) != record.partition:
        return False
    del left[line.task_id]
    output.result(line, record.value)
    return True


async def _send(kafka: KafkaSettings, lane: Lane, lines: list[Line], count: int, deadline_ms: int | None) -> None:
    producer = DurableProducer(kafka, client_id="triage-batch")
    await producer.start()
    try:
        left = iter(lines)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(lines))):
                group.create_task(_send_some(producer, kafka.names.requests(lane), left, count, deadline_ms))
    finally:
        await producer.stop()


async def _send_some(
    producer: DurableProducer, topic: str, left: Iterator[Line], count: int, deadline_ms: int | None
) -> None:
    for line in left:
        value = line.record(wall_ms(), deadline_ms)  # only its distance to the deadline counts
        await producer.write(topic, line.partition(count), key=line.key, value=value, headers=[CONTENT_TYPE])
