"""Where the logs end now, asked through a client of its own: on a consumer that fetches, the question waits for its long poll."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import NotLeaderForPartitionError

from gateway.ports import Unavailable
from streams.settings import KafkaSettings
from wire.clock import monotonic_s
from wire.connection import BROKER_FAILURES, QUICK_RETRIES, consumer_options
from wire.reading import stop_consumer

ASK_S = 2.0
REMEMBERED_S = 30.0
# Less than a question may take, so that the connection to a broker that hangs is given up, and with it what it answers later.
_REQUEST_MS = 1_500

Offsets = dict[TopicPartition, int]


@dataclass
class _Question:
    """The partitions that several callers want to know the end of, asked together."""

    tps: set[TopicPartition] = field(default_factory=set)
    answer: asyncio.Future[Offsets] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Questions:
    """Asks for ends through `ask`, one question at a time; who comes meanwhile is in the next, all of them together.

    So every answer is to a question that was sent after its caller came.
    """

    def __init__(self, ask: Callable[[list[TopicPartition]], Awaitable[Offsets]]) -> None:
        self._ask = ask
        self._next: _Question | None = None
        self._asking: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def of(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Return the ends of `tps`. Raises: Unavailable after 2 s without an answer."""
        wanted = list(tps)
        question = self._next = self._next or _Question()
        question.tps.update(wanted)
        if self._asking is None:
            self._asking = asyncio.create_task(self._go_on())
        found = await asyncio.shield(question.answer)
        return {tp: found[tp] for tp in wanted}

    async def _go_on(self) -> None:
        question: _Question | None = None
        try:
            while self._next is not None:
                question, self._next = self._next, None
                await self._answer(question)
        finally:
            self._asking = None
            for left in (question, self._next):
                if left is not None:
                    _fail(left, "the gateway is stopping")

    async def _answer(self, question: _Question) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                question.answer.set_result(await self._ask(list(question.tps)))
        except BROKER_FAILURES:
            _fail(question, "Kafka does not answer")


def _fail(question: _Question, why: str) -> None:
    if not question.answer.done():
        question.answer.set_exception(Unavailable(why))
        question.answer.exception()  # whoever asked may be gone


@dataclass
class Told:
    """The ends that were told, of which none goes back: a lower one is of a broker that does not know that it leads no more.

    It holds for half a minute, since a topic may have been made anew. Times are monotonic seconds.
    """

    _told: dict[TopicPartition, tuple[int, float]] = field(default_factory=dict)

    def goes_back(self, found: Offsets, *, now_s: float) -> bool:
        """Whether some end is lower than one that was told; else they are told from now on."""
        for tp, end in found.items():
            known, at_s = self._told.get(tp, (end, now_s))
            if end < known and now_s - at_s < REMEMBERED_S:
                return True
        self._told.update((tp, (end, now_s)) for tp, end in found.items())
        return False


class Ends:
    """Tells the ends of partitions. What is answered holds for every record acknowledged before the call.

    Each broker has questions of its own: one that is silent holds nobody up who asks another.
    """

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        options = consumer_options(kafka, client_id=f"{client_id}-ends") | QUICK_RETRIES
        self._consumer = AIOKafkaConsumer(**options | {"request_timeout_ms": _REQUEST_MS})
        self._told = Told()
        self._questions: dict[int | None, Questions] = {}

    async def start(self) -> None:
        await self._consumer.start()

    async def stop(self) -> None:
        for questions in self._questions.values():
            await questions.stop()
        await stop_consumer(self._consumer)

    async def of(self, tps: Iterable[TopicPartition]) -> Offsets:
        """Return the offset that the next record of each will get. Raises: Unavailable after 2 s without an answer."""
        by_leader: dict[int | None, list[TopicPartition]] = defaultdict(list)
        for tp in tps:
            by_leader[self._consumer._client.cluster.leader_for_partition(tp)].append(tp)
        asked = [self._questions_to(leader).of(theirs) for leader, theirs in by_leader.items()]
        if len(asked) == 1:
            return await asked[0]
        found: Offsets = {}
        for part in await asyncio.gather(*asked):
            found |= part
        return found

    async def at_time(self, tps: Iterable[TopicPartition], at_ms: int) -> Offsets:
        """Return the offset of the first record not older than `at_ms`, the end where there is none. Raises: Unavailable."""
        wanted = list(tps)
        found = await self.of(wanted)
        try:
            async with asyncio.timeout(ASK_S):
                times = await self._consumer.offsets_for_times(dict.fromkeys(wanted, max(at_ms, 0)))
        except BROKER_FAILURES as error:
            raise Unavailable("Kafka does not answer") from error
        return found | {tp: at.offset for tp, at in times.items() if at is not None}

    def _questions_to(self, leader: int | None) -> Questions:
        return self._questions.setdefault(leader, Questions(self._ask))

    async def _ask(self, tps: list[TopicPartition]) -> Offsets:
        is_answered = False
        try:
            found: Offsets = await self._consumer.end_offsets(tps)
            if self._told.goes_back(found, now_s=monotonic_s()):
                raise NotLeaderForPartitionError
            is_answered = True
        finally:
            if not is_answered:  # another broker may lead by now, and the client would not look for five minutes
                self._consumer._client.force_metadata_update()
        return found
