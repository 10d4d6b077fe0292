"""A model server that answers by a function and fails as told: a small real HTTP server in the test's own loop."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from aiohttp import web

Body = dict[str, Any]
Reply = Callable[[web.Request, Body], Awaitable[web.StreamResponse]]
"""Answers one chat request instead of the server: a fault, mostly."""


def expected_answer(prompt: str, nonce: str) -> str:
    """Return what a scripted server answers: nobody can know it who did not ask the server with this nonce."""
    return hashlib.sha256(f"{nonce}\n{prompt}".encode()).hexdigest()[:32]


def chat_body(content: str | None, *, model: str = "scripted", prompt_tokens: int = 3, **message: Any) -> Body:
    """Return a whole chat answer; `message` adds to or replaces its message's fields."""
    words = len((content or "").split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": words, "total_tokens": prompt_tokens + words},
    }


@dataclass
class ScriptedServer:
    """Use as `async with ScriptedServer() as server`; afterwards its port is closed.

    `script` holds replies for the next requests, in their order; without one `fault_for` is asked, where None means a
    good answer. `executions` counts the requests by prompt, however they ended; those whose client left are counted in
    `disconnected` as well. `watch` is told `began` and `ended` of each chat request, with its number and its prompt.

    A batch of conversations, and a list of prompts, is one request with an item for each: what befalls one item befalls the
    request. `batches` holds the prompts of each; `arrange` may change the choices before they are sent.
    """

    answer: Callable[[str, str], str] = expected_answer
    models: tuple[str, ...] = ("scripted",)
    slots: int = 4
    latency_s: float = 0.0
    fault_for: Callable[[Body], Reply | None] = lambda body: None
    watch: Callable[[str, int, str], None] = lambda what, call, prompt: None
    arrange: Callable[[list[Body]], list[Body]] = lambda choices: choices
    health: int = 200
    script: deque[Reply] = field(default_factory=deque)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    executions: Counter[str] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0
    disconnected: int = 0
    calls: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._changed = asyncio.Condition()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/chat/completions/batch", self._batch)
        app.router.add_post("/v1/completions", self._prompts)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/props", self._props)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)  # the same one when entered again
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def until(self, condition: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Wait until `condition` holds; looked at whenever a request begins or ends."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body: Body = orjson.loads(await request.read())
        return await self._serve(request, body, [body], lambda answers: chat_body(answers[0], model=str(body["model"])))

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        body: Body = orjson.loads(await request.read())
        items = [{**body, "messages": messages} for messages in body["messages"]]
        return await self._together(
            request, body, items, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    async def _prompts(self, request: web.Request) -> web.StreamResponse:
        body: Body = orjson.loads(await request.read())
        items = [{**body, "messages": [{"role": "user", "content": prompt}]} for prompt in body["prompt"]]
        return await self._together(request, body, items, lambda text: {"text": text})

    async def _together(
        self, request: web.Request, body: Body, items: list[Body], said: Callable[[str], Body]
    ) -> web.StreamResponse:
        self.batches.append([_prompt(item) for item in items])

        def answer(answers: list[str]) -> Body:
            choices = [{"index": i, **said(text), "finish_reason": "stop"} for i, text in enumerate(answers)]
            whole = chat_body(" ".join(answers), model=str(body["model"]), prompt_tokens=3 * len(items))
            return {**whole, "choices": self.arrange(choices)}

        return await self._serve(request, body, items, answer)

    async def _serve(
        self, request: web.Request, body: Body, items: list[Body], answer: Callable[[list[str]], Body]
    ) -> web.StreamResponse:
        prompts = [_prompt(item) for item in items]
        calls = range(self.calls + 1, self.calls + 1 + len(prompts))
        self.calls += len(prompts)
        self.executions.update(prompts)
        for call, prompt in zip(calls, prompts, strict=True):
            self.watch("began", call, prompt)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        self.in_flight += len(prompts)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._notify()
        try:
            reply = self.script.popleft() if self.script else None
            if reply is None:
                reply = next((fault for item in items if (fault := self.fault_for(item))), None)
            if reply is not None:
                return await reply(request, body)
            await asyncio.sleep(self.latency_s)
            return web.json_response(answer([self.answer(prompt, self.nonce) for prompt in prompts]))
        except asyncio.CancelledError:
            self.disconnected += 1
            raise
        finally:
            for call, prompt in zip(calls, prompts, strict=True):
                self.watch("ended", call, prompt)
            self.in_flight -= len(prompts)
            await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _models(self, request: web.Request) -> web.Response:
        entries = [{"id": name, "object": "model", "max_model_len": 4096} for name in self.models]
        return web.json_response({"object": "list", "data": entries})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response({"total_slots": self.slots})


def _prompt(body: Body) -> str:
    return str(body["messages"][-1].get("content"))


def status(code: int, error: object = None, **headers: str) -> Reply:
    """Reply with an error; an underscore in a header's name stands for a dash."""

    async def reply(request: web.Request, body: Body) -> web.StreamResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": error}, status=code, headers=names)

    return reply


def raw(data: bytes, *, content_type: str = "application/json", code: int = 200) -> Reply:
    """Reply with these bytes."""

    async def reply(request: web.Request, body: Body) -> web.StreamResponse:
        return web.Response(body=data, status=code, headers={"Content-Type": content_type})

    return reply


def document(value: object) -> Reply:
    """Reply with this JSON."""
    return raw(orjson.dumps(value))


def wrong_model() -> Reply:
    """Reply as vLLM does for a model that it does not have, with the name in the text."""

    async def reply(request: web.Request, body: Body) -> web.StreamResponse:
        error = {"message": f"The model `{body['model']}` does not exist.", "type": "NotFoundError", "code": 404}
        return web.json_response({"error": error}, status=404)

    return reply


async def hang(request: web.Request, body: Body) -> web.StreamResponse:
    """Never reply."""
    await asyncio.Event().wait()
    raise AssertionError


async def hang_up(request: web.Request, body: Body) -> web.StreamResponse:
    """Close the connection without a word."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def reset(request: web.Request, body: Body) -> web.StreamResponse:
    """Reset the connection in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


async def drip(request: web.Request, body: Body) -> web.StreamResponse:
    """Send a space every 10 ms for ever: bytes come, an answer does not."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


def huge(size_bytes: int, *, told: bool) -> Reply:
    """Reply with an answer of this size; without `told` in chunks, so that no header announces it."""

    async def reply(request: web.Request, body: Body) -> web.StreamResponse:
        data = orjson.dumps(chat_body("x" * size_bytes))
        if told:
            return web.Response(body=data, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for start in range(0, len(data), 1 << 18):
            await response.write(data[start : start + (1 << 18)])
        await response.write_eof()
        return response

    return reply
