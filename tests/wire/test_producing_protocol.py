"""The owner of the producer against brokers that answer with errors: everything acknowledged is there, whatever they said."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import BrokerResponseError, ProducerClosed

from streams.settings import KafkaSettings
from tests.support.kafka import consume
from tests.support.mock_cluster import DISCONNECT, INIT_PRODUCER_ID, PRODUCE, MockCluster
from wire import connection, sending
from wire.producing import DurableProducer, NotAcknowledged, RecordTooLarge, WriteRefused

TOPIC = "records"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes of an error does not hang on how long the client waits before it tries again."""
    monkeypatch.setattr(connection, "_RETRY_BACKOFF_MS", 20)


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with MockCluster() as running:
        running.create_topic(TOPIC, partitions=2)
        yield running


@asynccontextmanager
async def producing(cluster: MockCluster, **options: Any) -> AsyncIterator[DurableProducer]:
    producer = DurableProducer(KafkaSettings(bootstrap=cluster.bootstrap), client_id="test", **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write(producer: DurableProducer, value: bytes, timeout_s: float | None = None) -> int:
    return await producer.write(TOPIC, 0, key=None, value=value, timeout_s=timeout_s)


async def in_log(cluster: MockCluster, count: int) -> list[bytes]:
    async with asyncio.timeout(20):
        return await consume(cluster.bootstrap, TOPIC, count)


PASSING = [
    errors.NotLeaderForPartitionError,
    errors.RequestTimedOutError,
    errors.NotEnoughReplicasError,
    errors.NotEnoughReplicasAfterAppendError,
    errors.LeaderNotAvailableError,
    errors.UnknownTopicOrPartitionError,
    errors.KafkaStorageError,
]
FINAL = [
    errors.OutOfOrderSequenceNumber,
    errors.UnknownProducerId,
    errors.InvalidProducerEpoch,
    errors.InvalidProducerIdMapping,
    errors.CorruptRecordException,
    errors.UnknownError,
]


@pytest.mark.parametrize("error", [*PASSING, *FINAL, DISCONNECT], ids=lambda each: getattr(each, "__name__", "cut"))
async def test_what_is_acknowledged_is_there_once_whatever_a_produce_was_answered(
    cluster: MockCluster, error: type[BrokerResponseError] | int
) -> None:
    values = [b"%d" % number for number in range(20)]
    async with producing(cluster) as producer:
        first = await write(producer, b"first")
        cluster.fail_next(PRODUCE, [error, error])
        offsets = await asyncio.gather(*(write(producer, value) for value in values))
        assert producer.buffered_bytes == 0
        assert (producer.replaced_count > 0) == (error in FINAL)
    found = await in_log(cluster, 21)
    assert sorted([b"first", *values]) == sorted(found)
    assert dict(zip(offsets, values, strict=True)) | {first: b"first"} == dict(enumerate(found))


async def test_metadata_is_asked_for_on_another_connection_than_records_are_sent_on(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker answers one connection's requests in order, and records only when they are copied."""
    asked: defaultdict[AIOKafkaConnection, set[str]] = defaultdict(set)
    send = AIOKafkaConnection.send

    def noted(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        asked[self].add(type(request).__name__)
        return send(self, request, expect_response)

    monkeypatch.setattr(AIOKafkaConnection, "send", noted)
    async with producing(cluster) as producer:
        await write(producer, b"first")
        cluster.fail_next(PRODUCE, [errors.NotLeaderForPartitionError])  # so that it asks who leads
        await write(producer, b"second")
    with_records = [names for names in asked.values() if "ProduceRequest" in names]
    assert with_records
    assert [] == [names for names in with_records if "MetadataRequest" in names]
    assert "MetadataRequest" in set().union(*asked.values())


async def test_a_batch_without_a_leader_never_expires(cluster: MockCluster) -> None:
    async with producing(cluster, options={"request_timeout_ms": 500, "retry_backoff_ms": 50}) as producer:
        assert 0 == await write(producer, b"before")
        cluster.set_leader(TOPIC, 0, -1)
        cluster.fail_next(PRODUCE, [errors.NotLeaderForPartitionError])  # so that it asks who leads
        writing = asyncio.create_task(write(producer, b"waits"))
        later = asyncio.create_task(write(producer, b"waits too"))
        assert set() == (await asyncio.wait({writing, later}, timeout=2))[0]
        cluster.set_leader(TOPIC, 0, 2)
        async with asyncio.timeout(10):
            assert {1, 2} == {await writing, await later}
        assert 0 == producer.replaced_count
    assert {b"before", b"waits", b"waits too"} == set(await in_log(cluster, 3))


async def test_a_posted_record_that_is_lost_replaces_the_producer_before_anybody_writes(cluster: MockCluster) -> None:
    async with producing(cluster) as producer:
        cluster.fail_next(PRODUCE, [errors.OutOfOrderSequenceNumber])
        await producer.post(TOPIC, 0, key=None, value=b"lost")
        async with asyncio.timeout(10):
            while producer.replaced_count == 0:  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0.01)
        assert 0 == await write(producer, b"kept")
        assert 1 == producer.replaced_count
    assert [b"kept"] == await in_log(cluster, 1)


async def test_a_batch_that_is_refused_as_too_large_is_sent_one_by_one(cluster: MockCluster) -> None:
    values = [b"%d" % number for number in range(20)]
    async with producing(cluster) as producer:
        assert 0 == await write(producer, b"first")
        cluster.fail_next(PRODUCE, [errors.MessageSizeTooLargeError])
        # All are handed over before the producer's own task runs, so they gather in one batch.
        offsets = await asyncio.gather(*(write(producer, value) for value in values))
        assert 20 == len(set(offsets))
        assert 1 == producer.replaced_count
    assert {b"first", *values} == set(await in_log(cluster, 21))


async def test_a_record_that_is_refused_alone_is_its_callers_error(cluster: MockCluster) -> None:
    async with producing(cluster) as producer:
        cluster.fail_next(PRODUCE, [errors.MessageSizeTooLargeError])
        with pytest.raises(RecordTooLarge, match="5 bytes for records"):
            await write(producer, b"large")
        assert 0 == await write(producer, b"small")


@pytest.mark.parametrize(
    "error",
    [
        errors.TopicAuthorizationFailedError,
        errors.ClusterAuthorizationFailedError,
        errors.InvalidTopicError,
        errors.PolicyViolationError,
    ],
)
async def test_what_no_producer_can_cure_is_its_callers_error_and_blocks_nobody(
    cluster: MockCluster, error: type[BrokerResponseError]
) -> None:
    async with producing(cluster) as producer:
        cluster.fail_next(PRODUCE, [error])
        with pytest.raises(WriteRefused, match=f"refuses records for records: {error.__name__}"):
            await write(producer, b"refused")
        assert 0 == await write(producer, b"taken")
        assert 1 == producer.replaced_count


async def test_an_error_that_ought_to_pass_and_does_not_ends_with_the_caller(cluster: MockCluster) -> None:
    """Kafka answers 87, which aiokafka does not know, to a record without a key for a compacted topic."""
    async with producing(cluster) as producer:
        cluster.fail_next(PRODUCE, [87] * 100)
        async with asyncio.timeout(30):
            with pytest.raises(WriteRefused, match="UnknownError"):
                await write(producer, b"never")
        cluster.fail_no_more(PRODUCE)
        assert 0 == await write(producer, b"after")


async def test_without_leave_to_get_a_producer_id_start_says_so(cluster: MockCluster) -> None:
    cluster.fail_next(INIT_PRODUCER_ID, [errors.ClusterAuthorizationFailedError])
    producer = DurableProducer(KafkaSettings(bootstrap=cluster.bootstrap), client_id="test")
    with pytest.raises(WriteRefused, match="no producer id: ClusterAuthorizationFailedError"):
        await producer.start()
    await producer.stop()


async def test_duplicates_whose_place_the_broker_forgot_are_written_again(cluster: MockCluster) -> None:
    """aiokafka calls them done at offsets from -1 on, at this machine's time."""
    appended_ms: list[int] = []
    async with producing(cluster, on_appended=appended_ms.append) as producer:
        assert 0 == await write(producer, b"first")
        cluster.fail_next(PRODUCE, [errors.DuplicateSequenceNumber])
        values = [b"1", b"2", b"3"]
        assert [1, 2, 3] == await asyncio.gather(*(write(producer, value) for value in values))
    assert [b"first", *values] == await in_log(cluster, 4)
    # Twice, for two batches; the time of the forgotten ones is this machine's. The mock cluster's is always the same.
    assert [1234, 1234] == appended_ms


async def test_a_post_that_cannot_be_taken_raises_nothing_and_does_not_wait(cluster: MockCluster) -> None:
    async with producing(cluster, buffer_bytes=2000) as producer, asyncio.timeout(8):
        await producer.post("nowhere-" * 40, 0, key=None, value=b"no such topic")
        await producer.post(TOPIC, 0, key=None, value=b"x" * (3 << 20))
        cluster.down(-1)
        writing = asyncio.create_task(write(producer, b"x" * 1000))
        await asyncio.sleep(0.1)
        await producer.post(TOPIC, 0, key=None, value=b"x" * 1000)
        cluster.up(-1)
        assert 0 == await writing


async def test_a_topic_that_may_not_be_seen_is_the_writers_error_and_not_the_posters(cluster: MockCluster) -> None:
    cluster.create_topic("hidden")
    cluster.set_topic_error("hidden", errors.TopicAuthorizationFailedError)
    async with producing(cluster) as producer, asyncio.timeout(8):
        await producer.post("hidden", 0, key=None, value=b"posted")
        with pytest.raises(WriteRefused, match="TopicAuthorizationFailedError"):
            await producer.write("hidden", 0, key=None, value=b"written")
        assert (0, 0) == (producer.replaced_count, producer.buffered_bytes)


async def test_what_a_replaced_producer_still_holds_is_sent_again_and_the_producer_ends(cluster: MockCluster) -> None:
    async with producing(cluster, options={"retry_backoff_ms": 50}) as producer:
        await write(producer, b"first")
        cluster.set_leader(TOPIC, 1, -1)
        cluster.fail_next(PRODUCE, [errors.NotLeaderForPartitionError])  # so that it asks who leads
        held = asyncio.create_task(producer.write(TOPIC, 1, key=None, value=b"held"))
        assert set() == (await asyncio.wait({held}, timeout=0.5))[0]
        cluster.fail_next(PRODUCE, [errors.OutOfOrderSequenceNumber])
        assert 1 == await write(producer, b"second")
        async with asyncio.timeout(5):
            await asyncio.gather(*producer._retiring)
        cluster.set_leader(TOPIC, 1, 2)
        async with asyncio.timeout(10):
            assert 0 == await held
        assert 1 == producer.replaced_count


async def test_what_is_given_up_takes_room_until_it_is_gone(cluster: MockCluster) -> None:
    async with producing(cluster) as producer:
        await write(producer, b"first")
        cluster.down(-1)
        with pytest.raises(NotAcknowledged):
            await write(producer, b"x" * 1000, timeout_s=0.2)
        assert 1000 < producer.buffered_bytes
        cluster.up(-1)
        async with asyncio.timeout(20):
            await write(producer, b"last")
        assert 0 == producer.buffered_bytes
    assert [b"first", b"x" * 1000, b"last"] == await in_log(cluster, 3)


async def test_a_producer_id_that_is_refused_later_is_told_and_got_when_it_may_be(cluster: MockCluster) -> None:
    async with producing(cluster) as producer:
        await write(producer, b"first")
        cluster.fail_next(INIT_PRODUCER_ID, [errors.ClusterAuthorizationFailedError])
        cluster.fail_next(PRODUCE, [errors.OutOfOrderSequenceNumber])
        with pytest.raises(WriteRefused, match="ClusterAuthorizationFailedError"):
            await write(producer, b"refused")
        assert 1 == await write(producer, b"taken")


async def test_a_write_with_a_limit_says_whether_the_record_may_come(cluster: MockCluster) -> None:
    async with producing(cluster, buffer_bytes=2100) as producer:
        await write(producer, b"first")
        cluster.down(-1)
        writing = asyncio.create_task(write(producer, b"x" * 1000))
        await asyncio.sleep(0)
        with pytest.raises(NotAcknowledged, match="it was not sent") as outside:
            await write(producer, b"y" * 1000, timeout_s=0.3)
        assert not outside.value.may_be_written
        with pytest.raises(NotAcknowledged, match="it may still be written") as inside:
            await producer.write(TOPIC, 1, key=None, value=b"", timeout_s=0.3)
        assert inside.value.may_be_written
        assert producer.buffered_bytes <= 2100
        cluster.up(-1)
        async with asyncio.timeout(20):
            assert 1 == await writing


async def test_records_that_wait_for_the_brokers_are_bounded_and_all_arrive(cluster: MockCluster) -> None:
    values = [b"%03d" % number + b"x" * 1000 for number in range(100)]
    async with producing(cluster, buffer_bytes=10_000) as producer:
        await write(producer, b"first")
        cluster.down(-1)
        writing = [asyncio.create_task(write(producer, value)) for value in values]
        await asyncio.sleep(0.2)
        assert 0 < producer.buffered_bytes <= 10_000
        cluster.up(-1)
        async with asyncio.timeout(30):
            await asyncio.gather(*writing)
        assert producer.buffered_bytes == 0
    assert {b"first", *values} == set(await in_log(cluster, 101))


async def test_given_up_writes_do_not_hide_that_the_producer_lost_their_batch(cluster: MockCluster) -> None:
    async with producing(cluster) as producer:
        await write(producer, b"first")
        cluster.set_rtt(-1, 300)
        cluster.fail_next(PRODUCE, [errors.OutOfOrderSequenceNumber])
        with pytest.raises(NotAcknowledged):
            await write(producer, b"given up", timeout_s=0.1)
        async with asyncio.timeout(10):
            while producer.replaced_count == 0:  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0.01)
        assert 0 == producer.buffered_bytes


async def test_stop_leaves_no_task_behind_when_the_brokers_are_silent(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_END_S", 0.3)
    before = asyncio.all_tasks()
    producer = DurableProducer(KafkaSettings(bootstrap=cluster.bootstrap), client_id="test")
    await producer.start()
    await write(producer, b"first")
    cluster.set_rtt(-1, 60_000)
    writing = asyncio.create_task(write(producer, b"never answered"))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(8):
        await producer.stop()
        with pytest.raises(ProducerClosed):
            await writing
    assert before == asyncio.all_tasks()


async def test_replaced_producers_leave_no_task_behind(cluster: MockCluster) -> None:
    before = asyncio.all_tasks()
    async with producing(cluster) as producer:
        await write(producer, b"first")
        for number in range(3):
            cluster.fail_next(PRODUCE, [errors.OutOfOrderSequenceNumber])
            await write(producer, b"%d" % number)
        assert 3 == producer.replaced_count
        async with asyncio.timeout(5):
            await asyncio.gather(*producer._retiring)  # they end beside the new one
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]  # type: ignore[union-attr]
        assert (1, 1) == (names.count("Sender._sender_routine"), names.count("AIOKafkaClient._md_synchronizer"))
    assert before == asyncio.all_tasks()
