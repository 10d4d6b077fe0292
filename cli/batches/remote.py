"""A batch through a gateway."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import orjson

from cli.batches.lines import BadLine, Line
from cli.batches.output import Output
from cli.remote import Gateway
from schemas.topics import Lane

_MOST_TASKS, _MOST_BYTES = 500, 16 << 20
_AT_ONCE = 32
_WAIT_S = 20
_TIMEOUT = httpx.Timeout(2.0, read=60.0, pool=None)
_JSON = {"content-type": "application/json"}
_UNFINISHED, _GONE = 202, 410
_TAKEN = "urn:triage:problem:task-id-taken"
# A gateway that is away, or busy, is asked again so often, so long apart.
_TRIES, _AGAIN_S = 10, 2.0


async def run(
    url: str,
    lane: Lane,
    lines: Mapping[str, Line],
    output: Output,
    deadline_ms: int | None,
    show: Callable[[], None],
    *,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[BadLine]:
    """Ask what the gateway does not know yet, and write each outcome to `output`, until all are there; returns what it refused.

    Raises: NotReachable, Failed, Refused.
    """
    verify = ssl.create_default_context() if url.startswith("https") else False
    async with httpx.AsyncClient(
        base_url=url, verify=verify, timeout=_TIMEOUT, transport=transport, trust_env=False
    ) as http:
        calls = _Calls(Gateway(url), http)
        bad: list[BadLine] = []
        left: dict[str, Line] = {}
        for chunk in _chunks(list(lines.values()), lane, deadline_ms):
            refused = await calls.submit(chunk)
            bad += [BadLine(chunk[index][0].number, why) for index, why in refused.items()]
            left |= {line.task_id: line for index, (line, _) in enumerate(chunk) if index not in refused}
        waiting = iter(left.values())
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, len(left))):
                group.create_task(_collect(calls, waiting, output, show))
    return bad


class _Calls:
    """Calls of one gateway; one that is away or busy is asked again for a while."""

    def __init__(self, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self._gateway, self._http = gateway, http

    async def submit(self, chunk: Sequence[tuple[Line, bytes]]) -> dict[int, str]:
        """Hand requests in; returns by index why those are refused that are not known to the gateway already."""
        body = b'{"tasks":[' + b",".join(text for _, text in chunk) + b"]}"
        response = await self._send("POST", "/v1/async/submit-batch", None, content=body, headers=_JSON)
        rejected = orjson.loads(response.content)["rejected"]
        return {row["index"]: row["error"]["detail"] for row in rejected if row["error"]["type"] != _TAKEN}

    async def result(self, task_id: str) -> bytes | None:
        """Return the task's result once it has one, None when it is no longer there."""
        while True:
            response = await self._send("GET", f"/v1/async/result/{task_id}?wait={_WAIT_S}", task_id)
            if response.status_code == _GONE:
                return None
            if response.status_code != _UNFINISHED:
                return response.content

    async def _send(self, method: str, path: str, task_id: str | None, **options: Any) -> httpx.Response:
        for tries_left in range(_TRIES, -1, -1):
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if not tries_left:
                    raise self._gateway.away(str(error) or type(error).__name__) from None
            else:
                if response.status_code == _GONE:
                    return response
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or not tries_left:
                    return self._gateway.checked(response, task_id)
            await asyncio.sleep(_AGAIN_S)
        raise AssertionError("the last try returns or raises")


async def _collect(calls: _Calls, waiting: Iterator[Line], output: Output, show: Callable[[], None]) -> None:
    for line in waiting:
        value = await calls.result(line.task_id)
        if value is None:
            output.gone(line, "its result is past its retention, or forgotten")
        else:
            output.result(line, value)
        show()


def _chunks(lines: Sequence[Line], lane: Lane, deadline_ms: int | None) -> Iterator[list[tuple[Line, bytes]]]:
    due = {} if deadline_ms is None else {"timeout_s": deadline_ms / 1000}
    chunk: list[tuple[Line, bytes]] = []
    size = 0
    for line in lines:
        text = orjson.dumps({"task_id": line.task_id, "priority": lane.value, **line.fields, **due})
        if chunk and (len(chunk) == _MOST_TASKS or size + len(text) > _MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((line, text))
        size += len(text) + 1
    if chunk:
        yield chunk
