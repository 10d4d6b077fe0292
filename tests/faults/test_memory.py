"""A worker's memory is flat: what it remembers is bounded, however many tasks go through it."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.topics import Lane
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack, request
from wire.clock import monotonic_s

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(3600)]

MOST_GROWTH_MB = 20.0
SAMPLES = 20
# Answers are kept up to a bound of the settings: one that is reached while the worker warms up.
CACHE = "[cache]\nmax_entries = 500"
SLOTS, LOOK_S = 32, 0.05
# So many are written at once, and so many more may be open then: the same at the beginning and in the end.
PIECE, OPEN = 500, 1000


async def test_a_worker_grows_by_no_more_than_20_mb(
    kafka: str, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    is_long = pytestconfig.getoption("--fault-seconds") is not None
    # What is fetched and answered at once grows for the first few thousand tasks.
    tasks, warm_up = (200_000, 4) if is_long else (10_000, 10)
    series: list[float] = []
    async with (
        ScriptedServer() as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=SLOTS, extra=CACHE) as stack,
        stack.producer(linger_ms=5) as producer,
        AIOKafkaConsumer(bootstrap_servers=kafka) as consumer,
    ):
        server.watch = lambda what, call, prompt: _forget(server)
        worker = await stack.start_worker()
        began_s = monotonic_s()
        for written in range(0, tasks, PIECE):
            await _write(stack, producer, range(written, written + PIECE))
            await _until_answered(stack, consumer, written + PIECE - OPEN)
            if (written + PIECE) % (tasks // SAMPLES) == 0:
                series.append(_resident_mb(worker.pid))
                if is_long:
                    with capsys.disabled():
                        print(f"{written + PIECE} tasks: {series[-1]:.1f} MB")
        await _until_answered(stack, consumer, tasks)
        took_s = monotonic_s() - began_s
        assert 0 == await asyncio.to_thread(stack.end, worker)
        assert tasks == await _answered(stack, consumer)
    warm_mb, most_mb = series[warm_up - 1], max(series[warm_up:])
    print(
        f"{tasks} tasks at {tasks / took_s:.0f} a second; MB after each {tasks // SAMPLES}: "
        f"{' '.join(f'{mb:.1f}' for mb in series)}; {most_mb - warm_mb:.1f} MB more than after {warm_up} of {SAMPLES}"
    )
    assert most_mb - warm_mb <= MOST_GROWTH_MB


def _forget(server: ScriptedServer) -> None:
    for kept in (server.bodies, server.headers, server.connections, server.executions):
        kept.clear()


async def _write(stack: Stack, producer: AIOKafkaProducer, numbers: range) -> None:
    """Write requests to all lanes; every tenth fails to be understood, so that dead letters are written too."""
    lanes = list(Lane)
    for number in numbers:
        task = f"task-{number}"
        fields = {"messages": "none"} if number % 10 == 0 else {}
        value = request(f"prompt {number}", task_id=task, tenant=f"tenant-{number % 20}", **fields)
        await producer.send(stack.names.requests(lanes[number % len(lanes)]), value, key=task.encode())
    await producer.flush()


async def _until_answered(stack: Stack, consumer: AIOKafkaConsumer, count: int) -> None:
    while await _answered(stack, consumer) < count:  # noqa: ASYNC110 - a log's end is asked for
        await asyncio.sleep(LOOK_S)


async def _answered(stack: Stack, consumer: AIOKafkaConsumer) -> int:
    """Return how many results there are: one per task, as nothing is broken."""
    tps = [TopicPartition(stack.names.results, partition) for partition in range(stack.partitions)]
    return sum((await consumer.end_offsets(tps)).values())


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
