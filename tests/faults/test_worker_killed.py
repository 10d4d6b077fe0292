"""kill -9 of the worker under load: none lost, and every reader sees one outcome per task, for ever the same."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas.topics import Lane
from tests.support.scripted import ScriptedServer, expected_answer
from tests.support.stack import Reader, Stack, first_results, request

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(240)]

TASKS = 5_000
KILLS = 20


async def test_twenty_kills_under_load_lose_nothing_and_change_no_outcome(kafka: str, tmp_path: Path) -> None:
    rng = random.Random(20)
    async with (
        ScriptedServer() as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=16) as stack,
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
    ):
        server.latency_s = 0.02
        producing = asyncio.create_task(_produce(stack, producer, rng))
        done = 0
        for number in range(KILLS):
            worker = await stack.start_worker()
            # Kill in the midst of work: some answered, some running, some fetched, at a different point each time.
            done = await _some_more(reader, done + rng.randrange(20, 150), most=TASKS * (number + 1) // (KILLS + 1))
            assert stack.end(worker, signal.SIGKILL) == -signal.SIGKILL
        await producing
        last = await stack.start_worker()
        records = await reader.until(TASKS, timeout_s=90)
        assert stack.end(last) == 0
        records = await reader.to_end()
    _judge(server, records)


async def _produce(stack: Stack, producer: AIOKafkaProducer, rng: random.Random) -> None:
    lanes = list(Lane)
    pending = []
    for number in range(TASKS):
        value = request(f"prompt {number}", task_id=f"task-{number}", cache={"mode": "bypass"})
        topic = stack.names.requests(rng.choice(lanes))
        pending.append(await producer.send(topic, value, key=f"task-{number}".encode()))
    await asyncio.gather(*pending)


async def _some_more(reader: Reader, at_least: int, *, most: int) -> int:
    wanted = min(at_least, most)
    return len({record.key for record in await reader.until(wanted)})


def _judge(server: ScriptedServer, records: Sequence[Any]) -> None:
    outcomes = first_results(records)
    lost = {f"task-{number}" for number in range(TASKS)} - set(outcomes)
    assert not lost, f"{len(lost)} lost: {sorted(lost)[:5]}"
    assert {"completed"} == {row["outcome"] for row in outcomes.values()}
    crossed = [
        task_id
        for task_id, row in outcomes.items()
        if row["output"]["content"] != expected_answer(f"prompt {task_id.removeprefix('task-')}", server.nonce)
    ]
    assert not crossed, f"answers of other tasks: {crossed[:5]}"
    copies = Counter(record.key for record in records)
    again = sum(count - 1 for count in copies.values())
    runs = sum(server.executions.values())
    print(f"{TASKS} tasks, {KILLS} kills: 0 lost, {runs - TASKS} run again, {again} records after the first")
