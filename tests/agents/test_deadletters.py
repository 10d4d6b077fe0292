"""A dead letter is always a record that can be written."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from agents.deadletters import DeadLetters
from agents.delivery import Delivery
from agents.metrics import WorkerMetrics
from schemas.result import ErrorType, ResultError, Source
from schemas.topics import Lane, TopicNames
from streams import outcome
from wire.producing import DurableProducer, RecordTooLarge


class Producer:
    """Remembers what it was given; refuses what aiokafka would."""

    def __init__(self, limit: int) -> None:
        self.limit, self.written = limit, list[dict[str, Any]]()

    async def write(self, topic: str, partition: int, **record: Any) -> int:
        assert record["key"] is not None or record["value"] is not None
        if sum(len(value) for _, value in record["headers"]) + len(record["value"] or b"") > self.limit:
            raise RecordTooLarge("too large")
        self.written.append(record)
        return 0


def delivery(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Delivery:
    source = Source("triage.requests.low", 3, 7)
    return Delivery(cast(Any, None), "triage-low", Lane.LOW, source, source, 1, key, value, headers, 1000)


@pytest.mark.parametrize("key", [None, b"k"])
@pytest.mark.parametrize("value", [None, b"", b"text", b"x" * 3_000_000])
@pytest.mark.parametrize("header", [b"", b"h" * 5_000_000])
async def test_whatever_the_request_was(key: bytes | None, value: bytes | None, header: bytes) -> None:
    producer = Producer(limit=4_000_000)
    letters = DeadLetters(cast(DurableProducer, producer), TopicNames(), WorkerMetrics(CollectorRegistry()))
    error = ResultError(ErrorType.INVALID_REQUEST, "the value is empty")
    source = Source("triage.requests.low", 3, 7)
    result = outcome.rejected("low.3.7", "default", Lane.LOW, source, error, appended_ms=1, now_ms=2)
    await letters.write(delivery(key, value, [("own", header)]), result, attempts=0, deadline_ms=9)
    (written,) = producer.written
    sent = dict(written["headers"])
    assert (b"low.3.7", b"triage.requests.low/3/7", b"9") == (
        sent["triage.task_id"],
        sent["triage.source"],
        sent["triage.deadline_ms"],
    )
    if not header and value is not None and len(value) < 2_000_000:
        assert (key, value, b"") == (written["key"], written["value"], sent["own"])
