"""Translation of what servers say and do, and what a call may cost at most."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from agents.backends.kinds import KINDS, KindName
from agents.backends.openai import LONGEST_ANSWER_BYTES, OpenAIBackend
from agents.backends.refusals import refusal, retry_after_s
from agents.backends.requests import encode_call
from schemas.request import DEFAULT_MAX_TOKENS
from schemas.result import Output, Usage
from streams.errors import (
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from streams.ports import Answer, Call
from streams.settings import BackendSettings
from tests.support.scripted import (
    Reply,
    ScriptedServer,
    chat_body,
    document,
    drip,
    expected_answer,
    hang,
    hang_up,
    huge,
    raw,
    reset,
    status,
    wrong_model,
)

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CANARY = "the patient's name is Canary"


def a_call(content: Any = CANARY, **parameters: Any) -> Call:
    return Call("task-1", "tiny", [{"role": "user", "content": content}], parameters)


@asynccontextmanager
async def a_backend(url: str, kind: KindName = "vllm", key_file: Path | None = None) -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(BackendSettings(name="b", kind=kind, url=url, api_key_file=key_file))
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def shown(error: BaseException) -> str:
    """Return what a traceback prints of an error and of those behind it, without the lines of code."""
    printed = traceback.TracebackException.from_exception(error)
    texts: list[str] = []
    step: traceback.TracebackException | None = printed
    while step is not None:
        texts += step.format_exception_only()
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return "".join(texts)


async def answered(reply: Reply, timeout_s: float = 10) -> Answer:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        server.script.append(reply)
        return await backend.complete(a_call(), timeout_s=timeout_s)


async def failed(reply: Reply, timeout_s: float = 10) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await answered(reply, timeout_s)
    return caught.value


async def test_a_good_answer_goes_over_one_kept_connection() -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        for _ in range(5):
            answer = await backend.complete(a_call(), timeout_s=10)

    assert answer == Answer(Output(expected_answer(CANARY, server.nonce), "stop"), Usage(3, 1, 4))
    assert server.executions == {CANARY: 5}
    assert len(server.connections) == 1


async def test_a_llamacpp_server_is_not_held_by_idle_connections() -> None:
    async with ScriptedServer() as server, a_backend(server.url, "llamacpp") as backend:
        for _ in range(5):
            await backend.complete(a_call(), timeout_s=10)

    assert len(server.connections) == 5


STATUSES = [
    (429, BackendOverloaded),
    (503, BackendOverloaded),
    (408, BackendUnavailable),
    (425, BackendUnavailable),
    (500, BackendFailed),
    (502, BackendUnavailable),
    (504, BackendUnavailable),
    (400, BackendRejected),
    (401, BackendRejected),
    (403, BackendRejected),
    (404, BackendRejected),
    (413, BackendRejected),
    (422, BackendRejected),
    (302, BackendProtocolError),
]


@pytest.mark.parametrize(("code", "expected"), STATUSES)
async def test_a_status_has_one_meaning(code: int, expected: type[BackendError]) -> None:
    error = await failed(status(code, {"type": "some_type", "message": CANARY}, Retry_After="7"))

    assert type(error) is expected
    assert error.detail.startswith(f"HTTP {code} (some_type)")
    assert error.retry_after_s == (7 if error.retriable else None)


async def test_out_of_memory_may_pass() -> None:
    error = await failed(status(500, {"message": "CUDA out of memory. Tried to allocate 2 GiB", "type": "Error"}))

    assert type(error) is BackendFailed
    assert error.retriable
    assert error.detail == "HTTP 500 (Error)"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (wrong_model(), "HTTP 404 (NotFoundError): model not found on this server"),
        (status(404, {"code": "model_not_found"}), "HTTP 404 (model_not_found): model not found on this server"),
        (document({"detail": "Not Found"}), "the answer has no choices[0].message with a content"),
        (
            raw(b'{"detail": "Not Found"}', code=404),
            "HTTP 404: no such route, so the backend's url is not the server's root",
        ),
    ],
)
async def test_a_404_says_whether_the_model_or_the_route_is_missing(reply: Reply, expected: str) -> None:
    assert (await failed(reply)).detail == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (hang_up, BackendUnavailable),
        (reset, BackendUnavailable),
        (raw(b"garbage"), BackendProtocolError),
        (raw(b""), BackendProtocolError),
        (raw(b"[]"), BackendProtocolError),
        (raw(b"null"), BackendProtocolError),
        (raw(b'{"choices": []}'), BackendProtocolError),
        (raw(b'{"choices": {}}'), BackendProtocolError),
        (raw(b'{"choices": [null]}'), BackendProtocolError),
        (raw(b'{"choices": [{"message": null}]}'), BackendProtocolError),
        (raw(b'{"choices": [{"message": {"role": "assistant"}}]}'), BackendProtocolError),
        (raw(b'{"choices": [{"message": {"content": 7}}]}'), BackendProtocolError),
        (raw(b'{"choices": [{"message": {"content": ["x"]}}]}'), BackendProtocolError),
        (raw(b'{"choices": [{"message": {"content": "x", "tool_calls": [7]}}]}'), BackendProtocolError),
        (raw('{"choices": [{"message": {"content": "\u00e9"}}]}'.encode("latin-1")), BackendProtocolError),
        (raw(orjson.dumps(chat_body("x")), content_type="text/html"), BackendProtocolError),
        (raw(b"data: {}\n\n", content_type="text/event-stream"), BackendProtocolError),
        (document({"error": {"type": "server_error", "message": CANARY}}), BackendProtocolError),
    ],
)
async def test_what_is_not_an_answer_is_an_error(reply: Reply, expected: type[BackendError]) -> None:
    assert type(await failed(reply)) is expected


@pytest.mark.parametrize("reply", [hang, drip])
async def test_an_answer_is_not_waited_for_longer_than_told(reply: Reply) -> None:
    assert type(await failed(reply, timeout_s=0.1)) is BackendTimeout


@pytest.mark.parametrize("left_s", [0, -1])
async def test_without_time_left_nothing_is_sent(left_s: float) -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        with pytest.raises(BackendTimeout):
            await backend.complete(a_call(), timeout_s=left_s)

    assert server.executions.total() == 0


async def test_a_closed_backend_is_not_up() -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        assert (await backend.probe()).up
        await backend.close()

        assert (await backend.probe()).reason == "the backend was closed"


@pytest.mark.parametrize("told", [True, False])
async def test_an_answer_over_the_bound_is_not_read(told: bool) -> None:
    assert (await answered(huge(LONGEST_ANSWER_BYTES - 1000, told=told))).output.content is not None
    error = await failed(huge(LONGEST_ANSWER_BYTES + 1, told=told))

    assert type(error) is BackendProtocolError
    assert str(LONGEST_ANSWER_BYTES) in error.detail


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        async with a_backend(f"http://127.0.0.1:{taken.getsockname()[1]}") as backend:
            with pytest.raises(BackendUnavailable, match="no connection: ECONNREFUSED"):
                await backend.complete(a_call(), timeout_s=10)
            assert (await backend.probe()).reason == "no connection (ConnectError)"


async def test_what_is_not_http_is_a_protocol_error_without_its_text() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{CANARY}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with speaking(speak) as url, a_backend(url) as backend:
        with pytest.raises(BackendProtocolError) as caught:
            await backend.complete(a_call(), timeout_s=10)

    assert "anary" not in shown(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        status(400, {"message": CANARY, "type": CANARY, "code": CANARY}),
        status(503, CANARY),
        status(500, [CANARY]),
        raw(CANARY.encode()),
        raw(orjson.dumps({"error": CANARY, "choices": CANARY})),
        raw(CANARY.encode(), code=502, content_type="text/plain"),
        raw(CANARY.encode(), content_type=CANARY.replace("'", "").replace(" ", "-")),
    ],
)
async def test_no_error_holds_a_word_of_the_body(reply: Reply) -> None:
    assert "anary" not in shown(await failed(reply))


async def test_cancelling_closes_the_connection() -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        server.script.append(hang)
        call = asyncio.create_task(backend.complete(a_call(), timeout_s=60))
        await server.until(lambda server: server.in_flight == 1)
        call.cancel()
        await server.until(lambda server: server.in_flight == 0)

        assert server.disconnected == 1
        with pytest.raises(asyncio.CancelledError):
            await call
        await backend.complete(a_call(), timeout_s=10)
        assert len(server.connections) == 2


async def test_closing_ends_running_calls() -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        server.script.append(hang)
        call = asyncio.create_task(backend.complete(a_call(), timeout_s=60))
        await server.until(lambda server: server.in_flight == 1)
        await backend.close()

        with pytest.raises(BackendUnavailable):
            await call


async def test_a_lost_post_is_not_sent_again() -> None:
    async with ScriptedServer() as server, a_backend(server.url) as backend:
        await backend.complete(a_call("first"), timeout_s=10)
        server.script.append(hang_up)
        with pytest.raises(BackendUnavailable):
            await backend.complete(a_call(), timeout_s=10)

    assert server.executions[CANARY] == 1


async def test_the_key_of_the_file_is_sent_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    async with ScriptedServer() as server, a_backend(server.url, key_file=tmp_path / "key") as backend:
        await backend.complete(a_call(), timeout_s=10)

        assert server.headers[0]["Authorization"] == "Bearer sk-secret"
        assert "secret" not in repr(backend)


@pytest.mark.parametrize("content", ["", "one\ntwo", "schlüssel"])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ValueError, match="holds no key"):
        OpenAIBackend(BackendSettings(name="b", url="http://h", api_key_file=tmp_path / "key"))


def test_a_missing_key_file_and_a_url_without_host_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read api_key_file"):
        OpenAIBackend(BackendSettings(name="b", url="http://h", api_key_file=tmp_path / "none"))
    with pytest.raises(ValueError, match="url"):
        OpenAIBackend(BackendSettings(name="b", url="http:///v1"))


# --- what is sent ---


def encoded(call: Call, kind: KindName) -> tuple[dict[str, Any], tuple[str, ...]]:
    body, dropped = encode_call(call, KINDS[kind])
    return orjson.loads(body), dropped


def test_parameters_are_passed_dropped_or_withheld_by_kind() -> None:
    call = a_call(temperature=0.5, seed=None, top_k=3, stream=True, model="other", priority=-9, id_slot=1, max_tokens=8)
    common = {"model": "tiny", "messages": list(call.messages), "temperature": 0.5, "max_tokens": 8}

    assert encoded(call, "openai") == (common, ("top_k", "stream", "model", "priority", "id_slot"))
    assert encoded(call, "vllm") == ({**common, "top_k": 3, "id_slot": 1}, ("stream", "model", "priority"))
    assert encoded(call, "llamacpp") == ({**common, "top_k": 3, "priority": -9}, ("stream", "model", "id_slot"))


@pytest.mark.parametrize("given", [{}, {"max_tokens": None}])
def test_without_a_bound_the_default_one_is_sent(given: dict[str, None]) -> None:
    assert encoded(a_call(**given), "vllm")[0]["max_tokens"] == DEFAULT_MAX_TOKENS


def test_the_newer_bound_counts_where_it_is_taken() -> None:
    assert "max_tokens" not in encoded(a_call(max_completion_tokens=9), "vllm")[0]
    assert encoded(a_call(max_completion_tokens=9), "openai")[0]["max_tokens"] == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize("content", ["\ud800", 1 << 70, object()])
def test_what_is_not_json_is_rejected_without_its_text(content: object) -> None:
    with pytest.raises(BackendRejected) as caught:
        encode_call(a_call(content), KINDS["vllm"])
    assert caught.value.__suppress_context__


# --- what is read ---


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": fields}]}


TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (message(content="hi"), Answer(Output("hi"), None)),
        (message(content=""), Answer(Output(""), None)),
        (message(content="hi", reasoning_content="x", tool_calls=[]), Answer(Output("hi"), None)),
        (message(content=None, tool_calls=[TOOL_CALL]), Answer(Output(None, tool_calls=[TOOL_CALL]), None)),
        (message(content=None, refusal="no"), Answer(Output(None, refusal="no"), None)),
        (
            message(content=[{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]),
            Answer(Output("ab"), None),
        ),
        (
            {"choices": [{"message": {"content": None}, "finish_reason": "length"}]},
            Answer(Output(None, "length"), None),
        ),
        (
            {"choices": [{"message": {"content": "x"}, "logprobs": {"content": []}}], "usage": None},
            Answer(Output("x", logprobs={"content": []}), None),
        ),
        (
            message(content="x") | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}},
            Answer(Output("x"), Usage(1, 2, 3)),
        ),
        (message(content="x") | {"usage": {"prompt_tokens": -1, "completion_tokens": 2}}, Answer(Output("x"), None)),
        (message(content="x") | {"usage": {"prompt_tokens": True, "completion_tokens": 2}}, Answer(Output("x"), None)),
        (message(content="x") | {"usage": "many"}, Answer(Output("x"), None)),
    ],
)
async def test_answers_are_read_tolerantly(body: dict[str, Any], expected: Answer) -> None:
    assert await answered(document(body)) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "999999"}, 3600),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After-Ms": "250", "Retry-After": "3"}, 0.25),
        ({"Retry-After": "Tue, 24 Nov 2026 08:00:09 GMT", "Date": "Tue, 24 Nov 2026 08:00:00 GMT"}, 9),
        ({"Retry-After": "Tue, 24 Nov 2015 08:00:09 GMT"}, 0),
        ({"Retry-After": "Tue, 24 Nov 2026 08:00:09 GMT", "Date": "today"}, None),
    ],
)
def test_retry_after_is_seconds_milliseconds_or_a_date(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers) == expected


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b'"x"', b'{"error": {"type": "a b"}}', b'{"error": {"code": "503"}}']
)
def test_a_refusal_without_a_plain_code_is_just_its_status(body: bytes) -> None:
    assert refusal(503, {}, body).detail == "HTTP 503"


# --- the probe ---


@pytest.mark.parametrize(("kind", "slots"), [("openai", None), ("vllm", None), ("llamacpp", 4)])
async def test_the_probe_reads_what_the_kind_tells(kind: KindName, slots: int | None) -> None:
    async with ScriptedServer(models=("a", "b")) as server, a_backend(server.url, kind) as backend:
        probe = await backend.probe()

    context = None if kind == "llamacpp" else 4096
    assert (probe.up, probe.models, probe.slots, probe.context_tokens) == (True, ("a", "b"), slots, context)


@pytest.mark.parametrize(
    ("kind", "health", "expected"),
    [("openai", 404, None), ("vllm", 404, "HTTP 404 from /health"), ("llamacpp", 503, "HTTP 503 from /health")],
)
async def test_only_a_plain_openai_server_may_lack_health(kind: KindName, health: int, expected: str | None) -> None:
    async with ScriptedServer(health=health) as server, a_backend(server.url, kind) as backend:
        probe = await backend.probe()

    assert (probe.up, probe.reason) == (expected is None, expected)


async def test_a_probe_of_something_else_does_not_raise() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with speaking(speak) as url, a_backend(url) as backend:
        assert not (await backend.probe()).up
    async with a_backend(f"http://{'a' * 70}.example") as backend:
        assert not (await backend.probe()).up
        with pytest.raises(BackendUnavailable):
            await backend.complete(a_call(), timeout_s=10)
