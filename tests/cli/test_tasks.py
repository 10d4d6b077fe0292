"""`triage submit`, `result`, `status`, `explain`, `cancel` and `watch`: what they take, what they print, how they end."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from cli.main import main
from cli.results import Watched, line, show, show_cancelled
from schemas.codec import encode
from schemas.ids import home
from schemas.result import ErrorType, Outcome, Output, Result, ResultError, Source, Timing
from schemas.topics import Lane, TopicNames
from streams.settings import KafkaSettings
from tests.support.kafka import fresh_name
from wire.topics import apply

ROOT = Path(__file__).parents[2]
PARTITIONS = 3

DONE = Result(
    task_id="ward7-1",
    tenant="ward7",
    outcome=Outcome.COMPLETED,
    priority=Lane.HIGH,
    source=Source("triage.requests.high", 0, 1),
    model="tiny",
    backend="llama-1",
    output=Output("A fine day.", "stop"),
    timing=Timing(queue_ms=3.1, inference_ms=210.4),
)
LATE = replace(
    DONE,
    outcome=Outcome.EXPIRED,
    model=None,
    backend=None,
    output=None,
    timing=Timing(),
    error=ResultError(ErrorType.DEADLINE_EXPIRED, "Too late."),
)


# What is shown


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (DONE, "ward7-1  high      completed  tiny/llama-1  214 ms"),
        (LATE, "ward7-1  high      expired    -  -"),
        (replace(DONE, cached=True, backend=None), "ward7-1  high      completed  cache  214 ms"),
    ],
)
def test_a_watched_result_is_one_line(result: Result, shown: str) -> None:
    assert shown == line(result)


def test_a_watched_task_is_shown_once_with_its_first_outcome() -> None:
    shown: list[Any] = []
    watched = Watched(shown.append, as_json=True)
    for partition, result in ((0, LATE), (0, DONE), (1, DONE)):
        watched(SimpleNamespace(key=b"ward7-1", partition=partition, offset=5, value=encode(result)))
    watched(SimpleNamespace(key=b"other", partition=0, offset=6, value=None))
    assert [encode(LATE), encode(DONE)] == shown
    Watched(shown.append, as_json=False)(SimpleNamespace(key=None, partition=0, offset=7, value=b"?"))
    assert "0/7: not a result of Triage's" == shown[-1]


@pytest.mark.parametrize(
    ("result", "code", "out", "err"),
    [
        (DONE, 0, "A fine day.\n", ""),
        (replace(DONE, output=Output(None, tool_calls=[{"id": "1"}])), 0, '[{"id":"1"}]\n', ""),
        (replace(DONE, output=Output(None, refusal="I will not.")), 0, "I will not.\n", ""),
        (LATE, 1, "", "triage: ward7-1 expired: deadline_expired: Too late.\n"),
    ],
)
def test_an_answer_goes_to_stdout_and_why_there_is_none_to_stderr(
    result: Result, code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code == show(encode(result), as_json=False)
    assert (out, err) == capsys.readouterr()
    assert code == show(encode(result), as_json=True)
    assert (json.loads(encode(result)), err) == (json.loads((told := capsys.readouterr()).out), told.err)


@pytest.mark.parametrize(
    ("outcome", "code", "out", "err"),
    [
        ("cancelled", 0, "ward7-1 is cancelled; it was queued\n", ""),
        ("expired", 1, "", "triage: ward7-1 is not cancelled: its outcome is expired\n"),
    ],
)
def test_what_a_cancellation_came_to_is_said(
    outcome: str, code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"task_id": "ward7-1", "status": outcome, "was": "queued"}
    assert code == show_cancelled(body, as_json=False)
    assert (out, err) == capsys.readouterr()
    assert code == show_cancelled(body, as_json=True)
    assert (body, err) == (json.loads((told := capsys.readouterr()).out), told.err)


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["submit", "x", "--priority", "urgent"], 2, "'urgent' is none of critical, high, normal, low."),
        (["submit", "x", "--priority", "Critcal"], 2, "; did you mean critical?"),
        (["submit", "x", "--deadline", "soon"], 2, "'soon' is no duration such as 500ms, 30s or 5m."),
        (["submit", "x", "--deadline", "0s"], 2, "must be more than nothing and at most 71h"),
        (["submit", "x", "--deadline", "72h"], 2, "must be more than nothing and at most 71h"),
        (["submit", "x", "--max-tokens", "0"], 2, "--max-tokens"),
        (["submit", "x", "--tenant", ""], 2, "tenant: String should have at least 1 character"),
        (["submit", "x" * (1 << 20)], 2, "at most 1048576 are taken"),
        (["submit", "x", "--gateway", "localhost:8400"], 2, "expected a URL such as http://127.0.0.1:8400"),
        (["submit", "x", "--gateway", "http://h", "--tenant", "t"], 2, "knows whose the request is from who calls"),
        (["status", "a", "--gateway", "http://h", "--partition", "1"], 2, "a gateway looks on every partition"),
        (["watch", "--gateway", "http://h"], 2, "a gateway has no route for everybody's results"),
        (["status", "no id"], 4, "That is no task_id"),
        (["cancel", "a/b", "--gateway", "http://h"], 4, "That is no task_id"),
        (["result", "no id"], 4, "That is no task_id"),
        (["explain", "no id"], 4, "That is no task_id"),
        (["explain", "a", "--gateway", "http://h", "--partition", "1"], 2, "a gateway looks on every partition"),
        (["submit"], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code == main(arguments)
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments", [["submit", "x"], ["result", "a"], ["status", "a"], ["explain", "a"], ["cancel", "a"], ["watch"]]
)
def test_no_broker_is_exit_code_3_and_says_what_to_check(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wire.reading.CONNECT_S", 0.2)
    monkeypatch.setenv("TRIAGE_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    assert 3 == main(arguments)
    assert "check that the brokers run and that kafka.bootstrap is right" in capsys.readouterr().err


def test_a_broker_that_is_away_is_given_up_within_five_seconds() -> None:
    from wire.reading import CONNECT_S

    assert CONNECT_S <= 4


# On a real broker


@dataclass
class Cluster:
    """Topics under a fresh prefix, and the environment that names them; the partition count is for the verbs to find."""

    kafka: KafkaSettings

    @property
    def names(self) -> TopicNames:
        return self.kafka.names

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ALLOW_INSECURE_DEV": "true",
            "TRIAGE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "TRIAGE_KAFKA__PREFIX": self.kafka.prefix,
            "TRIAGE_KAFKA__REPLICATION": "1",
        }

    async def put(self, topic: str, partition: int, key: str, value: bytes) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap) as producer:
            await producer.send_and_wait(topic, key=key.encode(), value=value, partition=partition)

    async def next_request(self, lane: Lane) -> Any:
        """Return the first request on a lane; waits for it."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap)
        async with consumer:
            tps = [TopicPartition(self.names.requests(lane), number) for number in range(PARTITIONS)]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            return await consumer.getone()


@pytest.fixture
def cluster(kafka: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(KafkaSettings(bootstrap=kafka, prefix=fresh_name("t"), partitions=PARTITIONS, replication=1))
    asyncio.run(apply(made.kafka))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.mark.kafka
def test_a_request_lies_on_its_lane_at_home_with_what_was_asked(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin"))
    options = "--priority High --tenant ward7 --model tiny --agent-type triage --max-tokens 7 --deadline 1.5s"
    assert 0 == main(["submit", "-", *options.split(), "--json"])
    place = json.loads(capsys.readouterr().out)
    record = asyncio.run(cluster.next_request(Lane.HIGH))
    assert {
        "task_id": record.key.decode(),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
    } == place
    assert home(place["task_id"], PARTITIONS) == record.partition
    request = orjson.loads(record.value)
    assert 1500 == request.pop("deadline_at_ms") - request.pop("created_at_ms")
    assert {
        "task_id": place["task_id"],
        "tenant": "ward7",
        "model": "tiny",
        "agent_type": "triage",
        "parameters": {"max_tokens": 7},
        "messages": [{"role": "user", "content": "from stdin"}],
    } == request


@pytest.mark.kafka
@pytest.mark.parametrize(("result", "code"), [(DONE, 0), (LATE, 1)])
def test_waiting_prints_the_first_outcome(
    result: Result, code: int, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> int:
        waiting = asyncio.create_task(asyncio.to_thread(main, ["submit", "hello", "--wait"]))
        record = await cluster.next_request(Lane.NORMAL)
        task_id = record.key.decode()
        for each in ("somebody else's", task_id, task_id):
            outcome = replace(result if each == task_id else DONE, task_id=each)
            await cluster.put(cluster.names.results, record.partition, each, encode(outcome))
        return await waiting

    assert code == asyncio.run(scene())
    told = capsys.readouterr()
    assert ("A fine day.\n" if code == 0 else "") == told.out
    assert "waiting for its answer" in told.err
    assert ("expired: deadline_expired" in told.err) == (code == 1)


@pytest.mark.kafka
def test_a_result_is_found_wherever_it_is_and_a_task_without_one_is_told_apart(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def triage(*arguments: str) -> tuple[int, str, str]:
        code = main(["result", *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    async def given() -> None:
        away = (home("ward7-1", PARTITIONS) + 1) % PARTITIONS
        await cluster.put(cluster.names.results, away, "ward7-1", encode(DONE))
        await cluster.put(
            cluster.names.results, home("late", PARTITIONS), "late", encode(replace(LATE, task_id="late"))
        )
        request = orjson.dumps({"task_id": "waits", "messages": [{"role": "user", "content": "x"}]})
        await cluster.put(cluster.names.requests(Lane.LOW), home("waits", PARTITIONS), "waits", request)

    assert (4, "", "triage: No task waits is known on any partition.\n") == triage("waits")
    asyncio.run(given())
    assert (0, "A fine day.\n", "") == triage("ward7-1")
    code, out, _ = triage("ward7-1", "--json")
    assert (0, json.loads(encode(DONE))) == (code, json.loads(out))
    home_of_it = str(home("ward7-1", PARTITIONS))
    assert 4 == triage("ward7-1", "--partition", home_of_it)[0]
    assert (1, "", "triage: late expired: deadline_expired: Too late.\n") == triage("late")
    assert (1, "", "triage: waits is unfinished (queued): it waits on its lane.\n") == triage("waits")
    assert 1 == triage("ward7-1", "--partition", "3")[0]


@pytest.mark.kafka
def test_watch_prints_results_as_they_arrive_until_it_is_told_to_stop(cluster: Cluster) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "cli", "watch"],
        cwd=ROOT,
        env={**os.environ, **cluster.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout
        shown = asyncio.run(_until_shown(cluster, watching.stdout))
        assert "ward7-1  high      completed  tiny/llama-1  214 ms\n" == shown
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
        assert (0, "") == (watching.returncode, errors)
    finally:
        watching.kill()
        watching.communicate()


async def _until_shown(cluster: Cluster, stdout: Any) -> str:
    """Write the result, under one id after the other, until the first line comes: when the child has begun to watch, it does not say."""
    first = asyncio.create_task(asyncio.to_thread(stdout.readline))
    number = 0
    while not first.done():
        number += 1
        await cluster.put(cluster.names.results, number % PARTITIONS, f"ward7-{number}", encode(DONE))
        await asyncio.wait([first], timeout=0.2)
    return str(await first)
