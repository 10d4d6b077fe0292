"""Where a task stands, read from the topics themselves: its outcome, or whether somebody still works on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from aiokafka import TopicPartition

from cli.errors import Failed
from schemas.codec import DecodeError, decode, decode_request
from schemas.ids import home, made_id
from schemas.progress import Started
from schemas.topics import Lane, TopicNames

# How many waiting requests of a lane's partition are looked at: enough for any backlog that a person waits for.
MOST_SCANNED = 100_000

Offsets = Mapping[TopicPartition, int]


class Reader(Protocol):
    """The part of `wire.reading.LogReader` that is used here."""

    async def partitions(self) -> dict[str, int]: ...
    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    def read(self, starts: Offsets, ends: Offsets) -> AsyncIterator[Any]: ...


class Standing(StrEnum):
    """Of a task without an outcome: it waits on its lane, or a backend was given it."""

    QUEUED = "queued"
    PROCESSING = "processing"


async def partition_count(reader: Reader, topic: str) -> int:
    """Return how many partitions a topic has in this cluster. Raises: Failed when there is no such topic."""
    count = (await reader.partitions()).get(topic)
    if count is None:
        raise Failed(f"The topic {topic} is not there: `triage topics apply` creates it.")
    return count


async def find_result(reader: Reader, names: TopicNames, task_id: str, partition: int | None) -> bytes | None:
    """Return the record that is the task's outcome: the first of its id, on its home partition before any other.

    `partition` looks at that one alone. Reads a partition from its oldest record on, since a log has no index.
    """
    count = await partition_count(reader, names.results)
    for numbers in _in_turn(task_id, partition, count):
        tps = [TopicPartition(names.results, number) for number in numbers]
        key, found = task_id.encode(), dict[int, bytes]()
        async for record in reader.read(await reader.starts(tps), await reader.ends(tps)):
            if record.key == key and record.value is not None:
                found.setdefault(record.partition, record.value)
                if len(tps) == 1:
                    break
        if found:
            return found[min(found)]
    return None


async def standing(reader: Reader, names: TopicNames, task_id: str, partition: int | None) -> Standing | None:
    """Return where a task without an outcome stands, None when nothing is known of it.

    It was started if a `started` record (kept for 24 h) names it. It waits if it lies on a lane beyond what the lane's group
    has committed, which is all that has no outcome yet; of each partition at most `MOST_SCANNED` records are looked at.
    """
    count = await partition_count(reader, names.progress)
    for numbers in _in_turn(task_id, partition, count):
        if await _was_started(reader, names, task_id, numbers):
            return Standing.PROCESSING
        if await _waits(reader, names, task_id, numbers):
            return Standing.QUEUED
    return None


def _in_turn(task_id: str, partition: int | None, count: int) -> list[list[int]]:
    """Return the partitions to look at together, in turn."""
    if partition is not None:
        if partition >= count:
            raise Failed(f"There is no partition {partition}: the topics have {count}, numbered from 0.")
        return [[partition]]
    first = home(task_id, count)
    others = [number for number in range(count) if number != first]
    return [[first], others] if others else [[first]]


async def _was_started(reader: Reader, names: TopicNames, task_id: str, numbers: list[int]) -> bool:
    tps = [TopicPartition(names.progress, number) for number in numbers]
    quoted = task_id.encode()
    async for record in reader.read(await reader.starts(tps), await reader.ends(tps)):
        # Looking for the text first spares parsing the rest.
        if record.value and quoted in record.value and task_id in _started(record.value):
            return True
    return False


def _started(value: bytes) -> list[str]:
    try:
        return [row[0] for row in decode(Started, value).tasks]
    except DecodeError:
        return []


async def _waits(reader: Reader, names: TopicNames, task_id: str, numbers: list[int]) -> bool:
    starts: dict[TopicPartition, int] = {}
    for lane in Lane:
        tps = [TopicPartition(names.requests(lane), number) for number in numbers]
        starts |= await reader.committed(names.group(lane.value), tps)
    ends = {tp: min(end, starts[tp] + MOST_SCANNED) for tp, end in (await reader.ends(starts)).items()}
    quoted = task_id.encode()
    async for record in reader.read(starts, ends):
        made = made_id(names.lane_of(record.topic), record.partition, record.offset)
        if task_id == made or (record.value and quoted in record.value and task_id == _id_in(record.value)):
            return True
    return False


def _id_in(value: bytes) -> str | None:
    try:
        return decode_request(value).task_id
    except DecodeError as error:
        return error.task_id
