"""The gateway's view: rebuilding, restarting, memory, and how fast it answers. `python -m benchmarks.view [RESULTS]`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
from aiokafka import AIOKafkaProducer

from benchmarks.harness import PARTITIONS, child, cpu_s, percentile, rss_mb
from cli.embedded.kafka import KafkaCluster
from gateway.ids import new_task_id
from schemas.codec import encode
from schemas.ids import home
from schemas.result import BatchRef, Outcome, Output, Result, Routing, Source, Timing, Usage
from schemas.topics import Lane, TopicNames
from streams.outcome import result_headers
from streams.settings import KafkaSettings
from wire.topics import apply

RATE_PER_S = 200
SECONDS = 10
_AT_ONCE = 20_000


def result(task_id: str, lane: Lane, partition: int, offset: int, names: TopicNames) -> Result:
    """Return a result of about a kilobyte."""
    return Result(
        task_id=task_id,
        tenant="default",
        outcome=Outcome.COMPLETED,
        priority=lane,
        source=Source(names.requests(lane), partition, offset),
        agent_type="symptom-check",
        model="tiny",
        backend="llama-1",
        output=Output("lorem ipsum dolor sit amet " * 10, "stop"),
        usage=Usage(31, 12, 43),
        attempts=1,
        batch=BatchRef("b-91", 4),
        timing=Timing(1795420000000, 1795420000001, 1795420000002, 1795420000003, 3.1, 210.4),
        routing=Routing("fits, shortest queue", "NORMAL"),
    )


async def write_results(kafka: KafkaSettings, count: int) -> list[str]:
    """Write results as a fleet of workers would have, and return a thousand of the ids."""
    names, rng = kafka.names, random.Random(1)
    kept: list[str] = []
    options = {"acks": 1, "linger_ms": 5, "max_batch_size": 1 << 14}
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, **options) as producer:
        for first in range(0, count, _AT_ONCE):
            sent = []
            for number in range(first, min(first + _AT_ONCE, count)):
                task_id = new_task_id(f"{rng.getrandbits(16):04x}", 1795420000000 + number, rng.randbytes(10))
                lane, partition = list(Lane)[number % 4], home(task_id, PARTITIONS)
                record = result(task_id, lane, partition, number, names)
                sent.append(
                    await producer.send(
                        names.results,
                        encode(record),
                        key=task_id.encode(),
                        partition=partition,
                        headers=result_headers(record, (), None),
                    )
                )
                if number % max(count // 1000, 1) == 0:
                    kept.append(task_id)
            await asyncio.gather(*sent)
    return kept


@contextmanager
def gateway(config: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A gateway child that has caught up: process, URL, seconds from its start to its ready line."""
    os.environ["TRIAGE_GATEWAY__DATA_DIR"], os.environ["TRIAGE_GATEWAY__PORT"] = str(folder), "0"
    began = time.perf_counter()
    with child([sys.executable, "-m", "cli", "gateway", "--json", "--config", str(config)]) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, ready["gateway"], time.perf_counter() - began


async def open_loop(call: Callable[[int], Awaitable[int]], expected: int) -> list[float]:
    """Return each call's milliseconds after a first second; calls begin on time, whether earlier ones have ended or not."""
    took: list[float] = []

    async def one(number: int, due_s: float) -> None:
        status = await call(number)
        if number >= RATE_PER_S:
            took.append((time.perf_counter() - due_s) * 1000)
        assert status == expected, status

    began, running = time.perf_counter(), []
    for number in range(RATE_PER_S * (SECONDS + 1)):
        due_s = began + number / RATE_PER_S
        await asyncio.sleep(max(due_s - time.perf_counter(), 0))
        running.append(asyncio.create_task(one(number, due_s)))
    await asyncio.gather(*running)
    return took


async def measure(url: str, ids: list[str], pid: int) -> None:
    connector = aiohttp.TCPConnector(limit=100, keepalive_timeout=60)
    async with aiohttp.ClientSession(url, connector=connector) as http:
        body = orjson.dumps({"messages": [{"role": "user", "content": "lorem ipsum dolor sit amet " * 12}]})
        made: list[str] = []

        async def submit(number: int) -> int:
            headers = {"Content-Type": "application/json"}
            async with http.post("/v1/async/submit", data=body, headers=headers) as response:
                made.append(orjson.loads(await response.read())["task_id"])
                return response.status

        async def status_of(task_id: str) -> int:
            async with http.get(f"/v1/async/status/{task_id}") as response:
                await response.read()
                return response.status

        print(
            f"  open loop, {RATE_PER_S}/s for {SECONDS} s each after a second to warm up, through one Python client on the same machine:"
        )
        for name, call, expected in (
            ("status, finished", lambda n: status_of(ids[n * 7919 % len(ids)]), 200),
            ("submit", submit, 202),
            ("status, queued", lambda n: status_of(made[n * 7919 % len(made)]), 200),
            ("status, unknown", lambda n: status_of(f"nobody-{n}"), 404),
        ):
            used_s = cpu_s(pid)
            took = await open_loop(call, expected)
            used_ms = (cpu_s(pid) - used_s) / (RATE_PER_S * (SECONDS + 1)) * 1000
            p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
            print(f"  {name:18} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {used_ms:.2f} ms CPU each")


def main(count: int = 1_000_000) -> None:
    # A topic that was made a moment ago has no leader yet, which the client says again and again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="triage-view-"))
    with KafkaCluster(heap_mb=512) as cluster:
        kafka = KafkaSettings(
            bootstrap=cluster.bootstrap, prefix=f"v{uuid.uuid4().hex[:8]}", partitions=PARTITIONS, replication=1
        )
        config = folder / "triage.toml"
        config.write_text(
            f'allow_insecure_dev = true\n[kafka]\nbootstrap = "{kafka.bootstrap}"\nprefix = "{kafka.prefix}"\n'
            f'partitions = {PARTITIONS}\nreplication = 1\n[logging]\nlevel = "warning"\n'
        )
        asyncio.run(apply(kafka))
        began = time.perf_counter()
        ids = asyncio.run(write_results(kafka, count))
        print(f"view: {count} results written in {time.perf_counter() - began:.0f} s")
        with gateway(config, folder / "view") as (process, _, took_s):
            print(
                f"  rebuild {took_s:5.1f} s from start to ready, {cpu_s(process.pid):.1f} s CPU, {rss_mb(process.pid):.0f} MB"
            )
        size_mb = sum(each.stat().st_size for each in (folder / "view").iterdir()) >> 20
        with gateway(config, folder / "view") as (process, url, took_s):
            print(f"  restart {took_s:5.1f} s with its file of {size_mb} MB, {rss_mb(process.pid):.0f} MB")
            asyncio.run(measure(url, ids, process.pid))
            print(f"  afterwards {rss_mb(process.pid):.0f} MB")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
