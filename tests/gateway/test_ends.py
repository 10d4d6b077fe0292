"""Questions about the ends of logs: asked together, and never answered from before the caller came."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from gateway import ends as module
from gateway.ends import REMEMBERED_S, Ends, Offsets, Questions, Told
from gateway.ports import Unavailable
from streams.settings import KafkaSettings
from tests.support.mock_cluster import MockCluster

A, B, C = (TopicPartition("t", number) for number in range(3))


class Log:
    """Ends that grow with each question; `asked` tells of each one, which is answered when the test lets it."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[list[TopicPartition], asyncio.Future[None]]] = asyncio.Queue()
        self.count = 0

    async def __call__(self, tps: list[TopicPartition]) -> Offsets:
        self.count += 1
        number, gate = self.count, asyncio.get_running_loop().create_future()
        await self.asked.put((tps, gate))
        await gate
        return dict.fromkeys(tps, number)


async def test_who_comes_while_a_question_is_under_way_is_in_the_next_and_all_of_them_in_one() -> None:
    log = Log()
    questions = Questions(log)
    first = asyncio.create_task(questions.of([A]))
    tps, gate = await log.asked.get()
    later = [asyncio.create_task(questions.of(wanted)) for wanted in ([A], [B], [A, C])]
    await asyncio.sleep(0)
    gate.set_result(None)
    assert ([A], {A: 1}) == (tps, await first)
    tps, gate = await log.asked.get()
    gate.set_result(None)
    assert {A, B, C} == set(tps)
    assert [{A: 2}, {B: 2}, {A: 2, C: 2}] == await asyncio.gather(*later)
    assert (2, None) == (log.count, questions._asking)


async def test_a_question_that_fails_fails_for_those_who_asked_it_and_the_next_is_asked() -> None:
    log = Log()
    questions = Questions(log)
    first = asyncio.create_task(questions.of([A]))
    _, gate = await log.asked.get()
    second = asyncio.create_task(questions.of([B]))
    await asyncio.sleep(0)
    gate.set_exception(KafkaConnectionError())
    with pytest.raises(Unavailable):
        await first
    _, gate = await log.asked.get()
    gate.set_result(None)
    assert {B: 2} == await second


async def test_one_who_gives_up_takes_the_answer_from_nobody() -> None:
    log = Log()
    questions = Questions(log)
    first, second = (asyncio.create_task(questions.of([A])) for _ in range(2))
    _, gate = await log.asked.get()
    first.cancel()
    await asyncio.sleep(0)
    gate.set_result(None)
    assert {A: 1} == await second


async def test_who_waits_when_the_gateway_stops_is_told_so() -> None:
    log = Log()
    questions = Questions(log)
    first = asyncio.create_task(questions.of([A]))
    await log.asked.get()
    second = asyncio.create_task(questions.of([B]))
    await asyncio.sleep(0)
    await questions.stop()
    for each in (first, second):
        with pytest.raises(Unavailable, match="stopping"):
            await each


def test_an_end_that_goes_back_is_not_told_unless_the_higher_one_was_long_ago() -> None:
    told = Told()
    assert not told.goes_back({A: 5, B: 2}, now_s=0.0)
    assert told.goes_back({A: 4}, now_s=1.0)
    assert told.goes_back({A: 6, B: 1}, now_s=1.0)
    assert not told.goes_back({A: 5, B: 3}, now_s=2.0)
    assert told.goes_back({A: 4}, now_s=1.0 + REMEMBERED_S)
    assert not told.goes_back({A: 4}, now_s=2.0 + REMEMBERED_S)


async def test_a_leader_that_hangs_is_asked_no_more_once_another_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.4)
    monkeypatch.setattr(module, "_REQUEST_MS", 300)
    with MockCluster() as cluster:
        tp = TopicPartition(cluster.create_topic("t"), 0)
        cluster.set_leader("t", 0, 1)
        ends = Ends(KafkaSettings(bootstrap=cluster.bootstrap), client_id="test")
        await ends.start()
        assert {tp: 0} == await ends.of([tp])
        cluster.set_rtt(1, 60_000)
        cluster.set_leader("t", 0, 2)
        with pytest.raises(Unavailable):
            await ends.of([tp])
        async with asyncio.timeout(30):
            while (found := await _answered(ends, tp)) is None:  # noqa: ASYNC110 - it waits for the answer itself
                await asyncio.sleep(0)
        assert {tp: 0} == found
        assert 2 == ends._consumer._client.cluster.leader_for_partition(tp)
        await ends.stop()


async def _answered(ends: Ends, tp: TopicPartition) -> Offsets | None:
    try:
        return await ends.of([tp])
    except Unavailable:
        return None
