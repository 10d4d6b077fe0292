"""No prompt and no answer text outside of the records that carry them: not in logs, metrics, errors or headers of dead letters."""

from __future__ import annotations

import asyncio
import re
from urllib.request import urlopen

import orjson
import pytest
from aiohttp import web

from schemas.topics import Lane
from tests.support.scripted import Body, Reply, ScriptedServer
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka

PROMPT, ANSWER = "zzpromptzz", "zzanswerzz"


def quoting(status: int, text: str) -> Reply:
    """A server that says in its error what it was asked."""

    async def reply(_request: web.Request, body: Body) -> web.Response:
        said = {"error": {"message": f"cannot {body['messages'][-1]['content']}: {text}"}}
        return web.json_response(said, status=status)

    return reply


async def cut(_request: web.Request, body: Body) -> web.Response:
    return web.Response(text=f'{{"choices": [{{"message": {{"content": "{ANSWER} {body["messages"][-1]["content"]}')


FAULTS: dict[str, Reply] = {"refused": quoting(400, ANSWER), "overrun": quoting(413, ANSWER), "cut": cut}
REQUESTS = {
    **{name: request(f"{PROMPT} {name}", task_id=name) for name in ("fine", *FAULTS)},
    "wrong": orjson.dumps({"task_id": "wrong", "messages": PROMPT, "parameters": PROMPT}),
    "unreadable": f'{{"messages": [{{"content": "{PROMPT}"'.encode(),
}


async def test_should_tell_nobody_what_was_asked_or_answered(stack: Stack, server: ScriptedServer) -> None:
    server.answer = lambda _prompt, _nonce: ANSWER
    server.fault_for = lambda body: FAULTS.get(body["messages"][-1]["content"].split()[-1])
    await stack.start_worker()
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        for value in REQUESTS.values():
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), value)
        results = first_results(await reader.until(len(REQUESTS)))
    async with stack.reader(stack.names.dead_letters) as reader:
        letters = await reader.to_end()
    assert ["completed"] + ["failed"] * 5 == sorted(row["outcome"] for row in results.values())
    assert 5 == len(letters)
    written = stack.log.read_text()
    [port] = re.findall(r'"metrics_port": ?(\d+)', written)
    told = {
        "log": written,
        "metrics": await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()),
        "errors": str([row["error"] for row in results.values()]),
        "headers": str([[*row["_record"].headers] for row in results.values()] + [[*each.headers] for each in letters]),
    }
    assert dict.fromkeys(told, (False, False)) == {
        name: (PROMPT in text, ANSWER in text) for name, text in told.items()
    }
    assert ANSWER == results["fine"]["output"]["content"]
