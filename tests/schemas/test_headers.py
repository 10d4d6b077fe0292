"""Record headers."""

from __future__ import annotations

from typing import Any

from schemas.headers import copied, find


def test_the_first_header_of_a_name_is_found_if_it_is_text() -> None:
    headers = [("a", b"1"), ("b", b"2"), ("a", b"3"), ("raw", b"\xff")]
    assert ("1", None, None) == (find(headers, "a"), find(headers, "c"), find(headers, "raw"))


def test_a_result_carries_the_requests_trace_and_correlation_and_nothing_else() -> None:
    kept = ["traceparent", "tracestate", "correlation_id", "kafka_correlationId", "triage.batch", "triage.idempotency"]
    others = ["triage.webhook", "triage.task_id", "TraceParent", "authorization"]
    assert kept == [name for name, _ in copied([(name, b"x") for name in kept + others])]


def test_a_result_takes_the_first_header_of_a_name_and_none_that_is_long() -> None:
    headers = [("traceparent", b"1"), ("tracestate", b"x" * 5000), *[("traceparent", b"2")] * 600]
    assert [("traceparent", b"1")] == copied(headers)


def test_a_header_without_a_value_is_no_text() -> None:
    null: Any = None
    assert find([("triage.source", null)], "triage.source") is None
