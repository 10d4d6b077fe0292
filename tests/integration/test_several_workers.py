"""`triage worker --processes N` on a real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from schemas.topics import Lane
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka


async def test_processes_share_the_work_come_back_when_killed_and_end_together(
    stack: Stack, server: ScriptedServer
) -> None:
    workers = stack.spawn_worker("--processes", "2")
    assert workers.stdout is not None
    ready = json.loads(await asyncio.to_thread(workers.stdout.readline))
    assert (workers.pid, 2) == (ready["pid"], len({each["worker"] for each in ready["workers"]}))
    os.kill(ready["workers"][0]["pid"], signal.SIGKILL)
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        for number in range(12):
            value = request(f"{number}", task_id=f"t-{number}", cache={"mode": "bypass"})
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), value, partition=number % 3)
        results = first_results(await reader.until(12))
    assert {"completed"} == {row["outcome"] for row in results.values()}
    assert 0 == await asyncio.to_thread(stack.end, workers)
    assert "worker process ended; starting it again" in stack.log.read_text()
