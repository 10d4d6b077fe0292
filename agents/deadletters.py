"""Dead letters: a failed request's own bytes, key and headers, with why and where from beside them."""

from __future__ import annotations

from agents.delivery import Delivery
from agents.metrics import WorkerMetrics
from schemas import headers as names
from schemas.result import Result
from schemas.topics import MAX_RECORD_BYTES, TopicNames
from wire.producing import DurableProducer, RecordTooLarge


class DeadLetters:
    """Writes dead letters; each is durable before the `failed` result that refers to it."""

    def __init__(self, producer: DurableProducer, topics: TopicNames, metrics: WorkerMetrics) -> None:
        self._producer, self._topics, self._metrics = producer, topics, metrics

    async def write(self, delivery: Delivery, result: Result, *, attempts: int, deadline_ms: int | None) -> None:
        """Write the dead letter of a request that failed. A value over 2 MiB goes without its bytes, with its size in a header.

        Raises: ProducerClosed.
        """
        ours = self._headers(delivery, result, attempts, deadline_ms)
        headers = [*names.own(delivery.headers), *ours]
        value = delivery.value
        if value is not None and len(value) > MAX_RECORD_BYTES:
            headers.append((names.VALUE_BYTES, str(len(value)).encode()))
            value = None
        if delivery.key is None and value is None:
            value = b""  # aiokafka refuses a record that has neither
        topic, partition = self._topics.dead_letters, delivery.partition
        try:
            await self._producer.write(topic, partition, key=delivery.key, value=value, headers=headers)
        except RecordTooLarge:
            # Key and headers of the request, which compression can hide from the lane topic's limit, are too large themselves.
            size = (names.VALUE_BYTES, str(len(delivery.value or b"")).encode())
            await self._producer.write(topic, partition, key=None, value=b"", headers=[*ours, size])
        error = result.error
        self._metrics.dead_letters.labels(error.type.value if error else "").inc()

    def _headers(
        self, delivery: Delivery, result: Result, attempts: int, deadline_ms: int | None
    ) -> list[tuple[str, bytes]]:
        record, error = delivery.record, result.error
        kind, detail = (error.type.value, error.detail) if error else ("", "")
        rows = {
            names.TASK_ID: result.task_id,
            names.LANE: delivery.lane.value,
            names.ATTEMPTS: attempts,
            names.DEADLINE_MS: deadline_ms,
            names.APPENDED_MS: delivery.appended_ms,
            names.SOURCE: delivery.source,
            names.ERROR_TYPE: kind,
            names.DLQ_TOPIC: record.topic,
            names.DLQ_PARTITION: record.partition,
            names.DLQ_OFFSET: record.offset,
            names.DLQ_GROUP: delivery.group,
            names.DLQ_DELIVERY_COUNT: max(attempts, 1),
            names.DLQ_MESSAGE: detail,
        }
        return [(name, str(text).encode()) for name, text in rows.items() if text is not None]
