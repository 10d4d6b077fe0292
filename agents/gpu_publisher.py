"""The GPU publisher: reads the cards every period and sends the samples.

Two tasks, so that neither waits for the other: brokers that are away do not stop the reading, which metrics show too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from aiokafka.errors import KafkaError

from agents.gpu_metrics import GpuSeries
from agents.gpu_sources.bounded import READ_TIMEOUT_S
from schemas.codec import encode
from schemas.gpu import GPUMetrics
from schemas.headers import CONTENT_TYPE
from streams.ports import GpuReader
from wire.clock import monotonic_s, wall_ms
from wire.logs import get_logger

Send: TypeAlias = Callable[[bytes, bytes], Awaitable[None]]

log = get_logger(__name__)


class Producer(Protocol):
    """The part of an aiokafka producer that is used here."""

    async def send_and_wait(self, topic: str, **record: Any) -> Any: ...


def sender(producer: Producer, topic: str) -> Send:
    """Return a `send` for `publish`: one record on the GPU topic's only partition, with its content type."""

    async def send(key: bytes, value: bytes) -> None:
        await producer.send_and_wait(topic, key=key, value=value, partition=0, headers=[CONTENT_TYPE])

    return send


async def publish(
    source: GpuReader,
    send: Send,
    *,
    stop: asyncio.Event,
    period_s: float = 1.0,
    series: GpuSeries | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
    now_ms: Callable[[], int] = wall_ms,
) -> None:
    """Read every `period_s` and send one record per card, until `stop` is set. The caller closes `source`.

    While no broker answers, an old sample gives way to the card's next one: nothing piles up and nothing stale is sent.
    """
    outbox = _Outbox(send)
    readings = _Readings(source, now_ms)
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(outbox.run())
        next_s = monotonic_s()
        while not stop.is_set():
            samples = await readings.next(stop, read_timeout_s)
            if samples is not None:
                outbox.put(samples)
                if series is not None:
                    series.show(samples)
            # A period that a slow read has used up is left out, not made up for.
            next_s = max(next_s + period_s, monotonic_s())
            await _within(stop.wait(), next_s - monotonic_s())
        sending.cancel()


@dataclass
class _Readings:
    """One read at a time, in a thread of its own.

    The thread is a daemon: a driver that hangs in the kernel must not keep the process from ending, as the threads of an
    executor would.
    """

    source: GpuReader
    now_ms: Callable[[], int]
    _pending: asyncio.Future[list[GPUMetrics]] | None = None
    _is_late: bool = False
    _hangs: bool = False
    _reason: str | None = None

    async def next(self, stop: asyncio.Event, timeout_s: float) -> list[GPUMetrics] | None:
        """Return the samples, None when the read hangs or `stop` is set.

        A hanging read is waited for, not repeated. What it gives in the end is dropped: readers take a record's own time
        for the sample's, so it would pass for fresh.
        """
        if self._pending is None:
            self._pending, self._is_late = self._start(), False
        stopped = asyncio.create_task(stop.wait())
        either: list[asyncio.Future[Any]] = [self._pending, stopped]
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not self._pending.done():
            if not stop.is_set():
                self._is_late = True
                self._tell_hanging(True, timeout_s)
            return None
        samples, self._pending = self._pending.result(), None
        if self._is_late:
            return None
        self._tell_hanging(False, timeout_s)
        self._tell_absent(samples)
        return samples

    def _start(self) -> asyncio.Future[list[GPUMetrics]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[GPUMetrics]] = loop.create_future()
        threading.Thread(target=self._read, args=(loop, future), name="gpu-read", daemon=True).start()
        return future

    def _read(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[GPUMetrics]]) -> None:
        samples: list[GPUMetrics] = []
        failure: BaseException | None = None
        try:
            samples = self.source.read(now_ms=self.now_ms())
        except BaseException as error:  # noqa: BLE001 - handed over whole to the waiting task
            failure = error
        with suppress(RuntimeError):  # the loop has ended meanwhile, and nobody waits any more
            loop.call_soon_threadsafe(_settle, future, samples, failure)

    def _tell_hanging(self, hangs: bool, timeout_s: float) -> None:
        if hangs and not self._hangs:
            log.warning("reading the GPUs hangs; no samples until it returns", after_s=timeout_s)
        elif self._hangs and not hangs:
            log.info("reading the GPUs works again")
        self._hangs = hangs

    def _tell_absent(self, samples: Sequence[GPUMetrics]) -> None:
        reason = None if samples else self.source.unavailable_reason
        if reason is not None and reason != self._reason:
            log.warning("no GPU samples", reason=reason)
        elif reason is None and self._reason is not None:
            log.info("GPUs found", count=len(samples))
        self._reason = reason


@dataclass
class _Outbox:
    """The newest sample of each card that is not sent yet."""

    send: Send
    _samples: dict[str, GPUMetrics] = field(default_factory=dict)
    _filled: asyncio.Event = field(default_factory=asyncio.Event)
    _fails: bool = False

    def put(self, samples: Iterable[GPUMetrics]) -> None:
        """Add samples; an older one of the same card that still waits is dropped."""
        self._samples |= {sample.gpu.uuid: sample for sample in samples}
        if self._samples:
            self._filled.set()

    async def run(self) -> None:
        """Send for ever. A sample that could not be sent is dropped: the next one says more."""
        while True:
            await self._filled.wait()
            while self._samples:
                uuid = next(iter(self._samples))
                await self._send(self._samples.pop(uuid))
            self._filled.clear()

    async def _send(self, sample: GPUMetrics) -> None:
        try:
            await self.send(sample.gpu.uuid.encode(), encode(sample))
        except (KafkaError, OSError, TimeoutError) as error:
            if not self._fails:
                log.warning("GPU samples cannot be sent; they are dropped until they can", reason=type(error).__name__)
            self._fails = True
        else:
            if self._fails:
                log.info("GPU samples are sent again")
            self._fails = False


def _settle(future: asyncio.Future[list[GPUMetrics]], samples: list[GPUMetrics], failure: BaseException | None) -> None:
    if future.done():  # cancelled with its loop
        return
    if failure is None:
        future.set_result(samples)
    else:
        future.set_exception(failure)


async def _within(awaitable: Awaitable[object], timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await awaitable
