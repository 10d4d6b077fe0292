"""kill -9 of the worker under load: none lost, and every reader sees one outcome per task, for ever the same."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from schemas.topics import Lane
from tests.faults.checker import judge
from tests.faults.history import Recorder, digest, dump_commits, dump_topics
from tests.support.scripted import ScriptedServer, expected_answer
from tests.support.stack import Reader, Stack, first_results, request

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(240)]

TASKS = 5_000
KILLS = 20
SLOTS = 16


async def test_twenty_kills_under_load_lose_nothing_and_change_no_outcome(kafka: str, tmp_path: Path) -> None:
    rng, history = random.Random(20), tmp_path / "history"
    async with (
        ScriptedServer() as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=SLOTS) as stack,
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
    ):

        def answer(prompt: str) -> str:
            return expected_answer(prompt, server.nonce)

        with (
            Recorder(history, "client") as client,
            Recorder(history, "backend") as backend,
            Recorder.of_faults(history) as nemesis,
        ):
            backend.write("backend", backend="b1", limit=SLOTS)
            server.latency_s = 0.02
            server.watch = lambda what, call, prompt: backend.write(
                what, call=f"c{call}", backend="b1", nonce=answer(prompt)
            )
            producing = asyncio.create_task(_produce(stack, producer, client, rng))
            worker = await stack.start_worker()
            done = 0
            for number in range(1, KILLS + 1):
                # Kill in the midst of work: some answered, some running, some fetched, at a different point each time.
                done = await _some_more(reader, done + rng.randrange(20, 150), most=TASKS * number // (KILLS + 1))
                for phase in ("planned", "begun"):
                    nemesis.write("fault", fault=f"kill-{number}", phase=phase)
                code = stack.end(worker, signal.SIGKILL)
                assert -signal.SIGKILL == code
                nemesis.write("fault", fault=f"kill-{number}", phase="evidence", detail=f"exit code {code}")
                worker = await stack.start_worker()
                nemesis.write("fault", fault=f"kill-{number}", phase="ended")
            await producing
            await reader.until(TASKS, timeout_s=90)
            assert 0 == stack.end(worker)
            for task, row in first_results(await reader.to_end()).items():
                row.pop("_record")
                client.write("read", task=task, status=row["outcome"], digest=digest(row), tenant=row["tenant"])
            client.write("finished")
        await dump_topics(kafka, stack.names, history, nonce_of=answer)
        await dump_commits(kafka, stack.names, history)
    verdict = judge(history)
    print(verdict.table())
    assert verdict.passed, verdict.table()
    assert (TASKS, KILLS) == (verdict.counts["tasks"], verdict.counts["faults"])
    assert {"completed": TASKS} == verdict.outcomes


async def _produce(stack: Stack, producer: AIOKafkaProducer, client: Recorder, rng: random.Random) -> None:
    lanes = list(Lane)

    async def acknowledged(task: str, sent: asyncio.Future[object]) -> None:
        await sent
        client.write("acknowledged", task=task)

    async with asyncio.TaskGroup() as group:
        for number in range(TASKS):
            task = f"task-{number}"
            value = request(f"prompt {number}", task_id=task, cache={"mode": "bypass"})
            client.write("submitted", task=task, tenant="default")
            sent = await producer.send(stack.names.requests(rng.choice(lanes)), value, key=task.encode())
            group.create_task(acknowledged(task, sent))


async def _some_more(reader: Reader, at_least: int, *, most: int) -> int:
    wanted = min(at_least, most)
    return len({record.key for record in await reader.until(wanted)})
