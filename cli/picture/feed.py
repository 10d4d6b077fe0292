"""Follows a cluster's topics without a group and feeds a picture: commits nothing, causes no rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from cli.errors import Failed
from cli.picture.frame import Frame
from cli.picture.picture import LogEnd, Picture
from gateway.fleet import GATEWAY_KEY
from schemas.codec import DecodeError, decode
from schemas.gpu import GPUMetrics
from schemas.progress import Started, WorkerSnapshot
from schemas.result import Result
from schemas.topics import Lane
from streams.brokertime import BrokerClock
from streams.settings import KafkaSettings, Settings
from wire.clock import monotonic_s, wall_ms
from wire.connection import QUICK_RETRIES, consumer_options
from wire.reading import LogReader, log_reader, stop_consumer

LOOK_BACK_MS = 60_000
_POLL_MS, _GATHER_S = 200, 0.05
_ENDS_EVERY_S, _COMMITTED_EVERY_S, _ASK_S = 1.0, 3.0, 3.0
_RETRY_S = 0.5
# A quiet cluster is asked this often; what comes meanwhile is sent at once.
_FETCH = {"fetch_max_wait_ms": 500, "max_partition_fetch_bytes": 512 << 10}


class Feed:
    """The only writer of `picture`. `problem` is what stands between it and the cluster now, None when nothing does."""

    def __init__(self, kafka: KafkaSettings, picture: Picture, consumer: AIOKafkaConsumer, reader: LogReader) -> None:
        self._kafka, self._consumer, self._reader = kafka, consumer, reader
        self.picture = picture
        self.problem: str | None = "Reading the last minute ..."
        self._has_caught_up, self._has_ends = asyncio.Event(), asyncio.Event()
        self._clock = BrokerClock()
        self._live_from: dict[TopicPartition, int] = {}
        self._lanes: list[TopicPartition] = []
        self._committed: dict[TopicPartition, int] = {}
        self._feeds: dict[str, Callable[[Any], None]] = {
            kafka.names.workers: self._feed_snapshot,
            kafka.names.gpu_metrics: self._feed_sample,
            kafka.names.progress: self._feed_started,
            kafka.names.results: self._feed_result,
        }

    def now_ms(self) -> int:
        """Return broker time: this machine's clock until a record has told the broker's."""
        return self._clock.ms(monotonic_s()) if self._clock.is_set else wall_ms()

    def frame(self) -> Frame:
        return self.picture.frame(self.now_ms())

    def notes(self) -> list[str]:
        """Return what is wrong now, or waited for."""
        return [] if self.problem is None else [self.problem]

    async def has_read(self) -> None:
        """Return when the last minute was read, and the lanes' ends are known."""
        await self._has_caught_up.wait()
        await self._has_ends.wait()

    async def run(self) -> None:
        """Follow until cancelled; a broker's failure is waited out. Raises: Failed when the topics are not there."""
        await self._begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure())
            group.create_task(self._follow())

    async def _begin(self) -> None:
        names = self._kafka.names
        count = (await self._reader.partitions()).get(names.results)
        if count is None:
            raise Failed(f"The topic {names.results} is not there: `triage topics apply` creates it.")
        numbers = range(count)
        self._lanes = [TopicPartition(names.requests(lane), number) for lane in Lane for number in numbers]
        followed = [TopicPartition(topic, number) for topic in (names.results, names.progress) for number in numbers]
        followed += [TopicPartition(names.workers, 0), TopicPartition(names.gpu_metrics, 0)]
        self._live_from = await self._reader.ends(followed)
        at_ms = max(wall_ms() - LOOK_BACK_MS, 0)
        recent = await self._consumer.offsets_for_times(dict.fromkeys(followed, at_ms))
        self._consumer.assign(followed)
        for tp in followed:
            found = recent.get(tp)
            self._consumer.seek(tp, self._live_from[tp] if found is None else found.offset)

    async def _follow(self) -> None:
        left = self._live_from
        while True:
            for tp, records in (await self._consumer.getmany(timeout_ms=_POLL_MS)).items():
                feed = self._feeds[tp.topic]
                for record in records:
                    feed(record)
                last = records[-1]
                if last.offset >= self._live_from[tp]:
                    self._clock.observe(last.timestamp, now_s=monotonic_s())
            left = {tp: end for tp, end in left.items() if await self._consumer.position(tp) < end}
            if not left:
                self._has_caught_up.set()
            # A fetch names every partition: one for each record that comes would cost more than all the rest.
            await asyncio.sleep(_GATHER_S)

    async def _measure(self) -> None:
        """Ask again and again where the lanes end, and how far their groups are."""
        asked_s, failing_since_s = 0.0, None
        while True:
            now_s = monotonic_s()
            try:
                async with asyncio.timeout(_ASK_S):
                    if now_s - asked_s >= _COMMITTED_EVERY_S:
                        self._committed, asked_s = await self._ask_committed(), now_s
                    ends = await self._reader.ends(self._lanes)
            except (TimeoutError, KafkaError):
                failing_since_s = failing_since_s or now_s
                self.problem = f"Kafka has not answered for {monotonic_s() - failing_since_s:.0f} s; trying again"
                await asyncio.sleep(_RETRY_S)
                continue
            failing_since_s = self.problem = None
            self.picture.logs(self._log_ends(ends))
            self._has_ends.set()
            await asyncio.sleep(_ENDS_EVERY_S)

    async def _ask_committed(self) -> dict[TopicPartition, int]:
        found = await self._reader.starts(self._lanes)
        for lane in Lane:
            topic = self._kafka.names.requests(lane)
            tps = [tp for tp in self._lanes if tp.topic == topic]
            committed = await self._reader.committed(self._kafka.names.group(lane.value), tps)
            # What retention has removed before a group came to it is not waiting.
            found |= {tp: max(offset, found[tp]) for tp, offset in committed.items()}
        return found

    def _log_ends(self, ends: Mapping[TopicPartition, int]) -> dict[str, LogEnd]:
        return {f"{tp.topic}/{tp.partition}": LogEnd(end, self._committed.get(tp, 0)) for tp, end in ends.items()}

    # Records. What is not what it should be is left out: the picture is no place to judge it.

    def _feed_snapshot(self, record: Any) -> None:
        worker = (record.key or b"").decode(errors="replace")
        if worker and not worker.startswith(GATEWAY_KEY):
            snapshot = None if record.value is None else _read(WorkerSnapshot, record.value)
            if snapshot is not None or record.value is None:
                self.picture.snapshot(worker, snapshot, record.timestamp)

    def _feed_sample(self, record: Any) -> None:
        sample = _read(GPUMetrics, record.value)
        if sample is not None:
            self.picture.sample(sample, record.timestamp)

    def _feed_started(self, record: Any) -> None:
        started = _read(Started, record.value)
        if started is not None:
            self.picture.started(started, record.partition, record.timestamp)

    def _feed_result(self, record: Any) -> None:
        result = _read(Result, record.value)
        if result is not None:
            self.picture.result(result, record.partition, record.timestamp)


def _read(kind: type[Any], value: bytes | None) -> Any:
    try:
        return None if value is None else decode(kind, value)
    except DecodeError:
        return None


@asynccontextmanager
async def open_feed(settings: Settings, *, client_id: str) -> AsyncIterator[Feed]:
    """Give a connected feed of a new picture, which `Feed.run` fills.

    Raises: BrokersUnreachable after 4 s, CredentialsUnusable.
    """
    kafka = settings.kafka
    picture = Picture(kafka.names, settings.pressure, settings.gpus.stale_after_s)
    async with log_reader(kafka, client_id=f"{client_id}-ends") as reader:
        consumer = AIOKafkaConsumer(**consumer_options(kafka, client_id=client_id) | QUICK_RETRIES | _FETCH)
        await consumer.start()
        try:
            yield Feed(kafka, picture, consumer, reader)
        finally:
            await stop_consumer(consumer)
