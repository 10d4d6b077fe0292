"""When an answer is due, in broker time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.request import CachePolicy, InferenceTask
from schemas.topics import Lane
from streams.deadlines import LONGEST_MS, cannot_be_met, deadline_ms, is_infeasible
from streams.errors import InvalidRequest
from streams.snapshot import Describer
from streams.workers import Rate
from tests.support.tasks import make_task
from tests.topology.scene import Scene, backend

APPENDED_MS = 1_795_420_000_000


@pytest.mark.parametrize(
    ("created_at_ms", "deadline_at_ms", "due_ms"),
    [
        (None, None, APPENDED_MS + LONGEST_MS),
        (5, None, APPENDED_MS + LONGEST_MS),
        (None, APPENDED_MS + 30_000, APPENDED_MS + 30_000),
        (APPENDED_MS - 200, APPENDED_MS + 29_800, APPENDED_MS + 30_000),
        (1000, 31_000, APPENDED_MS + 30_000),  # a clock that is decades behind costs nothing
        (9_000_000_000_000, 9_000_000_030_000, APPENDED_MS + 30_000),  # nor one that is ahead
        (31_000, 1000, APPENDED_MS - 30_000),  # due before it was made: it has passed
        (None, 0, 0),
        (0, LONGEST_MS, APPENDED_MS + LONGEST_MS),
    ],
)
def test_a_deadline_is_the_producers_own_difference_from_when_kafka_took_the_record(
    created_at_ms: int | None, deadline_at_ms: int | None, due_ms: int
) -> None:
    request = _request(created_at_ms, deadline_at_ms)
    assert due_ms == deadline_ms(request, APPENDED_MS)


@pytest.mark.parametrize(
    ("created_at_ms", "deadline_at_ms"), [(0, LONGEST_MS + 1), (None, APPENDED_MS + LONGEST_MS + 1)]
)
def test_a_deadline_more_than_71_hours_ahead_is_refused(created_at_ms: int | None, deadline_at_ms: int) -> None:
    request = _request(created_at_ms, deadline_at_ms)
    with pytest.raises(InvalidRequest, match="deadline_at_ms: lies more than 71 h ahead"):
        deadline_ms(request, APPENDED_MS)


def _request(created_at_ms: int | None, deadline_at_ms: int | None) -> InferenceTask:
    times = {"created_at_ms": created_at_ms, "deadline_at_ms": deadline_at_ms}
    return InferenceTask.model_validate({"messages": [{"role": "user"}], **times})


RATE = Rate(10.0, 1000.0, 100)  # known to 10 %, so up to 1300 tokens a second


@pytest.mark.parametrize(
    ("left_s", "tokens_ahead", "rate", "expected"),
    [
        (10.0, 13_001, RATE, True),
        (10.0, 13_000, RATE, False),
        (0.0, 1, RATE, True),
        (-5.0, 0, RATE, False),
        (10.0, 1_000_000, Rate(10.0, 1000.0, 19), False),
        (10.0, 1_000_000, Rate(), False),
    ],
)
def test_what_cannot_be_met_is_known_only_from_much_that_was_measured(
    left_s: float, tokens_ahead: float, rate: Rate, expected: bool
) -> None:
    assert expected == cannot_be_met(left_s, tokens_ahead, rate)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.integers(1, 400)), max_size=60),
    st.floats(0.1, 20),
    st.integers(1, 400),
    st.floats(0, 3),
)
def test_a_task_that_is_called_infeasible_is_never_served_in_time(
    waiting: list[tuple[float, int]], due_s: float, cost: int, answer_s: float
) -> None:
    rate = Rate(1.0, 100.0, 400)
    held = [make_task(deadline_s=each_s, cost_tokens=tokens) for each_s, tokens in waiting]
    task = make_task(deadline_s=due_s, cost_tokens=cost)
    starts_s = 0.0  # by deadline, at the measured rate; what has expired is not served
    for each in sorted(held, key=lambda each: each.deadline_s):
        if starts_s <= each.deadline_s <= due_s:
            starts_s += each.cost_tokens / rate.tokens_per_s
    if is_infeasible(task, held, rate, answer_s, by_size=False, now_s=0.0):
        assert starts_s > due_s - answer_s


def test_dearer_and_later_tasks_are_not_in_the_way() -> None:
    task = make_task(deadline_s=1.0, cost_tokens=100)
    ahead = [make_task(deadline_s=1.0, cost_tokens=100) for _ in range(30)]
    dearer = [make_task(deadline_s=1.0, cost_tokens=101) for _ in range(30)]
    later = [make_task(deadline_s=1.1, cost_tokens=100) for _ in range(30)]
    early = [make_task(deadline_s=0.4, cost_tokens=100) for _ in range(30)]
    rate = Rate(10.0, 1000.0, 400)
    apart = [make_task(deadline_s=1.0, cost_tokens=100, budget="batch") for _ in range(30)]
    other = [make_task(deadline_s=1.0, cost_tokens=100, agent_type="nurse") for _ in range(30)]
    lines = (ahead, dearer, later, early, apart, other)
    found = [is_infeasible(task, held, rate, 0.5, by_size=True, now_s=0.0) for held in lines]
    assert [True, False, False, False, False, False] == found
    assert is_infeasible(task, dearer, rate, 0.5, by_size=False, now_s=0.0)


def served(seconds: int) -> tuple[Scene, Describer]:
    """Return a scene in which one task a second was served while others waited."""
    scene = Scene.of(backend(slots=1))
    describer = Describer(scene.dispatcher)
    scene.accept_many(seconds + 30, Lane.HIGH, deadline_s=1000.0)
    for _ in range(seconds):
        sent = len(scene.sent)
        scene.clock.advance(1.0)
        scene.answered(scene.dispatcher.running[0])
        for batch in scene.sent[sent:]:
            describer.sent(batch, now_s=scene.now_s)
        describer.look(now_s=scene.now_s)
    return scene, describer


@pytest.mark.parametrize(
    "fields",
    [
        {"deadline_s": 1000.0},
        {"deadline_s": 60.0},  # it goes before the others
        {"deadline_s": 60.0, "tenant": "other"},
        {"deadline_s": 60.0, "lane": Lane.LOW},
    ],
)
def test_a_worker_ends_nothing_at_intake_that_has_a_chance(fields: dict[str, Any]) -> None:
    scene, describer = served(40)
    task = make_task(now_s=scene.now_s, **{"lane": Lane.HIGH, **fields})
    scene.perform(scene.dispatcher.accept(task, now_s=scene.now_s))
    assert not describer.cannot_be_met(task, now_s=scene.now_s)


def test_what_waits_for_an_identical_task_is_not_judged() -> None:
    scene, describer = served(40)
    due_s = scene.now_s + 1.0
    scene.accept_many(30, Lane.LOW, deadline_s=due_s)
    first, second = (
        make_task(lane=Lane.LOW, now_s=scene.now_s, deadline_s=due_s, cache=CachePolicy()) for _ in range(2)
    )
    for task in (first, second):
        scene.perform(scene.dispatcher.accept(task, now_s=scene.now_s))
    assert [True, False] == [describer.cannot_be_met(task, now_s=scene.now_s) for task in (first, second)]


@pytest.mark.parametrize("tried", [False, True])
def test_of_many_that_are_due_together_those_beyond_what_can_be_served_end_at_intake(tried: bool) -> None:
    scene, describer = served(40)
    due_s = scene.now_s + 10.0
    refused = 0
    for _ in range(60):
        task = make_task(lane=Lane.HIGH, now_s=scene.now_s, deadline_s=due_s, tenant="late")
        task.attempts = int(tried)
        scene.perform(scene.dispatcher.accept(task, now_s=scene.now_s))
        if describer.cannot_be_met(task, now_s=scene.now_s):
            scene.dispatcher.cancel(task.key)
            refused += 1
    assert (0 if tried else 60 - 15) == refused  # 9.5 s at one a second, taken to be half as fast again
