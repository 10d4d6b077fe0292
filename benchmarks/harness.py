"""What the benchmarks share: one broker, one stub server, contenders as child processes, and figures from the results log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from cli.embedded.kafka import KafkaCluster
from cli.embedded.processes import die_with_parent, free_ports
from schemas.topics import TopicNames
from streams.quantiles import quantile
from streams.settings import KafkaSettings
from wire.topics import apply

PARTITIONS = 12
IN_FLIGHT = 64
LATENCY_MS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bench:
    """A broker and a stub server; each run gets topics of its own."""

    bootstrap: str
    url: str

    async def topics(self, prefix: str) -> TopicNames:
        kafka = KafkaSettings(bootstrap=self.bootstrap, prefix=prefix, partitions=PARTITIONS, replication=1)
        await apply(kafka)
        return kafka.names

    @contextmanager
    def worker(
        self, names: TopicNames, *, kind: str = "openai", slots: int = IN_FLIGHT, settings: str = ""
    ) -> Iterator[subprocess.Popen[str]]:
        """Triage's worker on these topics, ready. Kind vllm gets a whole batch in one call; `settings` are further tables of its file."""
        folder = Path(tempfile.mkdtemp(prefix="triage-bench-"))
        config = folder / "triage.toml"
        config.write_text(
            f"""allow_insecure_dev = true
[kafka]
bootstrap = "{self.bootstrap}"
prefix = "{names.prefix}"
partitions = {PARTITIONS}
replication = 1
[metrics]
port = 0
[logging]
level = "warning"
[[backends]]
name = "stub"
kind = "{kind}"
url = "{self.url}"
max_concurrency = {slots}
{settings}
"""
        )
        with child([sys.executable, "-m", "cli", "worker", "--json", "--config", str(config)]) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "ready"
            yield process

    @contextmanager
    def bare(self, names: TopicNames) -> Iterator[subprocess.Popen[str]]:
        """The bare loop on the normal lane's topic."""
        command = [sys.executable, "-m", "benchmarks.bare", self.bootstrap, f"{names.prefix}.requests.normal"]
        command += [names.results, f"{names.prefix}-bare", f"{self.url}/v1/chat/completions", str(IN_FLIGHT)]
        with child(command) as process:
            yield process

    @asynccontextmanager
    async def results(self, names: TopicNames) -> AsyncIterator[Results]:
        async with AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False) as consumer:
            tps = [TopicPartition(names.results, number) for number in range(PARTITIONS)]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            yield Results(consumer)

    def producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all", linger_ms=2, max_batch_size=131_072)


@dataclass
class Results:
    """The results log as it grows; `appended_ms` are the broker's times."""

    consumer: AIOKafkaConsumer

    async def take(self, count: int, timeout_s: float = 120) -> list[Any]:
        records: list[Any] = []
        async with asyncio.timeout(timeout_s):
            while len(records) < count:
                records += await self.more()
        return records

    async def more(self) -> list[Any]:
        """Return what has come; [] when nothing does for a fifth of a second."""
        fetched = await self.consumer.getmany(timeout_ms=200)
        return [record for batch in fetched.values() for record in batch]


@contextmanager
def bench(latency_ms: float = LATENCY_MS, slots: int | None = None) -> Iterator[Bench]:
    """A broker and a stub server for one benchmark; the server works on `slots` calls at once, None: on all of them."""
    # A topic that was made a moment ago has no leader yet, which the client says again and again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    (port,) = free_ports(1)
    stub = [sys.executable, "-m", "benchmarks.stub", str(port), str(latency_ms), *([str(slots)] if slots else [])]
    with KafkaCluster() as cluster, child(stub) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield Bench(cluster.bootstrap, f"http://127.0.0.1:{port}")


@contextmanager
def child(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, preexec_fn=die_with_parent())  # noqa: PLW1509
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def percentile(values: Sequence[float], share: float) -> float:
    found = quantile(values, share)
    return float("nan") if found is None else found


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def prompt(number: int, **fields: object) -> bytes:
    """Return a request of about 600 bytes that the cache neither answers nor keeps."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant. " * 4},
        {"role": "user", "content": f"question {number}: " + "lorem ipsum dolor sit amet " * 12},
    ]
    return orjson.dumps(
        {
            "messages": messages,
            "task_id": f"bench-{number}",
            "parameters": {"max_tokens": 16},
            "cache": {"mode": "bypass"},
            **fields,
        }
    )
