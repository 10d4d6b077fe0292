"""A server that takes a whole batch in one call, behind a real Kafka: one bad item ends alone, nobody gets another's answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.topics import Lane
from tests.support.scripted import ScriptedServer, expected_answer, status
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka

WINDOW = "[lanes.normal]\nwindow_ms = 500"
BAD = "too long for this server"


async def test_should_end_the_one_bad_task_of_a_batch_as_poison_and_complete_its_mates(
    kafka: str, tmp_path: Path, server: ScriptedServer
) -> None:
    server.fault_for = lambda body: status(400, {"type": "x"}) if body["messages"][-1]["content"] == BAD else None
    texts = {f"task-{n}": BAD if n == 5 else f"question {n}" for n in range(12)}
    async with Stack(kafka, tmp_path, [("vllm", server.url)], backend_extra=WINDOW, slots=16) as stack:
        await stack.start_worker()
        async with stack.producer() as producer:
            topic = stack.names.requests(Lane.NORMAL)
            sends = [
                await producer.send(topic, request(text, task_id=name, cache={"mode": "bypass"}), key=name.encode())
                for name, text in texts.items()
            ]
            await asyncio.gather(*sends)
        async with stack.reader(stack.names.results) as reader:
            found = dict(first_results(await reader.until(12)))
        async with stack.reader(stack.names.dead_letters) as reader:
            (letter,) = await reader.until(1)

    assert {"task-5": "failed"} == {
        name: row["outcome"] for name, row in found.items() if row["outcome"] != "completed"
    }
    assert ("poison", False) == (found["task-5"]["error"]["type"], found["task-5"]["error"]["retriable"])
    assert b"task-5" == letter.key
    for name, row in found.items():
        if name != "task-5":
            assert expected_answer(texts[name], server.nonce) == row["output"]["content"]
            assert 1 == row["attempts"]
    assert max(len(prompts) for prompts in server.batches) > 1
    assert len(server.bodies) < 12
