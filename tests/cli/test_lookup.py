"""Finding a task in the topics, over logs that are lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace

import orjson
import pytest
from aiokafka import TopicPartition

from cli.direct import cancellation
from cli.errors import Failed
from cli.lookup import Ended, NextTry, Pending, find, first_result
from cli.results import status_body, status_lines
from gateway.bodies import Status
from schemas import headers as header_names
from schemas.codec import encode
from schemas.ids import home, made_id
from schemas.progress import Started
from schemas.result import ErrorType, Outcome, Result, ResultError, Source, Timing
from schemas.topics import Lane, RetryTier, TopicNames, catalogue

NAMES = TopicNames()
COUNT = 4
NOW_MS = 1_795_420_000_000
GROUPS = {NAMES.requests(lane): NAMES.group(lane.value) for lane in Lane} | {
    NAMES.retry(tier): NAMES.group("retry") for tier in RetryTier
}


@dataclass(frozen=True)
class Record:
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: header_names.Headers = ()
    timestamp: int = NOW_MS


@dataclass
class Logs:
    """A cluster's topics. `asked` holds what was asked of them, in turn: committed offsets, and which partitions were read."""

    logs: dict[TopicPartition, list[Record]] = field(default_factory=dict)
    commits: dict[TopicPartition, int] = field(default_factory=dict)
    asked: list[object] = field(default_factory=list)
    topics: set[str] = field(default_factory=lambda: {topic.name for topic in catalogue(NAMES, partitions=COUNT)})

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: header_names.Headers = ()
    ) -> int:
        log = self.logs.setdefault(TopicPartition(topic, partition), [])
        log.append(Record(topic, partition, len(log), key, value, headers, NOW_MS + len(log)))
        return len(log) - 1

    async def partitions(self) -> dict[str, int]:
        return dict.fromkeys(self.topics, COUNT)

    async def starts(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def ends(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self.logs.get(tp, [])) for tp in tps}

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        found = list(tps)
        assert {group} == {GROUPS[tp.topic] for tp in found}
        self.asked.append(group)
        return {tp: self.commits.get(tp, 0) for tp in found}

    async def read(
        self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> AsyncIterator[Record]:
        assert starts, "to read nothing may keep a consumer from stopping"
        self.asked.append(({tp.topic for tp in starts}, {tp.partition for tp in starts}))
        for tp, start in starts.items():
            for record in self.logs.get(tp, [])[start : ends[tp]]:
                yield record

    @property
    def results_read(self) -> list[set[int]]:
        return [each[1] for each in self.asked if isinstance(each, tuple) and each[0] == {NAMES.results}]


def result(task_id: str, outcome: Outcome = Outcome.COMPLETED) -> bytes:
    return encode(Result(task_id, "default", outcome, Lane.HIGH, Source("triage.requests.high", 0, 0)))


def request(**fields: object) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": "hello"}], **fields})


def started(partition: int, offset: int, *task_ids: str, attempt: int = 1, at_ms: int = NOW_MS) -> bytes:
    rows = [(task_id, NAMES.requests(Lane.LOW), offset, attempt) for task_id in task_ids]
    return encode(Started("b-1", "w-1", "b1", rows, at_ms))


def retry_headers(source: Source, **changes: str) -> header_names.Headers:
    found = {
        header_names.TASK_ID: "ward7-1",
        header_names.LANE: "low",
        header_names.ATTEMPTS: "2",
        header_names.NOT_BEFORE_MS: str(NOW_MS + 60_000),
        header_names.APPENDED_MS: str(NOW_MS - 5),
        header_names.SOURCE: str(source),
        **changes,
    }
    return [(name, text.encode()) for name, text in found.items()]


async def outcome(logs: Logs, task_id: str = "ward7-1", partition: int | None = None) -> bytes | None:
    found = await find(logs, NAMES, task_id, partition)
    return found.record.value if isinstance(found, Ended) else None


async def pending(logs: Logs, task_id: str = "ward7-1") -> Pending:
    found = await find(logs, NAMES, task_id, None)
    assert isinstance(found, Pending)
    return found


HOME = home("ward7-1", COUNT)
AWAY = (HOME + 1) % COUNT
LOW = NAMES.requests(Lane.LOW)


# An outcome


async def test_the_first_record_of_the_id_on_its_home_partition_is_the_outcome() -> None:
    logs = Logs()
    logs.append(NAMES.results, AWAY, b"ward7-1", result("ward7-1", Outcome.EXPIRED))
    logs.append(NAMES.results, HOME, b"other", result("other"))
    logs.append(NAMES.results, HOME, b"ward7-1", None)
    for each in (Outcome.CANCELLED, Outcome.COMPLETED):
        logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1", each))
    assert result("ward7-1", Outcome.CANCELLED) == await outcome(logs)
    assert [{HOME}] == logs.results_read


async def test_an_id_that_is_not_at_home_is_looked_for_on_every_other_partition() -> None:
    logs = Logs()
    for number in range(COUNT):
        logs.append(NAMES.results, number, b"other", result("other"))
    logs.append(NAMES.results, AWAY, b"ward7-1", result("ward7-1"))
    assert result("ward7-1") == await outcome(logs)
    assert [{HOME}, set(range(COUNT)) - {HOME}] == logs.results_read


async def test_a_named_partition_is_looked_at_alone() -> None:
    logs = Logs()
    logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1"))
    logs.append(NAMES.results, AWAY, b"other", result("other"))
    assert await find(logs, NAMES, "ward7-1", AWAY) is None
    assert [{AWAY}] == logs.results_read
    with pytest.raises(Failed, match="no partition 4: the topics have 4"):
        await find(logs, NAMES, "ward7-1", 4)


async def test_topics_that_are_not_there_are_named() -> None:
    with pytest.raises(Failed, match=r"triage\.results is not there: `triage topics apply` creates it"):
        await find(Logs(topics=set()), NAMES, "ward7-1", None)


async def test_what_is_committed_is_asked_before_the_results_are_read() -> None:
    """Else a task that ends in between would be in neither, and unknown."""
    logs = Logs()
    assert await find(logs, NAMES, "ward7-1", None) is None
    assert set(GROUPS.values()) == set(logs.asked[:5])


async def test_only_the_named_stretch_of_the_results_log_is_looked_at_again() -> None:
    logs = Logs()
    logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1"))
    end = 1 + logs.append(NAMES.results, HOME, b"ward7-1", result("ward7-1", Outcome.CANCELLED))
    tp = TopicPartition(NAMES.results, HOME)
    found = await first_result(logs, tp, "ward7-1", 1, end)
    assert found is not None
    assert result("ward7-1", Outcome.CANCELLED) == found.record.value
    assert await first_result(logs, tp, "ward7-2", 0, end) is None


# No outcome yet


async def test_a_task_that_lies_on_its_lane_is_queued() -> None:
    logs = Logs()
    logs.append(LOW, HOME, None, request(task_id="ward7-10"))
    assert await find(logs, NAMES, "ward7-1", None) is None
    headers = [("traceparent", b"00-1"), ("other", b"x")]
    value = request(task_id="ward7-1", tenant="ward7", agent_type="nurse", created_at_ms=5)
    logs.append(LOW, HOME, None, value, headers)
    logs.append(NAMES.results, HOME, b"other", result("other"))
    found = await pending(logs)
    entry = found.entry
    assert (True, "ward7", Lane.LOW, HOME, 1) == (
        entry.is_waiting,
        entry.tenant,
        entry.lane,
        entry.partition,
        entry.offset,
    )
    assert (Source(LOW, HOME, 1), value, headers, 1) == (found.source, found.value, found.headers, found.results_end)
    assert (5, NOW_MS + 1, "nurse") == (entry.created_at_ms, entry.appended_ms, entry.agent_type)


async def test_a_request_that_is_committed_does_not_wait_any_more() -> None:
    logs = Logs()
    offset = logs.append(LOW, HOME, b"ward7-1", request(task_id="ward7-1"))
    logs.commits[TopicPartition(LOW, HOME)] = offset + 1
    assert await find(logs, NAMES, "ward7-1", None) is None


async def test_a_made_id_is_found_whatever_its_record_holds() -> None:
    logs = Logs()
    offset = logs.append(NAMES.requests(Lane.HIGH), 2, None, None)
    assert (await pending(logs, made_id(Lane.HIGH, 2, offset))).entry.is_waiting
    assert await find(logs, NAMES, made_id(Lane.HIGH, 2, offset + 1), None) is None


async def test_an_id_that_is_only_mentioned_is_not_the_task() -> None:
    logs = Logs()
    logs.append(LOW, HOME, None, request(metadata={"about": "ward7-1"}))
    logs.append(LOW, HOME, None, b"not JSON but ward7-1")
    logs.append(NAMES.progress, HOME, b"b-1", b"not JSON but ward7-1")
    logs.append(NAMES.retry(RetryTier.SIXTY_SECONDS), HOME, None, b"ward7-1", [(header_names.TASK_ID, b"ward7-1")])
    assert await find(logs, NAMES, "ward7-1", None) is None


async def test_of_several_requests_the_oldest_is_the_task_s() -> None:
    logs = Logs()
    logs.append(LOW, HOME, None, request(task_id="other"))
    logs.append(LOW, HOME, None, request(task_id="ward7-1"))
    logs.append(NAMES.requests(Lane.HIGH), HOME, None, request(task_id="ward7-1"))
    assert Source(NAMES.requests(Lane.HIGH), HOME, 0) == (await pending(logs)).source


async def test_a_task_that_was_started_is_processing() -> None:
    logs = Logs()
    logs.append(LOW, HOME, None, request(task_id="ward7-1"))
    logs.append(NAMES.progress, HOME, b"b-1", started(HOME, 0, "ward7-10"))
    assert (await pending(logs)).entry.is_waiting
    for attempt in (1, 2):
        logs.append(NAMES.progress, HOME, b"b", started(HOME, 0, "ward7-10", "ward7-1", attempt=attempt, at_ms=attempt))
    entry = (await pending(logs)).entry
    assert (2, 2) == (entry.attempts, entry.started_at_ms)


async def test_a_started_task_whose_request_is_committed_is_known_by_its_place() -> None:
    logs = Logs()
    logs.append(LOW, AWAY, None, request(task_id="ward7-1", tenant="ward7"))
    logs.commits[TopicPartition(LOW, AWAY)] = 1
    logs.append(NAMES.progress, AWAY, b"b-1", started(AWAY, 0, "ward7-1"))
    assert ("ward7", 1) == ((found := await pending(logs)).entry.tenant, found.entry.attempts)
    del logs.logs[TopicPartition(LOW, AWAY)]
    found = await pending(logs)
    assert (Source(LOW, AWAY, 0), None, "default") == (found.source, found.value, found.entry.tenant)


@pytest.mark.parametrize(
    ("attempts", "starts", "is_waiting", "waits_for_a_try"),
    [("0", 0, True, True), ("2", 2, False, True), ("2", 3, False, False)],
)
async def test_a_task_on_a_retry_topic_is_known_with_its_next_try(
    attempts: str, starts: int, is_waiting: bool, waits_for_a_try: bool
) -> None:
    logs, source, topic = Logs(), Source(LOW, HOME, 0), NAMES.retry(RetryTier.SIXTY_SECONDS)
    logs.append(LOW, HOME, None, request(task_id="ward7-1"))
    logs.commits[TopicPartition(LOW, HOME)] = 1
    logs.append(topic, HOME, None, request(), retry_headers(source, **{header_names.ATTEMPTS: attempts}))
    if starts:
        logs.append(NAMES.progress, HOME, b"b-1", started(HOME, 0, "ward7-1", attempt=starts))
    found = await pending(logs)
    assert (source, is_waiting) == (found.source, found.entry.is_waiting)
    assert (NextTry(topic, NOW_MS + 60_000) if waits_for_a_try else None) == found.next_try
    assert (NOW_MS - 5, max(int(attempts), starts)) == (found.entry.appended_ms, found.entry.attempts)
    logs.commits[TopicPartition(topic, HOME)] = 1
    logs.logs.pop(TopicPartition(NAMES.progress, HOME), None)
    assert await find(logs, NAMES, "ward7-1", None) is None


# What is made of it


async def test_a_status_has_the_gateway_s_fields_and_the_place_of_the_request() -> None:
    logs, topic = Logs(), NAMES.retry(RetryTier.SIXTY_SECONDS)
    logs.append(topic, HOME, None, request(), retry_headers(Source(LOW, HOME, 7)))
    body = status_body(await pending(logs))
    assert {*Status.model_fields, "source", "retry"} == set(body)
    assert {"topic": LOW, "partition": HOME, "offset": 7} == body["source"]
    assert [
        "ward7-1 is processing",
        "  lane        low",
        f"  place       partition {HOME}, offset 7",
        "  created     2026-11-23T07:46:39.995Z",
        "  attempts    2",
        "  next try    not before 2026-11-23T07:47:40.000Z, on triage.retry.60s",
    ] == status_lines(body)
    failed = Result(
        "ward7-1",
        "default",
        Outcome.FAILED,
        Lane.LOW,
        Source(LOW, HOME, 7),
        error=ResultError(ErrorType.POISON, "It fails alone."),
        attempts=3,
        timing=Timing(created_at_ms=NOW_MS, dispatched_at_ms=NOW_MS + 1),
    )
    logs.append(NAMES.results, HOME, b"ward7-1", encode(failed))
    ended = await find(logs, NAMES, "ward7-1", None)
    assert ended is not None
    body = status_body(ended)
    assert {*Status.model_fields, "source", "retry"} == set(body)
    assert [
        "ward7-1 is failed",
        "  lane        low",
        f"  place       partition {HOME}, offset 7",
        "  created     2026-11-23T07:46:40.000Z",
        "  started     2026-11-23T07:46:40.001Z",
        "  finished    2026-11-23T07:46:40.000Z",
        "  attempts    3",
        "  error       poison: It fails alone.",
    ] == status_lines(body)


async def test_a_cancellation_says_what_the_request_said_and_is_not_older_than_it() -> None:
    logs = Logs()
    value = request(task_id="ward7-1", tenant="ward7", agent_type="nurse", batch_id="b-7", metadata={"bed": "3"})
    logs.append(LOW, HOME, None, value)
    found = await pending(logs)
    expected = Result(
        "ward7-1",
        "ward7",
        Outcome.CANCELLED,
        Lane.LOW,
        Source(LOW, HOME, 0),
        agent_type="nurse",
        batch_id="b-7",
        metadata={"bed": "3"},
        error=ResultError(ErrorType.CANCELLED, "cancelled by its caller"),
        timing=Timing(created_at_ms=NOW_MS, finished_at_ms=NOW_MS + 9),
    )
    assert expected == cancellation(found, now_ms=NOW_MS + 9)
    late = replace(expected, timing=replace(expected.timing, finished_at_ms=NOW_MS))
    assert late == cancellation(found, now_ms=NOW_MS - 9)
