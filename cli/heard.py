"""What Kafka shows of a deployment: its brokers and topics, and who was heard of last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from cli.parts import Heard, Seen, is_in_doubt
from schemas.topics import catalogue
from streams.settings import KafkaSettings
from wire.clock import wall_ms
from wire.connection import QUICK_RETRIES, client_options
from wire.reading import LogReader, Offsets, Record, log_reader
from wire.topics import verify

# A worker sends its snapshot at least every three seconds.
LISTEN_S = 3.5
_TOPICS_S = 4.0


async def look(kafka: KafkaSettings) -> Seen:
    """Return what Kafka shows now; writes nothing.

    Ages need Kafka's clock. This machine's is taken for it; where that cannot be right, the next record that somebody writes
    tells the time, and when nobody does within 3.5 s, everything is as old as it looks.

    Raises: BrokersUnreachable, TopicsRefused, CredentialsUnusable.
    """
    names = kafka.names
    async with log_reader(kafka, client_id="triage-health") as reader:
        brokers = await _brokers(kafka)
        there = await reader.partitions()
        now_ms, newest = await listen(reader, [each for each in (names.workers, names.gpu_metrics) if each in there])
    differences = await verify(kafka, timeout_s=_TOPICS_S)
    return Seen(
        now_ms=now_ms,
        brokers=brokers,
        topics=len(catalogue(names, partitions=kafka.partitions)),
        differences=[str(each) for each in differences],
        workers=[heard for (topic, _), heard in newest.items() if topic == names.workers],
        gpus=[heard for (topic, _), heard in newest.items() if topic == names.gpu_metrics],
    )


async def listen(reader: LogReader, topics: Iterable[str]) -> tuple[int, dict[tuple[str, str], Heard]]:
    """Return broker time, as well as it can be told, and the newest record of each sender by topic and key."""
    tps = [TopicPartition(topic, 0) for topic in topics]
    newest: dict[tuple[str, str], Heard] = {}
    ends = await reader.ends(tps)
    async for record in reader.read(await reader.starts(tps), ends):
        _keep(newest, record)
    now_ms, newest_ms = wall_ms(), max((each.at_ms for each in newest.values()), default=None)
    if newest_ms is not None and is_in_doubt(now_ms, newest_ms):
        next_record = await _next(reader, ends)
        if next_record is not None:
            _keep(newest, next_record)
        now_ms = max(now_ms, newest_ms) if next_record is None else next_record.timestamp
    return now_ms, newest


def _keep(newest: dict[tuple[str, str], Heard], record: Record) -> None:
    key = (record.key or b"").decode(errors="replace")
    newest[record.topic, key] = Heard(key, record.value, record.timestamp)


async def _next(reader: LogReader, ends: Offsets) -> Record | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LISTEN_S):
            async for record in reader.follow(ends):
                return record
    return None


async def _brokers(kafka: KafkaSettings) -> int:
    admin = AIOKafkaAdminClient(**client_options(kafka, client_id="triage-health") | QUICK_RETRIES)
    try:
        await admin.start()
        return len((await admin.describe_cluster())["brokers"])
    finally:
        await admin.close()
