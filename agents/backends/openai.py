"""The hot call: one chat request over a pooled connection."""

from __future__ import annotations

import aiohttp
from yarl import URL

from agents.backends.answers import decode_answer
from agents.backends.kinds import KINDS
from agents.backends.probing import Prober
from agents.backends.refusals import refusal, transport_failure
from agents.backends.requests import encode_call
from streams.errors import BackendProtocolError, BackendTimeout, BackendUnavailable
from streams.ports import Answer, Call, Probe
from streams.settings import MIB, BackendSettings

LONGEST_ANSWER_BYTES = 8 * MIB
CONNECT_TIMEOUT_S = 5.0
# uvicorn (vLLM) closes a connection that was idle for 5 s. A POST that meets the close is lost, and must not be sent
# twice by itself, so ours are given up a second before.
_IDLE_S = 4.0
_LONGEST_REFUSAL_BYTES = 64 * 1024
_EXACT = float("inf")  # aiohttp rounds time-outs from this length on up to whole seconds


class OpenAIBackend:
    """One model server that speaks OpenAI's chat API, of any kind in `kinds`.

    Owns a connection pool for calls and one for probes, each made in the event loop of its first use and closed by
    `close`. The number of calls at once is the caller's to bound: each gets a connection.

    Raises: ValueError when the url or the key file cannot be read.
    """

    def __init__(self, settings: BackendSettings) -> None:
        self._name = settings.name
        self._kind = KINDS[settings.kind]
        self._url = _server(settings) / "v1/chat/completions"
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
        if timeout_s <= 0:  # which aiohttp takes for no time-out at all
            raise BackendTimeout("no time was left for the call")
        body, dropped = encode_call(call, self._kind)
        output, usage = decode_answer(await self._post(body, timeout_s))
        return Answer(output, usage, dropped)

    async def _post(self, body: bytes, timeout_s: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S, ceil_threshold=_EXACT)
        session = self._session or self._open()
        try:
            async with session.post(self._url, data=body, timeout=timeout, allow_redirects=False) as response:
                return await _read(response)
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
        return await self._prober.probe()

    async def close(self) -> None:
        """Close both pools; running calls fail with BackendUnavailable."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._prober.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if not 200 <= response.status < 300:
        raise refusal(response.status, response.headers, await _bytes(response, _LONGEST_REFUSAL_BYTES))
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
