"""The control app: the GPU table, and the cache table fed from the results log. Its own group, so its recovery delays no lane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents.faust_app import new_app
from agents.transport import App
from schemas import headers as names
from schemas.cache import CacheEntry
from schemas.codec import DecodeError, decode, encode
from schemas.gpu import GPUMetrics
from schemas.result import Result
from streams.caching import CacheIndex
from streams.settings import KafkaSettings
from wire.logs import get_logger

log = get_logger(__name__)


class ControlApp:
    """Faust tables behind two agents. Read `gpu_samples` from the worker's loop."""

    def __init__(self, app: App, kafka: KafkaSettings, index: CacheIndex) -> None:
        self.app = app
        self._index = index
        topics = kafka.names
        # With more partitions, or Faust's default buffer of 1000 events, other workers would not see an update for a long time.
        self._gpus = app.GlobalTable("gpus", key_type=str, partitions=1, recovery_buffer_size=1)
        self._cache = app.Table("cache", key_type=bytes, value_type=bytes, partitions=kafka.partitions)
        self._appended_ms = 0
        gpu_topic = app.topic(topics.gpu_metrics, key_serializer="raw", value_serializer="raw", allow_empty=True)
        results = app.topic(topics.results, key_serializer="raw", value_serializer="raw", allow_empty=True)
        app.agent(gpu_topic, name="gpus")(self._consume_samples)
        app.agent(results, name="results")(self._consume_results)

    def gpu_samples(self) -> Iterator[tuple[GPUMetrics, int]]:
        """Yield each card's newest sample and the broker's time of its record."""
        for row in list(self._gpus.values()):
            try:
                yield decode(GPUMetrics, row["sample"].encode()), row["appended_ms"]
            except (DecodeError, KeyError, AttributeError):
                continue

    async def _consume_samples(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                self._keep_sample(event)
            except Exception as error:  # noqa: BLE001 - a sample costs efficiency, an exception here the whole table
                log.warning("GPU sample not kept", error=type(error).__name__)
            event.ack()

    def _keep_sample(self, event: Any) -> None:
        message = event.message
        if message.key is None or message.value is None:
            return
        decode(GPUMetrics, message.value)  # what is not a sample does not enter the table
        self._gpus[message.key.decode()] = {
            "sample": message.value.decode(),
            "appended_ms": round(message.timestamp * 1000),
        }

    async def _consume_results(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                self._keep_answer(event)
            except Exception as error:  # noqa: BLE001 - an entry costs a hit, an exception here the whole table
                log.warning("answer not cached", error=type(error).__name__)
            event.ack()

    def _keep_answer(self, event: Any) -> None:
        """Store a cacheable answer and remove what is over the bounds; a result that is not cacheable costs a look at its headers."""
        message = event.message
        cacheable = names.find(message.headers or (), names.CACHEABLE)
        if cacheable is None or message.value is None:
            return
        fingerprint, _, ttl_s = cacheable.partition(";")
        result = decode(Result, message.value)
        if result.output is None:
            return
        appended_ms = round(message.timestamp * 1000)
        entry = CacheEntry(
            answer=result.output,
            usage=result.usage,
            model=result.model,
            stored_at_ms=appended_ms,
            expires_at_ms=appended_ms + int(ttl_s) * 1000,
            tenant=result.tenant,
        )
        value = encode(entry)
        # Written inside the event's iteration: the table's partition is that of the current event.
        self._cache[fingerprint.encode()] = value
        self._index.put(message.partition, fingerprint, entry.expires_at_ms, len(value))
        for old in self._index.removals(message.partition, appended_ms):
            self._cache.pop(old.encode(), None)


def new_control_app(kafka: KafkaSettings, index: CacheIndex, *, datadir: Any, session_s: float) -> ControlApp:
    app = new_app(kafka.names.group("control"), kafka, datadir=datadir, session_s=session_s, buffer_size=1024)
    app.reads_in_gulps = True
    return ControlApp(app, kafka, index)
