"""Removes dead letters from the oldest of a partition on, which is all that Kafka can."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from cli.deadletters.auditing import Audit
from cli.deadletters.letters import Prefix, spans
from cli.deadletters.reading import Reader
from cli.deadletters.replaying import opened_producer
from cli.errors import Failed, NotReachable
from cli.lookup import partition_count
from streams.settings import KafkaSettings
from wire.connection import QUICK_RETRIES, client_options


async def purge(reader: Reader, kafka: KafkaSettings, plan: Prefix, *, filters: Mapping[str, str]) -> None:
    """Remove what the plan says. It is on record in the audit topic before the first is removed.

    Raises: Failed when Kafka refuses, BrokersUnreachable, NotReachable.
    """
    await partition_count(reader, kafka.names.audit)
    async with opened_producer(kafka) as producer:
        audit = Audit(producer, kafka.names, "dlq.purge", filters)
        await audit.began({"chosen": len(plan.letters)}, spans(plan.letters))
        error: str | None = "it ended early"
        removed = 0
        try:
            await _delete(kafka, plan.before)
            removed, error = len(plan.letters), None
        except KafkaError as refused:
            error = type(refused).__name__
            raise Failed(f"Kafka does not remove records of {kafka.names.dead_letters}: {error}.") from refused
        finally:
            with contextlib.suppress(NotReachable):
                await audit.ended({"removed": removed}, spans(plan.letters) if removed else {}, error)


async def _delete(kafka: KafkaSettings, before: Mapping[int, int]) -> None:
    topic = kafka.names.dead_letters
    admin = AIOKafkaAdminClient(**client_options(kafka, client_id="triage-dlq") | QUICK_RETRIES)
    try:
        await admin.start()
        await admin.delete_records(
            {TopicPartition(topic, partition): RecordsToDelete(offset) for partition, offset in before.items()}
        )
    finally:
        await admin.close()
