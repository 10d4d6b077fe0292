"""Workers join and leave under load: nothing runs twice, and no partition's commits stand still for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from schemas.topics import Lane
from tests.faults.checker import Limits, judge
from tests.faults.history import Recorder, digest, dump_commits, dump_topics
from tests.support.scripted import Body, Reply, ScriptedServer, chat_body, expected_answer
from tests.support.stack import Stack, first_results, request
from wire.clock import monotonic_s

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(900)]

PARTITIONS, SLOTS, MOST_WORKERS = 4, 8, 4
PER_S, LATENCY_S = 25.0, 0.05
# One call in 20 outlasts the 3 s for which a worker that gives partitions back waits for it.
LONG_EVERY, LONG_S = 20, 4.0
STALL_S = 15.0
# Tasks that end between one change and the next, so that each meets work that is under way.
BETWEEN = 40


async def test_joining_and_leaving_workers_run_nothing_twice_and_hold_no_partition_up(
    kafka: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """1 → 4 → 1 workers; in the long form 30 joins and leaves in a row after it."""
    is_long = pytestconfig.getoption("--fault-seconds") is not None
    history = tmp_path / "history"
    async with (
        ScriptedServer(latency_s=LATENCY_S) as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=SLOTS, partitions=PARTITIONS, session_s=6.0) as stack,
        stack.reader(stack.names.results) as reader,
    ):

        def answer(prompt: str) -> str:
            return expected_answer(prompt, server.nonce)

        server.fault_for = _long_calls(server)
        with Recorder(history, "client") as client, Recorder(history, "backend") as backend:
            backend.write("backend", backend="b1", limit=SLOTS * MOST_WORKERS)
            server.watch = lambda what, call, prompt: backend.write(
                what, call=f"c{call}", backend="b1", nonce=answer(prompt)
            )
            workers = [await stack.start_worker()]
            changes = 0
            async with _load(stack, client) as sent:

                async def some_more() -> None:
                    await reader.until(len({record.key for record in reader.records}) + BETWEEN, timeout_s=60)

                await some_more()
                workers += await asyncio.gather(*(stack.start_worker() for _ in range(MOST_WORKERS - 1)))
                await some_more()
                codes = await asyncio.gather(*(asyncio.to_thread(stack.end, worker) for worker in workers[:-1]))
                assert [0] * (MOST_WORKERS - 1) == codes
                del workers[:-1]
                changes += 2 * (MOST_WORKERS - 1)
                await some_more()
                for _ in range(30 if is_long else 0):
                    if len(workers) == 1:
                        workers.append(await stack.start_worker())
                    else:
                        # The older one leaves: whoever leads the groups goes too.
                        assert 0 == await asyncio.to_thread(stack.end, workers.pop(0))
                    changes += 1
                    await some_more()
            await reader.until(len(sent), timeout_s=60)
            for worker in workers:
                assert 0 == await asyncio.to_thread(stack.end, worker)
            results = await reader.to_end()
            for task, row in first_results(results).items():
                row.pop("_record")
                client.write("read", task=task, status=row["outcome"], digest=digest(row), tenant=row["tenant"])
            client.write("finished")
        await dump_topics(kafka, stack.names, history, nonce_of=answer)
        await dump_commits(kafka, stack.names, history)
    # The short form runs beside everything else on a machine of any size: its figure is printed, and a minute is the bound.
    verdict = judge(history, Limits(stuck_s=STALL_S) if is_long else Limits())
    again = {task: runs for task, runs in server.executions.items() if runs > 1}
    print(
        f"{changes} joins and leaves, {len(sent)} tasks, {len(again)} run again; {verdict.longest_stall_s:.1f} s longest stall"
    )
    assert verdict.passed, verdict.table()
    assert {"completed": len(sent)} == verdict.outcomes
    assert {} == again
    assert len(sent) == len(results)


@asynccontextmanager
async def _load(stack: Stack, client: Recorder) -> AsyncIterator[set[str]]:
    """Write requests to all lanes and partitions at a steady rate; the set holds the tasks that were acknowledged."""
    sent: set[str] = set()
    over = asyncio.Event()

    async def write(producer: AIOKafkaProducer) -> None:
        lanes, began_s = list(Lane), monotonic_s()
        for number in count():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), began_s + number / PER_S - monotonic_s())
            if over.is_set():
                return
            task, topic = f"task-{number}", stack.names.requests(lanes[number // PARTITIONS % len(lanes)])
            value = request(task, task_id=task, cache={"mode": "bypass"})
            client.write("submitted", task=task, tenant="default")
            await producer.send_and_wait(topic, value, key=task.encode(), partition=number % PARTITIONS)
            client.write("acknowledged", task=task)
            sent.add(task)

    async with stack.producer() as producer, asyncio.TaskGroup() as group:
        group.create_task(write(producer))
        try:
            yield sent
        finally:
            over.set()


def _long_calls(server: ScriptedServer) -> Callable[[Body], Reply | None]:
    """Return a fault that is none: the answer is right and comes late."""

    async def slow(call: web.Request, body: Body) -> web.StreamResponse:
        await asyncio.sleep(LONG_S)
        prompt = body["messages"][-1]["content"]
        return web.json_response(chat_body(expected_answer(prompt, server.nonce)))

    def fault(body: Body) -> Reply | None:
        number = int(body["messages"][-1]["content"].rpartition("-")[2])
        return slow if number % LONG_EVERY == 0 else None

    return fault
