"""kill -9 at each durable boundary of a worker: the next one finishes, nothing is lost, and only what was in flight runs again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.topics import Lane
from tests.faults.boundaries import DIES_AT, KINDS
from tests.faults.checker import judge
from tests.faults.history import Recorder, digest, dump_commits, dump_topics
from tests.support.scripted import Body, Reply, ScriptedServer, expected_answer, status
from tests.support.stack import Stack, first_results, request

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(600)]

SLOTS = 2
# Eight good tasks take two seconds, so that at least one of the snapshots of each second has tasks in it.
LATENCY_S = 0.5
GOOD = [f"good-{number}" for number in range(8)]
SICK, UNREADABLE = "sick", "unreadable"
TASKS = {*GOOD, SICK, UNREADABLE}
# Fails at its first try, and then there is no other in place.
RUNS = Counter([*GOOD, SICK, SICK])
RETRIES = '[retry]\nin_place_tries = 0\ntiers = ["5s"]'
AT_ONCE = 4

# Of what there is more than one.
NUMBERS = {"started": (1, 3), "result": (1, 5), "ack": (1, 6), "commit": (1, 2)}
_ALL = [f"{kind}:{when}" for kind in KINDS for when in ("before", "after")]
# A result is the boundary that everything turns on; of each other kind the side after which more is undone.
SHORT = ("result:before", "result:after", "retry:after", "commit:before")


async def test_a_worker_killed_at_any_durable_boundary_loses_nothing(
    kafka: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    is_long = pytestconfig.getoption("--fault-seconds") is not None
    boundaries = [
        f"{at}:{number}"
        for at in (_ALL if is_long else SHORT)
        for number in NUMBERS.get(at.partition(":")[0], (1,))[: 2 if is_long else 1]
    ]
    turn, creating = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

    async def one(boundary: str) -> str:
        async with turn:
            return await _killed_at(boundary, kafka, tmp_path / boundary.replace(":", "-"), creating)

    async with asyncio.TaskGroup() as group:
        rows = [group.create_task(one(boundary)) for boundary in boundaries]
    print(f"{'killed at':<24}{'tasks':>6}{'open':>6}{'run again':>11}{'written twice':>15}")
    print("\n".join(row.result() for row in rows))


async def _killed_at(boundary: str, kafka: str, folder: Path, creating: asyncio.Lock) -> str:
    """Let a worker die there and another one finish; return what came of it, as a row."""
    history = folder / "history"
    async with contextlib.AsyncExitStack() as entered:
        server = await entered.enter_async_context(ScriptedServer(latency_s=LATENCY_S, fault_for=_fails_once()))
        async with creating:  # one broker, and some twenty topics for each
            prepared = Stack(kafka, folder, [("openai", server.url)], slots=SLOTS, extra=RETRIES, partitions=2)
            stack = await entered.enter_async_context(prepared)
        reader = await entered.enter_async_context(stack.reader(stack.names.results))

        def answer(prompt: str) -> str:
            return expected_answer(prompt, server.nonce)

        with (
            Recorder(history, "client") as client,
            Recorder(history, "backend") as backend,
            Recorder.of_faults(history) as nemesis,
        ):
            backend.write("backend", backend="b1", limit=SLOTS)
            server.watch = lambda what, call, prompt: backend.write(
                what, call=f"c{call}", backend="b1", nonce=answer(prompt)
            )
            await _produce(stack, client)
            for phase in ("planned", "begun"):
                nemesis.write("fault", fault=boundary, phase=phase)
            dying = stack.spawn_worker(program="tests.faults.boundaries", environment={DIES_AT: boundary})
            code = await asyncio.to_thread(dying.wait, 90)
            assert -signal.SIGKILL == code, f"{boundary} was not reached:\n{stack.log.read_text()[-3000:]}"
            nemesis.write("fault", fault=boundary, phase="evidence", detail=f"exit code {code}")
            had_outcome = set(first_results(await reader.to_end()))
            next_one = await stack.start_worker()
            nemesis.write("fault", fault=boundary, phase="ended")
            await reader.until(len(TASKS), timeout_s=60)
            assert 0 == await asyncio.to_thread(stack.end, next_one)
            results = await reader.to_end()
            for task, row in first_results(results).items():
                row.pop("_record")
                client.write("read", task=task, status=row["outcome"], digest=digest(row), tenant=row["tenant"])
            client.write("finished")
        await dump_topics(kafka, stack.names, history, nonce_of=answer)
        await dump_commits(kafka, stack.names, history)
    verdict = judge(history)
    assert verdict.passed, f"{boundary}\n{verdict.table()}"
    assert {"completed": len(TASKS) - 1, "failed": 1} == verdict.outcomes
    again = server.executions - RUNS
    assert {} == {task: count for task, count in again.items() if task in had_outcome}
    assert max(again.values(), default=0) <= 1
    return (
        f"{boundary:<24}{len(TASKS):>6}{len(TASKS - had_outcome):>6}{again.total():>11}{len(results) - len(TASKS):>15}"
    )


def _fails_once() -> Callable[[Body], Reply | None]:
    """Return a fault that only the first call for the sick task meets."""
    to_come = {SICK}

    def fault(body: Body) -> Reply | None:
        prompt = body["messages"][-1]["content"]
        if prompt not in to_come:
            return None
        to_come.remove(prompt)
        return status(500, "out of order")

    return fault


async def _produce(stack: Stack, client: Recorder) -> None:
    async with stack.producer() as producer:
        for number, task in enumerate([SICK, *GOOD, UNREADABLE]):
            # The prompt is the task's id, so that the backend knows whom it runs.
            fields = {"messages": "none"} if task == UNREADABLE else {}
            value = request(task, task_id=task, cache={"mode": "bypass"}, **fields)
            client.write("submitted", task=task, tenant="default")
            topic = stack.names.requests((Lane.HIGH, Lane.NORMAL)[number // 2 % 2])
            await producer.send_and_wait(topic, value, key=task.encode(), partition=number % 2)
            client.write("acknowledged", task=task)
