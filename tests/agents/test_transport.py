"""The corrections of Faust that need no broker to be shown; the others are in tests/integration/test_faust_corrections.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from agents.faust_app import new_app
from agents.transport import App
from streams.settings import KafkaSettings


def app_of(folder: Path) -> App:
    return new_app("group", KafkaSettings(), datadir=folder, session_s=6.0, buffer_size=10_000)


class Seeker:
    """A consumer that keeps where it was sent to."""

    def __init__(self) -> None:
        self.sought: dict[TP, int] = {}

    async def seek_wait(self, offsets: Mapping[TP, int]) -> None:
        self.sought.update(offsets)


async def test_should_read_a_changelog_from_its_beginning_where_no_offset_of_it_is_known(tmp_path: Path) -> None:
    none_kept, without_leader, empty, known = (TP("changelog", number) for number in range(4))
    offsets: Counter[TP] = Counter({without_leader: -2, empty: -1, known: 7})
    offsets[none_kept] = None  # type: ignore[assignment]
    seeker = Seeker()
    await app_of(tmp_path).tables.recovery._seek_offsets(seeker, set(offsets), offsets, "active")  # type: ignore[attr-defined]
    assert {none_kept: 0, without_leader: 0, empty: 0, known: 7} == seeker.sought
    assert {none_kept: -1, without_leader: -1, empty: -1, known: 7} == dict(offsets)


class CancelledAtStop:
    """An aiokafka consumer whose `stop` ends as cancelled though nobody cancelled it."""

    def __init__(self) -> None:
        self.closed_count = 0
        self._fetcher = None
        self._client = self

    async def stop(self) -> None:
        raise asyncio.CancelledError

    async def close(self) -> None:
        self.closed_count += 1


async def test_should_end_a_consumer_thread_whose_consumer_stops_as_cancelled(tmp_path: Path) -> None:
    thread: Any = app_of(tmp_path).consumer._thread  # type: ignore[attr-defined]
    consumer = thread._consumer = CancelledAtStop()
    await asyncio.wait_for(thread.on_thread_stop(), 5)
    thread.thread_loop.close()
    assert 1 == consumer.closed_count


class Kept:
    """A table that keeps what is read for it."""

    recovery_buffer_size = standby_buffer_size = 1000

    def __init__(self) -> None:
        self.offsets: list[int] = []

    async def on_changelog_event(self, event: Any) -> None:
        return

    def apply_changelog_batch(self, events: list[Any]) -> None:
        self.offsets += [event.message.offset for event in events]


async def test_should_read_a_table_in_fewer_turns_of_the_loop_than_it_has_records(tmp_path: Path) -> None:
    app, table, count = app_of(tmp_path), Kept(), 2_500
    recovery: Any = app.tables.recovery  # type: ignore[attr-defined]
    mine, given_back = TP("changelog", 0), TP("changelog", 1)
    recovery.active_tps.add(mine)
    recovery.tp_to_table[mine] = table
    recovery.active_highwaters[mine] = count - 1
    recovery._set_recovery_started()
    turns = 0
    for offset in range(count):
        for tp in (mine, given_back):
            message = SimpleNamespace(tp=tp, offset=offset)
            app.tables.changelog_queue.put_nowait(SimpleNamespace(message=message))  # type: ignore[attr-defined]
    reading = asyncio.create_task(type(recovery)._slurp_changelogs.fun(recovery))
    while not recovery.signal_recovery_end.is_set():
        turns += 1
        await asyncio.sleep(0)
    reading.cancel()
    assert list(range(count)) == table.offsets
    assert turns < 2 * count / 10
    assert not recovery.in_recovery
