"""The view: what the logs say of every task. Decisions only; whoever reads the logs feeds it.

It may be fed the topics in any order, each partition in offset order, and comes to the same answer. A task is (task_id, partition);
its outcome is the first record in the results log of that partition, and from then on nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from sys import intern

import orjson

from gateway.finished import Finished, FinishedFile
from gateway.ranks import Ranks
from gateway.recent import Recent
from gateway.records import Glance, glance
from schemas import headers as names
from schemas.codec import DecodeError, decode
from schemas.headers import Headers
from schemas.ids import home, made_id
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane, TopicNames
from streams.deadlines import LONGEST_MS
from streams.estimating import Rank
from streams.task import TaskKey

CLEANUP = "cleanup/"
_OUTCOMES = {outcome.value.encode(): outcome for outcome in Outcome}
_ORDER = {lane: number for number, lane in enumerate(Lane)}
# A place among the waiting: milliseconds, then partition and offset, in one integer.
_PARTITION_BITS, _OFFSET_BITS = 10, 48


@dataclass(slots=True)
class Unfinished:
    """A task without an outcome. `offset` is its lane record's; times are broker time, but for `created_at_ms`, the producer's.

    `attempts` 0: not started. `started_at_ms` and `backend` are the newest start's, None when only its count is known, as is
    `started_offset`, its record's in the progress log, -1. `deadline_ms` None: a worker refuses the request, or it is not known.
    `model` None: routing chooses. `next_try_ms`: it waits in a retry topic, and is not taken before; None once it is started again.
    """

    task_id: str
    partition: int
    tenant: str
    lane: Lane
    offset: int
    appended_ms: int
    created_at_ms: int
    agent_type: str | None
    batch_id: str | None
    cost_tokens: int
    deadline_ms: int | None = None
    attempts: int = 0
    started_at_ms: int | None = None
    started_offset: int = -1
    model: str | None = None
    backend: str | None = None
    next_try_ms: int | None = None

    @property
    def is_waiting(self) -> bool:
        return self.attempts == 0

    @property
    def place(self) -> int:
        """Return where it stands among those of its lane: older first."""
        return self._place(self.appended_ms)

    @property
    def due_place(self) -> int:
        """Return where it stands among those of its lane by deadline; what has none of its own is due last."""
        return self._place(self.appended_ms + LONGEST_MS if self.deadline_ms is None else self.deadline_ms)

    def _place(self, at_ms: int) -> int:
        return (at_ms << _PARTITION_BITS | self.partition) << _OFFSET_BITS | self.offset


@dataclass(frozen=True, slots=True)
class _Start:
    """A start, or (`at_ms` -1) how many there were before a retry topic."""

    attempt: int
    at_ms: int
    offset: int = -1
    backend: str | None = None


class View:
    """Answers for one gateway. Not thread-safe; its only writer is whoever follows the logs.

    `is_live` False while the log is read from the past: results then are not looked at for rates. `on_second_partition` hears of
    each task whose id is known on another partition number too.
    """

    def __init__(
        self,
        topics: TopicNames,
        partitions: int,
        finished: FinishedFile,
        *,
        on_second_partition: Callable[[], None] = lambda: None,
    ) -> None:
        self.finished, self.recent = finished, Recent()
        self.is_live = False
        self.not_understood = 0
        self.newest_ms = 0
        self._topics, self._partitions = topics, partitions
        self._on_second_partition = on_second_partition
        self._lanes = {topics.requests(lane): lane for lane in Lane}
        self._lane_of_source = {name.encode(): lane for name, lane in self._lanes.items()}
        self._unfinished: dict[TaskKey, Unfinished] = {}
        self._waiting: dict[Lane, Ranks[int]] = {lane: Ranks() for lane in Lane}
        self._waiting_by_due: dict[Lane, Ranks[int]] = {lane: Ranks() for lane in Lane}
        # Per partition, each unfinished task's deadline and id.
        self._due: list[Ranks[tuple[int, str]]] = [Ranks() for _ in range(partitions)]
        self._in_flight = dict.fromkeys(Lane, 0)
        # Where each lane's partition was read to, and starts of tasks beyond it, by the place of their request.
        self._read_to: dict[tuple[Lane, int], int] = {}
        self._early: dict[tuple[Lane, int, int], _Start] = {}

    # What the logs say

    def begins(self, lane: Lane, partition: int, offset: int) -> None:
        """A lane's partition is read from `offset` on: what lies before it has ended, or comes by a retry topic."""
        self._read_to[lane, partition] = offset

    def lane_record(
        self, lane: Lane, partition: int, offset: int, appended_ms: int, value: bytes | None, headers: Headers = ()
    ) -> str:
        """A request on a lane topic. Returns its task's id."""
        self._read_to[lane, partition] = offset + 1
        start = self._early.pop((lane, partition, offset), None)
        seen = glance(value)
        task_id = seen.task_id or made_id(lane, partition, offset)
        self._learn(task_id, partition, lane, offset, appended_ms, seen, seen.deadline_ms(appended_ms))
        self._note(seen.tenant, task_id, partition, appended_ms, headers)
        if start is not None:
            self._started(task_id, partition, start)
        return task_id

    def retry_record(self, partition: int, headers: Headers, value: bytes | None) -> None:
        """A request that waits for another try; its lane record may be long read and committed."""
        try:
            found = {name: text.decode() for name, text in headers if text and name.startswith("triage.")}
            task_id, lane = found[names.TASK_ID], Lane(found[names.LANE])
            source, appended_ms = Source.parse(found[names.SOURCE]), int(found[names.APPENDED_MS])
            attempts, deadline_ms = int(found.get(names.ATTEMPTS, 0)), int(found[names.DEADLINE_MS])
            not_before_ms = int(found.get(names.NOT_BEFORE_MS, 0))
        except (KeyError, ValueError):
            self.not_understood += 1
            return
        seen = glance(value)
        self._learn(task_id, partition, lane, source.offset, appended_ms, seen, deadline_ms)
        self._note(seen.tenant, task_id, partition, appended_ms, headers)
        self._started(task_id, partition, _Start(attempts, -1))
        entry = self._unfinished.get((task_id, partition))
        if entry is not None and entry.attempts <= attempts:  # else it is older than the newest start
            entry.next_try_ms = not_before_ms

    def progress_record(self, partition: int, value: bytes | None, offset: int = -1) -> list[str]:
        """A batch that was sent to a backend, or starts of such batches that came to nothing. Returns the ids of what was started."""
        try:
            raw = orjson.loads(value or b"")
            if "released" in raw:  # starts that came to nothing: the task stays what it is, and is tried again
                return []
            at_ms, rows = int(raw["at_ms"]), [(str(a), self._lanes[b], int(c), int(d)) for a, b, c, d in raw["tasks"]]
            backend = intern(str(raw["backend"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            self.not_understood += 1
            return []
        for task_id, lane, place, attempt in rows:
            start = _Start(max(attempt, 1), at_ms, offset, backend)
            if (task_id, partition) in self._unfinished:
                self._started(task_id, partition, start)
            elif place >= self._read_to.get((lane, partition), 0):
                known = self._early.get((lane, partition, place), start)
                newest = max(known, start, key=lambda each: each.at_ms)
                merged = replace(newest, attempt=max(known.attempt, start.attempt), offset=offset)
                self._early[lane, partition, place] = merged
        return [task_id for task_id, *_ in rows]

    def result_record(
        self, partition: int, offset: int, appended_ms: int, key: bytes | None, headers: Headers, value: bytes | None
    ) -> str | None:
        """A terminal record. Returns the task's id, None when the record cannot be understood."""
        row = self._result(partition, offset, appended_ms, key, headers, value)
        if row is None:
            self.not_understood += 1
            return None
        entry = self._unfinished.get((row.task_id, partition))
        if entry is not None:
            self._drop(entry)
        if self.is_live and (entry is not None or self._is_new(row.task_id, partition)):
            self.recent.observe(row.lane, row.outcome, appended_ms, value)
        self.finished.add(row)
        self.newest_ms = max(self.newest_ms, appended_ms)
        self._note(row.tenant, row.task_id, partition, appended_ms, headers)
        return row.task_id

    def state_record(self, key: bytes | None, value: bytes | None) -> None:
        """What is remembered together: here, up to when a tenant's finished tasks are forgotten."""
        try:
            name = (key or b"").decode()
            if name.startswith(CLEANUP) and value is not None:
                self.finished.forget(name.removeprefix(CLEANUP), int(orjson.loads(value)["through_ms"]))
        except (UnicodeDecodeError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError):
            self.not_understood += 1

    def forget_older(self, before_ms: int) -> int:
        """Drop what was appended before, and return how many tasks that were: their requests are past retention, so nobody runs them."""
        old = [entry for entry in self._unfinished.values() if entry.appended_ms < before_ms]
        for entry in old:
            self._drop(entry)
        self._early = {place: start for place, start in self._early.items() if start.at_ms >= before_ms}
        return len(old)

    # What is asked

    def find(self, task_id: str) -> Finished | Unfinished | None:
        """Return the task under this id: the one on home(id), else the one on the lowest partition number."""
        found: dict[int, Finished | Unfinished] = {row.partition: row for row in self.finished.find(task_id)}
        for partition in range(self._partitions):
            entry = self._unfinished.get((task_id, partition))
            if entry is not None:
                found[partition] = entry
        return (found.get(home(task_id, self._partitions)) or found[min(found)]) if found else None

    def unfinished(self, task: TaskKey) -> Unfinished | None:
        """Return a task that has no outcome."""
        return self._unfinished.get(task)

    def is_forgotten(self, row: Finished) -> bool:
        """Whether its tenant had the task forgotten."""
        return row.at_ms <= self.finished.forgotten_ms(row.tenant)

    def rank(self, entry: Unfinished) -> Rank:
        """Return how many waiting tasks of its lane are older, and how many have an earlier deadline."""
        lane = entry.lane
        return Rank(self._waiting[lane].before(entry.place), self._waiting_by_due[lane].before(entry.due_place))

    def rank_of_next(self, lane: Lane, due_ms: int) -> Rank:
        """Return the same for a task that would come now."""
        return Rank(len(self._waiting[lane]), self.due_before(lane, due_ms))

    def due_before(self, lane: Lane, due_ms: int) -> int:
        """Return how many waiting tasks of a lane are due before that."""
        return self._waiting_by_due[lane].before(due_ms << _PARTITION_BITS + _OFFSET_BITS)

    @property
    def all_waiting(self) -> dict[Lane, int]:
        return {lane: len(ranks) for lane, ranks in self._waiting.items()}

    def waiting(self, lane: Lane) -> int:
        return len(self._waiting[lane])

    def waiting_since(self, lane: Lane, before_ms: int) -> int:
        """Return how many waiting tasks of a lane were appended before."""
        return self._waiting[lane].before(before_ms << (_PARTITION_BITS + _OFFSET_BITS))

    def in_flight(self, lane: Lane) -> int:
        return self._in_flight[lane]

    def oldest_ms(self, lane: Lane) -> int | None:
        """Return when the longest waiting task of a lane was appended."""
        first = self._waiting[lane].first
        return None if first is None else first >> (_PARTITION_BITS + _OFFSET_BITS)

    def overdue(self, partition: int, before_ms: int, most: int) -> list[Unfinished]:
        """Return up to so many unfinished tasks of a partition whose deadline was not after `before_ms`, the oldest first."""
        rows = self._due[partition].smallest(most)
        return [self._unfinished[task_id, partition] for due_ms, task_id in rows if due_ms <= before_ms]

    def oldest_unfinished_ms(self) -> int | None:
        """Return when the oldest task without an outcome was appended: older records of its progress do not matter."""
        return min((entry.appended_ms for entry in self._unfinished.values()), default=None)

    # Inside

    def _learn(
        self,
        task_id: str,
        partition: int,
        lane: Lane,
        offset: int,
        appended_ms: int,
        seen: Glance,
        deadline_ms: int | None,
    ) -> None:
        """Take a request in, unless its task has ended; of several requests of one task the oldest counts."""
        key = (task_id, partition)
        known = self._unfinished.get(key)
        if known is None and not self._is_new(task_id, partition):
            return
        entry = Unfinished(
            task_id=task_id,
            partition=partition,
            tenant=seen.tenant,
            lane=lane,
            offset=offset,
            appended_ms=appended_ms,
            created_at_ms=appended_ms if seen.created_at_ms is None else seen.created_at_ms,
            agent_type=seen.agent_type,
            batch_id=seen.batch_id,
            cost_tokens=seen.cost_tokens,
            deadline_ms=deadline_ms,
            model=seen.model,
        )
        if known is not None:
            if _order_of_requests(known) <= _order_of_requests(entry):
                return
            entry.attempts, entry.started_at_ms, entry.started_offset = (
                known.attempts,
                known.started_at_ms,
                known.started_offset,
            )
            entry.backend, entry.next_try_ms = known.backend, known.next_try_ms
            self._drop(known)
        self._unfinished[key] = entry
        if deadline_ms is not None:
            self._due[partition].add((deadline_ms, task_id))
        self._count(entry)

    def _drop(self, entry: Unfinished) -> None:
        del self._unfinished[entry.task_id, entry.partition]
        if entry.deadline_ms is not None:
            self._due[entry.partition].remove((entry.deadline_ms, entry.task_id))
        self._uncount(entry)

    def _is_new(self, task_id: str, partition: int) -> bool:
        """Whether a task that is not among the unfinished has no outcome either. Tells of an id that is on another partition too."""
        ended_on = self.finished.partitions(task_id)
        if partition in ended_on:
            return False
        if ended_on or any((task_id, other) in self._unfinished for other in range(self._partitions)):
            self._on_second_partition()
        return True

    def _started(self, task_id: str, partition: int, start: _Start) -> None:
        entry = self._unfinished.get((task_id, partition))
        if entry is None or start.attempt <= 0:
            return
        self._uncount(entry)
        if start.at_ms >= 0:
            if start.attempt > entry.attempts:
                entry.next_try_ms = None
            if start.at_ms >= (entry.started_at_ms or 0):
                entry.started_at_ms, entry.backend = start.at_ms, start.backend
        entry.attempts = max(entry.attempts, start.attempt)
        entry.started_offset = max(start.offset, entry.started_offset)
        self._count(entry)

    def _note(self, tenant: str, task_id: str, partition: int, appended_ms: int, headers: Headers) -> None:
        batch = key_hash = None
        for name, text in headers:
            if name == names.BATCH:
                batch = text
            elif name == names.IDEMPOTENCY:
                key_hash = text
        if batch is not None or key_hash is not None:
            self.finished.groups.note(tenant, task_id, partition, appended_ms, batch=batch, key_hash=key_hash)

    def _result(
        self, partition: int, offset: int, at_ms: int, key: bytes | None, headers: Headers, value: bytes | None
    ) -> Finished | None:
        """Read a terminal record from its key and headers; one that others wrote may lack them and is parsed."""
        tenant = outcome = source = batch = None
        for name, text in headers:
            if name == names.OUTCOME:
                outcome = _OUTCOMES.get(text)
            elif name == names.TENANT:
                tenant = text
            elif name == names.SOURCE:
                source = text
            elif name == names.BATCH:
                batch = text
        try:
            lane = self._lane_of_source.get(source.rsplit(b"/", 2)[0]) if source else None
            if key is None or outcome is None or tenant is None or lane is None:
                result = decode(Result, value or b"")
                key, tenant = result.task_id.encode(), result.tenant.encode()
                outcome, lane = result.outcome, result.priority
            batch_id = batch.decode().rsplit(";", 2)[0] if batch else None
            return Finished(key.decode(), partition, tenant.decode(), outcome, lane, offset, at_ms, batch_id)
        except (DecodeError, UnicodeDecodeError):
            return None

    def _count(self, entry: Unfinished) -> None:
        if entry.is_waiting:
            self._waiting[entry.lane].add(entry.place)
            self._waiting_by_due[entry.lane].add(entry.due_place)
        else:
            self._in_flight[entry.lane] += 1

    def _uncount(self, entry: Unfinished) -> None:
        if entry.is_waiting:
            self._waiting[entry.lane].remove(entry.place)
            self._waiting_by_due[entry.lane].remove(entry.due_place)
        else:
            self._in_flight[entry.lane] -= 1


def _order_of_requests(entry: Unfinished) -> tuple[int, int, int]:
    return entry.appended_ms, _ORDER[entry.lane], entry.offset
