"""A model server of the campaign: its answer repeats the prompt's nonce, it writes the history, and it fails as the nemesis says."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from aiohttp import web

from tests.faults.campaign.schedule import Kind
from tests.faults.history import Recorder, nonce_in
from tests.support.scripted import Body, Reply, ScriptedServer, chat_body, hang, raw, reset, status

_LATENCY_S = 0.02
_SLOW_S = 2.0


def _answer(prompt: str) -> str:
    return f"the answer to {nonce_in(prompt)}"


async def _slow(request: web.Request, body: Body) -> web.StreamResponse:
    await asyncio.sleep(_SLOW_S)
    return web.json_response(chat_body(_answer(str(body["messages"][-1]["content"])), model=str(body["model"])))


_REPLIES: Mapping[Kind, Reply] = {
    Kind.BACKEND_500: status(500, {"message": "out of order"}),
    Kind.BACKEND_429: status(429, {"message": "too many"}, Retry_After="1"),
    Kind.BACKEND_HANG: hang,
    Kind.BACKEND_SLOW: _slow,
    Kind.BACKEND_RESET: reset,
    Kind.BACKEND_GARBAGE: raw(b'{"choices": ['),
}
STORMS = frozenset(_REPLIES)


class Backend:
    """`fail` lets a share of the calls fail; `down` and `up` close and open its port. `answered` counts good answers by nonce."""

    def __init__(self, name: str, folder: Path, *, limit: int, seed: int) -> None:
        self.name, self._limit = name, limit
        self.answered: Counter[str] = Counter()
        self.failed_count = 0
        self._fault: tuple[Kind, float] | None = None
        self._rng = random.Random(seed)
        self._recorder = Recorder(folder, name)
        self.server = ScriptedServer(
            answer=self._answered, latency_s=_LATENCY_S, fault_for=self._fault_for, watch=self._watch
        )

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.down()
        self._recorder.close()

    async def up(self) -> None:
        self._recorder.write("backend", backend=self.name, limit=self._limit)
        await self.server.__aenter__()

    async def down(self) -> None:
        await self.server.__aexit__()

    def fail(self, kind: Kind, share_ratio: float) -> None:
        self._fault, self.failed_count = (kind, share_ratio), 0

    def heal(self) -> None:
        self._fault = None

    def _fault_for(self, body: Body) -> Reply | None:
        if self._fault is None or self._rng.random() >= self._fault[1]:
            return None
        self.failed_count += 1
        return _REPLIES[self._fault[0]]

    def _answered(self, prompt: str, _: str) -> str:
        self.answered[nonce_in(prompt) or ""] += 1
        return _answer(prompt)

    def _watch(self, what: str, call: int, prompt: str) -> None:
        self._recorder.write(what, call=f"{self.name}-{call}", backend=self.name, nonce=nonce_in(prompt))
        for kept in (self.server.bodies, self.server.headers, self.server.connections):
            kept.clear()  # a run of hours
