"""What happens to a request when something goes wrong, on a real Kafka: retry topics, cancels, redelivery, quarantine."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from schemas import headers
from schemas.codec import encode
from schemas.progress import Started
from schemas.result import Source
from schemas.topics import Lane, RetryTier
from streams import outcome
from tests.support.scripted import Body, Reply, ScriptedServer, hang, status
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka


def failing(*prompts: str) -> Any:
    """Return a fault for requests with these prompts: the server is out of order for them."""

    def fault(body: Body) -> Reply | None:
        return status(500, "out of order") if body["messages"][-1]["content"] in prompts else None

    return fault


async def send(stack: Stack, task_id: str, lane: Lane = Lane.NORMAL, *, partition: int = 0, **fields: Any) -> Source:
    async with stack.producer() as producer:
        value = request(task_id, task_id=task_id, cache={"mode": "bypass"}, **fields)
        topic = stack.names.requests(lane)
        sent = await producer.send_and_wait(topic, value, key=task_id.encode(), partition=partition)
    return Source(topic, sent.partition, sent.offset)


async def cancel(stack: Stack, task_id: str, source: Source, lane: Lane = Lane.NORMAL) -> None:
    """Append the terminal record that the gateway or `triage cancel` appends."""
    result = outcome.cancelled(
        task_id,
        "default",
        lane,
        source,
        agent_type=None,
        batch_id=None,
        metadata={},
        attempts=0,
        created_at_ms=0,
        dispatched_at_ms=None,
        now_ms=0,
    )
    async with stack.producer() as producer:
        await producer.send_and_wait(
            stack.names.results,
            encode(result),
            key=task_id.encode(),
            partition=source.partition,
            headers=outcome.result_headers(result, [], None),
        )


async def results(stack: Stack, count: int, timeout_s: float = 30) -> dict[str, dict[str, Any]]:
    async with stack.reader(stack.names.results) as reader:
        return dict(first_results(await reader.until(count, timeout_s)))


async def test_what_keeps_failing_goes_through_a_retry_topic_and_holds_nobody_up(
    stack: Stack, server: ScriptedServer
) -> None:
    await stack.start_worker()
    server.fault_for = failing("sick")
    source = await send(stack, "sick", Lane.HIGH)
    async with stack.reader(stack.names.retry(RetryTier.FIVE_SECONDS)) as retries:
        (record,) = await retries.until(1)
    await send(stack, "behind", Lane.HIGH)  # on the same partition
    assert {"behind"} == set(await results(stack, 1))
    server.fault_for = lambda body: None
    found = (await results(stack, 2))["sick"]

    told = {name: value.decode() for name, value in record.headers}
    assert (b"sick", "high", "3", "1", "backend_unavailable", str(source)) == (
        record.key,
        *(told[name] for name in ("triage.lane", "triage.attempts", "triage.hops", "triage.error.type")),
        told[headers.SOURCE],
    )
    assert int(told[headers.NOT_BEFORE_MS]) == pytest.approx(record.timestamp + 5000, abs=1000)
    assert ("completed", 4, "high", source.offset) == (
        found["outcome"],
        found["attempts"],
        found["priority"],
        found["source"]["offset"],
    )
    assert found["_record"].timestamp >= int(told[headers.NOT_BEFORE_MS])
    assert 4 == server.executions["sick"]


async def test_a_cancel_closes_the_running_call_and_is_the_outcome(stack: Stack, server: ScriptedServer) -> None:
    await stack.start_worker()
    server.fault_for = lambda body: hang
    source = await send(stack, "running")
    await server.until(lambda s: s.in_flight == 1)
    began = asyncio.get_running_loop().time()
    await cancel(stack, "running", source)
    await server.until(lambda s: s.disconnected == 1 and s.in_flight == 0)
    assert asyncio.get_running_loop().time() - began < 5  # a second where nothing else runs
    server.fault_for = lambda body: None
    await send(stack, "next")
    found = await results(stack, 2)
    assert {"running": "cancelled", "next": "completed"} == {name: row["outcome"] for name, row in found.items()}


async def test_a_cancelled_task_that_waits_is_never_sent(kafka: str, tmp_path: Path, server: ScriptedServer) -> None:
    async with Stack(kafka, tmp_path, [("openai", server.url)], slots=1) as stack:
        worker = await stack.start_worker()
        server.fault_for = lambda body: hang
        first = await send(stack, "running")
        await server.until(lambda s: s.in_flight == 1)
        waiting = await send(stack, "waiting")
        await cancel(stack, "waiting", waiting)
        await cancel(stack, "running", first)
        await server.until(lambda s: s.in_flight == 0)
        server.fault_for = lambda body: None
        await send(stack, "next")
        await results(stack, 3)
        assert 0 == await asyncio.to_thread(stack.end, worker)
    assert {"running": 1, "next": 1} == dict(server.executions)


async def test_a_task_cancelled_in_a_retry_topic_or_before_it_was_read_is_not_run(
    stack: Stack, server: ScriptedServer
) -> None:
    unread = await send(stack, "unread")
    await cancel(stack, "unread", unread)
    server.fault_for = failing("sick")
    await stack.start_worker()
    source = await send(stack, "sick")
    async with stack.reader(stack.names.retry(RetryTier.FIVE_SECONDS)) as retries:
        (record,) = await retries.until(1)
        await cancel(stack, "sick", source)
        runs = server.executions["sick"]
        server.fault_for = lambda body: None
        # The record after it in the topic is due later: when that has run, the cancelled one was passed over.
        value, key, told = request("marker", cache={"mode": "bypass"}), b"marker", dict(record.headers)
        told |= {headers.TASK_ID: b"marker", headers.SOURCE: str(Source(source.topic, 0, 10**6)).encode()}
        async with stack.producer() as producer:
            await producer.send_and_wait(record.topic, value, key=key, partition=0, headers=list(told.items()))
    found = await results(stack, 3)
    assert {"unread": "cancelled", "sick": "cancelled", "marker": "completed"} == {
        name: row["outcome"] for name, row in found.items()
    }
    assert (runs, 0) == (server.executions["sick"], server.executions["unread"])


async def test_a_rebalance_without_a_crash_runs_nothing_twice(stack: Stack, server: ScriptedServer) -> None:
    """Calls that outlast the drain of a revoke go on where they run, and the new owner waits for them."""
    server.latency_s = 8.0
    await stack.start_worker()
    for number in range(6):
        await send(stack, f"long-{number}", partition=number % stack.partitions)
    await server.until(lambda s: s.in_flight == 6)
    await stack.start_worker()
    await stack.start_worker()
    found = await results(stack, 6, timeout_s=40)
    assert {"completed"} == {row["outcome"] for row in found.values()}
    assert {f"long-{number}": 1 for number in range(6)} == dict(server.executions)


async def test_what_a_killed_worker_ran_runs_again_at_once_when_its_session_is_over(
    stack: Stack, server: ScriptedServer
) -> None:
    server.script.append(hang)
    first = await stack.start_worker()
    await send(stack, "cut-off")
    await server.until(lambda s: s.in_flight == 1)
    await stack.start_worker()
    stack.end(first, signal.SIGKILL)
    found = await results(stack, 1)
    assert ("completed", 2, 2) == (
        found["cut-off"]["outcome"],
        found["cut-off"]["attempts"],
        server.executions["cut-off"],
    )


async def test_a_task_that_ended_four_workers_is_quarantined_with_a_dead_letter(
    stack: Stack, server: ScriptedServer
) -> None:
    source = await send(stack, "deadly")
    async with stack.producer() as producer:
        for attempt in range(1, 5):
            row = ("deadly", source.topic, source.offset, attempt)
            started = Started(f"b-{attempt}", f"gone-{attempt}", "b1", [row], attempt)
            await producer.send_and_wait(stack.names.progress, encode(started), key=b"b", partition=0)
    await stack.start_worker()
    found = (await results(stack, 1))["deadly"]
    assert ("failed", "quarantined", 4) == (found["outcome"], found["error"]["type"], found["attempts"])
    async with stack.reader(stack.names.dead_letters) as letters:
        assert [b"deadly"] == [record.key for record in await letters.until(1)]
    assert {} == dict(server.executions)


async def test_a_foreign_record_in_a_retry_topic_gets_a_dead_letter(stack: Stack) -> None:
    await stack.start_worker()
    topic = stack.names.retry(RetryTier.FIVE_SECONDS)
    async with stack.producer() as producer:
        sent = await producer.send_and_wait(topic, b"what is this", key=b"k", partition=1)
    name = f"{topic}.1.{sent.offset}"
    found = await results(stack, 1)
    assert (name, "failed", "invalid_request") == (*found, found[name]["outcome"], found[name]["error"]["type"])
    async with stack.reader(stack.names.dead_letters) as letters:
        assert [b"what is this"] == [record.value for record in await letters.until(1)]


async def test_clean_restarts_do_not_quarantine_a_task_that_waited_for_another_try(
    stack: Stack, server: ScriptedServer
) -> None:
    server.fault_for = lambda body: status(429, "busy", Retry_After="4")
    await send(stack, "patient")
    for calls in range(1, 5):
        worker = await stack.start_worker()
        await server.until(lambda s, calls=calls: s.executions["patient"] >= calls and s.in_flight == 0)  # type: ignore[misc]
        assert 0 == await asyncio.to_thread(stack.end, worker)
    server.fault_for = lambda body: None
    await stack.start_worker()
    found = (await results(stack, 1))["patient"]
    assert "completed" == found["outcome"]


async def test_one_long_call_holds_its_own_partition_up_and_no_other_of_its_lane(
    kafka: str, tmp_path: Path, server: ScriptedServer
) -> None:
    server.fault_for = lambda body: hang if body["messages"][-1]["content"] == "head" else None
    async with Stack(kafka, tmp_path, [("openai", server.url)], slots=32) as stack:
        await send(stack, "head", partition=0)
        async with stack.producer() as producer:
            topic, other = stack.names.requests(Lane.NORMAL), 600
            for number in range(700):  # more than a partition's span
                await producer.send(topic, request(f"a-{number}", cache={"mode": "bypass"}), partition=0)
            for number in range(other):
                value = request("b", task_id=f"b-{number}", cache={"mode": "bypass"})
                await producer.send(topic, value, partition=1)
            await producer.flush()
        await stack.start_worker()
        async with asyncio.timeout(40), stack.reader(stack.names.results) as reader:
            while len({r.key for r in reader.records if r.partition == 1}) < other:
                await reader.until(len({r.key for r in reader.records}) + 1, timeout_s=20)
    assert 1 == server.executions["head"]
