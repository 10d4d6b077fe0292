"""`triage health`: how the parts are judged and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cli.main import main
from cli.parts import Heard, Seen, is_in_doubt, lines, picture
from schemas.codec import encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.progress import BackendStatus, WorkerSnapshot

NOW_MS = 1_795_420_000_000
UP = BackendStatus("llama-1", "llamacpp", True, 1, 4, ["tiny"])
DOWN = replace(UP, up=False, in_flight=0, reason="connection refused")
CARD = GPUMetrics(GpuId("GPU-1", 0, "card", "box"), GpuSource.NVML, NOW_MS)


def snapshot(*backends: BackendStatus, worker: str = "w-1", age_ms: int = 1000) -> Heard:
    made = WorkerSnapshot(worker, "box", 1, NOW_MS - age_ms, backends=list(backends))
    return Heard(worker, encode(made), NOW_MS - age_ms)


def card(sample: GPUMetrics = CARD, age_ms: int = 500) -> Heard:
    return Heard(sample.gpu.uuid, encode(sample), NOW_MS - age_ms)


SEEN = Seen(NOW_MS, brokers=1, topics=17, differences=[], workers=[snapshot(UP)], gpus=[card()])


def seen_as(seen: Seen, insecure: list[str] | None = None) -> dict[str, Any]:
    return picture(seen, bootstrap="kafka:9092", stale_after_s=5.0, insecure=insecure)


def test_every_part_has_a_line() -> None:
    gateway = Heard("gateway/g-1", encode(WorkerSnapshot("gateway/g-1", "box", 2, NOW_MS)), NOW_MS - 4000)
    gone = Heard("gateway/g-2", None, NOW_MS)
    body = seen_as(replace(SEEN, workers=[*SEEN.workers, gateway, gone]), ["kafka.replication = 1 loses"])
    assert ("healthy", [], 1) == (body["status"], body["reasons"], body["workers"])
    assert [
        "kafka     ok     reachable at kafka:9092, 1 broker",
        "topics    ok     17 match the catalogue",
        "workers   ok     1 heard of in the last 5 s",
        "backends  ok     llama-1 is up, 1 of 4 in flight",
        "gpus      ok     GPU-1 on box seen 0.5 s ago",
        "gateways  -      heard of: g-1 4 s ago",
        "settings  -      allow_insecure_dev is on; kafka.replication = 1 loses",
    ] == lines(body)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"differences": ["triage.x: topic is missing", "b"]},
            "topics    wrong  2 differences from the catalogue, first triage.x: topic is missing",
        ),
        ({"workers": [snapshot(UP, age_ms=6000)]}, "workers   wrong  none heard of in the last 5 s"),
        ({"workers": [Heard("w-1", None, NOW_MS)]}, "workers   wrong  none heard of in the last 5 s"),
        ({"workers": [snapshot()]}, "backends  wrong  no worker has one"),
        (
            {"workers": [snapshot(DOWN)]},
            "backends  wrong  llama-1 is down (connection refused), 0 of 4 in flight",
        ),
        ({"gpus": [card(age_ms=5100)]}, "gpus      wrong  GPU-1 on box stale 5.1 s ago"),
        ({"gpus": [card(replace(CARD, lost=True))]}, "gpus      wrong  GPU-1 on box lost 0.5 s ago"),
    ],
)
def test_a_part_that_is_wrong_is_a_reason(changes: dict[str, Any], line: str) -> None:
    body = seen_as(replace(SEEN, **changes))
    wrong = [each for each in lines(body) if " wrong " in each]
    assert line in wrong[0]
    assert ("degraded", 1, 1) == (body["status"], len(wrong), len(body["reasons"]))


def test_a_backend_is_up_when_one_worker_can_use_it_and_gpus_are_not_needed() -> None:
    workers = [snapshot(DOWN), snapshot(UP, worker="w-2")]
    body = seen_as(replace(SEEN, workers=workers, gpus=[]))
    assert "healthy" == body["status"]
    assert "backends  ok     llama-1 is up, 1 of 8 in flight" in lines(body)
    assert "gpus      ok     none reports: it works without" in lines(body)


def test_what_nobody_can_tell_is_no_fault_of_its_own() -> None:
    body = seen_as(replace(SEEN, workers=[]))
    assert ["workers: none heard of in the last 5 s"] == body["reasons"]
    assert "backends  -      not known: no worker tells" in lines(body)


def test_a_gateway_s_picture_has_its_reasons_in_front() -> None:
    body = {
        "gateway": "http://g",
        "status": "unhealthy",
        "reasons": ["Kafka does not answer"],
        "kafka": "unreachable",
        "workers": 0,
        "backends": None,
        "gpus": None,
    }
    assert [
        "gateway   wrong  http://g is unhealthy; Kafka does not answer",
        "kafka     wrong  unreachable",
        "workers   wrong  none heard of in the last 5 s",
        "backends  -      not known: no worker tells",
        "gpus      -      not known",
    ] == lines(body)


@pytest.mark.parametrize(
    ("newest_ms", "is_doubtful"),
    [
        (None, False),  # nobody has written: there is nobody to wait for
        (NOW_MS - 5000, False),
        (NOW_MS - 5001, True),
        (NOW_MS + 1000, False),
        (NOW_MS + 1001, True),
    ],
)
def test_a_clock_is_in_doubt_when_no_record_seems_recent(newest_ms: int | None, is_doubtful: bool) -> None:
    assert is_doubtful == is_in_doubt(NOW_MS, newest_ms)


def test_no_broker_is_exit_code_3_and_an_object_for_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wire.topics._CONNECT_S", 0.2)
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    assert 3 == main(["health", "--json"])
    told = capsys.readouterr()
    assert "check that the brokers run and that kafka.bootstrap is right" in told.err
    body = json.loads(told.out)
    assert ("unhealthy", f"triage: {body['reasons'][0]}\n") == (body["status"], told.err)
