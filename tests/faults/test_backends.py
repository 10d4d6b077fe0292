"""Model servers that die or run out of memory in the midst of calls: others answer, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from cli.embedded.models import instruct_model
from cli.embedded.processes import free_ports
from schemas.topics import Lane
from tests.support.llama import LlamaServer, llama_server
from tests.support.scripted import ScriptedServer, raw
from tests.support.stack import Reader, Stack, first_results, request

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(240)]

FIRST, SECOND = "b1", "b2"
TASKS, SLOTS = 4, 2
RETRIES = '[retry]\ntiers = ["5s"]'

# What servers say when the card's memory is full: llama.cpp; vLLM before version 1, whose text quotes the error; vLLM since, of
# which the engine has ended; one without an error of its own.
OUT_OF_MEMORY = (
    b'{"error":{"code":500,"message":"Compute error.","type":"server_error"}}',
    b'{"object":"error","message":"CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB of '
    b'which 1.06 GiB is free.","type":"InternalServerError","param":null,"code":500}',
    b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.",'
    b'"type":"InternalServerError","param":null,"code":500}}',
    b"Internal Server Error",
)


async def kill(server: LlamaServer) -> None:
    server.process.kill()


async def take_its_memory(server: LlamaServer) -> None:
    """Leave the server no address space beyond what it has, and have others ask it for much, until an allocation that fails ends it."""
    resource.prlimit(server.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "word " * 800}]}

    async def ask(client: httpx.AsyncClient) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await client.post("/v1/chat/completions", json=body)

    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        while server.process.poll() is None:
            await asyncio.gather(*(ask(client) for _ in range(8)))


@pytest.mark.llama
async def test_a_real_server_that_ends_in_the_midst_of_calls_is_replaced_by_the_other_and_used_again(
    kafka: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """In the short form it runs out of memory; in the long one it is killed as well."""
    is_long = pytestconfig.getoption("--fault-seconds") is not None
    model = tmp_path / "model.gguf"
    model.symlink_to(instruct_model().path)
    (port,) = free_ports(1)
    with llama_server(model, slots=SLOTS) as second:
        backends = [("llamacpp", f"http://127.0.0.1:{port}"), ("llamacpp", second.url)]
        async with (
            Stack(kafka, tmp_path / "stack", backends, slots=SLOTS, extra=RETRIES) as stack,
            stack.reader(stack.names.results) as results,
            stack.reader(stack.names.progress) as starts,
        ):
            await stack.start_worker()
            ended = [
                await _broken_in_the_midst(stack, results, starts, model, port, break_it, name)
                for break_it, name in ((take_its_memory, "starved"), (kill, "killed"))[: 2 if is_long else 1]
            ]
    print(f"the first server ended with {ended}")
    assert ended[0] not in (0, -signal.SIGKILL)
    assert [-signal.SIGKILL] * is_long == ended[1:]
    failures = _told(stack, "call failed")
    assert {(FIRST, "backend_unavailable")} == {(row["backend"], row["error"]) for row in failures}


async def _broken_in_the_midst(
    stack: Stack,
    results: Reader,
    starts: Reader,
    model: Path,
    port: int,
    break_it: Callable[[LlamaServer], Awaitable[None]],
    name: str,
) -> int:
    """Start the first server, give both work, break the first while it has calls; return its exit status once all is answered."""
    tasks = [f"{name}-{number}" for number in range(TASKS)]
    before = len({record.key for record in results.records})
    ups = len(_told(stack, "backend up", FIRST))
    with llama_server(model, slots=SLOTS, port=port) as first:
        while len(_told(stack, "backend up", FIRST)) == ups:  # noqa: ASYNC110 - another process's log has no signal
            await asyncio.sleep(0.1)
        await _produce(stack, tasks, parameters={"max_tokens": 32, "ignore_eos": True})
        cut_off = await _started_on(starts, FIRST, tasks)
        await break_it(first)
        found = first_results(await results.until(before + TASKS, timeout_s=90))
        code = await asyncio.to_thread(first.process.wait, 30)
    assert {"completed"} == {found[task]["outcome"] for task in tasks}
    # It was broken within milliseconds of the start of calls that take seconds.
    assert {SECOND} == {found[task]["backend"] for task in cut_off}
    assert all(found[task]["attempts"] >= 2 for task in cut_off)
    return code


async def test_a_server_whose_card_is_full_costs_no_task(kafka: str, tmp_path: Path) -> None:
    """It goes on to answer its probes, as servers do, so it is tried again and again."""
    said = cycle(OUT_OF_MEMORY)
    async with (
        ScriptedServer(fault_for=lambda body: raw(next(said), code=500)) as full,
        ScriptedServer() as other,
        Stack(
            kafka, tmp_path, [("openai", full.url), ("openai", other.url)], slots=SLOTS, partitions=1, extra=RETRIES
        ) as stack,
        stack.reader(stack.names.results) as results,
    ):
        await _produce(stack, tasks := [f"task-{number}" for number in range(24)])
        await stack.start_worker()
        found = first_results(await results.until(len(tasks)))
    assert dict.fromkeys(tasks, "completed") == {task: row["outcome"] for task, row in found.items()}
    assert {SECOND} == {row["backend"] for row in found.values()}
    assert full.calls >= len(OUT_OF_MEMORY)
    assert dict.fromkeys(tasks, 1) == dict(other.executions)
    failures = _told(stack, "call failed")
    assert {(FIRST, "backend_unavailable")} == {(row["backend"], row["error"]) for row in failures}
    assert "CUDA" not in stack.log.read_text()


def _told(stack: Stack, what: str, backend: str | None = None) -> list[dict[str, Any]]:
    """Return the lines that workers logged of this, about one backend or all."""
    rows = [orjson.loads(line) for line in stack.log.read_bytes().splitlines() if what.encode() in line]
    return [row for row in rows if row["event"] == what and backend in (None, row["backend"])]


async def _produce(stack: Stack, tasks: Sequence[str], **fields: Any) -> None:
    async with stack.producer() as producer:
        for task in tasks:
            value = request(task, task_id=task, cache={"mode": "bypass"}, **fields)
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), value, key=task.encode())


async def _started_on(starts: Reader, backend: str, tasks: Sequence[str]) -> list[str]:
    """Return which of the tasks were started on a backend, once one was."""
    while True:
        rows = [orjson.loads(record.value) for record in await starts.to_end()]
        started = [row[0] for each in rows if each.get("backend") == backend for row in each["tasks"]]
        if found := [task for task in tasks if task in started]:
            return found
