"""The main job on a real Kafka: what a plain producer puts on a lane topic becomes a result."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from cli.embedded.processes import free_ports
from schemas import headers
from schemas.codec import decode, encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.result import Result
from schemas.topics import MAX_RECORD_BYTES, Lane
from tests.support.scripted import ScriptedServer
from tests.support.stack import PARTITIONS, Stack, first_results, request

pytestmark = pytest.mark.kafka


async def test_minimal_requests_of_every_lane_complete_on_their_own_partition_number(stack: Stack) -> None:
    await stack.start_worker()
    rng = random.Random(7)
    placed: dict[str, int] = {}
    async with stack.producer() as producer:
        for number in range(40):
            lane = list(Lane)[number % 4]
            key = rng.randbytes(6) if number % 3 else None
            sent = await producer.send_and_wait(stack.names.requests(lane), request(f"question {number}"), key=key)
            placed[f"{lane}.{sent.partition}.{sent.offset}"] = sent.partition
    async with stack.reader(stack.names.results) as reader:
        results = first_results(await reader.until(40))
    assert set(placed) == set(results)
    assert {row["outcome"] for row in results.values()} == {"completed"}
    assert {task_id: row["_record"].partition for task_id, row in results.items()} == placed


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_every_compression_codec_is_read(stack: Stack, codec: str) -> None:
    await stack.start_worker()
    async with stack.producer(compression_type=codec) as producer:
        await producer.send_and_wait(stack.names.requests(Lane.HIGH), request("x" * 2000, task_id="compressed"))
    async with stack.reader(stack.names.results) as reader:
        results = first_results(await reader.until(1))
    assert results["compressed"]["outcome"] == "completed"


async def test_an_aborted_transaction_runs_nothing_and_what_follows_it_runs(
    stack: Stack, server: ScriptedServer
) -> None:
    await stack.start_worker()
    topic = stack.names.requests(Lane.NORMAL)
    async with AIOKafkaProducer(bootstrap_servers=stack.bootstrap, transactional_id=stack.prefix) as producer:
        await producer.begin_transaction()
        for number in range(5):
            await producer.send_and_wait(topic, request("never", task_id=f"aborted-{number}"), partition=0)
        await producer.abort_transaction()
        await producer.begin_transaction()
        await producer.send_and_wait(topic, request("yes", task_id="committed"), partition=0)
        await producer.commit_transaction()
    async with stack.reader(stack.names.results) as reader:
        results = first_results(await reader.until(1))
    assert set(results) == {"committed"}
    assert server.executions == {"yes": 1}


async def test_a_producer_with_a_wrong_clock_loses_nothing(stack: Stack) -> None:
    await stack.start_worker()
    year_ms = 365 * 24 * 3_600_000
    async with stack.producer() as producer:
        for name, clock_ms in (("early", 1_000), ("late", 1_795_000_000_000 + 50 * year_ms)):
            value = request(name, task_id=name, created_at_ms=clock_ms, deadline_at_ms=clock_ms + 60_000)
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), value, timestamp_ms=clock_ms)
    async with stack.reader(stack.names.results) as reader:
        results = first_results(await reader.until(2))
    assert {"early": "completed", "late": "completed"} == {name: row["outcome"] for name, row in results.items()}


async def test_a_second_copy_is_answered_from_the_cache_and_never_across_tenants(
    stack: Stack, server: ScriptedServer
) -> None:
    await stack.start_worker()
    topic = stack.names.requests(Lane.HIGH)
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        await producer.send_and_wait(topic, request("same", task_id="first", tenant="a"))
        await reader.until(1)
        await producer.send_and_wait(topic, request("same", task_id="second", tenant="a"))
        await producer.send_and_wait(topic, request("same", task_id="other", tenant="b"))
        await producer.send_and_wait(topic, request("same", task_id="fresh", tenant="a", cache={"mode": "bypass"}))
        results = first_results(await reader.until(4))
    assert {"first": False, "second": True, "other": False, "fresh": False} == {
        name: row["cached"] for name, row in results.items()
    }
    assert results["second"]["output"] == results["first"]["output"]
    assert (results["second"]["backend"], results["second"]["attempts"]) == (None, 0)
    assert server.executions == {"same": 3}
    for name, row in results.items():
        cacheable = headers.find(row["_record"].headers, headers.CACHEABLE)
        assert (cacheable is None) == (name in ("second", "fresh"))


async def test_another_worker_answers_from_the_compacted_cache_table(stack: Stack, server: ScriptedServer) -> None:
    first = await stack.start_worker()
    topic = stack.names.requests(Lane.HIGH)
    async with (
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
        stack.reader(stack.names.cache_changelog) as changelog,
    ):
        await producer.send_and_wait(topic, request("same", task_id="first"))
        await reader.until(1)
        entry = (await changelog.until(1))[0]
        assert orjson.loads(entry.value)["tenant"] == "default"
        assert stack.end(first) == 0
        await stack.start_worker()
        await producer.send_and_wait(topic, request("same", task_id="second"))
        results = first_results(await reader.until(2))
    assert results["second"]["cached"] is True
    assert server.executions == {"same": 1}


BAD: list[tuple[str, bytes | None, str, str]] = [
    ("bytes", b"\xff\xfe not json", "invalid_request", "not JSON"),
    ("empty", b"", "invalid_request", "empty"),
    ("tombstone", None, "invalid_request", "empty"),
    ("registry", b"\x00\x00\x00\x00\x07{}", "invalid_request", "schema id 7"),
    ("types", b'{"messages": "hello"}', "invalid_request", "messages"),
    ("version", b'{"schema_version": 9, "messages": [{"role": "user", "content": "x"}]}', "unsupported_schema", "9"),
    ("no messages", b'{"messages": []}', "invalid_request", "messages"),
    ("deadline", request(deadline_at_ms="soon"), "invalid_request", "deadline_at_ms"),
    ("far deadline", request(created_at_ms=0, deadline_at_ms=72 * 3_600_000), "invalid_request", "71 h"),
    ("task_id", request(task_id="has spaces"), "invalid_request", "task_id"),
    ("large", request("y" * 1_200_000), "request_too_large", "1048576"),
]


async def test_what_cannot_be_read_gets_a_dead_letter_and_a_failed_result_and_the_partition_goes_on(
    stack: Stack,
) -> None:
    await stack.start_worker()
    topic = stack.names.requests(Lane.NORMAL)
    places: dict[str, int] = {}
    async with stack.producer(max_request_size=MAX_RECORD_BYTES - 200) as producer:
        for number, (name, value, _, _) in enumerate(BAD):
            sent = await producer.send_and_wait(topic, value, key=b"k%d" % number, partition=1)
            places[name] = sent.offset
        await producer.send_and_wait(topic, request("good", task_id="good"), partition=1)
    async with (
        stack.reader(stack.names.results) as reader,
        stack.reader(stack.names.dead_letters) as dead,
    ):
        results = first_results(await reader.until(len(BAD) + 1))
        letters = {record.offset: record for record in await dead.until(len(BAD))}
    assert results["good"]["outcome"] == "completed"
    by_source = {headers.find(record.headers, headers.SOURCE): record for record in letters.values()}
    for number, (name, value, kind, fragment) in enumerate(BAD):
        row = results[f"normal.1.{places[name]}"]
        assert ("failed", kind) == (row["outcome"], row["error"]["type"]), name
        assert fragment in row["error"]["detail"], name
        letter = by_source[f"{topic}/1/{places[name]}"]
        assert (value, b"k%d" % number, 1) == (letter.value, letter.key, letter.partition), name
        assert str(places[name]) == headers.find(letter.headers, headers.DLQ_OFFSET)


async def test_a_keyless_value_that_unpacks_to_more_than_two_mebibytes_is_dead_lettered_without_its_bytes(
    stack: Stack,
) -> None:
    await stack.start_worker()
    topic = stack.names.requests(Lane.HIGH)
    async with stack.producer(compression_type="gzip", max_request_size=8 << 20) as producer:
        await producer.send_and_wait(topic, request("z" * 3_000_000), partition=0)
        await producer.send_and_wait(topic, request("good", task_id="good"), partition=0)
    async with stack.reader(stack.names.results) as reader, stack.reader(stack.names.dead_letters) as dead:
        results = first_results(await reader.until(2))
        (letter,) = await dead.until(1)
    assert ("failed", "completed") == (results["high.0.0"]["outcome"], results["good"]["outcome"])
    assert b"" == letter.value
    assert int(headers.find(letter.headers, headers.VALUE_BYTES) or 0) > 3_000_000
    assert f"{topic}/0/0" == headers.find(letter.headers, headers.SOURCE)


async def test_a_request_that_fails_for_good_keeps_its_own_id_and_headers(stack: Stack, server: ScriptedServer) -> None:
    await stack.start_worker()
    async with stack.producer() as producer:
        await producer.send_and_wait(
            stack.names.requests(Lane.CRITICAL),
            request("who", task_id="own", model="nobody-has-this"),
            headers=[("traceparent", b"00-1"), ("kafka_correlationId", b"\x01\x02"), ("private", b"no")],
        )
    async with stack.reader(stack.names.results) as reader:
        results = first_results(await reader.until(1))
    row = results["own"]
    assert ("failed", "unknown_model") == (row["outcome"], row["error"]["type"])
    sent: Any = dict(row["_record"].headers)
    assert (b"00-1", b"\x01\x02") == (sent["traceparent"], sent["kafka_correlationId"])
    assert "private" not in sent
    assert server.executions == {}


async def test_a_restarted_worker_goes_on_where_the_first_left_off(stack: Stack, server: ScriptedServer) -> None:
    topic = stack.names.requests(Lane.LOW)
    first = await stack.start_worker()
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        await producer.send_and_wait(topic, request("one", task_id="one"))
        await reader.until(1)
        assert stack.end(first) == 0
        await producer.send_and_wait(topic, request("two", task_id="two"))
        await stack.start_worker()
        results = first_results(await reader.until(2))
        records = await reader.to_end()
    assert set(results) == {"one", "two"}
    assert len(records) == 2
    assert server.executions == {"one": 1, "two": 1}


async def test_results_decode_with_our_own_reader_and_started_names_every_task(stack: Stack) -> None:
    await stack.start_worker()
    async with stack.producer() as producer:
        for number in range(6):
            await producer.send_and_wait(
                stack.names.requests(Lane.NORMAL),
                request("same parameters", task_id=f"t{number}", cache={"mode": "bypass"}),
            )
    async with stack.reader(stack.names.results) as reader, stack.reader(stack.names.progress) as progress:
        records = await reader.until(6)
        started = await progress.to_end()
    assert {decode(Result, record.value).task_id for record in records} == {f"t{n}" for n in range(6)}
    announced = {row[0]: record.partition for record in started for row in orjson.loads(record.value)["tasks"]}
    assert announced == {record.key.decode(): record.partition for record in records}
    assert all(0 <= partition < PARTITIONS for partition in announced.values())


async def test_the_gpu_table_is_consulted_and_a_result_names_the_pressure(kafka: str, tmp_path: Path) -> None:
    sample = GPUMetrics(
        gpu=GpuId("GPU-1", 0, "test", "host"),
        source=GpuSource.SIMULATED,
        sampled_at_ms=1,
        memory_total_bytes=24 << 30,
        memory_used_bytes=18 << 30,
    )
    async with (
        ScriptedServer() as server,
        Stack(kafka, tmp_path, [("openai", server.url)], backend_extra='gpus = ["GPU-1"]') as stack,
        stack.producer() as producer,
        stack.reader(stack.names.results) as reader,
        stack.reader(stack.names.gpu_changelog, partitions=1) as changelog,
    ):
        await stack.start_worker()
        await producer.send_and_wait(stack.names.gpu_metrics, encode(sample), key=b"GPU-1")
        await changelog.until(1)
        pressures: list[str | None] = []
        async with asyncio.timeout(20):
            while "HIGH" not in pressures:  # the table reaches the dispatcher within half a second
                number = len(pressures)
                value = request("x", task_id=f"t{number}", cache={"mode": "bypass"})
                await producer.send_and_wait(stack.names.requests(Lane.CRITICAL), value)
                results = first_results(await reader.until(number + 1))
                pressures.append(results[f"t{number}"]["routing"]["pressure"])
                await producer.send_and_wait(stack.names.gpu_metrics, encode(sample), key=b"GPU-1")
    assert {None, "HIGH"} >= set(pressures)


async def test_an_answer_too_large_for_a_record_fails_its_task_and_blocks_nothing(
    stack: Stack, server: ScriptedServer
) -> None:
    await stack.start_worker()
    server.answer = lambda prompt, nonce: "y" * 2_500_000 if prompt == "large" else "small"
    async with stack.producer() as producer, stack.reader(stack.names.results) as reader:
        for name in ("large", "small"):
            await producer.send_and_wait(stack.names.requests(Lane.HIGH), request(name, task_id=name), partition=0)
        results = first_results(await reader.until(2))
    assert ("failed", "backend_protocol") == (results["large"]["outcome"], results["large"]["error"]["type"])
    assert results["small"]["outcome"] == "completed"


async def test_a_worker_refuses_topics_that_differ_and_names_the_remedy(kafka: str, tmp_path: Path) -> None:
    stack = Stack(kafka, tmp_path, [])
    stack.config.write_text(stack.settings())
    done = await asyncio.to_thread(stack.run, "worker")
    assert done.returncode == 1
    assert "triage topics apply" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_worker_that_starts_before_its_brokers_waits_and_says_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with Stack(f"127.0.0.1:{port}", tmp_path, [], creates_topics=False) as stack:
        worker = stack.spawn_worker()
        async with asyncio.timeout(20):
            while "waiting for Kafka" not in stack.log.read_text():  # noqa: ASYNC110 - another process's log has no signal
                await asyncio.sleep(0.05)
        assert worker.poll() is None
        assert stack.end(worker) == 0
