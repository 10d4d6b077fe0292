"""What the routes of single tasks do: submit, status, result, explain, cancel. HTTP is above it, the logs are below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway import ids, reasons, rendering
from gateway.callers import Caller
from gateway.ending import end
from gateway.finished import Finished
from gateway.fleet import Fleet
from gateway.laneroom import LaneRoom
from gateway.ports import Logs
from gateway.problems import Kind, Problem
from gateway.sends import Sends
from gateway.submission import Draft, Submission, drafted, parsed
from gateway.view import Unfinished, View
from gateway.waiters import Waiters
from gateway.waits import Wait, Waits
from schemas import headers as names
from schemas.headers import Headers
from schemas.ids import home, is_task_id
from schemas.result import Outcome, Source
from schemas.topics import DAY_MS, Lane, TopicNames
from streams.outcome import cancelled
from streams.settings import ModelSettings
from wire.producing import RecordTooLarge

CANCEL_WAIT_S = 2.0
REQUESTS_KEPT_MS = 3 * DAY_MS
RESULTS_KEPT_MS = 7 * DAY_MS


SUBMIT_ROUTE = "submit"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body. `replayed`: an earlier call of the same had been taken, and nothing was written."""

    status: int
    body: dict[str, Any]
    replayed: bool = False


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
        models: Sequence[ModelSettings] = (),
    ) -> None:
        self._topics, self._partitions = topics, partitions
        self._view, self._fleet, self._logs, self._waiters = view, fleet, logs, waiters
        self.random = random
        self.sends, self.room = Sends(), LaneRoom(view, logs)
        self.waits = Waits(topics, view, fleet, logs, models)

    def require_room(self) -> None:
        """Return when a request could be taken now. Raises: Unavailable. Cheap: to be asked before a body is read."""
        self._logs.require()
        self.room.require_any()

    async def submit(self, caller: Caller, body: bytes, trace: Headers = (), key: str | None = None) -> Answer:
        """Write a request to its lane; returns when it is durable. `trace` are headers that go along into the result.

        With `key` (an idempotency key) or an id of the caller's own, the same body again is the same task again.
        """
        self.require_room()
        raw = parsed(body)
        self.room.require(raw.get("priority"))
        draft = drafted(raw, caller.tenant)
        if key is not None or draft.body.task_id is not None:
            return await self._submit_once(draft, body, trace, key)
        now_ms = self._logs.now_ms
        task_id = ids.new_task_id(draft.fingerprint, now_ms, self.random(ids.RANDOM_BYTES))
        made = draft.submission(task_id, self._partitions, now_ms=now_ms)
        wait = self.waits.of_next(made)
        await self._write(made, trace)
        return Answer(202, self._submitted(task_id, draft.body.priority, wait))

    async def status(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """Return where a task stands now."""
        return await self.status_of(await self.found(caller, task_id))

    async def status_of(self, found: Finished | Unfinished) -> dict[str, Any]:
        """Return the status body of a task."""
        if isinstance(found, Unfinished):
            return self._unfinished(found)
        return rendering.finished_status(found, await self._body(found))

    async def result(self, caller: Caller, task_id: str, wait_s: float) -> Answer:
        """Return a task's result, waiting for it at most `wait_s`; 202 and the status while it is unfinished."""
        found = await self.found(caller, task_id)
        if isinstance(found, Unfinished) and wait_s > 0:
            await self._waiters.ended((task_id, found.partition), wait_s)
            found = await self.found(caller, task_id)
        if isinstance(found, Unfinished):
            return Answer(202, self._unfinished(found))
        return Answer(200, {**await self._body(found), "status": found.outcome.value})

    async def explain(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """Return why a task stands where it does, or how it ended."""
        found = await self.found(caller, task_id)
        if isinstance(found, Unfinished):
            return reasons.unfinished(found, self.waits.explained(found))
        body = await self._body(found)
        return reasons.finished(rendering.finished_status(found, body), body)

    async def cancel(self, caller: Caller, task_id: str) -> Answer:
        """End a task as cancelled, unless the log already holds another outcome; the first record in the log decides."""
        found = await self.found(caller, task_id)
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

    async def _submit_once(self, draft: Draft, body: bytes, trace: Headers, key: str | None) -> Answer:
        tenant, own_id, body_hash = draft.tenant, draft.body.task_id, draft.asked
        key_hash = None if key is None else ids.hash_of(tenant, SUBMIT_ROUTE, key)
        task_id = own_id or ids.keyed_task_id(draft.fingerprint, ids.hash_of(tenant, SUBMIT_ROUTE, key or "", body))
        self.sends.refuse_other(task_id, body_hash, key_hash)
        await self._logs.reach(None)
        claims = set() if key_hash is None else self._view.finished.claims(key_hash)
        if claims and task_id not in claims:
            raise Problem(Kind.KEY_REUSED)
        found = self._view.find(task_id)
        if found is not None:
            if own_id is not None and not await self._asks_the_same(draft, found):
                raise Problem(Kind.ID_TAKEN, task_id=task_id)
            known = self.waits.of(found) if isinstance(found, Unfinished) else Wait()
            return Answer(202, self._submitted(task_id, found.lane, known), replayed=True)
        headers = [*trace, *([] if key_hash is None else [(names.IDEMPOTENCY, key_hash.encode())])]

        wait = Wait()

        async def write() -> None:
            nonlocal wait
            made = draft.submission(task_id, self._partitions, now_ms=self._logs.now_ms)
            wait = self.waits.of_next(made)
            await self._write(made, headers)

        is_ours = await self.sends.once(task_id, body_hash, key_hash, write)
        return Answer(202, self._submitted(task_id, draft.body.priority, wait), replayed=not is_ours)

    async def _asks_the_same(self, draft: Draft, found: Finished | Unfinished) -> bool:
        """Whether a known task is what a draft asks; False also when its request can no longer be read."""
        if found.tenant != draft.tenant:
            return False
        source: Source | None = None
        if isinstance(found, Unfinished):
            source = Source(self._topics.requests(found.lane), found.partition, found.offset)
        else:
            result = await self._logs.read(self._topics.results, found.partition, found.offset)
            raw = rendering.result_body(result.value if result else None).get("source")
            topic, offset = self._topics.requests(found.lane), raw.get("offset") if isinstance(raw, dict) else None
            if isinstance(raw, dict) and raw.get("topic") == topic and isinstance(offset, int):
                source = Source(topic, found.partition, offset)
        request = None if source is None else await self._logs.read(source.topic, source.partition, source.offset)
        return request is not None and draft.is_of(found.lane, request.value)

    async def _write(self, made: Submission, headers: Headers) -> None:
        topic = self._topics.requests(made.lane)
        await self._append(topic, made.partition, made.key, made.value, [names.CONTENT_TYPE, *headers])

    def _submitted(self, task_id: str, lane: Lane, wait: Wait) -> dict[str, Any]:
        links = {
            "status": f"/v1/async/status/{task_id}",
            "result": f"/v1/async/result/{task_id}",
            "cancel": f"/v1/async/cancel/{task_id}",
            "explain": f"/v1/async/explain/{task_id}",
        }
        return {
            "task_id": task_id,
            "status": rendering.QUEUED,
            "priority": lane.value,
            "position": wait.position,
            "estimate": None if wait.estimate is None else asdict(wait.estimate),
            "links": links,
        }

    async def found(self, caller: Caller, task_id: str) -> Finished | Unfinished:
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
        if isinstance(found, Finished) and self._view.is_forgotten(found):
            raise Problem(Kind.GONE, "a cleanup had it forgotten")
        return found

    def _is_at_home(self, found: Finished | Unfinished) -> bool:
        """Whether no other task of this id can take its place: of several the one on home(id) is shown."""
        return found.partition == home(found.task_id, self._partitions)

    def _is_past(self, task_id: str) -> bool:
        """Whether a task that is not known may have been there: its deadline lay within its request's retention."""
        made_ms = ids.made_at_ms(task_id)
        return made_ms is not None and made_ms < self._logs.now_ms - REQUESTS_KEPT_MS

    def _unfinished(self, entry: Unfinished) -> dict[str, Any]:
        return rendering.unfinished_status(entry, *self.waits.of(entry))

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
