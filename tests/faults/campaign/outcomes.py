"""Which acknowledged tasks have an outcome, read from the results log while the run goes on; and whether everything is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from schemas.topics import Lane, RetryTier, TopicNames
from tests.support.kafka import fresh_name
from wire.clock import monotonic_s

_POLL_S = 0.05
_ASK_S = 5.0


class Outcomes:
    """`waiting` holds acknowledged tasks that have no outcome yet; `last_s` per partition when one was read last."""

    def __init__(self, bootstrap: str, names: TopicNames, partitions: int) -> None:
        self._bootstrap, self._names, self._partitions = bootstrap, names, partitions
        self.waiting: set[str] = set()
        self.last_s = dict.fromkeys(range(partitions), 0.0)
        self._ended: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._ended)

    def expect(self, task_id: str) -> None:
        if task_id not in self._ended:
            self.waiting.add(task_id)

    async def follow(self) -> None:
        """Read until cancelled."""
        consumer = self._consumer(fresh_name("reader"))
        try:
            consumer.assign([TopicPartition(self._names.results, number, OFFSET_BEGINNING) for number in self.last_s])
            while True:
                for record in consumer.consume(1000, 0):
                    if record.error() is None:
                        self._end((record.key() or b"").decode(), record.partition() or 0)
                await asyncio.sleep(_POLL_S)
        finally:
            consumer.close()

    def _end(self, task_id: str, partition: int) -> None:
        self._ended.add(task_id)
        self.waiting.discard(task_id)
        self.last_s[partition] = monotonic_s()

    async def lag(self) -> int | None:
        """Return how many requests and retries are not committed; None when the brokers do not say."""
        try:
            return await asyncio.to_thread(self._lag)
        except KafkaException:
            return None

    def _lag(self) -> int:
        lanes = [(lane.value, [self._names.requests(lane)]) for lane in Lane]
        return sum(
            self._group_lag(name, topics)
            for name, topics in [*lanes, ("retry", [self._names.retry(tier) for tier in RetryTier])]
        )

    def _group_lag(self, name: str, topics: Sequence[str]) -> int:
        consumer = self._consumer(self._names.group(name))
        try:
            tps = [TopicPartition(topic, number) for topic in topics for number in range(self._partitions)]
            lag = 0
            for each in consumer.committed(tps, timeout=_ASK_S):
                ends = consumer.get_watermark_offsets(TopicPartition(each.topic, each.partition), timeout=_ASK_S)
                if ends is None:
                    raise KafkaException("no end")
                lag += ends[1] - max(each.offset, 0)
            return lag
        finally:
            consumer.close()

    def _consumer(self, group: str) -> Consumer:
        """Return a consumer that joins no group: it is only assigned, or asks what the group committed."""
        options = {"bootstrap.servers": self._bootstrap, "group.id": group, "enable.auto.commit": False}
        return Consumer(options | {"isolation.level": "read_committed", "log_level": 0})
