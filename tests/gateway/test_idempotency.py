"""The same call again is the same task again: by an idempotency key, or by an id of the caller's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.calls import Calls
from gateway.ports import OutcomeUnknown
from gateway.problems import Kind, Problem
from gateway.sends import MOST_UNKNOWN, Sends
from schemas import headers as names
from schemas.ids import home
from schemas.result import Outcome
from schemas.topics import Lane
from tests.gateway.fakes import NAMES, PARTITIONS, FakeGateway, FakeLogs, feed, make_result, make_view

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "a secret"}]}
KEY = {"Idempotency-Key": "k-1"}


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


def requests(gateway: FakeGateway) -> list[Any]:
    topics = {NAMES.requests(lane) for lane in Lane}
    return [record for (topic, _), log in gateway.fake.records.items() if topic in topics for record in log]


def restarted(gateway: FakeGateway) -> None:
    """Let another gateway, that has sent nothing itself, answer from the same logs."""
    gateway.view = make_view()
    gateway.fake.view = gateway.view
    gateway.fake.unread.clear()
    for log in gateway.fake.records.values():
        for record in log:
            feed(gateway.view, record)
    numbers = itertools.count(1000)
    gateway._calls = Calls.over(
        NAMES,
        PARTITIONS,
        gateway.view,
        gateway.fleet,
        gateway.fake,
        gateway.waiters,
        gateway.metrics,
        random=lambda count: next(numbers).to_bytes(count, "big"),
    )


async def submit(gateway: FakeGateway, body: object = BODY, **headers: str) -> tuple[int, dict[str, Any], bool]:
    response = await gateway.http.post("/v1/async/submit", json=body, headers=headers)
    return response.status_code, response.json(), response.headers.get("idempotent-replayed") == "true"


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("ended", [False, True])
async def test_the_same_key_and_body_is_the_same_task_and_one_record(
    gateway: FakeGateway, elsewhere: bool, ended: bool
) -> None:
    code, first, replayed = await submit(gateway, **KEY)
    assert (202, False) == (code, replayed)
    if ended:
        partition = home(first["task_id"], PARTITIONS)
        request = requests(gateway)[0]
        gateway.fake.put(
            NAMES.results,
            partition,
            first["task_id"].encode(),
            orjson.dumps(make_result(first["task_id"], partition=partition)),
            [(names.TENANT, b"default"), (names.OUTCOME, b"completed"), *request.headers],
        )
    if elsewhere:
        restarted(gateway)
    assert (202, first, True) == await submit(gateway, **KEY)
    assert 1 == len(requests(gateway))
    assert first["task_id"] == orjson.loads(requests(gateway)[0].value)["task_id"]


async def test_the_record_carries_the_key_s_hash_and_never_the_key(gateway: FakeGateway) -> None:
    await submit(gateway, **{"Idempotency-Key": "a-secret-key"})
    (record,) = requests(gateway)
    assert 40 == len(dict(record.headers)[names.IDEMPOTENCY])
    assert b"secret-key" not in b"".join(text for _, text in record.headers)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_same_key_for_another_body_is_422_and_stores_nothing(gateway: FakeGateway, elsewhere: bool) -> None:
    await submit(gateway, **KEY)
    if elsewhere:
        restarted(gateway)
    code, body, _ = await submit(gateway, {**BODY, "model": "m"}, **KEY)
    assert (422, "urn:triage:problem:idempotency-key-reused") == (code, body["type"])
    assert 1 == len(requests(gateway))


async def test_another_body_is_refused_at_once_while_the_first_is_being_written(gateway: FakeGateway) -> None:
    answers: list[tuple[int, dict[str, Any], bool]] = []
    begun, going_on = asyncio.Event(), asyncio.Event()
    append = gateway.fake.append

    async def slow(*args: Any, **options: Any) -> int:
        begun.set()
        await going_on.wait()
        return await append(*args, **options)

    gateway.fake.append = slow  # type: ignore[method-assign]
    first = asyncio.create_task(submit(gateway, **KEY))
    again = asyncio.create_task(submit(gateway, **KEY))
    await begun.wait()
    answers.append(await submit(gateway, {**BODY, "model": "m"}, **KEY))
    going_on.set()
    answers += [await first, await again]
    assert [422, 202, 202] == [code for code, _, _ in answers]
    assert [False, True] == sorted(replayed for _, _, replayed in answers[1:])
    assert answers[1][1]["task_id"] == answers[2][1]["task_id"]
    assert 1 == len(requests(gateway))


async def test_two_bodies_that_came_to_two_gateways_at_once_are_two_tasks_and_each_stays_its_own(
    gateway: FakeGateway,
) -> None:
    first = (await submit(gateway, **KEY))[1]["task_id"]
    async with FakeGateway() as other:
        second = (await submit(other, {**BODY, "model": "m"}, **KEY))[1]["task_id"]
        for record in requests(other):
            gateway.fake.put(record.topic, record.partition, record.key, record.value, record.headers)
    assert first != second
    assert [first, second] == [
        (await submit(gateway, body, **KEY))[1]["task_id"] for body in (BODY, {**BODY, "model": "m"})
    ]
    assert 422 == (await submit(gateway, {**BODY, "model": "third"}, **KEY))[0]


async def test_after_a_silence_of_kafka_the_same_call_writes_the_same_task(gateway: FakeGateway) -> None:
    gateway.fake.is_silent = True
    code, body, _ = await submit(gateway, **KEY)
    assert (503, "urn:triage:problem:outcome-unknown") == (code, body["type"])
    assert 422 == (await submit(gateway, {**BODY, "model": "m"}, **KEY))[0]
    gateway.fake.is_silent = False
    assert (202, False) == (await submit(gateway, **KEY))[::2]
    assert (202, True) == (await submit(gateway, **KEY))[::2]
    assert 1 == len(requests(gateway))


async def test_what_was_certainly_not_written_does_not_hold_its_key(gateway: FakeGateway) -> None:
    gateway.fake.most_bytes = 10
    assert 413 == (await submit(gateway, **KEY))[0]
    gateway.fake.most_bytes = 1 << 20
    assert 202 == (await submit(gateway, {**BODY, "model": "m"}, **KEY))[0]


async def test_a_deadline_that_has_passed_meanwhile_does_not_matter_the_second_time(gateway: FakeGateway) -> None:
    body = {**BODY, "deadline_at_ms": gateway.fake.now_ms + 1_000}
    first = await submit(gateway, body, **KEY)
    gateway.fake.now_ms += 60_000
    assert (202, first[1]["task_id"], True) == (
        (again := await submit(gateway, body, **KEY))[0],
        again[1]["task_id"],
        again[2],
    )
    assert 422 == (await submit(gateway, body))[0]


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "ä"])
async def test_a_key_that_is_none_is_invalid(gateway: FakeGateway, key: str) -> None:
    response = await gateway.http.post("/v1/async/submit", json=BODY, headers=[(b"idempotency-key", key.encode())])
    assert (422, "/header/Idempotency-Key") == (response.status_code, response.json()["errors"][0]["pointer"])
    assert not requests(gateway)


# Ids of the caller's own


@pytest.mark.parametrize("ended", [False, True])
async def test_an_own_id_names_the_task_and_the_same_again_is_the_same_task(gateway: FakeGateway, ended: bool) -> None:
    body = {**BODY, "task_id": "ward7-1", "timeout_s": 30}
    assert (202, "ward7-1", False) == ((first := await submit(gateway, body))[0], first[1]["task_id"], first[2])
    if ended:
        partition = home("ward7-1", PARTITIONS)
        gateway.fake.put_result(make_result("ward7-1", Outcome.FAILED, partition=partition))
    restarted(gateway)
    gateway.fake.now_ms += 5_000
    assert (202, first[1], True) == await submit(gateway, dict(reversed(body.items())))
    code, told, _ = await submit(gateway, {**body, "model": "m"})
    assert (409, "urn:triage:problem:task-id-taken") == (code, told["type"])
    assert 1 == len(requests(gateway))


async def test_another_tenant_s_id_is_taken_and_nothing_is_told_of_it(gateway: FakeGateway) -> None:
    gateway.fake.put_request(partition=home("theirs", PARTITIONS), task_id="theirs", tenant="another")
    code, told, _ = await submit(gateway, {**BODY, "task_id": "theirs"})
    assert (409, "urn:triage:problem:task-id-taken") == (code, told["type"])
    assert "another" not in str(told)


async def test_an_id_whose_request_is_no_longer_there_to_compare_is_taken(gateway: FakeGateway) -> None:
    body = {**BODY, "task_id": "old"}
    partition = home("old", PARTITIONS)
    gateway.fake.put_result(make_result("old", partition=partition, offset=7))
    assert 409 == (await submit(gateway, body))[0]


async def test_an_own_id_and_a_key_together(gateway: FakeGateway) -> None:
    body = {**BODY, "task_id": "mine"}
    assert [(202, False), (202, True)] == [(await submit(gateway, body, **KEY))[::2] for _ in range(2)]
    assert 422 == (await submit(gateway, {**body, "task_id": "other"}, **KEY))[0]
    assert 409 == (await submit(gateway, {**body, "model": "m"}, **KEY))[0]


# What is being written


async def test_a_write_that_fails_fails_for_all_who_wait_for_it() -> None:
    sends, begun, going_on = Sends(), asyncio.Event(), asyncio.Event()

    async def write() -> None:
        begun.set()
        await going_on.wait()
        raise Problem(Kind.TOO_LARGE)

    calls = [asyncio.create_task(sends.once("t", "body", "key", write)) for _ in range(3)]
    await begun.wait()
    going_on.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [Problem] * 3 == [type(each) for each in results]
    sends.refuse_other("another", "body", "key")
    assert ({}, {}) == (sends._running, sends._by_key)


async def test_only_so_many_unknown_writes_are_remembered() -> None:
    sends = Sends()

    async def unknown() -> None:
        raise OutcomeUnknown("late")

    for number in range(MOST_UNKNOWN + 1):
        with pytest.raises(OutcomeUnknown):
            await sends.once(f"t{number}", "body", f"key{number}", unknown)
    assert (MOST_UNKNOWN, MOST_UNKNOWN) == (len(sends._unknown), len(sends._by_key))
    sends.refuse_other("another", "body", "key0")
    with pytest.raises(Problem):
        sends.refuse_other("another", "body", "key1")


def test_the_view_tells_a_key_s_claims_before_and_after_they_are_written() -> None:
    logs = FakeLogs(make_view())
    headers = [(names.IDEMPOTENCY, b"k"), (names.BATCH, b"b;1;2")]
    logs.put(NAMES.requests(Lane.LOW), 0, None, b'{"task_id": "t"}', headers[:1])
    logs.put(NAMES.requests(Lane.LOW), 0, None, b'{"task_id": "u"}', headers)
    logs.put(NAMES.requests(Lane.LOW), 0, None, b'{"task_id": "v"}', [(names.IDEMPOTENCY, b"\xff" * 9)])
    logs.feed()
    assert {"t", "b"} == logs.view.finished.claims("k")
    logs.view.finished.flush()
    assert ({"t", "b"}, set()) == (logs.view.finished.claims("k"), logs.view.finished.claims("l"))
