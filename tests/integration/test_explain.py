"""`triage explain` on a real Kafka: a worker brought to one gate after the other says so, and late work ends at intake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cli.direct import explain
from schemas.ids import home
from schemas.topics import Lane
from tests.support.scripted import Body, Reply, ScriptedServer, status
from tests.support.stack import PARTITIONS, Stack, first_results, request
from wire.clock import monotonic_s

pytestmark = pytest.mark.kafka


async def send(stack: Stack, lane: Lane, *task_ids: str, **fields: Any) -> None:
    async with stack.producer(linger_ms=5) as producer:
        topic = stack.names.requests(lane)
        sent = []
        for task_id in task_ids:
            value = request(task_id, task_id=task_id, cache={"mode": "bypass"}, parameters={"max_tokens": 1}, **fields)
            key, partition = task_id.encode(), home(task_id, PARTITIONS)
            sent.append(await producer.send(topic, value, key=key, partition=partition))
        await asyncio.gather(*sent)


async def told(stack: Stack, task_id: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the explanation of a task once it is as expected: what a worker holds is heard of within a second."""
    give_up_s = monotonic_s() + 20
    while not until(body := await explain(stack.kafka, task_id, None, ())):
        assert monotonic_s() < give_up_s, f"not told of {task_id}: {body}"
    return body


async def test_a_task_is_told_the_gate_that_it_stands_at(kafka: str, tmp_path: Path) -> None:
    released = asyncio.Event()

    def fault(body: Body) -> Reply | None:
        return status(503, "busy", Retry_After="30") if body["messages"][-1]["content"] == "refused" else held

    async def held(asked: web.Request, body: Body) -> web.StreamResponse:
        await released.wait()
        raise ConnectionResetError

    waiting = [f"low-{number}" for number in range(400)]
    async with (
        ScriptedServer(slots=2, fault_for=fault) as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=2) as stack,
    ):
        await send(stack, Lane.LOW, "first")
        body = await told(stack, "first", lambda _: True)
        assert ("no_worker", "queued") == (body["gate"], body["status"])

        await stack.start_worker()
        body = await told(stack, "first", lambda body: body["gate"] == "running")
        assert "It is running on the backend b1, attempt 1." == body["reason"]

        await send(stack, Lane.LOW, *waiting)
        body = await told(stack, waiting[0], lambda body: body["gate"] == "no_free_slot")
        assert "b1 runs 1 of 2 calls and keeps the rest for critical" in body["reason"]
        assert [("b1", "scripted", "busy")] == [
            (each["backend"], each["model"], each["why_not"]) for each in body["considered"]
        ]
        ahead = body["position"]
        body = await told(stack, waiting[-1], lambda body: body["position"] is not None and body["position"] > 256)
        assert "not_fetched" == body["gate"]
        assert body["reason"].startswith("It is still in Kafka, ")
        assert ahead < body["position"] <= len(waiting)

        await send(stack, Lane.CRITICAL, "refused")
        body = await told(stack, "refused", lambda body: body["gate"] == "retry_delay" and "topic" in body["reason"])
        assert ("processing", None) == (body["status"], body["position"])
        released.set()


async def test_late_work_that_cannot_be_served_in_time_ends_at_intake_with_the_reason(
    kafka: str, tmp_path: Path
) -> None:
    late = [f"late-{number}" for number in range(150)]
    async with (
        ScriptedServer(slots=6, latency_s=0.25) as server,
        Stack(kafka, tmp_path, [("openai", server.url)], slots=6) as stack,
    ):
        await stack.start_worker()
        await send(stack, Lane.LOW, *(f"low-{number}" for number in range(300)))
        # The worker has to have seen itself serve while work waits.
        await told(stack, "low-299", lambda body: bool(body["estimate"]) and body["estimate"]["confidence"] > 0.8)
        await send(stack, Lane.HIGH, *late, created_at_ms=0, deadline_at_ms=2000)
        async with stack.reader(stack.names.results) as reader:
            give_up_s = monotonic_s() + 20
            while not {*late} <= (found := first_results(await reader.to_end())).keys():
                assert monotonic_s() < give_up_s
        kinds = [(found[task_id]["outcome"], (found[task_id]["error"] or {}).get("type")) for task_id in late]
        refused = kinds.count(("expired", "deadline_infeasible"))
        served = kinds.count(("completed", None))
        assert (0 < refused < len(late), served > 0) == (True, True)
        assert {("expired", "deadline_infeasible"), ("expired", "deadline_expired"), ("completed", None)} >= {*kinds}
