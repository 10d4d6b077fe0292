"""SIGTERM under load: what is nearly done is finished, the rest goes to the next worker at once, not after the session."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from schemas.topics import Lane
from tests.support.scripted import Body, Reply, ScriptedServer, chat_body, expected_answer
from tests.support.stack import Stack, first_results, request
from wire.clock import monotonic_s

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

PARTITIONS, SLOTS = 4, 32
SESSION_S, HEARTBEAT_S, DRAIN_S = 20.0, 5.0, 2.0
LONG, SHORT = [f"long-{number}" for number in range(8)], [f"short-{number}" for number in range(8)]


async def test_what_a_drain_does_not_finish_runs_elsewhere_before_the_session_is_over(
    kafka: str, tmp_path: Path
) -> None:
    async with (
        ScriptedServer(latency_s=1.0) as server,
        Stack(
            kafka, tmp_path, [("openai", server.url)], slots=SLOTS, partitions=PARTITIONS, session_s=SESSION_S
        ) as stack,
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
    ):
        answered = asyncio.Event()
        server.fault_for = _first_call_waits(server, answered)
        leaving, _ = await asyncio.gather(stack.start_worker("--drain-s", str(DRAIN_S)), stack.start_worker())
        for number, task in enumerate([*LONG, *SHORT]):
            value = request(task, task_id=task, cache={"mode": "bypass"})
            topic, partition = stack.names.requests(Lane.HIGH), number % PARTITIONS
            await producer.send_and_wait(topic, value, key=task.encode(), partition=partition)
        await server.until(lambda s: s.in_flight == len(LONG) + len(SHORT), timeout_s=30)

        asked_ms = time.time() * 1000
        leaving.send_signal(signal.SIGTERM)
        await server.until(lambda s: s.disconnected > 0, timeout_s=20)
        code = await asyncio.to_thread(leaving.wait, 30)
        left_s, left_ms = monotonic_s(), time.time() * 1000
        # What the other worker holds by itself goes on waiting; the rest has a second call, which is answered.
        moved = server.disconnected
        await server.until(lambda s: s.calls >= len(LONG) + len(SHORT) + moved, timeout_s=60)
        moved_s = monotonic_s() - left_s
        answered.set()
        found = first_results(await reader.until(len(LONG) + len(SHORT)))
    drained_ms = _told_ms(stack.log, "drain time is up; what still runs goes to the next worker")
    print(
        f"SIGTERM to the end of the drain of {DRAIN_S:g} s: {(drained_ms - asked_ms) / 1000:.2f} s, "
        f"then to the exit {(left_ms - drained_ms) / 1000:.2f} s, "
        f"then to the last of {moved} unfinished tasks at the other worker {moved_s:.2f} s (session {SESSION_S:g} s)"
    )
    assert 0 == code
    assert {"completed"} == {row["outcome"] for row in found.values()}
    assert set(found) == {*LONG, *SHORT}
    assert dict.fromkeys(SHORT, 1) == {task: server.executions[task] for task in SHORT}
    again = [task for task in LONG if server.executions[task] == 2]
    assert 0 < moved == len(again)
    assert len(LONG) - moved == sum(server.executions[task] == 1 for task in LONG)
    # A worker that only went silent is held to be a member until its session is over.
    assert moved_s < SESSION_S - HEARTBEAT_S


def _first_call_waits(server: ScriptedServer, over: asyncio.Event) -> Callable[[Body], Reply | None]:
    """Return a fault under which the first call for each long task is answered when all is over."""

    async def waits(call: web.Request, body: Body) -> web.StreamResponse:
        await over.wait()
        return web.json_response(chat_body(expected_answer(body["messages"][-1]["content"], server.nonce)))

    def fault(body: Body) -> Reply | None:
        prompt = body["messages"][-1]["content"]
        return waits if prompt in LONG and server.executions[prompt] == 1 else None

    return fault


def _told_ms(log: Path, what: str) -> float:
    """Return when the one line was logged."""
    (row,) = [row for row in map(orjson.loads, log.read_bytes().splitlines()) if row["event"] == what]
    return datetime.fromisoformat(row["timestamp"]).timestamp() * 1000
