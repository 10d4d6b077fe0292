"""Dead letters from Kafka, and beside each how its task ended and whether it was replayed."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from cli.deadletters.letters import UNFINISHED, Letter, Place, Standing, dead_letter, letter_of
from cli.lookup import partition_count
from gateway.records import glance
from gateway.rendering import result_body
from schemas import headers as names
from schemas.topics import Lane, RetryTier, TopicNames
from streams.replay import DeadLetter
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import QUICK_RETRIES, consumer_options
from wire.reading import stop_consumer

# Brokers have a clock each; what a task's records say may lie this much before.
_CLOCKS_MS = 300_000
_SAY_EVERY_S = 2.0
_REPLAYED = b":replay."

Offsets = Mapping[TopicPartition, int]


class Reader(Protocol):
    """The part of `wire.reading.LogReader` that is used here."""

    async def partitions(self) -> dict[str, int]: ...
    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...
    def read(self, starts: Offsets, ends: Offsets) -> AsyncIterator[Any]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """Every dead letter there is, and how each one's task stands."""

    letters: list[Letter] = field(default_factory=list)
    standings: dict[Place, Standing] = field(default_factory=dict)


class Progress:
    """Says on stderr every two seconds how far a long stretch has come."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._said_s = monotonic_s()

    def step(self, count: int = 1) -> None:
        self._done += count
        now_s = monotonic_s()
        if now_s - self._said_s >= _SAY_EVERY_S:
            self._said_s = now_s
            print(f"triage: {self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)


async def find(reader: Reader, kafka: KafkaSettings) -> Found:
    """Return every dead letter with its standing.

    Raises: Failed when there is no such topic, BrokersUnreachable.
    """
    found = await letters(reader, kafka.names)
    return Found(found, await standings(reader, kafka, found))


async def letters(reader: Reader, topics: TopicNames) -> list[Letter]:
    """Return every dead letter, in offset order per partition. Raises: as `find`."""
    count = await partition_count(reader, topics.dead_letters)
    tps = [TopicPartition(topics.dead_letters, number) for number in range(count)]
    records = _read(reader, "dead letters", await reader.starts(tps), await reader.ends(tps))
    return [letter_of(dead_letter(each)) async for each in records]


async def read_again(reader: Reader, topics: TopicNames, places: Collection[Place]) -> AsyncGenerator[DeadLetter, None]:
    """Yield the dead letters at these places, with their bytes; one that Kafka has removed meanwhile is left out."""
    starts: dict[TopicPartition, int] = {}
    ends: dict[TopicPartition, int] = {}
    for partition, offset in places:
        tp = TopicPartition(topics.dead_letters, partition)
        starts[tp] = min(offset, starts.get(tp, offset))
        ends[tp] = max(offset + 1, ends.get(tp, 0))
    async for record in reader.read(starts, ends):
        if (record.partition, record.offset) in places:
            yield dead_letter(record)


async def standings(reader: Reader, kafka: KafkaSettings, of: Collection[Letter]) -> dict[Place, Standing]:
    """Return how each letter's task ended, and its replay: the first record of an id in the results log decides."""
    topics, since_ms = kafka.names, _oldest_ms(of)
    if not of:
        return {}
    # Asked before the results are read: what is committed by now has its outcome in the stretch that is read next.
    begins = await _unfinished_from(reader, topics, since_ms)
    tps = [TopicPartition(topics.results, partition) for partition in since_ms]
    ends = await reader.ends(tps)
    starts = await _offsets_at(kafka, {tp: since_ms[tp.partition] for tp in tps}, ends)
    wanted = {(each.place[0], text.encode()) for each in of for text in (each.task_id, each.replay_id) if text}
    outcomes: dict[tuple[int, bytes], tuple[str | None, str | None]] = {}
    async for record in _read(reader, "results", starts, ends):
        key = (record.partition, record.key)
        if key in wanted and record.value is not None:
            outcomes.setdefault(key, _outcome(record))
    unfinished = await _unfinished(reader, kafka, begins, since_ms)
    return {each.place: _standing(each, outcomes, unfinished) for each in of}


def _oldest_ms(letters: Iterable[Letter]) -> dict[int, int]:
    """Return by partition a time before which no record says anything of its letters' tasks that counts.

    A task's first result is at most as old as its request, which was there for 72 h at most.
    """
    oldest: dict[int, int] = {}
    for each in letters:
        partition = each.place[0]
        began_ms = each.at_ms if each.appended_ms is None else min(each.appended_ms, each.at_ms)
        oldest[partition] = min(oldest.get(partition, began_ms), began_ms)
    return {partition: max(at_ms - _CLOCKS_MS, 0) for partition, at_ms in oldest.items()}


def _standing(
    letter: Letter,
    outcomes: Mapping[tuple[int, bytes], tuple[str | None, str | None]],
    unfinished: set[tuple[int, str]],
) -> Standing:
    if letter.task_id is None or letter.replay_id is None:
        return Standing()
    partition = letter.place[0]
    outcome, tenant = outcomes.get((partition, letter.task_id.encode()), (None, None))
    replay, _ = outcomes.get((partition, letter.replay_id.encode()), (None, None))
    if replay is None and (partition, letter.replay_id) in unfinished:
        replay = UNFINISHED
    return Standing(outcome, tenant, replay)


def _outcome(record: Any) -> tuple[str | None, str | None]:
    """Return a result's outcome and tenant, from its headers; a foreign writer's may have them in the body alone."""
    told = (names.find(record.headers, names.OUTCOME), names.find(record.headers, names.TENANT))
    if None not in told:
        return told
    body = result_body(record.value)
    outcome, tenant = (text if isinstance(text, str) else None for text in (body.get("outcome"), body.get("tenant")))
    return told[0] or outcome or "unreadable", told[1] or tenant


async def _unfinished_from(
    reader: Reader, topics: TopicNames, partitions: Collection[int]
) -> dict[TopicPartition, int]:
    groups = {topics.group(lane.value): [topics.requests(lane)] for lane in Lane}
    groups[topics.group("retry")] = [topics.retry(tier) for tier in RetryTier]
    found: dict[TopicPartition, int] = {}
    for group, each in groups.items():
        found |= await reader.committed(
            group, [TopicPartition(topic, number) for topic in each for number in partitions]
        )
    return found


async def _unfinished(
    reader: Reader, kafka: KafkaSettings, begins: Offsets, since_ms: Mapping[int, int]
) -> set[tuple[int, str]]:
    """Return (partition, task_id) of the replays that wait on a lane or for a retry, or are at a backend."""
    retries = {kafka.names.retry(tier) for tier in RetryTier}
    ends = await reader.ends(begins)
    after = await _offsets_at(kafka, {tp: since_ms[tp.partition] for tp in begins}, ends)
    starts = {tp: max(offset, after[tp]) for tp, offset in begins.items()}
    found: set[tuple[int, str]] = set()
    async for record in _read(reader, "waiting requests", starts, ends):
        if record.topic in retries:
            task_id = names.find(reversed(record.headers), names.TASK_ID)
        else:
            # Looking for the text first spares parsing the rest.
            task_id = glance(record.value).task_id if record.value and _REPLAYED in record.value else None
        if task_id is not None:
            found.add((record.partition, task_id))
    return found


async def _read(reader: Reader, what: str, starts: Offsets, ends: Offsets) -> AsyncIterator[Any]:
    left = sum(max(end - starts[tp], 0) for tp, end in ends.items())
    # A consumer that is stopped a moment after it was given other partitions, none among them, may never end: aiokafka's
    # fetcher suppresses the cancellation that meets it while it ends its pending fetches.
    if not left:
        return
    progress = Progress(f"reading {what}", left)
    async for record in reader.read(starts, ends):
        progress.step()
        yield record


async def _offsets_at(kafka: KafkaSettings, times_ms: Offsets, ends: Offsets) -> dict[TopicPartition, int]:
    """Return the offset of the first record that is not older; the end where there is none."""
    consumer = AIOKafkaConsumer(**consumer_options(kafka, client_id="triage-times") | QUICK_RETRIES)
    try:
        await consumer.start()
        found = await consumer.offsets_for_times(dict(times_ms))
        return {tp: ends[tp] if found.get(tp) is None else found[tp].offset for tp in times_ms}
    finally:
        await stop_consumer(consumer)
