"""Identical requests on a real Kafka: one call, a result each, and a cancel of the first leaves the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from schemas.result import Source
from schemas.topics import Lane
from tests.integration.test_delivery import cancel
from tests.support.scripted import Body, ScriptedServer, chat_body
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka


async def test_should_answer_identical_requests_by_one_call_and_go_on_when_the_first_is_cancelled(
    stack: Stack, server: ScriptedServer
) -> None:
    proceed = asyncio.Event()

    async def later(_request: web.Request, body: Body) -> web.StreamResponse:
        await proceed.wait()
        return web.json_response(chat_body("the same for all"))

    server.script.append(later)
    await stack.start_worker()
    async with stack.producer() as producer:
        topic = stack.names.requests(Lane.NORMAL)
        sent: dict[str, Any] = {}
        for number, name in enumerate(("first", "second", "third")):
            value = request("the same", task_id=name)
            sent[name] = await producer.send_and_wait(topic, value, key=name.encode(), partition=number)
            if name == "first":
                await server.until(lambda s: s.in_flight == 1)
        async with stack.reader(stack.names.workers, partitions=1) as snapshots:
            await snapshots.until_one(lambda r: b'"second"' in (r.value or b"") and b'"third"' in r.value)
        await cancel(stack, "first", Source(topic, sent["first"].partition, sent["first"].offset))
        async with stack.reader(stack.names.results) as reader:
            await reader.until(1)
            proceed.set()
            found = dict(first_results(await reader.until(3)))

    assert {"first": "cancelled", "second": "completed", "third": "completed"} == {
        name: row["outcome"] for name, row in found.items()
    }
    for name in ("second", "third"):
        row = found[name]
        assert ("the same for all", "first", False, 0) == (
            row["output"]["content"],
            row["coalesced_with"],
            row["cached"],
            row["attempts"],
        )
        assert sent[name].partition == row["source"]["partition"] == row["_record"].partition
    assert 1 == server.executions["the same"]
    assert 0 == server.disconnected
