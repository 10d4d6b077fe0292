"""Why a task stands where it does, told from the topics alone: what a gateway's view knows of every task is estimated from offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from cli.lookup import Ended, Pending, Reader
from cli.parts import Heard
from cli.results import row_of
from gateway import reasons
from gateway.fleet import Fleet
from gateway.rendering import finished_status, result_body
from gateway.view import Unfinished
from schemas.topics import Lane, TopicNames
from streams.estimating import Rank
from streams.explaining import explain
from streams.settings import ModelSettings
from streams.workers import Workers


@dataclass(frozen=True, slots=True)
class Span:
    """A lane's partition from the next offset that its group reads to the end."""

    committed: int
    end: int


Spans = Mapping[tuple[Lane, int], Span]


async def backlog(reader: Reader, names: TopicNames) -> Spans:
    """Return what lies on the lanes that is not acknowledged. What retention has removed before a group came to it is not waiting."""
    count = (await reader.partitions())[names.results]
    found: dict[tuple[Lane, int], Span] = {}
    for lane in Lane:
        tps = [TopicPartition(names.requests(lane), number) for number in range(count)]
        starts, ends = await reader.starts(tps), await reader.ends(tps)
        committed = await reader.committed(names.group(lane.value), tps)
        for tp in tps:
            found[lane, tp.partition] = Span(max(committed[tp], starts[tp]), ends[tp])
    return found


def ended(found: Ended) -> dict[str, Any]:
    """Return what happened to a task, as the gateway's route tells it."""
    body = result_body(found.record.value)
    return reasons.finished(finished_status(row_of(found), body), body)


def pending(
    found: Pending,
    heard: Iterable[Heard],
    spans: Spans,
    names: TopicNames,
    models: Sequence[ModelSettings],
    *,
    now_ms: int,
) -> dict[str, Any]:
    """Return why a task without an outcome stands where it does, as the gateway's route tells it."""
    fleet = Fleet()
    for each in heard:
        fleet.snapshot(each.key.encode(), each.value, each.at_ms)
    workers = fleet.together(now_ms)
    told = explain(
        reasons.entry_of(found.entry, names),
        _rank(found.entry, spans, workers, names),
        {lane: workers.lanes[lane].waiting + _unfetched(lane, spans, workers, names) for lane in Lane},
        workers,
        models,
        is_fresh=fleet.is_fresh(now_ms),
        now_ms=now_ms,
    )
    return reasons.unfinished(found.entry, told)


def _rank(entry: Unfinished, spans: Spans, workers: Workers, names: TopicNames) -> Rank:
    """Return about how many of its lane are older: its partition's share of them stands for every partition's."""
    span = spans[entry.lane, entry.partition]
    read = _read_to(entry.lane, entry.partition, span, workers, names)
    held = workers.lanes[entry.lane].waiting
    if entry.offset < read:
        older = held * (entry.offset - span.committed) / max(read - span.committed, 1)
    else:
        part = (entry.offset - read) / max(span.end - read, 1)
        older = held + _unfetched(entry.lane, spans, workers, names) * part
    return Rank(max(round(older), 0), max(round(older), 0))


def _unfetched(lane: Lane, spans: Spans, workers: Workers, names: TopicNames) -> int:
    return sum(
        max(span.end - _read_to(lane, partition, span, workers, names), 0)
        for (of, partition), span in spans.items()
        if of is lane
    )


def _read_to(lane: Lane, partition: int, span: Span, workers: Workers, names: TopicNames) -> int:
    """Return the next offset that the lane's workers fetch of a partition."""
    fetched = workers.fetched_through.get(f"{names.requests(lane)}/{partition}", -1)
    return max(fetched + 1, span.committed)
