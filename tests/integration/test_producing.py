"""The owner of the idempotent producer, on a real broker: the ways in which aiokafka loses a batch, and bad networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import NodeNotReadyError, ProducerClosed

from cli.embedded.kafka import KafkaCluster
from schemas.codec import encode
from schemas.result import Outcome, Result, Source
from schemas.topics import Lane
from streams.settings import KafkaSettings
from tests.support.kafka import FAST_FAILOVER, consume, create_topic
from tests.support.proxy import (
    Bandwidth,
    HalfOpen,
    Latency,
    LimitData,
    Proxy,
    ResetPeer,
    Silence,
    Slicer,
    Toxic,
    Way,
    broker_behind,
    proxied,
)
from tests.support.stack import first_results
from wire import producing
from wire.producing import DurableProducer, NotAcknowledged, RecordTooLarge, WriteRefused

pytestmark = pytest.mark.kafka

_STAMPED = {"message.timestamp.type": "LogAppendTime"}


@asynccontextmanager
async def started(bootstrap: str, **options: Any) -> AsyncIterator[DurableProducer]:
    producer = DurableProducer(KafkaSettings(bootstrap=bootstrap), client_id="test", **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def test_a_lost_batch_replaces_the_producer_and_nothing_else_is_lost(kafka: str) -> None:
    """A batch that the broker refuses leaves a hole in the partition's sequence, which aiokafka never heals."""
    topic = await create_topic(kafka, config={"max.message.bytes": "2000", **_STAMPED})
    replaced: list[int] = []
    appended_ms: list[int] = []
    options: dict[str, Any] = {"on_appended": appended_ms.append, "on_replaced": lambda: replaced.append(1)}
    async with started(kafka, **options) as producer:
        assert await producer.write(topic, 0, key=None, value=b"before") == 0
        with pytest.raises(RecordTooLarge):
            await producer.write(topic, 0, key=None, value=b"x" * 5000)
        values = [b"after-%d" % number for number in range(20)]
        offsets = await asyncio.gather(*(producer.write(topic, 0, key=None, value=value) for value in values))
    assert [1] == replaced
    assert len(set(offsets)) == 20
    assert {b"before", *values} <= set(await consume(kafka, topic, 21))
    assert min(appended_ms) > 1_700_000_000_000
    with pytest.raises(ProducerClosed):
        await producer.write(topic, 0, key=None, value=b"late")


async def test_a_batch_that_is_too_large_for_its_topic_loses_none_of_its_records(kafka: str) -> None:
    topic = await create_topic(kafka, config={"max.message.bytes": "50000"})
    values = [b"%03d" % number + b"x" * 1000 for number in range(80)]
    async with started(kafka) as producer:
        await producer.write(topic, 0, key=None, value=b"first")
        offsets = await asyncio.gather(*(producer.write(topic, 0, key=None, value=value) for value in values))
        assert (80, 1) == (len(set(offsets)), producer.replaced_count)
        # From now on they go one by one, so no batch is refused again.
        await asyncio.gather(*(producer.write(topic, 0, key=None, value=value) for value in values))
        assert 1 == producer.replaced_count
    assert {b"first", *values} == set(await consume(kafka, topic, 161))


async def test_one_record_that_is_too_large_fails_alone_in_its_batch(kafka: str) -> None:
    topic = await create_topic(kafka, config={"max.message.bytes": "50000"})
    values = [b"%03d" % number for number in range(20)]
    async with started(kafka) as producer:
        await producer.write(topic, 0, key=None, value=b"first")
        writes = [
            producer.write(topic, 0, key=None, value=value) for value in [*values[:10], b"x" * 60_000, *values[10:]]
        ]
        ended = await asyncio.gather(*writes, return_exceptions=True)
    assert [RecordTooLarge] == [type(each) for each in ended if not isinstance(each, int)]
    assert isinstance(ended[10], RecordTooLarge)
    assert {b"first", *values} == set(await consume(kafka, topic, 21))


async def test_a_producer_that_gets_no_more_metadata_is_replaced(kafka: str) -> None:
    """A connection that closes under its request may end aiokafka's synchronizer, of which nothing there takes note."""
    topic = await create_topic(kafka)

    async def failing(*_: object) -> bool:
        raise RuntimeError("the handler is closed")

    async with started(kafka) as producer:
        await producer.write(topic, 0, key=None, value=b"before")
        client = aiokafka_of(producer).client
        client._metadata_update = failing
        client.force_metadata_update()
        await asyncio.wait({client._sync_task}, timeout=10)
        await asyncio.wait_for(producer.write(topic, 0, key=None, value=b"after"), 10)
        assert 1 == producer.replaced_count
    assert [b"before", b"after"] == await consume(kafka, topic, 2)


async def test_a_producer_that_does_not_try_a_batch_again_is_replaced(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "_LOOK_EVERY_S", 0.05)
    topic = await create_topic(kafka)

    async def unready(*_: object, **__: object) -> None:
        raise NodeNotReadyError

    async with started(kafka) as producer:
        await producer.write(topic, 0, key=None, value=b"before")
        client = aiokafka_of(producer).client
        client.send, client._maybe_wait_metadata = unready, asyncio.Event().wait
        await asyncio.wait_for(producer.write(topic, 0, key=None, value=b"after"), 20)
        assert 1 == producer.replaced_count
    assert [b"before", b"after"] == await consume(kafka, topic, 2)


def aiokafka_of(producer: DurableProducer) -> Any:
    assert producer._sender is not None
    return producer._sender._producer


async def test_a_batch_outlives_an_outage_that_is_longer_than_the_time_out_of_a_request() -> None:
    """The third way: the batch of a partition without a leader expires, as soon as the brokers are back."""
    with KafkaCluster(properties=FAST_FAILOVER) as cluster:
        topic = await create_topic(cluster.bootstrap)
        async with started(cluster.bootstrap, options={"request_timeout_ms": 1000}) as producer:
            await producer.write(topic, 0, key=None, value=b"before")
            cluster.kill(1)
            values = [b"%d" % number for number in range(10)]
            writing = [asyncio.create_task(producer.write(topic, 0, key=None, value=value)) for value in values]
            ended, _ = await asyncio.wait(writing, timeout=2)
            assert set() == ended
            cluster.restart(1, wait=False)
            async with asyncio.timeout(30):
                await asyncio.gather(*writing)
            assert 0 == producer.replaced_count
        found = await consume(cluster.bootstrap, topic, 11)
    assert sorted([b"before", *values]) == sorted(found)


async def test_a_topic_that_is_not_there_for_long_is_its_callers_error(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "_ABSENT_S", 1.0)
    monkeypatch.setattr(producing, "_LOOK_EVERY_S", 0.2)
    deleted, kept = await create_topic(kafka), await create_topic(kafka)
    async with started(kafka) as producer:
        await producer.write(deleted, 0, key=None, value=b"before")
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.delete_topics([deleted])
        await admin.close()
        async with asyncio.timeout(40):
            with pytest.raises(WriteRefused, match=f"There is no .*{deleted} in Kafka"):
                await write_until_refused(producer, deleted)
            with pytest.raises(WriteRefused, match=f"There is no partition 7 of {kept} in Kafka"):
                await producer.write(kept, 7, key=None, value=b"nowhere")
            assert 0 == await producer.write(kept, 0, key=None, value=b"kept")


async def write_until_refused(producer: DurableProducer, topic: str) -> None:
    """Write to a topic that is being deleted."""
    while True:
        await producer.write(topic, 0, key=None, value=b"after")


# Bad networks


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[KafkaCluster, int]]:
    with broker_behind() as started_broker:
        yield started_broker


@pytest.fixture
async def proxy(behind: tuple[KafkaCluster, int]) -> AsyncIterator[Proxy]:
    async with proxied(*behind) as running:
        yield running


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_a_produce_whose_reply_is_cut_is_written_again_and_is_there_once(proxy: Proxy, is_reset: bool) -> None:
    bootstrap = f"127.0.0.1:{proxy.port}"
    topic = await create_topic(bootstrap)
    async with started(bootstrap) as producer:
        assert 0 == await producer.write(topic, 0, key=None, value=b"0")
        for number in range(1, 6):
            cut = LimitData(0, is_reset=is_reset, times=1)
            proxy.add("down", cut)
            assert number == await producer.write(topic, 0, key=None, value=b"%d" % number)
            assert cut.tripped.is_set()
            proxy.clear()
        assert 0 == producer.replaced_count
    assert [b"%d" % number for number in range(6)] == await consume(bootstrap, topic, 6)


async def test_an_outcome_that_was_given_up_and_written_again_is_the_first_for_every_reader(proxy: Proxy) -> None:
    """The reply of the first is lost for good with its producer, so the log has the task twice."""
    bootstrap = f"127.0.0.1:{proxy.port}"
    topic = await create_topic(bootstrap)
    source = Source("triage.requests.high", 0, 0)
    first, second = (
        encode(Result(task_id="t", tenant="a", outcome=outcome, priority=Lane.HIGH, source=source))
        for outcome in (Outcome.COMPLETED, Outcome.CANCELLED)
    )
    async with started(bootstrap) as gone:
        await gone.write(topic, 0, key=b"other", value=second)
        proxy.add("down", Silence())
        with pytest.raises(NotAcknowledged) as given_up:
            await gone.write(topic, 0, key=b"t", value=first, timeout_s=1.0)
        assert given_up.value.may_be_written
        proxy.clear()
    async with started(bootstrap) as producer:
        assert 2 == await producer.write(topic, 0, key=b"t", value=second)
    records = await read(bootstrap, topic, 3)
    assert ["cancelled", "completed", "cancelled"] == [
        first_results([each])[each.key.decode()]["outcome"] for each in records
    ]
    assert "completed" == first_results(records)["t"]["outcome"]


async def read(bootstrap: str, topic: str, count: int) -> list[Any]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [await consumer.getone() for _ in range(count)]


@pytest.mark.parametrize(
    ("way", "toxic"),
    [
        ("down", Latency(0.1, jitter_s=0.05)),
        ("up", Latency(0.1, jitter_s=0.05)),
        ("up", Bandwidth(200_000)),
        ("up", Slicer(7)),
        ("down", Slicer(1)),
    ],
    ids=["late-answers", "late-requests", "narrow", "sliced-requests", "sliced-answers"],
)
async def test_a_slow_network_delays_and_loses_nothing(proxy: Proxy, way: Way, toxic: Toxic) -> None:
    bootstrap = f"127.0.0.1:{proxy.port}"
    topic = await create_topic(bootstrap)
    values = [b"%03d" % number + b"x" * 200 for number in range(100)]
    async with started(bootstrap) as producer:
        await producer.write(topic, 0, key=None, value=b"first")
        proxy.add(way, toxic)
        async with asyncio.timeout(30):
            offsets = await asyncio.gather(*(producer.write(topic, 0, key=None, value=value) for value in values))
        proxy.clear()
        assert (set(range(1, 101)), 0) == (set(offsets), producer.replaced_count)
    assert {b"first", *values} == set(await consume(bootstrap, topic, 101))


async def test_a_connection_that_dies_without_a_word_is_given_up_and_the_record_arrives(proxy: Proxy) -> None:
    bootstrap = f"127.0.0.1:{proxy.port}"
    topic = await create_topic(bootstrap)
    async with started(bootstrap, options={"request_timeout_ms": 2000}) as producer:
        await producer.write(topic, 0, key=None, value=b"first")
        proxy.add("down", HalfOpen())
        writing = asyncio.create_task(producer.write(topic, 0, key=None, value=b"second"))
        await asyncio.wait({writing}, timeout=1)
        assert not writing.done()
        proxy.clear()
        async with asyncio.timeout(30):
            assert 1 == await writing
    assert [b"first", b"second"] == await consume(bootstrap, topic, 2)


async def test_resets_at_every_turn_lose_nothing(proxy: Proxy) -> None:
    bootstrap = f"127.0.0.1:{proxy.port}"
    topic = await create_topic(bootstrap)
    values = [b"%d" % number for number in range(200)]
    async with started(bootstrap) as producer:
        await producer.write(topic, 0, key=None, value=b"first")
        writing = [asyncio.create_task(producer.write(topic, 0, key=None, value=value)) for value in values]
        for _ in range(4):
            proxy.add("up", ResetPeer())
            await asyncio.sleep(0.2)
            proxy.clear()
            await asyncio.sleep(0.6)
        async with asyncio.timeout(30):
            await asyncio.gather(*writing)
    assert {b"first", *values} == set(await consume(bootstrap, topic, 201))
