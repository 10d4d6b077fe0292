"""A model server as one finds it: of which kind it is, what it serves, and whether it tells its load."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from agents.backends.kinds import KINDS, KindName
from agents.backends.probing import Prober
from streams.ports import Probe

_IDENTIFY_S = 3.0
_PATHS = ("/props", "/slots", "/metrics", "/v1/models")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a GET."""

    status: int
    server: str
    body: bytes

    @property
    def document(self) -> Any:
        try:
            return orjson.loads(self.body) if self.status == 200 else None
        except orjson.JSONDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class Server:
    """What was seen. `kind` is as given, else what it `looks_like`.

    `has_metrics` None: this kind has none that Triage reads. `needs_key`: it refuses to list its models without another key.
    """

    kind: KindName
    looks_like: KindName
    probe: Probe
    has_metrics: bool | None
    needs_key: bool = False


async def look(root: str, kind: KindName | None, headers: Mapping[str, str] | None = None) -> Server:
    """Look at the server at `root`, within 3 s, or 6 s when `kind` is not given. Never raises."""
    headers = headers or {}
    if kind is None:
        replies = await _replies(root, headers)
        probe = await _probe(root, kind_of(replies), headers)
    else:
        replies, probe = await asyncio.gather(_replies(root, headers), _probe(root, kind, headers))
    looks_like = kind_of(replies)
    models = replies.get("/v1/models")
    return Server(
        kind=kind or looks_like,
        looks_like=looks_like,
        probe=probe,
        has_metrics=has_metrics(kind or looks_like, replies),
        needs_key=models is not None and models.status in (401, 403),
    )


def kind_of(replies: Mapping[str, Reply]) -> KindName:
    """Return the kind that the answers speak of, `openai` when none does.

    Source: llama.cpp names itself in the header `Server`, has /props with `total_slots` and a list at /slots; vLLM's metrics
    begin with `vllm:`; both are the owner of their models. A key may be asked for any of these.
    """
    props, slots, metrics, models = (replies.get(path) for path in _PATHS)
    owners = _owners(models)
    if (
        any(reply.server == "llama.cpp" for reply in replies.values())
        or (props is not None and isinstance(props.document, dict) and "total_slots" in props.document)
        or (slots is not None and isinstance(slots.document, list))
        or "llamacpp" in owners
    ):
        return "llamacpp"
    if _tells(metrics, "vllm") or "vllm" in owners:
        return "vllm"
    return "openai"


def has_metrics(kind: KindName, replies: Mapping[str, Reply]) -> bool | None:
    """Return whether the server tells its load at /metrics, None when its kind has no metrics of its own."""
    names = KINDS[kind].metrics
    return None if names is None else _tells(replies.get("/metrics"), names.running.partition(":")[0])


def _tells(reply: Reply | None, family: str) -> bool:
    return reply is not None and reply.status == 200 and f"{family}:".encode() in reply.body


def _owners(models: Reply | None) -> set[str]:
    document = models.document if models is not None else None
    data = document.get("data") if isinstance(document, dict) else None
    return {str(row.get("owned_by")) for row in data if isinstance(row, dict)} if isinstance(data, list) else set()


async def _replies(root: str, headers: Mapping[str, str]) -> dict[str, Reply]:
    """Return the answers that came in time."""
    verify = ssl.create_default_context() if root.startswith("https") else False
    found: dict[str, Reply] = {}

    async def get(client: httpx.AsyncClient, path: str) -> None:
        try:
            reply = await client.get(path)
        except (httpx.HTTPError, OSError, ValueError):
            return
        found[path] = Reply(reply.status_code, reply.headers.get("server", ""), reply.content)

    try:
        async with (
            asyncio.timeout(_IDENTIFY_S),
            httpx.AsyncClient(
                base_url=root, headers=headers, verify=verify, trust_env=False, timeout=_IDENTIFY_S
            ) as client,
        ):
            await asyncio.gather(*(get(client, path) for path in _PATHS))
    except (TimeoutError, httpx.InvalidURL):
        pass  # what came is what there is
    return found


async def _probe(root: str, kind: KindName, headers: Mapping[str, str]) -> Probe:
    prober = Prober(root, KINDS[kind], headers)
    try:
        return await prober.probe()
    finally:
        await prober.close()
