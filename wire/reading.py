"""Reading a log without a group: from an offset to the end there is now, or from there on for as long as one likes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)

from streams.settings import KafkaSettings
from wire.connection import QUICK_RETRIES, BrokersUnreachable, client_options, consumer_options, wait_for_brokers
from wire.logs import get_logger

Record: TypeAlias = Any
"""A record as aiokafka gives it: topic, partition, offset, timestamp (broker ms), key, value, headers."""
Offsets: TypeAlias = Mapping[TopicPartition, int]

CONNECT_S = 3.0
# Asked for an end, a client answers only when its long poll is over.
_SHORT_POLL = {"fetch_max_wait_ms": 20}
_POLL_MS = 250
# The end may lie behind a transaction that nobody ends: what comes after it cannot be read.
_SILENT_S = 5.0
_STOP_AGAIN_S = 1.0
_NO_COORDINATOR_YET = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
_COORDINATOR_TRIES, _COORDINATOR_WAIT_S = 50, 0.1

_log = get_logger(__name__)


class LogReader:
    """Reads any partition of any topic; commits nothing and causes no rebalance. One read at a time.

    Made by `log_reader`. Records of transactions that did not commit are not seen.
    """

    def __init__(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> None:
        self._consumer, self._admin = consumer, admin

    async def partitions(self) -> dict[str, int]:
        """Return the number of partitions of every topic there is. A topic is not asked for by name: that may create it."""
        return {each["topic"]: len(each["partitions"]) for each in await self._admin.describe_topics()}

    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset of the oldest record that is kept."""
        found: dict[TopicPartition, int] = await self._consumer.beginning_offsets(list(tps))
        return found

    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset that the next record will get."""
        found: dict[TopicPartition, int] = await self._consumer.end_offsets(list(tps))
        return found

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the next offset that `group` reads, 0 where it never committed."""
        return await committed_offsets(self._admin, group, tps)

    async def read(self, starts: Offsets, ends: Offsets) -> AsyncIterator[Record]:
        """Yield the records from `starts` (or the oldest kept) up to and without `ends`, in offset order per partition."""
        wanted = {tp: offset for tp, offset in starts.items() if offset < ends[tp]}
        if not wanted:  # aiokafka's fetcher, once it was given nothing to read, swallows the cancel of its end
            return
        left = self._seek(wanted)
        silent_s = 0.0
        while left and silent_s < _SILENT_S:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
            silent_s = 0.0 if fetched else silent_s + _POLL_MS / 1000
            for tp, records in fetched.items():
                for record in records:
                    if tp in left and record.offset < ends[tp]:
                        yield record
            # The position also moves over transaction markers, which carry no record.
            left = {tp for tp in left if await self._consumer.position(tp) < ends[tp]}

    async def follow(self, starts: Offsets, stop: asyncio.Event | None = None) -> AsyncIterator[Record]:
        """Yield the records from `starts` on as they arrive, until `stop` is set."""
        self._seek(starts)
        while stop is None or not stop.is_set():
            for records in (await self._consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    yield record

    def _seek(self, starts: Offsets) -> set[TopicPartition]:
        self._consumer.assign(list(starts))
        for tp, offset in starts.items():
            self._consumer.seek(tp, offset)
        return set(starts)


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, tps: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return the next offset that `group` reads of each partition, 0 where it never committed.

    Raises: KafkaError.
    """
    wanted = list(tps)
    for _ in range(_COORDINATOR_TRIES):
        # Asked for the first group of all, a cluster first makes the topic that holds their offsets.
        with contextlib.suppress(*_NO_COORDINATOR_YET):
            found = await admin.list_consumer_group_offsets(group, partitions=wanted)
            return {tp: max(found[tp].offset if tp in found else 0, 0) for tp in wanted}
        await asyncio.sleep(_COORDINATOR_WAIT_S)
    raise GroupCoordinatorNotAvailableError(f"no broker answers for the group {group}")


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, whose own `stop` may wait for ever, or end as cancelled though nobody cancelled it.

    aiokafka's fetch task awaits the fetches it gave up under `suppress(CancelledError)`: a cancellation that meets it there is lost, and
    `stop` waits for a task that goes on. It is cancelled again until it ends. And `stop` awaits each fetch that it cancels: one that had
    failed and waits for its next try raises its cancellation there, before the connections are closed.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        while not (await asyncio.wait({stopping}, timeout=_STOP_AGAIN_S))[0]:
            fetcher = getattr(consumer, "_fetcher", None)
            if fetcher is not None:
                fetcher._fetch_task.cancel()
        if stopping.cancelled():
            await _stop_rest(consumer)
        else:
            stopping.result()
    finally:
        stopping.cancel()


async def _stop_rest(consumer: AIOKafkaConsumer) -> None:
    fetcher = consumer._fetcher
    running: set[asyncio.Task[Any]] = set() if fetcher is None else {fetcher._fetch_task, *fetcher._pending_tasks}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_STOP_AGAIN_S)
    await consumer._client.close()


@contextlib.asynccontextmanager
async def log_reader(kafka: KafkaSettings, *, client_id: str) -> AsyncIterator[LogReader]:
    """Give a connected reader; brokers that are away for 3 s, or go away meanwhile, come out as BrokersUnreachable.

    Raises: BrokersUnreachable, CredentialsUnusable.
    """
    await wait_for_brokers(kafka, log=_log, timeout_s=CONNECT_S)
    consumer = AIOKafkaConsumer(**consumer_options(kafka, client_id=client_id) | QUICK_RETRIES | _SHORT_POLL)
    admin = AIOKafkaAdminClient(**client_options(kafka, client_id=client_id) | QUICK_RETRIES)
    try:
        await consumer.start()
        await admin.start()
        yield LogReader(consumer, admin)
    except KafkaError as error:
        raise BrokersUnreachable(kafka, type(error).__name__) from error
    finally:
        await stop_consumer(consumer)
        await admin.close()
