"""A model server that costs next to nothing: answers every POST after a fixed time. `python -m benchmarks.stub PORT MS [SLOTS]`.

A batch of conversations gets an answer for each that only its own can have: the CRC of the last message.
With SLOTS it works on so many calls at once, and the others wait, first come first served.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections import deque
from typing import Any, ClassVar

import orjson
import uvloop

_ANSWER = orjson.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "stub answer"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
    }
)
_MODELS = orjson.dumps({"object": "list", "data": [{"id": "stub", "object": "model"}]})


def _response(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_ANSWERED, _LISTED = _response(_ANSWER), _response(_MODELS)


class Stub(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time per connection, as our clients send them."""

    latency_s = 0.02
    free_slots = 1 << 30
    waiting: ClassVar[deque[tuple[Stub, bytes]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        self._buffer = b""
        if head.startswith(b"POST"):
            is_batch = head.startswith(b"POST /v1/chat/completions/batch")
            Stub.waiting.append((self, _batch_answer(body) if is_batch else _ANSWERED))
            Stub.begin()
        else:
            self._write(_LISTED)

    @staticmethod
    def begin() -> None:
        """Begin what there is a slot for."""
        while Stub.waiting and Stub.free_slots:
            Stub.free_slots -= 1
            asyncio.get_running_loop().call_later(Stub.latency_s, Stub._end, *Stub.waiting.popleft())

    def _end(self, response: bytes) -> None:
        Stub.free_slots += 1
        self._write(response)
        Stub.begin()

    def _write(self, response: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)


def nonce(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _batch_answer(body: bytes) -> bytes:
    conversations = orjson.loads(body)["messages"]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": f"stub answer {nonce(messages[-1]['content'])}"},
            "finish_reason": "stop",
        }
        for index, messages in enumerate(conversations)
    ]
    count = len(choices)
    usage = {"prompt_tokens": 20 * count, "completion_tokens": 2 * count, "total_tokens": 22 * count}
    document = {"id": "x", "object": "chat.completion", "model": "stub", "choices": choices, "usage": usage}
    return _response(orjson.dumps(document))


def _content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"content-length:")
    return int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def main(port: int, latency_s: float, slots: int | None = None) -> None:
    Stub.latency_s, Stub.free_slots = latency_s, slots or Stub.free_slots
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000, *map(int, sys.argv[3:])))
