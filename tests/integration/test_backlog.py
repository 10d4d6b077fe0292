"""A backlog stays in Kafka: however much is queued in a lane, the worker's memory stays flat, and the other lanes go on."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.topics import Lane
from streams.settings import LanesSettings
from tests.support.scripted import Body, Reply, ScriptedServer, hang
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka

SLOTS = 8
MIB = 1 << 20
BOUNDS = LanesSettings()[Lane.LOW]


def stuck(body: Body) -> Reply | None:
    return hang if str(body["messages"][-1]["content"]).startswith("stuck") else None


def rss_bytes(worker: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@asynccontextmanager
async def a_worker(stack: Stack, server: ScriptedServer) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A worker whose calls for the low lane never end, and where its metrics are."""
    server.fault_for = stuck
    worker = stack.spawn_worker()
    assert worker.stdout is not None
    ready = json.loads(await asyncio.to_thread(worker.stdout.readline))
    yield worker, f"http://127.0.0.1:{ready['metrics_port']}/metrics"


async def fill(stack: Stack, first: int, count: int, text: str) -> None:
    """Append requests to the low lane."""
    topic = stack.names.requests(Lane.LOW)
    async with stack.producer(linger_ms=20, max_batch_size=512 * 1024, max_request_size=2 * MIB) as producer:
        for start in range(first, first + count, 5000):
            sends = [
                await producer.send(topic, request(f"stuck {n} {text}", cache={"mode": "bypass"}), key=b"%d" % n)
                for n in range(start, min(start + 5000, first + count))
            ]
            await asyncio.gather(*sends)


async def metric(url: str, name: str, lane: Lane) -> float:
    async with httpx.AsyncClient() as client:
        lines = (await client.get(url)).text.splitlines()
    found = [line for line in lines if line.startswith(f'{name}{{lane="{lane.value}"}}')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def until_waiting(stack: Stack, count: int) -> None:
    """Wait until the worker says that the low lane holds so many tasks, or more."""

    def is_full(record: Any) -> bool:
        lanes = json.loads(record.value)["lanes"] if record.value else {}
        return bool(lanes) and lanes["low"]["waiting"] >= count

    async with stack.reader(stack.names.workers, partitions=1) as snapshots:
        await snapshots.until_one(is_full, 60)


async def answer_one(stack: Stack, task_id: str) -> dict[str, Any]:
    """Return the outcome of an urgent request that comes while the low lane is full."""
    async with stack.producer() as producer:
        value = request("urgent", task_id=task_id)
        await producer.send_and_wait(stack.names.requests(Lane.CRITICAL), value, key=task_id.encode())
    async with stack.reader(stack.names.results) as reader:
        record = await reader.until_one(lambda each: each.key == task_id.encode())
    return first_results([record])[task_id]


@pytest.mark.parametrize(
    "count",
    [50_000, pytest.param(1_000_000, marks=[pytest.mark.faults, pytest.mark.timeout(600)])],
)
async def test_should_hold_no_more_in_memory_however_much_is_queued_in_kafka(
    stack: Stack, server: ScriptedServer, count: int
) -> None:
    async with a_worker(stack, server) as (worker, metrics):
        await fill(stack, 0, 5000, "x" * 200)
        await until_waiting(stack, BOUNDS.max_waiting_requests)
        few_bytes = rss_bytes(worker)
        joined = await metric(metrics, "triage_rebalances_total", Lane.LOW)
        await fill(stack, 5000, count - 5000, "x" * 200)
        found = await answer_one(stack, "urgent")  # reads the new ends of the logs, and so comes after them
        many_bytes = rss_bytes(worker)

        assert "completed" == found["outcome"]
        assert found["timing"]["queue_ms"] < 5000
        held = await metric(metrics, "triage_waiting_requests", Lane.LOW)
        assert BOUNDS.max_waiting_requests <= held <= BOUNDS.max_waiting_requests + stack.partitions
        assert joined == await metric(metrics, "triage_rebalances_total", Lane.LOW)
        assert many_bytes - few_bytes < 20 * MIB, f"{few_bytes >> 20} MiB, then {many_bytes >> 20}"
        assert many_bytes < 250 * MIB
        assert worker.poll() is None


async def test_should_hold_no_more_bytes_of_large_requests_than_a_lane_may(
    stack: Stack, server: ScriptedServer
) -> None:
    size_bytes = 700 * 1024
    async with a_worker(stack, server) as (worker, metrics):
        await answer_one(stack, "first")
        empty_bytes = rss_bytes(worker)
        await fill(stack, 0, 250, "x" * size_bytes)  # 170 MiB
        await until_waiting(stack, BOUNDS.max_waiting_bytes // size_bytes)
        found = await answer_one(stack, "second")
        grown_bytes = rss_bytes(worker) - empty_bytes

        assert "completed" == found["outcome"]
        held = await metric(metrics, "triage_waiting_requests", Lane.LOW)
        assert (held - 1) * size_bytes <= BOUNDS.max_waiting_bytes + stack.partitions * size_bytes
        assert grown_bytes < 100 * MIB, f"{grown_bytes >> 20} MiB"
