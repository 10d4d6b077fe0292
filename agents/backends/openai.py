"""The hot call: one chat request, or one for a whole batch, over a pooled connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from yarl import URL

from agents.backends.answers import decode_answer, decode_answers
from agents.backends.kinds import KINDS
from agents.backends.probing import Prober
from agents.backends.refusals import is_no_route, refusal, transport_failure
from agents.backends.requests import are_alike, encode_call, encode_conversations, encode_prompts, is_prompt
from schemas.result import Output, Usage
from streams.cost import prompt_tokens, shares
from streams.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from streams.ports import Answer, Call, Probe, Reply
from streams.settings import MIB, BackendSettings

LONGEST_ANSWER_BYTES = 8 * MIB
CONNECT_TIMEOUT_S = 5.0
# uvicorn (vLLM) closes a connection that was idle for 5 s. A POST that meets the close is lost, and must not be sent
# twice by itself, so ours are given up a second before.
_IDLE_S = 4.0
_LONGEST_REFUSAL_BYTES = 64 * 1024
_EXACT = float("inf")  # aiohttp rounds time-outs from this length on up to whole seconds


class _NoSuchRoute(Exception):
    """The server does not know the route: FastAPI's own answer, without an error object, which one for a wrong model has."""


class OpenAIBackend:
    """One model server that speaks OpenAI's chat API, of any kind in `kinds`.

    Owns a connection pool for calls and one for probes, each made in the event loop of its first use and closed by
    `close`. The number of calls at once is the caller's to bound: each gets a connection.

    Raises: ValueError when the url or the key file cannot be read.
    """

    def __init__(self, settings: BackendSettings) -> None:
        self._name = settings.name
        self._kind = KINDS[settings.kind]
        root = _server(settings)
        self._url, self._batch_url, self._prompts_url = (
            root / "v1/chat/completions",
            root / "v1/chat/completions/batch",
            root / "v1/completions",
        )
        self._batch_call = self._wanted_batch_call = settings.batch_call or self._kind.batch_call
        self._template = settings.prompt_template
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "triage"}
        key = _api_key(settings)
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._prober = Prober(settings.root, self._kind, self._headers)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<OpenAIBackend {self._name} {self._kind.name} {'closed' if self._closed else 'open'}>"

    @property
    def name(self) -> str:
        return self._name

    async def complete(self, call: Call, *, timeout_s: float) -> Answer:
        """Return the answer of one call, sent once. `timeout_s` covers all of it, the wait for the first byte too.

        Raises: BackendError, without a word of prompt or answer.
        """
        if self._batch_call == "completions" and is_prompt(call):  # alone as in company
            body, dropped = encode_prompts([call], self._template, self._kind)
            url = self._prompts_url
        else:
            body, dropped = encode_call(call, self._kind)
            url = self._url
        output, usage = decode_answer(await self._post(url, body, timeout_s))
        return Answer(output, usage, dropped)

    def takes_together(self, calls: Sequence[Call]) -> bool:
        """Whether these go as one call: alike, and of the form that the server takes in a batch."""
        if len(calls) < 2 or self._batch_call == "none" or not are_alike(calls):
            return False
        return self._batch_call == "chat" or all(is_prompt(call) for call in calls)

    async def complete_batch(self, calls: Sequence[Call], *, timeout_s: float) -> list[Reply]:
        """Return what became of each call, in their order; cancelling gives all of them up.

        One call to the server where `takes_together`; a server without the route for it is noted, and gets one for each from then on.

        Raises: BackendError, without a word of prompt or answer, when the call failed as a whole.
        """
        if self.takes_together(calls):
            try:
                return await self._together(calls, timeout_s)
            except _NoSuchRoute:
                self._batch_call = "none"
        return await asyncio.gather(*(self._reply(call, timeout_s) for call in calls))

    async def _together(self, calls: Sequence[Call], timeout_s: float) -> list[Reply]:
        if self._batch_call == "chat":
            body, dropped = encode_conversations(calls, self._kind)
            reply = await self._post(self._batch_url, body, timeout_s, may_miss=True)
        else:
            body, dropped = encode_prompts(calls, self._template, self._kind)
            reply = await self._post(self._prompts_url, body, timeout_s)
        outputs, total = decode_answers(reply, len(calls))
        usages = _usages(calls, outputs, total if self._kind.counts_batches else None)
        return [
            Answer(output, usage, dropped) if isinstance(output, Output) else output
            for output, usage in zip(outputs, usages, strict=True)
        ]

    async def _reply(self, call: Call, timeout_s: float) -> Reply:
        try:
            return await self.complete(call, timeout_s=timeout_s)
        except BackendError as error:
            return error

    async def _post(self, url: URL, body: bytes, timeout_s: float, *, may_miss: bool = False) -> bytes:
        if timeout_s <= 0:  # which aiohttp takes for no time-out at all
            raise BackendTimeout("no time was left for the call")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S, ceil_threshold=_EXACT)
        session = self._session or self._open()
        try:
            async with session.post(url, data=body, timeout=timeout, allow_redirects=False) as response:
                return await _read(response, may_miss=may_miss)
        except (OSError, UnicodeError) as error:  # a host name that cannot be encoded is the second
            raise transport_failure(error, timeout_s=timeout_s) from error
        except aiohttp.ClientError as error:
            # Not chained: these quote what the server sent.
            raise transport_failure(error, timeout_s=timeout_s) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise BackendUnavailable("the backend was closed")
        if self._kind.keeps_connections:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S)
        else:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers | {"Content-Type": "application/json"},
        )
        return self._session

    async def probe(self) -> Probe:
        """Look whether the server is up and what it serves, within 3 s. Never raises."""
        probe = await self._prober.probe()
        if not probe.up:  # what comes up next may be a newer version
            self._batch_call = self._wanted_batch_call
        return probe

    async def close(self) -> None:
        """Close both pools; running calls fail with BackendUnavailable."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._prober.close()


def _usages(
    calls: Sequence[Call], outputs: Sequence[Output | BackendProtocolError], total: Usage | None
) -> list[Usage | None]:
    """Return each item's share of the tokens that the server counted for all together; the sums are the server's.

    By the estimate of its prompt, and by the length of its answer: a server counts no item of a batch by itself.
    """
    if total is None:
        return [None] * len(calls)
    prompts = shares(total.prompt_tokens, [prompt_tokens(call.messages) for call in calls])
    lengths = [len(output.content or "") if isinstance(output, Output) else 0 for output in outputs]
    answers = shares(total.completion_tokens, lengths)
    return [Usage(prompt, answer, prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]


async def _read(response: aiohttp.ClientResponse, *, may_miss: bool) -> bytes:
    if not 200 <= response.status < 300:
        body = await _bytes(response, _LONGEST_REFUSAL_BYTES)
        if may_miss and is_no_route(response.status, body):
            raise _NoSuchRoute
        raise refusal(response.status, response.headers, body)
    content_type = response.headers.get("Content-Type", "")
    if content_type and "json" not in content_type.lower():
        raise BackendProtocolError(f"HTTP {response.status} with a body that is not JSON")
    body = await _bytes(response, LONGEST_ANSWER_BYTES)
    if len(body) > LONGEST_ANSWER_BYTES:
        raise BackendProtocolError(f"the answer is longer than {LONGEST_ANSWER_BYTES} bytes")
    return body


async def _bytes(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body; of a longer one somewhat more than `most` bytes, and its connection is not used again."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _server(settings: BackendSettings) -> URL:
    try:
        root = URL(settings.root)
    except ValueError as error:
        raise ValueError(f"backend {settings.name}: its url is not one") from error
    if not root.raw_host:
        raise ValueError(f"backend {settings.name}: its url names no host")
    return root


def _api_key(settings: BackendSettings) -> str | None:
    if settings.api_key_file is None:
        return None
    try:
        key = settings.api_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"backend {settings.name}: cannot read api_key_file {settings.api_key_file}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"backend {settings.name}: api_key_file {settings.api_key_file} holds no key on one line")
    return key
