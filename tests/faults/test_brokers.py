"""Three real brokers that are killed, frozen and restarted under a producer that writes on: what it acknowledged is there."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import count, pairwise

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from cli.embedded.kafka import KafkaCluster
from streams.settings import KafkaSettings
from tests.support.kafka import FAST_FAILOVER, create_topic
from wire.clock import monotonic_s
from wire.producing import DurableProducer

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(240)]

PARTITIONS, PER_S, LARGEST_S = 6, 200, 45.0


@pytest.fixture(scope="module")
def three() -> Iterator[KafkaCluster]:
    with KafkaCluster(brokers=3, properties=FAST_FAILOVER) as cluster:
        yield cluster


@pytest.fixture
def is_campaign(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--fault-seconds") is None:
        pytest.skip("a part of `make test-faults`")


class Load:
    """Writes numbered values, spread over the partitions, and remembers when and where each was acknowledged."""

    def __init__(self, producer: DurableProducer, topic: str) -> None:
        self.producer, self.topic = producer, topic
        self.places: dict[tuple[int, int], bytes] = {}
        self.acks_s: dict[int, list[float]] = {number: [] for number in range(PARTITIONS)}
        self._writes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        for number in count():
            self._writes.add(asyncio.create_task(self._write(number % PARTITIONS, b"%d" % number)))
            await asyncio.sleep(1 / PER_S)

    async def _write(self, partition: int, value: bytes) -> None:
        offset = await self.producer.write(self.topic, partition, key=None, value=value)
        self.places[partition, offset] = value
        self.acks_s[partition].append(monotonic_s())

    async def goes_on(self) -> None:
        """Return when every partition has acknowledged something that it had not when this was asked."""
        since_s = monotonic_s()
        async with asyncio.timeout(LARGEST_S):
            while not all(times and times[-1] >= since_s for times in self.acks_s.values()):  # noqa: ASYNC110 - polled, 200 a second pass
                await asyncio.sleep(0.02)

    async def finished(self) -> None:
        """Return when everything that was begun is acknowledged."""
        async with asyncio.timeout(LARGEST_S):
            await asyncio.gather(*self._writes)

    def first_ack_s(self, since_s: float) -> float:
        """Return how long after `since_s` every partition had had an acknowledgement again."""
        return max(min(at_s for at_s in times if at_s >= since_s) for times in self.acks_s.values()) - since_s

    def count_between(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at_s < to_s for times in self.acks_s.values() for at_s in times)

    def longest_gap_s(self) -> float:
        """Return the longest time without an acknowledgement of any partition."""
        return max(later - earlier for times in self.acks_s.values() for earlier, later in pairwise(sorted(times)))

    async def judge(self, bootstrap: str, fault: str) -> None:
        """Compare what was acknowledged with what is in the logs, and print the figures."""
        ends = {number: 1 + max(offset for at, offset in self.places if at == number) for number in range(PARTITIONS)}
        found = await logs(bootstrap, self.topic, ends)
        lost = {place: value for place, value in self.places.items() if found.get(place) != value}
        assert {} == lost
        assert len(self._writes) == len(self.places)
        again = len(found) - len(set(found.values()))
        replaced = self.producer.replaced_count
        gap_s = self.longest_gap_s()
        print(
            f"{fault}: {len(self.places)} acknowledged, 0 lost, {again} written twice, producer replaced {replaced} times, "
            f"longest gap of a partition {gap_s:.1f} s"
        )
        assert gap_s <= LARGEST_S


async def logs(bootstrap: str, topic: str, ends: Mapping[int, int]) -> dict[tuple[int, int], bytes]:
    """Return every record of a topic by partition and offset, at least up to `ends`.

    A broker that was frozen gives out ends of its own until it hears that it leads no more.
    """
    found: dict[tuple[int, int], bytes] = {}
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        places = [TopicPartition(topic, number) for number in ends]
        consumer.assign(places)
        async with asyncio.timeout(30):
            for place in places:
                while await consumer.position(place) < ends[place.partition]:
                    for read, records in (await consumer.getmany(timeout_ms=500)).items():
                        found |= {(read.partition, record.offset): record.value for record in records}
    return found


@asynccontextmanager
async def load(three: KafkaCluster) -> AsyncIterator[Load]:
    """Yield a load that has begun; when the block ends it stops, and everything is acknowledged."""
    topic = await create_topic(three.bootstrap, partitions=PARTITIONS, replicas=3, config={"min.insync.replicas": "2"})
    producer = DurableProducer(KafkaSettings(bootstrap=three.bootstrap), client_id="test")
    await producer.start()
    try:
        running = Load(producer, topic)
        writing = asyncio.create_task(running.run())
        await running.goes_on()
        yield running
        writing.cancel()
        await running.finished()
    finally:
        writing.cancel()
        await producer.stop()


async def leader(three: KafkaCluster, topic: str) -> int:
    """Return who leads partition 0."""
    admin = AIOKafkaAdminClient(bootstrap_servers=three.bootstrap)
    await admin.start()
    try:
        [described] = await admin.describe_topics([topic])
    finally:
        await admin.close()
    return next(int(each["leader"]) for each in described["partitions"] if each["partition"] == 0)


async def back(three: KafkaCluster, *nodes: int) -> float:
    """Start nodes again, without holding up the load; return when they were ready."""
    for node in nodes:
        three.restart(node, wait=False)
    await asyncio.to_thread(three.wait_ready, 60.0)
    return monotonic_s()


async def test_a_killed_leader_and_a_rolling_restart_lose_nothing(three: KafkaCluster) -> None:
    async with load(three) as running:
        victim = await leader(three, running.topic)
        killed_s = monotonic_s()
        three.kill(victim)
        await running.goes_on()
        again_s = running.first_ack_s(killed_s)
        await back(three, victim)
        for node in (1, 2, 3):
            os.kill(three.pids[node - 1], signal.SIGTERM)
            while three.poll(node) is None:  # noqa: ASYNC110 - a process tells nobody that it ended
                await asyncio.sleep(0.02)
            await back(three, node)
        await running.goes_on()
    print(f"killed leader: every partition acknowledges again after {again_s:.1f} s")
    await running.judge(three.bootstrap, "kill -9 of the leader, then a rolling restart")
    assert running.longest_gap_s() <= 15


@pytest.mark.usefixtures("is_campaign")
async def test_a_frozen_leader_holds_up_and_loses_nothing(three: KafkaCluster) -> None:
    async with load(three) as running:
        victim = await leader(three, running.topic)
        three.pause(victim)
        await asyncio.sleep(15)
        three.resume(victim)
        resumed_s = monotonic_s()
        await running.goes_on()
    print(f"frozen leader: every partition acknowledges {running.first_ack_s(resumed_s):.1f} s after it goes on")
    await running.judge(three.bootstrap, "SIGSTOP of the leader for 15 s")


@pytest.mark.usefixtures("is_campaign")
async def test_with_two_of_three_down_nothing_is_acknowledged_until_they_are_back(three: KafkaCluster) -> None:
    async with load(three) as running:
        for node in (1, 2):
            three.kill(node)
        down_s = monotonic_s()
        await asyncio.sleep(10)
        until_s = monotonic_s()
        back_s = await back(three, 1, 2)
        await running.goes_on()
    # What was acknowledged before the kill may be heard just after it.
    assert 0 == running.count_between(down_s + 0.5, until_s)
    again_s = running.first_ack_s(back_s)
    print(f"two of three down: every partition acknowledges {again_s:.1f} s after they are back")
    await running.judge(three.bootstrap, "two of three down for 10 s")
    assert again_s <= 15


@pytest.mark.usefixtures("is_campaign")
async def test_all_three_down_for_longer_than_a_request_may_take_lose_nothing(three: KafkaCluster) -> None:
    async with load(three) as running:
        for node in (1, 2, 3):
            three.kill(node)
        await asyncio.sleep(20)
        back_s = await back(three, 1, 2, 3)
        await running.goes_on()
    again_s = running.first_ack_s(back_s)
    print(f"all three down: every partition acknowledges {again_s:.1f} s after they are back")
    await running.judge(three.bootstrap, "all three down for 20 s")
    assert again_s <= 15


@pytest.mark.usefixtures("is_campaign")
async def test_leaders_that_are_killed_one_after_another_lose_nothing(three: KafkaCluster) -> None:
    async with load(three) as running:
        for _ in range(4):
            victim = await leader(three, running.topic)
            three.kill(victim)
            await running.goes_on()
            await back(three, victim)
    await running.judge(three.bootstrap, "four leaders killed in turn")
