"""The one owner of the idempotent producer: what it is given becomes durable, or it says that it cannot.

aiokafka 0.14 takes a batch's sequence numbers when it is drained and never gives them back: an idempotent producer that loses one
batch fails every later record of that partition. So batches never expire, records that are too large are refused before they take
a number, and any other final failure, of a posted record too, replaces the producer; what was not acknowledged is sent again. So does
a producer that stands still.
`docs/decisions/0009-producing.md` has the reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)

from schemas.headers import Headers
from schemas.topics import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import producer_options, wait_for_brokers
from wire.logs import get_logger
from wire.sending import OVERHEAD_BYTES, Record, Replaced, Sender, StoodStill
from wire.verdicts import Backoff, Verdict, verdict_of

BUFFER_BYTES = 64 << 20
# A producer that lost a batch still has good partitions: what they were sent is waited for this long before it is sent again.
_RETIRE_S = 2.0
_STOP_S = 5.0
_RETRY_S = 0.5
_LOOK_EVERY_S = 5.0
_ABSENT_S = 30.0
# Looked at this often in a row, a batch that is next was not tried again: not even hung brokers hold up a try for so long. Looks are
# counted, not seconds, since a process that was stopped is not a producer that stands still.
_STILL_LOOKS = 9
# A record that fails alone this often, each time with an error that ought to pass, will not be written.
_MOST_LOSSES = 6
_POST_S = 1.0
_PLACE_UNKNOWN = -1

log = get_logger(__name__)


class WriteRefused(ValueError):
    """Kafka does not take the record, and will not when it is sent again; the message says why."""


class RecordTooLarge(WriteRefused):
    """The record is larger than its topic takes; it will never be written."""


class NotAcknowledged(Exception):
    """The record was not acknowledged in time. `may_be_written`: a producer took it, so it may be in the log, or come later."""

    def __init__(self, topic: str, timeout_s: float, *, may_be_written: bool) -> None:
        self.may_be_written = may_be_written
        told = "it may still be written" if may_be_written else "it was not sent"
        super().__init__(f"Kafka did not acknowledge a record for {topic} in {timeout_s:g} s; {told}.")


class DurableProducer:
    """Writes records and says when they are durable (acks=all). A record may be written twice: readers take the first.

    `on_appended(timestamp_ms)` hears the broker's time of what was acknowledged, before its writers do, `on_replaced()` each
    replacement. While the brokers are away at most `buffer_bytes` of records wait inside; who comes then waits outside. `options` are
    aiokafka's, over ours.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        client_id: str,
        on_appended: Callable[[int], None] = lambda _ms: None,
        on_replaced: Callable[[], None] = lambda: None,
        buffer_bytes: int = BUFFER_BYTES,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._kafka = kafka
        # A batch must fit the smallest topic; a dead letter may be larger and then goes in a batch of its own.
        largest = {"max_request_size": MAX_DEAD_LETTER_BYTES - OVERHEAD_BYTES}
        self._options = producer_options(kafka, client_id=client_id) | largest | dict(options)
        self._limits = {kafka.names.dead_letters: MAX_DEAD_LETTER_BYTES}
        self._on_appended = on_appended
        self._on_replaced = on_replaced
        self._room = Room(buffer_bytes)
        self._backoff = Backoff()
        self._sender: Sender | None = None
        self._is_stopped = False
        self._replacing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        # Topics that take less than we may put into a batch: each record goes alone.
        self._small: set[str] = set()
        self.replaced_count = 0

    @property
    def buffered_bytes(self) -> int:
        """What is written and not acknowledged yet."""
        return self._room.used_bytes

    async def start(self) -> None:
        """Return when there is a producer, however long the brokers are away. Raises: WriteRefused."""
        self._sender = await self._opened()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Flush for at most 5 s and close; what is not acknowledged by then fails."""
        self._is_stopped = True
        tasks = [each for each in (self._watching, self._replacing) if each is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sender, self._sender = self._sender, None
        if sender is not None:
            self._retire(sender, _STOP_S)
        await asyncio.gather(*self._retiring)

    async def write(
        self,
        topic: str,
        partition: int,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timeout_s: float | None = None,
    ) -> int:
        """Return the record's offset once it is durable. `timeout_s` None: however long the brokers are away.

        Raises: RecordTooLarge, WriteRefused; NotAcknowledged after `timeout_s`; ProducerClosed after `stop`.
        """
        record = Record(topic, partition, key, value, headers)
        if record.size_bytes > (limit := self._limit(topic)):
            raise _too_large(record, f", which takes {limit}")
        if timeout_s is None:
            return await self._written(record)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._written(record)
        except TimeoutError:
            raise NotAcknowledged(topic, timeout_s, may_be_written=record.is_sent) from None

    async def post(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> None:
        """Hand a record over without waiting for its acknowledgement.

        It is lost if it fails, and while a producer is replaced; the log says so. Raises: ProducerClosed after `stop`.
        """
        if self._is_stopped:
            raise ProducerClosed
        record, sender = Record(topic, partition, key, value, headers), self._sender
        if sender is None or self._replacing is not None:
            log.warning("record not sent", topic=topic, error="no producer")
        elif record.size_bytes > self._limit(topic):
            log.warning("record not sent", topic=topic, error="too large")
        elif not self._room.admits(record.size_bytes):
            log.warning("record not sent", topic=topic, error="too much is waiting")
        else:
            await self._post(sender, record)

    async def _post(self, sender: Sender, record: Record) -> None:
        future = None
        try:
            async with asyncio.timeout(_POST_S):
                future = await self._send(sender, record)
        except (KafkaError, WriteRefused, TimeoutError) as error:
            log.warning("record not sent", topic=record.topic, error=type(error).__name__)
            if isinstance(error, KafkaError):
                with contextlib.suppress(WriteRefused):
                    self._judge_untaken(sender, error)
        if future is None:
            self._room.give(record.size_bytes)
        else:
            future.add_done_callback(lambda _: self._room.give(record.size_bytes))

    async def _written(self, record: Record) -> int:
        if not self._room.admits(record.size_bytes):
            await self._room.take(record.size_bytes)
        sender: Sender | None = None
        future: asyncio.Future[Any] | None = None
        try:
            while True:
                future = None
                sender = await self._ready()
                try:
                    future = await self._send(sender, record)
                    metadata = await future
                except KafkaError as error:
                    if future is not None:
                        self._judge_lost(sender, record, future, error)
                    elif isinstance(error, UnknownTopicOrPartitionError):
                        await self._await_topic(record)
                    else:
                        self._judge_untaken(sender, error)
                    continue
                # The broker may have the batch and no longer know where; aiokafka counts its offsets from -1.
                if metadata.log_start_offset != _PLACE_UNKNOWN:
                    if record.is_suspect and record.topic not in self._small:
                        self._batch_was_too_large(record.topic)
                    return int(metadata.offset)
        finally:
            self._leave(sender, record, future)

    async def _send(self, sender: Sender, record: Record) -> asyncio.Future[Any]:
        record.is_alone = record.losses > 0 or record.topic in self._small
        future = await sender.send(record)
        record.absent_since_s = None
        return future

    def _leave(self, sender: Sender | None, record: Record, future: asyncio.Future[Any] | None) -> None:
        """Make room, at once or, since what is given up is not taken back, when the producer no longer has the record."""
        held = sender.held_until(record, future) if sender and future is not None and future.cancelled() else None
        if held is None:
            self._room.give(record.size_bytes)
        else:
            held.add_done_callback(lambda _: self._room.give(record.size_bytes))

    def _limit(self, topic: str) -> int:
        return self._limits.get(topic, MAX_RECORD_BYTES)

    # What errors mean

    def _judge_lost(self, sender: Sender, record: Record, future: asyncio.Future[Any], error: KafkaError) -> None:
        """Return when a record that a producer took and lost is to be sent again. Raises: as `write`."""
        self._replace(sender, error)
        record.is_alone |= sender.was_alone(future)
        verdict = verdict_of(error)
        if isinstance(error, Replaced) or verdict is Verdict.REBUILD:
            return
        if verdict is Verdict.REFUSE:
            raise _refused(record.topic, error) from error
        if record.is_alone and verdict is Verdict.ALONE:
            raise _too_large(record) if _is_of_size(error) else _refused(record.topic, error) from error
        record.is_suspect |= verdict is Verdict.ALONE
        record.losses += 1
        if record.losses > _MOST_LOSSES:
            raise _refused(record.topic, error) from error

    def _judge_untaken(self, sender: Sender, error: KafkaError) -> None:
        """See to a producer that did not take a record. Raises: WriteRefused."""
        if isinstance(error, MessageSizeTooLargeError):
            raise RecordTooLarge(str(error)) from error
        if not isinstance(error, KafkaTimeoutError | ProducerClosed | UnknownTopicOrPartitionError):
            if verdict_of(error) is Verdict.REFUSE:
                raise WriteRefused(f"Kafka refuses the record: {_told(error)}.") from error
            self._replace(sender, error)

    async def _await_topic(self, record: Record) -> None:
        """Return when it is worth trying again a topic that is not there. Raises: WriteRefused when it is not there for long."""
        began_s = monotonic_s()
        await wait_for_brokers(self._kafka, log=log)
        if record.absent_since_s is None or monotonic_s() - began_s > _LOOK_EVERY_S:
            record.absent_since_s = monotonic_s()
        elif monotonic_s() - record.absent_since_s >= _ABSENT_S:
            raise _absent(f"partition {record.partition} of {record.topic}")
        await asyncio.sleep(_RETRY_S)

    def _batch_was_too_large(self, topic: str) -> None:
        log.warning("records go one by one: the topic takes less than the catalogue says", topic=topic)
        self._small.add(topic)

    # One producer after the other

    async def _ready(self) -> Sender:
        """Return the producer once there is one. Raises: ProducerClosed; WriteRefused when Kafka gives out no producer id."""
        while not self._is_stopped:
            if self._replacing is None:
                if self._sender is None:
                    break
                return self._sender
            task = self._replacing
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise WriteRefused(str(error)) from error
        raise ProducerClosed

    def _replace(self, failed: Sender, error: BaseException) -> None:
        """Begin to put a new producer in the place of `failed`, once."""
        if self._is_stopped or self._replacing is not None or self._sender is not failed:
            return
        pause_s = self._backoff.next_s(now_s=monotonic_s())
        self.replaced_count += 1
        log.warning(
            "producer replaced: it lost a batch, which would block its partition",
            error=type(error).__name__,
            verdict=verdict_of(error).value,
            count=self.replaced_count,
            pause_s=pause_s,
        )
        self._on_replaced()
        self._retire(failed, _RETIRE_S)
        self._replacing = asyncio.create_task(self._put_new(pause_s))
        self._replacing.add_done_callback(self._replacement_ended)

    async def _put_new(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._sender = await self._opened()

    def _replacement_ended(self, task: asyncio.Task[None]) -> None:
        """Let writers go on. After a replacement that was refused, which those who waited for it are told, begin another."""
        self._replacing = None
        if not task.cancelled() and task.exception() is not None and not self._is_stopped:
            log.error("no producer", error=str(task.exception()))
            self._replacing = asyncio.create_task(self._put_new(self._backoff.next_s(now_s=monotonic_s())))
            self._replacing.add_done_callback(self._replacement_ended)

    async def _opened(self) -> Sender:
        while True:
            await wait_for_brokers(self._kafka, log=log)
            try:
                return await Sender.opened(self._options, on_appended=self._on_appended, on_lost=self._replace)
            except KafkaError as error:  # a broker that answers may not be ready to give out producer ids
                if verdict_of(error) is Verdict.REFUSE:
                    raise WriteRefused(f"Kafka gives out no producer id: {_told(error)}.") from error
                log.warning("producer not started; trying again", error=type(error).__name__)
                await asyncio.sleep(_RETRY_S)

    def _retire(self, sender: Sender, flush_s: float) -> None:
        task = asyncio.create_task(sender.close(flush_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _watch(self) -> None:
        """End what waits for a topic that was deleted, which the client would keep for ever, and a producer that stands still."""
        since_s: dict[str, float] = {}
        looks: dict[Any, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            sender, now_s = self._sender, monotonic_s()
            absent = set() if sender is None else sender.absent_topics()
            since_s = {topic: since_s.get(topic, now_s) for topic in absent}
            for topic, began_s in since_s.items():
                if sender is not None and now_s - began_s >= _ABSENT_S:
                    sender.fail(topic, _absent(topic))
            looks = looked(looks, {} if sender is None else sender.tries())
            if sender is not None and any(count >= _STILL_LOOKS for _, count in looks.values()):
                self._replace(sender, StoodStill())


def looked(before: Mapping[Any, tuple[int, int]], tries: Mapping[Any, int]) -> dict[Any, tuple[int, int]]:
    """Return, of each batch, how often it was tried, and at how many looks in a row, before this one, it had been no less often."""
    found = {}
    for batch, count in tries.items():
        tried, seen = before.get(batch, (count, -1))
        found[batch] = (count, seen + 1 if tried == count else 0)
    return found


class Room:
    """Bytes that may wait inside; who finds no room waits in turn. One record always fits an empty room."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.used_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def admits(self, size_bytes: int) -> bool:
        """Take room if there is some now and nobody waits for it; return whether."""
        if self._waiting or not self._fits(size_bytes):
            return False
        self.used_bytes += size_bytes
        return True

    async def take(self, size_bytes: int) -> None:
        """Return when there is room, which is taken then."""
        if self.admits(size_bytes):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came as its caller gave up
                self.give(size_bytes)
            else:
                self._admit()
            raise

    def give(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(size_bytes):
                    return
                self.used_bytes += size_bytes
                turn.set_result(None)
            self._waiting.popleft()

    def _fits(self, size_bytes: int) -> bool:
        return not self.used_bytes or self.used_bytes + size_bytes <= self._most_bytes


def _too_large(record: Record, told: str = "") -> RecordTooLarge:
    return RecordTooLarge(f"{len(record.value or b'')} bytes for {record.topic}{told}")


def _is_of_size(error: KafkaError) -> bool:
    return "TooLarge" in type(error).__name__


def _refused(topic: str, error: KafkaError) -> WriteRefused:
    return WriteRefused(f"Kafka refuses records for {topic}: {_told(error)}.")


def _absent(what: str) -> WriteRefused:
    return WriteRefused(f"There is no {what} in Kafka: run `triage topics apply`.")


def _told(error: KafkaError) -> str:
    """Return the error's name and, where Kafka has one, its sentence; never the record's text."""
    described = str(getattr(error, "description", "") or "").strip().rstrip(".")
    return f"{type(error).__name__} ({described})" if described else type(error).__name__
