"""Which record decides, what a result says, and which finished tasks are remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.request import CachePolicy
from schemas.result import BatchRef, ErrorType, Outcome, Output, ResultError, Routing, Source, Usage
from schemas.topics import Lane
from streams import outcome
from streams.errors import BackendRejected, BackendTimeout, DeadlineExpired, ServingError, UnknownModel
from streams.outcome import FinishedIndex, Served, first_outcomes
from tests.support.tasks import EPOCH_MS, make_task

SERVED = Served("b1", "tiny", BatchRef("batch-1", 2), "fits, fastest", "NORMAL", ("logit_bias",))
HIGH = "triage.requests.high"

outcomes = st.sampled_from(Outcome)
ids = st.sampled_from(["a", "b", "c", "d"])


# The rule


@pytest.mark.parametrize("first", Outcome)
@pytest.mark.parametrize("later", Outcome)
def test_the_first_record_is_the_outcome_whatever_follows(first: Outcome, later: Outcome) -> None:
    assert {("a", 0): first} == first_outcomes([("a", 0, first), ("a", 0, later)])


def test_the_same_id_on_two_partition_numbers_has_two_outcomes() -> None:
    rows = [("a", 0, Outcome.FAILED), ("a", 1, Outcome.COMPLETED)]
    assert {("a", 0): Outcome.FAILED, ("a", 1): Outcome.COMPLETED} == first_outcomes(rows)


@given(st.lists(st.tuples(ids, st.integers(0, 2), outcomes)), st.integers(0, 30))
def test_more_of_the_log_never_changes_an_outcome(log: list[tuple[str, int, Outcome]], read: int) -> None:
    sooner, later = first_outcomes(log[:read]), first_outcomes(log)
    assert sooner == {key: later[key] for key in sooner}


@given(st.lists(st.tuples(ids, st.integers(0, 2), outcomes)))
def test_partitions_may_be_read_in_any_order(log: list[tuple[str, int, Outcome]]) -> None:
    assert first_outcomes(sorted(log, key=lambda row: row[1])) == first_outcomes(log)


# What a result says


def test_an_error_that_may_pass_ends_as_retries_exhausted_with_its_cause() -> None:
    task = make_task()
    result = outcome.failed(task, BackendTimeout("no answer within 1 s"), now_s=1.0, now_ms=EPOCH_MS, served=SERVED)
    assert result.error == ResultError(
        ErrorType.RETRIES_EXHAUSTED, "every try failed; the last: no answer within 1 s", True, "backend_timeout"
    )
    assert (result.backend, result.model, result.batch) == ("b1", "tiny", BatchRef("batch-1", 2))
    assert Routing("fits, fastest", "NORMAL", ["logit_bias"]) == result.routing


@pytest.mark.parametrize(
    ("error", "ends", "type_"),
    [
        (DeadlineExpired(), Outcome.EXPIRED, ErrorType.DEADLINE_EXPIRED),
        (UnknownModel(), Outcome.FAILED, ErrorType.UNKNOWN_MODEL),
        (BackendRejected(), Outcome.FAILED, ErrorType.BACKEND_REJECTED),
        (ServingError(), Outcome.FAILED, ErrorType.INTERNAL),
    ],
)
def test_other_errors_end_as_what_they_are(error: ServingError, ends: Outcome, type_: ErrorType) -> None:
    result = outcome.failed(make_task(), error, now_s=1.0, now_ms=EPOCH_MS)
    assert result.error
    assert (ends, type_, None, False) == (
        result.outcome,
        result.error.type,
        result.error.last,
        result.error.retriable,
    )
    assert (None, None, None, Routing()) == (result.backend, result.batch, result.output, result.routing)


def test_times_count_from_intake_to_the_call_and_from_the_call_to_its_end() -> None:
    task = make_task(now_s=10.0, created_at_ms=77)
    task.dispatched_s, task.dispatched_ms = 10.5, EPOCH_MS + 10_500
    timing = outcome.completed(task, SERVED, Output("x"), None, now_s=12.0, now_ms=EPOCH_MS + 12_000).timing
    assert (500.0, 1500.0) == (timing.queue_ms, timing.inference_ms)
    assert (77, EPOCH_MS + 10_000, EPOCH_MS + 10_500, EPOCH_MS + 12_000) == (
        timing.created_at_ms,
        timing.accepted_at_ms,
        timing.dispatched_at_ms,
        timing.finished_at_ms,
    )


def test_a_task_that_never_ran_has_waited_until_its_end_and_has_no_inference_time() -> None:
    timing = outcome.failed(make_task(), DeadlineExpired(), now_s=3.0, now_ms=EPOCH_MS + 3000).timing
    assert (EPOCH_MS, 3000.0, None, None) == (
        timing.created_at_ms,
        timing.queue_ms,
        timing.dispatched_at_ms,
        timing.inference_ms,
    )


def test_a_record_that_could_not_be_read_fails_under_its_lane() -> None:
    error = ResultError(ErrorType.INVALID_REQUEST, "the value is empty")
    result = outcome.rejected("high.3.7", "default", Lane.HIGH, Source(HIGH, 3, 7), error, appended_ms=1, now_ms=2)
    assert (result.outcome, result.error, result.attempts) == (Outcome.FAILED, error, 0)
    assert (1, 2, 2) == (result.timing.created_at_ms, result.timing.accepted_at_ms, result.timing.finished_at_ms)


def test_headers_say_whose_and_what_it_is_without_the_value() -> None:
    task = make_task("a", Lane.HIGH, partition=3, offset=7, tenant="ward7")
    result = outcome.completed(task, SERVED, Output("x"), None, now_s=0, now_ms=0)
    copied = [("traceparent", b"00-1-2-01")]
    headers = outcome.result_headers(result, copied, "abc;300")
    assert [
        ("triage.tenant", b"ward7"),
        ("triage.outcome", b"completed"),
        ("triage.source", b"triage.requests.high/3/7"),
        ("content-type", b"application/json"),
        ("traceparent", b"00-1-2-01"),
        ("triage.cacheable", b"abc;300"),
    ] == headers
    assert "triage.cacheable" not in dict(outcome.result_headers(result, [], None))


def test_only_completed_answers_from_a_backend_are_stored() -> None:
    task = make_task(cache=CachePolicy(ttl_s=60))
    result = outcome.completed(task, SERVED, Output("x", "stop"), Usage(1, 1, 2), now_s=0, now_ms=0)
    assert f"{task.fingerprint};60" == outcome.cacheable(task, result)
    for other in (
        replace(result, cached=True),
        replace(result, outcome=Outcome.FAILED),
        replace(result, output=None),
        replace(result, output=Output("x", "tool_calls")),
        replace(result, output=Output("x", None)),
    ):
        assert outcome.cacheable(task, other) is None


# What is remembered


def followed(committed: int = 0) -> FinishedIndex:
    index = FinishedIndex()
    index.commit(HIGH, 0, committed)
    return index


def test_the_first_outcome_stays() -> None:
    index = followed()
    index.observe("a", Source(HIGH, 0, 5), Outcome.CANCELLED)
    index.observe("a", Source(HIGH, 0, 5), Outcome.COMPLETED)
    assert (Outcome.CANCELLED, None, 1) == (index.outcome_of("a", 0), index.outcome_of("a", 1), len(index))


def test_a_task_is_forgotten_once_its_request_is_committed_and_not_learned_again() -> None:
    index = followed()
    for offset in (5, 6):
        index.observe(f"id-{offset}", Source(HIGH, 0, offset), Outcome.COMPLETED)
    index.commit(HIGH, 0, 6)
    assert (None, Outcome.COMPLETED) == (index.outcome_of("id-5", 0), index.outcome_of("id-6", 0))
    index.observe("id-5", Source(HIGH, 0, 5), Outcome.COMPLETED)
    index.commit(HIGH, 0, 3)
    index.observe("id-4", Source(HIGH, 0, 4), Outcome.COMPLETED)
    assert 1 == len(index)


def test_results_of_lanes_that_are_not_followed_are_not_kept() -> None:
    # Else they would pile up for ever: nobody here commits their requests.
    index = followed()
    index.observe("other lane", Source("triage.requests.low", 0, 5), Outcome.COMPLETED)
    index.observe("other partition", Source(HIGH, 1, 5), Outcome.COMPLETED)
    assert 0 == len(index)


def test_a_partition_that_is_let_go_of_is_forgotten_alone() -> None:
    index = followed()
    index.commit(HIGH, 1, 0)
    index.commit("triage.requests.low", 0, 0)
    for name, source in (
        ("a", Source(HIGH, 0, 5)),
        ("b", Source(HIGH, 1, 5)),
        ("c", Source("triage.requests.low", 0, 5)),
    ):
        index.observe(name, source, Outcome.COMPLETED)
    index.release(HIGH, 0)
    index.observe("a", Source(HIGH, 0, 5), Outcome.COMPLETED)
    assert (None, Outcome.COMPLETED, Outcome.COMPLETED) == (
        index.outcome_of("a", 0),
        index.outcome_of("b", 1),
        index.outcome_of("c", 0),
    )


class IndexMachine(RuleBasedStateMachine):
    """The model keeps the whole log and every commit, and works the answer out anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.index = FinishedIndex()
        self.log: dict[tuple[str, int], list[tuple[Source, Outcome]]] = {}
        self.committed: dict[tuple[str, int], int] = {}

    @rule(offset=st.integers(0, 12), partition=st.integers(0, 1), lane=st.sampled_from(Lane), ends=outcomes)
    def observe(self, offset: int, partition: int, lane: Lane, ends: Outcome) -> None:
        source = Source(f"triage.requests.{lane.value}", partition, offset)
        task_id = f"{lane.value}-{offset}"
        self.index.observe(task_id, source, ends)
        committed = self.committed.get((source.topic, partition))
        if committed is not None and offset >= committed:
            self.log.setdefault((task_id, partition), []).append((source, ends))

    @rule(offset=st.integers(0, 12), partition=st.integers(0, 1), lane=st.sampled_from(Lane))
    def commit(self, offset: int, partition: int, lane: Lane) -> None:
        place = (f"triage.requests.{lane.value}", partition)
        self.index.commit(*place, offset)
        self.committed[place] = max(offset, self.committed.get(place, 0))

    @rule(partition=st.integers(0, 1), lane=st.sampled_from(Lane))
    def release(self, partition: int, lane: Lane) -> None:
        place = (f"triage.requests.{lane.value}", partition)
        self.index.release(*place)
        self.committed.pop(place, None)
        self.log = {key: rows for key, rows in self.log.items() if (rows[0][0].topic, rows[0][0].partition) != place}

    @invariant()
    def it_holds_the_first_outcome_of_what_is_finished_and_uncommitted(self) -> None:
        for (task_id, partition), rows in self.log.items():
            source, first = rows[0]
            kept = source.offset >= self.committed[source.topic, source.partition]
            assert (first if kept else None) == self.index.outcome_of(task_id, partition)
        kept_count = sum(
            rows[0][0].offset >= self.committed[rows[0][0].topic, rows[0][0].partition] for rows in self.log.values()
        )
        assert kept_count == len(self.index)


IndexMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestFinishedIndex = IndexMachine.TestCase
