"""Ends tasks whose deadline has passed and that no worker has ended: those still in Kafka, whether or not a worker lives."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Coroutine
from typing import Any
from zlib import crc32

from gateway.ending import end
from gateway.ports import Logs, Unavailable
from gateway.view import View
from schemas.topics import TopicNames
from streams.outcome import expired
from wire.logs import get_logger
from wire.producing import WriteRefused

# A worker that holds the task ends it at its deadline, and is let go first.
GRACE_MS = 500
# Several gateways see the same: each is later by a part of this, another one in each partition, and finds what the first wrote.
SPREAD_MS = 200
# Together at most 200 tasks a second, so that a backlog that expires leaves the loop to those who call.
_TICK_S, MOST = 0.1, 20
_PAUSE_S = 2.0

log = get_logger(__name__)


class Expiry:
    """Writes `expired` for overdue tasks of `view`, the oldest first, each partition by itself: one that hangs holds up no other.

    Deadlines and `logs.now_ms` are broker time, so a step of this machine's clock changes nothing. Nothing ends before the view has
    caught up, which is after the first acknowledgement set the time.
    """

    def __init__(
        self, topics: TopicNames, partitions: int, view: View, logs: Logs, *, gateway_id: str, pause_s: float = _PAUSE_S
    ) -> None:
        self._topics, self._view, self._logs, self._pause_s = topics, view, logs, pause_s
        self._waits_ms = [
            GRACE_MS + crc32(f"{gateway_id}/{number}".encode()) % SPREAD_MS for number in range(partitions)
        ]
        self._busy: set[int] = set()

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for work in self.begin():
                    group.create_task(work)
                await asyncio.sleep(_TICK_S)

    def begin(self) -> list[Coroutine[Any, Any, None]]:
        """Return what is to be done now, a piece for each partition that has overdue tasks and is not at it already."""
        try:
            self._logs.require()
        except Unavailable:
            return []
        free = [number for number in range(len(self._waits_ms)) if number not in self._busy]
        overdue = (entry for number in free for entry in self._view.overdue(number, self._before_ms(number), MOST))
        oldest = heapq.nsmallest(MOST, overdue, key=lambda entry: entry.deadline_ms or 0)
        return [self._expire(*each) for each in Counter(entry.partition for entry in oldest).items()]

    async def _expire(self, partition: int, count: int) -> None:
        self._busy.add(partition)
        try:
            # A task of the view may have ended in the log.
            await self._logs.reach(partition)
            overdue = self._view.overdue(partition, self._before_ms(partition), count)
            writes = (end(entry, expired, self._topics, self._logs) for entry in overdue)
            for error in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(error, BaseException):
                    raise error
        except (Unavailable, WriteRefused) as error:
            log.warning("overdue tasks not ended; trying again", partition=partition, error=type(error).__name__)
            await asyncio.sleep(self._pause_s)
        finally:
            self._busy.discard(partition)

    def _before_ms(self, partition: int) -> int:
        return self._logs.now_ms - self._waits_ms[partition]
