"""The publisher: what it sends, and what it does when the driver or the brokers do not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from agents.gpu_metrics import GpuSeries
from agents.gpu_publisher import publish, sender
from agents.gpu_sources.simulated import SimulatedReader
from schemas.codec import decode
from schemas.gpu import GPUMetrics
from schemas.headers import CONTENT_TYPE

NOW_MS = 1_795_420_000_000
PERIOD_S = 0.001


@dataclass
class FakeSource:
    """Cards whose `sampled_at_ms` counts the reads; `gate` is waited for in each read, `signal` is set at read `signal_at`."""

    count: int = 1
    gate: threading.Event | None = None
    signal_at: int = 0
    signal: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    reads: int = 0
    most_at_once: int = 0
    unavailable_reason: str | None = None
    _inside: int = 0

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return the cards' samples."""
        self.reads += 1
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        if self.reads == self.signal_at:
            self.loop.call_soon_threadsafe(self.signal.set)
        if self.gate is not None:
            self.gate.wait(30)
        self._inside -= 1
        cards = SimulatedReader(self.count).read(now_ms=NOW_MS)
        return [replace(sample, sampled_at_ms=self.reads) for sample in cards]

    def close(self) -> None:
        """Do nothing."""


@dataclass
class FakeBrokers:
    """Takes records; `when_sent` is called with the number of tries so far and may raise."""

    when_sent: Callable[[int], Awaitable[None]]
    records: list[tuple[str, GPUMetrics]] = field(default_factory=list)
    tries: int = 0

    async def send(self, key: bytes, value: bytes) -> None:
        """Take a record."""
        self.tries += 1
        await self.when_sent(self.tries)
        self.records.append((key.decode(), decode(GPUMetrics, value)))


def stopping_at(stop: asyncio.Event, tries: int) -> Callable[[int], Awaitable[None]]:
    """Return a `when_sent` that stops the publisher at that try."""

    async def when_sent(tried: int) -> None:
        if tried >= tries:
            stop.set()

    return when_sent


async def test_each_read_gives_one_record_per_card_under_its_uuid() -> None:
    stop = asyncio.Event()
    brokers = FakeBrokers(stopping_at(stop, 6))
    await publish(FakeSource(count=2), brokers.send, stop=stop, period_s=PERIOD_S)
    assert [key for key, _ in brokers.records[:2]] == ["GPU-simulated-0", "GPU-simulated-1"]
    assert all(key == sample.gpu.uuid for key, sample in brokers.records)
    for uuid in ("GPU-simulated-0", "GPU-simulated-1"):
        times = [sample.sampled_at_ms for key, sample in brokers.records if key == uuid]
        assert times == sorted(set(times))


async def test_a_broker_outage_is_told_once_and_outlived() -> None:
    stop = asyncio.Event()

    async def when_sent(tried: int) -> None:
        if 2 <= tried <= 5:
            raise KafkaConnectionError("away")
        if tried >= 7:
            stop.set()

    brokers = FakeBrokers(when_sent)
    with capture_logs() as logs:
        await publish(FakeSource(), brokers.send, stop=stop, period_s=PERIOD_S)
    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert logs[0]["reason"] == "KafkaConnectionError"
    assert len(brokers.records) == 3


async def test_while_a_send_waits_the_reading_goes_on_and_old_samples_are_dropped() -> None:
    stop, source = asyncio.Event(), FakeSource(signal_at=20)

    async def when_sent(tried: int) -> None:
        if tried == 1:
            await source.signal.wait()
        else:
            stop.set()

    brokers = FakeBrokers(when_sent)
    await publish(source, brokers.send, stop=stop, period_s=PERIOD_S)
    assert len(brokers.records) == 2
    assert brokers.records[1][1].sampled_at_ms >= 18


async def test_a_read_that_hangs_is_told_once_not_repeated_and_its_samples_are_dropped() -> None:
    stop, gate = asyncio.Event(), threading.Event()
    source, registry = FakeSource(gate=gate), CollectorRegistry()
    brokers = FakeBrokers(stopping_at(stop, 1))
    told = asyncio.Event()

    def telling(_: object, __: str, line: EventDict) -> EventDict:
        told.set()
        return line

    with capture_logs([telling]) as logs:
        publishing = asyncio.create_task(
            publish(source, brokers.send, stop=stop, period_s=PERIOD_S, read_timeout_s=0.05, series=GpuSeries(registry))
        )
        await told.wait()
        assert brokers.records == []
        gate.set()
        await publishing
    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert source.most_at_once == 1
    assert brokers.records[0][1].sampled_at_ms >= 2


async def test_it_stops_at_once_while_a_read_hangs() -> None:
    stop, gate = asyncio.Event(), threading.Event()
    source = FakeSource(gate=gate, signal_at=1)
    publishing = asyncio.create_task(publish(source, FakeBrokers(stopping_at(stop, 1)).send, stop=stop))
    await source.signal.wait()
    stop.set()
    await asyncio.wait_for(publishing, 4)
    gate.set()


async def test_it_stops_while_a_send_waits() -> None:
    stop = asyncio.Event()

    async def when_sent(_: int) -> None:
        stop.set()
        await asyncio.Event().wait()

    brokers = FakeBrokers(when_sent)
    await asyncio.wait_for(publish(FakeSource(), brokers.send, stop=stop), 4)
    assert brokers.records == []


async def test_without_a_card_it_says_why_once_and_sends_nothing() -> None:
    stop, source = asyncio.Event(), FakeSource(count=0, signal_at=5, unavailable_reason="no driver")
    brokers = FakeBrokers(stopping_at(stop, 1))
    with capture_logs() as logs:
        publishing = asyncio.create_task(publish(source, brokers.send, stop=stop, period_s=PERIOD_S))
        await source.signal.wait()
        stop.set()
        await publishing
    assert [line.get("reason") for line in logs] == ["no driver"]
    assert brokers.tries == 0


async def test_what_nobody_foresaw_ends_it_loudly() -> None:
    async def when_sent(_: int) -> None:
        raise LookupError("a bug")

    with pytest.raises(ExceptionGroup) as raised:
        await publish(FakeSource(), FakeBrokers(when_sent).send, stop=asyncio.Event(), period_s=PERIOD_S)
    assert raised.group_contains(LookupError)


async def test_the_sender_writes_to_the_topics_only_partition_with_a_content_type() -> None:
    sent: list[dict[str, Any]] = []

    class Producer:
        async def send_and_wait(self, topic: str, **record: Any) -> None:
            sent.append({"topic": topic, **record})

    await sender(Producer(), "gpu.metrics")(b"key", b"value")
    assert sent == [
        {"topic": "gpu.metrics", "key": b"key", "value": b"value", "partition": 0, "headers": [CONTENT_TYPE]}
    ]


def test_the_series_show_the_last_read() -> None:
    registry = CollectorRegistry()
    shown = GpuSeries(registry, now_ms=lambda: NOW_MS + 2500)
    assert series(registry) == {}
    [sample] = SimulatedReader(1).read(now_ms=NOW_MS)
    shown.show([sample])
    assert series(registry) == {
        "triage_gpu_memory_used_bytes": sample.memory_used_bytes,
        "triage_gpu_memory_total_bytes": sample.memory_total_bytes,
        "triage_gpu_temperature_celsius": sample.temperature_c,
        "triage_gpu_utilization_ratio": sample.utilization_ratio,
        "triage_gpu_power_watts": sample.power_w,
        "triage_gpu_energy_joules_total": sample.energy_joules_total,
        "triage_gpu_sample_age_seconds": 2.5,
    }


def test_an_absent_reading_has_no_series() -> None:
    registry = CollectorRegistry()
    shown = GpuSeries(registry, now_ms=lambda: NOW_MS)
    [sample] = SimulatedReader(1).read(now_ms=NOW_MS)
    shown.show([sample])
    shown.show([replace(sample, temperature_c=None, energy_joules_total=None)])
    assert not {"triage_gpu_temperature_celsius", "triage_gpu_energy_joules_total"} & series(registry).keys()
    shown.show([GPUMetrics(sample.gpu, sample.source, NOW_MS, lost=True)])
    assert series(registry) == {"triage_gpu_sample_age_seconds": 0.0}


def series(registry: CollectorRegistry) -> dict[str, float]:
    """Return name -> value of the series of the card GPU-simulated-0."""
    lines = [line.rpartition(" ") for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    return {name.removesuffix('{gpu="GPU-simulated-0"}'): float(value) for name, _, value in lines}
