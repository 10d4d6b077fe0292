"""Batch files: which lines are requests, what an answer looks like, and what is done when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from cli import errors
from cli.batches import remote
from cli.batches.lines import Line, answer, done, read, unanswered
from cli.batches.output import Output
from cli.main import main
from cli.remote import Gateway
from gateway.chat import answer_body, http_status, request_fields
from schemas.codec import decode_request
from schemas.result import ErrorType, Outcome, Result, ResultError, Usage
from schemas.result import Output as Said
from schemas.topics import Lane
from tests.gateway.fakes import FakeGateway, make_result

MESSAGES = [{"role": "user", "content": "a secret"}]


def row(custom_id: object = "a", **fields: Any) -> bytes:
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 5}
    return orjson.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}
    )


def lines(count: int, run: str = "file") -> list[Line]:
    good, bad = read([row(f"c{number}") for number in range(count)], run)
    assert [] == bad
    return good


def test_a_line_is_a_request_of_the_batches_budget() -> None:
    (line,), _ = read([row(body={"model": "m", "messages": MESSAGES, "temperature": 0, "user": "u", "n": 1})], "f")
    request = decode_request(line.record(1_000, 500))
    assert (line.task_id, "m", "batch", {"temperature": 0, "user": "u"}, 1_500) == (
        request.task_id,
        request.model,
        request.budget,
        request.parameters,
        request.deadline_at_ms,
    )


def test_ids_follow_from_the_run_the_custom_id_and_what_is_asked() -> None:
    def ids(text: bytes, run: str = "f") -> str:
        return read([text], run)[0][0].task_id

    assert ids(row()) == ids(row())
    reordered = orjson.dumps(dict(reversed(orjson.loads(row()).items())))
    assert ids(row()) == ids(reordered)
    others = [ids(row("b")), ids(row(), "another"), ids(row(body={"messages": MESSAGES}))]
    assert 4 == len({ids(row()), *others})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a secret", "not JSON"),
        (b'["a secret"]', "not a JSON object"),
        (row(None), "custom_id"),
        (row(""), "custom_id"),
        (row(url="/v1/embeddings"), "/v1/chat/completions"),
        (row(method="GET"), "POST"),
        (row(body=None), "body"),
        (row(body={"messages": "a secret"}), "messages"),
        (row(body={"messages": MESSAGES, "n": 2}), "n"),
        (row(body={"messages": MESSAGES, "max_tokens": "a secret"}), "max_tokens"),
        (row("first"), "line 1"),
    ],
)
def test_a_bad_line_is_told_by_its_number_without_its_text(text: bytes, why: str) -> None:
    good, bad = read([row("first"), b"", text, row("last")], "f")
    assert (["first", "last"], [3]) == ([line.custom_id for line in good], [each.number for each in bad])
    assert why in bad[0].why
    assert "secret" not in bad[0].why


def test_an_answer_is_a_chat_completion() -> None:
    (line,) = lines(1)
    result = make_result(line.task_id, output=Said("fine", "stop"), usage=Usage(3, 1, 4), model="m")
    written = orjson.loads(answer(line, orjson.dumps(result)))
    assert (f"batch_req_{line.task_id}", "c0", None) == (written["id"], written["custom_id"], written["error"])
    response = written["response"]
    assert (200, line.task_id) == (response["status_code"], response["request_id"])
    body = response["body"]
    assert (f"chatcmpl-{line.task_id}", "chat.completion", "m") == (body["id"], body["object"], body["model"])
    assert {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4} == body["usage"]
    assert [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "fine", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ] == body["choices"]


def ended(outcome: Outcome, kind: ErrorType) -> Result:
    return make_result("t", outcome, error=ResultError(kind, "why"), output=None)


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (make_result("t"), 200),
        (ended(Outcome.EXPIRED, ErrorType.DEADLINE_EXPIRED), 504),
        (ended(Outcome.CANCELLED, ErrorType.CANCELLED), 499),
        (ended(Outcome.FAILED, ErrorType.INVALID_REQUEST), 400),
        (ended(Outcome.FAILED, ErrorType.UNSUPPORTED_SCHEMA), 400),
        (ended(Outcome.FAILED, ErrorType.UNKNOWN_MODEL), 404),
        (ended(Outcome.FAILED, ErrorType.REQUEST_TOO_LARGE), 413),
        (ended(Outcome.FAILED, ErrorType.BACKEND_TIMEOUT), 502),
        (ended(Outcome.FAILED, ErrorType.RETRIES_EXHAUSTED), 502),
        (ended(Outcome.FAILED, ErrorType.POISON), 500),
        (ended(Outcome.FAILED, ErrorType.QUARANTINED), 500),
        (ended(Outcome.FAILED, ErrorType.INTERNAL), 500),
    ],
)
def test_each_outcome_has_its_status(result: Result, status: int) -> None:
    assert status == http_status(result)
    assert (status == 200) is ("choices" in answer_body(result))
    assert (status != 200) is ("error" in answer_body(result))


def test_what_is_no_sampling_field_of_a_chat_body_is_left_out() -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": True, "store": True, "metadata": {"a": "b"}, "seed": None}
    assert {"model": "m", "messages": MESSAGES, "metadata": {"a": "b"}} == request_fields(body)
    assert {"n": 2} == request_fields({"n": 2})["parameters"]


# The output file


def test_what_is_in_the_output_file_is_done_and_half_a_line_is_not(tmp_path: Path) -> None:
    path, (first, second, third) = tmp_path / "out.jsonl", lines(3)
    with Output(path) as output:
        output.result(first, orjson.dumps(make_result(first.task_id)))
        output.gone(second, "gone")
    path.write_bytes(path.read_bytes() + answer(third, orjson.dumps(make_result(third.task_id)))[:40])
    with Output(path) as output:
        assert ({"c0": True, "c1": False}, 1) == (output.done, output.failed_count)
        assert [third.task_id] == list(output.left([first, second, third]))
        output.result(third, orjson.dumps(make_result(third.task_id)))
    assert {"c0": True, "c1": False, "c2": True} == done(path.read_bytes().splitlines())


def test_a_result_that_is_none_is_told(tmp_path: Path) -> None:
    (line,) = lines(1)
    with Output(tmp_path / "out.jsonl") as output:
        output.result(line, b"{}")
    (written,) = map(orjson.loads, (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert (None, "unreadable") == (written["response"], written["error"]["code"])


@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"id": 1}'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    source, path = tmp_path / "in.jsonl", tmp_path / "out.txt"
    source.write_bytes(row())
    path.write_text(text)
    assert errors.FAILED == main(["batch", str(source), "-o", str(path)])
    assert "line 1 is no output" in capsys.readouterr().err
    assert text == path.read_text()


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.USAGE == main(["batch", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out.jsonl")])
    assert "cannot be read" in capsys.readouterr().err


def test_what_is_all_done_asks_nobody_and_bad_lines_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join([row("c0"), b"a secret"]))
    (line,), _ = read([row("c0")], "f")
    path.write_bytes(unanswered(line, "gone", "why"))
    assert errors.FAILED == main(["batch", str(source), "-o", str(path), "--json"])
    told = capsys.readouterr()
    expected = {"total": 2, "completed": 0, "failed": 1, "bad_lines": 1, "output": str(path)}
    assert expected == orjson.loads(told.out)
    assert f"{source}:2: the line is not JSON in UTF-8" in told.err
    assert "secret" not in told.err


# Through a gateway


async def test_through_a_gateway_what_is_known_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MOST_TASKS", 2)
    asked = lines(5)
    async with FakeGateway() as gateway:

        def stored() -> int:
            return sum(len(log) for (topic, _), log in gateway.fake.records.items() if ".requests." in topic)

        await remote._Calls(Gateway("http://gateway"), gateway.http).submit(
            [(line, orjson.dumps({"task_id": line.task_id, **line.fields})) for line in asked[:2]]
        )
        gateway.fake.feed()
        gateway.waiters.close()
        for line in asked:
            number = line.partition(3)
            gateway.fake.put_result(make_result(line.task_id, partition=number, lane=Lane.LOW))
        with Output(tmp_path / "out.jsonl") as output:
            transport = gateway.http._transport
            left = output.left(asked)
            bad = await remote.run("http://gateway", Lane.LOW, left, output, 5_000, lambda: None, transport=transport)
            assert ([], 5) == (bad, sum(output.done.values()))
        assert 2 == stored()


async def test_a_line_that_the_gateway_refuses_is_bad(tmp_path: Path) -> None:
    asked = lines(2)
    asked[0].fields["messages"] = "a secret"
    async with FakeGateway() as gateway:
        gateway.fake.put_result(make_result(asked[1].task_id, partition=asked[1].partition(3)))
        with Output(tmp_path / "out.jsonl") as output:
            bad = await remote.run(
                "http://gateway",
                Lane.LOW,
                output.left(asked),
                output,
                None,
                lambda: None,
                transport=gateway.http._transport,
            )
    assert [1] == [each.number for each in bad]
    assert "secret" not in bad[0].why


async def test_a_gateway_that_stays_away_is_not_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_AGAIN_S", 0.0)

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with Output(tmp_path / "out.jsonl") as output, pytest.raises(errors.NotReachable):
        await remote.run(
            "http://gateway",
            Lane.LOW,
            output.left(lines(1)),
            output,
            None,
            lambda: None,
            transport=httpx.MockTransport(away),
        )
