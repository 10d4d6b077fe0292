"""A look at a model server, off the hot path: is it up, what does it serve, how much at once."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson

from agents.backends.kinds import Kind
from streams.ports import Probe
from streams.settings import MIB

PROBE_TIMEOUT_S = 3.0
_MODELS_PATH = "/v1/models"
_LONGEST_BODY_BYTES = 4 * MIB
_Reply = tuple[int, bytes]


class Prober:
    """Looks at one server through a client of its own, made at the first look and closed by `close`."""

    def __init__(self, root: str, kind: Kind, headers: Mapping[str, str]) -> None:
        self._root, self._kind, self._headers = root, kind, headers
        self._client: httpx.AsyncClient | None = None
        self._closed = False

    async def probe(self) -> Probe:
        """Return what the server says within 3 s. Never raises; no reason holds a word of a body."""
        if self._closed:
            return Probe(False, reason="the backend was closed")
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._look()
        except (TimeoutError, httpx.TimeoutException):
            return Probe(False, reason=f"no answer within {PROBE_TIMEOUT_S:g} s")
        # The last three: a url that is none, an answer that is not HTTP, a client closed meanwhile.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RuntimeError) as error:
            return Probe(False, reason=f"no connection ({type(error).__name__})")

    async def close(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _look(self) -> Probe:
        health, _ = await self._get(self._kind.health_path)
        has_health = not (self._kind.health_may_miss and health in (404, 405, 501))
        if has_health and health != 200:
            return _down(health, self._kind.health_path)
        status, body = await self._get(_MODELS_PATH)
        # A server that refuses the key here refuses every call.
        if status in (401, 403) or (status != 200 and not has_health):
            return _down(status, _MODELS_PATH)
        entries = list(_entries(body)) if status == 200 else []
        contexts = [tokens for entry in entries if (tokens := self._context(entry)) is not None]
        return Probe(
            up=True,
            models=tuple(dict.fromkeys(name for entry in entries for name in _names(entry))),
            slots=await self._slots(),
            context_tokens=min(contexts, default=None),
        )

    def _context(self, entry: dict[str, Any]) -> int | None:
        """Return the tokens of one request: the first of the kind's fields that holds a count."""
        for path in self._kind.context_fields:
            value: Any = entry
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if _is_positive(value):
                return int(value)
        return None

    async def _slots(self) -> int | None:
        if self._kind.slots_path is None:
            return None
        status, body = await self._get(self._kind.slots_path)
        document = _json(body) if status == 200 else None
        slots = document.get(self._kind.slots_field) if isinstance(document, dict) else None
        if _is_positive(slots) or self._kind.slots_list_path is None:
            return slots
        status, body = await self._get(self._kind.slots_list_path)
        listed = _json(body) if status == 200 else None
        return len(listed) if isinstance(listed, list) and listed else None

    async def _get(self, path: str) -> _Reply:
        """Return status and body; a body over 4 MiB is cut, and then not JSON."""
        self._client = self._client or _client(self._root, self._headers, keep=self._kind.keeps_connections)
        async with self._client.stream("GET", path) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _LONGEST_BODY_BYTES:
                    break
            return response.status_code, bytes(body)


def _client(root: str, headers: Mapping[str, str], *, keep: bool) -> httpx.AsyncClient:
    # The system's certificates, as for the hot call; httpx would bring its own. Reading them takes long: only for TLS.
    verify = ssl.create_default_context() if root.startswith("https") else False
    return httpx.AsyncClient(
        base_url=root,
        headers=headers,
        timeout=PROBE_TIMEOUT_S,
        limits=httpx.Limits(max_keepalive_connections=1 if keep else 0),
        verify=verify,
        trust_env=False,
    )


def _down(status: int, path: str) -> Probe:
    return Probe(False, reason=f"HTTP {status} from {path}")


def _entries(body: bytes) -> Iterator[dict[str, Any]]:
    document = _json(body)
    data = document.get("data") if isinstance(document, dict) else None
    return (entry for entry in data if isinstance(entry, dict)) if isinstance(data, list) else iter(())


def _names(entry: dict[str, Any]) -> Iterator[str]:
    """Yield the id, then llama.cpp's aliases: each of them is a model that can be asked for."""
    aliases = entry.get("aliases")
    for name in (entry.get("id"), *(aliases if isinstance(aliases, list) else ())):
        if isinstance(name, str) and name:
            yield name


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0
