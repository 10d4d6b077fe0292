"""What the task routes do: submit, status, result, cancel. HTTP is above it, the logs are below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway import ids, rendering
from gateway.callers import Caller
from gateway.ending import end
from gateway.finished import Finished
from gateway.fleet import Fleet
from gateway.ports import Logs
from gateway.problems import Kind, Problem
from gateway.submission import parsed, submission
from gateway.view import Unfinished, View
from gateway.waiters import Waiters
from schemas import headers as names
from schemas.headers import Headers
from schemas.ids import home, is_task_id
from schemas.result import Outcome
from schemas.topics import DAY_MS, Lane, TopicNames
from streams.outcome import cancelled
from wire.producing import RecordTooLarge

CANCEL_WAIT_S = 2.0
REQUESTS_KEPT_MS = 3 * DAY_MS
RESULTS_KEPT_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: dict[str, Any]


class Tasks:
    """The task routes over one view. Every method answers for one caller and shows only its own tenant's tasks.

    Raises, everywhere: Problem, and Unavailable while the view cannot tell.
    """

    def __init__(
        self,
        topics: TopicNames,
        partitions: int,
        view: View,
        fleet: Fleet,
        logs: Logs,
        waiters: Waiters,
        *,
        random: Callable[[int], bytes],
    ) -> None:
        self._topics, self._partitions = topics, partitions
        self._view, self._fleet, self._logs, self._waiters = view, fleet, logs, waiters
        self._random = random

    async def submit(self, caller: Caller, body: bytes, trace: Headers = ()) -> Answer:
        """Write a request to its lane; returns when it is durable. `trace` are headers that go along into the result."""
        self._logs.require()
        now_ms = self._logs.now_ms
        random = self._random(ids.RANDOM_BYTES)
        made = submission(parsed(body), caller.tenant, self._partitions, now_ms=now_ms, random=random)
        topic = self._topics.requests(made.lane)
        await self._append(topic, made.partition, made.key, made.value, [names.CONTENT_TYPE, *trace])
        links = {
            "status": f"/v1/async/status/{made.task_id}",
            "result": f"/v1/async/result/{made.task_id}",
            "cancel": f"/v1/async/cancel/{made.task_id}",
        }
        return Answer(
            202,
            {
                "task_id": made.task_id,
                "status": rendering.QUEUED,
                "priority": made.lane.value,
                "position": self._position_of_next(made.lane),
                "estimate": None,
                "links": links,
            },
        )

    async def status(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """Return where a task stands now."""
        found = await self._found(caller, task_id)
        if isinstance(found, Unfinished):
            return self._unfinished(found)
        return rendering.finished_status(found, await self._body(found))

    async def result(self, caller: Caller, task_id: str, wait_s: float) -> Answer:
        """Return a task's result, waiting for it at most `wait_s`; 202 and the status while it is unfinished."""
        found = await self._found(caller, task_id)
        if isinstance(found, Unfinished) and wait_s > 0:
            await self._waiters.ended((task_id, found.partition), wait_s)
            found = await self._found(caller, task_id)
        if isinstance(found, Unfinished):
            return Answer(202, self._unfinished(found))
        return Answer(200, {**await self._body(found), "status": found.outcome.value})

    async def cancel(self, caller: Caller, task_id: str) -> Answer:
        """End a task as cancelled, unless the log already holds another outcome; the first record in the log decides."""
        found = await self._found(caller, task_id)
        if isinstance(found, Unfinished):
            offset = await self._write_cancelled(found)
            await self._logs.reach_result(found.partition, offset, CANCEL_WAIT_S)
            found = self._view.find(task_id) or found
        if isinstance(found, Unfinished):
            return Answer(202, self._unfinished(found))
        if found.outcome is not Outcome.CANCELLED:
            ended = found.outcome.value
            raise Problem(Kind.ENDED, f"its outcome is {ended}", task_id=task_id, outcome=ended)
        was = rendering.was_before(await self._body(found))
        return Answer(200, {"task_id": task_id, "status": Outcome.CANCELLED.value, "was": was})

    def stats(self) -> dict[str, Any]:
        """Return the queue's figures."""
        self._logs.require()
        now_ms = self._logs.now_ms
        return rendering.stats(self._view, self._fleet.workers(now_ms), now_ms)

    # Inside

    async def _found(self, caller: Caller, task_id: str) -> Finished | Unfinished:
        """Return the caller's task. An outcome never changes; anything else holds only at the end of the logs."""
        self._logs.require()
        if not is_task_id(task_id):
            raise Problem(Kind.NOT_FOUND)
        found = self._view.find(task_id)
        if found is None or not self._is_at_home(found):
            await self._logs.reach(None)
            found = self._view.find(task_id)
        if isinstance(found, Unfinished):
            await self._logs.reach(found.partition)
            found = self._view.find(task_id)
        if found is None and self._is_past(task_id):
            raise Problem(Kind.GONE)
        if found is None or found.tenant != caller.tenant:
            raise Problem(Kind.NOT_FOUND)
        return found

    def _is_at_home(self, found: Finished | Unfinished) -> bool:
        """Whether no other task of this id can take its place: of several the one on home(id) is shown."""
        return found.partition == home(found.task_id, self._partitions)

    def _is_past(self, task_id: str) -> bool:
        """Whether a task that is not known may have been there: its deadline lay within its request's retention."""
        made_ms = ids.made_at_ms(task_id)
        return made_ms is not None and made_ms < self._logs.now_ms - REQUESTS_KEPT_MS

    def _unfinished(self, entry: Unfinished) -> dict[str, Any]:
        is_known = entry.is_waiting and self._fleet.is_fresh(self._logs.now_ms)
        return rendering.unfinished_status(entry, 1 + self._view.ahead(entry) if is_known else None)

    def _position_of_next(self, lane: Lane) -> int | None:
        return 1 + self._view.ahead_of_next(lane) if self._fleet.is_fresh(self._logs.now_ms) else None

    async def _body(self, row: Finished) -> dict[str, Any]:
        if row.at_ms < self._logs.now_ms - RESULTS_KEPT_MS:
            raise Problem(Kind.GONE)
        stored = await self._logs.read(self._topics.results, row.partition, row.offset)
        if stored is None:
            raise Problem(Kind.GONE)
        return rendering.result_body(stored.value)

    async def _append(self, topic: str, partition: int, key: bytes, value: bytes, headers: Headers) -> int:
        try:
            return await self._logs.append(topic, partition, key=key, value=value, headers=headers)
        except RecordTooLarge:
            raise Problem(Kind.TOO_LARGE) from None

    async def _write_cancelled(self, entry: Unfinished) -> int:
        try:
            return await end(entry, cancelled, self._topics, self._logs)
        except RecordTooLarge:
            raise Problem(Kind.TOO_LARGE) from None
