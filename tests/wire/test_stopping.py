"""A consumer that will not stop by itself is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.support.kafka import fresh_name
from wire import reading
from wire.reading import stop_consumer

pytestmark = pytest.mark.kafka


async def test_a_consumer_whose_fetch_task_lost_its_cancellation_is_stopped(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_STOP_AGAIN_S", 0.05)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(fresh_name("none"), 0)])
    fetcher: Any = consumer._fetcher
    fetcher._fetch_task.cancel()
    lost = asyncio.Event()

    async def deaf_once() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost.set()
        await asyncio.Event().wait()

    fetcher._fetch_task = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)
    await asyncio.wait_for(stop_consumer(consumer), 10)
    assert lost.is_set()


async def test_a_consumer_whose_failed_fetch_waits_for_its_next_try_is_stopped(kafka: str) -> None:
    """Its cancellation would come out as that of who stops the consumer, and the connections would stay."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(fresh_name("none"), 0)])
    await consumer.getmany(timeout_ms=100)
    client: Any = consumer._client
    assert [] != [each for each in client._conns.values() if each.connected()]
    fetch = asyncio.create_task(asyncio.sleep(60))
    consumer._fetcher._pending_tasks.add(fetch)
    await asyncio.wait_for(stop_consumer(consumer), 10)
    assert fetch.cancelled()
    assert [] == [each for each in client._conns.values() if each.connected()]
