"""The verbs for single tasks and for health, on a real Kafka, a real worker and a real gateway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli import direct, heard
from cli.errors import Failed
from cli.main import main
from schemas.codec import decode, encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.ids import home
from schemas.progress import WorkerSnapshot
from schemas.result import Outcome, Result
from schemas.topics import Lane
from tests.gateway.process import running_gateway
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack, request
from wire.clock import wall_ms

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Done:
    """How a verb ended and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Verbs:
    """Runs verbs in this process, on a stack's settings."""

    stack: Stack
    capsys: pytest.CaptureFixture[str]

    async def __call__(self, *verb: str) -> Done:
        code = await asyncio.to_thread(main, [*verb, "--config", str(self.stack.config)])
        return Done(code, *self.capsys.readouterr())

    async def told(self, *verb: str, code: int = 0) -> dict[str, Any]:
        """Run a verb with --json and return its object."""
        done = await self(*verb, "--json")
        assert (code, "") == (done.code, done.err if code == 0 else "")
        found: dict[str, Any] = json.loads(done.out)
        return found


@pytest.fixture
def triage(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Verbs:
    return Verbs(stack, capsys)


async def test_waiting_ends_when_nobody_is_there_to_end_the_task(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_NOBODY_S", 0.5)
    with pytest.raises(Failed, match="no worker and no gateway runs"):
        await direct.submit(stack.kafka, Lane.LOW, "nobodys", request("hi"), wait=True, deadline_s=0.5)


async def test_a_cancelled_task_stays_cancelled_whatever_comes_after(
    stack: Stack, server: ScriptedServer, triage: Verbs
) -> None:
    away = (home("ward7-1", stack.partitions) + 1) % stack.partitions
    topic = stack.names.requests(Lane.HIGH)
    fields = {"task_id": "ward7-1", "tenant": "ward7", "agent_type": "nurse", "metadata": {"bed": "3"}}
    trace = [("traceparent", b"00-1"), ("other", b"x")]
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        unknown = await triage("cancel", "ward7-1")
        assert (4, "triage: No task ward7-1 is known on any partition.\n") == (unknown.code, unknown.err)
        assert [] == await reader.to_end()
        sent = await producer.send_and_wait(topic, request("x", **fields), partition=away, headers=trace)
        body = await triage.told("status", "ward7-1")
        place = {"topic": topic, "partition": away, "offset": sent.offset}
        assert ("queued", place, 0) == (body["status"], body["source"], body["attempts"])
        cancelled = {"task_id": "ward7-1", "status": "cancelled", "was": "queued"}
        assert cancelled == await triage.told("cancel", "ward7-1")
        (record,) = await reader.to_end()
        result = decode(Result, record.value)
        assert (b"ward7-1", away, Outcome.CANCELLED) == (record.key, record.partition, result.outcome)
        assert ("ward7", Lane.HIGH, "nurse", {"bed": "3"}) == (
            result.tenant,
            result.priority,
            result.agent_type,
            result.metadata,
        )
        headers = dict(record.headers)
        assert (b"cancelled", b"00-1", False) == (
            headers["triage.outcome"],
            headers["traceparent"],
            "other" in headers,
        )
        before = await triage.told("status", "ward7-1")
        late = encode(replace(result, outcome=Outcome.COMPLETED, error=None))
        await producer.send_and_wait(stack.names.results, late, key=b"ward7-1", partition=away)
        assert before == await triage.told("status", "ward7-1")
        assert "cancelled" == before["status"]
        assert cancelled == await triage.told("cancel", "ward7-1")
        assert 2 == len(await reader.to_end())
        await stack.start_worker()
        await producer.send_and_wait(topic, request("y", task_id="next"), partition=away)
        await reader.until(2)
    assert 1 == sum(server.executions.values())
    ended = await triage("cancel", "next")
    assert (1, "triage: next is not cancelled: its outcome is completed\n") == (ended.code, ended.err)


async def test_a_task_at_a_backend_is_processing_until_it_is_cancelled(
    stack: Stack, server: ScriptedServer, triage: Verbs
) -> None:
    server.latency_s = 600
    await stack.start_worker()
    async with stack.reader(stack.names.progress) as progress:
        task_id = (await triage("submit", "hello", "--priority", "critical")).out.strip()
        await progress.until(1)
    body = await triage.told("status", task_id)
    assert ("processing", 1, "critical") == (body["status"], body["attempts"], body["priority"])
    assert body["created_at"] <= body["started_at"]
    assert "processing" == (await triage.told("cancel", task_id))["was"]


async def test_through_a_gateway_it_is_the_same(
    stack: Stack, server: ScriptedServer, triage: Verbs, tmp_path: Path
) -> None:
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        through = ("--gateway", str(gateway.http.base_url).rstrip("/"))
        sent = await triage.told("submit", "hello", "--priority", "High", "--deadline", "60s", *through)
        task_id = sent["task_id"]
        assert ("queued", "high") == (sent["status"], sent["priority"])
        direct, remote = await triage.told("status", task_id), await triage.told("status", task_id, *through)
        assert {**remote, "source": direct["source"], "retry": None} == {**direct, "position": remote["position"]}
        waits = await triage("result", task_id, *through)
        assert (1, f"triage: {task_id} is unfinished (queued): it waits on its lane.\n") == (
            waits.code,
            waits.err,
        )
        assert {"task_id": task_id, "status": "cancelled", "was": "queued"} == await triage.told(
            "cancel", task_id, *through
        )
        assert "cancelled" == (await triage.told("status", task_id))["status"]
        assert "degraded" == (await triage.told("health", *through, code=1))["status"]
        await stack.start_worker()
        answer = await triage("submit", "hi", "--wait", *through)
        assert (0, server.answer("hi", server.nonce) + "\n") == (answer.code, answer.out)
        assert 4 == (await triage("status", "unknown", *through)).code
        refused = await triage("submit", "", "--deadline", "1ms", "--model", "m" * 300, *through)
        assert (2, "") == (refused.code, refused.out)
        assert "says 422: /model" in refused.err


async def test_health_tells_what_is_wrong_and_then_that_all_is_well_by_kafka_s_clock(
    stack: Stack, triage: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack.producer() as producer:
        old = WorkerSnapshot("w-old", "box", 1, 0)
        await producer.send_and_wait(stack.names.workers, encode(old), key=b"gateway/g-1", partition=0)
        body = await triage.told("health", code=1)
        assert (1, 0, ["workers: none heard of in the last 5 s"]) == (
            body["brokers"],
            body["workers"],
            body["reasons"],
        )
        assert (["g-1"], True) == ([each["id"] for each in body["gateways"]], body["allow_insecure_dev"])
        await stack.start_worker()
        card = encode(GPUMetrics(GpuId("GPU-1", 0, "card", "box"), GpuSource.SIMULATED, 0))
        async with asyncio.timeout(30):
            # The worker is ready before its snapshot says that the backend answers; and a sample is stale after 5 s.
            while body["status"] != "healthy":
                await producer.send_and_wait(stack.names.gpu_metrics, card, key=b"GPU-1", partition=0)
                body = json.loads((await triage("health", "--json")).out)
    assert ([], 1) == (body["reasons"], body["workers"])
    assert [("b1", True)] == [(each["name"], each["up"]) for each in body["backends"]]
    assert [("GPU-1", False, False)] == [(each["uuid"], each["stale"], each["lost"]) for each in body["gpus"]]
    # A clock that is an hour ahead does not make them look dead: the next snapshot tells the time.
    monkeypatch.setattr(heard, "wall_ms", lambda: wall_ms() + 3_600_000)
    seen = await heard.look(stack.kafka)
    assert abs(seen.now_ms - wall_ms()) < 60_000
