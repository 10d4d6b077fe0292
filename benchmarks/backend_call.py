"""CPU of one model call: `OpenAIBackend.complete` beside a bare aiohttp loop, alternating in one process.

The server is a process of its own that answers without looking, so what is measured is the client's side alone.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
import orjson
import uvloop

from agents.backends.kinds import KINDS, KindName
from agents.backends.openai import OpenAIBackend
from streams.ports import Call
from streams.settings import BackendSettings

_KINDS: tuple[KindName, ...] = ("vllm", "llamacpp")
CALLS, AT_ONCE, ROUNDS = 2000, 16, 7
PROMPT = "The patient reports a headache since yesterday and asks what to do. " * 10
CALL = Call("task-1", "tiny", [{"role": "user", "content": PROMPT}], {"max_tokens": 64, "temperature": 0.2})
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Rest, drink. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 140, "completion_tokens": 64, "total_tokens": 204},
    }
)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class _Server(asyncio.Protocol):
    """Answers every request that has come whole; clients here send one at a time per connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not an instance of it
        self._missing: int | None = None

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            head, _, body = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._missing = int(length) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._missing = None
            self._transport.write(REPLY)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _cpu_ms_per_call(one: Callable[[], Awaitable[object]]) -> float:
    async def several() -> None:
        for _ in range(CALLS // AT_ONCE):
            await one()

    before = time.process_time()
    await asyncio.gather(*(several() for _ in range(AT_ONCE)))
    return (time.process_time() - before) * 1000 / CALLS


@asynccontextmanager
async def _bare(url: str, kind: KindName) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    body = orjson.dumps({"model": CALL.model, "messages": CALL.messages, **CALL.parameters})
    connector = aiohttp.TCPConnector(force_close=not KINDS[kind].keeps_connections)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:

        async def one() -> bytes:
            async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                return await response.read()

        yield one


async def _compare(url: str, kind: KindName) -> tuple[float, float]:
    backend = OpenAIBackend(BackendSettings(name="b", kind=kind, url=url))
    bare_ms, ours_ms = [], []
    async with _bare(url, kind) as bare:
        for round_number in range(ROUNDS + 1):
            bare_now = await _cpu_ms_per_call(bare)
            ours_now = await _cpu_ms_per_call(lambda: backend.complete(CALL, timeout_s=60))
            if round_number:  # the first one warms up
                bare_ms.append(bare_now)
                ours_ms.append(ours_now)
    await backend.close()
    return statistics.median(bare_ms), statistics.median(ours_ms)


def _print(kind: KindName, bare_ms: float, ours_ms: float) -> None:
    connections = "kept connections" if KINDS[kind].keeps_connections else "a connection per call"
    figures = f"bare aiohttp {bare_ms:.3f} ms, OpenAIBackend {ours_ms:.3f} ms, ratio {ours_ms / bare_ms:.2f}"
    print(f"backend call, CPU, {kind} ({connections}): {figures}")


def main() -> None:
    """Print both, in milliseconds of CPU per call."""
    with subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for kind in _KINDS:
                    _print(kind, *runner.run(_compare(f"http://127.0.0.1:{port}", kind)))
        finally:
            server.kill()


if __name__ == "__main__":
    if "--serve" in sys.argv:
        uvloop.run(_serve())
    else:
        main()
