"""What snapshots and samples say together."""

from __future__ import annotations

import pytest

from gateway.fleet import BackendView, Fleet, GpuView
from schemas.codec import encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.progress import BackendStatus, LaneState, WorkerSnapshot
from schemas.topics import Lane


def snapshot(*backends: BackendStatus) -> bytes:
    return encode(WorkerSnapshot("w", "host", 1, 0, backends=list(backends)))


def backend(name: str = "b", *, up: bool = True, in_flight: int = 0, reason: str | None = None) -> BackendStatus:
    return BackendStatus(name, "vllm", up, in_flight, 4, ["tiny"], reason=reason)


def sample(uuid: str = "GPU-1", *, lost: bool = False) -> bytes:
    return encode(GPUMetrics(GpuId(uuid, 0, "card", "host"), GpuSource.NVML, 0, lost=lost))


def test_workers_are_counted_while_they_are_heard_of_and_gateways_are_not() -> None:
    fleet = Fleet()
    fleet.snapshot(b"w1", b"{}", 1_000)
    fleet.snapshot(b"w2", b"{}", 4_000)
    fleet.snapshot(b"gateway/g", b"{}", 4_000)
    assert (2, True) == (fleet.workers(5_000), fleet.is_fresh(5_000))
    assert (1, False) == (fleet.workers(6_500), fleet.is_fresh(6_500))
    fleet.snapshot(b"w2", None, 6_500)
    assert 0 == fleet.workers(6_500)


def test_a_snapshot_a_second_keeps_the_picture_fresh() -> None:
    fleet = Fleet()
    for second in range(10):
        fleet.snapshot(b"w", b"{}", second * 1_000)
        assert [True, True] == [fleet.is_fresh(second * 1_000 + late_ms) for late_ms in (0, 1_900)]


@pytest.mark.parametrize(
    ("waiting", "silent_ms", "expected"), [(0, 4_000, True), (0, 4_001, False), (1, 2_000, True), (1, 2_001, False)]
)
def test_the_word_of_a_worker_in_which_nothing_waits_holds_until_its_next(
    waiting: int, silent_ms: int, expected: bool
) -> None:
    fleet = Fleet()
    lanes = {lane.value: LaneState(waiting if lane is Lane.LOW else 0, 3, 0.0, 0) for lane in Lane}
    fleet.snapshot(b"w", encode(WorkerSnapshot("w", "host", 1, 0, lanes=lanes)), 1_000)
    assert expected == fleet.is_fresh(1_000 + silent_ms)


@pytest.mark.parametrize(
    ("of_one", "of_other", "expected"),
    [
        (backend(in_flight=1), backend(in_flight=2), BackendView("b", "vllm", True, 3, 8, None)),
        (backend(in_flight=1), backend(up=False, reason="refused"), BackendView("b", "vllm", True, 1, 8, None)),
        (backend(up=False, reason="refused"), backend(in_flight=1), BackendView("b", "vllm", True, 1, 8, None)),
        (backend(up=False), backend(up=False, reason="refused"), BackendView("b", "vllm", False, 0, 8, "refused")),
    ],
)
def test_a_backend_is_up_when_a_live_worker_sees_it_up(
    of_one: BackendStatus, of_other: BackendStatus, expected: BackendView
) -> None:
    fleet = Fleet()
    fleet.snapshot(b"w1", snapshot(of_one), 1_000)
    fleet.snapshot(b"w2", snapshot(of_other), 1_000)
    fleet.snapshot(b"old", snapshot(backend(in_flight=9)), 0)
    assert [expected] == fleet.backends(5_500)


def test_backends_come_by_name_and_a_worker_s_last_word_counts() -> None:
    fleet = Fleet()
    fleet.snapshot(b"w", snapshot(backend("gone")), 0)
    fleet.snapshot(b"w", snapshot(backend("b"), backend("a")), 1)
    assert ["a", "b"] == [row.name for row in fleet.backends(2)]


def test_a_snapshot_that_cannot_be_read_counts_as_a_worker_all_the_same() -> None:
    fleet = Fleet()
    fleet.snapshot(b"w", b"\xff", 0)
    fleet.snapshot(b"", b"{}", 0)
    fleet.snapshot(None, b"{}", 0)
    fleet.snapshot(b"w", b'{"lanes": [3]}', 0)
    fleet.snapshot(b"w", b'{"lanes": {"low": 3}}', 0)
    assert (1, []) == (fleet.workers(1), fleet.backends(1))


def test_a_gpu_gets_stale_and_an_hour_later_forgotten() -> None:
    fleet = Fleet(stale_after_s=5)
    fleet.sample(b"GPU-1", sample(), 1_000)
    assert [GpuView("GPU-1", "host", 5.0, False, False)] == fleet.gpus(6_000)
    assert [GpuView("GPU-1", "host", 5.001, True, False)] == fleet.gpus(6_001)
    assert [] == fleet.gpus(1_000 + 3_600_000)


def test_a_lost_gpu_is_told_and_one_that_was_taken_out_is_not() -> None:
    fleet = Fleet()
    fleet.sample(b"GPU-2", sample("GPU-2", lost=True), 0)
    fleet.sample(b"GPU-1", sample(), 0)
    fleet.sample(b"GPU-3", b"not json", 0)
    assert [("GPU-1", False), ("GPU-2", True)] == [(gpu.uuid, gpu.lost) for gpu in fleet.gpus(0)]
    fleet.sample(b"GPU-1", None, 0)
    assert ["GPU-2"] == [gpu.uuid for gpu in fleet.gpus(0)]
