"""Record headers."""

from __future__ import annotations

from schemas.headers import copied, find


def test_the_first_header_of_a_name_is_found_if_it_is_text() -> None:
    headers = [("a", b"1"), ("b", b"2"), ("a", b"3"), ("raw", b"\xff")]
    assert ("1", None, None) == (find(headers, "a"), find(headers, "c"), find(headers, "raw"))


def test_a_result_carries_the_requests_trace_and_correlation_and_nothing_else() -> None:
    kept = ["traceparent", "tracestate", "correlation_id", "kafka_correlationId", "triage.batch", "triage.idempotency"]
    others = ["triage.webhook", "triage.task_id", "TraceParent", "authorization"]
    assert kept == [name for name, _ in copied([(name, b"x") for name in kept + others])]
