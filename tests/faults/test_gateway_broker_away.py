"""A gateway whose only broker is killed and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cli.embedded.kafka import KafkaCluster
from tests.gateway.process import running_gateway
from tests.support.stack import Stack, first_results

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

BODY = {"messages": [{"role": "user", "content": "hello"}]}


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 40) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.1)


async def test_it_says_503_while_the_broker_is_away_and_goes_on_after_it(tmp_path: Path) -> None:
    with KafkaCluster() as cluster:
        async with Stack(cluster.bootstrap, tmp_path, []) as stack, running_gateway(stack, tmp_path / "g") as gateway:
            http = gateway.http

            async def is_healthy() -> bool:
                return (await http.get("/v1/async/health")).status_code == 200

            async def is_unhealthy() -> bool:
                return not await is_healthy()

            before = (await http.post("/v1/async/submit", json=BODY)).json()["task_id"]
            cluster.kill(1)
            refused = await http.post("/v1/async/submit", json=BODY)
            assert (503, "urn:triage:problem:outcome-unknown") == (refused.status_code, refused.json()["type"])
            await until(is_unhealthy)
            for path in ("status", "result"):
                assert 503 == (await http.get(f"/v1/async/{path}/{before}")).status_code
            assert 503 == (await http.get("/healthz/ready")).status_code
            assert 200 == (await http.get("/healthz/live")).status_code
            cluster.restart(1)
            await until(is_healthy)
            assert 200 == (await http.get(f"/v1/async/status/{before}")).status_code
            after = await http.post("/v1/async/submit", json=BODY)
            assert 202 == after.status_code
            cancelled = await http.delete(f"/v1/async/cancel/{after.json()['task_id']}")
            assert (200, "cancelled") == (cancelled.status_code, cancelled.json()["status"])
            async with stack.reader(stack.names.results) as reader:
                assert {after.json()["task_id"]} == set(first_results(await reader.to_end()))
            assert 0 == gateway.end()
