"""`triage explain` through the topics alone, and how an explanation looks."""

from __future__ import annotations

from typing import Any

import pytest

from cli.explaining import Span, backlog, ended, pending
from cli.lookup import Ended, find
from cli.parts import Heard
from cli.results import explained_lines, status_lines
from gateway.bodies import Explained
from schemas.codec import encode
from schemas.progress import Pace
from schemas.result import Source
from schemas.topics import Lane, RetryTier
from tests.cli.test_lookup import (
    COUNT,
    HOME,
    LOW,
    NAMES,
    NOW_MS,
    Logs,
    outcome,
    request,
    result,
    retry_headers,
    started,
)
from tests.support.snapshots import row, worker

PACES = {Lane.LOW: Pace(60, 6000, 30.0)}


async def explained(logs: Logs, *heard: Heard, now_ms: int = NOW_MS) -> dict[str, Any]:
    found = await find(logs, NAMES, "ward7-1", None)
    assert found is not None
    if isinstance(found, Ended):
        return ended(found)
    return pending(found, heard, await backlog(logs, NAMES), NAMES, (), now_ms=now_ms)


def low(count: int, *, before: int) -> Logs:
    """Return logs with `count` requests on one partition of the low lane, of which ours is behind `before` others."""
    logs = Logs()
    for number in range(count):
        task_id = "ward7-1" if number == before else f"other-{number}"
        logs.append(LOW, HOME, task_id.encode(), request(task_id=task_id))
    return logs


def heard(read_to: int, waiting: int, **fields: Any) -> Heard:
    place = {f"low/{HOME}": read_to}
    return Heard("w1", encode(worker(row(lane=Lane.LOW, waiting=waiting), read=place, paces=PACES, **fields)), NOW_MS)


async def test_a_fetched_task_is_told_its_gate_and_place() -> None:
    logs = low(12, before=6)
    logs.commits[next(iter(logs.logs))] = 2
    body = await explained(logs, heard(9, waiting=8))
    assert {*Explained.model_fields} == set(body)
    assert ("queued", "no_free_slot", 5, 400) == (
        body["status"],
        body["gate"],
        body["position"],
        body["tokens_ahead"],
    )
    assert [
        "ward7-1 is queued. Every backend that could take it is busy: b1 runs 4 of 4 calls.",
        "  lane        low",
        "  gate        no_free_slot",
        "  position    5, 400 tokens before it",
        f"  starts      in about 2.5 s ({body['estimate']['low_s']:.1f} s to {body['estimate']['high_s']:.1f} s)",
        "  considered  b1 with tiny: no: busy",
    ] == explained_lines(body)


async def test_a_task_in_kafka_is_behind_what_is_held_and_what_lies_before_it() -> None:
    body = await explained(low(20, before=15), heard(9, waiting=10))
    assert ("not_fetched", 16) == (body["gate"], body["position"])
    assert "5 records of its partition before it" in body["reason"]


async def test_without_workers_that_is_what_is_told() -> None:
    body = await explained(low(3, before=1), heard(2, waiting=3), now_ms=NOW_MS + 60_000)
    assert ("no_worker", None, None) == (body["gate"], body["position"], body["estimate"])


async def test_a_task_between_two_tries_is_told_until_when() -> None:
    logs = Logs()
    logs.append(NAMES.retry(RetryTier.SIXTY_SECONDS), HOME, b"ward7-1", request(), retry_headers(Source(LOW, HOME, 0)))
    body = await explained(logs, heard(9, waiting=3))
    assert ("retry_delay", "processing") == (body["gate"], body["status"])
    assert body["estimate"]["low_s"] >= 60


async def test_a_running_task_is_told_its_backend() -> None:
    logs = low(1, before=0)
    logs.append(NAMES.progress, HOME, b"b-1", started(HOME, 0, "ward7-1"))
    body = await explained(logs, heard(0, waiting=0, in_flight=["ward7-1"]))
    assert ("running", "b1") == (body["gate"], body["backend"])


async def test_a_task_that_has_ended_is_told_how() -> None:
    logs = low(1, before=0)
    logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1"))
    body = await explained(logs)
    assert ("completed", None) == (body["status"], body["gate"])
    assert await outcome(logs) is not None
    assert explained_lines(body)[0].startswith("ward7-1 is completed. It completed on")


async def test_what_no_worker_acknowledged_is_the_backlog() -> None:
    logs = low(12, before=6)
    logs.commits[next(iter(logs.logs))] = 2
    spans = await backlog(logs, NAMES)
    assert 4 * COUNT == len(spans)
    assert {(Lane.LOW, HOME): Span(2, 12)} == {key: span for key, span in spans.items() if span.end}


@pytest.mark.parametrize(
    ("confidence", "told"),
    [(0.9, "in about 2.5 s (1.0 s to 4.0 s)"), (0.1, "in about 2.5 s (1.0 s to 4.0 s, a guess from little)")],
)
def test_a_guess_from_little_is_called_so(confidence: float, told: str) -> None:
    estimate = {"wait_s": 2.5, "low_s": 1.0, "high_s": 4.0, "confidence": confidence}
    body = {"task_id": "t", "status": "queued", "estimate": estimate}
    assert f"  starts      {told}" in status_lines(body)
