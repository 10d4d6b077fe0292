"""Finding a task in the topics, over logs that are lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace

import orjson
import pytest
from aiokafka import TopicPartition

from cli.errors import Failed
from cli.lookup import Standing, find_result, standing
from schemas.codec import encode
from schemas.ids import home, made_id
from schemas.progress import Started
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane, TopicNames

NAMES = TopicNames()
COUNT = 4


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass
class Logs:
    """A cluster's topics. `reads` holds which partitions were read together, in turn."""

    logs: dict[TopicPartition, list[Record]] = field(default_factory=dict)
    commits: dict[TopicPartition, int] = field(default_factory=dict)
    reads: list[set[int]] = field(default_factory=list)
    topics: set[str] = field(default_factory=lambda: {NAMES.results, NAMES.progress})

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None) -> int:
        log = self.logs.setdefault(TopicPartition(topic, partition), [])
        log.append(Record(topic, partition, len(log), key, value))
        return len(log) - 1

    async def partitions(self) -> dict[str, int]:
        return dict.fromkeys(self.topics, COUNT)

    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self.logs.get(tp, [])) for tp in tps}

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        found = list(tps)
        assert {group} == {NAMES.group(NAMES.lane_of(tp.topic).value) for tp in found}
        return {tp: self.commits.get(tp, 0) for tp in found}

    async def read(
        self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> AsyncIterator[Record]:
        self.reads.append({tp.partition for tp in starts})
        for tp, start in starts.items():
            for record in self.logs.get(tp, [])[start : ends[tp]]:
                yield record


def result(task_id: str, outcome: Outcome = Outcome.COMPLETED) -> bytes:
    return encode(Result(task_id, "default", outcome, Lane.HIGH, Source("triage.requests.high", 0, 0)))


def request(**fields: object) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": "hello"}], **fields})


HOME = home("ward7-1", COUNT)
AWAY = (HOME + 1) % COUNT


async def test_the_first_record_of_the_id_on_its_home_partition_is_the_outcome() -> None:
    logs = Logs()
    logs.append(NAMES.results, AWAY, b"ward7-1", result("ward7-1", Outcome.EXPIRED))
    logs.append(NAMES.results, HOME, b"other", result("other"))
    logs.append(NAMES.results, HOME, b"ward7-1", None)
    for outcome in (Outcome.CANCELLED, Outcome.COMPLETED):
        logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1", outcome))
    assert result("ward7-1", Outcome.CANCELLED) == await find_result(logs, NAMES, "ward7-1", None)
    assert [{HOME}] == logs.reads


async def test_an_id_that_is_not_at_home_is_looked_for_on_every_other_partition() -> None:
    logs = Logs()
    logs.append(NAMES.results, AWAY, b"ward7-1", result("ward7-1"))
    assert result("ward7-1") == await find_result(logs, NAMES, "ward7-1", None)
    assert [{HOME}, set(range(COUNT)) - {HOME}] == logs.reads


async def test_a_named_partition_is_looked_at_alone() -> None:
    logs = Logs()
    logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1"))
    assert await find_result(logs, NAMES, "ward7-1", AWAY) is None
    assert [{AWAY}] == logs.reads
    with pytest.raises(Failed, match="no partition 4: the topics have 4"):
        await find_result(logs, NAMES, "ward7-1", 4)


async def test_topics_that_are_not_there_are_named() -> None:
    with pytest.raises(Failed, match=r"triage\.results is not there: `triage topics apply` creates it"):
        await find_result(Logs(topics=set()), NAMES, "ward7-1", None)


async def test_a_task_that_lies_on_its_lane_is_queued() -> None:
    logs = Logs()
    logs.append(NAMES.requests(Lane.LOW), HOME, None, request(task_id="ward7-10"))
    assert await standing(logs, NAMES, "ward7-1", None) is None
    logs.append(NAMES.requests(Lane.LOW), HOME, None, request(task_id="ward7-1"))
    assert Standing.QUEUED is await standing(logs, NAMES, "ward7-1", None)


async def test_a_request_that_is_committed_does_not_wait_any_more() -> None:
    logs = Logs()
    offset = logs.append(NAMES.requests(Lane.LOW), HOME, b"ward7-1", request(task_id="ward7-1"))
    logs.commits[TopicPartition(NAMES.requests(Lane.LOW), HOME)] = offset + 1
    assert await standing(logs, NAMES, "ward7-1", None) is None


async def test_a_made_id_is_found_whatever_its_record_holds() -> None:
    logs = Logs()
    offset = logs.append(NAMES.requests(Lane.HIGH), 2, None, None)
    assert Standing.QUEUED is await standing(logs, NAMES, made_id(Lane.HIGH, 2, offset), None)
    assert await standing(logs, NAMES, made_id(Lane.HIGH, 2, offset + 1), None) is None


async def test_an_id_that_is_only_mentioned_is_not_the_task() -> None:
    logs = Logs()
    logs.append(NAMES.requests(Lane.LOW), HOME, None, request(metadata={"about": "ward7-1"}))
    logs.append(NAMES.requests(Lane.LOW), HOME, None, b"not JSON but ward7-1")
    logs.append(NAMES.progress, HOME, b"b-1", b"not JSON but ward7-1")
    assert await standing(logs, NAMES, "ward7-1", None) is None


async def test_a_task_that_was_started_is_processing() -> None:
    logs = Logs()
    row = ("ward7-1", NAMES.requests(Lane.LOW), 0, 1)
    started = Started("b-1", "w-1", "b1", [("ward7-10", *row[1:])], 0)
    logs.append(NAMES.progress, AWAY, b"b-1", encode(started))
    assert await standing(logs, NAMES, "ward7-1", None) is None
    logs.append(NAMES.progress, AWAY, b"b-1", encode(replace(started, tasks=[*started.tasks, row])))
    assert Standing.PROCESSING is await standing(logs, NAMES, "ward7-1", None)
