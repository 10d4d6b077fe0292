"""A worker that kills itself at a durable boundary: `python -m tests.faults.boundaries worker ...`, with DIES_AT in the environment.

DIES_AT is `KIND:before:N` or `KIND:after:N`: the N-th time that a record of this kind is handed to the producer, or is acknowledged
by the brokers (of snapshots those count in which tasks are in flight); that a delivery is completed; that a group's offsets are
committed. The patches are here, so that the product has no switch for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer

from agents.delivery import Delivery
from agents.intake import LaneIntake
from agents.retries import RetryIntake
from cli.main import run
from wire.producing import DurableProducer
from wire.sending import Record, Sender

DIES_AT = "DIES_AT"
_RECORDS = {".progress": "started", ".results": "result", ".retry.5s": "retry", ".workers": "snapshot"}
_DEAD_LETTER = "dead-letter"
_IDLE = b'"in_flight":[]'
KINDS = (*_RECORDS.values(), _DEAD_LETTER, "ack", "retry-ack", "commit", "retry-commit")


class Boundary:
    """Counts what passes a boundary, and ends the process at the wanted one as kill -9 does: nothing is flushed or said."""

    def __init__(self, wanted: str) -> None:
        self._kind, self._when, number = wanted.split(":")
        self._left = int(number)

    def reach(self, kind: str, when: str) -> None:
        if (kind, when) != (self._kind, self._when):
            return
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def _kind_of(topic: str) -> str | None:
    if topic.startswith("dlq."):
        return _DEAD_LETTER
    return next((kind for ending, kind in _RECORDS.items() if topic.endswith(ending)), None)


def _patch_records(boundary: Boundary) -> None:
    send = DurableProducer._send

    async def watched(self: DurableProducer, sender: Sender, record: Record) -> asyncio.Future[Any]:
        kind = _kind_of(record.topic)
        if kind is None or (kind == "snapshot" and _IDLE in (record.value or _IDLE)):
            return await send(self, sender, record)
        boundary.reach(kind, "before")
        future = await send(self, sender, record)
        future.add_done_callback(lambda _: boundary.reach(kind, "after"))  # before whoever waits for it goes on
        return future

    DurableProducer._send = watched  # type: ignore[method-assign]


def _patch_acks(boundary: Boundary, intake: type[LaneIntake] | type[RetryIntake], kind: str) -> None:
    complete: Callable[[Any, Delivery], None] = intake.complete

    def watched(self: Any, delivery: Delivery) -> None:
        boundary.reach(kind, "before")
        complete(self, delivery)
        boundary.reach(kind, "after")

    intake.complete = watched  # type: ignore[method-assign]


def _patch_commits(boundary: Boundary) -> None:
    commit = AIOKafkaConsumer.commit

    async def watched(self: AIOKafkaConsumer, offsets: Any = None) -> None:
        if not offsets or self._group_id.endswith("-control"):
            await commit(self, offsets)
            return
        kind = "retry-commit" if self._group_id.endswith("-retry") else "commit"
        boundary.reach(kind, "before")
        await commit(self, offsets)
        boundary.reach(kind, "after")

    AIOKafkaConsumer.commit = watched


if __name__ == "__main__":
    wanted = Boundary(os.environ[DIES_AT])
    _patch_records(wanted)
    _patch_acks(wanted, LaneIntake, "ack")
    _patch_acks(wanted, RetryIntake, "retry-ack")
    _patch_commits(wanted)
    run()
