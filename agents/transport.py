"""Faust's transport, corrected: what stock faust-streaming 0.15.3 loses, this does not.

Each correction has a contract test. They override private parts, so `check_versions` refuses any other release.
What is corrected, and why, is in docs/decisions/0003-faust-corrections.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Protocol, cast

import faust
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust import streams as faust_streams
from faust.tables.manager import TableManager as FaustTableManager
from faust.tables.recovery import Recovery as FaustRecovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from wire.clock import monotonic_s
from wire.logs import get_logger
from wire.reading import stop_consumer

SUPPORTED = {"faust-streaming": "0.15.3", "mode-streaming": "0.7.1", "aiokafka": "0.14.0"}
# A burst of records is taken out of one fetch without giving the loop up for longer than this many.
_YIELD_EVERY = 64
GULP_BYTES, GULP_WAIT_MS = 65_536, 250
_RECOVERY_LOOK_S = 5.0
# Every partition is full: looked at again after this.
_ALL_FULL_S = 0.05

log = get_logger(__name__)


class UnsupportedFaust(RuntimeError):
    """The installed Faust is not the one that the corrections were written for."""


class PartitionsObserver(Protocol):
    """Who must know which partitions an app owns. All calls come from the worker's own loop."""

    async def revoking(self, partitions: set[TP]) -> None:
        """The group rebalances: finish what is nearly done, then let go. What is acknowledged on return is still committed."""
        ...

    async def assigned(self, partitions: set[TP], generation: int) -> None: ...

    def committed(self, offsets: Mapping[TP, int]) -> None: ...

    def is_full(self, partition: int) -> bool:
        """Whether nothing more of a partition is to be fetched for now."""
        ...


def check_versions() -> None:
    """Refuse a Faust that the corrections do not fit.

    Raises: UnsupportedFaust.
    """
    for name, wanted in SUPPORTED.items():
        found = version(name)
        if found != wanted:
            raise UnsupportedFaust(f"{name} {found} is installed, {wanted} is needed: install from requirements.lock.")
    if faust_streams._CStreamIterator is None:  # type: ignore[attr-defined]
        # The pure-Python iterator acknowledges events that it skips after a rebalance, which loses them.
        raise UnsupportedFaust(
            "faust-streaming was built without its C extensions: install its wheel, and unset NO_CYTHON."
        )


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads committed records only, and survives a commit that fails."""

    logger = driver.logger

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Stock: "read_uncommitted" outside of exactly-once mode, so that aborted transactions would run.
        consumer._isolation_level = "read_committed"
        if self.app.reads_in_gulps:  # type: ignore[attr-defined]
            consumer._fetch_min_bytes, consumer._fetch_max_wait_ms = GULP_BYTES, GULP_WAIT_MS
        return consumer

    async def on_thread_stop(self) -> None:
        # Stock: the consumer's `stop` may end as cancelled; then the thread never says that it ended, and the app waits for it.
        await super(driver.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await stop_consumer(self._consumer)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # Stock: any error but "already rebalanced" crashes the app. A failed commit costs a redelivery, which the finished
        # index answers; the next one covers it.
        consumer = self._ensure_consumer()
        mine = self.assignment()
        wanted = {
            driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items() if tp in mine
        }
        try:
            await consumer.commit(wanted)
        except KafkaError as error:
            log.warning("commit failed; it will be repeated", group=self.app.conf.id, error=type(error).__name__)
            return False
        return True


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Drains before it lets partitions go, and reads without a task per record."""

    logger = driver.logger

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _observer(self) -> PartitionsObserver | None:
        return getattr(self.app, "observer", None)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        # Stock's own pause drops the rest of what was fetched, and commits past it. What is merely not asked for stays with the
        # fetcher, so a partition that one long call holds up does not hold up the others of its lane.
        if active_partitions and self._observer is not None:
            active_partitions = {tp for tp in active_partitions if not self._observer.is_full(tp.partition)}
            if not active_partitions:
                await asyncio.sleep(_ALL_FULL_S)
                return {}
        return await super()._getmany(active_partitions=active_partitions, timeout=timeout)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Stock: acknowledged but uncommitted offsets are thrown away before the commit, so a scale-up repeats up to 2.8 s of work.
        if revoked and self._observer is not None:
            self.stop_flow()
            self.app.flow_control.suspend()
            self.app.flow_control.clear()
            await self._observer.revoking(revoked)
            await self.commit()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        if self._observer is not None:
            await self._observer.assigned(assigned, generation_id)
        await super().on_partitions_assigned(assigned, generation_id)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        done: bool = await super()._commit(offsets)
        if done and self._observer is not None:
            self._observer.committed(offsets)
        return done

    async def _drain_messages(self, fetcher: Any) -> None:
        # Stock: four tasks and an `asyncio.wait` per record (`wait_first`), half of the CPU of an event. It is needed only where
        # `callback` can block, which is when a stream's queue is full; `suspend_flow` is looked at before each record instead,
        # and a record that was not handed over is not marked as read.
        consumer_stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        try:
            while not (consumer_stopped() or fetcher_stopped()):
                await asyncio.sleep(0)
                if not self.should_stop:
                    await self._drain_once()
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise

    async def _drain_once(self) -> None:
        app = self.app
        acks_enabled_for = app.topics.acks_enabled_for
        since_yield = 0
        async for tp, message in self.getmany(timeout=1.0):
            since_yield += 1
            if since_yield >= _YIELD_EVERY:
                since_yield = 0
                await asyncio.sleep(0)
            offset, read = message.offset, self._read_offset[tp]
            if read is not None and offset < read:
                continue
            if read and offset - read > 1 and acks_enabled_for(message.topic):
                # Stock: the end is inclusive, so the first record after a gap (an aborted transaction's) counts as acknowledged.
                await self._add_gap(tp, read + 1, offset - 1)
            await self._hand_over(message)
            if self.suspend_flow.is_set() or message.generation_id != app.consumer_generation_id:
                return
            self._read_offset[tp] = offset

    async def _hand_over(self, message: Any) -> None:
        """Give a record to its stream; when the stream's queue is full, wait for room or for the flow to be suspended."""
        if self._has_room():
            await self.callback(message)
        else:
            await self.wait_first(self.callback(message), self.suspend_flow.wait())

    def _has_room(self) -> bool:
        app = self.app
        if not app.flow_control.is_active():
            return False
        return not any(channel.queue.full() for channel in app.topics._topics)  # type: ignore[attr-defined]


class Transport(driver.Transport):  # type: ignore[misc]
    """Kafka through aiokafka, with the corrected consumer."""

    Consumer = Consumer


class Recovery(FaustRecovery):  # type: ignore[misc]
    """Reads changelogs from their beginning where their offsets are not known."""

    logger = driver.logger

    async def _seek_offsets(self, consumer: Any, tps: set[TP], offsets: Counter[TP], title: str) -> None:
        # Stock: a partition without a leader has earliest offset -1, of which 1 is taken; seeking to -2 crashes the app.
        for tp in tps:
            known: int | None = offsets[tp]  # None of a table that keeps no offsets
            offsets[tp] = -1 if known is None else max(known, -1)
        await super()._seek_offsets(consumer, tps, offsets, title)

    @Service.task
    async def _slurp_changelogs(self) -> None:
        # Stock: two turns of the loop for each record. In a busy worker those are milliseconds, and tables are read for minutes, in which
        # the app consumes nothing. And a record of a partition that was given back is applied to the table of the record before it.
        queue = self.tables.changelog_queue
        while not self.should_stop:
            self.signal_recovery_end.clear()
            try:
                await self._take(await asyncio.wait_for(queue.get(), _RECOVERY_LOOK_S))
                for _ in range(min(queue.qsize(), _YIELD_EVERY)):
                    await self._take(queue.get_nowait())
            except TimeoutError:
                pass
            except Exception as error:  # noqa: BLE001 - an entry costs a hit, the end of this task the table
                log.warning("changelog record not taken", error=type(error).__name__)
            self._end_when_read()
            await asyncio.sleep(0)

    async def _take(self, event: Any) -> None:
        tp, offset = event.message.tp, event.message.offset
        if tp in self.active_tps:
            offsets, received_s = self.active_offsets, self._active_events_received_at
        elif tp in self.standby_tps:
            offsets, received_s = self.standby_offsets, self._standby_events_received_at
        else:
            return
        received_s[tp] = monotonic_s()
        seen = offsets.get(tp)
        if seen is not None and offset <= seen:
            return
        offsets[tp] = offset
        table = self.tp_to_table[tp]
        buffer = self.buffers[table]
        buffer.append(event)
        await table.on_changelog_event(event)
        if len(buffer) >= (table.recovery_buffer_size if tp in self.active_tps else table.standby_buffer_size):
            table.apply_changelog_batch(buffer)
            buffer.clear()

    def _end_when_read(self) -> None:
        if self.in_recovery and not self.need_recovery():
            self.flush_buffers()
            self._set_recovery_ended()
            self.signal_recovery_end.set()
        if not self.tables.standbys_ready and not self.standby_remaining_total():
            self.tables.on_standbys_ready()


class TableManager(FaustTableManager):  # type: ignore[misc]
    """Starts at once; stock sleeps for a second first."""

    logger = driver.logger

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(Recovery, self._recovery)

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class App(faust.App):  # type: ignore[misc]
    """A Faust app on the corrected transport. `observer` hears of its partitions.

    `reads_in_gulps`: it need not see a record at once, so the broker gathers them for up to 250 ms: at a steady trickle a fetch per
    record costs more than the record.
    """

    logger = driver.logger

    observer: PartitionsObserver | None = None
    reads_in_gulps: bool = False

    def read_to_and_ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return, of each assigned partition, the offset it was read to, and where it ended at the last fetch (0: none yet)."""
        thread = getattr(self.consumer, "_thread", None)
        consumer = getattr(thread, "_consumer", None)
        if consumer is None:
            return {}
        found = {}
        # Attributes of another thread's consumer: read one by one, each a whole value.
        for tp in consumer.assignment():
            state = consumer._subscription.subscription.assignment.state_value(tp)
            if tp.topic == topic and state is not None and state.has_valid_position:
                found[tp.partition] = (state.position, state.lso or 0)
        return found

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)
