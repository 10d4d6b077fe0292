"""Many tasks in one call, and how they stand together. Which task belongs to which batch is told by the records' own headers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway import ids, rendering
from gateway.callers import Caller
from gateway.groups import BATCH_ID, Member, Membership
from gateway.metrics import GatewayMetrics
from gateway.ports import Logs, OutcomeUnknown, Unavailable
from gateway.problems import Kind, Problem, described, invalid
from gateway.submission import Submission, drafted, parsed
from gateway.tasks import Answer, Tasks
from gateway.view import View
from schemas import headers as names
from schemas.headers import Headers
from schemas.result import Outcome
from schemas.topics import Lane, TopicNames
from wire.producing import RecordTooLarge

MOST_TASKS = 10_000
MOST_BYTES = 64 << 20
# Bodies held at one time by all calls together.
_MOST_HELD_BYTES = 4 * MOST_BYTES
SUBMIT_ROUTE = "submit-batch"
# A body of this size is parsed beside the loop, and after so many tasks others have a turn.
_LARGE_BYTES, _TURN = 256 << 10, 20
_AT_ONCE = 256
FORGOTTEN = "forgotten"


@dataclass
class _Batch:
    """A batch on its way: its tasks that are taken by index, `known` those that are written already, and what is wrong with the others."""

    batch_id: str
    task_ids: dict[int, str] = field(default_factory=dict)
    left: list[tuple[int, Submission]] = field(default_factory=list)
    rejected: list[tuple[int, Problem]] = field(default_factory=list)


class Batches:
    """The batch routes over one view, for one caller each.

    Raises, everywhere: Problem, and Unavailable while the view cannot tell.
    """

    def __init__(
        self, topics: TopicNames, partitions: int, view: View, logs: Logs, tasks: Tasks, metrics: GatewayMetrics
    ) -> None:
        self._topics, self._partitions, self._view, self._logs = topics, partitions, view, logs
        self._tasks, self._metrics = tasks, metrics
        self._held_bytes = 0

    @asynccontextmanager
    async def room(self, told_bytes: int | None) -> AsyncIterator[None]:
        """Hold room for a body while it is read and written. `told_bytes` None: its length is not known. Raises: Unavailable."""
        self._tasks.require_room()
        size = min(MOST_BYTES if told_bytes is None else told_bytes, MOST_BYTES)
        if self._held_bytes + size > _MOST_HELD_BYTES:
            raise Unavailable("too many batches are being read at this moment")
        self._held_bytes += size
        try:
            yield
        finally:
            self._held_bytes -= size

    async def submit(self, caller: Caller, body: bytes, trace: Headers = (), key: str | None = None) -> Answer:
        """Write the tasks of a list to their lanes; returns when all that are taken are durable. A wrong one does not fail the others.

        Raises: OutcomeUnknown when one of them was not acknowledged; with the same `key` the rest is written in another call.
        """
        raw = await asyncio.to_thread(parsed, body) if len(body) > _LARGE_BYTES else parsed(body)
        items = _items(raw)
        key_hash = None if key is None else ids.hash_of(caller.tenant, SUBMIT_ROUTE, key)
        if key_hash is None:
            batch_id = ids.new_batch_id(self._logs.now_ms, self._random())
        else:
            batch_id = f"sb-{ids.hash_of(key_hash, body)}"
        body_hash = ids.hash_of(body)
        self._tasks.sends.refuse_other(batch_id, body_hash, key_hash)
        known = await self._known(caller.tenant, batch_id, key_hash, items)
        batch = await self._prepared(caller.tenant, batch_id, items, known, is_keyed=key_hash is not None)
        for _, problem in batch.rejected:
            self._metrics.rejected.labels(problem.kind.name_in_type).inc()
        headers = [*trace, *([] if key_hash is None else [(names.IDEMPOTENCY, key_hash.encode())])]

        async def write() -> None:
            await self._write(batch, headers)

        is_ours = bool(batch.left) and await self._tasks.sends.once(batch_id, body_hash, key_hash, write)
        return Answer(202, _answer(batch), replayed=bool(batch.task_ids) and not is_ours)

    async def status(self, caller: Caller, batch_id: str) -> dict[str, Any]:
        """Return how the tasks of a batch stand now."""
        members = await self.members(caller, batch_id)
        rows = [(member, self.state_of(caller, member)) for member in members]
        counts = Counter(state for _, state in rows)
        if counts[FORGOTTEN] == len(rows):
            raise Problem(Kind.GONE, "its tasks are forgotten or past their retention")
        total = max(member.total for member in members)
        ended = sum(counts[outcome.value] for outcome in Outcome)
        return {
            "batch_id": batch_id,
            "total": total,
            **{outcome.value: counts[outcome.value] for outcome in Outcome},
            "pending": max(total - ended - counts[FORGOTTEN], 0),
            FORGOTTEN: counts[FORGOTTEN],
            "tasks": [
                {"task_id": member.task_id, "index": member.index, "status": state}
                for member, state in rows
                if state != FORGOTTEN
            ],
        }

    async def members(self, caller: Caller, batch_id: str) -> Sequence[Member]:
        """Return the caller's tasks of a batch as the logs have them now."""
        self._logs.require()
        if BATCH_ID.fullmatch(batch_id) is None:
            raise Problem(Kind.NOT_FOUND, "there is no such batch")
        await self._logs.reach(None)
        members = self._view.finished.members(caller.tenant, batch_id)
        if not members:
            raise Problem(Kind.NOT_FOUND, "there is no such batch")
        return members

    def state_of(self, caller: Caller, member: Member) -> str:
        """Return a member's status; `forgotten` by a cleanup, or past its retention."""
        if member.ended is not None:
            is_forgotten = member.ended.at_ms <= self._view.finished.forgotten_ms(caller.tenant)
            return FORGOTTEN if is_forgotten else member.ended.outcome.value
        entry = self._view.unfinished((member.task_id, member.partition))
        return FORGOTTEN if entry is None else rendering.state_of(entry)

    # Inside

    def _random(self) -> bytes:
        return self._tasks.random(ids.RANDOM_BYTES)

    async def _known(self, tenant: str, batch_id: str, key_hash: str | None, items: Sequence[Any]) -> set[str]:
        """Return the tasks that an earlier call has written. Raises: Problem when its key stands for another body."""
        has_ids = any(isinstance(item, dict) and item.get("task_id") is not None for item in items)
        if key_hash is None and not has_ids:
            return set()
        await self._logs.reach(None)
        claims = set() if key_hash is None else self._view.finished.claims(key_hash)
        if claims and batch_id not in claims:
            raise Problem(Kind.KEY_REUSED)
        return {member.task_id for member in self._view.finished.members(tenant, batch_id)}

    async def _prepared(
        self, tenant: str, batch_id: str, items: Sequence[Any], known: set[str], *, is_keyed: bool
    ) -> _Batch:
        batch, taken = _Batch(batch_id), set[str]()
        for index, item in enumerate(items):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                task_id, made = self._task(tenant, batch_id, index, item, known, taken, is_keyed=is_keyed)
            except Problem as problem:
                batch.rejected.append((index, problem))
                continue
            taken.add(task_id)
            batch.task_ids[index] = task_id
            if made is not None:
                batch.left.append((index, made))
        return batch

    def _task(
        self, tenant: str, batch_id: str, index: int, item: object, known: set[str], taken: set[str], *, is_keyed: bool
    ) -> tuple[str, Submission | None]:
        """Return a task's id and its record, no record when it is written already."""
        self._tasks.room.require(item.get("priority") if isinstance(item, dict) else None)
        draft = drafted(item, tenant)
        now_ms, own_id = self._logs.now_ms, draft.body.task_id
        if own_id is not None:
            task_id = own_id
        elif is_keyed:
            task_id = ids.keyed_task_id(draft.fingerprint, ids.hash_of(batch_id, str(index)))
        else:
            task_id = ids.new_task_id(draft.fingerprint, now_ms, self._random())
        if task_id in known:
            return task_id, None
        if own_id is not None and (own_id in taken or self._view.find(own_id) is not None):
            raise Problem(Kind.ID_TAKEN)
        made = draft.submission(task_id, self._partitions, now_ms=now_ms, batch_id=batch_id)
        if draft.has_deadline:
            self._tasks.waits.of_next(made)
        return task_id, made

    async def _write(self, batch: _Batch, headers: Headers) -> None:
        left = iter(batch.left)
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(self._write_some(left, batch, headers)) for _ in range(_AT_ONCE)]
        if failed := [error for writer in writers if (error := writer.result()) is not None]:
            raise OutcomeUnknown(f"{len(failed)} of the tasks of {batch.batch_id} were not acknowledged: {failed[0]}")

    async def _write_some(
        self, left: Iterator[tuple[int, Submission]], batch: _Batch, headers: Headers
    ) -> Unavailable | None:
        """Write what nobody else has taken from `left`; returns what ended it early."""
        total = len(batch.task_ids)
        for index, made in left:
            membership = Membership(batch.batch_id, index, total).encode()
            record_headers = [names.CONTENT_TYPE, (names.BATCH, membership), *headers]
            topic = self._topics.requests(made.lane)
            try:
                await self._logs.append(topic, made.partition, key=made.key, value=made.value, headers=record_headers)
            except Unavailable as error:
                return error
            except RecordTooLarge:  # a record of 1 MiB fits, unless the topic is not the catalogue's
                return Unavailable("Kafka takes no record of this size")
            self._metrics.accepted[Lane(made.lane)].inc()
        return None


def _items(raw: dict[str, Any]) -> list[Any]:
    items = raw.get("tasks")
    if not isinstance(items, list):
        raise invalid("/tasks", "must be a list of requests")
    if not 1 <= len(items) <= MOST_TASKS:
        raise invalid("/tasks", f"must have 1 to {MOST_TASKS} requests")
    return items


def _answer(batch: _Batch) -> dict[str, Any]:
    return {
        "batch_id": batch.batch_id,
        "task_ids": [batch.task_ids[index] for index in sorted(batch.task_ids)],
        "accepted": len(batch.task_ids),
        "rejected": [{"index": index, "error": described(problem)} for index, problem in batch.rejected],
    }
