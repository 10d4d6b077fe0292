"""One call for a batch: to a real HTTP server that answers, mixes up, and breaks on one item."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents.backends.openai import OpenAIBackend
from agents.calls import Calls
from schemas.result import Outcome, Result, Usage
from streams.errors import BackendProtocolError, BackendTimeout, ServingError
from streams.ports import Answer, Call
from streams.settings import BackendSettings
from streams.task import Task
from tests.support.scripted import Body, ScriptedServer, expected_answer, hang, status
from tests.support.tasks import make_task
from tests.topology.scene import Scene, backend, up


def a_call(content: Any, **parameters: Any) -> Call:
    return Call(f"task-{content}", "scripted", [{"role": "user", "content": content}], parameters)


@asynccontextmanager
async def a_backend(server: ScriptedServer, **fields: Any) -> AsyncIterator[OpenAIBackend]:
    made = OpenAIBackend(BackendSettings.model_validate({"name": "b1", "kind": "vllm", "url": server.url, **fields}))
    try:
        yield made
    finally:
        await made.close()


def said(replies: list[Any]) -> list[str | None]:
    return [reply.output.content for reply in replies]


@pytest.mark.parametrize("batch_call", ["chat", "completions"])
async def test_should_answer_a_batch_in_one_call_each_with_its_own(batch_call: str) -> None:
    async with ScriptedServer() as server, a_backend(server, batch_call=batch_call) as made:
        replies = await made.complete_batch([a_call(text, temperature=0.5) for text in "abcd"], timeout_s=10)
    assert [expected_answer(text, server.nonce) for text in "abcd"] == said(replies)
    assert [["a", "b", "c", "d"]] == server.batches
    (body,) = server.bodies
    assert (0.5, 256, "scripted") == (body["temperature"], body["max_tokens"], body["model"])


async def test_should_match_items_by_their_index_and_not_by_their_place() -> None:
    server = ScriptedServer(arrange=lambda choices: choices[::-1])
    async with server, a_backend(server) as made:
        replies = await made.complete_batch([a_call(text) for text in "abc"], timeout_s=10)
    assert [expected_answer(text, server.nonce) for text in "abc"] == said(replies)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda choices: choices[:-1],
        lambda choices: [*choices, choices[0]],
        lambda choices: [choices[0], choices[0], choices[2]],
        lambda choices: [{**choice, "index": choice["index"] + 1} for choice in choices],
        lambda choices: [{"message": choice["message"]} for choice in choices],
        lambda choices: [{**choice, "index": []} for choice in choices],
        lambda choices: "abc",
    ],
)
async def test_should_take_nothing_from_an_answer_that_does_not_tell_whose_is_whose(
    arrange: Callable[[list[Body]], list[Body]],
) -> None:
    server = ScriptedServer(arrange=arrange)
    async with server, a_backend(server) as made:
        with pytest.raises(BackendProtocolError):
            await made.complete_batch([a_call(text) for text in "abc"], timeout_s=10)


async def test_should_fail_only_the_item_whose_choice_cannot_be_read() -> None:
    server = ScriptedServer(arrange=lambda choices: [choices[0], {"index": 1, "error": {"message": "x"}}, choices[2]])
    async with server, a_backend(server) as made:
        first, second, third = await made.complete_batch([a_call(text) for text in "abc"], timeout_s=10)
    assert isinstance(second, BackendProtocolError)
    assert [expected_answer(text, server.nonce) for text in "ac"] == said([first, third])


async def test_should_share_out_the_tokens_that_the_server_counts_for_all() -> None:
    async with ScriptedServer() as server, a_backend(server) as made:
        calls = [a_call("x" * length) for length in (4, 400)]
        first, second = await made.complete_batch(calls, timeout_s=10)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert [Usage(0, 1, 1), Usage(6, 1, 7)] == [first.usage, second.usage]


async def test_should_tell_no_usage_where_the_server_counts_one_of_several() -> None:
    async with (
        ScriptedServer() as server,
        a_backend(server, kind="llamacpp", batch_call="completions") as made,
    ):
        replies = await made.complete_batch([a_call("a"), a_call("b")], timeout_s=10)
    assert [None, None] == [reply.usage for reply in replies if isinstance(reply, Answer)]


async def test_should_call_one_by_one_once_a_server_has_no_route_for_batches() -> None:
    server = ScriptedServer()
    async with server, a_backend(server) as made:
        calls = [a_call("a"), a_call("b")]
        server.script.append(status(404))  # with an error that is null, as for a route that is not there
        assert made.takes_together(calls)
        replies = await made.complete_batch(calls, timeout_s=10)
        assert not made.takes_together(calls)
    assert [expected_answer(text, server.nonce) for text in "ab"] == said(replies)
    assert 3 == len(server.bodies)


@pytest.mark.parametrize(
    ("fields", "calls", "expected"),
    [
        ({}, [a_call("a"), a_call("b")], True),
        ({}, [a_call("a")], False),
        ({}, [a_call("a"), a_call("b", temperature=1)], False),
        ({}, [a_call("a", tools=[{}]), a_call("b", tools=[{}])], False),
        ({}, [a_call("a", tools=None), a_call("b", tools=None)], True),
        ({"batch_call": "none"}, [a_call("a"), a_call("b")], False),
        ({"kind": "openai"}, [a_call("a"), a_call("b")], False),
        ({"kind": "llamacpp"}, [a_call("a"), a_call("b")], False),
        ({"batch_call": "completions"}, [a_call("a"), a_call("b")], True),
        ({"batch_call": "completions"}, [a_call("a"), a_call([{"type": "text", "text": "b"}])], False),
        ({"batch_call": "completions"}, [a_call("a", response_format={}), a_call("b", response_format={})], False),
    ],
)
def test_should_batch_only_what_the_server_takes_so(fields: dict[str, Any], calls: list[Call], expected: bool) -> None:
    made = OpenAIBackend(BackendSettings.model_validate({"name": "b", "kind": "vllm", "url": "http://h", **fields}))
    assert expected is made.takes_together(calls)


async def test_should_send_a_raw_prompt_alike_alone_and_in_company() -> None:
    fields = {"batch_call": "completions", "prompt_template": "Q: {prompt}\nA:"}
    async with ScriptedServer() as server, a_backend(server, **fields) as made:
        await made.complete(a_call("a"), timeout_s=10)
        await made.complete_batch([a_call("a"), a_call("b")], timeout_s=10)
    assert [["Q: a\nA:"], ["Q: a\nA:", "Q: b\nA:"]] == server.batches


def test_should_refuse_a_template_without_a_place_for_the_prompt() -> None:
    with pytest.raises(ValueError, match=r"prompt_template must hold {prompt} once"):
        BackendSettings(name="b", url="http://h", prompt_template="hello")


# The whole way, from a batch to each task's outcome


class Bench:
    """A dispatcher whose batches go to a real server; what it decides in the end is in its scene."""

    def __init__(self, server: ScriptedServer, made: OpenAIBackend, *, slots: int = 17) -> None:
        self.server = server
        self.scene = Scene.of(backend("b1", kind="vllm", slots=slots), models=("scripted",))
        self._work: set[asyncio.Task[None]] = set()
        self.calls = Calls(self.scene.dispatcher, {"b1": made}, report=self._report, spawn=self._spawn)
        self.reports: dict[str, Answer | ServingError] = {}
        self.tries: dict[str, int] = {}

    def send(self, *texts: str, **fields: Any) -> list[Task]:
        """Send tasks as one batch."""
        self.scene.probed("b1", up("scripted"))
        self.scene.dispatcher.backends["b1"].draining = True  # so that they leave together
        tasks = [make_task(text, now_s=self.scene.now_s, text=text, **fields) for text in texts]
        for task in tasks:
            self.scene.take(task)
        self.scene.dispatcher.backends["b1"].draining = False
        self.scene.step()
        (batch,) = self.scene.sent
        assert len(texts) == len(batch.tasks)
        self.calls.start(batch)
        return tasks

    async def ended(self, timeout_s: float = 10) -> dict[str, Result]:
        async with asyncio.timeout(timeout_s):
            while self._work:
                await asyncio.wait(self._work)
        return self.scene.results

    def give_up(self, task: Task) -> None:
        self.scene.perform(self.scene.dispatcher.cancel(task.key))
        self.calls.give_up(task)

    async def _report(self, _batch: object, task: Task, reply: Answer | ServingError) -> None:
        assert task.task_id not in self.reports, "a task was reported twice"
        self.reports[task.task_id] = reply
        if isinstance(reply, Answer):
            self.scene.perform(self.scene.dispatcher.answered(task, reply, now_s=self.scene.now_s))
        else:
            self.scene.perform(self.scene.dispatcher.failed(task, reply, now_s=self.scene.now_s))
        self.tries[task.task_id] = task.tries_left

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        running = asyncio.get_running_loop().create_task(work)
        self._work.add(running)
        running.add_done_callback(self._work.discard)
        return running


@asynccontextmanager
async def a_bench(server: ScriptedServer) -> AsyncIterator[Bench]:
    async with server, a_backend(server) as made:
        yield Bench(server, made)


def breaks(*prompts: str, code: int = 400) -> Any:
    reply = status(code, {"type": "invalid", "message": "no"})
    return lambda body: reply if body["messages"][-1]["content"] in prompts else None


@pytest.mark.parametrize("code", [400, 500])
async def test_should_let_one_bad_item_fail_alone_and_charge_its_mates_nothing(code: int) -> None:
    server = ScriptedServer(fault_for=breaks("5", code=code))
    async with a_bench(server) as bench:
        bench.send(*map(str, range(16)))
        results = await bench.ended()
    assert {"5"} == {name for name, result in results.items() if result.outcome is Outcome.FAILED}
    error = results["5"].error
    assert error is not None
    assert ("poison", False) == (error.type, error.retriable)
    for name, result in results.items():
        if name != "5":
            assert result.output is not None
            assert expected_answer(name, server.nonce) == result.output.content
            assert (1, 2) == (result.attempts, bench.tries[name])
    assert 1 + 2 * 4 == len(server.bodies)  # 2 log2(16) more than one
    assert bench.scene.dispatcher.backends["b1"].up
    assert {} == bench.scene.leftovers()


async def test_should_find_whose_is_whose_one_by_one_when_a_batch_is_mixed_up() -> None:
    server = ScriptedServer(arrange=lambda choices: choices[1:])
    async with a_bench(server) as bench:
        bench.send("a", "b", "c")
        results = await bench.ended()
    answers = {name: result.output.content for name, result in results.items() if result.output}
    assert {name: expected_answer(name, server.nonce) for name in "abc"} == answers


async def test_should_not_split_for_want_of_room() -> None:
    server = ScriptedServer(fault_for=lambda body: status(429, Retry_After="1"))
    async with a_bench(server) as bench:
        bench.send("a", "b")
        await bench.ended()
    assert [["a", "b"]] == server.batches
    assert {"a": 1, "b": 1} == bench.tries  # each is tried again, by and by


async def test_should_not_harm_the_mates_of_one_that_is_given_up() -> None:
    server = ScriptedServer(latency_s=0.2)
    async with a_bench(server) as bench:
        first, *_ = bench.send("a", "b", "c")
        await server.until(lambda s: s.in_flight == 3)
        bench.give_up(first)
        results = await bench.ended()
    assert {"b", "c"} == {name for name, result in results.items() if result.outcome is Outcome.COMPLETED}
    assert {"b", "c"} == set(bench.reports)
    assert 0 == server.disconnected


async def test_should_close_the_call_when_all_of_its_tasks_are_given_up() -> None:
    server = ScriptedServer(fault_for=lambda body: hang)
    async with a_bench(server) as bench:
        tasks = bench.send("a", "b")
        await server.until(lambda s: s.in_flight == 2)
        for task in tasks:
            bench.give_up(task)
        await server.until(lambda s: s.disconnected == 1 and s.in_flight == 0)
        await bench.ended()
    assert ({}, 0) == (bench.reports, len(bench.calls))


async def test_should_blame_nobody_for_one_that_was_given_up_meanwhile() -> None:
    server = ScriptedServer()
    proceed = asyncio.Event()

    async def refuse(request: Any, body: Body) -> Any:
        await proceed.wait()
        return await status(400)(request, body)

    server.script.append(refuse)
    async with a_bench(server) as bench:
        bad, _mate = bench.send("bad", "mate")
        await server.until(lambda s: s.in_flight == 2)
        bench.give_up(bad)
        proceed.set()
        results = await bench.ended()
    assert {"mate": Outcome.COMPLETED} == {name: result.outcome for name, result in results.items()}


async def test_should_hold_no_failure_back_when_the_mate_that_it_waits_for_is_given_up() -> None:
    server = ScriptedServer(fault_for=lambda body: status(400) if body["messages"][-1]["content"] == "bad" else hang)
    server.script.append(status(400))
    async with a_bench(server) as bench:
        _bad, mate = bench.send("bad", "mate")
        await server.until(lambda s: s.executions["mate"] == 2 and s.executions["bad"] == 2 and s.in_flight == 1)
        bench.give_up(mate)
        results = await bench.ended()
    assert results["bad"].error is not None
    assert "backend_rejected" == results["bad"].error.type  # nothing of its batch was answered


async def test_should_end_a_batch_that_takes_too_long_as_a_time_out() -> None:
    server = ScriptedServer(fault_for=lambda body: hang)
    async with server, a_backend(server) as made:
        with pytest.raises(BackendTimeout):
            await made.complete_batch([a_call("a"), a_call("b")], timeout_s=0.05)
