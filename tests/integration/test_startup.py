"""A worker serves, and can be stopped, while its tables are still read: that takes as long as they are large."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents.app import Worker
from agents.transport import TableManager
from cli.configuration import load
from schemas.topics import Lane
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def _never_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any) -> bool:
        return bool(await self.wait_for_stopped(asyncio.Event())) if len(self) else False

    monkeypatch.setattr(TableManager, "wait_until_recovery_completed", never)


async def test_should_serve_and_stop_while_its_tables_are_read(stack: Stack) -> None:
    stop, ready = asyncio.Event(), asyncio.Event()
    worker = Worker(load(stack.config).settings, datadir=stack.folder / "data", session_s=1.5)
    working = asyncio.create_task(worker.run(stop, ready=ready))
    async with asyncio.timeout(30):
        await ready.wait()
        async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), request(task_id="a"))
            results = first_results(await reader.until(1))
        stop.set()
        await working
    assert {"a": "completed"} == {task_id: row["outcome"] for task_id, row in results.items()}
