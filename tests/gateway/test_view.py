"""What the view answers, as tables, and that neither the order of reading nor later records change it."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.finished import Finished, FinishedFile
from gateway.rendering import state_of, stats, unfinished_status
from gateway.view import Unfinished, View
from schemas import headers as names
from schemas.ids import home
from schemas.result import Outcome
from schemas.topics import Lane, RetryTier
from streams.deadlines import LONGEST_MS
from streams.estimating import Rank
from tests.gateway.fakes import NAMES, NOW_MS, FakeLogs, Record, feed, make_result, make_view

Step = Callable[[FakeLogs], object]


def request(task_id: str = "t", lane: Lane = Lane.NORMAL, **fields: object) -> Step:
    return lambda logs: logs.put_request(lane, 0, task_id=task_id, **fields)


def started(task_id: str = "t", lane: Lane = Lane.NORMAL, attempt: int = 1) -> Step:
    return lambda logs: logs.put_started(task_id, lane, 0, 0, attempt)


def ended(outcome: Outcome = Outcome.COMPLETED, task_id: str = "t") -> Step:
    return lambda logs: logs.put_result(make_result(task_id, outcome))


def retried(attempts: int = 1, task_id: str = "t", appended_ms: int = NOW_MS) -> Step:
    rows = {
        names.TASK_ID: task_id,
        names.LANE: "normal",
        names.SOURCE: f"{NAMES.requests(Lane.NORMAL)}/0/0",
        names.APPENDED_MS: str(appended_ms),
        names.DEADLINE_MS: str(appended_ms + LONGEST_MS),
        names.ATTEMPTS: str(attempts),
        names.NOT_BEFORE_MS: str(appended_ms + 5000),
    }
    headers = [(name, text.encode()) for name, text in rows.items()]
    topic = NAMES.retry(RetryTier.FIVE_SECONDS)
    return lambda logs: logs.put(topic, 0, None, b'{"messages": []}', headers)


def seen(*steps: Step) -> View:
    logs = FakeLogs(make_view())
    for step in steps:
        step(logs)
    logs.feed()
    return logs.view


def state(view: View, task_id: str = "t") -> str | None:
    found = view.find(task_id)
    if found is None:
        return None
    return found.outcome.value if isinstance(found, Finished) else state_of(found)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], None),
        ([request()], "queued"),
        ([request(), started()], "processing"),
        ([started(), request()], "processing"),
        ([request(), started(), retried()], "processing"),
        ([retried()], "processing"),
        ([retried(attempts=0)], "queued"),
        ([request(), ended()], "completed"),
        ([ended(), request()], "completed"),
        ([ended(), started(), request(), retried()], "completed"),
        ([request(), ended(Outcome.CANCELLED), ended()], "cancelled"),
        ([ended(Outcome.EXPIRED), ended(Outcome.FAILED)], "expired"),
        ([request("other"), ended(task_id="other")], None),
    ],
)
def test_state(steps: list[Step], expected: str | None) -> None:
    assert expected == state(seen(*steps))


def test_a_request_without_a_usable_id_is_known_by_its_place() -> None:
    logs = FakeLogs(make_view())
    logs.put_request(Lane.LOW, 2, task_id="has spaces")
    logs.put(NAMES.requests(Lane.LOW), 2, None, b"not json")
    logs.put(NAMES.requests(Lane.LOW), 2, None, None)
    logs.feed()
    assert ["queued"] * 3 == [state(logs.view, f"low.2.{offset}") for offset in range(3)]


def test_what_is_kept_of_an_unfinished_task() -> None:
    view = seen(request(tenant="ward7", agent_type="triage", batch_id="b", created_at_ms=5), started(attempt=2))
    found = view.find("t")
    assert isinstance(found, Unfinished)
    assert ("ward7", "triage", "b", 5, NOW_MS, 2, NOW_MS) == (
        found.tenant,
        found.agent_type,
        found.batch_id,
        found.created_at_ms,
        found.appended_ms,
        found.attempts,
        found.started_at_ms,
    )
    assert "secret" not in repr(found)


def test_of_one_id_on_two_partitions_the_one_at_home_is_shown() -> None:
    logs = FakeLogs(make_view())
    at_home = home("t", 3)
    for partition in range(3):
        logs.put_request(Lane.HIGH, partition, task_id="t")
    logs.feed()
    assert [at_home] * 1 == [found.partition for found in [logs.view.find("t")] if found]


def test_of_two_requests_of_one_task_the_older_counts() -> None:
    logs = FakeLogs(make_view(), now_ms=NOW_MS + 5)
    logs.put_request(Lane.CRITICAL, 0, task_id="t")
    logs.now_ms = NOW_MS
    logs.put_request(Lane.LOW, 0, task_id="t")
    logs.feed()
    found = logs.view.find("t")
    assert isinstance(found, Unfinished)
    assert Lane.LOW is found.lane
    assert [0, 0, 0, 1] == [logs.view.waiting(lane) for lane in Lane]


def test_a_result_without_our_headers_is_read_from_its_body() -> None:
    logs = FakeLogs(make_view())
    logs.put_request(task_id="t")
    logs.put_result(make_result("t", Outcome.FAILED, tenant="ward7"))
    record = logs.records[NAMES.results, 0][0]
    logs.unread[-1] = Record(record.topic, 0, 0, NOW_MS, None, record.value, ())
    logs.feed()
    found = logs.view.find("t")
    assert isinstance(found, Finished)
    assert ("ward7", Outcome.FAILED) == (found.tenant, found.outcome)


def test_records_that_nobody_understands_are_counted_and_passed_over() -> None:
    logs = FakeLogs(make_view())
    logs.put(NAMES.results, 0, b"x", b"{}")
    logs.put(NAMES.results, 0, b"\xff", None)
    logs.put(NAMES.progress, 0, b"x", b'{"tasks": 1}')
    logs.put(NAMES.progress, 0, b"x", b"[")
    logs.put(NAMES.retry(RetryTier.FIVE_SECONDS), 0, None, b"x")
    without_value: Any = None  # as Kafka permits
    logs.put(NAMES.retry(RetryTier.FIVE_SECONDS), 0, None, b"x", [(names.TASK_ID, without_value)])
    logs.feed()
    assert 6 == logs.view.not_understood


def test_an_id_on_two_partition_numbers_is_told_once_for_each_further_one() -> None:
    met: list[None] = []
    view = View(NAMES, 3, FinishedFile(), on_second_partition=lambda: met.append(None))
    view.is_live = True
    logs = FakeLogs(view)
    steps: list[Callable[[], int]] = [
        lambda: logs.put_request(partition=0, task_id="t"),
        lambda: logs.put_request(Lane.HIGH, partition=0, task_id="t"),
        lambda: logs.put_result(make_result("t", partition=0)),
        lambda: logs.put_request(partition=1, task_id="t"),
        lambda: logs.put_request(partition=1, task_id="t"),
        lambda: logs.put_result(make_result("t", partition=1)),
        lambda: logs.put_result(make_result("t", partition=2)),
        lambda: logs.put_result(make_result("t", partition=2)),
        lambda: logs.put_request(partition=2, task_id="t"),
        lambda: logs.put_request(partition=2, task_id="another"),
    ]
    counts = []
    for step in steps:
        step()
        logs.feed()
        counts.append(len(met))
    assert [0, 0, 0, 1, 1, 1, 2, 2, 2, 2] == counts


def test_a_task_whose_request_is_past_retention_is_dropped() -> None:
    logs = FakeLogs(make_view())
    logs.put_request(Lane.LOW, task_id="waiting")
    logs.put_request(Lane.LOW, task_id="running")
    logs.put_started("running", Lane.LOW, 0, 1)
    logs.put_started("beyond", Lane.LOW, 0, 99)
    logs.now_ms += 1
    logs.put_request(Lane.LOW, task_id="newer")
    logs.feed()
    view = logs.view
    assert 0 == view.forget_older(NOW_MS)
    assert 2 == view.forget_older(NOW_MS + 1)
    assert [None, None, "queued"] == [state(view, task_id) for task_id in ("waiting", "running", "newer")]
    assert (1, 0, NOW_MS + 1, {}) == (
        view.waiting(Lane.LOW),
        view.in_flight(Lane.LOW),
        view.oldest_ms(Lane.LOW),
        view._early,
    )


def test_a_rank_counts_the_older_and_the_earlier_due_of_its_lane() -> None:
    logs = FakeLogs(make_view())
    for number, (lane, due_s) in enumerate(
        [(Lane.HIGH, 9), (Lane.LOW, 9), (Lane.LOW, None), (Lane.LOW, 1), (Lane.CRITICAL, 9)]
    ):
        logs.now_ms = NOW_MS + number
        due = {} if due_s is None else {"deadline_at_ms": NOW_MS + 1000 * due_s}
        logs.put_request(lane, number % 3, task_id=f"t{number}", **due)
    logs.put_started("t4", Lane.CRITICAL, 1, 0)
    logs.feed()
    ranks = {}
    for number in range(4):
        found = logs.view.find(f"t{number}")
        assert isinstance(found, Unfinished)
        ranks[found.task_id] = logs.view.rank(found)
    assert {"t0": Rank(0, 0), "t1": Rank(0, 1), "t2": Rank(1, 2), "t3": Rank(2, 0)} == ranks
    assert Rank(3, 1) == logs.view.rank_of_next(Lane.LOW, NOW_MS + 2000)
    assert {Lane.CRITICAL: 0, Lane.HIGH: 1, Lane.NORMAL: 0, Lane.LOW: 3} == logs.view.all_waiting
    assert 1 == logs.view.in_flight(Lane.CRITICAL)
    assert NOW_MS + 1 == logs.view.oldest_ms(Lane.LOW)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([request(), started(attempt=1), retried(attempts=1)], (1, NOW_MS + 5000)),
        ([request(), started(attempt=1), retried(attempts=1), started(attempt=2)], (2, None)),
        ([request(), retried(attempts=0)], (0, NOW_MS + 5000)),
    ],
)
def test_a_retry_is_awaited_until_it_is_started_again_in_whatever_order_that_is_read(
    steps: list[Step], expected: tuple[int, int | None]
) -> None:
    for order in itertools.permutations(steps):
        found = seen(*order).find("t")
        assert isinstance(found, Unfinished)
        assert expected == (found.attempts, found.next_try_ms)


def test_starts_of_tasks_that_ended_are_not_kept() -> None:
    logs = FakeLogs(make_view())
    for number in range(50):
        logs.put_request(task_id=f"t{number}")
        logs.put_result(make_result(f"t{number}", offset=number))
    logs.feed()
    for number in range(50):
        logs.put_started(f"t{number}", Lane.NORMAL, 0, number)
    logs.feed()
    assert {} == logs.view._early


# Any order


HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["request", "started", "retried", "completed", "cancelled", "failed"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(list(Lane)),
    ),
    max_size=25,
)


def write(logs: FakeLogs, history: list[tuple[str, str, Lane]]) -> None:
    """Write what producers, workers and gateways may: starts and retries only of requests that are there."""
    places: dict[str, tuple[Lane, int]] = {}
    attempts: dict[str, int] = defaultdict(int)
    for what, task_id, lane in history:
        logs.now_ms += 1
        if what == "request":
            places[task_id] = (lane, logs.put_request(lane, task_id=task_id, tenant=f"of {task_id}"))
        elif what == "started" and task_id in places:
            attempts[task_id] += 1
            logs.put_started(task_id, places[task_id][0], 0, places[task_id][1], attempts[task_id])
        elif what == "retried" and task_id in places:
            appended_ms = logs.records[NAMES.requests(places[task_id][0]), 0][places[task_id][1]].at_ms
            rows = {
                names.TASK_ID: task_id,
                names.LANE: places[task_id][0].value,
                names.SOURCE: f"{NAMES.requests(places[task_id][0])}/0/{places[task_id][1]}",
                names.APPENDED_MS: str(appended_ms),
                names.DEADLINE_MS: str(appended_ms + LONGEST_MS),
                names.ATTEMPTS: str(attempts[task_id]),
            }
            value = logs.records[NAMES.requests(places[task_id][0]), 0][places[task_id][1]].value
            headers = [(name, text.encode()) for name, text in rows.items()]
            logs.put(NAMES.retry(RetryTier.FIVE_SECONDS), 0, None, value, headers)
        elif what in ("completed", "cancelled", "failed"):
            logs.put_result(make_result(task_id, Outcome(what), tenant=f"of {task_id}"))


def picture(view: View) -> object:
    counts = [(view.waiting(lane), view.in_flight(lane), view.oldest_ms(lane)) for lane in Lane]
    return [view.find(task_id) for task_id in "abc"], counts, view.finished.counts()


@given(HISTORY, st.randoms(use_true_random=False))
def test_the_order_of_reading_across_topics_does_not_matter(
    history: list[tuple[str, str, Lane]], rng: random.Random
) -> None:
    logs = FakeLogs(make_view())
    write(logs, history)
    in_order = [*logs.unread]
    logs.feed()
    other = make_view()
    queues = defaultdict(list)
    for record in in_order:
        queues[record.topic].append(record)
    while queues:
        topic = rng.choice(sorted(queues))
        feed(other, queues[topic].pop(0))
        if not queues[topic]:
            del queues[topic]
        if rng.random() < 0.2:
            other.finished.flush()
    assert picture(logs.view) == picture(other)
    logs.view.finished.close()
    other.finished.close()


def interleaved(records: list[Record], rng: random.Random) -> Iterator[Record]:
    """Yield the records in another order, each partition of a topic in its own."""
    queues = defaultdict(list)
    for record in records:
        queues[record.topic, record.partition].append(record)
    while queues:
        place = rng.choice(sorted(queues))
        yield queues[place].pop(0)
        if not queues[place]:
            del queues[place]


@given(HISTORY, st.randoms(use_true_random=False))
def test_two_gateways_that_read_the_same_logs_answer_alike_and_neither_goes_back(
    history: list[tuple[str, str, Lane]], rng: random.Random
) -> None:
    logs = FakeLogs(make_view())
    write(logs, history)
    views = [make_view(), make_view()]
    order = {"queued": 1, "processing": 2}
    for view in views:
        known = dict.fromkeys("abc", 0)
        for record in interleaved(logs.unread, rng):
            feed(view, record)
            for task_id in "abc":
                now = order.get(state(view, task_id) or "", 3) if state(view, task_id) else 0
                assert known[task_id] <= now
                known[task_id] = now
    assert picture(views[0]) == picture(views[1])
    for view in (logs.view, *views):
        view.finished.close()


VALUE = (
    st.none()
    | st.binary(max_size=12)
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(["t", "high", "triage.requests.high", ""]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "task_id",
                        "messages",
                        "tasks",
                        "at_ms",
                        "created_at_ms",
                        "parameters",
                        "max_tokens",
                        "content",
                        "tenant",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=10,
    ).map(orjson.dumps)
)
HEADER = st.tuples(
    st.sampled_from(
        [
            names.TASK_ID,
            names.LANE,
            names.SOURCE,
            names.APPENDED_MS,
            names.DEADLINE_MS,
            names.ATTEMPTS,
            names.OUTCOME,
            names.TENANT,
            "triage.batch",
        ]
    ),
    st.none()
    | st.sampled_from([b"t", b"high", b"completed", b"triage.requests.high/0/1", b"-7", b"9" * 30, b"b;1;2"])
    | st.binary(max_size=8),
)
TOPIC = st.sampled_from([NAMES.requests(Lane.HIGH), NAMES.results, NAMES.progress, NAMES.retry(RetryTier.FIVE_SECONDS)])


@given(st.lists(st.tuples(TOPIC, st.none() | st.binary(max_size=4), st.lists(HEADER, max_size=6), VALUE), max_size=6))
def test_whatever_others_write_the_view_goes_on(records: list[tuple[str, bytes | None, Any, bytes | None]]) -> None:
    view = make_view()
    view.is_live = True
    for offset, (topic, key, headers, value) in enumerate(records):
        feed(view, Record(topic, 0, offset, NOW_MS, key, value, headers))
    stats(view, 0, NOW_MS)
    for task_id in ("t", "high.0.0"):
        found = view.find(task_id)
        if isinstance(found, Unfinished):
            orjson.dumps(unfinished_status(found, view.rank(found).older))
    view.finished.close()


@given(HISTORY)
def test_a_status_only_moves_forward_and_the_first_outcome_stays(history: list[tuple[str, str, Lane]]) -> None:
    logs = FakeLogs(make_view())
    write(logs, history)
    order = {None: 0, "queued": 1, "processing": 2}
    last: dict[str, str | None] = {}
    for record in logs.unread:
        feed(logs.view, record)
        for task_id in "abc":
            now, before = state(logs.view, task_id), last.get(task_id)
            assert order.get(before, 3) <= order.get(now, 3)
            if order.get(before, 3) == 3:
                assert before == now
            last[task_id] = now
    first: dict[str, str] = {}
    for record in logs.records[NAMES.results, 0]:
        first.setdefault((record.key or b"").decode(), dict(record.headers)[names.OUTCOME].decode())
    assert first == {task_id: now for task_id, now in last.items() if order.get(now, 3) == 3}
    logs.view.finished.close()
