"""What the logs of a real run hold is copied so that it can be judged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.topics import Lane
from tests.faults.checker import judge
from tests.faults.history import Recorder, digest, dump_commits, dump_topics, read_history
from tests.support.scripted import ScriptedServer, expected_answer
from tests.support.stack import Stack, first_results, request

pytestmark = pytest.mark.kafka
TASKS = 60


async def test_a_run_without_faults_passes_and_every_task_of_it_is_seen(kafka: str, tmp_path: Path) -> None:
    history = tmp_path / "history"
    async with (
        ScriptedServer() as server,
        Stack(kafka, tmp_path, [("openai", server.url)]) as stack,
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
    ):
        worker = await stack.start_worker()
        with Recorder(history, "client-1") as client:
            await asyncio.gather(*(_submit(stack, producer, client, number, server.nonce) for number in range(TASKS)))
            for task, row in first_results(await reader.until(TASKS)).items():
                row.pop("_record")
                client.write("read", task=task, status=row["outcome"], digest=digest(row), tenant=row["tenant"])
            assert stack.end(worker) == 0
            client.write("finished")
        await dump_topics(kafka, stack.names, history, nonce_of=lambda prompt: expected_answer(prompt, server.nonce))
        await dump_commits(kafka, stack.names, history)
    verdict = judge(history)
    assert verdict.passed, verdict.table()
    assert {"completed": TASKS - 1, "failed": 1} == verdict.outcomes
    assert 1 == verdict.counts["dead letters"]
    assert 0 < verdict.counts["commits"]
    assert TASKS == _committed(history, stack.names.requests(Lane.HIGH))


async def test_commits_are_copied_from_kafkas_own_log_of_them(kafka: str, tmp_path: Path) -> None:
    async with Stack(kafka, tmp_path, []) as stack:
        tp = TopicPartition(stack.names.requests(Lane.LOW), 1)
        options = {"group_id": stack.names.group("low"), "enable_auto_commit": False}
        consumer = AIOKafkaConsumer(tp.topic, bootstrap_servers=kafka, **options)
        async with consumer, stack.producer() as producer:
            while tp not in consumer.assignment():
                await consumer.getmany(timeout_ms=50)
            await producer.send_and_wait(tp.topic, b"{}", partition=1)
            for offset in (1, 0):
                await consumer.commit({tp: offset})
        await dump_commits(kafka, stack.names, tmp_path)
    lines = [line for line in read_history(tmp_path) if line["what"] in ("commit", "generation")]
    at = {"group": stack.names.group("low"), "topic": tp.topic, "partition": 1}
    commits = [line for line in lines if line["what"] == "commit" and line["partition"] == 1]
    assert [{"what": "commit", **at, "offset": offset} for offset in (1, 0)] == [
        {name: value for name, value in line.items() if name != "at_ms"} for line in commits
    ]
    assert 1 in [line["generation"] for line in lines if line["what"] == "generation"]


async def _submit(stack: Stack, producer: AIOKafkaProducer, client: Recorder, number: int, nonce: str) -> None:
    """Send a request as a producer does; number 0 cannot be read, and has no id but its place."""
    task, prompt = f"task-{number}", f"prompt {number}"
    value = request(prompt, task_id=task, tenant="ward7", cache={"mode": "bypass"}) if number else b"not JSON"
    told = {"task": task, "nonce": expected_answer(prompt, nonce), "tenant": "ward7"} if number else {"nonce": ""}
    client.write("submitted", **told)
    sent = await producer.send_and_wait(stack.names.requests(Lane.HIGH), value)
    place = {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset}
    client.write("acknowledged", **({"task": task} if number else {}), **place)


def _committed(folder: Path, topic: str) -> int:
    commits = [line for line in read_history(folder) if line["what"] == "commit" and line["topic"] == topic]
    return sum({line["partition"]: line["offset"] for line in commits}.values())
