"""A task as the topics tell it: its outcome, or its request and whether somebody works on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aiokafka import TopicPartition

from cli.errors import Failed
from gateway.records import glance
from gateway.view import Unfinished
from schemas import headers as header_names
from schemas.codec import DecodeError, decode
from schemas.ids import home, made_id
from schemas.progress import Started
from schemas.result import Source
from schemas.topics import Lane, RetryTier, TopicNames

_RETRY_GROUP = "retry"
_ORDER = {lane: number for number, lane in enumerate(Lane)}

Offsets = Mapping[TopicPartition, int]
Record = Any


class Reader(Protocol):
    """The part of `wire.reading.LogReader` that is used here."""

    async def partitions(self) -> dict[str, int]: ...
    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    def read(self, starts: Offsets, ends: Offsets) -> AsyncIterator[Record]: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """A task with an outcome: the first record of its id in the results log of its partition."""

    record: Record


@dataclass(frozen=True, slots=True)
class NextTry:
    """A task waits on a retry topic; `not_before_ms` is broker time."""

    topic: str
    not_before_ms: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A task without an outcome in its results log up to `results_end`. `source` is the place of its request, `value` and `headers`
    are the request's, None and empty when Kafka no longer has it.
    """

    entry: Unfinished
    source: Source
    value: bytes | None
    headers: header_names.Headers
    next_try: NextTry | None = None
    results_end: int = 0


@dataclass(frozen=True, slots=True)
class _Removed:
    """What is left of a request that Kafka no longer has."""

    partition: int
    value: None = None
    headers: header_names.Headers = ()


@dataclass(frozen=True, slots=True)
class _Start:
    partition: int
    topic: str
    offset: int
    attempt: int
    at_ms: int
    backend: str


async def partition_count(reader: Reader, topic: str) -> int:
    """Return how many partitions a topic has in this cluster. Raises: Failed when there is no such topic."""
    return _count(await reader.partitions(), topic)


async def find(reader: Reader, names: TopicNames, task_id: str, partition: int | None) -> Ended | Pending | None:
    """Return the task, looked for on its home partition before any other; None when nothing is known of it.

    `partition` looks at that one alone. Reads the results log from its oldest record on, since a log has no index, and the lanes and
    retries from where the workers have committed: what lies before has an outcome, or was handed over.

    Raises: Failed for a topic or a partition that is not there.
    """
    there = await reader.partitions()
    turns = _in_turn(task_id, partition, _count(there, names.results))
    # Asked before the results are read: who is committed by now has its outcome or its hand-over in the logs that are read next.
    begins = await _unfinished_from(reader, names, there, [number for numbers in turns for number in numbers])
    for numbers in turns:
        tps = _tps(names.results, numbers)
        ends = await reader.ends(tps)
        ended = await _first(reader, task_id, await reader.starts(tps), ends)
        if ended:
            return Ended(ended[min(ended)])
        pending = await _pending(
            reader, names, task_id, {tp: at for tp, at in begins.items() if tp.partition in numbers}
        )
        if pending:
            found = pending[min(pending)]
            return replace(found, results_end=ends[TopicPartition(names.results, found.entry.partition)])
    return None


async def first_result(reader: Reader, results: TopicPartition, task_id: str, start: int, end: int) -> Ended | None:
    """Return the task's outcome if it lies in this stretch of its results log."""
    found = await _first(reader, task_id, {results: start}, {results: end})
    return Ended(found[results.partition]) if found else None


def _count(there: Mapping[str, int], topic: str) -> int:
    if topic not in there:
        raise Failed(f"The topic {topic} is not there: `triage topics apply` creates it.")
    return there[topic]


def _tps(topic: str, numbers: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in numbers]


def _in_turn(task_id: str, partition: int | None, count: int) -> list[list[int]]:
    """Return the partitions to look at together, in turn."""
    if partition is not None:
        if partition >= count:
            raise Failed(f"There is no partition {partition}: the topics have {count}, numbered from 0.")
        return [[partition]]
    first = home(task_id, count)
    others = [number for number in range(count) if number != first]
    return [[first], others] if others else [[first]]


async def _unfinished_from(
    reader: Reader, names: TopicNames, there: Collection[str], numbers: Collection[int]
) -> dict[TopicPartition, int]:
    groups = {names.group(lane.value): [names.requests(lane)] for lane in Lane}
    groups[names.group(_RETRY_GROUP)] = [names.retry(tier) for tier in RetryTier]
    found: dict[TopicPartition, int] = {}
    for group, topics in groups.items():
        tps = [tp for topic in topics if topic in there for tp in _tps(topic, numbers)]
        if tps:
            found |= await reader.committed(group, tps)
    return found


async def _read(reader: Reader, starts: Offsets, ends: Offsets) -> AsyncIterator[Record]:
    """Read what there is.

    Where there is nothing the reader is not asked: to read nothing unassigns what it read before, and a consumer of aiokafka 0.14
    that is stopped while it lets go of a fetch never ends (its fetcher takes the cancellation for the fetch's own).
    """
    starts = {tp: start for tp, start in starts.items() if start < ends[tp]}
    if starts:
        async for record in reader.read(starts, ends):
            yield record


async def _first(reader: Reader, task_id: str, starts: Offsets, ends: Offsets) -> dict[int, Record]:
    """Return by partition the first record of the task's key."""
    key, found = task_id.encode(), dict[int, Record]()
    async for record in _read(reader, starts, ends):
        if record.key == key and record.value is not None:
            found.setdefault(record.partition, record)
            if len(found) == len(ends):
                break
    return found


async def _pending(reader: Reader, names: TopicNames, task_id: str, begins: Offsets) -> dict[int, Pending]:
    """Return by partition the task that has no outcome there: its oldest request, and how often it was started."""
    requests: dict[int, list[Pending]] = {}
    async for record in _read(reader, begins, await reader.ends(begins)):
        request = _request(names, task_id, record)
        if request is not None:
            requests.setdefault(record.partition, []).append(request)
    starts = await _starts(reader, names, task_id, {tp.partition for tp in begins})
    for partition in starts.keys() - requests.keys():
        # Its request was taken back behind what is committed, or handed over a moment ago.
        requests[partition] = [await _request_at(reader, names, task_id, starts[partition][0])]
    return {partition: _merged(rows, starts.get(partition, [])) for partition, rows in requests.items()}


def _merged(requests: list[Pending], starts: list[_Start]) -> Pending:
    oldest = min(requests, key=lambda each: (each.entry.appended_ms, _ORDER[each.entry.lane], each.entry.offset))
    started = max((start.attempt for start in starts), default=0)
    newest = max(starts, key=lambda start: start.at_ms, default=None)
    tries = [each.next_try for each in requests if each.next_try is not None and each.entry.attempts >= started]
    entry = replace(
        oldest.entry,
        attempts=max(started, *(each.entry.attempts for each in requests)),
        started_at_ms=None if newest is None else newest.at_ms,
        backend=None if newest is None else newest.backend,
        next_try_ms=tries[-1].not_before_ms if tries else None,
    )
    return replace(oldest, entry=entry, next_try=tries[-1] if tries else None)


def _request(names: TopicNames, task_id: str, record: Record) -> Pending | None:
    """Return the request in a record of a lane or retry topic when it is the task's."""
    try:
        lane = names.lane_of(record.topic)
    except ValueError:
        return _retry_request(task_id, record)
    return _lane_request(task_id, lane, record)


def _lane_request(task_id: str, lane: Lane, record: Record) -> Pending | None:
    made = made_id(lane, record.partition, record.offset)
    # Looking for the text first spares parsing the rest.
    if task_id != made and not (record.value and task_id.encode() in record.value):
        return None
    if task_id != (glance(record.value).task_id or made):
        return None
    return _unfinished(task_id, lane, record, Source(record.topic, record.partition, record.offset), record.timestamp)


def _retry_request(task_id: str, record: Record) -> Pending | None:
    found = {
        name: text.decode(errors="replace") for name, text in record.headers if text and name.startswith("triage.")
    }
    if found.get(header_names.TASK_ID) != task_id:
        return None
    try:
        lane, source = Lane(found[header_names.LANE]), Source.parse(found[header_names.SOURCE])
        appended_ms, attempts = int(found[header_names.APPENDED_MS]), int(found.get(header_names.ATTEMPTS, 0))
        next_try = NextTry(record.topic, int(found[header_names.NOT_BEFORE_MS]))
    except (KeyError, ValueError):
        return None
    made = _unfinished(task_id, lane, record, source, appended_ms)
    return replace(made, entry=replace(made.entry, attempts=attempts), next_try=next_try)


def _unfinished(task_id: str, lane: Lane, record: Record, source: Source, appended_ms: int) -> Pending:
    seen = glance(record.value)
    entry = Unfinished(
        task_id=task_id,
        partition=record.partition,
        tenant=seen.tenant,
        lane=lane,
        offset=source.offset,
        appended_ms=appended_ms,
        created_at_ms=appended_ms if seen.created_at_ms is None else seen.created_at_ms,
        agent_type=seen.agent_type,
        batch_id=seen.batch_id,
        cost_tokens=seen.cost_tokens,
        model=seen.model,
    )
    return Pending(entry, source, record.value, record.headers)


async def _starts(reader: Reader, names: TopicNames, task_id: str, numbers: Collection[int]) -> dict[int, list[_Start]]:
    """Return by partition the starts of the task: `started` records are kept for 24 h."""
    found: dict[int, list[_Start]] = {}
    tps, quoted = _tps(names.progress, sorted(numbers)), task_id.encode()
    async for record in _read(reader, await reader.starts(tps), await reader.ends(tps)):
        if record.value and quoted in record.value:
            rows = [row for row in _rows(names, record) if row[0] == task_id]
            found.setdefault(record.partition, []).extend(start for _, start in rows)
    return {partition: rows for partition, rows in found.items() if rows}


def _rows(names: TopicNames, record: Record) -> list[tuple[str, _Start]]:
    lanes = {names.requests(lane) for lane in Lane}
    try:
        started = decode(Started, record.value)
    except DecodeError:
        return []
    return [
        (task_id, _Start(record.partition, topic, offset, max(attempt, 1), started.at_ms, started.backend))
        for task_id, topic, offset, attempt in started.tasks
        if topic in lanes
    ]


async def _request_at(reader: Reader, names: TopicNames, task_id: str, start: _Start) -> Pending:
    """Return the request of a start, by its place; one that Kafka has removed is known by its place alone."""
    source, lane = Source(start.topic, start.partition, start.offset), names.lane_of(start.topic)
    tp = TopicPartition(start.topic, start.partition)
    async for record in _read(reader, {tp: start.offset}, {tp: start.offset + 1}):
        return _unfinished(task_id, lane, record, source, record.timestamp)
    removed = _Removed(start.partition)
    return _unfinished(task_id, lane, removed, source, start.at_ms)
