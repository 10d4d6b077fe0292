"""The gateway on a real Kafka, as its callers meet it."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from cli.embedded.processes import free_ports
from schemas.codec import encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.ids import home
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane
from streams.outcome import result_headers
from tests.gateway.process import running_gateway, spawn
from tests.support.scripted import ScriptedServer
from tests.support.stack import Reader, Stack, first_results, request

pytestmark = pytest.mark.kafka

BODY = {"messages": [{"role": "user", "content": "a secret question"}]}


async def submit(http: httpx.AsyncClient, **fields: Any) -> str:
    response = await http.post("/v1/async/submit", json={**BODY, **fields})
    assert response.status_code == 202, response.text
    task_id: str = response.json()["task_id"]
    return task_id


async def get(http: httpx.AsyncClient, what: str, task_id: str, **parameters: Any) -> tuple[int, dict[str, Any]]:
    response = await http.get(f"/v1/async/{what}/{task_id}", params=parameters)
    return response.status_code, response.json()


async def post(http: httpx.AsyncClient, what: str, body: object, key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {} if key is None else {"Idempotency-Key": key}
    response = await http.post(f"/v1/async/{what}", json=body, headers=headers)
    return without_trace((response.status_code, response.json()))


def without_trace(answer: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    return answer[0], {**answer[1], "trace_id": None}


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def terminal(stack: Stack, task_id: str, partition: int, outcome: Outcome) -> tuple[bytes, bytes, Any]:
    """Return key, value and headers of a terminal record as anybody may write one."""
    source = Source(stack.names.requests(Lane.NORMAL), partition, 0)
    result = Result(task_id, "default", outcome, Lane.NORMAL, source)
    return task_id.encode(), encode(result), result_headers(result, (), None)


async def test_from_submit_to_the_answer_and_its_cached_copy(
    stack: Stack, server: ScriptedServer, tmp_path: Path
) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        http = gateway.http
        first = await submit(http, priority="High", metadata={"ward": "7"}, agent_type="symptom-check")
        code, body = await get(http, "status", first)
        assert (200, "queued", "high", "symptom-check") == (code, body["status"], body["priority"], body["agent_type"])
        assert "degraded" == (await http.get("/v1/async/health")).json()["status"]
        await stack.start_worker()
        code, body = await get(http, "result", first, wait=30)
        assert (200, "completed", {"ward": "7"}, 1) == (code, body["status"], body["metadata"], body["attempts"])
        assert server.answer(BODY["messages"][0]["content"], server.nonce) == body["output"]["content"]
        second = await submit(http, priority="low", agent_type="symptom-check")
        code, body = await get(http, "result", second, wait=30)
        assert (200, True, None, 0, "low") == (
            code,
            body["cached"],
            body["backend"],
            body["attempts"],
            body["priority"],
        )
        code, status = await get(http, "status", first)
        assert (200, "completed", 1, None) == (code, status["status"], status["attempts"], status["position"])
        assert status["created_at"] <= status["started_at"] <= status["finished_at"]
        assert 409 == (await http.delete(f"/v1/async/cancel/{first}")).status_code
        stats = (await http.get("/v1/async/stats")).json()
        assert (2, 1, {"hits": 1, "misses": 1}) == (stats["completed"], stats["workers"], stats["cache"])
        assert "healthy" == (await http.get("/v1/async/health")).json()["status"]
        assert 0 == gateway.end()
    for file in (tmp_path / "gateway").iterdir():
        assert b"a secret question" not in file.read_bytes(), file.name


async def test_a_waiting_task_is_cancelled_once_and_the_worker_leaves_it_alone(
    stack: Stack, server: ScriptedServer, tmp_path: Path
) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway, stack.reader(stack.names.results) as reader:
        task_id, other = await submit(gateway.http), await submit(gateway.http, priority="low", model="scripted")
        answers = await asyncio.gather(*(gateway.http.delete(f"/v1/async/cancel/{task_id}") for _ in range(3)))
        expected = {"task_id": task_id, "status": "cancelled", "was": "queued"}
        assert [(200, expected)] * 3 == [(each.status_code, each.json()) for each in answers]
        await stack.start_worker()
        assert "completed" == (await get(gateway.http, "result", other, wait=30))[1]["status"]
        assert "cancelled" == (await get(gateway.http, "result", task_id))[1]["status"]
        outcomes = {key: row["outcome"] for key, row in first_results(await reader.to_end()).items()}
    assert {task_id: "cancelled", other: "completed"} == outcomes
    assert 1 == sum(server.executions.values())


async def test_without_a_worker_tasks_expire_at_their_deadline_and_answered_ones_do_not(
    stack: Stack, tmp_path: Path
) -> None:
    topic, names = stack.names.requests(Lane.HIGH), stack.names
    async with (
        running_gateway(stack, tmp_path / "gateway") as gateway,
        stack.producer() as producer,
        stack.reader(names.results) as reader,
    ):
        times = {"created_at_ms": 0, "deadline_at_ms": 1_000}
        await producer.send_and_wait(topic, request("x", task_id="answered", **times), partition=0)
        key, value, headers = terminal(stack, "answered", 0, Outcome.COMPLETED)
        await producer.send_and_wait(names.results, value, key=key, headers=headers, partition=0)
        fields = {"tenant": "ward7", "metadata": {"bed": "7"}, **times}
        sent = await producer.send_and_wait(
            topic, request("x", task_id="own", **fields), partition=0, headers=[("traceparent", b"00-1")]
        )
        submitted = await submit(gateway.http, timeout_s=1)
        code, body = await get(gateway.http, "result", submitted, wait=30)
        assert (200, "expired", "deadline_expired") == (code, body["status"], body["error"]["type"])
        records = await reader.until(3)
        found = first_results(records)
        outcomes = {task_id: row["outcome"] for task_id, row in found.items()}
        assert {"answered": "completed", "own": "expired", submitted: "expired"} == outcomes
        assert [b"answered"] == [record.key for record in records if record.key == b"answered"]
        own = found["own"]
        assert ("ward7", {"bed": "7"}, 0) == (own["tenant"], own["metadata"], own["attempts"])
        assert {"topic": topic, "partition": 0, "offset": sent.offset} == own["source"]
        assert b"00-1" == dict(own["_record"].headers)["traceparent"]
        assert 1_000 <= own["_record"].timestamp - sent.timestamp <= 4_000


async def test_what_expired_while_no_gateway_ran_ends_when_one_starts(stack: Stack, tmp_path: Path) -> None:
    topic = stack.names.requests(Lane.LOW)
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        for number in range(60):
            value = request("x", task_id=f"t{number}", created_at_ms=1, deadline_at_ms=2)
            await producer.send_and_wait(topic, value, partition=number % stack.partitions)
        async with running_gateway(stack, tmp_path / "gateway"):
            found = first_results(await reader.until(60))
    assert {f"t{number}": "expired" for number in range(60)} == {key: row["outcome"] for key, row in found.items()}


async def test_a_plain_producer_s_task_is_known_wherever_it_lies(stack: Stack, tmp_path: Path) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway, stack.producer() as producer:
        for partition in range(stack.partitions):
            topic = stack.names.requests(Lane.CRITICAL)
            await producer.send_and_wait(topic, request("x", task_id=f"own-{partition}"), partition=partition)
            assert "queued" == (await get(gateway.http, "status", f"own-{partition}"))[1]["status"]
        sent = await producer.send_and_wait(topic, b"not json", partition=1)
        code, body = await get(gateway.http, "status", f"critical.1.{sent.offset}")
        assert (200, "critical") == (code, body["priority"])
        await producer.send_and_wait(topic, request("x", task_id="theirs", tenant="another"))
        assert 404 == (await get(gateway.http, "status", "theirs"))[0]
        assert 404 == (await get(gateway.http, "status", "unknown"))[0]


async def test_an_open_transaction_does_not_hold_the_view_back(stack: Stack, tmp_path: Path) -> None:
    topic = stack.names.requests(Lane.NORMAL)
    async with (
        running_gateway(stack, tmp_path / "gateway") as gateway,
        stack.producer(transactional_id=stack.prefix) as producer,
    ):
        async with producer.transaction():
            await producer.send_and_wait(topic, request("x", task_id="later"), partition=0)
            assert 404 == (await get(gateway.http, "status", "later"))[0]
        # The commit is acknowledged before its marker is in the partition.
        async with asyncio.timeout(10):
            while (found := await get(gateway.http, "status", "later"))[0] == 404:
                pass
        assert "queued" == found[1]["status"]
        await producer.begin_transaction()
        await producer.send_and_wait(topic, request("x", task_id="never"), partition=0)
        await producer.abort_transaction()
        assert 404 == (await get(gateway.http, "status", "never"))[0]


async def test_a_waiting_task_has_a_position_for_as_long_as_it_waits_in_a_live_worker(
    stack: Stack, server: ScriptedServer, tmp_path: Path
) -> None:
    server.latency_s = 600
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        http = gateway.http
        worker = await stack.start_worker()
        alone = {"cache": {"mode": "bypass"}}  # identical ones would share a call
        running = [await submit(http, priority="critical", **alone) for _ in range(stack.slots)]
        await server.until(lambda at: at.in_flight == stack.slots)
        waiting = [await submit(http, **alone) for _ in range(2)]
        seen = []
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 4  # longer than any silence of a worker
        while loop.time() < until_s:
            seen.append(tuple([(await get(http, "status", task_id))[1]["position"] for task_id in waiting]))
        async with Reader(stack.bootstrap, stack.names.workers, 1) as reader:
            sent_ms = [record.timestamp for record in await reader.to_end() if not record.key.startswith(b"gateway/")]
        # On a machine that is too busy for a worker to speak each second, not knowing is right.
        was_silent = any(later - earlier > 1_500 for earlier, later in pairwise(sent_ms[2:]))
        assert {(1, 2)} == {row for row in seen if not was_silent or None not in row}
        assert [None] * stack.slots == [(await get(http, "status", task_id))[1]["position"] for task_id in running]
        worker.kill()
        async with asyncio.timeout(10):
            while (await get(http, "status", waiting[0]))[1]["position"] is not None:
                pass
            while (await http.get("/v1/async/health")).json()["status"] != "degraded":
                pass


async def test_health_follows_the_backends_and_the_gpus(stack: Stack, tmp_path: Path) -> None:
    def sample(uuid: str, *, lost: bool = False) -> bytes:
        return encode(GPUMetrics(GpuId(uuid, 0, "card", "host"), GpuSource.SIMULATED, 0, lost=lost))

    async with running_gateway(stack, tmp_path / "gateway") as gateway, stack.producer() as producer:
        await stack.start_worker()
        topic = stack.names.gpu_metrics
        await producer.send_and_wait(topic, sample("GPU-1"), key=b"GPU-1")
        await producer.send_and_wait(topic, sample("GPU-2", lost=True), key=b"GPU-2")
        async with asyncio.timeout(10):
            while True:
                health = (await gateway.http.get("/v1/async/health")).json()
                if len(health["gpus"]) == 2 and health["backends"]:
                    break
    assert [("b1", "openai", True, 0, 8, None)] == [tuple(row.values()) for row in health["backends"]]
    assert [("GPU-1", False, False), ("GPU-2", False, True)] == [
        (row["uuid"], row["stale"], row["lost"]) for row in health["gpus"]
    ]
    assert ("degraded", ["GPU GPU-2 of host is lost"]) == (health["status"], health["reasons"])


async def test_a_result_that_the_log_no_longer_has_is_gone_at_once(stack: Stack, tmp_path: Path) -> None:
    results = TopicPartition(stack.names.results, 0)
    async with stack.producer() as producer:
        for task_id in ("a", "b", "c"):
            key, value, headers = terminal(stack, task_id, 0, Outcome.COMPLETED)
            await producer.send_and_wait(results.topic, value, key=key, partition=0, headers=headers)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.bootstrap)
    await admin.start()
    try:
        async with running_gateway(stack, tmp_path / "gateway") as gateway, asyncio.timeout(4):
            await admin.delete_records({results: RecordsToDelete(before_offset=1)})
            assert [410, 200] == [(await get(gateway.http, "result", task_id))[0] for task_id in ("a", "b")]
            await admin.delete_records({results: RecordsToDelete(before_offset=3)})
            assert 410 == (await get(gateway.http, "result", "c"))[0]
    finally:
        await admin.close()


async def test_an_id_on_two_partition_numbers_is_counted(stack: Stack, tmp_path: Path) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway, stack.producer() as producer:
        for partition in range(stack.partitions):
            topic = stack.names.requests(Lane.NORMAL)
            await producer.send_and_wait(topic, request("x", task_id="twice"), partition=partition)
        assert 200 == (await get(gateway.http, "status", "twice"))[0]
        await get(gateway.http, "status", "unknown")
        metrics = (await gateway.http.get("/metrics")).text
    assert f'triage_rejected_total{{reason="id_on_two_partitions"}} {stack.partitions - 1}.0' in metrics


class Pair:
    """Two gateways over the same logs, asked alike after each step of whatever may happen."""

    steps = ("submit", "again", "batch", "produce", "cancel", "end", "end", "cleanup")
    _order = MappingProxyType({"queued": 1, "processing": 2, "forgotten": 4})

    def __init__(self, stack: Stack, producer: Any, both: Sequence[httpx.AsyncClient], rng: random.Random) -> None:
        self._stack, self._producer, self._both, self._rng = stack, producer, both, rng
        self.ids: list[str] = []
        self.batches: list[str] = []
        # One that also lies elsewhere may be shown as another task from one moment to the next.
        self._strays: set[str] = set()
        self._known: dict[str, str] = {}

    async def step(self, number: int) -> None:
        what = self._rng.choice(self.steps) if self.ids else "submit"
        await getattr(self, f"_{what}")(number)
        await self._look(self._rng.choice(self.ids))

    async def alike(self, what: str, name: str) -> tuple[int, dict[str, Any]]:
        """Ask both; they answer the same."""
        one, two = [without_trace(await get(http, what, name)) for http in self._both]
        assert one == two
        return one

    async def _look(self, task_id: str) -> None:
        code, body = await self.alike("status", task_id)
        now = "forgotten" if code == 410 else body["status"]
        before = self._known.get(task_id, now)
        if task_id not in self._strays:
            assert self._order.get(before, 3) < self._order.get(now, 3) or before == now
        self._known[task_id] = now

    def _some(self) -> tuple[httpx.AsyncClient, str, int]:
        """Return a gateway, a task, and a partition number, often the task's."""
        task_id = self._rng.choice(self.ids)
        partitions = self._stack.partitions
        partition = self._rng.choice([home(task_id, partitions), self._rng.randrange(partitions)])
        return self._rng.choice(self._both), task_id, partition

    async def _submit(self, number: int) -> None:
        lane, metadata = self._rng.choice(list(Lane)).value, {"n": str(number)}
        self.ids.append(await submit(self._rng.choice(self._both), priority=lane, metadata=metadata))

    async def _again(self, number: int) -> None:
        both, key = self._rng.sample(self._both, 2), f"key-{number}"
        answers = [await post(http, "submit", {**BODY, "model": str(number)}, key) for http in both]
        assert answers[0] == answers[1]
        assert [422, 422] == [(await post(http, "submit", BODY, key))[0] for http in reversed(both)]
        self.ids.append(answers[0][1]["task_id"])

    async def _batch(self, _: int) -> None:
        code, made = await post(self._rng.choice(self._both), "submit-batch", {"tasks": [BODY] * 3})
        assert 202 == code
        self.batches.append(made["batch_id"])
        self.ids += made["task_ids"]

    async def _produce(self, number: int) -> None:
        _http, task_id, partition = self._some()
        self.ids.append(task_id := self._rng.choice([f"own-{number}", task_id]))
        self._at(task_id, partition)
        topic = self._stack.names.requests(self._rng.choice(list(Lane)))
        await self._producer.send_and_wait(topic, request("x", task_id=task_id), partition=partition)

    async def _cancel(self, _: int) -> None:
        http, task_id, _partition = self._some()
        assert (await http.delete(f"/v1/async/cancel/{task_id}")).status_code in (200, 409, 410)

    async def _end(self, _: int) -> None:
        _http, task_id, partition = self._some()
        self._at(task_id, partition)
        key, value, headers = terminal(self._stack, task_id, partition, self._rng.choice(list(Outcome)))
        topic = self._stack.names.results
        await self._producer.send_and_wait(topic, value, key=key, partition=partition, headers=headers)

    async def _cleanup(self, _: int) -> None:
        http, task_id, _partition = self._some()
        assert 200 == (await post(http, "cleanup", {"older_than_s": self._rng.choice([0, 0.5])}))[0]
        expected = without_trace(await get(http, "status", task_id))
        async with asyncio.timeout(5):
            for other in self._both:
                while expected != without_trace(await get(other, "status", task_id)):
                    pass
            for each in self.ids:
                while len({str(without_trace(await get(one, "status", each))) for one in self._both}) > 1:
                    pass

    def _at(self, task_id: str, partition: int) -> None:
        if partition != home(task_id, self._stack.partitions):
            self._strays.add(task_id)


async def test_two_gateways_agree_whatever_happens_and_neither_goes_back(stack: Stack, tmp_path: Path) -> None:
    async with (
        running_gateway(stack, tmp_path / "a") as one,
        running_gateway(stack, tmp_path / "b") as two,
        stack.producer() as producer,
    ):
        pair = Pair(stack, producer, [one.http, two.http], random.Random(1))
        for number in range(80):
            await pair.step(number)
        for task_id in pair.ids:
            await pair.alike("status", task_id)
            await pair.alike("result", task_id)
        for batch_id in pair.batches:
            await pair.alike("batch-status", batch_id)
        figures = [(await each.http.get("/v1/async/stats")).json() for each in (one, two)]
        for name in ("queued", "processing", *list(Outcome)):
            assert figures[0][name] == figures[1][name]


async def test_what_belongs_together_survives_a_crash_and_is_known_to_a_fresh_gateway(
    stack: Stack, tmp_path: Path
) -> None:
    folder, body = tmp_path / "gateway", {"tasks": [{**BODY, "priority": lane.value} for lane in Lane]}
    async with running_gateway(stack, folder) as gateway:
        http = gateway.http
        code, batch = await post(http, "submit-batch", body, "key-1")
        assert (202, 4) == (code, batch["accepted"])
        single = await post(http, "submit", BODY, "key-2")
        own = await post(http, "submit", {**BODY, "task_id": "ward7-1"})
        assert "ward7-1" == own[1]["task_id"]
        for task_id in batch["task_ids"][:2]:
            await http.delete(f"/v1/async/cancel/{task_id}")
        standing = await get(http, "batch-status", batch["batch_id"])
        assert (200, 2, 2) == (standing[0], standing[1]["cancelled"], standing[1]["pending"])
        assert {"forgotten": 2, "trace_id": None} == (await post(http, "cleanup", {"older_than_s": 0}))[1]
        kept = [
            await get(http, "batch-status", batch["batch_id"]),
            (await http.get("/v1/async/stats")).json()["cancelled"],
        ]
        gateway.end(signal.SIGKILL)
    for each in (folder, tmp_path / "fresh"):
        async with running_gateway(stack, each) as gateway:
            http = gateway.http
            assert (202, batch) == await post(http, "submit-batch", body, "key-1")
            assert single == await post(http, "submit", BODY, "key-2")
            assert own == await post(http, "submit", {**BODY, "task_id": "ward7-1"})
            assert 409 == (await post(http, "submit", {**BODY, "task_id": "ward7-1", "model": "m"}))[0]
            assert 422 == (await post(http, "submit-batch", {"tasks": [BODY]}, "key-1"))[0]
            assert kept[0] == await get(http, "batch-status", batch["batch_id"])
            assert [410, 410] == [(await get(http, "result", task_id))[0] for task_id in batch["task_ids"][:2]]
            async with asyncio.timeout(5):
                while (await http.get("/v1/async/stats")).json()["cancelled"] != 0:
                    pass
    async with stack.reader(stack.names.requests(Lane.NORMAL)) as reader:
        assert 3 == len(await reader.to_end())


async def test_a_stream_tells_a_batch_to_its_end_and_goes_on_at_another_gateway(
    stack: Stack, server: ScriptedServer, tmp_path: Path
) -> None:
    async def told(http: httpx.AsyncClient, last: str | None, most: int) -> list[tuple[str, str]]:
        headers = {"Last-Event-ID": last} if last else {}
        found: list[tuple[str, str]] = []
        async with http.stream("GET", "/v1/async/events", params={"batch_id": batch_id}, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    ids.append(line.removeprefix("id: "))
                elif line.startswith("data: "):
                    body = json.loads(line.removeprefix("data: "))
                    found.append((body["task_id"], body["status"]))
                    if len(found) == most:
                        break
        return found

    ids: list[str] = []
    async with running_gateway(stack, tmp_path / "a") as one, running_gateway(stack, tmp_path / "b") as two:
        texts = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(6)]
        batch = (await post(one.http, "submit-batch", {"tasks": texts}))[1]
        batch_id = batch["batch_id"]
        assert [(task_id, "queued") for task_id in batch["task_ids"]] == await told(one.http, None, 6)
        await stack.start_worker()
        rest = await told(two.http, ids[-1], 8)
        rest += await told(one.http, ids[-1], 100)
        ended = [task_id for task_id, status in rest if status == "completed"]
        assert sorted(batch["task_ids"]) == sorted(ended)
        assert {"processing", "completed"} >= {status for _, status in rest}
        assert (
            204
            == (
                await two.http.get(
                    "/v1/async/events", params={"batch_id": batch_id}, headers={"Last-Event-ID": ids[-1]}
                )
            ).status_code
        )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_forgets_nothing(
    stack: Stack, server: ScriptedServer, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "gateway"
    server.latency_s = 600
    async with running_gateway(stack, folder) as gateway:
        http = gateway.http
        ended, waiting = await submit(http), await submit(http, model="nobody-has-this-one")
        await http.delete(f"/v1/async/cancel/{ended}")
        await stack.start_worker()
        unknown = await get(http, "result", waiting, wait=30)
        running = await submit(http, priority="critical")
        await server.until(lambda at: at.in_flight == 1)
        while (before := await get(http, "status", running))[1]["status"] == "queued":
            pass  # the backend may be quicker than the `started` record
        kept = {task_id: await get(http, "result", task_id) for task_id in (ended, waiting)}
        gateway.end(how)
    assert ("failed", "unknown_model") == (unknown[1]["status"], unknown[1]["error"]["type"])
    async with running_gateway(stack, folder) as gateway:
        assert before == await get(gateway.http, "status", running)
        assert kept == {task_id: await get(gateway.http, "result", task_id) for task_id in kept}
    if how is signal.SIGTERM:
        return
    for worker in stack.workers:
        worker.kill()
    async with running_gateway(stack, tmp_path / "fresh") as gateway:
        assert before == await get(gateway.http, "status", running)
        assert kept == {task_id: await get(gateway.http, "result", task_id) for task_id in kept}


async def test_until_it_has_caught_up_it_says_503_and_never_404(stack: Stack, tmp_path: Path) -> None:
    count = 30_000
    async with stack.producer(linger_ms=20) as producer:
        sent = []
        for number in range(count):
            key, value, headers = terminal(stack, f"t-{number}", number % 3, Outcome.COMPLETED)
            sent.append(await producer.send(stack.names.results, value, key=key, partition=number % 3, headers=headers))
        await asyncio.gather(*sent)
    codes: list[int] = []
    process = spawn(stack, tmp_path / "gateway", port=(port := free_port()))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            async with asyncio.timeout(60):
                while not codes or codes[-1] == 503:
                    try:
                        codes.append((await http.get(f"/v1/async/status/t-{count - 1}")).status_code)
                    except httpx.TransportError:
                        await asyncio.sleep(0.01)
            assert {503, 200} == set(codes)
            assert 200 == (await http.get("/healthz/ready")).status_code
            assert count == (await http.get("/v1/async/stats")).json()["completed"]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_it_waits_for_brokers_answers_503_meanwhile_and_ends_cleanly(tmp_path: Path) -> None:
    stack = Stack(f"127.0.0.1:{free_port()}", tmp_path, [], creates_topics=False)
    stack.config.write_text(stack.settings())
    process = spawn(stack, tmp_path / "gateway", port=(port := free_port()))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            async with asyncio.timeout(30):
                while True:
                    try:
                        health = await http.get("/v1/async/health")
                        break
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
            assert (503, "waiting") == (health.status_code, health.json()["kafka"])
            assert 503 == (await http.post("/v1/async/submit", json=BODY)).status_code
            assert 503 == (await get(http, "status", "t"))[0]
            assert 200 == (await http.get("/healthz/live")).status_code
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(15)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert "waiting for Kafka at" in (tmp_path / "gateway" / "gateway.log").read_text()


async def test_calls_that_wait_end_with_the_gateway(stack: Stack, tmp_path: Path) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        task_id = await submit(gateway.http)
        waiting = asyncio.create_task(get(gateway.http, "result", task_id, wait=60))
        await get(gateway.http, "status", task_id)
        assert 0 == await asyncio.to_thread(gateway.end)
        assert (202, "queued") == ((await waiting)[0], (await waiting)[1]["status"])


async def test_a_gateway_is_seen_in_the_workers_topic_and_leaves_it(stack: Stack, tmp_path: Path) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        assert 0 == (await gateway.http.get("/v1/async/stats")).json()["workers"]
        assert 0 == await asyncio.to_thread(gateway.end)
    async with Reader(stack.bootstrap, stack.names.workers, 1) as reader:
        records = await reader.to_end()
    assert [True, False] == [record.value is not None for record in records]
    assert {True} == {record.key.startswith(b"gateway/") for record in records}


@pytest.mark.parametrize(
    ("variables", "code", "says"),
    [
        ({"TRIAGE_GATEWAY__HOST": "0.0.0.0", "ALLOW_INSECURE_DEV": "false"}, 2, "lets everyone in"),
        ({"TRIAGE_AUTH__MODES": '["jwt"]'}, 1, "not there yet"),
        ({"TRIAGE_KAFKA__PREFIX": "nothing-there"}, 1, "triage topics apply"),
    ],
)
def test_what_it_refuses_to_start_with(
    kafka: str, tmp_path: Path, variables: dict[str, str], code: int, says: str
) -> None:
    settings = {"TRIAGE_KAFKA__BOOTSTRAP": kafka, "TRIAGE_GATEWAY__PORT": "0", "HOME": str(tmp_path), **variables}
    command = [sys.executable, "-m", "cli", "gateway"]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert (code, True) == (ended.returncode, says in ended.stderr), ended.stderr
