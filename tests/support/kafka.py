"""A real Kafka for tests: one broker for the whole run, fresh names per test, and `triage kafka run` as a child."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cli.embedded.kafka import KafkaCluster

FAST_GROUPS = {"group.min.session.timeout.ms": "1000"}
"""Stock Kafka refuses a group whose session is shorter than 6 s."""

FAST_FAILOVER = {
    **FAST_GROUPS,
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "replica.lag.time.max.ms": "5000",
}
"""A dead broker is noticed after 3 s instead of 9 s: for three brokers in tests of faults."""


@contextmanager
def shared_cluster() -> Iterator[str]:
    """Yield the bootstrap address of one broker for many tests: KAFKA_BOOTSTRAP if set, else an embedded one."""
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        yield given
        return
    with KafkaCluster(properties=FAST_GROUPS) as cluster:
        yield cluster.bootstrap


def fresh_name(what: str = "test") -> str:
    """Return a name that no other test has: tests share a broker and delete nothing."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


async def create_topic(
    bootstrap: str,
    name: str | None = None,
    *,
    partitions: int = 1,
    replicas: int = 1,
    config: Mapping[str, str] | None = None,
) -> str:
    """Create a topic, by default under a fresh name, and return its name."""
    name = name or fresh_name("topic")
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        reply = await admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=dict(config or {}))])
        # The client reports what failed in the reply only.
        failed = [(topic, code, detail) for topic, code, detail in reply.topic_errors if code]
        assert not failed, f"could not create topics: {failed}"
    finally:
        await admin.close()
    return name


async def list_topics(bootstrap: str) -> set[str]:
    """Return the names of all topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, *values: bytes, **options: Any) -> None:
    """Send values, each acknowledged by all in-sync replicas."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", **options) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(bootstrap: str, topic: str, count: int, **options: Any) -> list[bytes]:
    """Return the first `count` values of a topic; waits for them, the test's own time-out is the limit."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", **options)
    async with consumer:
        return [(await consumer.getone()).value for _ in range(count)]


class KafkaRun:
    """`triage kafka run --json` as a child process, ready when the block is entered and gone when it is left."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        self._command = [sys.executable, "-m", "cli.kafka", "run", "--json", *arguments]
        self._environment = {**os.environ, "TMPDIR": str(temporary)}  # what a kill leaves behind lies with the test

    def __enter__(self) -> KafkaRun:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self._command, env=self._environment, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"ended before it was ready: {self.process.communicate()[1]}"
        self.ready: dict[str, Any] = json.loads(line)
        self.jvms = [os.pidfd_open(pid) for pid in self.ready["pids"]]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for jvm in self.jvms:
            os.close(jvm)

    def jvms_end(self, timeout_s: float) -> bool:
        """Wait for every Java process to end and return whether all did."""
        return all(select.select([jvm], [], [], timeout_s)[0] for jvm in self.jvms)
