"""The catalogue of problems: each can be reached, is documented, and has its form for OpenAI's clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gateway import describe, examples
from gateway.callers import Caller
from gateway.problems import Kind, Problem, openai_form
from schemas.codec import encode
from schemas.ids import home
from schemas.progress import Pace
from schemas.result import Outcome
from schemas.topics import DAY_MS, Lane
from tests.gateway.fakes import PARTITIONS, FakeGateway, make_result
from tests.support.snapshots import row, worker

ROOT = Path(__file__).parents[2]
BODY = {"messages": [{"role": "user", "content": "a secret"}]}
JSON = {"content-type": "application/json"}

Reach = Callable[[FakeGateway], Awaitable[httpx.Response]]


def call(method: str, path: str, **options: Any) -> Reach:
    return lambda gateway: gateway.http.request(method, f"/v1/async/{path}", **options)


async def no_scope(gateway: FakeGateway) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.callers._EVERYONE", Caller("default", frozenset()))
        return await gateway.http.post("/v1/async/submit", json=BODY)


async def ended(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.put_result(make_result("t"))
    return await gateway.http.delete("/v1/async/cancel/t")


async def gone(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.put_result(make_result("t", Outcome.FAILED))
    gateway.fake.now_ms += 8 * DAY_MS
    return await gateway.http.get("/v1/async/result/t")


async def id_taken(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.put_request(partition=home("t", PARTITIONS), task_id="t", tenant="another")
    return await gateway.http.post("/v1/async/submit", json={**BODY, "task_id": "t"})


async def key_reused(gateway: FakeGateway) -> httpx.Response:
    key = {"Idempotency-Key": "k"}
    await gateway.http.post("/v1/async/submit", json=BODY, headers=key)
    return await gateway.http.post("/v1/async/submit", json={**BODY, "model": "m"}, headers=key)


async def internal(gateway: FakeGateway) -> httpx.Response:
    def broken() -> None:
        raise ValueError("a secret")

    gateway.fake.require = broken  # type: ignore[method-assign]
    return await gateway.http.get("/v1/async/stats")


async def away(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.is_reachable = False
    return await gateway.http.get("/v1/async/stats")


async def unknown(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.is_silent = True
    return await gateway.http.post("/v1/async/submit", json=BODY)


async def lane_full(gateway: FakeGateway) -> httpx.Response:
    gateway.fake.put_request(Lane.NORMAL, task_id="t")
    gateway.fake.feed()
    gateway.fake.now_ms += 2 * DAY_MS
    return await gateway.http.post("/v1/async/submit", json=BODY)


async def too_late(gateway: FakeGateway) -> httpx.Response:
    for number in range(300):
        gateway.fake.put_request(partition=number % PARTITIONS)
    gateway.fake.feed()
    pace = Pace(600, 60_000, 60.0)
    snapshot = worker(row(waiting=10), paces={Lane.NORMAL: pace}, pace=pace)
    gateway.fleet.snapshot(b"w1", encode(snapshot), gateway.fake.now_ms)
    return await gateway.http.post("/v1/async/submit", json={**BODY, "timeout_s": 5})


REACHED: dict[Kind, Reach] = {
    Kind.UNPARSABLE: call("POST", "submit", content=b"{", headers=JSON),
    Kind.FORBIDDEN: no_scope,
    Kind.NOT_FOUND: call("GET", "status/unknown"),
    Kind.NO_ROUTE: call("GET", "nothing"),
    Kind.METHOD: call("PUT", "submit"),
    Kind.ENDED: ended,
    Kind.ID_TAKEN: id_taken,
    Kind.GONE: gone,
    Kind.TOO_LARGE: call("POST", "submit", content=b" " * (2 << 20), headers=JSON),
    Kind.MEDIA: call("POST", "submit", content=b"{}"),
    Kind.INVALID: call("POST", "submit", json={}),
    Kind.KEY_REUSED: key_reused,
    Kind.INTERNAL: internal,
    Kind.UNAVAILABLE: away,
    Kind.OUTCOME_UNKNOWN: unknown,
    Kind.LANE_FULL: lane_full,
    Kind.INFEASIBLE: too_late,
}


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name_in_type)
async def test_each_problem_can_be_reached_and_comes_out_as_the_catalogue_says(kind: Kind) -> None:
    async with FakeGateway() as gateway:
        response = await REACHED[kind](gateway)
    body = response.json()
    assert (kind.status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert (kind.type, kind.title, kind.status) == (body["type"], body["title"], body["status"])
    assert (kind.status == 503) is ("retry-after" in response.headers)
    assert "secret" not in response.text


def test_no_two_problems_have_the_same_name() -> None:
    assert len(Kind) == len({kind.type for kind in Kind})


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (
            Problem(Kind.INVALID, "/messages/0/role: no", errors=[("/messages/0/role", "no")]),
            ("/messages/0/role: no", "invalid_request_error", "messages.0.role", "invalid"),
        ),
        (Problem(Kind.NOT_FOUND), ("There is no such task", "not_found_error", None, "not_found")),
        (Problem(Kind.FORBIDDEN), ("The token does not allow this", "permission_error", None, "forbidden")),
        (Problem(Kind.UNAVAILABLE), ("The gateway cannot answer now", "server_error", None, "unavailable")),
    ],
)
def test_a_problem_has_openai_s_form_too(problem: Problem, expected: tuple[object, ...]) -> None:
    error = openai_form(problem)["error"]
    assert expected == (error["message"], error["type"], error["param"], error["code"])


def test_the_committed_descriptions_are_those_of_the_code() -> None:
    assert (ROOT / "docs/errors.md").read_text() == describe.errors(), "run `make described`"
    assert (ROOT / "docs/openapi.json").read_text() == describe.openapi(), "run `make described`"


def test_the_description_is_openapi_3_1_with_a_stable_name_for_each_operation() -> None:
    found = orjson.loads(describe.openapi())
    assert found["openapi"].startswith("3.1")
    names = {
        f"{method} {path}": route["operationId"]
        for path, ways in found["paths"].items()
        for method, route in ways.items()
    }
    assert {
        "post /v1/async/submit": "submit",
        "post /v1/async/submit-batch": "submit_batch",
        "get /v1/async/status/{task_id}": "status",
        "get /v1/async/batch-status/{batch_id}": "batch_status",
        "get /v1/async/result/{task_id}": "result",
        "delete /v1/async/cancel/{task_id}": "cancel",
        "post /v1/async/cleanup": "cleanup",
        "get /v1/async/events": "events",
        "get /v1/async/stats": "stats",
        "get /v1/async/health": "health",
        "get /version": "version",
    }.items() <= names.items()
    assert len(names) == len(set(names.values()))


@pytest.mark.parametrize(
    ("route", "given"),
    [("submit", examples.SUBMIT), ("submit-batch", examples.SUBMIT_BATCH), ("cleanup", examples.CLEANUP)],
)
async def test_the_examples_are_taken(route: str, given: dict[str, Any]) -> None:
    async with FakeGateway() as gateway:
        for example in given.values():
            response = await gateway.http.post(f"/v1/async/{route}", json=example["value"])
            assert response.is_success, response.text
            assert [] == response.json().get("rejected", [])
