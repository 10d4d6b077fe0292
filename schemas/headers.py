"""Names of the record headers of ours, and of those copied from a request into its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[str, bytes]]

CONTENT_TYPE = ("content-type", b"application/json")

# On a result.
TENANT = "triage.tenant"
OUTCOME = "triage.outcome"
CACHEABLE = "triage.cacheable"
SOURCE = "triage.source"  # also on retries and dead letters

# On a request, copied into its result.
BATCH = "triage.batch"  # <batch_id>;<index>;<total>
IDEMPOTENCY = "triage.idempotency"  # hash(tenant, route, key)
COPIED = frozenset({"traceparent", "tracestate", "correlation_id", "kafka_correlationId", BATCH, IDEMPOTENCY})

MOST_COPIED_BYTES = 4096

# On retries and dead letters.
TASK_ID = "triage.task_id"
LANE = "triage.lane"
ATTEMPTS = "triage.attempts"
NOT_BEFORE_MS = "triage.not_before_ms"
DEADLINE_MS = "triage.deadline_ms"
APPENDED_MS = "triage.appended_ms"
HOPS = "triage.hops"  # retry topics it failed its way through; being parked is none
ERROR_TYPE = "triage.error.type"
VALUE_BYTES = "triage.value_bytes"  # on a dead letter that goes without the bytes of its request

# On dead letters: the names Kafka's own dead-letter queues use (KIP-1191).
DLQ_TOPIC = "__dlq.errors.topic"
DLQ_PARTITION = "__dlq.errors.partition"
DLQ_OFFSET = "__dlq.errors.offset"
DLQ_GROUP = "__dlq.errors.group"
DLQ_DELIVERY_COUNT = "__dlq.errors.delivery.count"
DLQ_MESSAGE = "__dlq.errors.message"


# Written anew at each hop; all other headers of a request stay with it.
_OF_A_HOP = frozenset(
    {TASK_ID, LANE, ATTEMPTS, HOPS, NOT_BEFORE_MS, DEADLINE_MS, APPENDED_MS, SOURCE, ERROR_TYPE, VALUE_BYTES}
)


def own(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the headers that the request's producer set, without those of retries."""
    return [(name, value) for name, value in headers if name not in _OF_A_HOP]


def find(headers: Iterable[tuple[str, bytes]], name: str) -> str | None:
    """Return the first header of that name as text, None when there is none or it is not text."""
    for key, value in headers:
        if key == name and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def copied(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the headers of a request that its result carries too: the first of each name, but none that is longer than 4 KiB."""
    found: dict[str, bytes] = {}
    for key, value in headers:
        if key in COPIED and len(value or b"") <= MOST_COPIED_BYTES:
            found.setdefault(key, value)
    return list(found.items())
