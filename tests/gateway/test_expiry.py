"""Overdue tasks are ended by the gateway: never before their deadline, each once, and only where the log holds no outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.expiry import GRACE_MS, MOST, SPREAD_MS, Expiry
from gateway.ports import Stored
from schemas import headers as names
from schemas.codec import decode
from schemas.headers import Headers
from schemas.ids import made_id
from schemas.result import ErrorType, Outcome, Result, ResultError, Source, Timing
from schemas.topics import Lane, RetryTier
from streams.deadlines import LONGEST_MS
from streams.errors import DeadlineExpired
from tests.gateway.fakes import NAMES, NOW_MS, PARTITIONS, FakeLogs, make_result, make_view

LATEST_MS = GRACE_MS + SPREAD_MS


def make_expiry(logs: FakeLogs, gateway_id: str = "g") -> Expiry:
    return Expiry(NAMES, PARTITIONS, logs.view, logs, gateway_id=gateway_id, pause_s=0)


async def work(expiry: Expiry) -> None:
    await asyncio.gather(*expiry.begin())


def put(logs: FakeLogs, task_id: str, after_ms: int = 1_000, partition: int = 0, **fields: object) -> None:
    """Append a request that is due `after_ms`, and let the view read it."""
    times = {"created_at_ms": logs.now_ms, "deadline_at_ms": logs.now_ms + after_ms}
    logs.put_request(Lane.HIGH, partition, task_id=task_id, **times, **fields)
    logs.feed()


def results(logs: FakeLogs, partition: int = 0) -> list[tuple[str, Outcome]]:
    rows = [decode(Result, record.value or b"") for record in logs.records[NAMES.results, partition]]
    return [(row.task_id, row.outcome) for row in rows]


async def test_an_overdue_task_ends_as_expired_and_its_result_says_whose_it_was() -> None:
    logs = FakeLogs(make_view())
    value: dict[str, object] = {
        "task_id": "t",
        "tenant": "w",
        "agent_type": "a",
        "batch_id": "b",
        "metadata": {"bed": "7"},
    }
    value |= {"messages": [], "created_at_ms": 5_000, "deadline_at_ms": 6_000}
    trace = ("traceparent", b"00-1")
    logs.put(NAMES.requests(Lane.HIGH), 1, None, orjson.dumps(value), [trace, ("triage.webhook", b"http://w")])
    logs.put_started("t", Lane.HIGH, 1, 0, attempt=2)
    logs.feed()
    logs.now_ms += 1_000 + LATEST_MS
    await work(make_expiry(logs))
    (record,) = logs.records[NAMES.results, 1]
    source = Source(NAMES.requests(Lane.HIGH), 1, 0)
    expected = Result(
        "t",
        "w",
        Outcome.EXPIRED,
        Lane.HIGH,
        source,
        agent_type="a",
        error=ResultError(ErrorType.DEADLINE_EXPIRED, DeadlineExpired().detail),
        attempts=2,
        batch_id="b",
        timing=Timing(created_at_ms=5_000, dispatched_at_ms=NOW_MS, finished_at_ms=logs.now_ms),
        metadata={"bed": "7"},
    )
    assert expected == decode(Result, record.value or b"")
    found = dict(record.headers)
    assert (b"t", b"w", b"expired", str(source).encode()) == (
        record.key,
        found[names.TENANT],
        found[names.OUTCOME],
        found[names.SOURCE],
    )
    assert (b"00-1", False) == (found["traceparent"], "triage.webhook" in found)


async def test_it_ends_after_the_deadline_and_the_grace_and_once() -> None:
    logs = FakeLogs(make_view())
    put(logs, "t")
    expiry = make_expiry(logs)
    for passed_ms in (0, 999, GRACE_MS):
        logs.now_ms = NOW_MS + passed_ms
        await work(expiry)
        assert [] == results(logs)
    logs.now_ms = NOW_MS + 1_000 + LATEST_MS
    for _ in range(3):
        await work(expiry)
    assert [("t", Outcome.EXPIRED)] == results(logs)


async def test_a_task_without_a_deadline_ends_after_71_hours() -> None:
    logs = FakeLogs(make_view())
    logs.put_request(task_id="t")
    logs.feed()
    expiry = make_expiry(logs)
    logs.now_ms = NOW_MS + LONGEST_MS
    await work(expiry)
    assert [] == results(logs)
    logs.now_ms += LATEST_MS
    await work(expiry)
    assert [("t", Outcome.EXPIRED)] == results(logs)


async def test_a_task_that_waits_in_a_retry_topic_ends_at_the_deadline_it_was_given_first() -> None:
    logs = FakeLogs(make_view())
    rows = {
        names.TASK_ID: "t",
        names.LANE: "normal",
        names.SOURCE: f"{NAMES.requests(Lane.NORMAL)}/0/7",
        names.APPENDED_MS: str(NOW_MS - 9_000),
        names.DEADLINE_MS: str(NOW_MS + 1_000),
        names.ATTEMPTS: "3",
    }
    headers = [(name, text.encode()) for name, text in rows.items()]
    logs.put(NAMES.retry(RetryTier.TEN_MINUTES), 0, None, b'{"messages": []}', headers)
    logs.feed()
    expiry = make_expiry(logs)
    await work(expiry)
    assert [] == results(logs)
    logs.now_ms += 1_000 + LATEST_MS
    await work(expiry)
    (record,) = logs.records[NAMES.results, 0]
    found = decode(Result, record.value or b"")
    assert (Outcome.EXPIRED, 3, 7) == (found.outcome, found.attempts, found.source.offset)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b'{"messages": [], "schema_version": 2}',
        b'{"messages": [], "deadline_at_ms": "soon"}',
        b'{"messages": [], "created_at_ms": -1, "deadline_at_ms": 5}',
        b'{"messages": [], "created_at_ms": 0, "deadline_at_ms": %d}' % (LONGEST_MS + 1),
    ],
)
async def test_what_a_worker_refuses_is_left_to_it(value: bytes) -> None:
    logs = FakeLogs(make_view())
    offset = logs.put(NAMES.requests(Lane.LOW), 0, None, value)
    logs.feed()
    assert logs.view.find(made_id(Lane.LOW, 0, offset)) is not None
    logs.now_ms += 2 * LONGEST_MS
    await work(make_expiry(logs))
    assert [] == results(logs)


async def test_an_outcome_that_the_view_has_not_read_is_respected() -> None:
    logs = FakeLogs(make_view())
    put(logs, "t")
    logs.now_ms += 1_000 + LATEST_MS
    logs.put_result(make_result("t"))
    await work(make_expiry(logs))
    assert [("t", Outcome.COMPLETED)] == results(logs)


async def test_nothing_ends_before_the_view_has_caught_up_or_while_kafka_is_away() -> None:
    logs = FakeLogs(make_view(), is_caught_up=False)
    put(logs, "t")
    logs.now_ms += 1_000 + LATEST_MS
    expiry = make_expiry(logs)
    assert [] == expiry.begin()
    logs.is_caught_up, logs.is_reachable = True, False
    assert [] == expiry.begin()
    logs.is_reachable, logs.is_behind = True, True
    await work(expiry)
    assert [] == results(logs)
    logs.is_behind = False
    await work(expiry)
    assert [("t", Outcome.EXPIRED)] == results(logs)


async def test_what_was_not_acknowledged_is_tried_again() -> None:
    logs = FakeLogs(make_view(), is_silent=True)
    put(logs, "t")
    logs.now_ms += 1_000 + LATEST_MS
    expiry = make_expiry(logs)
    await work(expiry)
    assert [] == results(logs)
    logs.is_silent = False
    await work(expiry)
    assert [("t", Outcome.EXPIRED)] == results(logs)


async def test_a_backlog_ends_in_pieces_the_oldest_first() -> None:
    logs = FakeLogs(make_view())
    for number in reversed(range(50)):
        put(logs, f"t{number}", 1_000 + number, partition=number % PARTITIONS)
    logs.now_ms += 2_000 + LATEST_MS
    expiry, ended = make_expiry(logs), []
    for _ in range(4):
        await work(expiry)
        rows = [task_id for number in range(PARTITIONS) for task_id, _ in results(logs, number)]
        logs.feed()
        ended.append({int(task_id[1:]) for task_id in rows})
    assert [set(range(MOST)), set(range(2 * MOST)), set(range(50)), set(range(50))] == ended


@dataclass
class _HangingLogs(FakeLogs):
    """Logs of which partition 0 does not give its records until `gate` is set."""

    def __post_init__(self) -> None:
        self.gate, self.asked = asyncio.Event(), asyncio.Event()

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        if partition == 0:
            self.asked.set()
            await self.gate.wait()
        return await super().read(topic, partition, offset)


async def test_a_partition_that_hangs_holds_up_no_other_and_is_not_begun_twice() -> None:
    logs = _HangingLogs(make_view())
    put(logs, "stuck", partition=0)
    logs.now_ms += 1_000 + LATEST_MS
    expiry = make_expiry(logs)
    stuck = asyncio.create_task(work(expiry))
    await logs.asked.wait()
    put(logs, "t", partition=1)
    logs.now_ms += 1_000 + LATEST_MS
    await work(expiry)
    assert ([], [("t", Outcome.EXPIRED)]) == (results(logs, 0), results(logs, 1))
    logs.gate.set()
    await stuck
    assert [("stuck", Outcome.EXPIRED)] == results(logs, 0)


@dataclass
class _CountingLogs(FakeLogs):
    """Logs that yield before each append, so that several gateways come to the same moment."""

    async def append(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        await asyncio.sleep(0)
        return await super().append(topic, partition, key=key, value=value, headers=headers)


async def test_of_two_gateways_the_later_one_finds_what_the_first_wrote() -> None:
    logs = _CountingLogs(make_view())
    put(logs, "t")
    one, other = make_expiry(logs, "g1"), make_expiry(logs, "g2")
    for _ in range(1_000 + LATEST_MS + 1):
        logs.now_ms += 1
        await asyncio.gather(work(one), work(other))
    assert [("t", Outcome.EXPIRED)] == results(logs)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["request", "request", "result", "time"]),
            st.sampled_from(["a", "b", "c", "d"]),
            st.integers(0, PARTITIONS - 1),
            st.integers(-50, 3_000),
        ),
        max_size=60,
    )
)
def test_overdue_are_exactly_the_unfinished_whose_deadline_has_passed(
    history: list[tuple[str, str, int, int]],
) -> None:
    logs = FakeLogs(make_view())
    deadlines: dict[tuple[str, int], int] = {}
    ended: set[tuple[str, int]] = set()
    for what, task_id, partition, number in history:
        key = (task_id, partition)
        match what:
            case "request":
                put(logs, task_id, max(number, 0), partition)
                if key not in ended:
                    deadlines.setdefault(key, logs.now_ms + max(number, 0))
            case "result":
                logs.put_result(make_result(task_id, partition=partition))
                logs.feed()
                deadlines.pop(key, None)
                ended.add(key)
            case _:
                logs.now_ms += max(number, 0)
        for place in range(PARTITIONS):
            found = logs.view.overdue(place, logs.now_ms, 10)
            due = {key: at_ms for key, at_ms in deadlines.items() if key[1] == place and at_ms <= logs.now_ms}
            assert due == {(each.task_id, each.partition): each.deadline_ms for each in found}
            assert sorted(due.values()) == [each.deadline_ms for each in found]
            assert sum(key[1] == place for key in deadlines) == len(logs.view._due[place])
