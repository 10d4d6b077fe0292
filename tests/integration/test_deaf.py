"""A worker that fetches no more ends, so that its supervisor starts it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents import app, ends
from agents.app import Worker, WorkerCrashed
from cli.configuration import load
from schemas.topics import Lane
from tests.support.stack import Stack, request

pytestmark = pytest.mark.kafka


async def test_should_end_when_a_lane_is_fetched_no_more(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "_EVERY_S", 0.2)
    monkeypatch.setattr(app, "_TICK_S", 0.2)
    ready = asyncio.Event()
    worker = Worker(load(stack.config).settings, datadir=stack.folder / "data", session_s=1.5)
    working = asyncio.create_task(worker.run(asyncio.Event(), ready=ready))
    async with asyncio.timeout(50):
        await ready.wait()
        intake = next(each for each in worker._intakes if each.lane is Lane.LOW)
        intake.watchdog.after_s = 4.0
        thread: Any = intake.app.consumer._thread  # type: ignore[attr-defined]
        thread.thread_loop.call_soon_threadsafe(thread._consumer._fetcher._fetch_task.cancel)
        async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
            # The fetch that is under way still brings what comes first.
            await producer.send_and_wait(stack.names.requests(Lane.LOW), request(task_id="a"))
            await reader.until(1)
            await producer.send_and_wait(stack.names.requests(Lane.LOW), request(task_id="b"))
        with pytest.raises(WorkerCrashed, match=r"requests\.low has stood still for 60 s with records to read"):
            await working
