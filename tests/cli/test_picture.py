"""The live picture's state: what records make of it. Times are broker milliseconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.picture.frame import Frame, LaneRow
from cli.picture.kills import Kill
from cli.picture.marks import bar, blocks, curve, memory, seconds, shortened
from cli.picture.picture import LogEnd, Picture
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.progress import BackendStatus, ClassState, Gate, LaneState, Started, WorkerSnapshot
from schemas.result import BatchRef, Outcome, Result, Routing, Source, Timing
from schemas.topics import Lane, TopicNames
from streams.quantiles import quantile

NOW = 1_800_000_000_000
HIGH = TopicNames().requests(Lane.HIGH)
GIB = 1 << 30


def snapshot(worker: str = "w-1", **fields: Any) -> WorkerSnapshot:
    return WorkerSnapshot(worker=worker, host="here", pid=7, at_ms=NOW, **fields)


def result(task_id: str = "t-1", outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> Result:
    given: dict[str, Any] = {"tenant": "default", "attempts": 1, "source": Source(HIGH, 0, 0), "priority": Lane.HIGH}
    return Result(task_id=task_id, outcome=outcome, **{**given, **fields})


def started(batch: str, *tasks: str, worker: str = "w-1", first_offset: int = 0) -> Started:
    rows = [(task, HIGH, offset, 1) for offset, task in enumerate(tasks, first_offset)]
    return Started(batch, worker, "llama-1", rows, NOW)


def sample(used: int | None = 6 * GIB, **fields: Any) -> GPUMetrics:
    gpu = GpuId("GPU-1", 0, "L4", "here")
    given: dict[str, Any] = {"memory_used_bytes": used, "memory_total_bytes": 10 * GIB}
    return GPUMetrics(gpu, GpuSource.NVML, NOW, **{**given, **fields})


def high(frame: Frame) -> LaneRow:
    return next(lane for lane in frame.lanes if lane.lane is Lane.HIGH)


# Lanes


def test_what_no_worker_has_fetched_waits_and_so_does_what_waits_in_workers() -> None:
    picture = Picture()
    picture.logs({f"{HIGH}/0": LogEnd(100, 40), f"{HIGH}/1": LogEnd(50, 30), "triage.requests.low/0": LogEnd(5, 0)})
    state = LaneState(waiting=7, in_flight=2, oldest_wait_s=1.5, done_per_minute=0)
    picture.snapshot("w-1", snapshot(lanes={"high": state}, fetched_through={f"{HIGH}/0": 89}), NOW)
    lane = high(picture.frame(NOW))
    # Of partition 0 ten records (90 to 99) are not fetched; nobody reads partition 1, so twenty are not committed.
    assert (7 + 10 + 20, 2, 1.5) == (lane.waiting, lane.in_flight, lane.oldest_wait_s)


def test_a_lane_has_its_part_of_the_tokens_and_what_most_of_it_waits_for() -> None:
    picture = Picture()
    assert (None, None, None) == (
        high(frame := picture.frame(NOW)).share_ratio,
        high(frame).weight_ratio,
        high(frame).gate,
    )
    rows = {
        "high": LaneState(9, 0, 0.0, 0, sent_tokens=300, weight=4),
        "low": LaneState(0, 0, 0.0, 0, sent_tokens=100, weight=1),
    }
    classes = [
        ClassState(Lane.HIGH, "a", None, 2, 20, Gate.WINDOW, NOW),
        ClassState(Lane.HIGH, "b", None, 7, 70, Gate.TURN, NOW),
        ClassState(Lane.LOW, "b", None, 70, 70, Gate.SHED, NOW),
    ]
    for worker in ("w-1", "w-2"):
        picture.snapshot(worker, snapshot(worker, lanes=rows, classes=classes), NOW)
    found = high(picture.frame(NOW))
    assert (0.75, 0.8, Gate.TURN) == (found.share_ratio, found.weight_ratio, found.gate)


def test_decisions_of_the_last_minute_are_counted_by_their_reason() -> None:
    picture = Picture()
    for number, reason in enumerate(["only one that can", "fits, fastest", "fits, fastest", None]):
        picture.result(result(f"t-{number}", routing=Routing(reason)), 0, NOW)
    assert [("fits, fastest", 2), ("only one that can", 1)] == list(picture.frame(NOW).decisions.items())
    assert {} == picture.frame(NOW + 60_000).decisions


def test_what_was_started_since_the_snapshot_was_fetched_too() -> None:
    picture = Picture()
    picture.logs({f"{HIGH}/0": LogEnd(10, 0)})
    picture.snapshot("w-1", snapshot(fetched_through={f"{HIGH}/0": 3}), NOW)
    picture.started(started("b-1", "t-1", first_offset=7), 0, NOW)
    assert 2 == high(picture.frame(NOW)).waiting
    picture.result(result(source=Source(HIGH, 0, 8)), 0, NOW)
    assert 1 == high(picture.frame(NOW)).waiting


def test_rates_and_latencies_are_those_of_the_last_minute() -> None:
    picture = Picture()
    for number, (ago_s, took_s) in enumerate([(70, 9.0), (59, 1.0), (30, 2.0), (5, 3.0), (1, 4.0)]):
        at_ms = NOW - ago_s * 1000
        timing = Timing(created_at_ms=at_ms - int(took_s * 1000))
        picture.result(result(f"t-{number}", timing=timing), 0, at_ms)
    lane = high(picture.frame(NOW))
    assert (4, 12) == (lane.rate_60s_per_minute, lane.rate_10s_per_minute)
    assert (3.0, 4.0) == (lane.p50_s, lane.p95_s)
    assert (60, 4, 1) == (len(lane.ended_by_second), sum(lane.ended_by_second), lane.ended_by_second[-2])


def test_outcomes_are_counted_by_kind() -> None:
    picture = Picture()
    for number, outcome in enumerate([Outcome.COMPLETED, Outcome.FAILED, Outcome.COMPLETED, Outcome.EXPIRED]):
        picture.result(result(f"t-{number}", outcome), 0, NOW)
    assert {"completed": 2, "failed": 1, "expired": 1} == high(picture.frame(NOW)).outcomes


def test_a_result_counts_once_and_the_same_id_on_another_partition_is_another_task() -> None:
    picture = Picture()
    taken = [
        picture.result(result("t-1", outcome), partition, NOW)
        for outcome, partition in ((Outcome.EXPIRED, 0), (Outcome.COMPLETED, 0), (Outcome.COMPLETED, 1))
    ]
    assert [True, False, True] == taken
    assert {"expired": 1, "completed": 1} == high(picture.frame(NOW)).outcomes


# Batches


def test_a_batch_is_one_row_over_its_partitions_and_tells_how_many_have_ended() -> None:
    picture = Picture()
    picture.snapshot("w-1", snapshot(), NOW)
    picture.started(started("b-1", "t-1", "t-2"), 0, NOW - 2000)
    picture.started(started("b-1", "t-3"), 1, NOW - 1990)
    picture.result(result("t-3", batch=BatchRef("b-1", 3)), 1, NOW)
    (batch,) = picture.frame(NOW).batches
    assert ("b-1", Lane.HIGH, 3, 1, "llama-1", 2.0, False) == (
        batch.id,
        batch.lane,
        batch.size,
        batch.ended,
        batch.backend,
        batch.age_s,
        batch.is_orphaned,
    )


def test_the_newest_twenty_batches_are_kept_newest_first() -> None:
    picture = Picture()
    for number in [*range(10, 25), *range(10)]:  # partitions are read in turn
        picture.started(started(f"b-{number}", f"t-{number}"), 0, NOW + number)
    assert [f"b-{number}" for number in range(24, 4, -1)] == [batch.id for batch in picture.frame(NOW).batches]


def test_a_batch_whose_worker_is_gone_is_orphaned_and_its_tasks_run_again_are_counted() -> None:
    picture = Picture()
    picture.snapshot("w-1", snapshot(), NOW)
    picture.started(started("b-1", "t-1", "t-2"), 0, NOW)
    picture.snapshot("w-1", None, NOW + 1)
    picture.started(started("b-2", "t-1", worker="w-2"), 0, NOW + 2)
    picture.started(started("b-3", "t-1", worker="w-2"), 1, NOW + 3)  # another partition, so another task
    frame = picture.frame(NOW + 3)
    assert (1, True) == (frame.run_again, next(b.is_orphaned for b in frame.batches if b.id == "b-1"))


# Workers and backends


def test_a_worker_is_gone_when_it_withdraws_or_is_silent_for_more_than_five_seconds() -> None:
    picture = Picture()
    picture.snapshot("w-1", snapshot("w-1"), NOW)
    picture.snapshot("w-2", snapshot("w-2", draining=True), NOW)
    assert [("w-1", False), ("w-2", True)] == [(w.id, w.draining) for w in picture.frame(NOW + 5000).workers]
    picture.snapshot("w-2", None, NOW + 5001)
    frame = picture.frame(NOW + 5001)
    assert [] == frame.workers
    assert ["worker w-1 is gone: no snapshot for 5 s", "worker w-2 has left"] == [n.text for n in frame.notices]


def test_a_backend_is_what_its_workers_see_together() -> None:
    up = BackendStatus("llama-1", "llamacpp", up=True, in_flight=3, limit=4, models=["tiny"], latency_ema_s=1.0)
    down = replace(up, up=False, in_flight=1, latency_ema_s=2.0, reason="backend_timeout")
    picture = Picture()
    picture.snapshot("w-1", snapshot("w-1", backends=[up]), NOW)
    assert picture.frame(NOW).backends[0].is_up
    picture.snapshot("w-2", snapshot("w-2", backends=[down]), NOW)
    frame = picture.frame(NOW)
    (backend,) = frame.backends
    assert (2, 1, 4, 8, 1.5, "backend_timeout", False) == (
        backend.workers,
        backend.up_for,
        backend.in_flight,
        backend.limit,
        backend.latency_s,
        backend.reason,
        backend.is_up,
    )
    assert "backend llama-1 is down: backend_timeout" == frame.notices[-1].text


# GPUs


@pytest.mark.parametrize(
    ("reading", "age_ms", "seen"),
    [
        (sample(), 1000, ("NORMAL", False, False)),
        (sample(9 * GIB), 1000, ("CRITICAL", False, False)),
        (sample(None), 1000, (None, False, False)),
        (sample(), 6000, (None, True, False)),
        (sample(None, lost=True), 1000, (None, False, True)),
    ],
)
def test_a_gpu_has_a_pressure_unless_it_is_stale_lost_or_unread(
    reading: GPUMetrics, age_ms: int, seen: tuple[str | None, bool, bool]
) -> None:
    picture = Picture()
    picture.sample(reading, NOW)
    (gpu,) = picture.frame(NOW + age_ms).gpus
    assert seen == (gpu.pressure, gpu.stale, gpu.lost)


# Whatever comes


offsets = st.integers(0, 30)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("log"), offsets, offsets),
        st.tuples(st.just("fetched"), offsets, st.sampled_from(["w-1", "w-2"])),
        st.tuples(st.just("started"), offsets, st.sampled_from(["b-1", "b-2"])),
        st.tuples(st.just("result"), offsets, st.integers(0, 3)),
        st.tuples(st.just("gone"), st.just(0), st.sampled_from(["w-1", "w-2"])),
        st.tuples(st.just("time"), st.integers(0, 9000), st.just(0)),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(happenings)
def test_nothing_is_ever_negative_gone_workers_vanish_and_a_task_ends_once(told: list[tuple[str, int, Any]]) -> None:
    picture, now, ended, heard = Picture(), NOW, set[tuple[str, int]](), dict[str, int]()
    for what, number, more in told:
        if what == "log":
            picture.logs({f"{HIGH}/0": LogEnd(number, more)})
        elif what == "fetched":
            picture.snapshot(more, snapshot(more, fetched_through={f"{HIGH}/0": number}), now)
            heard[more] = now
        elif what == "started":
            picture.started(started(more, f"t-{number}", first_offset=number), 0, now)
        elif what == "result":
            picture.result(result(f"t-{number}", source=Source(HIGH, more, number)), more, now)
            ended.add((f"t-{number}", more))
        elif what == "gone":
            picture.snapshot(more, None, now)
            heard.pop(more, None)
        else:
            now += number
        frame = picture.frame(now)
        assert min(lane.waiting for lane in frame.lanes) >= 0
        assert {name for name, at_ms in heard.items() if now - at_ms <= 5000} == {worker.id for worker in frame.workers}
        heard = {worker.id: heard[worker.id] for worker in frame.workers}
        assert high(frame).rate_60s_per_minute <= len(ended)


# Kills


def test_a_kill_is_settled_when_each_of_its_open_tasks_has_ended() -> None:
    kill = Kill("worker-1", 7, NOW, frozenset({"t-1", "t-2"}), running=1, again_before=2)
    assert "worker-1 killed (SIGKILL): 1 running tasks go to its successor" == kill.begun()
    assert not kill.settle({"t-2", "t-9"}, NOW + 1000)
    assert 1 == kill.lost({"t-2", "t-9"})
    kill.result(result(timing=Timing(dispatched_at_ms=NOW - 1)), NOW + 100)  # it was under way already
    assert kill.answered_ms is None
    kill.result(result(timing=Timing(dispatched_at_ms=NOW + 1)), NOW + 4000)
    kill.back_ms = NOW + 3100
    assert kill.settle({"t-9"}, NOW + 5000)
    assert not kill.settle({"t-9"}, NOW + 6000)
    assert "2 tasks were open when worker-1 was killed: 0 lost, 1 run again" == kill.settled(3)
    assert (
        "worker-1 was killed: back after 3.10 s, first new answer after 4.00 s; of 2 open tasks 0 were lost."
        == kill.recap({"t-9"})
    )


# Marks


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (shortened("worker-7f9c", 20), "worker-7f9c"),
        (shortened("triage-worker-7f9c", 9), "tria…7f9c"),
        (shortened("abc", 1), "…"),
        (bar(0.0, 3), "   "),
        (bar(0.001, 3), "▏  "),
        (bar(0.5, 3), "█▌ "),
        (bar(7.0, 3), "███"),
        (curve([0, 0, 1, 8], 4), "  ▁█"),
        (curve([1, 1, 2, 0], 2), "██"),
        (curve([5], 3), "  █"),
        (blocks(3, 1, 8), "■□□"),
        (blocks(40, 7, 8), "7/40"),
        (seconds(None), "–"),
        (seconds(0.214), "0.21 s"),
        (seconds(12.34), "12.3 s"),
        (seconds(999.4), "999 s"),
        (seconds(4000), "67 min"),
        (seconds(86_400), "24 h"),
        (memory(int(41.2 * GIB), 80 * GIB), "41.2/80 GiB"),
        (memory(None, 80 * GIB), "?/80 GiB"),
    ],
)
def test_a_mark_says_it_in_its_width(made: str, expected: str) -> None:
    assert expected == made


def test_a_quantile_is_one_of_the_values() -> None:
    assert [None, 3.0, 4.0] == [quantile([], 0.5), quantile([4.0, 1.0, 3.0, 2.0], 0.5), quantile([4.0, 1.0], 0.95)]
