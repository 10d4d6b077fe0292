"""Many tasks in one call, and how they stand together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.batches import MOST_TASKS
from gateway.callers import Caller
from gateway.finished import FinishedFile
from gateway.groups import Membership
from gateway.problems import Kind
from schemas import headers as names
from schemas.ids import home
from schemas.result import Outcome
from schemas.topics import DAY_MS, Lane
from streams.outcome import result_headers
from tests.gateway.fakes import NAMES, NOW_MS, PARTITIONS, FakeGateway, FakeLogs, make_result, make_view
from tests.gateway.test_idempotency import KEY, requests, restarted
from tests.gateway.test_problems import too_late

MESSAGES = [{"role": "user", "content": "a secret"}]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


def tasks(count: int, **fields: Any) -> dict[str, Any]:
    return {"tasks": [{"messages": MESSAGES, "metadata": {"n": str(number)}, **fields} for number in range(count)]}


async def submit(gateway: FakeGateway, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await gateway.http.post("/v1/async/submit-batch", json=body, headers=headers)
    return response.status_code, response.json()


async def status(gateway: FakeGateway, batch_id: str) -> tuple[int, dict[str, Any]]:
    response = await gateway.http.get(f"/v1/async/batch-status/{batch_id}")
    return response.status_code, response.json()


def end(gateway: FakeGateway, task_id: str, outcome: Outcome = Outcome.COMPLETED) -> None:
    """Write an outcome as a worker does: with the headers of the request."""
    record = next(each for each in requests(gateway) if orjson.loads(each.value)["task_id"] == task_id)
    result = make_result(task_id, outcome, partition=record.partition, offset=record.offset)
    headers = result_headers(result, names.copied(record.headers), None)
    gateway.fake.put(NAMES.results, record.partition, task_id.encode(), orjson.dumps(result), headers)


async def test_the_tasks_of_a_batch_are_written_with_their_place_in_it(gateway: FakeGateway) -> None:
    code, body = await submit(gateway, {"tasks": [{"messages": MESSAGES, "priority": "LOW"}, *tasks(2)["tasks"]]})
    assert (202, 3, []) == (code, body["accepted"], body["rejected"])
    assert body["batch_id"].startswith("sb-")
    written = {orjson.loads(record.value)["task_id"]: record for record in requests(gateway)}
    assert set(body["task_ids"]) == set(written)
    for index, task_id in enumerate(body["task_ids"]):
        record = written[task_id]
        assert f"{body['batch_id']};{index};3".encode() == dict(record.headers)[names.BATCH]
        assert body["batch_id"] == orjson.loads(record.value)["batch_id"]
        assert home(task_id, PARTITIONS) == record.partition
    assert NAMES.requests(Lane.LOW) == written[body["task_ids"][0]].topic


async def test_a_wrong_item_is_told_by_its_place_and_does_not_fail_the_others(gateway: FakeGateway) -> None:
    items = tasks(5)["tasks"]
    items[1] = {"messages": "a secret"}
    items[2] = "a secret"
    items[3] = {"messages": [{"role": "user", "content": "x" * (1 << 20)}]}
    code, body = await submit(gateway, {"tasks": items})
    assert (202, 2) == (code, body["accepted"])
    assert [
        (1, "urn:triage:problem:invalid", "/messages"),
        (2, "urn:triage:problem:invalid", ""),
        (3, "urn:triage:problem:too-large", None),
    ] == [
        (each["index"], each["error"]["type"], next((row["pointer"] for row in each["error"]["errors"]), None))
        for each in body["rejected"]
    ]
    assert "secret" not in str(body)
    found = (await status(gateway, body["batch_id"]))[1]
    assert (2, [0, 4]) == (found["total"], [row["index"] for row in found["tasks"]])
    metrics = (await gateway.http.get("/metrics")).text
    assert 'triage_rejected_total{reason="invalid"} 2.0' in metrics
    assert 'triage_requests_accepted_total{lane="normal"} 2.0' in metrics


@pytest.mark.parametrize(
    "body",
    [{}, {"tasks": []}, {"tasks": None}, {"tasks": {}}, {"tasks": "a secret"}, {"tasks": [{}] * (MOST_TASKS + 1)}, []],
    ids=["nothing", "empty", "null", "object", "text", "too many", "list"],
)
async def test_a_list_that_is_none_is_invalid(gateway: FakeGateway, body: object) -> None:
    code, told = await submit(gateway, body)
    assert (422, "urn:triage:problem:invalid") == (code, told["type"])
    assert not requests(gateway)


async def test_a_body_over_64_mib_is_too_large_and_is_not_read(gateway: FakeGateway) -> None:
    headers = {"content-type": "application/json", "content-length": str((64 << 20) + 1)}
    response = await gateway.http.post("/v1/async/submit-batch", content=b"{}", headers=headers)
    assert 413 == response.status_code


async def test_a_large_body_is_taken(gateway: FakeGateway) -> None:
    code, body = await submit(gateway, tasks(40, agent_type="x" * 250, model="y" * 250) | {"more": "z" * (1 << 20)})
    assert (202, 40) == (code, body["accepted"])


async def test_how_a_batch_stands_from_its_submission_to_its_end(gateway: FakeGateway) -> None:
    body = (await submit(gateway, tasks(4)))[1]
    first, second, third, _ = body["task_ids"]
    end(gateway, first)
    end(gateway, second, Outcome.FAILED)
    record = next(each for each in requests(gateway) if orjson.loads(each.value)["task_id"] == third)
    gateway.fake.put_started(third, Lane.NORMAL, record.partition, record.offset)
    code, found = await status(gateway, body["batch_id"])
    expected = {
        "batch_id": body["batch_id"],
        "total": 4,
        "completed": 1,
        "failed": 1,
        "cancelled": 0,
        "expired": 0,
        "pending": 2,
        "forgotten": 0,
        "tasks": [
            {"task_id": task_id, "index": index, "status": state}
            for index, (task_id, state) in enumerate(
                zip(body["task_ids"], ["completed", "failed", "processing", "queued"], strict=True)
            )
        ],
    }
    assert (200, expected) == (code, found)
    restarted(gateway)
    assert (200, expected) == await status(gateway, body["batch_id"])
    assert body["batch_id"] == (await gateway.http.get(f"/v1/async/status/{first}")).json()["batch_id"]


async def test_membership_is_found_again_from_the_results_alone(gateway: FakeGateway) -> None:
    body = (await submit(gateway, tasks(2)))[1]
    for task_id in body["task_ids"]:
        end(gateway, task_id)
    for lane in Lane:
        for partition in range(PARTITIONS):
            gateway.fake.records.pop((NAMES.requests(lane), partition), None)
    restarted(gateway)
    found = (await status(gateway, body["batch_id"]))[1]
    assert (2, 2, 0) == (found["total"], found["completed"], found["pending"])


@pytest.mark.parametrize("batch_id", ["unknown", "has%20spaces", "x" * 129, "theirs"])
async def test_unknown_and_another_tenant_s_batch_are_the_same_404(gateway: FakeGateway, batch_id: str) -> None:
    headers = [(names.BATCH, b"theirs;0;1")]
    value = orjson.dumps({"task_id": "t", "tenant": "another", "messages": MESSAGES})
    gateway.fake.put(NAMES.requests(Lane.LOW), 0, None, value, headers)
    code, body = await status(gateway, batch_id)
    assert (404, "there is no such batch") == (code, body["detail"])


async def test_members_that_are_not_written_are_pending(gateway: FakeGateway) -> None:
    value = orjson.dumps({"task_id": "t", "messages": MESSAGES})
    gateway.fake.put(NAMES.requests(Lane.LOW), 0, None, value, [(names.BATCH, b"own-batch;2;5")])
    found = (await status(gateway, "own-batch"))[1]
    assert (5, 5, [{"task_id": "t", "index": 2, "status": "queued"}]) == (
        found["total"],
        found["pending"],
        found["tasks"],
    )


# The same again


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_same_key_and_body_is_the_same_batch(gateway: FakeGateway, elsewhere: bool) -> None:
    first = await submit(gateway, tasks(30), **KEY)
    if elsewhere:
        restarted(gateway)
    response = await gateway.http.post("/v1/async/submit-batch", json=tasks(30), headers=KEY)
    assert (*first, "true") == (response.status_code, response.json(), response.headers.get("idempotent-replayed"))
    assert 30 == len(requests(gateway))
    code, told = await submit(gateway, tasks(29), **KEY)
    assert (422, "urn:triage:problem:idempotency-key-reused") == (code, told["type"])


async def test_a_key_of_submit_is_another_one_here(gateway: FakeGateway) -> None:
    await gateway.http.post("/v1/async/submit", json=tasks(1)["tasks"][0], headers=KEY)
    assert 202 == (await submit(gateway, tasks(1), **KEY))[0]


async def test_after_a_break_the_same_call_writes_what_is_missing(gateway: FakeGateway) -> None:
    append, count = gateway.fake.append, iter(range(1000))

    async def breaking(*args: Any, **options: Any) -> int:
        gateway.fake.is_silent = next(count) >= 7
        return await append(*args, **options)

    gateway.fake.append = breaking  # type: ignore[method-assign]
    code, told = await submit(gateway, tasks(20), **KEY)
    assert (503, "urn:triage:problem:outcome-unknown") == (code, told["type"])
    gateway.fake.append, gateway.fake.is_silent = append, False  # type: ignore[method-assign]
    code, body = await submit(gateway, tasks(20), **KEY)
    assert (202, 20, 20) == (code, body["accepted"], len(requests(gateway)))
    assert {b"20"} == {dict(record.headers)[names.BATCH].rpartition(b";")[2] for record in requests(gateway)}
    assert 20 == (await status(gateway, body["batch_id"]))[1]["pending"]


async def test_own_ids_are_kept_and_taken_ones_are_told(gateway: FakeGateway) -> None:
    await gateway.http.post("/v1/async/submit", json={"messages": MESSAGES, "task_id": "there"})
    items = [{"messages": MESSAGES, "task_id": task_id} for task_id in ("mine", "there", "mine", "low.1.2")]
    body = (await submit(gateway, {"tasks": items}))[1]
    assert ["mine"] == body["task_ids"]
    types = ["task-id-taken", "task-id-taken", "invalid"]
    assert types == [each["error"]["type"].rpartition(":")[2] for each in body["rejected"]]


async def test_an_item_whose_deadline_cannot_be_met_is_told_and_the_others_are_taken(gateway: FakeGateway) -> None:
    await too_late(gateway)
    items = [
        {"messages": MESSAGES, "timeout_s": 5},
        {"messages": MESSAGES, "timeout_s": 50_000},
        {"messages": MESSAGES},
    ]
    body = (await submit(gateway, {"tasks": items}))[1]
    assert (2, [Kind.INFEASIBLE.type]) == (body["accepted"], [each["error"]["type"] for each in body["rejected"]])


# Room


async def test_no_more_bodies_are_held_than_there_is_room_for(gateway: FakeGateway) -> None:
    going_on, reading = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        reading.release()
        yield orjson.dumps(tasks(1))
        await going_on.wait()

    def call(content: Any) -> Any:
        return gateway.http.post(
            "/v1/async/submit-batch", content=content, headers={"content-type": "application/json"}
        )

    held = [asyncio.create_task(call(slow())) for _ in range(4)]
    for _ in held:
        await reading.acquire()
    response = await call(orjson.dumps(tasks(1)))
    assert (503, "urn:triage:problem:unavailable") == (response.status_code, response.json()["type"])
    going_on.set()
    assert [202] * 4 == [each.status_code for each in await asyncio.gather(*held)]
    assert 0 == gateway.calls.batches._held_bytes


@pytest.mark.parametrize("priority", ["low", None, 5])
async def test_a_lane_over_half_its_retention_takes_no_more_and_the_others_do(
    gateway: FakeGateway, priority: object
) -> None:
    lane = "low" if priority == "low" else "normal"
    await submit(gateway, tasks(1, priority=lane))
    gateway.fake.feed()
    gateway.fake.now_ms += DAY_MS + DAY_MS // 2 + 1
    call = {"messages": MESSAGES, "priority": priority}
    response = await gateway.http.post("/v1/async/submit", json=call)
    if priority == 5:
        assert 422 == response.status_code
        return
    expected = (503, "urn:triage:problem:lane-full", "3600")
    assert expected == (response.status_code, response.json()["type"], response.headers["retry-after"])
    body = (await submit(gateway, {"tasks": [call, {"messages": MESSAGES, "priority": "high"}]}))[1]
    assert (1, "urn:triage:problem:lane-full") == (body["accepted"], body["rejected"][0]["error"]["type"])


async def test_when_every_lane_is_full_the_body_is_not_even_read(gateway: FakeGateway) -> None:
    for lane in Lane:
        gateway.fake.put_request(lane, task_id=lane.value)
    gateway.fake.feed()
    gateway.fake.now_ms += DAY_MS + DAY_MS // 2 + 1
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"{}")
        yield b"{}"

    for path in ("submit", "submit-batch"):
        response = await gateway.http.post(
            f"/v1/async/{path}", content=body(), headers={"content-type": "application/json"}
        )
        assert (503, "urn:triage:problem:lane-full") == (response.status_code, response.json()["type"])


async def test_the_wait_for_a_full_lane_is_told_by_how_fast_it_is_served(gateway: FakeGateway) -> None:
    for number in range(40):
        gateway.fake.put_request(Lane.LOW, task_id=f"t{number}")
    gateway.fake.feed()
    gateway.fake.now_ms += DAY_MS + DAY_MS // 2 + 1
    for number in range(10):
        gateway.fake.put_result(make_result(f"t{number}", lane=Lane.LOW, offset=number))
    gateway.fake.feed()
    response = await gateway.http.post("/v1/async/submit", json={"messages": MESSAGES, "priority": "low"})
    assert "180" == response.headers["retry-after"]


# Inside


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"b;0;1", Membership("b", 0, 1)),
        (Membership("sb-1", 9, 10).encode(), Membership("sb-1", 9, 10)),
        (b"b;1", None),
        (b"b;-1;2", None),
        (b"a b;1;2", None),
        (b";1;2", None),
        (b"\xff;1;2", None),
        (b"b;1;" + b"9" * 20, None),
        (None, None),
    ],
)
def test_a_membership_is_read_or_none(header: bytes | None, expected: Membership | None) -> None:
    assert expected == Membership.parse(header)


def test_old_members_and_claims_are_dropped() -> None:
    found = FinishedFile()
    view = make_view(found)
    logs = FakeLogs(view)
    for number in range(3):
        logs.now_ms = NOW_MS + number
        value = orjson.dumps({"task_id": f"t{number}"})
        headers = [(names.BATCH, b"b;%d;3" % number), (names.IDEMPOTENCY, b"k%d" % number)]
        logs.put(NAMES.requests(Lane.LOW), 0, None, value, headers)
    logs.feed()
    found.flush()
    found.forget_older(NOW_MS + 2)
    assert [2] == [member.index for member in found.members("default", "b")]
    assert [set(), set(), {"b"}] == [found.claims(f"k{number}") for number in range(3)]
    found.close()


@pytest.mark.parametrize("scope", ["submit", "read", "cancel", "admin"])
async def test_each_route_needs_its_scope(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, scope: Any) -> None:
    routes = {
        "POST submit": "submit",
        "POST submit-batch": "submit",
        "GET status/t": "read",
        "GET result/t": "read",
        "GET batch-status/b": "read",
        "GET events?task_id=t": "read",
        "GET stats": "read",
        "DELETE cancel/t": "cancel",
        "POST cleanup": "admin",
    }
    monkeypatch.setattr("gateway.callers._EVERYONE", Caller("default", frozenset({scope})))
    for route, needed in routes.items():
        method, path = route.split()
        response = await gateway.http.request(method, f"/v1/async/{path}", json={} if method == "POST" else None)
        assert (needed != scope) is (response.status_code == 403), route
        if response.status_code == 403:
            assert f"this needs the scope {needed}" == response.json()["detail"]
