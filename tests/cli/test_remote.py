"""The verbs' client of a gateway: what its answers come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cli.errors import FAILED, NO_SUCH_TASK, NOT_REACHABLE, USAGE, CommandError, SettingsError
from cli.main import main
from cli.remote import Gateway
from gateway.problems import Kind, Problem, response

URL = "http://gateway:8400"
Handler = Callable[[httpx.Request], httpx.Response]


def gateway(handler: Handler) -> Gateway:
    return Gateway(f"{URL}/", httpx.MockTransport(handler))


def always(answer: httpx.Response) -> Handler:
    return lambda _: answer


def problem(kind: Kind, detail: str | None = None, **more: Any) -> httpx.Response:
    made = response(Problem(kind, detail, **more), "trace")
    return httpx.Response(made.status_code, headers=dict(made.headers), content=bytes(made.body))


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (problem(Kind.NOT_FOUND), NO_SUCH_TASK, f"No task ward7-1 is known to the gateway at {URL}."),
        (problem(Kind.GONE), NO_SUCH_TASK, "The task ward7-1 is past its retention."),
        (problem(Kind.UNPARSABLE, "empty"), USAGE, f"The gateway at {URL} says 400: empty."),
        (problem(Kind.TOO_LARGE, "too much."), USAGE, f"The gateway at {URL} says 413: too much."),
        (problem(Kind.MEDIA), USAGE, f"The gateway at {URL} says 415: The body must be application/json."),
        (problem(Kind.INVALID, "/x: no"), USAGE, f"The gateway at {URL} says 422: /x: no."),
        (problem(Kind.UNAVAILABLE, "Kafka does not answer"), NOT_REACHABLE, "says 503: Kafka does not answer."),
        (problem(Kind.OUTCOME_UNKNOWN), NOT_REACHABLE, "says 503: It is not known whether the request was taken."),
        (problem(Kind.INTERNAL), FAILED, "says 500: Something went wrong inside the gateway."),
        (problem(Kind.NO_ROUTE), FAILED, "does not have this route: is it of another version?"),
        (httpx.Response(404, text="nothing here"), FAILED, f"What answers at {URL} says HTTP 404 and no more"),
        (httpx.Response(502, text="<html>"), NOT_REACHABLE, f"What answers at {URL} says HTTP 502 and no more"),
        (httpx.Response(200, text="<html>"), FAILED, f"What answers at {URL} is not a gateway of Triage's"),
        (httpx.Response(200, json=[1]), FAILED, f"What answers at {URL} is not a gateway of Triage's"),
        (httpx.Response(302, headers={"location": "/"}), FAILED, "says HTTP 302 and no more"),
    ],
)
def test_an_answer_that_is_no_success_is_a_sentence_and_an_exit_code(
    answer: httpx.Response, code: int, told: str
) -> None:
    with pytest.raises(CommandError) as raised:
        gateway(always(answer)).status("ward7-1")
    assert code == raised.value.exit_code
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), f"at {URL} (Connection refused): check that it runs"),
        (httpx.ConnectTimeout(""), "(no connection): check that it runs and that --gateway is right"),
        (httpx.ReadTimeout(""), "(no answer within 2.5 s)"),
        (httpx.RemoteProtocolError(""), "(RemoteProtocolError)"),
    ],
)
def test_a_gateway_that_is_away_is_not_reachable(error: Exception, told: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(CommandError) as raised:
        gateway(fail).status("ward7-1")
    assert raised.value.exit_code == NOT_REACHABLE
    assert told in str(raised.value)


def test_a_silent_gateway_is_given_up_within_five_seconds() -> None:
    timeouts: list[dict[str, float]] = []

    def look(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        return httpx.Response(200, json={"status": "healthy"})

    gateway(look).status("ward7-1")
    gateway(look).health()
    gateway(look).result("ward7-1")
    assert [each for each in timeouts if each["connect"] + each["read"] >= 5] == []


@pytest.mark.parametrize("url", ["localhost:8400", "", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_address_of_a_gateway_is_said(url: str) -> None:
    with pytest.raises(SettingsError, match="expected a URL such as"):
        Gateway(url)


def test_an_answer_is_waited_for_until_it_is_there() -> None:
    answers = [httpx.Response(202, json={"status": "queued"})] * 2 + [httpx.Response(200, json={"task_id": "t"})]
    asked: list[str] = []

    def wait(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return answers[len(asked) - 1]

    assert {"task_id": "t"} == json.loads(gateway(wait).answer("b47a:01"))
    assert ["/v1/async/result/b47a:01?wait=20"] * 3 == asked


def test_a_cancellation_names_the_outcome_that_was_first() -> None:
    cancelled = {"task_id": "t", "status": "cancelled", "was": "queued"}
    assert cancelled == gateway(lambda _: httpx.Response(200, json=cancelled)).cancel("t")
    ended = problem(Kind.ENDED, "its outcome is expired", task_id="t", outcome="expired")
    assert {"task_id": "t", "status": "expired", "was": None} == gateway(lambda _: ended).cancel("t")
    with pytest.raises(CommandError, match="is written, but cannot be read yet"):
        gateway(lambda _: httpx.Response(202, json={"status": "queued"})).cancel("t")
    with pytest.raises(CommandError, match="No task t is known"):
        gateway(lambda _: problem(Kind.NOT_FOUND)).cancel("t")


def test_health_that_is_bad_is_an_answer_and_no_failure() -> None:
    body = {"status": "unhealthy", "reasons": ["Kafka does not answer"]}
    assert body == gateway(lambda _: httpx.Response(503, json=body)).health()
    foreign = [(httpx.Response(503, text="x"), NOT_REACHABLE), (httpx.Response(200, json={"a": 1}), FAILED)]
    for answer, code in foreign:
        asked = gateway(always(answer))
        with pytest.raises(CommandError) as raised:
            asked.health()
        assert code == raised.value.exit_code


@pytest.mark.parametrize(
    "verb", ["submit x", "submit x --wait", "result a", "status a", "explain a", "cancel a", "health"]
)
def test_every_verb_says_when_its_gateway_is_away(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--gateway", "http://127.0.0.1:1"]) == NOT_REACHABLE
    assert "The gateway does not answer at http://127.0.0.1:1 (Connection refused)" in capsys.readouterr().err
