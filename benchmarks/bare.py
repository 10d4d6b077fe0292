"""The bare loop that Triage is measured against: consume, POST, produce and await, commit in order. No lanes, batches or retries.

`python -m benchmarks.bare BOOTSTRAP REQUESTS RESULTS GROUP URL IN_FLIGHT`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys

import aiohttp
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.acks import InOrderAcks


async def main(bootstrap: str, requests: str, results: str, group: str, url: str, in_flight: int) -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    consumer = AIOKafkaConsumer(
        requests,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=6000,
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=0)
    slots = asyncio.Semaphore(in_flight)
    acks: dict[TopicPartition, InOrderAcks[int]] = {}
    done: dict[TopicPartition, int] = {}
    async with consumer, producer, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def handle(tp: TopicPartition, offset: int, key: bytes, value: bytes) -> None:
            request = orjson.loads(value)
            body = orjson.dumps({"model": "stub", "messages": request["messages"], "max_tokens": 16})
            async with session.post(url, data=body) as response:
                answer = orjson.loads(await response.read())
            slots.release()
            result = orjson.dumps({"task_id": request.get("task_id"), "answer": answer["choices"][0]["message"]})
            await producer.send_and_wait(results, result, key=key, partition=tp.partition)
            for released in acks[tp].complete(offset):
                done[tp] = released + 1

        async def commit() -> None:
            while True:
                await asyncio.sleep(1)
                if done:
                    await consumer.commit(dict(done))

        committing = asyncio.create_task(commit())
        running: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            for tp, records in (await consumer.getmany(timeout_ms=200, max_records=500)).items():
                tracker = acks.setdefault(tp, InOrderAcks())
                for record in records:
                    await slots.acquire()
                    tracker.add(record.offset, record.offset)
                    work = asyncio.create_task(handle(tp, record.offset, record.key, record.value))
                    running.add(work)
                    work.add_done_callback(running.discard)
        await asyncio.gather(*running, return_exceptions=True)
        committing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await committing


if __name__ == "__main__":
    _, bootstrap, requests, results, group, url, in_flight = sys.argv
    uvloop.run(main(bootstrap, requests, results, group, url, int(in_flight)))
