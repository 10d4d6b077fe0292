"""The owner of the idempotent producer, on a real broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import ProducerClosed

from streams.settings import KafkaSettings
from tests.support.kafka import consume, create_topic
from wire.producing import DurableProducer, RecordTooLarge

pytestmark = pytest.mark.kafka


async def test_a_lost_batch_replaces_the_producer_and_nothing_else_is_lost(kafka: str) -> None:
    """A batch that the broker refuses leaves a hole in the partition's sequence, which aiokafka never heals."""
    topic = await create_topic(kafka, config={"max.message.bytes": "2000", "message.timestamp.type": "LogAppendTime"})
    replaced: list[int] = []
    appended_ms: list[int] = []
    producer = DurableProducer(
        KafkaSettings(bootstrap=kafka),
        client_id="test",
        on_appended=appended_ms.append,
        on_replaced=lambda: replaced.append(1),
    )
    await producer.start()
    try:
        assert await producer.write(topic, 0, key=None, value=b"before") == 0
        with pytest.raises(RecordTooLarge):
            await producer.write(topic, 0, key=None, value=b"x" * 5000)
        values = [b"after-%d" % number for number in range(20)]
        offsets = await asyncio.gather(*(producer.write(topic, 0, key=None, value=value) for value in values))
    finally:
        await producer.stop()
    assert [1] == replaced
    assert len(set(offsets)) == 20
    assert {b"before", *values} <= set(await consume(kafka, topic, 21))
    assert min(appended_ms) > 1_700_000_000_000
    with pytest.raises(ProducerClosed):
        await producer.write(topic, 0, key=None, value=b"late")
