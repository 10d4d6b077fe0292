"""What a redelivered request is checked against: starts, and who of those that started it still lives."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.progress import Released, Started, WorkerSnapshot
from streams.redelivery import GRACE_S, LIVE_MS, Peers, RecentEnds, Redelivery, Start, StartsIndex
from streams.task import Task
from tests.support.tasks import make_task

KEY = ("a", 3)


def started(worker: str, at_ms: int, *tasks: tuple[str, int]) -> Started:
    return Started(
        "b-1", worker, "llama-1", [(name, "triage.requests.low", 0, attempt) for name, attempt in tasks], at_ms
    )


def seen(peers: Peers, worker: str, at_ms: int, *in_flight: str) -> None:
    peers.observe(worker, WorkerSnapshot(worker, "host", 1, at_ms, in_flight=list(in_flight)), at_ms)


def test_starts_are_kept_by_partition_until_the_task_has_an_outcome() -> None:
    index = StartsIndex()
    for _ in range(2):  # read again, the same record changes nothing
        index.observe(started("w1", 10, ("a", 1), ("b", 1)), 3)
    index.observe(started("w2", 20, ("a", 2)), 3)
    assert [Start("w1", 1, 10), Start("w2", 2, 20)] == index.of(KEY)
    assert [] == index.of(("a", 4))
    assert [Start("w2", 2, 20)] == index.of(KEY, after_attempt=1)
    index.ended(KEY)
    assert ([], 1) == (index.of(KEY), len(index))


def test_a_start_that_is_read_after_its_tasks_outcome_is_none() -> None:
    ends = RecentEnds()
    index = StartsIndex(ends)
    ends.add(KEY)
    index.observe(started("w1", 10, ("a", 1), ("b", 1)), 3)
    assert ([], 1) == (index.of(KEY), len(index))


def test_a_start_that_came_to_nothing_is_no_crash_and_runs_no_more() -> None:
    index, peers = StartsIndex(), Peers("me")
    index.observe(started("w1", 10, ("a", 1)), 3)
    index.released(Released("w1", [("a", "triage.requests.low", 0, 1)], 20), 3)
    index.observe(started("w1", 10, ("a", 1)), 3)  # read again
    assert [Start("w1", 1, 10, ended=True)] == index.of(KEY)
    assert 0 == peers.crashes(index.of(KEY), 10_000)
    seen(peers, "w1", 5)
    assert not peers.runs("a", index.of(KEY), 6)


def test_starts_are_in_the_order_in_which_they_were_made_whatever_order_they_are_read_in() -> None:
    index = StartsIndex()
    for attempt, worker in ((2, "w2"), (3, "w5"), (1, "w3")):
        index.observe(started(worker, attempt * 10, ("a", attempt)), 3)
    assert ["w3", "w2", "w5"] == [start.worker for start in index.of(KEY)]


def test_a_partition_that_is_no_longer_followed_is_forgotten() -> None:
    index = StartsIndex()
    index.observe(started("w1", 10, ("a", 1)), 3)
    index.observe(started("w1", 10, ("a", 1)), 4)
    index.release(3)
    assert ([], 1) == (index.of(KEY), len(index))


def test_nobody_is_gone_because_brokers_were_away() -> None:
    peers = Peers("me")
    seen(peers, "w1", 1000, "a")
    assert peers.is_live("w1", 1000 + 60_000)  # nobody was heard of since
    seen(peers, "me", 1000 + LIVE_MS)
    assert not peers.is_live("w1", 1000 + 60_000)


def test_workers_that_went_silent_are_not_kept_for_ever() -> None:
    peers = Peers("me")
    for number in range(1000):
        seen(peers, f"w{number}", number * LIVE_MS, "a")
    assert 100 > len(peers._seen)


def test_only_the_newest_tasks_are_kept() -> None:
    index, ends = StartsIndex(most=2), RecentEnds(most=2)
    for name in ("a", "b", "c"):
        index.observe(started("w1", 10, (name, 1)), 0)
        ends.add((name, 0))
    assert [False, True, True] == [bool(index.of((name, 0))) for name in ("a", "b", "c")]
    assert [False, True, True] == [(name, 0) in ends for name in ("a", "b", "c")]


def test_a_live_worker_that_lists_a_task_runs_it() -> None:
    peers = Peers("me")
    seen(peers, "w1", 1000, "a")
    assert peers.runs("a", [], 1000)
    assert not peers.runs("b", [], 1000)
    seen(peers, "me", 1000 + LIVE_MS)
    assert not peers.runs("a", [], 1000 + LIVE_MS)


def test_a_start_that_is_newer_than_its_workers_snapshot_still_runs() -> None:
    peers = Peers("me")
    seen(peers, "w1", 1000)
    assert peers.runs("a", [Start("w1", 1, 1500)], 2000)
    seen(peers, "w1", 2000)  # now it would be listed
    assert not peers.runs("a", [Start("w1", 1, 1500)], 2000)


def test_a_worker_that_said_goodbye_runs_nothing() -> None:
    peers = Peers("me")
    seen(peers, "w1", 1000, "a")
    peers.observe("w1", None, 1100)
    assert not peers.runs("a", [Start("w1", 1, 900)], 1200)
    assert 0 == peers.live(1200)


def test_this_worker_is_no_peer_of_its_own() -> None:
    peers = Peers("me")
    seen(peers, "me", 1000, "a")
    assert not peers.runs("a", [Start("me", 1, 900)], 1000)


def test_every_worker_that_started_a_task_and_is_gone_counts_once_however_often_it_tried() -> None:
    peers = Peers("me")
    seen(peers, "alive", 1000)
    starts = [Start("w1", 1, 1), Start("w1", 2, 2), Start("w2", 3, 3), Start("alive", 4, 4), Start("me", 5, 5)]
    assert 2 == peers.crashes(starts, 1000)
    seen(peers, "me", 1000 + LIVE_MS)
    assert 3 == peers.crashes(starts, 1000 + LIVE_MS)


def test_a_worker_that_said_goodbye_is_no_crash_and_only_the_newest_goodbyes_are_kept() -> None:
    peers = Peers("me")
    seen(peers, "w1", 1000, "a")
    peers.observe("w1", None, 1100)
    seen(peers, "other", 1100 + 2 * LIVE_MS)
    assert 0 == peers.crashes([Start("w1", 1, 900)], 1100 + 2 * LIVE_MS)
    for number in range(2000):
        peers.observe(f"gone{number}", None, 1200)
    assert 1 == peers.crashes([Start("w1", 1, 900)], 1100 + 2 * LIVE_MS)
    assert 1000 == len(peers._left)


@dataclass
class Scene:
    """Redelivery of one task, on a clock of broker milliseconds that is also the monotonic one."""

    task: Task = field(default_factory=lambda: make_task("a", partition=3))
    index: StartsIndex = field(default_factory=StartsIndex)
    peers: Peers = field(default_factory=lambda: Peers("me"))

    def taken_in(self, now_ms: int) -> bool:
        return Redelivery(self.index, self.peers).taken_in(self.task, now_s=now_ms / 1000, now_ms=now_ms)

    def still_waits(self, now_ms: int) -> bool:
        return Redelivery(self.index, self.peers).still_waits(self.task, now_s=now_ms / 1000, now_ms=now_ms)


GRACE_MS = int(GRACE_S * 1000)


def test_a_task_that_nobody_started_does_not_wait() -> None:
    scene = Scene()
    seen(scene.peers, "w1", 1000)
    assert not scene.taken_in(1000)


def test_a_task_waits_for_its_result_a_second_beyond_the_last_sight_of_its_run() -> None:
    scene = Scene()
    seen(scene.peers, "w1", 1000, "a")
    assert scene.taken_in(1000)
    seen(scene.peers, "w1", 2000)
    assert [True, True, False] == [scene.still_waits(now_ms) for now_ms in (2000, 1999 + GRACE_MS, 2000 + GRACE_MS)]


def test_a_task_that_a_live_worker_no_longer_lists_waits_a_second_for_its_result() -> None:
    scene = Scene()
    scene.index.observe(started("w1", 900, ("a", 1)), 3)
    seen(scene.peers, "w1", 1000)
    assert scene.taken_in(1000)
    assert [True, False] == [scene.still_waits(now_ms) for now_ms in (999 + GRACE_MS, 1000 + GRACE_MS)]


def test_a_task_of_a_worker_that_has_just_left_waits_a_second_for_its_result() -> None:
    scene = Scene()
    scene.index.observe(started("w1", 900, ("a", 1)), 3)
    scene.peers.observe("w1", None, 1000)
    assert scene.taken_in(1000)
    assert not scene.still_waits(1000 + GRACE_MS)
    assert 0 == scene.task.crashes
    seen(scene.peers, "me", 1000 + LIVE_MS)
    assert not scene.taken_in(1000 + LIVE_MS)


def test_a_task_whose_last_start_came_to_nothing_does_not_wait() -> None:
    scene = Scene()
    scene.index.observe(started("w1", 900, ("a", 1)), 3)
    seen(scene.peers, "w1", 800)
    assert scene.taken_in(1000)
    scene.index.released(Released("w1", [("a", "triage.requests.low", 0, 1)], 1100), 3)
    assert not scene.still_waits(1200)
    assert not scene.taken_in(1200)


def test_workers_that_fall_silent_while_a_task_waits_count_as_crashed() -> None:
    scene = Scene()
    scene.index.observe(started("w1", 900, ("a", 1)), 3)
    seen(scene.peers, "w1", 1000, "a")
    assert scene.taken_in(1000)
    assert 0 == scene.task.crashes
    seen(scene.peers, "me", 1000 + LIVE_MS)
    scene.still_waits(1000 + LIVE_MS)
    assert (1, 1) == (scene.task.crashes, scene.task.attempts)


def test_starts_before_a_retry_have_ended_and_are_no_crashes() -> None:
    scene = Scene()
    scene.task.attempts = 2
    scene.index.observe(started("w1", 900, ("a", 1), ("a", 2)), 3)
    assert not scene.taken_in(60_000)
    scene.still_waits(60_000)
    assert (0, 2) == (scene.task.crashes, scene.task.attempts)
    scene.index.observe(started("w2", 950, ("a", 3)), 3)
    scene.still_waits(60_000)
    assert (1, 3) == (scene.task.crashes, scene.task.attempts)
