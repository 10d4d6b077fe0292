"""What a worker tells of itself."""

from __future__ import annotations

import pytest

from schemas.progress import Gate, LaneState, Pace
from schemas.topics import Lane
from streams.snapshot import MOST_CLASSES, Describer
from tests.topology.scene import DOWN, Scene, backend, up


def told(scene: Scene, describer: Describer) -> list[tuple[Lane, str | None, int, Gate, int]]:
    rows = describer.classes(now_s=scene.now_s, to_ms=lambda at_s: int(at_s * 1000))
    return [(row.lane, row.model, row.waiting, row.gate, row.since_ms) for row in rows]


def test_lanes_tell_what_waits_what_runs_and_what_was_done() -> None:
    scene = Scene.of(backend(slots=2))
    describer = Describer(scene.dispatcher)
    first, second, *_ = scene.accept_many(5, Lane.CRITICAL)
    scene.clock.advance(2.0)
    for task in (first, second):
        scene.answered(task)
        describer.finished(Lane.CRITICAL, now_s=scene.now_s)

    lanes = describer.lanes(now_s=scene.now_s)

    assert lanes["critical"] == LaneState(1, 2, 2.0, 2, tokens=first.cost_tokens, sent_tokens=0, weight=8)
    assert lanes["low"] == LaneState(0, 0, 0.0, 0, weight=1)


def test_what_was_sent_while_work_had_to_wait_is_a_lanes_pace() -> None:
    scene = Scene.of(backend(slots=1))
    describer = Describer(scene.dispatcher)
    described = 0

    def tick() -> None:
        nonlocal described
        for batch in scene.sent[described:]:
            describer.sent(batch, now_s=scene.now_s)
        described = len(scene.sent)
        describer.look(now_s=scene.now_s)
        scene.clock.advance(1.0)

    tasks = scene.accept_many(5, Lane.LOW)
    tick()  # one runs, and the others wait
    for _ in range(3):
        scene.answered(scene.dispatcher.running[0])
        tick()
    for _ in range(2):
        scene.answered(scene.dispatcher.running[0])
        tick()  # nothing waits any more, so what is sent is what is asked for

    cost = tasks[0].cost_tokens
    assert Pace(3, 3 * cost, 3.0) == describer.pace(Lane.LOW, now_s=scene.now_s) == describer.pace(now_s=scene.now_s)
    assert Pace() == describer.pace(Lane.HIGH, now_s=scene.now_s)
    assert 5 * cost == describer.lanes(now_s=scene.now_s)["low"].sent_tokens
    assert Pace() == describer.pace(Lane.LOW, now_s=scene.now_s + 60)


def test_outcomes_older_than_a_minute_are_not_counted() -> None:
    scene = Scene.of()
    describer = Describer(scene.dispatcher)
    describer.finished(Lane.HIGH, now_s=0.5)
    describer.finished(Lane.HIGH, now_s=40.0)

    assert describer.lanes(now_s=59.0)["high"].done_per_minute == 2
    assert describer.lanes(now_s=61.0)["high"].done_per_minute == 1
    assert describer.lanes(now_s=101.0)["high"].done_per_minute == 0


def test_a_class_says_what_it_waits_for_and_since_when() -> None:
    scene = Scene.of(backend(slots=1))
    describer = Describer(scene.dispatcher)
    scene.accept_many(3, Lane.NORMAL)
    shut_s = scene.now_s
    assert told(scene, describer) == [(Lane.NORMAL, None, 2, Gate.NO_FREE_SLOT, int(shut_s * 1000))]

    scene.clock.advance(1.0)
    assert told(scene, describer)[0][4] == int(shut_s * 1000)  # the same gate, shut since then

    scene.probed("b1", DOWN)
    assert told(scene, describer) == [(Lane.NORMAL, None, 2, Gate.BACKEND_DOWN, int(scene.now_s * 1000))]


def test_a_model_that_no_backend_has_yet_waits_for_a_backend() -> None:
    scene = Scene.of(backend("b1"), backend("b2"))
    scene.dispatcher.backends["b2"].probe = None  # it has not answered yet, so the model may be there
    scene.accept(lane=Lane.LOW, model="other")

    assert [row[3] for row in told(scene, Describer(scene.dispatcher))] == [Gate.NO_BACKEND]


def test_a_batch_that_waits_for_company_says_so() -> None:
    scene = Scene.of(backend(slots=8))
    scene.accept_many(1)  # the idle backend takes it at once
    scene.accept_many(1)

    assert [row[3] for row in told(scene, Describer(scene.dispatcher))] == [Gate.WINDOW]


@pytest.mark.parametrize("end", ["answered", "cancelled", "withdrawn"])
def test_counts_of_what_waits_come_back_to_nothing(end: str) -> None:
    scene = Scene.of(backend(slots=1))
    tasks = scene.accept_many(4, Lane.HIGH, tenant="a") + scene.accept_many(3, Lane.LOW, tenant="b")
    if end == "answered":
        while scene.dispatcher.running:
            scene.answered(scene.dispatcher.running[0])
    elif end == "cancelled":
        for task in tasks:
            scene.dispatcher.cancel(task.key)
    else:
        scene.dispatcher.withdraw(lambda _delivery: False, running=True)

    counts = scene.dispatcher.waiting_counts
    assert counts.lanes == dict.fromkeys(Lane, 0)
    assert counts.classes == {}


def test_only_the_classes_that_wait_longest_are_told() -> None:
    scene = Scene(Scene.of(backend(slots=1)).settings)
    scene.probed("b1", up("tiny", slots=1))
    for number in range(MOST_CLASSES + 10):
        scene.accept(lane=Lane.NORMAL, tenant=f"tenant-{number}")
        scene.clock.advance(0.001)

    rows = Describer(scene.dispatcher).classes(now_s=scene.now_s, to_ms=int)

    assert len(rows) == MOST_CLASSES
    assert rows[0].tenant == "tenant-1"  # tenant-0's is running


def test_a_backend_tells_its_slots_that_are_kept_for_a_lane() -> None:
    scene = Scene.of(backend(slots=3))
    scene.accept()
    describer = Describer(scene.dispatcher)
    (row,) = describer.backends(now_s=scene.now_s)
    assert ({"critical": 1}, 1, 2) == (row.kept, row.free(Lane.LOW), row.free(Lane.CRITICAL))
    scene.accept(lane=Lane.CRITICAL)
    scene.clock.advance(0.01)  # its window
    scene.step()
    (row,) = describer.backends(now_s=scene.now_s)
    assert ({}, 1, 1) == (row.kept, row.free(Lane.LOW), row.free(Lane.CRITICAL))


def test_backends_tell_why_they_are_down() -> None:
    scene = Scene.of(backend(slots=2))
    scene.accept()
    scene.probed("b1", DOWN)

    (row,) = Describer(scene.dispatcher).backends(now_s=scene.now_s)

    assert (row.name, row.up, row.in_flight, row.limit, row.models, row.reason) == (
        "b1",
        False,
        1,
        2,
        ["tiny"],
        "connection refused",
    )
