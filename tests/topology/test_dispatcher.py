"""The whole Dispatcher on a scripted clock, a story at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from schemas.cache import CacheEntry
from schemas.request import CachePolicy
from schemas.result import BatchRef, ErrorType, Outcome, Output, Usage
from schemas.topics import Lane, RetryTier
from streams.cost import ENOUGH_SAMPLES
from streams.dispatcher import HandOver
from streams.errors import (
    BackendError,
    BackendOverloaded,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ServingError,
)
from streams.ports import Answer
from streams.settings import Settings
from streams.task import Task
from tests.support.tasks import EPOCH_MS, answer, make_task
from tests.topology.scene import DOWN, Scene, as_expected, backend, up

USE = CachePolicy()


def of(*backends: Any, **sections: Any) -> Settings:
    return Settings.model_validate({"backends": backends, **sections})


# Sending


def test_an_idle_backend_gets_a_task_at_once() -> None:
    scene = Scene.of()
    task = scene.accept()
    (batch,) = scene.sent
    assert (batch.backend, batch.model, batch.tasks, batch.reason) == ("b1", "tiny", [task], "only one that can")


def test_an_answer_becomes_a_completed_result_with_its_times() -> None:
    scene = Scene.of()
    task = scene.accept("ward7-1", Lane.HIGH, partition=3, offset=1842, metadata={"any": "string"}, batch_id="sb-1")
    scene.clock.advance(0.25)
    scene.answered(task, Answer(Output("fine", "stop"), Usage(3, 1, 4), dropped=("logit_bias",)))
    result = scene.results["ward7-1"]
    assert (result.outcome, result.output, result.usage, result.error) == (
        Outcome.COMPLETED,
        Output("fine", "stop"),
        Usage(3, 1, 4),
        None,
    )
    assert (result.model, result.backend, result.attempts, result.batch) == ("tiny", "b1", 1, BatchRef("batch-1", 1))
    assert (result.timing.queue_ms, result.timing.inference_ms) == (0.0, 250.0)
    assert (result.timing.accepted_at_ms, result.timing.finished_at_ms) == (EPOCH_MS, EPOCH_MS + 250)
    assert (result.routing.dropped, result.metadata, result.batch_id) == (["logit_bias"], {"any": "string"}, "sb-1")
    assert str(result.source) == "triage.requests.high/3/1842"


def test_tasks_wait_while_no_backend_is_up_and_leave_together_when_one_is() -> None:
    scene = Scene(of(backend()))
    tasks = scene.accept_many(3)
    scene.probed("b1", DOWN)
    scene.advance(60)
    assert ([], 3, 60.0) == (
        scene.sent,
        scene.dispatcher.waiting(Lane.NORMAL),
        scene.dispatcher.oldest_wait_s(Lane.NORMAL, 60),
    )
    scene.probed("b1", up())
    assert [tasks] == [batch.tasks for batch in scene.sent]


def test_a_busy_backend_lets_tasks_wait_for_company_for_the_window_of_the_oldest() -> None:
    scene = Scene.of(lanes={"normal": {"window_ms": 50}})
    scene.accept()
    first = scene.accept()
    scene.advance(0.03)
    second = scene.accept()
    assert 1 == len(scene.sent)
    assert scene.dispatcher.next_deadline_s == pytest.approx(0.05)
    scene.advance(0.02)
    assert [first, second] == scene.sent[1].tasks


def test_a_full_batch_does_not_wait_for_its_window() -> None:
    scene = Scene.of(backend(slots=8), lanes={"normal": {"window_ms": 60_000, "max_batch_requests": 3}})
    scene.accept()
    batch = scene.accept_many(3)
    assert batch == scene.sent[1].tasks


def test_a_batch_leaves_early_enough_for_a_deadline_that_waiting_would_miss() -> None:
    scene = Scene.of(lanes={"normal": {"window_ms": 60_000}})
    taught = scene.accept()
    scene.clock.advance(3)
    scene.answered(taught)  # an answer takes about 3 s
    scene.accept()
    hurried = scene.accept(deadline_s=scene.now_s + 10)
    scene.advance(6.9)
    assert hurried not in scene.order
    scene.advance(0.2)
    assert hurried in scene.order


def test_only_tasks_with_the_same_model_and_parameters_share_a_batch() -> None:
    scene = Scene.of(backend(slots=8), models=("tiny", "mid"))
    scene.probed("b1", DOWN)
    cold = [scene.accept(parameters={"temperature": 0}) for _ in range(2)]
    warm = [scene.accept(parameters={"temperature": 1}) for _ in range(2)]
    pinned = [scene.accept(model="mid") for _ in range(2)]
    scene.probed("b1", up("tiny", "mid"))
    scene.advance(1)
    assert [cold, warm, pinned] == sorted((list(batch.tasks) for batch in scene.sent), key=lambda b: b[0].sequence)


def test_a_group_that_is_always_full_does_not_hold_up_an_older_task_with_other_parameters() -> None:
    scene = Scene.of(backend(slots=2), lanes={"normal": {"max_batch_requests": 2}})
    scene.accept_many(8)
    rare = scene.accept(parameters={"temperature": 0.5})
    for _ in range(10):
        scene.clock.advance(1)
        for task in scene.running:
            scene.answered(task)
            scene.accept()
            scene.accept()
    assert rare in scene.order


def test_a_task_too_long_for_every_context_as_estimated_goes_to_the_longest_and_holds_nobody_up() -> None:
    # An estimate refuses nothing: the server counts exactly, and answers or says what is too long.
    scene = Scene(of(backend("short"), backend("long")))
    scene.probed("short", up(context_tokens=1000))
    scene.probed("long", up(context_tokens=4000))
    long = scene.accept(cost_tokens=5000)
    other = scene.accept(cost_tokens=500)
    scene.advance(1)
    assert {long, other} == set(scene.running)
    assert "long" == next(batch.backend for batch in scene.sent if long in batch.tasks)


def test_a_task_too_long_for_those_that_are_up_waits_for_the_one_that_takes_it() -> None:
    scene = Scene(of(backend("short"), backend("long")))
    scene.probed("short", up(context_tokens=1000))
    scene.probed("long", up(context_tokens=8000))
    scene.probed("long", DOWN)
    task = scene.accept(cost_tokens=5000)
    scene.advance(10)
    assert [] == scene.sent
    scene.probed("long", up(context_tokens=8000))
    assert [task] == scene.running


# Models


def test_a_model_is_unknown_only_when_every_backend_has_answered_without_it() -> None:
    scene = Scene(of(backend("b1"), backend("b2")))
    task = scene.accept(model="nobody's")
    scene.probed("b1", up("tiny"))
    scene.probed("b2", DOWN)
    scene.advance(60)
    assert {} == scene.results
    scene.probed("b2", up("mid"))
    assert ErrorType.UNKNOWN_MODEL == _error(scene, task)


def test_an_unknown_model_is_known_as_such_once_a_backend_that_answered_is_down() -> None:
    scene = Scene.of()
    scene.probed("b1", DOWN)
    assert ErrorType.UNKNOWN_MODEL == _error(scene, scene.accept(model="nobody's"))


def test_a_model_that_the_settings_name_is_waited_for() -> None:
    scene = Scene(of(backend(), models=[{"name": "later", "aliases": ["soon"]}]))
    scene.probed("b1", up("tiny"))
    for model in ("later", "soon"):
        scene.accept(model=model)
    scene.advance(60)
    assert ({}, []) == (scene.results, scene.sent)
    scene.probed("b1", up("tiny", "later"))
    assert {"later"} == {batch.model for batch in scene.sent}


def test_without_a_backend_tasks_wait() -> None:
    scene = Scene(of())
    scene.accept(model="any")
    scene.advance(60)
    assert (1, {}) == (len(scene.dispatcher), scene.results)


def test_an_agent_type_goes_to_a_model_that_lists_it_and_an_unknown_one_anywhere() -> None:
    scene = Scene(of(backend(), models=[{"name": "mid", "agent_types": ["summary"]}]))
    scene.probed("b1", up("tiny", "mid"))
    scene.accept(agent_type="summary")
    assert "mid" == scene.sent[0].model
    scene.accept(agent_type="unheard-of")
    scene.advance(1)
    assert 2 == len(scene.order)


# Cache


def entry(expires_at_ms: int = EPOCH_MS + 300_000) -> CacheEntry:
    return CacheEntry(Output("stored", "stop"), Usage(3, 1, 4), "tiny", EPOCH_MS, expires_at_ms, "default")


def test_a_cached_answer_ends_a_task_without_a_backend() -> None:
    scene = Scene(of(backend()))
    known = make_task(cache=USE)
    assert known.fingerprint
    scene.dispatcher.cache.put(known.fingerprint, entry(), 100)
    task = scene.accept(cache=USE)
    result = scene.results[task.task_id]
    assert (result.cached, result.output, result.usage, result.model) == (True, entry().answer, entry().usage, "tiny")
    assert (result.backend, result.batch, result.attempts, result.timing.inference_ms) == (None, None, 0, 0.0)
    assert scene.finished[0].cacheable is None


@pytest.mark.parametrize(
    ("policy", "expires_at_ms"),
    [(CachePolicy(mode="refresh"), EPOCH_MS + 1000), (CachePolicy(mode="bypass"), EPOCH_MS + 1000), (USE, EPOCH_MS)],
    ids=["refresh", "bypass", "expired"],
)
def test_a_stored_answer_is_not_used(policy: CachePolicy, expires_at_ms: int) -> None:
    scene = Scene.of()
    fingerprint = make_task(cache=USE).fingerprint
    assert fingerprint
    scene.dispatcher.cache.put(fingerprint, entry(expires_at_ms), 100)
    task = scene.accept(cache=policy)
    assert [task] == scene.running


@pytest.mark.parametrize(
    ("policy", "reply", "stored"),
    [
        (USE, answer(), True),
        (USE, answer(finish_reason="length"), True),
        (CachePolicy(mode="refresh"), answer(), True),
        (CachePolicy(mode="bypass"), answer(), False),
        (USE, answer(finish_reason="content_filter"), False),
        (USE, Answer(Output(None, "stop", tool_calls=[{"id": "1"}]), None), False),
    ],
)
def test_only_answers_that_ended_by_themselves_are_cacheable(policy: CachePolicy, reply: Answer, stored: bool) -> None:
    scene = Scene.of()
    task = scene.accept(cache=policy)
    scene.answered(task, reply)
    assert (f"{task.fingerprint};300" if stored else None) == scene.finished[0].cacheable


# Deadlines


def test_a_task_whose_deadline_has_passed_ends_at_once() -> None:
    scene = Scene.of()
    task = scene.accept(deadline_s=0.0)
    assert (ErrorType.DEADLINE_EXPIRED, Outcome.EXPIRED) == (_error(scene, task), scene.results[task.task_id].outcome)
    assert [] == scene.sent


def test_a_waiting_task_expires_at_its_deadline() -> None:
    scene = Scene(of(backend()))
    task = scene.accept(deadline_s=5.0)
    scene.advance(4.9)
    assert {} == scene.results
    scene.advance(0.1)
    result = scene.results[task.task_id]
    assert (Outcome.EXPIRED, 0, None, 5000.0) == (
        result.outcome,
        result.attempts,
        result.timing.inference_ms,
        result.timing.queue_ms,
    )
    assert [] == scene.aborted
    assert {} == scene.leftovers()


def test_a_running_task_is_aborted_at_its_deadline_and_gives_its_slot_back() -> None:
    scene = Scene.of(backend(slots=1))
    task = scene.accept(deadline_s=5.0)
    waiting = scene.accept()
    scene.advance(5)
    assert [task] == scene.aborted
    assert (Outcome.EXPIRED, 1) == (scene.results[task.task_id].outcome, scene.results[task.task_id].attempts)
    assert [waiting] == scene.running
    scene.answered(task)
    assert 1 == len(scene.results)


def test_a_call_that_fails_as_its_deadline_passes_has_expired_and_is_not_held_against_the_backend() -> None:
    scene = Scene.of()
    task = scene.accept("late", deadline_s=5.0)
    scene.clock.advance(5.0)
    scene.failed(task, BackendTimeout())
    assert (Outcome.EXPIRED, ErrorType.DEADLINE_EXPIRED) == (
        scene.results["late"].outcome,
        getattr(scene.results["late"].error, "type", None),
    )
    assert 0.0 == scene.dispatcher.backends["b1"].failure_ratio


def test_a_task_between_two_tries_expires_too() -> None:
    scene = Scene.of()
    task = scene.accept(deadline_s=5.0)
    scene.failed(task, BackendTimeout(retry_after_s=4))
    scene.probed("b1", DOWN)
    scene.advance(5)
    assert Outcome.EXPIRED == scene.results[task.task_id].outcome
    assert {} == scene.leftovers()


def test_expired_entries_do_not_pile_up_behind_far_deadlines() -> None:
    scene = Scene.of()
    for _ in range(2000):
        scene.answered(scene.accept())
    assert 300 > len(scene.dispatcher._expiries)


# Failures


def test_a_passing_failure_is_tried_again_in_place_then_exhausts_its_tries() -> None:
    scene = Scene.of(retry={"tiers": []})
    task = scene.accept()
    for attempt in (1, 2, 3):
        assert [task] == scene.running
        assert attempt == task.attempts
        scene.failed(task, BackendTimeout("no answer within 120 s"))
        scene.advance(1)
    error = scene.results[task.task_id].error
    assert error
    assert (ErrorType.RETRIES_EXHAUSTED, "backend_timeout", True) == (error.type, error.last, error.retriable)
    assert "no answer within 120 s" in error.detail
    assert 3 == scene.results[task.task_id].attempts


def test_a_final_failure_is_not_tried_again() -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.failed(task, BackendRejected())
    assert (ErrorType.BACKEND_REJECTED, 1) == (_error(scene, task), task.attempts)


def test_retries_are_no_more_than_their_share_of_the_traffic() -> None:
    scene = Scene.of(backend(slots=64), retry={"budget_ratio": 0.1})
    for _ in range(500):
        scene.accept(deadline_s=scene.now_s + 3600)
        scene.advance(1)
        for task in scene.running:
            scene.failed(task, BackendTimeout())
    calls = len(scene.order)
    assert 510 <= calls <= 500 * 1.1 / 0.9 + 15


def test_retries_can_be_turned_off() -> None:
    scene = Scene.of(retry={"enabled": False})
    task = scene.accept()
    scene.failed(task, BackendTimeout())
    assert ErrorType.RETRIES_EXHAUSTED == _error(scene, task)


@pytest.mark.parametrize(
    ("hops", "tier", "after"),
    [(0, RetryTier.FIVE_SECONDS, 1), (1, RetryTier.SIXTY_SECONDS, 2), (2, RetryTier.TEN_MINUTES, 3)],
)
def test_what_its_tries_in_place_did_not_help_goes_from_retry_topic_to_retry_topic(
    hops: int, tier: RetryTier, after: int
) -> None:
    scene = Scene.of(retry={"in_place_tries": 0})
    task = make_task()
    task.hops = hops
    scene.take(task)
    error = BackendTimeout()
    scene.failed(task, error)
    due_ms = EPOCH_MS + int(scene.now_s * 1000) + tier.delay_ms
    assert [HandOver(task, tier, due_ms, after, error)] == scene.handed
    assert ({}, {}) == (scene.results, scene.leftovers())


def test_a_task_that_failed_in_the_last_retry_topic_has_exhausted_its_tries() -> None:
    scene = Scene.of()
    task = make_task()
    task.hops = 3
    scene.take(task)
    scene.failed(task, BackendTimeout())
    assert (ErrorType.RETRIES_EXHAUSTED, []) == (_error(scene, task), scene.handed)


def test_a_retry_that_would_begin_after_the_deadline_is_none() -> None:
    scene = Scene.of(retry={"in_place_tries": 0})
    task = scene.accept(deadline_s=5.0)
    scene.failed(task, BackendTimeout())
    assert (ErrorType.RETRIES_EXHAUSTED, []) == (_error(scene, task), scene.handed)


def test_a_server_that_asks_for_a_long_pause_gets_it_in_a_retry_topic() -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.failed(task, BackendOverloaded(retry_after_s=30))
    assert [(RetryTier.SIXTY_SECONDS, 2)] == [(each.tier, each.hops) for each in scene.handed]


def test_a_retry_that_would_be_due_at_the_deadline_is_not_made_however_seconds_round() -> None:
    scene = Scene.of(retry={"in_place_tries": 0})
    scene.advance(5.01)  # 65.01 - 5.01 is a little more than 60
    task = make_task(now_s=scene.now_s, deadline_s=scene.now_s + 60.0)
    task.hops = 1
    scene.take(task)
    scene.failed(task, BackendTimeout())
    assert ([], ErrorType.RETRIES_EXHAUSTED) == (scene.handed, _error(scene, task))


def test_a_failure_after_its_partition_went_to_another_worker_is_that_workers_to_mend() -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.dispatcher.withdraw(lambda delivery: False, running=True)
    scene.failed(task, BackendTimeout())
    assert ([task], [], {}, {}) == (scene.dropped, scene.handed, scene.results, scene.leftovers())


# Redelivery


def test_a_task_that_another_worker_still_runs_is_held_back_until_that_lets_go() -> None:
    scene = Scene.of()
    task = make_task()
    scene.take(task, elsewhere=True)
    scene.advance(60)
    assert [] == scene.sent
    scene.reconsider(lambda held: held is task)
    assert [] == scene.sent
    scene.reconsider(lambda held: False)
    assert [task] == scene.running


def test_a_task_whose_worker_ended_while_it_was_held_back_is_blamed_for_that() -> None:
    scene = Scene.of(backend(slots=8))
    suspect, worse, mate = make_task("suspect"), make_task("worse"), make_task("mate")
    for task in (suspect, worse, mate):
        scene.take(task, elsewhere=True)
    suspect.crashes, worse.crashes = 3, 4
    scene.reconsider(lambda held: False)
    assert ErrorType.QUARANTINED == _error(scene, worse)
    assert [[suspect]] == [list(batch.tasks) for batch in scene.sent if suspect in batch.tasks]


def test_a_task_that_another_worker_runs_is_not_given_up_meanwhile() -> None:
    scene = Scene.of()
    task = make_task()
    task.crashes = 4
    scene.take(task, elsewhere=True)
    assert {} == scene.results
    scene.reconsider(lambda held: False)
    assert ErrorType.QUARANTINED == _error(scene, task)


def test_a_task_that_another_worker_ended_is_dropped() -> None:
    scene = Scene.of()
    task = make_task()
    scene.take(task, elsewhere=True)
    scene.cancelled(task)
    assert ([task], [], {}) == (scene.dropped, scene.aborted, scene.leftovers())


def test_a_task_that_crashed_three_workers_runs_alone_once_and_is_given_up_after_the_fourth() -> None:
    scene = Scene.of(backend(slots=8))
    scene.accept_many(8)  # no slot is idle, so the next wait for company
    mates = [make_task(now_s=scene.now_s) for _ in range(3)]
    suspect, worse = make_task("suspect", now_s=scene.now_s), make_task("worse", now_s=scene.now_s)
    suspect.crashes, worse.crashes = 3, 4
    for task in (*mates, suspect, worse):
        scene.take(task)
    assert ErrorType.QUARANTINED == _error(scene, worse)
    for task in list(scene.running):
        scene.answered(task)
    scene.advance(1)
    assert [[suspect]] == [list(batch.tasks) for batch in scene.sent if suspect in batch.tasks]


def test_only_one_suspect_runs_at_a_time_so_that_no_other_is_blamed() -> None:
    scene = Scene.of(backend(slots=8))
    suspects = [make_task() for _ in range(3)]
    for task in suspects:
        task.crashes = 3
        scene.take(task)
    other = scene.accept()
    scene.advance(1)
    assert [suspects[0], other] == scene.running
    scene.answered(suspects[0])
    assert {other, suspects[1]} == set(scene.running)
    scene.cancelled(suspects[1])
    assert {other, suspects[2]} == set(scene.running)
    scene.answered(suspects[2])
    scene.answered(other)
    assert {} == scene.leftovers()


# Parking


@pytest.mark.parametrize(
    ("lane", "lives_s", "tier"),
    [
        (Lane.CRITICAL, None, RetryTier.FIVE_SECONDS),
        (Lane.HIGH, None, RetryTier.FIVE_SECONDS),
        (Lane.NORMAL, None, RetryTier.SIXTY_SECONDS),
        (Lane.LOW, 620.0, RetryTier.FIVE_SECONDS),
        (Lane.LOW, 640.0, RetryTier.SIXTY_SECONDS),
    ],
)
def test_a_task_that_holds_its_partition_up_makes_way_after_half_a_minute(
    lane: Lane, lives_s: float | None, tier: RetryTier
) -> None:
    scene = Scene.of(backend("b1"), backend("b2", models=["other"]), retry={"enabled": False})
    scene.probed("b2", DOWN)
    stuck = scene.accept(model="other", lane=lane, deadline_s=lives_s)
    scene.answered(scene.accept(lane=lane))
    scene.advance(29.9)
    assert [] == scene.handed
    scene.advance(1.1)
    assert [(stuck, tier, 0, None)] == [(each.task, each.tier, each.hops, each.error) for each in scene.handed]
    assert (0, {}) == (stuck.attempts, scene.leftovers())


def test_what_waits_for_a_slot_of_a_busy_backend_is_not_parked() -> None:
    """However long: it moves on as slots become free, and parked it would lose its place."""
    scene = Scene.of(backend(slots=2))
    for number in range(40):
        scene.accept(parameters={"temperature": number % 4 / 4})
    while scene.running:
        scene.advance(10)
        scene.answered(scene.running[0])
    assert ([], 40) == (scene.handed, len(scene.results))


def test_a_class_that_was_shut_only_now_is_not_parked_for_its_long_wait() -> None:
    scene = Scene.of(backend("b1", slots=1), backend("b2", slots=1, models=["other"]))
    scene.probed("b2", up("other"))
    running, waiting = scene.accept(model="other"), scene.accept(model="other")
    scene.answered(scene.accept())
    scene.advance(60)
    scene.probed("b2", DOWN)
    scene.advance(29)
    assert ([], True) == (scene.handed, scene.dispatcher.runs(running))
    scene.advance(3)
    assert [waiting] == [each.task for each in scene.handed]


def test_what_waits_with_all_others_of_its_partition_is_not_parked() -> None:
    scene = Scene.of(backend("b1"))
    scene.probed("b1", DOWN)
    scene.accept_many(5)
    scene.accept(partition=1)
    scene.advance(3600)
    assert [] == scene.handed


def test_a_server_that_is_too_busy_gets_nothing_until_it_asked_for_more() -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.failed(task, BackendOverloaded(retry_after_s=4))
    other = scene.accept()
    scene.advance(3.9)
    assert (1, []) == (len(scene.sent), scene.running)
    scene.advance(0.1)
    assert {task, other} == set(scene.running)


def test_a_server_that_cannot_be_reached_is_left_for_another_until_a_probe_finds_it() -> None:
    scene = Scene(of(backend("b1"), backend("b2")))
    scene.probed("b1", up())
    task = scene.accept()
    scene.failed(task, BackendUnavailable())
    scene.advance(60)
    assert 1 == len(scene.sent)
    scene.probed("b2", up())
    assert ["b1", "b2"] == [batch.backend for batch in scene.sent]
    scene.probed("b1", up())
    scene.answered(task)
    assert Outcome.COMPLETED == scene.results[task.task_id].outcome


def test_a_retried_task_goes_before_those_that_came_later() -> None:
    scene = Scene.of(backend(slots=1))
    task = scene.accept()
    scene.accept_many(3)
    scene.failed(task, BackendUnavailable())
    scene.advance(1)
    scene.probed("b1", up())
    assert [task] == scene.running


@pytest.mark.parametrize("error", [ServingError(), BackendError()])
def test_failures_of_no_special_kind_are_final(error: ServingError) -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.failed(task, error)
    assert error.type == _error(scene, task)


# Deliveries


def test_a_redelivered_task_attaches_to_the_one_that_is_held() -> None:
    scene = Scene.of()
    task = scene.accept("twice", delivery="first", offset=5)
    scene.accept("twice", delivery="second", offset=5)
    assert (1, ["first", "second"]) == (len(scene.order), task.deliveries)
    scene.answered(task)
    assert ["first", "second"] == scene.finished[0].task.deliveries
    assert 1 == len(scene.results)


def test_the_same_id_on_two_partition_numbers_is_two_tasks() -> None:
    scene = Scene.of()
    both = {scene.accept("twice", partition=number) for number in (0, 1)}
    scene.advance(1)
    assert both == set(scene.running)


def test_waiting_tasks_of_a_lost_partition_are_given_up_and_running_ones_go_on() -> None:
    scene = Scene.of(backend(slots=1))
    running = scene.accept(delivery=0)
    given_up = scene.accept(delivery=0)
    kept = scene.accept(delivery=1)
    assert [given_up] == scene.dispatcher.withdraw(lambda delivery: delivery != 0, running=False)
    assert [0] == running.deliveries
    assert [] == scene.dispatcher.withdraw(lambda delivery: delivery != 0, running=True)
    assert [] == running.deliveries
    scene.answered(running)
    assert running.task_id in scene.results
    assert [kept] == scene.running


def test_a_task_with_another_delivery_left_is_kept() -> None:
    scene = Scene(of(backend()))
    task = scene.accept("twice", delivery=0)
    scene.accept("twice", delivery=1)
    assert [] == scene.dispatcher.withdraw(lambda delivery: delivery != 0, running=True)
    assert [1] == task.deliveries
    assert [task] == scene.dispatcher.withdraw(lambda delivery: False, running=True)
    assert {} == scene.leftovers()


def test_a_cancelled_task_is_dropped_wherever_it_is() -> None:
    scene = Scene.of(backend(slots=1))
    running, waiting = scene.accept(), scene.accept()
    for task in (waiting, running):
        scene.cancelled(task)
        assert [] == scene.dispatcher.cancel(task.key)
    scene.answered(running)
    assert ([waiting, running], [running]) == (scene.dropped, scene.aborted)
    assert ({}, {}) == (scene.results, scene.leftovers())


def test_a_task_cancelled_between_two_tries_is_not_tried_again() -> None:
    scene = Scene.of()
    task = scene.accept()
    scene.failed(task, BackendTimeout())
    scene.cancelled(task)
    scene.advance(60)
    assert ([task], [], 1, {}) == (scene.dropped, scene.aborted, len(scene.sent), scene.leftovers())


# Lanes


def test_other_lanes_leave_the_reserved_slot_and_critical_takes_it_at_once() -> None:
    scene = Scene.of(backend(slots=4))
    scene.accept_many(20)
    scene.advance(60)
    assert 3 == len(scene.running)
    critical = scene.accept(lane=Lane.CRITICAL)
    scene.advance(0.005)
    assert critical in scene.running


def test_critical_may_take_every_slot() -> None:
    scene = Scene.of(backend(slots=4))
    scene.accept_many(20, Lane.CRITICAL)
    assert 4 == len(scene.running)


def test_no_lane_starves_and_each_gets_its_share_of_the_tokens() -> None:
    # The slot reserved for critical counts towards its share.
    served = _serve(Scene.of(backend(slots=4)), dict.fromkeys(Lane, 20), rounds=1000, closed=False)
    total = sum(served.values())
    for lane, weight in zip(Lane, (8, 4, 2, 1), strict=True):
        assert served[lane] / total == pytest.approx(weight / 15, rel=0.05)


def test_reserved_slots_that_serve_more_than_a_share_leave_the_rest_to_the_others() -> None:
    scene = Scene.of(backend(slots=4), lanes={"critical": {"weight": 1, "reserved_slots": 3}})
    served = _serve(scene, dict.fromkeys(Lane, 20), rounds=1000, closed=False)
    total = sum(served.values())
    for lane, share in zip(Lane, (3 / 4, 4 / 28, 2 / 28, 1 / 28), strict=True):
        assert served[lane] / total == pytest.approx(share, rel=0.05)


def test_a_lane_that_comes_in_bursts_takes_no_more_than_its_share() -> None:
    scene = Scene.of(
        backend(slots=16),
        lanes={"high": {"weight": 4}, "low": {"weight": 1, "reserved_slots": 0}, "critical": {"reserved_slots": 0}},
    )
    served = _serve(scene, {Lane.HIGH: 16, Lane.LOW: 64}, rounds=300, closed=True)
    assert served[Lane.LOW] / sum(served.values()) >= 0.95 * 1 / 5


def _serve(scene: Scene, backlog: dict[Lane, int], *, rounds: int, closed: bool) -> Counter[Lane]:
    """Answer all that runs, once a second, and have each lane's backlog filled up again; return the tokens sent per lane.

    `closed`: a lane gets new tasks only when all of it was sent.
    """
    served: Counter[Lane] = Counter()
    for lane, number in backlog.items():
        for _ in range(number + 1):
            scene.perform(scene.dispatcher.accept(make_task(None, lane, now_s=scene.now_s), now_s=scene.now_s))
    scene.step()
    for _ in range(rounds):
        scene.clock.advance(1)
        for task in scene.running:
            served[task.lane] += task.cost_tokens
            scene.perform(scene.dispatcher.answered(task, as_expected(task), now_s=scene.now_s))
        for lane, number in backlog.items():
            missing = number - scene.dispatcher.waiting(lane)
            if closed and lane is Lane.HIGH and missing < number:
                continue
            for _ in range(missing):
                scene.perform(scene.dispatcher.accept(make_task(None, lane, now_s=scene.now_s), now_s=scene.now_s))
        scene.step()
    return served


# Pressure


def test_under_critical_pressure_a_backend_gets_one_call_at_a_time() -> None:
    scene = Scene.of(backend(slots=4, gpus=["GPU-0"]))
    scene.gpu("GPU-0", 0.95)
    scene.accept_many(5)
    assert 1 == len(scene.running)
    scene.answered(scene.running[0])
    assert 1 == len(scene.running)


def test_under_critical_pressure_the_low_lane_waits_and_nothing_of_it_is_dropped() -> None:
    scene = Scene.of(backend(slots=4, gpus=["GPU-0"]))
    scene.gpu("GPU-0", 0.95)
    deferred = scene.accept(lane=Lane.LOW)
    served = scene.accept(lane=Lane.NORMAL)
    for _ in range(20):
        scene.gpu("GPU-0", 0.95)
        scene.advance(1)
    assert ([served], 1) == (scene.order, scene.dispatcher.waiting(Lane.LOW))
    scene.answered(served)
    for _ in range(8):
        scene.gpu("GPU-0", 0.2)
        scene.advance(1)
    assert [served, deferred] == scene.order


def test_the_low_lane_goes_to_a_backend_that_is_not_under_critical_pressure() -> None:
    scene = Scene.of(backend("full", gpus=["GPU-0"]), backend("roomy", gpus=["GPU-1"]))
    scene.gpu("GPU-0", 0.95)
    scene.gpu("GPU-1", 0.2)
    scene.accept(lane=Lane.LOW)
    assert ["roomy"] == [batch.backend for batch in scene.sent]


def test_readings_that_are_stale_hold_nothing_back() -> None:
    scene = Scene.of(backend(slots=4, gpus=["GPU-0"]))
    scene.gpu("GPU-0", 0.95)
    low = scene.accept(lane=Lane.LOW)
    scene.advance(10)
    scene.accept()
    assert low in scene.order


def test_a_backend_whose_card_is_lost_gets_nothing() -> None:
    scene = Scene.of(backend("gone", gpus=["GPU-0"]), backend("there"))
    scene.gpu("GPU-0", 0.1, lost=True)
    scene.accept()
    assert ["there"] == [batch.backend for batch in scene.sent]


def test_a_draining_backend_finishes_what_runs_and_gets_nothing_new() -> None:
    scene = Scene.of()
    running = scene.accept()
    scene.dispatcher.backends["b1"].draining = True
    scene.accept()
    scene.advance(10)
    assert [running] == scene.running
    scene.answered(running)
    assert running.task_id in scene.results


def _error(scene: Scene, task: Task) -> ErrorType:
    error = scene.results[task.task_id].error
    assert error
    return error.type


def test_should_learn_from_answers_what_a_task_costs_and_look_at_the_most_for_the_context() -> None:
    scene = Scene.of(backend("b1"))
    for _ in range(ENOUGH_SAMPLES):
        task = scene.accept(cost_tokens=300)  # max_tokens is 256
        scene.advance(1)
        scene.answered(task, Answer(Output("fine", "stop"), Usage(44, 6, 50)))
    task = scene.accept(cost_tokens=300)
    assert (50, 300) == (task.cost_tokens, task.bound_tokens)


def test_should_freeze_the_cost_while_a_task_waits() -> None:
    scene = Scene.of(backend("b1", slots=1))
    first, second = scene.accept(cost_tokens=300), scene.accept(cost_tokens=300)
    scene.advance(1)
    for _ in range(ENOUGH_SAMPLES):
        scene.dispatcher.costs.learn(first, Usage(44, 6, 50))
    scene.answered(first)
    assert 300 == second.cost_tokens
