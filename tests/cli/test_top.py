"""`triage top`: against a real broker, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textual", reason="the extra `dev`")

from aiokafka import AIOKafkaProducer

from cli.main import main
from cli.picture.frame import Frame
from schemas.codec import encode
from schemas.progress import BackendStatus, LaneState, WorkerSnapshot
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane
from streams.settings import KafkaSettings
from tests.support.kafka import fresh_name
from wire.topics import apply

PARTITIONS = 2
COMMAND = [sys.executable, "-m", "cli", "top"]


async def cluster(bootstrap: str) -> KafkaSettings:
    """Make topics under a fresh prefix, with five requests, a worker that has fetched two of them, and a result sent twice."""
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=fresh_name("top"), partitions=PARTITIONS, replication=1)
    await apply(kafka)
    lane = kafka.names.requests(Lane.HIGH)
    snapshot = WorkerSnapshot(
        worker="by-hand",
        host="here",
        pid=7,
        at_ms=1,
        lanes={"high": LaneState(waiting=1, in_flight=1, oldest_wait_s=2.0, done_per_minute=0)},
        fetched_through={f"{lane}/0": 1},
        backends=[BackendStatus("llama-1", "llamacpp", True, 1, 4, ["tiny"])],
    )
    result = Result("t-1", "default", Outcome.COMPLETED, Lane.HIGH, Source(lane, 0, 0), attempts=1)
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for _ in range(5):
            await producer.send_and_wait(lane, b"{}", partition=0)
        for _ in range(2):
            await producer.send_and_wait(kafka.names.results, encode(result), key=b"t-1", partition=0)
        await producer.send_and_wait(kafka.names.workers, encode(snapshot), key=b"by-hand", partition=0)
        await producer.send_and_wait(kafka.names.workers, encode(snapshot), key=b"gateway/x", partition=0)
    return kafka


def settings(kafka: KafkaSettings) -> dict[str, str]:
    return {
        **os.environ,
        "ALLOW_INSECURE_DEV": "true",
        "TRIAGE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "TRIAGE_KAFKA__PREFIX": kafka.prefix,
        "TRIAGE_KAFKA__PARTITIONS": str(PARTITIONS),
        "TRIAGE_KAFKA__REPLICATION": "1",
    }


@pytest.mark.kafka
def test_one_frame_as_json_says_what_the_topics_say(kafka: str, tmp_path: Path) -> None:
    made = asyncio.run(cluster(kafka))
    command = [*COMMAND, "--once", "--json"]
    done = subprocess.run(
        command, env=settings(made), cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    frame: dict[str, Any] = json.loads(done.stdout)
    high = next(lane for lane in frame["lanes"] if lane["lane"] == "high")
    # Three requests are not fetched, one waits in the worker; of the two results only the first counts.
    assert (4, 1, 1, {"completed": 1}) == (
        high["waiting"],
        high["in_flight"],
        high["rate_60s_per_minute"],
        high["outcomes"],
    )
    assert ["by-hand"] == [worker["id"] for worker in frame["workers"]]
    assert [("llama-1", 1, 4)] == [(each["name"], each["in_flight"], each["limit"]) for each in frame["backends"]]
    assert set(Frame.__dataclass_fields__) == frame.keys()


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_pipe_it_prints_lines_until_a_signal_and_ends_with_0(kafka: str, tmp_path: Path, number: int) -> None:
    made = asyncio.run(cluster(kafka))
    pipe = subprocess.PIPE
    with subprocess.Popen(COMMAND, env=settings(made), cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("UTC")
        assert "4+1" in running.stdout.readline()
        running.send_signal(number)
        _, said = running.communicate(timeout=10)
    assert (0, "") == (running.returncode, said)


@pytest.mark.kafka
def test_without_the_topics_it_says_how_to_make_them(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", kafka)
    monkeypatch.setenv("TRIAGE_KAFKA__PREFIX", fresh_name("none"))
    assert 1 == main(["top", "--once"])
    assert "`triage topics apply` creates it" in capsys.readouterr().err


def test_a_broker_that_is_away_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as bound:  # bound and not listening: nobody else answers there
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", f"127.0.0.1:{bound.getsockname()[1]}")
        began_s = time.monotonic()
        assert 3 == main(["top"])
    assert time.monotonic() - began_s < 10  # four seconds and what a busy machine adds
    assert "check that the brokers run" in capsys.readouterr().err


def test_without_the_extra_it_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cli.top.find_spec", lambda _name: None)
    assert 1 == main(["top", "--once"])
    assert "pip install 'triage-kafka[dev]'" in capsys.readouterr().err
