"""The HTTP surface over logs that are lists: bodies, problems, and what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from schemas import headers as names
from schemas.codec import decode, encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.ids import home
from schemas.progress import BackendStatus, WorkerSnapshot
from schemas.result import Outcome, Result
from schemas.topics import DAY_MS, Lane
from streams.settings import GatewaySettings, Settings
from tests.gateway.fakes import NAMES, NOW_MS, PARTITIONS, FakeGateway, make_result

BODY = {"messages": [{"role": "user", "content": "a secret"}]}
STATUS_FIELDS = {
    *("task_id", "status", "priority", "agent_type", "created_at", "started_at", "finished_at"),
    *("attempts", "position", "estimate", "error", "batch_id"),
}


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


async def submitted(gateway: FakeGateway, **fields: Any) -> str:
    response = await gateway.http.post("/v1/async/submit", json={**BODY, **fields})
    assert 202 == response.status_code, response.text
    task_id: str = response.json()["task_id"]
    return task_id


def place_of(gateway: FakeGateway, task_id: str) -> tuple[Lane, int, int]:
    """Return lane, partition and offset of a task's request."""
    for lane in Lane:
        for (topic, partition), log in gateway.fake.records.items():
            for record in log:
                if topic == NAMES.requests(lane) and orjson.loads(record.value or b"")["task_id"] == task_id:
                    return lane, partition, record.offset
    raise AssertionError(task_id)


def ended(gateway: FakeGateway, task_id: str, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> None:
    lane, partition, offset = place_of(gateway, task_id)
    gateway.fake.put_result(make_result(task_id, outcome, lane=lane, partition=partition, offset=offset, **fields))


# Submit


async def test_submit_answers_202_with_where_to_go_on(gateway: FakeGateway) -> None:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y"}
    response = await gateway.http.post("/v1/async/submit", json={**BODY, "priority": "HIGH"}, headers=headers)
    body = response.json()
    task_id = body["task_id"]
    assert (202, f"/v1/async/status/{task_id}") == (response.status_code, response.headers["location"])
    assert response.headers["retry-after"]
    assert {
        "task_id": task_id,
        "status": "queued",
        "priority": "high",
        "position": None,
        "estimate": None,
        "links": {
            "status": f"/v1/async/status/{task_id}",
            "result": f"/v1/async/result/{task_id}",
            "cancel": f"/v1/async/cancel/{task_id}",
            "explain": f"/v1/async/explain/{task_id}",
        },
    } == body
    lane, partition, offset = place_of(gateway, task_id)
    record = gateway.fake.records[NAMES.requests(lane), partition][offset]
    assert (Lane.HIGH, task_id[:4].encode()) == (lane, record.key)
    assert dict(record.headers)["traceparent"] == headers["traceparent"].encode()


async def test_the_same_question_twice_is_two_tasks(gateway: FakeGateway) -> None:
    first = await submitted(gateway)
    assert first != await submitted(gateway)


@dataclass(frozen=True)
class Wrong:
    """A call that is refused: with which status, and of which type."""

    name: str
    content: bytes
    status: int
    type: str
    content_type: str = "application/json"


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"a": "a secret"}
    for _ in range(levels):
        found = {"a": found}
    return found


WRONG = [
    Wrong("empty", b"", 400, "unparsable"),
    Wrong("not JSON", b"a secret", 400, "unparsable"),
    Wrong("cut", orjson.dumps(BODY)[:-1], 400, "unparsable"),
    Wrong("no object", b'["a secret"]', 422, "invalid"),
    Wrong("wrong type", b'{"messages": "a secret"}', 422, "invalid"),
    Wrong("no messages", b"{}", 422, "invalid"),
    Wrong("unknown priority", orjson.dumps({**BODY, "priority": "a secret"}), 422, "invalid"),
    Wrong("two deadlines", orjson.dumps({**BODY, "timeout_s": 1, "deadline_at_ms": NOW_MS * 2}), 422, "invalid"),
    Wrong("a byte too many", b'{"messages": "' + b"x" * (1 << 20), 413, "too-large"),
    Wrong("form", b"messages=a secret", 415, "unsupported-media-type", "application/x-www-form-urlencoded"),
    Wrong("text", orjson.dumps(BODY), 415, "unsupported-media-type", "text/plain"),
    Wrong("no type", orjson.dumps(BODY), 415, "unsupported-media-type", ""),
    Wrong("NaN", b'{"messages": [{"role": "user", "content": "a secret"}], "timeout_s": NaN}', 400, "unparsable"),
    Wrong(
        "infinity", b'{"messages": [{"role": "user", "content": "a secret"}], "timeout_s": 1e999}', 400, "unparsable"
    ),
    Wrong("not UTF-8", b'{"messages": [{"role": "user", "content": "a secret\xff"}]}', 400, "unparsable"),
    Wrong("nested without end", b"[" * 100_000, 400, "unparsable"),
    Wrong("nested deeply", orjson.dumps({**BODY, "metadata": nested(200)}), 422, "invalid"),
    Wrong(
        "nested deeply where anything goes", orjson.dumps({**BODY, "parameters": {"x": nested(200)}}), 422, "invalid"
    ),
    Wrong("true for seconds", orjson.dumps({**BODY, "timeout_s": True}), 422, "invalid"),
    Wrong("text for a number", orjson.dumps({**BODY, "deadline_at_ms": "1"}), 422, "invalid"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
async def test_a_wrong_submit_is_a_problem_and_stores_nothing(gateway: FakeGateway, case: Wrong) -> None:
    headers = {"content-type": case.content_type} if case.content_type else {}
    response = await gateway.http.post("/v1/async/submit", content=case.content, headers=headers)
    body = response.json()
    assert (case.status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert f"urn:triage:problem:{case.type}" == body["type"]
    assert {"type", "title", "status", "detail", "errors", "trace_id"} == set(body)
    assert "secret" not in response.text
    assert not any(gateway.fake.records.values())
    metrics = (await gateway.http.get("/metrics")).text
    assert f'triage_rejected_total{{reason="{case.type}"}} 1.0' in metrics


@pytest.mark.parametrize(("room", "status"), [(0, 202), (1, 413)])
async def test_a_mebibyte_is_taken_and_a_byte_more_is_not(room: int, status: int, gateway: FakeGateway) -> None:
    head = b'{"messages": [{"role": "user", "content": "a secret"}]}'
    content = head + b" " * ((1 << 20) + room - len(head))
    response = await gateway.http.post(
        "/v1/async/submit", content=content, headers={"content-type": "application/json"}
    )
    assert (status, status == 202) == (response.status_code, any(gateway.fake.records.values()))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/async/status/t",
        "/v1/async/result/t",
        "/v1/async/cancel/t",
        "/v1/async/batch-status/t",
        "/v1/async/events?task_id=t",
        "/v1/async/stats",
    ],
)
@pytest.mark.parametrize("content", [b"", b"not json", b"[" * 10_000])
async def test_a_body_where_none_belongs_changes_nothing(gateway: FakeGateway, path: str, content: bytes) -> None:
    method = "DELETE" if "cancel" in path else "GET"
    response = await gateway.http.request(method, path, content=content, headers={"content-type": "text/plain"})
    assert (200 if path.endswith("stats") else 404) == response.status_code
    assert not any(gateway.fake.records.values())


async def test_submit_while_the_brokers_are_away_is_a_503_that_says_when_to_come_back(gateway: FakeGateway) -> None:
    gateway.fake.is_reachable = False
    response = await gateway.http.post("/v1/async/submit", json=BODY)
    assert (503, "application/problem+json", "2") == (
        response.status_code,
        response.headers["content-type"],
        response.headers["retry-after"],
    )
    assert "urn:triage:problem:unavailable" == response.json()["type"]
    assert 'triage_rejected_total{reason="unavailable"} 1.0' in (await gateway.http.get("/metrics")).text


async def test_a_length_that_is_no_length_is_too_large(gateway: FakeGateway) -> None:
    headers = {"content-type": "application/json", "content-length": "9" * 5_000}
    assert 413 == (await gateway.http.post("/v1/async/submit", content=b"{}", headers=headers)).status_code


async def test_a_body_that_does_not_tell_its_length_is_bounded_too(gateway: FakeGateway) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 16)

    headers = {"content-type": "application/json; charset=utf-8"}
    response = await gateway.http.post("/v1/async/submit", content=chunks(), headers=headers)
    assert 413 == response.status_code
    assert not any(gateway.fake.records.values())


async def test_a_record_that_was_not_acknowledged_is_an_outcome_unknown(gateway: FakeGateway) -> None:
    gateway.fake.is_silent = True
    response = await gateway.http.post("/v1/async/submit", json=BODY)
    assert (503, "urn:triage:problem:outcome-unknown") == (response.status_code, response.json()["type"])
    assert response.headers["retry-after"]


# Status and result


async def test_a_task_from_queued_to_completed(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway, priority="critical", agent_type="triage", batch_id="b", metadata={"a": "b"})
    status = (await gateway.http.get(f"/v1/async/status/{task_id}")).json()
    queued = {
        "task_id": task_id,
        "status": "queued",
        "priority": "critical",
        "agent_type": "triage",
        "created_at": "2026-11-23T07:46:40.000Z",
        "started_at": None,
        "finished_at": None,
        "attempts": 0,
        "position": None,
        "estimate": None,
        "error": None,
        "batch_id": "b",
    }
    assert queued == status
    response = await gateway.http.get(f"/v1/async/result/{task_id}")
    assert (202, queued) == (response.status_code, response.json())
    lane, partition, offset = place_of(gateway, task_id)
    gateway.fake.now_ms += 5
    gateway.fake.put_started(task_id, lane, partition, offset)
    status = (await gateway.http.get(f"/v1/async/status/{task_id}")).json()
    started = {"status": "processing", "started_at": "2026-11-23T07:46:40.005Z", "attempts": 1}
    assert {**queued, **started} == status
    gateway.fake.now_ms += 6
    ended(gateway, task_id, agent_type="triage", batch_id="b")
    status = (await gateway.http.get(f"/v1/async/status/{task_id}")).json()
    assert {**queued, **started, "status": "completed", "finished_at": "2026-11-23T07:46:40.011Z"} == status
    response = await gateway.http.get(f"/v1/async/result/{task_id}")
    assert 200 == response.status_code
    assert {"status", *Result.__dataclass_fields__} == set(response.json())
    assert ("completed", "an answer") == (response.json()["status"], response.json()["output"]["content"])


async def test_a_failed_task_says_why(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    ended(gateway, task_id, Outcome.FAILED)
    status = (await gateway.http.get(f"/v1/async/status/{task_id}")).json()
    assert ("failed", "backend_rejected") == (status["status"], status["error"]["type"])
    assert set(status) == STATUS_FIELDS


async def test_result_waits_for_the_end(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    waiting = asyncio.create_task(gateway.http.get(f"/v1/async/result/{task_id}?wait=30"))
    await gateway.watched.waiting.wait()
    ended(gateway, task_id)
    _, partition, _ = place_of(gateway, task_id)
    gateway.waiters.wake((task_id, partition))
    assert 200 == (await waiting).status_code
    assert {} == gateway.waiters._by_task


async def test_result_waits_on_while_only_another_task_of_this_id_ends(gateway: FakeGateway) -> None:
    shown, other = (number for number in range(PARTITIONS) if number != home("twice", PARTITIONS))
    for partition in (shown, other):
        gateway.fake.put_request(partition=partition, task_id="twice")
    waiting = asyncio.create_task(gateway.http.get("/v1/async/result/twice?wait=30"))
    await gateway.watched.waiting.wait()
    gateway.fake.put_result(make_result("twice", Outcome.FAILED, partition=other))
    gateway.waiters.wake(("twice", other))
    (future,) = gateway.waiters._by_task["twice", shown]
    assert not future.done()
    gateway.fake.put_result(make_result("twice", partition=shown))
    gateway.waiters.wake(("twice", shown))
    response = await waiting
    assert (200, "completed") == (response.status_code, response.json()["status"])


async def test_a_stopping_gateway_lets_waiting_calls_go(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    waiting = asyncio.create_task(gateway.http.get(f"/v1/async/result/{task_id}?wait=60"))
    await gateway.watched.waiting.wait()
    gateway.close()
    assert 202 == (await waiting).status_code
    assert 503 == (await gateway.http.get("/healthz/ready")).status_code


@pytest.mark.parametrize("wait", ["-1", "61", "a secret", "nan", ""])
async def test_a_wrong_wait_is_invalid(gateway: FakeGateway, wait: str) -> None:
    response = await gateway.http.get("/v1/async/result/t", params={"wait": wait})
    assert (422, "/query/wait") == (response.status_code, response.json()["errors"][0]["pointer"])
    assert "secret" not in response.text


async def test_position_counts_from_one_and_needs_a_fresh_picture_of_the_workers(gateway: FakeGateway) -> None:
    gateway.fleet.snapshot(b"w", b"{}", NOW_MS - 1_000)
    first, second = await submitted(gateway), await submitted(gateway, metadata={"a": "b"}, model="m")
    urgent = await submitted(gateway, priority="high")
    positions = {
        task_id: (await gateway.http.get(f"/v1/async/status/{task_id}")).json()["position"]
        for task_id in (urgent, first, second)
    }
    assert [1, 2, 3] == sorted(positions.values())
    assert 1 == positions[urgent]
    response = await gateway.http.post("/v1/async/submit", json={**BODY, "priority": "low"})
    assert 4 == response.json()["position"]
    gateway.fake.now_ms += 1_500
    assert (await gateway.http.get(f"/v1/async/status/{first}")).json()["position"] is None


# What is not there, or not ours


@pytest.mark.parametrize("route", ["GET /v1/async/status/", "GET /v1/async/result/", "DELETE /v1/async/cancel/"])
@pytest.mark.parametrize("task_id", ["unknown", "has%20spaces", "x" * 129, "theirs", "theirs-unfinished"])
async def test_unknown_and_another_tenant_s_are_the_same_404(gateway: FakeGateway, route: str, task_id: str) -> None:
    gateway.fake.put_result(make_result("theirs", tenant="another"))
    gateway.fake.put_request(task_id="theirs-unfinished", tenant="another")
    method, path = route.split()
    response = await gateway.http.request(method, f"{path}{task_id}")
    body = response.json()
    body.pop("trace_id")
    expected = {
        "type": "urn:triage:problem:not-found",
        "title": "There is no such task",
        "status": 404,
        "detail": "There is no such task",
        "errors": [],
    }
    assert (404, expected) == (response.status_code, body)


async def test_past_its_retention_is_gone(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    ended(gateway, task_id)
    assert 200 == (await gateway.http.get(f"/v1/async/result/{task_id}")).status_code
    gateway.fake.records[NAMES.results, place_of(gateway, task_id)[1]].clear()
    assert 410 == (await gateway.http.get(f"/v1/async/result/{task_id}")).status_code
    old = await submitted(gateway)
    gateway.fake.now_ms += 8 * DAY_MS
    unheard_of = old[:-1] + ("0" if old[-1] != "0" else "1")
    assert 410 == (await gateway.http.get(f"/v1/async/status/{unheard_of}")).status_code


async def test_a_result_is_gone_after_seven_days_also_while_the_log_still_has_it(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    ended(gateway, task_id)
    gateway.fake.now_ms += 7 * DAY_MS
    assert 200 == (await gateway.http.get(f"/v1/async/result/{task_id}")).status_code
    gateway.fake.now_ms += 1
    for path in ("result", "status"):
        assert 410 == (await gateway.http.get(f"/v1/async/{path}/{task_id}")).status_code


async def test_a_task_without_an_outcome_is_gone_with_its_request(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    gateway.fake.feed()
    gateway.fake.now_ms += 3 * DAY_MS + 1
    gateway.view.forget_older(gateway.fake.now_ms - 3 * DAY_MS)
    for path in ("result", "status"):
        assert 410 == (await gateway.http.get(f"/v1/async/{path}/{task_id}")).status_code


TASK_ROUTES = [
    "POST /v1/async/submit",
    "GET /v1/async/status/t",
    "GET /v1/async/result/t",
    "DELETE /v1/async/cancel/t",
    "GET /v1/async/stats",
    "POST /v1/async/submit-batch",
    "GET /v1/async/batch-status/b",
    "POST /v1/async/cleanup",
    "GET /v1/async/events?task_id=t",
    "GET /v1/async/events?batch_id=b",
]


@pytest.mark.parametrize("route", TASK_ROUTES)
@pytest.mark.parametrize("state", ["before Kafka", "catching up", "away"])
async def test_while_the_view_cannot_tell_it_is_503_and_never_404(gateway: FakeGateway, route: str, state: str) -> None:
    if state == "before Kafka":
        gateway._calls = gateway.logs = None
    elif state == "catching up":
        gateway.fake.is_caught_up = False
        gateway.ready.clear()
    else:
        gateway.fake.is_reachable = False
    method, path = route.split()
    response = await gateway.http.request(method, path, json=BODY if method == "POST" else None)
    assert (503, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert response.headers["retry-after"]
    assert not any(gateway.fake.records.values())
    health = await gateway.http.get("/v1/async/health")
    assert (503, "unhealthy") == (health.status_code, health.json()["status"])
    assert 200 == (await gateway.http.get("/healthz/live")).status_code


async def test_a_view_that_is_behind_says_so_for_what_may_change_and_answers_for_what_cannot(
    gateway: FakeGateway,
) -> None:
    done, waiting = await submitted(gateway), await submitted(gateway, model="m")
    ended(gateway, done)
    gateway.fake.feed()
    gateway.fake.is_behind = True
    codes = [(await gateway.http.get(f"/v1/async/status/{each}")).status_code for each in (done, waiting, "unknown")]
    assert [200, 503, 503] == codes


# Cancel


async def test_cancel_ends_a_waiting_task_and_again_says_the_same(gateway: FakeGateway) -> None:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    response = await gateway.http.post(
        "/v1/async/submit", json={**BODY, "metadata": {"a": "b"}, "agent_type": "x"}, headers=headers
    )
    task_id = response.json()["task_id"]
    expected = {"task_id": task_id, "status": "cancelled", "was": "queued"}
    for _ in range(2):
        response = await gateway.http.delete(f"/v1/async/cancel/{task_id}")
        assert (200, expected) == (response.status_code, response.json())
    lane, partition, offset = place_of(gateway, task_id)
    records = gateway.fake.records[NAMES.results, partition]
    assert 1 == len(records)
    result = decode(Result, records[0].value or b"")
    assert (task_id, Outcome.CANCELLED, lane, offset, {"a": "b"}, "x") == (
        result.task_id,
        result.outcome,
        result.priority,
        result.source.offset,
        result.metadata,
        result.agent_type,
    )
    assert result.error is not None
    assert "cancelled" == result.error.type
    sent = dict(records[0].headers)
    assert (b"cancelled", headers["traceparent"].encode()) == (sent[names.OUTCOME], sent["traceparent"])


async def test_cancel_of_a_running_task_says_what_it_was(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    gateway.fake.put_started(task_id, *place_of(gateway, task_id))
    response = await gateway.http.delete(f"/v1/async/cancel/{task_id}")
    assert (200, "processing") == (response.status_code, response.json()["was"])
    assert "cancelled" == (await gateway.http.get(f"/v1/async/result/{task_id}")).json()["status"]


async def test_cancel_after_another_outcome_is_409_and_writes_nothing(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    ended(gateway, task_id)
    response = await gateway.http.delete(f"/v1/async/cancel/{task_id}")
    assert (409, "completed") == (response.status_code, response.json()["outcome"])
    assert 1 == sum(len(log) for (topic, _), log in gateway.fake.records.items() if topic == NAMES.results)


async def test_cancel_that_comes_second_in_the_log_is_409(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)
    gateway.fake.before_append = lambda: ended(gateway, task_id)
    response = await gateway.http.delete(f"/v1/async/cancel/{task_id}")
    assert (409, "completed") == (response.status_code, response.json()["outcome"])


async def test_cancel_is_202_while_the_log_does_not_answer(gateway: FakeGateway) -> None:
    task_id = await submitted(gateway)

    def hang() -> None:
        gateway.fake.is_behind = True

    gateway.fake.before_append = hang
    response = await gateway.http.delete(f"/v1/async/cancel/{task_id}")
    assert (202, "queued") == (response.status_code, response.json()["status"])


# The rest


async def test_stats_have_every_field(gateway: FakeGateway) -> None:
    gateway.fleet.snapshot(b"w", b"{}", NOW_MS)
    for lane in Lane:
        ended(gateway, await submitted(gateway, priority=lane.value))
    failed = await submitted(gateway, priority="low", model="m")
    ended(gateway, failed, Outcome.FAILED, model="m")
    await submitted(gateway, priority="high", model="other")
    gateway.fake.feed()
    gateway.fake.now_ms += 2_000
    body = (await gateway.http.get("/v1/async/stats")).json()
    lanes = body.pop("lanes")
    assert {
        "queued": 1,
        "processing": 0,
        "completed": 4,
        "failed": 1,
        "cancelled": 0,
        "expired": 0,
        "workers": 1,
        "avg_processing_ms": 4.0,
        "throughput_per_minute": 5,
        "success_ratio": 0.8,
        "cache": {"hits": 0, "misses": 4},
        "models": {"m": {"latency_ema_ms": None, "failure_ratio": 0.1}},
    } == body
    assert {
        "waiting": 1,
        "in_flight": 0,
        "oldest_wait_s": 2.0,
        "rate_per_minute": 1,
        "queue_ms_p50": 5.0,
        "queue_ms_p99": 5.0,
    } == lanes["high"]
    assert [lane.value for lane in Lane] == list(lanes)


async def test_health_is_degraded_without_workers(gateway: FakeGateway) -> None:
    body = (await gateway.http.get("/v1/async/health")).json()
    assert ("degraded", "reachable", 0) == (body["status"], body["kafka"], body["workers"])
    gateway.fleet.snapshot(b"w", b"{}", NOW_MS)
    body = (await gateway.http.get("/v1/async/health")).json()
    assert ("healthy", [], 1) == (body["status"], body["reasons"], body["workers"])


def backend(name: str = "llama-1", *, up: bool = True) -> BackendStatus:
    return BackendStatus(name, "llamacpp", up, 2, 8, ["tiny"], reason=None if up else "connection refused")


def gpu(uuid: str = "GPU-1", *, lost: bool = False) -> bytes:
    return encode(GPUMetrics(GpuId(uuid, 0, "card", "host"), GpuSource.NVML, NOW_MS, lost=lost))


async def test_health_names_backends_and_gpus(gateway: FakeGateway) -> None:
    gateway.fleet.snapshot(b"w", encode(WorkerSnapshot("w", "host", 1, NOW_MS, backends=[backend()])), NOW_MS)
    gateway.fleet.sample(b"GPU-1", gpu(), NOW_MS - 1_000)
    response = await gateway.http.get("/v1/async/health")
    expected = {
        "status": "healthy",
        "reasons": [],
        "kafka": "reachable",
        "workers": 1,
        "backends": [
            {"name": "llama-1", "kind": "llamacpp", "up": True, "in_flight": 2, "limit": 8, "reason": None},
        ],
        "gpus": [{"uuid": "GPU-1", "host": "host", "age_s": 1.0, "stale": False, "lost": False}],
    }
    assert (200, expected) == (response.status_code, response.json())


@pytest.mark.parametrize(
    ("backends", "sample", "sampled_ms", "reasons"),
    [
        ([backend(up=False)], gpu(), NOW_MS, ["backend llama-1 is down: connection refused"]),
        ([backend(), backend("b", up=False)], gpu(), NOW_MS, ["backend b is down: connection refused"]),
        ([backend()], gpu(lost=True), NOW_MS, ["GPU GPU-1 of host is lost"]),
        ([backend()], gpu(), NOW_MS - 7_000, ["GPU GPU-1 of host was last sampled 7 s ago"]),
    ],
)
async def test_health_is_degraded_by_what_is_down_lost_or_stale(
    gateway: FakeGateway, backends: list[BackendStatus], sample: bytes, sampled_ms: int, reasons: list[str]
) -> None:
    gateway.fleet.snapshot(b"w", encode(WorkerSnapshot("w", "host", 1, NOW_MS, backends=backends)), NOW_MS)
    gateway.fleet.sample(b"GPU-1", sample, sampled_ms)
    response = await gateway.http.get("/v1/async/health")
    assert (200, "degraded", reasons) == (response.status_code, response.json()["status"], response.json()["reasons"])


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("GET /nothing", 404),
        ("PUT /v1/async/submit", 405),
        ("GET /v1/async/status/a/b", 404),
        ("POST /v1/async/status/t", 405),
        ("GET /v1/async/submit", 405),
        ("POST /v1/async/stats", 405),
        ("GET /v1/async/status/", 404),
    ],
)
async def test_unknown_routes_and_methods_are_problems_too(gateway: FakeGateway, call: str, status: int) -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    response = await gateway.http.request(*call.split(), headers=trace)
    assert (status, status, "a" * 32) == (response.status_code, response.json()["status"], response.json()["trace_id"])
    assert "application/problem+json" == response.headers["content-type"]


async def test_what_nobody_foresaw_is_a_500_without_its_text(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ValueError("a secret")

    gateway.fake.require = broken  # type: ignore[method-assign]
    response = await gateway.http.get("/v1/async/stats")
    assert (500, "urn:triage:problem:internal") == (response.status_code, response.json()["type"])
    assert "secret" not in response.text
    assert "secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/metrics", "/version", "/healthz/live", "/healthz/ready"]
)
async def test_pages_and_probes(gateway: FakeGateway, path: str) -> None:
    response = await gateway.http.get(path)
    assert 200 == response.status_code
    assert response.text


async def test_the_description_names_every_route_and_resolves(gateway: FakeGateway) -> None:
    described = (await gateway.http.get("/openapi.json")).json()
    paths = {"submit", "submit-batch", "status/{task_id}", "result/{task_id}", "cancel/{task_id}", "stats", "health"}
    paths |= {"batch-status/{batch_id}", "cleanup", "events"}
    assert {f"/v1/async/{path}" for path in paths} <= set(described["paths"])
    text = orjson.dumps(described).decode()
    wanted = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert wanted <= set(described["components"]["schemas"])
    assert {"SubmitBody", "Result"} <= wanted


async def test_the_description_names_every_problem_of_a_route(gateway: FakeGateway) -> None:
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]
    assert {
        "submit": {"202", "400", "403", "409", "413", "415", "422", "503"},
        "submit-batch": {"202", "400", "403", "413", "415", "422", "503"},
        "batch-status/{batch_id}": {"200", "403", "404", "410", "503"},
        "status/{task_id}": {"200", "403", "404", "410", "503"},
        "explain/{task_id}": {"200", "403", "404", "410", "503"},
        "result/{task_id}": {"200", "202", "403", "404", "410", "422", "503"},
        "cancel/{task_id}": {"200", "202", "403", "404", "409", "410", "503"},
        "cleanup": {"200", "400", "403", "413", "415", "422", "503"},
        "events": {"200", "204", "403", "404", "410", "422", "503"},
        "stats": {"200", "403", "503"},
        "health": {"200", "503"},
    } == {
        path.removeprefix("/v1/async/"): set(route["responses"])
        for path, methods in paths.items()
        if path.startswith("/v1/async/")
        for route in methods.values()
    }
    problem = paths["/v1/async/result/{task_id}"]["get"]["responses"]["422"]["content"]
    assert {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}} == problem


async def test_the_pages_load_nothing_from_elsewhere_and_name_every_route(gateway: FakeGateway) -> None:
    docs = (await gateway.http.get("/docs")).text
    for page in (docs, (await gateway.http.get("/")).text):
        assert not [load for load in ("src=", "<link", "import", "//") if load in page.replace("<!doctype", "")]
    described = (await gateway.http.get("/openapi.json")).json()
    for path, methods in described["paths"].items():
        for method in methods:
            assert f"<h2>{method.upper()} {path}</h2>" in docs
    for name in described["components"]["schemas"]:
        assert f'id="{name}"' in docs
    assert {part.split('"')[0] for part in docs.split('href="#')[1:]} <= set(described["components"]["schemas"])


@pytest.mark.parametrize(("origin", "allowed"), [("https://ward", "https://ward"), ("https://elsewhere", None)])
async def test_a_page_of_a_named_origin_may_call(origin: str, allowed: str | None) -> None:
    settings = Settings(gateway=GatewaySettings(cors_origins=["https://ward"]))
    async with FakeGateway(settings) as gateway:
        for path in ("/v1/async/status/t", "/v1/async/stats"):
            response = await gateway.http.get(path, headers={"origin": origin})
            assert allowed == response.headers.get("access-control-allow-origin")
