"""A worker's snapshot on `triage.workers`: every second when it changed, else every three."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace

from schemas.codec import encode
from schemas.progress import WorkerSnapshot
from wire.producing import DurableProducer

_UNCHANGED_EVERY = 3


class Snapshots:
    """Sends what `describe` says of the worker. The first one, awaited before intake, also sets the broker's clock."""

    def __init__(
        self, producer: DurableProducer, topic: str, worker: str, describe: Callable[[], WorkerSnapshot]
    ) -> None:
        self._producer, self._topic, self._key = producer, topic, worker.encode()
        self._describe = describe
        self._last: WorkerSnapshot | None = None
        self._unchanged = 0

    async def send(self) -> None:
        """Send a snapshot and wait until it is durable."""
        await self._producer.write(self._topic, 0, key=self._key, value=encode(self._describe()))

    async def tick(self) -> None:
        """Called each second."""
        snapshot = self._describe()
        self._unchanged += 1
        if _content(snapshot) == _content(self._last) and self._unchanged < _UNCHANGED_EVERY:
            return
        self._last, self._unchanged = snapshot, 0
        await self._producer.post(self._topic, 0, key=self._key, value=encode(snapshot))

    async def retract(self) -> None:
        """Say that this worker is gone."""
        await self._producer.write(self._topic, 0, key=self._key, value=None)


def _content(snapshot: WorkerSnapshot | None) -> object:
    """Return what counts as a change: everything but the time of day."""
    return snapshot and replace(snapshot, at_ms=0)


def process_identity() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
