"""What a worker tells of itself."""

from __future__ import annotations

import pytest

from schemas.progress import Gate, LaneState
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

    assert lanes["critical"] == LaneState(waiting=1, in_flight=2, oldest_wait_s=2.0, done_per_minute=2)
    assert lanes["low"] == LaneState(waiting=0, in_flight=0, oldest_wait_s=0.0, done_per_minute=0)


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


def test_backends_tell_why_they_are_down() -> None:
    scene = Scene.of(backend(slots=2))
    scene.accept()
    scene.probed("b1", DOWN)

    (row,) = Describer(scene.dispatcher).backends()

    assert (row.name, row.up, row.in_flight, row.limit, row.models, row.reason) == (
        "b1",
        False,
        1,
        2,
        ["tiny"],
        "connection refused",
    )
