"""Identical tasks share a call: what each of them gets, and what one's leaving means for the others."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.request import CachePolicy
from schemas.result import Outcome
from schemas.topics import Lane
from streams.dispatcher import HandOver
from streams.errors import BackendRejected, BackendTimeout
from streams.task import Task
from tests.support.tasks import answer, make_task
from tests.topology.scene import Scene, backend

USE = CachePolicy()


def accept(scene: Scene, name: str, lane: Lane = Lane.NORMAL, **fields: Any) -> Task:
    return scene.accept(name, lane, cache=USE, **fields)


def busy(scene: Scene) -> Task:
    """Have the only slot taken by another task."""
    return scene.accept("other", text="something else")


def one_slot() -> Scene:
    return Scene.of(backend(slots=1))


def test_should_answer_identical_tasks_by_one_call_each_with_its_own_result() -> None:
    scene = Scene.of()
    first = accept(scene, "first", metadata={"mine": "1"})
    scene.advance(2)
    accept(scene, "second", Lane.HIGH, metadata={"mine": "2"})
    scene.advance(1)
    assert [first] == scene.order
    scene.answered(first, answer("fine"))
    one, two = scene.results["first"], scene.results["second"]
    assert ("fine", "fine") == tuple(result.output.content for result in (one, two) if result.output)
    assert (None, "first") == (one.coalesced_with, two.coalesced_with)
    assert (1, 0) == (one.attempts, two.attempts)
    assert (Lane.NORMAL, Lane.HIGH) == (one.priority, two.priority)
    assert ({"mine": "1"}, {"mine": "2"}) == (one.metadata, two.metadata)
    assert one.source != two.source
    assert (one.batch, one.backend, one.usage) == (two.batch, two.backend, two.usage)
    assert not two.cached
    assert (0.0, 1000.0) == (two.timing.queue_ms, two.timing.inference_ms)
    assert [True, False] == [finish.cacheable is not None for finish in scene.finished]
    assert {} == scene.leftovers()


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": CachePolicy(mode="bypass")},
        {"cache": USE, "tenant": "another"},
        {"cache": USE, "text": "another"},
        {"cache": USE, "stream": True},
        {"cache": USE, "parameters": {"seed": 7}},
    ],
)
def test_should_give_what_is_not_identical_or_asks_for_its_own_a_call_of_its_own(fields: dict[str, Any]) -> None:
    scene = Scene.of()
    accept(scene, "first")
    scene.accept("second", **fields)
    scene.advance(1)
    assert ["first", "second"] == [task.task_id for task in scene.order]


def test_should_run_anew_what_comes_after_the_answer() -> None:
    scene = Scene.of()
    scene.answered(accept(scene, "first"))
    accept(scene, "second")
    scene.advance(1)
    assert ["first", "second"] == [task.task_id for task in scene.order]


def test_should_go_on_for_the_follower_when_the_leader_is_cancelled() -> None:
    scene = Scene.of()
    leader, follower = accept(scene, "leader"), accept(scene, "follower")
    scene.cancelled(leader)
    assert ([], [leader], [follower]) == (scene.aborted, scene.dropped, scene.running)
    scene.answered(leader)  # by the task that the call was begun for
    assert {"follower": "leader"} == {name: result.coalesced_with for name, result in scene.results.items()}
    assert {} == scene.leftovers()


def test_should_go_on_for_the_follower_when_the_leaders_time_is_up() -> None:
    scene = Scene.of()
    leader = accept(scene, "leader", deadline_s=10.0)
    accept(scene, "follower", deadline_s=60.0)
    scene.advance(10)
    assert (Outcome.EXPIRED, []) == (scene.results["leader"].outcome, scene.aborted)
    scene.answered(leader)
    assert Outcome.COMPLETED is scene.results["follower"].outcome


def test_should_close_the_call_when_the_last_has_gone() -> None:
    scene = Scene.of()
    leader, follower = accept(scene, "leader"), accept(scene, "follower")
    scene.cancelled(leader)
    scene.cancelled(follower)
    assert ([leader], [leader, follower]) == (scene.aborted, scene.dropped)
    assert {} == scene.leftovers()


def test_should_leave_the_others_alone_when_a_follower_is_cancelled() -> None:
    scene = Scene.of()
    leader, follower = accept(scene, "leader"), accept(scene, "follower")
    scene.cancelled(follower)
    assert ([], [leader]) == (scene.aborted, scene.running)
    scene.answered(leader)
    assert {"leader"} == set(scene.results)


def test_should_put_the_follower_into_the_place_of_a_leader_that_is_cancelled_while_it_waits() -> None:
    scene = one_slot()
    other = busy(scene)
    leader, follower = accept(scene, "leader"), accept(scene, "follower")
    scene.cancelled(leader)
    scene.answered(other)
    assert [other, follower] == scene.order


def test_should_run_in_the_lane_of_the_most_urgent() -> None:
    scene = one_slot()
    other = busy(scene)
    low, normal, critical = (
        accept(scene, "low", Lane.LOW),
        scene.accept("normal", text="third"),
        accept(scene, "critical", Lane.CRITICAL),
    )
    scene.answered(other)
    assert [other, critical] == scene.order
    scene.answered(critical)
    assert {"other": None, "critical": None, "low": "critical"} == {
        name: result.coalesced_with for name, result in scene.results.items()
    }
    assert [other, critical, normal] == scene.order
    assert 0 == scene.dispatcher.waiting(Lane.LOW)
    assert 0 == low.attempts


def test_should_try_identical_tasks_again_as_one_and_then_let_each_go_to_its_next_retry_topic() -> None:
    scene = Scene.of(retry={"in_place_tries": 1, "budget_ratio": 1.0})
    leader, follower = accept(scene, "leader"), accept(scene, "follower")
    follower.hops = 1
    scene.failed(leader, BackendTimeout())
    scene.advance(1)
    assert [leader, leader] == scene.order
    scene.failed(leader, BackendTimeout())
    assert [(leader, "5s"), (follower, "60s")] == [(each.task, each.tier.value) for each in scene.handed]
    assert (2, 0) == (leader.attempts, follower.attempts)
    assert {} == scene.leftovers()


def test_should_end_identical_tasks_alike_when_the_server_refuses() -> None:
    scene = Scene.of()
    leader, _follower = accept(scene, "leader"), accept(scene, "follower")
    scene.failed(leader, BackendRejected())
    assert {"leader": ("backend_rejected", None), "follower": ("backend_rejected", "leader")} == {
        name: (result.error and result.error.type.value, result.coalesced_with)
        for name, result in scene.results.items()
    }
    assert 1 == len(scene.order)


def test_should_go_on_for_a_follower_whose_leaders_partition_goes_to_another_worker() -> None:
    scene = one_slot()
    other = busy(scene)
    accept(scene, "leader", partition=1)
    follower = accept(scene, "follower", partition=2)
    scene.dispatcher.withdraw(lambda source: source.partition != 1, running=False)  # type: ignore[attr-defined]
    scene.answered(other)
    assert [other, follower] == scene.order


def test_should_keep_a_follower_of_a_running_call_as_long_as_the_call() -> None:
    """Its partition has gone to a worker that waits for it, as it does for what runs here."""
    scene = Scene.of()
    leader, follower = accept(scene, "leader", partition=1), accept(scene, "follower", partition=2)
    scene.dispatcher.withdraw(lambda source: source.partition != 2, running=False)  # type: ignore[attr-defined]
    assert [follower] == scene.dispatcher.following
    assert 1 == len(follower.deliveries)
    scene.dispatcher.withdraw(lambda source: source.partition != 2, running=True)  # type: ignore[attr-defined]
    assert ([follower], []) == (scene.dispatcher.following, follower.deliveries)
    scene.failed(leader, BackendTimeout())
    assert [follower] == scene.dropped
    assert scene.dispatcher.has(leader)


def test_should_blame_no_follower_and_no_leader_for_a_crash_of_the_other() -> None:
    scene = Scene.of()
    accept(scene, "leader")
    suspect = make_task("suspect", now_s=scene.now_s, cache=USE)
    suspect.crashes = 1
    scene.take(suspect)
    scene.advance(1)
    assert ["leader", "suspect"] == [task.task_id for task in scene.order]


def test_should_not_hand_over_what_was_parked_for_its_followers() -> None:
    """The leader makes way; what is identical to it waits on in its own partition, and is not in the way there."""
    scene = Scene.of(backend("b1"), models=("tiny",))
    scene.dispatcher.backends["b1"].draining = True
    leader = accept(scene, "leader", partition=1)
    follower = accept(scene, "follower", partition=2)
    scene.dispatcher._newest_sent[leader.place] = 10**9
    scene.advance(60)
    assert [HandOver] == [type(each) for each in scene.handed]
    assert [leader] == [each.task for each in scene.handed]
    assert scene.dispatcher.has(follower)
    assert 1 == scene.dispatcher.waiting(Lane.NORMAL)
