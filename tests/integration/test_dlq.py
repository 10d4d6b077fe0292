"""Dead letters from their failure to their end, on a real Kafka and a real worker."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import orjson
import pytest

from cli.deadletters.letters import UNFINISHED
from schemas.audit import AuditRecord, Phase
from schemas.codec import decode, encode
from schemas.ids import made_id
from schemas.result import ErrorType, ResultError, Source
from schemas.topics import Lane
from streams.outcome import rejected, result_headers
from tests.support.scripted import ScriptedServer, status
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka


async def dlq(stack: Stack, *verb: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(stack.run, "dlq", *verb)
    assert code == done.returncode, done.stderr
    return done


async def told(stack: Stack, *verb: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await dlq(stack, *verb, "--json", code=code)).stdout)
    return found


async def test_a_failed_task_is_listed_replayed_once_and_purged(stack: Stack, server: ScriptedServer) -> None:
    server.script.append(status(400, "no"))
    await stack.start_worker()
    fields = {"task_id": "ward7-1", "tenant": "ward7", "metadata": {"bed": "3"}, "parameters": {"temperature": 0.5}}
    headers = [("traceparent", b"00-1"), ("triage.batch", b"b;0;1")]
    topic = stack.names.requests(Lane.HIGH)
    async with stack.producer() as producer, stack.reader(stack.names.results) as results:
        sent = await producer.send_and_wait(topic, request("secret", **fields), key=b"k", partition=1, headers=headers)
        await producer.send_and_wait(topic, b"{", partition=2)
        await results.until(2)
        unreadable = made_id(Lane.HIGH, 2, 0)
        rows = {row["task_id"]: row for row in (await told(stack, "list"))["dead_letters"]}
        assert {"ward7-1", unreadable} == set(rows)
        row = rows["ward7-1"]
        assert (1, 0, "ward7", "high", 1, "failed") == (
            row["partition"],
            row["offset"],
            row["tenant"],
            row["lane"],
            row["attempts"],
            row["outcome"],
        )
        assert ("backend_rejected", {"topic": topic, "partition": 1, "offset": sent.offset}) == (
            row["error"]["type"],
            row["source"],
        )
        assert {"task_id": "ward7-1:replay.1.0", "status": None} == row["replay"]
        shown = await dlq(stack, "show", "1/0")
        assert ("secret" in shown.stdout, "traceparent: 00-1" in shown.stdout) == (False, True)
        assert request("secret", **fields).decode() == (await dlq(stack, "show", "ward7-1", "--payload")).stdout

        replayed = await told(stack, "replay", "--yes", code=1)
        assert ["ward7-1:replay.1.0"] == [each["replay"]["task_id"] for each in replayed["replayed"]]
        assert [("the value is not JSON in UTF-8", unreadable)] == [
            (each["because"], each["task_id"]) for each in replayed["refused"]
        ]
        outcomes = first_results(await results.until(3))
        assert ("failed", "completed") == (
            outcomes["ward7-1"]["outcome"],
            outcomes["ward7-1:replay.1.0"]["outcome"],
        )
        result = outcomes["ward7-1:replay.1.0"]
        assert ("ward7", "high", {"bed": "3", "replay_of": "ward7-1"}) == (
            result["tenant"],
            result["priority"],
            result["metadata"],
        )
        assert (1, b"00-1", False) == (
            result["_record"].partition,
            dict(result["_record"].headers)["traceparent"],
            "triage.batch" in dict(result["_record"].headers),
        )
        assert 0.5 == server.bodies[-1]["temperature"]
        async with stack.reader(topic) as lane:
            (again,) = [each for each in await lane.to_end() if each.offset > 0]
        assert (b"k", 1, (("traceparent", b"00-1"),)) == (again.key, again.partition, again.headers)

        repeated = await dlq(stack, "replay", "1/0")
        assert "1/0  ward7-1  already replayed: completed as ward7-1:replay.1.0" in repeated.stdout.splitlines()
        by_id = await asyncio.to_thread(stack.run, "status", "ward7-1:replay.1.0")
        assert by_id.stdout.startswith("ward7-1:replay.1.0 is completed")
        listed = (await told(stack, "list", "--reason", "backend_rejected", "--tenant", "ward7", "--lane", "high"))[
            "dead_letters"
        ]
        assert [("failed", "completed")] == [(each["outcome"], each["replay"]["status"]) for each in listed]
        assert 3 == len(await results.to_end())

        purged = await told(stack, "purge", "--tenant", "ward7", "--yes")
        assert ([(1, 0)], {"1": 1}) == (
            [(each["partition"], each["offset"]) for each in purged["purged"]],
            purged["before"],
        )
        left = (await told(stack, "list"))["dead_letters"]
        assert [unreadable] == [each["task_id"] for each in left]
        assert "There is no dead letter 1/0." in (await dlq(stack, "show", "1/0", code=4)).stderr
    async with stack.reader(stack.names.audit, partitions=1) as audit:
        records = [decode(AuditRecord, each.value) for each in await audit.to_end()]
    assert [
        ("dlq.replay", Phase.BEGAN, {"chosen": 2}),
        ("dlq.replay", Phase.ENDED, {"replayed": 1, "refused": 1}),
        ("dlq.purge", Phase.BEGAN, {"chosen": 1}),
        ("dlq.purge", Phase.ENDED, {"removed": 1}),
    ] == [(each.action, each.phase, each.counts) for each in records]
    assert [{"1": (0, 0), "2": (0, 0)}, {"1": (0, 0)}] == [each.offsets for each in records[:2]]
    assert {"tenant": "ward7"} == records[2].filters


async def dead(stack: Stack, *task_ids: str, with_results: bool = True) -> None:
    """Write dead letters, and their results, as a worker does."""
    lane = stack.names.requests(Lane.LOW)
    error = ResultError(ErrorType.BACKEND_TIMEOUT, "too slow")
    async with stack.producer() as producer:
        for offset, task_id in enumerate(task_ids):
            source = Source(lane, 0, offset)
            marks = {"task_id": task_id, "lane": "low", "source": str(source), "error.type": "backend_timeout"}
            headers = [(f"triage.{name}", text.encode()) for name, text in marks.items()]
            await producer.send_and_wait(stack.names.dead_letters, request("x"), partition=0, headers=headers)
            if with_results:
                result = rejected(task_id, "ward7", Lane.LOW, source, error, appended_ms=1, now_ms=2)
                await producer.send_and_wait(
                    stack.names.results,
                    encode(result),
                    key=task_id.encode(),
                    partition=0,
                    headers=result_headers(result, [], None),
                )


async def test_a_replay_that_waits_for_a_worker_is_not_sent_again(stack: Stack) -> None:
    await dead(stack, "a", "b")
    refused = await dlq(stack, "replay", code=2)
    assert "Replay 2 dead letters? Nobody is there to ask: say so with --yes." in " ".join(
        refused.stderr.replace("│", " ").split()
    )
    rehearsed = await told(stack, "replay", "--dry-run")
    assert (["a", "b"], True) == ([each["task_id"] for each in rehearsed["replayed"]], rehearsed["dry_run"])
    first = await dlq(stack, "replay", "--limit", "1", "--yes")
    assert "0/0  a  -> a:replay.0.0" == first.stdout.splitlines()[0]
    second = await told(stack, "replay", "--yes")
    assert ["b"] == [each["task_id"] for each in second["replayed"]]
    assert [{"task_id": "a:replay.0.0", "status": UNFINISHED}] == [each["replay"] for each in second["already"]]
    async with stack.reader(stack.names.requests(Lane.LOW)) as lane:
        sent = [orjson.loads(each.value)["task_id"] for each in await lane.to_end()]
    assert ["a:replay.0.0", "b:replay.0.1"] == sent


async def test_a_letter_without_a_result_is_neither_replayed_nor_purged(stack: Stack) -> None:
    await dead(stack, "a", with_results=False)
    why = "the result of its task is not written yet"
    assert [why] == [each["because"] for each in (await told(stack, "replay", "a"))["skipped"]]
    assert [why] == [each["because"] for each in (await told(stack, "purge", "--yes"))["kept"]]
    assert 1 == (await told(stack, "list"))["total"]
    assert 0 == len((await told(stack, "list", "--older-than", "1h"))["dead_letters"])


async def test_an_interrupted_replay_tells_how_far_it_came_and_is_on_record(stack: Stack) -> None:
    await dead(stack, "a", "b", "c")
    command = [sys.executable, "-m", "cli", "dlq", "replay", "--rate", "1/h", "--yes", "--config", str(stack.config)]
    with subprocess.Popen(  # noqa: ASYNC220 - starting it takes a moment, its output is waited for in a thread
        command, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert "0/0  a  -> a:replay.0.0\n" == await asyncio.to_thread(running.stdout.readline)
        running.send_signal(signal.SIGINT)
        rest = await asyncio.to_thread(running.stdout.read)
    assert (130, "1 replayed, 0 already replayed, 0 left alone, 0 refused; interrupted with 2 left\n") == (
        running.returncode,
        rest,
    )
    async with stack.reader(stack.names.audit, partitions=1) as audit:
        ended = decode(AuditRecord, (await audit.to_end())[-1].value)
    assert ("interrupted", {"replayed": 1, "refused": 0}, {"0": (0, 0)}) == (ended.error, ended.counts, ended.offsets)
