"""The logs in Kafka, as the task routes use them."""

from __future__ import annotations

import asyncio

from aiokafka import TopicPartition
from aiokafka.errors import ProducerClosed

from gateway.answers import Answers
from gateway.ends import Ends
from gateway.follower import Follower
from gateway.ports import OutcomeUnknown, Stored, Unavailable
from schemas.headers import Headers
from streams.brokertime import BrokerClock
from wire.clock import monotonic_s
from wire.producing import DurableProducer, NotAcknowledged, RecordTooLarge, WriteRefused

APPEND_S = 5.0
SILENT_S = 5.0
_BEAT_S = 1.0


class KafkaLogs:
    """Appends with the gateway's producer, reads by offset, and knows how far the view is (`Logs` of `gateway/ports.py`)."""

    def __init__(
        self, producer: DurableProducer, follower: Follower, ends: Ends, answers: Answers, clock: BrokerClock
    ) -> None:
        self._producer, self._follower, self._ends, self._answers, self._clock = (
            producer,
            follower,
            ends,
            answers,
            clock,
        )
        self._heard_s = monotonic_s()

    @property
    def now_ms(self) -> int:
        return self._clock.ms(monotonic_s())

    @property
    def is_reachable(self) -> bool:
        """Whether Kafka answered within the last five seconds."""
        return monotonic_s() - self._heard_s < SILENT_S

    @property
    def is_caught_up(self) -> bool:
        return self._follower.caught_up.is_set()

    def require(self) -> None:
        if not self.is_caught_up:
            raise Unavailable("the logs are being read; the gateway has not caught up yet")
        if not self.is_reachable:
            raise Unavailable("Kafka does not answer")

    async def beat(self) -> None:
        """Ask Kafka something each second, until cancelled: the consumer itself never says that its brokers are gone."""
        while True:
            try:
                await self._ends.of([self._follower.followed.workers])
                self._heard_s = monotonic_s()
            except Unavailable:
                pass  # said by `is_reachable` when it lasts
            await asyncio.sleep(_BEAT_S)

    async def append(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        try:
            return await self._producer.write(
                topic, partition, key=key, value=value, headers=headers, timeout_s=APPEND_S
            )
        except NotAcknowledged as late:
            kind = OutcomeUnknown if late.may_be_written else Unavailable
            raise kind(str(late)) from None
        except ProducerClosed:
            raise OutcomeUnknown("the gateway is stopping") from None
        except WriteRefused as refused:
            if isinstance(refused, RecordTooLarge):
                raise
            raise Unavailable(f"Kafka refuses the record: {refused}") from refused

    async def reach(self, partition: int | None) -> None:
        followed = self._follower.followed
        if partition is None:
            await self._follower.reach([*followed.lanes, *followed.results, *followed.progress])
        else:
            await self._follower.reach([followed.results[partition], followed.progress[partition]])

    async def reach_state(self) -> None:
        await self._follower.reach([self._follower.followed.state])

    async def reach_result(self, partition: int, offset: int, timeout_s: float) -> bool:
        tp: TopicPartition = self._follower.followed.results[partition]
        return await self._follower.reach_offsets({tp: offset + 1}, timeout_s)

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        return await self._answers.read(topic, partition, offset)
