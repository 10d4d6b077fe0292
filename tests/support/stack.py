"""A worker as a child process on the suite's Kafka, and a plain producer and consumer around it: what a user has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TextIO

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from cli.embedded.processes import die_with_parent
from schemas.topics import TopicNames
from streams.settings import KafkaSettings
from tests.support.kafka import fresh_name
from wire.topics import apply

PARTITIONS = 3
SESSION_S = 1.5


@dataclass
class Stack:
    """Topics under a fresh prefix, and workers that serve them. `extra` is the rest of the settings file."""

    bootstrap: str
    folder: Path
    backends: Sequence[tuple[str, str]]
    backend_extra: str = ""
    creates_topics: bool = True
    partitions: int = PARTITIONS
    slots: int = 8
    session_s: float = SESSION_S
    extra: str = ""
    prefix: str = field(default_factory=lambda: fresh_name("t"))
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def names(self) -> TopicNames:
        return TopicNames(self.prefix)

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap, prefix=self.prefix, partitions=self.partitions, replication=1)

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.creates_topics:
            await apply(self.kafka)
        self.config.write_text(self.settings())
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            if worker.stdout:
                worker.stdout.close()

    @property
    def config(self) -> Path:
        return self.folder / "triage.toml"

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def settings(self) -> str:
        rows = [
            "allow_insecure_dev = true",
            "[kafka]",
            f'bootstrap = "{self.bootstrap}"',
            f'prefix = "{self.prefix}"',
            f"partitions = {self.partitions}",
            "replication = 1",
            "[metrics]",
            "port = 0",
        ]
        for number, (kind, url) in enumerate(self.backends, 1):
            rows += [
                "[[backends]]",
                f'name = "b{number}"',
                f'kind = "{kind}"',
                f'url = "{url}"',
                f"max_concurrency = {self.slots}",
                self.backend_extra,
            ]
        return "\n".join([*rows, self.extra])

    async def start_worker(self, *options: str) -> subprocess.Popen[str]:
        """Start a worker and wait for its ready line."""
        worker = self.spawn_worker(*options)
        assert worker.stdout is not None
        line = await asyncio.to_thread(worker.stdout.readline)
        assert line, f"the worker ended before it was ready:\n{self.log.read_text()[-4000:]}"
        assert json.loads(line)["event"] == "ready"
        return worker

    def spawn_worker(
        self, *options: str, program: str = "cli", environment: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[str]:
        """Start a worker and do not wait. `program` is a module that is run as `cli` is; `environment` is added to this one."""
        with self.log.open("a") as log:
            worker = self._spawn(log, program, environment, *options)
        self.workers.append(worker)
        return worker

    def run(self, *verb: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end, with this stack's settings."""
        command = [sys.executable, "-m", "cli", *verb, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def _spawn(self, log: TextIO, program: str, environment: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                program,
                "worker",
                "--json",
                "--config",
                str(self.config),
                "--session-s",
                str(self.session_s),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # What a killed worker leaves behind lies with the stack.
            env={**os.environ, "TRIAGE_DEBUG": "1", "TMPDIR": str(self.folder), **environment},
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only sets a flag of the child
        )

    def end(self, worker: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM, timeout_s: float = 35) -> int:
        worker.send_signal(number)
        return worker.wait(timeout_s)

    def producer(self, **options: Any) -> AIOKafkaProducer:
        return AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", **options)

    def reader(self, topic: str, *, partitions: int | None = None) -> Reader:
        return Reader(self.bootstrap, topic, partitions or self.partitions)


class Reader:
    """Reads a topic's partitions from their beginning, as any consumer would."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
        self._tps = [TopicPartition(topic, number) for number in range(partitions)]
        self.records: list[Any] = []

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(self._tps)
        await self._consumer.seek_to_beginning(*self._tps)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def until(self, count: int, timeout_s: float = 30) -> list[Any]:
        """Return all records once there are `count` different keys."""
        async with asyncio.timeout(timeout_s):
            while len({record.key for record in self.records}) < count:
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    self.records += records
        return self.records

    async def until_one(self, condition: Callable[[Any], bool], timeout_s: float = 30) -> Any:
        """Return the first record that a condition holds for, of those that are there or come."""
        async with asyncio.timeout(timeout_s):
            while True:
                for record in self.records:
                    if condition(record):
                        return record
                self.records = [
                    record for rows in (await self._consumer.getmany(timeout_ms=200)).values() for record in rows
                ]

    async def to_end(self) -> list[Any]:
        """Return all records there are now."""
        ends = await self._consumer.end_offsets(self._tps)
        while any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            for records in (await self._consumer.getmany(timeout_ms=200)).values():
                self.records += records
        return self.records


def request(text: str = "hello", **fields: object) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": text}], **fields})


def first_results(records: Sequence[Any]) -> Mapping[str, dict[str, Any]]:
    """Return the outcome of each task: the first of its records in offset order per partition."""
    found: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: (r.partition, r.offset)):
        found.setdefault(record.key.decode(), {**orjson.loads(record.value), "_record": record})
    return found
