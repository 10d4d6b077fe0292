"""What every Backend does, checked on the fake, on a scripted HTTP server and on a real llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agents.backends.openai import OpenAIBackend
from cli.embedded.random_model import random_model
from schemas.result import Output, Usage
from streams.errors import BackendRejected, BackendTimeout, BackendUnavailable
from streams.ports import Answer, Backend, Call, Probe
from streams.settings import BackendSettings
from streams.testing import FakeBackend
from tests.support.llama import LlamaServer, llama_server
from tests.support.scripted import Body, Reply, ScriptedServer, hang, status

CANARY = "canaryCANARYcanary"


def a_call(content: object = CANARY, **parameters: object) -> Call:
    return Call("task-1", "tiny", [{"role": "user", "content": content}], {"max_tokens": 4, **parameters})


# What each of the three understands as an order to refuse, and as one that takes longer than the time given.
REFUSED = a_call([{"type": CANARY}])
SLOW = a_call("slow", max_tokens=2000, ignore_eos=True)


@dataclass
class Subject:
    backend: Backend
    slots: int | None


def _fake_answer(call: Call) -> Answer | Exception:
    if call == REFUSED:
        return BackendRejected()
    if call == SLOW:
        return BackendTimeout()
    return Answer(Output("hello", "stop"), Usage(1, 1, 2))


@asynccontextmanager
async def _fake() -> AsyncIterator[Subject]:
    yield Subject(FakeBackend(answer=_fake_answer, view=Probe(True, ("tiny",), 4, 2048)), 4)


def _scripted_fault(body: Body) -> Reply | None:
    content = body["messages"][0]["content"]
    if content == "slow":
        return hang
    return status(400, {"type": "invalid", "message": CANARY}) if isinstance(content, list) else None


@asynccontextmanager
async def _scripted() -> AsyncIterator[Subject]:
    async with ScriptedServer(models=("tiny",), fault_for=_scripted_fault) as server:
        backend = OpenAIBackend(BackendSettings(name="scripted", kind="vllm", url=server.url))
        yield Subject(backend, None)
        await backend.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with llama_server(random_model(tmp_path_factory.mktemp("llama") / "random.gguf")) as server:
        yield server


@asynccontextmanager
async def _real(server: LlamaServer) -> AsyncIterator[Subject]:
    backend = OpenAIBackend(BackendSettings(name="llama", kind="llamacpp", url=f"{server.url}/v1/"))
    yield Subject(backend, 4)
    await backend.close()


@pytest.fixture(params=["fake", "scripted", pytest.param("llama", marks=pytest.mark.llama)])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "llama":
        opened = _real(request.getfixturevalue("llama"))
    else:
        opened = _fake() if request.param == "fake" else _scripted()
    async with opened as found:
        yield found


async def test_an_answer_has_content_reason_and_usage(subject: Subject) -> None:
    answer = await subject.backend.complete(a_call(), timeout_s=10)

    assert isinstance(answer.output.content, str)
    assert answer.output.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.dropped == ()


async def test_null_parameters_are_not_set(subject: Subject) -> None:
    answer = await subject.backend.complete(a_call(temperature=None, tools=None, stop=None), timeout_s=10)

    assert answer.dropped == ()


async def test_more_calls_than_slots_are_all_answered(subject: Subject) -> None:
    answers = await asyncio.gather(
        *(subject.backend.complete(a_call(f"question {number}"), timeout_s=30) for number in range(24))
    )

    assert len(answers) == 24


async def test_a_refused_request_is_rejected_without_its_text(subject: Subject) -> None:
    with pytest.raises(BackendRejected) as caught:
        await subject.backend.complete(REFUSED, timeout_s=10)

    assert CANARY not in f"{caught.value!r} {caught.value.detail}"
    assert not caught.value.retriable


async def test_an_answer_that_takes_too_long_is_a_timeout(subject: Subject) -> None:
    with pytest.raises(BackendTimeout) as caught:
        await subject.backend.complete(SLOW, timeout_s=0.05)

    assert caught.value.retriable
    await subject.backend.complete(a_call(), timeout_s=10)  # the next call does not suffer from it


async def test_a_cancelled_call_leaves_the_backend_usable(subject: Subject) -> None:
    calls = [asyncio.create_task(subject.backend.complete(a_call(f"{number}"), timeout_s=10)) for number in range(8)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)

    await subject.backend.complete(a_call(), timeout_s=10)


async def test_the_probe_names_what_is_served(subject: Subject) -> None:
    probe = await subject.backend.probe()

    assert probe.up
    assert "tiny" in probe.models
    assert probe.slots == subject.slots
    assert probe.context_tokens is not None
    assert probe.reason is None


async def test_a_closed_backend_is_unavailable_and_may_be_closed_again(subject: Subject) -> None:
    await subject.backend.complete(a_call(), timeout_s=10)
    await subject.backend.close()
    await subject.backend.close()

    with pytest.raises(BackendUnavailable):
        await subject.backend.complete(a_call(), timeout_s=10)


@pytest.mark.llama
async def test_llamacpp_takes_parameters_outside_openai_and_json_schemas(llama: LlamaServer) -> None:
    schema = {"type": "object", "properties": {"urgent": {"type": "boolean"}}, "required": ["urgent"]}
    form = {"type": "json_schema", "json_schema": {"name": "triage", "schema": schema}}
    async with _real(llama) as subject:
        answer = await subject.backend.complete(
            a_call(max_tokens=200, response_format=form, top_k=5, id_slot=3, seed=1), timeout_s=10
        )

    assert (answer.output.content or "").startswith("{")
    assert answer.dropped == ("id_slot",)


async def _is_processing(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        return any(slot["is_processing"] for slot in (await client.get(f"{url}/slots")).json())


@pytest.mark.llama
async def test_cancelling_makes_llamacpp_stop(tmp_path: Path) -> None:
    with llama_server(random_model(tmp_path / "random.gguf"), slots=1, context=1 << 16) as server:
        async with _real(server) as subject:
            endless = a_call(max_tokens=60_000, ignore_eos=True)  # more than ten seconds
            call = asyncio.create_task(subject.backend.complete(endless, timeout_s=60))
            async with asyncio.timeout(10):
                while not await _is_processing(server.url):
                    assert not call.done()
            call.cancel()
            await asyncio.wait([call])

            await subject.backend.complete(a_call(), timeout_s=3)


@pytest.mark.llama
async def test_llamacpp_logs_no_prompt(llama: LlamaServer) -> None:
    bad_schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": CANARY}}}
    async with _real(llama) as subject:
        await subject.backend.complete(a_call(), timeout_s=10)
        for call in (
            REFUSED,
            a_call(response_format=bad_schema),
            a_call(f"{CANARY} " * 3000),
            a_call(max_tokens=CANARY),
        ):
            with pytest.raises(BackendRejected) as caught:
                await subject.backend.complete(call, timeout_s=10)
            assert CANARY not in f"{caught.value!r} {caught.value.detail}"

    assert CANARY not in llama.log_text()
