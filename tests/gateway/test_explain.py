"""The explain route, estimates in status and submit, and deadlines that cannot be met."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.codec import encode
from schemas.progress import Gate, Pace, WorkerSnapshot
from schemas.result import BatchRef, Outcome, Routing
from schemas.topics import Lane
from tests.gateway.fakes import NOW_MS, FakeGateway, make_result
from tests.support.snapshots import row, worker

PACES = {lane: Pace(120, 12_000, 60.0) for lane in Lane}


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as found:
        yield found


def heard(gateway: FakeGateway, snapshot: WorkerSnapshot) -> None:
    gateway.fleet.snapshot(b"w1", encode(snapshot), NOW_MS)


def backlog(gateway: FakeGateway, count: int, lane: Lane = Lane.NORMAL, **fields: object) -> None:
    for number in range(count):
        gateway.fake.put_request(lane, number % 3, task_id=f"{lane.value}-{number}", **fields)
    gateway.fake.feed()


async def get(gateway: FakeGateway, path: str) -> dict[str, Any]:
    response = await gateway.http.get(f"/v1/async/{path}")
    assert 200 == response.status_code
    body: dict[str, Any] = response.json()
    return body


async def submit(gateway: FakeGateway, **fields: object) -> tuple[int, dict[str, Any], Any]:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    response = await gateway.http.post("/v1/async/submit", json=body)
    return response.status_code, response.json(), response.headers


async def test_a_waiting_task_is_explained_and_its_status_tells_the_same_place(gateway: FakeGateway) -> None:
    backlog(gateway, 6)
    heard(gateway, worker(row(waiting=6), read={"normal/0": 1, "normal/1": 1, "normal/2": 1}, paces=PACES))

    told = await get(gateway, "explain/normal-4")
    assert {
        "task_id": "normal-4",
        "status": "queued",
        "lane": "normal",
        "position": 4,  # of one millisecond, partition by partition
        "tokens_ahead": 300,
        "gate": "no_free_slot",
        "reason": "Every backend that could take it is busy: b1 runs 4 of 4 calls.",
        "estimate": {"wait_s": 2.0, "low_s": 1.1, "high_s": 2.9, "confidence": 0.92},
        "considered": [{"backend": "b1", "model": "tiny", "score": None, "why_not": "busy"}],
        "dispatched_at": None,
        "finished_at": None,
        "backend": None,
        "model": None,
        "routing": None,
        "error": None,
    } == told | {
        "estimate": {
            **told["estimate"],
            "low_s": round(told["estimate"]["low_s"], 1),
            "high_s": round(told["estimate"]["high_s"], 1),
        }
    }
    status = await get(gateway, "status/normal-4")
    assert (told["position"], told["estimate"]) == (status["position"], status["estimate"])


async def test_a_running_task_is_explained_by_its_backend(gateway: FakeGateway) -> None:
    backlog(gateway, 1)
    gateway.fake.put_started("normal-0", Lane.NORMAL, 0, 0)
    heard(gateway, worker(in_flight=["normal-0"]))
    told = await get(gateway, "explain/normal-0")
    assert ("running", "b", "It is running on the backend b, attempt 1.") == (
        told["gate"],
        told["backend"],
        told["reason"],
    )
    assert told["dispatched_at"] is not None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"backend": "llama-1", "model": "tiny", "batch": BatchRef("b", 1), "routing": Routing("fits, fastest")},
            "It completed on llama-1 with tiny after 0.0 s in its worker's queue, chosen as: fits, fastest.",
        ),
        ({"cached": True}, "It completed with an answer from the cache: no backend was called."),
        (
            {"coalesced_with": "other"},
            "It completed together with an identical task that was under way: one call answered both.",
        ),
        ({"outcome": Outcome.FAILED, "attempts": 3}, "It failed (backend_rejected) after 3 attempts."),
        (
            {"outcome": Outcome.CANCELLED, "attempts": 0},
            "It was cancelled (backend_rejected) before any backend was given it.",
        ),
    ],
)
async def test_a_task_that_has_ended_is_told_how(gateway: FakeGateway, fields: dict[str, Any], reason: str) -> None:
    gateway.fake.put_result(make_result("t", **fields))
    told = await get(gateway, "explain/t")
    assert (reason, None, None, None) == (told["reason"], told["gate"], told["position"], told["estimate"])
    assert None not in (told["dispatched_at"], told["finished_at"])


async def test_another_tenants_task_is_not_explained(gateway: FakeGateway) -> None:
    gateway.fake.put_request(task_id="t", tenant="ward7")
    for task_id in ("t", "unknown", "no id!"):
        assert 404 == (await gateway.http.get(f"/v1/async/explain/{task_id}")).status_code


async def test_without_workers_a_task_is_taken_and_nothing_is_estimated(gateway: FakeGateway) -> None:
    status, body, _ = await submit(gateway, timeout_s=0.001)
    assert (202, None, None) == (status, body["position"], body["estimate"])
    told = await get(gateway, f"explain/{body['task_id']}")
    assert ("no_worker", None) == (told["gate"], told["estimate"])


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate(gateway: FakeGateway) -> None:
    backlog(gateway, 300)
    heard(gateway, worker(row(waiting=10), paces=PACES, pace=Pace(600, 60_000, 60.0)))

    status, body, headers = await submit(gateway, timeout_s=5)
    assert (503, "urn:triage:problem:deadline-infeasible") == (status, body["type"])
    assert body["estimate"]["low_s"] > 5
    assert body["position"] == 291
    assert int(headers["retry-after"]) >= 1
    assert 300 == gateway.view.waiting(Lane.NORMAL)

    assert 202 == (await submit(gateway, timeout_s=600))[0]
    assert 202 == (await submit(gateway))[0]


async def test_a_deadline_is_not_refused_for_what_will_have_expired(gateway: FakeGateway) -> None:
    backlog(gateway, 300, deadline_at_ms=NOW_MS + 2000)
    heard(gateway, worker(row(waiting=10), paces=PACES, pace=Pace(600, 60_000, 60.0)))
    status, body, _ = await submit(gateway, timeout_s=5)
    assert (202, True) == (status, body["estimate"]["low_s"] > 5)


async def test_a_deadline_is_not_refused_for_what_waits_behind_it(gateway: FakeGateway) -> None:
    backlog(gateway, 10)
    heard(gateway, worker(row(waiting=10), paces=PACES, pace=Pace(600, 60_000, 60.0)))
    assert 202 == (await submit(gateway, timeout_s=5))[0]


async def test_a_deadline_is_not_refused_on_little_evidence(gateway: FakeGateway) -> None:
    backlog(gateway, 300)
    pace = Pace(10, 1000, 60.0)
    heard(gateway, worker(row(waiting=10), paces={Lane.NORMAL: pace}, pace=pace))
    status, body, _ = await submit(gateway, timeout_s=5)
    assert (202, True) == (status, body["estimate"]["low_s"] > 5)


async def test_of_a_class_whose_gate_is_shut_nothing_is_estimated(gateway: FakeGateway) -> None:
    backlog(gateway, 300)
    heard(gateway, worker(row(Gate.BACKEND_DOWN, waiting=10), paces=PACES))
    status, body, _ = await submit(gateway, timeout_s=5)
    assert (202, None) == (status, body["estimate"])
