"""Where partitions end, as the watchdog is told."""

from __future__ import annotations

import asyncio
import contextlib

from aiokafka import AIOKafkaProducer, TopicPartition

from agents.ends import AskedEnds
from streams.settings import KafkaSettings
from tests.support.mock_cluster import MockCluster


async def test_ends_are_told_while_brokers_answer_and_forgotten_when_they_do_not() -> None:
    with MockCluster(brokers=1) as cluster:
        tp = TopicPartition(cluster.create_topic("t"), 0)
        async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap) as producer:
            await producer.send_and_wait("t", b"a", partition=0)
        ends = AskedEnds(KafkaSettings(bootstrap=cluster.bootstrap), client_id="test", wanted=lambda: [tp])
        async with asyncio.timeout(20):
            await _run_until(ends, {tp: 1})
            cluster.down(1)
            await _run_until(ends, {})


async def _run_until(ends: AskedEnds, told: dict[TopicPartition, int]) -> None:
    running = asyncio.create_task(ends.run())
    while told != ends.now:  # noqa: ASYNC110 - as the watchdog looks
        await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
