"""The contract of each correction of Faust (docs/decisions/0003): a new release must keep these green before its pin moves."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from importlib import metadata

import pytest
import uvloop
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from agents import transport
from agents.app import Worker
from cli.configuration import load
from schemas.topics import Lane
from tests.support.scripted import ScriptedServer, hang
from tests.support.stack import Stack, first_results, request


async def committed(stack: Stack, lane: Lane, partition: int) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.bootstrap)
    await admin.start()
    try:
        tp = TopicPartition(stack.names.requests(lane), partition)
        found = await admin.list_consumer_group_offsets(stack.names.group(lane.value), partitions=[tp])
        return int(found[tp].offset)
    finally:
        await admin.close()


async def until_committed(stack: Stack, lane: Lane, partition: int, offset: int) -> None:
    async with asyncio.timeout(15):
        while await committed(stack, lane, partition) < offset:  # noqa: ASYNC110 - another process commits; Kafka has no signal
            await asyncio.sleep(0.1)


def test_another_release_of_faust_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    transport.check_versions()
    assert metadata.version("faust-streaming") == transport.SUPPORTED["faust-streaming"]
    monkeypatch.setitem(transport.SUPPORTED, "faust-streaming", "0.15.4")
    with pytest.raises(transport.UnsupportedFaust, match=r"0\.15\.4 is needed"):
        transport.check_versions()


@pytest.mark.kafka
async def test_nothing_past_an_unfinished_request_is_committed_also_after_an_aborted_transaction(
    stack: Stack, server: ScriptedServer
) -> None:
    topic = stack.names.requests(Lane.HIGH)
    server.fault_for = lambda body: hang if body["messages"][-1]["content"] == "stuck" else None
    first = await stack.start_worker()
    async with AIOKafkaProducer(bootstrap_servers=stack.bootstrap, transactional_id=stack.prefix) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, request("aborted"), partition=0)
        await producer.abort_transaction()
        await producer.begin_transaction()
        stuck = await producer.send_and_wait(topic, request("stuck", task_id="stuck"), partition=0)
        await producer.send_and_wait(topic, request("after", task_id="after"), partition=0)
        other = await producer.send_and_wait(topic, request("other", task_id="other"), partition=1)
        await producer.commit_transaction()
    async with stack.reader(stack.names.results) as reader:
        await reader.until(2)
        await until_committed(stack, Lane.HIGH, 1, other.offset + 1)  # so a commit has taken place
        assert await committed(stack, Lane.HIGH, 0) <= stuck.offset
        stack.end(first, signal.SIGKILL)
        server.fault_for = lambda body: None
        await stack.start_worker()
        results = first_results(await reader.until(3))
    assert {"stuck", "after", "other"} == set(results)
    assert {"completed"} == {row["outcome"] for row in results.values()}
    assert server.executions["after"] == 1, "it had an outcome, so it is not run again"


@pytest.mark.kafka
async def test_a_second_worker_that_joins_under_load_repeats_nothing(stack: Stack, server: ScriptedServer) -> None:
    count = 600
    server.latency_s = 0.02
    await stack.start_worker()
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        for number in range(count):
            value = request(f"p{number}", task_id=f"t{number}", cache={"mode": "bypass"})
            await producer.send(stack.names.requests(list(Lane)[number % 4]), value, key=b"%d" % number)
        await producer.flush()
        await reader.until(count // 4)
        await stack.start_worker()
        results = first_results(await reader.until(count))
    assert len(results) == count
    assert {1} == set(server.executions.values())


@pytest.mark.kafka
async def test_sigterm_ends_a_worker_cleanly_and_a_second_one_at_once(stack: Stack, server: ScriptedServer) -> None:
    server.fault_for = lambda body: hang if body["messages"][-1]["content"] == "stuck" else None
    worker = await stack.start_worker()
    async with stack.producer() as producer:
        await producer.send_and_wait(stack.names.requests(Lane.HIGH), request("stuck", task_id="stuck"))
    await server.until(lambda running: running.in_flight == 1)
    worker.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while "draining" not in stack.log.read_text():  # noqa: ASYNC110 - another process's log has no signal
            await asyncio.sleep(0.02)
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 5) != 0
    assert time.monotonic() - began < 1


@pytest.mark.kafka
async def test_the_loop_is_never_held_for_a_tenth_of_a_second_in_five_thousand_tasks(
    stack: Stack, server: ScriptedServer
) -> None:
    """Held is measured in CPU time of one turn of the loop, so that a busy machine does not count against us."""
    count = 5_000
    async with stack.producer() as producer:
        for number in range(count):
            value = request(f"p{number}", task_id=f"t{number}", cache={"mode": "bypass"})
            await producer.send(stack.names.requests(list(Lane)[number % 4]), value, key=b"%d" % number)
        await producer.flush()
    stop = threading.Event()
    serving = asyncio.create_task(asyncio.to_thread(_serve_and_measure, stack, stop))
    async with stack.reader(stack.names.results) as reader:
        await reader.until(count, timeout_s=60)
    stop.set()
    longest_s = await serving
    assert longest_s < 0.1


def _serve_and_measure(stack: Stack, stop: threading.Event) -> float:
    """Run a worker in a loop and thread of its own; return the longest CPU time of one turn of its loop, from ready to `stop`."""
    return uvloop.run(_measured(stack, stop))


async def _measured(stack: Stack, stop: threading.Event) -> float:
    ending, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    worker = Worker(load(stack.config).settings, datadir=stack.folder / "data", session_s=1.5, drain_s=5)
    working = asyncio.create_task(worker.run(ending, ready=ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    longest_s, before_s = 0.0, time.thread_time()

    def turn() -> None:
        nonlocal longest_s, before_s
        now_s = time.thread_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
        if stop.is_set():
            ending.set()
        else:
            loop.call_soon(turn)

    loop.call_soon(turn)
    await working
    return longest_s
