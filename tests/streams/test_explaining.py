"""What holds a task, truthfully for every gate, from what the logs say of it and the workers' snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas.progress import BackendStatus, ClassState, Gate, Pace, WorkerSnapshot
from schemas.topics import Lane
from streams.estimating import Rank
from streams.explaining import NO_WORKER, NOT_FETCHED, RUNNING, Entry, Explanation, explain
from streams.routing import Considered
from streams.settings import ModelSettings
from streams.workers import Workers
from tests.support.snapshots import NAMES, busy_backend, row, worker
from tests.support.tasks import EPOCH_MS

READ = {"normal/0": 10, "low/0": 10}


def entry(lane: Lane = Lane.NORMAL, **fields: object) -> Entry:
    given = {"tenant": "default", "model": None, "agent_type": None, "cost_tokens": 100, "offset": 7, **fields}
    return Entry(task_id="t", lane=lane, place=f"{NAMES.requests(lane)}/0", **given)  # type: ignore[arg-type]


def told(asked: Entry, *snapshots: WorkerSnapshot, is_fresh: bool = True) -> Explanation:
    waiting = dict.fromkeys(Lane, 0) | {asked.lane: 5}
    return explain(asked, Rank(2, 2), waiting, Workers.of(snapshots), is_fresh=is_fresh, now_ms=EPOCH_MS)


PACES = {lane: Pace(60, 6000, 30.0) for lane in Lane}

GATES: list[tuple[ClassState, dict[str, Any], str]] = [
    (row(Gate.TURN, waiting=5), {}, "It is other lanes' turn: normal has weight 2."),
    (
        row(Gate.TURN, waiting=5),
        {"strict": True},
        "It is other lanes' turn: a lane above normal has work waiting, and the policy is strict.",
    ),
    (row(Gate.TENANT, waiting=5), {}, "Other tenants of the lane normal are served first: this one has had its share."),
    (row(Gate.ORDER, waiting=5), {}, "Tasks of its own lane and tenant that are due earlier, or shorter, go first."),
    (
        row(Gate.BUDGET, waiting=5),
        {},
        "It is marked as batch work, which has had its share of the slots while live work waits.",
    ),
    (
        row(Gate.WINDOW, waiting=5),
        {},
        "Its batch waits a moment for company: it leaves when it is full or its window is over.",
    ),
    (row(Gate.NO_FREE_SLOT, waiting=5), {}, "Every backend that could take it is busy: b1 runs 4 of 4 calls."),
]
SHUT: list[tuple[ClassState, BackendStatus, str]] = [
    (row(Gate.BREAKER), busy_backend(paused=True), "Every backend that could take it is paused after failures: b1."),
    (
        row(Gate.BACKEND_DOWN),
        busy_backend(up=False, reason="connection refused"),
        "Every backend that could take it is down: b1 (connection refused).",
    ),
    (row(Gate.BACKEND_DOWN), busy_backend(draining=True), "Every backend that could take it is down: b1 (draining)."),
    (row(Gate.NO_BACKEND, model="big"), busy_backend(), "No backend has the model big."),
    (row(Gate.NO_BACKEND), busy_backend(models=[]), "No backend has any model yet."),
    (
        row(Gate.SHED, Lane.LOW),
        busy_backend(pressure="CRITICAL"),
        "The low lane is put off: the GPUs of every backend that could take it are at CRITICAL memory pressure.",
    ),
]


@pytest.mark.parametrize(("state", "fields", "reason"), GATES, ids=lambda each: getattr(each, "gate", None))
def test_a_task_that_waits_for_its_turn_is_told_why_and_how_long(
    state: ClassState, fields: dict[str, Any], reason: str
) -> None:
    found = told(entry(), worker(state, read=READ, paces=PACES, **fields))
    assert (state.gate.value, reason) == (found.gate, found.reason)
    assert (3, 200) == (found.position, found.tokens_ahead)
    assert found.estimate is not None
    assert 1.5 == found.estimate.wait_s  # three departures at two a second


@pytest.mark.parametrize(("state", "backend", "reason"), SHUT, ids=lambda each: getattr(each, "gate", None))
def test_a_gate_that_is_shut_is_told_without_a_guess_when_it_opens(
    state: ClassState, backend: BackendStatus, reason: str
) -> None:
    asked = entry(state.lane, model=state.model)
    found = told(asked, worker(state, read=READ, paces=PACES, backends=[backend]))
    assert (state.gate.value, reason, None) == (found.gate, found.reason, found.estimate)
    assert found.position is not None


def test_every_gate_is_told() -> None:
    covered = {each[0].gate for each in (*GATES, *SHUT)} | {Gate.RETRY_DELAY}
    assert set(Gate) == covered


def test_the_turn_of_other_lanes_names_their_weights() -> None:
    found = told(entry(), worker(row(Gate.TURN, waiting=5), row(Gate.TURN, Lane.CRITICAL, waiting=9), read=READ))
    assert "It is other lanes' turn: normal has weight 2 against critical 8." == found.reason


def test_a_task_in_a_retry_topic_is_told_until_when() -> None:
    asked = entry(attempts=2, backend="b1", started_ms=EPOCH_MS - 9000, next_try_ms=EPOCH_MS + 4000)
    found = told(asked, worker(row(waiting=5), read=READ, paces=PACES))
    assert ("retry_delay", "It waits in a retry topic, after attempt 2, for 4 s more.") == (found.gate, found.reason)
    assert found.position is None
    assert found.estimate is not None
    assert found.estimate.low_s >= 4.0


def test_a_retry_that_is_due_stands_where_its_class_stands() -> None:
    asked = entry(attempts=0, next_try_ms=EPOCH_MS - 1)
    held = told(asked, worker(row(waiting=5), read=READ))
    alone = told(asked, worker(read=READ))
    assert (Gate.NO_FREE_SLOT, NOT_FETCHED) == (held.gate, alone.gate)
    assert held.reason.startswith("Its delay in a retry topic, since no backend could take it, is over. Every backend")


def test_a_task_that_is_still_in_kafka_is_told_what_comes_before_it() -> None:
    found = told(entry(offset=14), worker(row(waiting=5), read=READ, paces=PACES))
    assert NOT_FETCHED == found.gate
    assert (
        "It is still in Kafka, 3 records of its partition before it: workers fetch as much of a lane as they may hold, now 5 tasks. "
        "Of its class: Every backend that could take it is busy: b1 runs 4 of 4 calls."
    ) == found.reason
    assert found.position == 3
    assert found.estimate is not None


def test_of_a_partition_that_nobody_reads_it_is_said() -> None:
    found = told(entry(), worker())
    assert (NOT_FETCHED, "It is still in Kafka, and no worker has fetched anything of its partition yet.") == (
        found.gate,
        found.reason,
    )


def test_without_a_worker_nothing_is_guessed() -> None:
    found = told(entry())
    assert (NO_WORKER, None, None, ()) == (found.gate, found.position, found.estimate, found.considered)


def test_from_an_old_picture_no_place_is_told() -> None:
    found = told(entry(), worker(row(waiting=5), read=READ, paces=PACES), is_fresh=False)
    assert (Gate.NO_FREE_SLOT, None, None, None) == (found.gate, found.position, found.tokens_ahead, found.estimate)


def test_a_running_task_is_told_where_it_runs() -> None:
    asked = entry(attempts=2, backend="b1", started_ms=EPOCH_MS)
    found = told(asked, worker(in_flight=["t"]))
    assert (RUNNING, "It is running on the backend b1, attempt 2.", None) == (found.gate, found.reason, found.position)
    assert "It was sent on the backend b1 a moment ago, attempt 2." == told(asked, worker()).reason
    earlier = replace(asked, started_ms=EPOCH_MS - 1)
    gone = told(earlier, worker())
    assert gone.gate is None
    assert "no worker's newest snapshot names it" in gone.reason
    assert NO_WORKER == told(asked).gate


def test_a_task_between_two_tries_in_its_worker_is_told_so() -> None:
    asked = entry(attempts=1, backend="b1", started_ms=EPOCH_MS - 500)
    found = told(asked, worker(row(Gate.RETRY_DELAY), read=READ))
    assert (
        "retry_delay",
        "Attempt 1 on the backend b1 came to nothing, and its worker tries again. It waits a moment in its worker before another try.",
    ) == (found.gate, found.reason)


def test_slots_that_are_kept_for_another_lane_are_not_free() -> None:
    kept = busy_backend(in_flight=3, kept={"critical": 1})
    normal = told(entry(), worker(row(waiting=5), read=READ, backends=[kept]))
    assert (
        "Every backend that could take it is busy: b1 runs 3 of 4 calls and keeps the rest for critical."
        == normal.reason
    )
    assert "busy" == normal.considered[0].why_not
    urgent = told(entry(Lane.CRITICAL), worker(row(lane=Lane.CRITICAL), read={"critical/0": 9}, backends=[kept]))
    assert 1.0 == urgent.considered[0].score


def test_the_class_of_the_worker_that_reads_its_partition_is_what_counts() -> None:
    other = worker(row(Gate.BACKEND_DOWN), name="w2")
    mine = worker(row(Gate.WINDOW), read=READ)
    assert [Gate.WINDOW, Gate.WINDOW] == [told(entry(), *each).gate for each in ((other, mine), (mine, other))]


def test_nothing_is_said_of_another_tenants_name() -> None:
    rows = [row(Gate.TENANT, waiting=5), row(Gate.TURN, tenant="secret-ward", waiting=90)]
    assert "secret" not in repr(told(entry(), worker(*rows, read=READ, paces=PACES)))


def test_every_backend_is_considered_with_its_score_or_what_is_against_it() -> None:
    backends = [
        busy_backend("b1"),
        busy_backend("b2", up=False),
        busy_backend("b3", in_flight=1),
        busy_backend("b4", models=["other"]),
        busy_backend("b5", paused=True),
        busy_backend("b6", lost=True),
    ]
    found = told(entry(model="tiny"), worker(row(model="tiny"), read=READ, backends=backends)).considered
    assert [
        Considered("b1", "tiny", None, "busy"),
        Considered("b2", "tiny", None, "down"),
        Considered("b3", "tiny", 1.0, None),
        Considered("b4", "other", None, "other model"),
        Considered("b5", "tiny", None, "down"),
        Considered("b6", "tiny", None, "gpu lost"),
    ] == [replace(each, score=each.score and round(each.score, 2)) for each in found]


def test_sizes_and_agent_types_are_the_settings() -> None:
    models = [ModelSettings(name="tiny", agent_types=["triage"])]
    workers = Workers.of([worker(backends=[busy_backend(in_flight=0, models=["tiny", "other"])])])
    asked = entry(agent_type="triage")
    found = explain(
        asked, Rank(0, 0), dict.fromkeys(Lane, 0), workers, models, is_fresh=True, now_ms=EPOCH_MS
    ).considered
    assert [("other", "agent type"), ("tiny", None)] == [(each.model, each.why_not) for each in found]
