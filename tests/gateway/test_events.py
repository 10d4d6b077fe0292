"""Streams of statuses: nothing untold, nothing told twice, and nobody left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Standing, Told
from gateway.ports import Stored, Unavailable
from gateway.waiters import Waiters
from schemas import headers as names
from schemas.ids import home
from schemas.result import Outcome
from schemas.topics import Lane
from streams.outcome import result_headers
from tests.gateway.fakes import NAMES, PARTITIONS, FakeGateway, make_result
from tests.gateway.test_idempotency import restarted

MESSAGES = [{"role": "user", "content": "a secret"}]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway() as running:
        yield running


class Stream:
    """A reader of `/v1/async/events`, as an ASGI server is one. Use as `async with`."""

    def __init__(self, gateway: FakeGateway, query: str, last: str | None = None) -> None:
        self._gateway = gateway
        headers = [(b"last-event-id", last.encode())] if last else []
        self._scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/async/events",
            "query_string": query.encode(),
            "headers": headers,
            "asgi": {"spec_version": "2.3"},
        }
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self.status = 0
        self.text = ""

    async def __aenter__(self) -> Stream:
        app = self._gateway.http._transport.app  # type: ignore[attr-defined]
        self._running = asyncio.create_task(app(self._scope, self._receive, self._put))
        self.status = (await self._sent.get())["status"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        self._gone.set()
        await self._running

    async def lines(self) -> str | None:
        """Return the next piece, None at the end."""
        piece = await self._sent.get()
        found = bytes(piece.get("body", b"")).decode()
        self.text += found
        return found if piece.get("more_body") else None

    async def event(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next event's id and status, None at the end; checks its form."""
        while (piece := await self.lines()) is not None:
            if piece.startswith("id: "):
                head, event, data, *rest = piece.split("\n")
                assert ("event: status", ["", ""]) == (event, rest)
                return head.removeprefix("id: "), orjson.loads(data.removeprefix("data: "))
        return None

    async def rest(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        while (event := await self.event()) is not None:
            found.append(event)
        return found

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _put(self, message: Any) -> None:
        await self._sent.put(message)


class Scene:
    """A batch, and what happens to its tasks, as the follower would tell it."""

    def __init__(self, gateway: FakeGateway, count: int) -> None:
        self.gateway, self.ids = gateway, [f"t{number}" for number in range(count)]
        self._places: dict[str, tuple[int, int]] = {}
        for number, task_id in enumerate(self.ids):
            partition = home(task_id, PARTITIONS)
            value = orjson.dumps({"task_id": task_id, "messages": MESSAGES})
            headers = [(names.BATCH, f"b;{number};{count}".encode())]
            topic = NAMES.requests(Lane.HIGH)
            self._places[task_id] = partition, gateway.fake.put(topic, partition, None, value, headers)
        gateway.fake.feed()

    def start(self, task_id: str, attempt: int = 1) -> None:
        partition, offset = self._places[task_id]
        self.gateway.fake.put_started(task_id, Lane.HIGH, partition, offset, attempt)
        self._follow(task_id, partition)

    def end(self, task_id: str, outcome: Outcome = Outcome.COMPLETED) -> None:
        partition, offset = self._places[task_id]
        result = make_result(task_id, outcome, lane=Lane.HIGH, partition=partition, offset=offset)
        number = self.ids.index(task_id)
        headers = result_headers(result, [(names.BATCH, f"b;{number};{len(self.ids)}".encode())], None)
        self.gateway.fake.put(NAMES.results, partition, task_id.encode(), orjson.dumps(result), headers)
        self._follow(task_id, partition)

    def _follow(self, task_id: str, partition: int) -> None:
        self.gateway.fake.feed()
        self.gateway.waiters.wake((task_id, partition))


def told(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(body["task_id"], body["status"]) for _, body in events]


async def test_a_task_is_followed_to_its_end_and_the_stream_ends_with_it(gateway: FakeGateway) -> None:
    scene = Scene(gateway, 1)
    async with Stream(gateway, "task_id=t0") as stream:
        seen = [await stream.event()]
        scene.start("t0")
        seen.append(await stream.event())
        scene.start("t0", attempt=2)
        seen.append(await stream.event())
        scene.end("t0")
        seen += await stream.rest()
    bodies = [body for event in seen if event for body in [event[1]]]
    assert [("queued", 0), ("processing", 1), ("processing", 2), ("completed", 1)] == [
        (body["status"], body["attempts"]) for body in bodies
    ]
    assert bodies[-1] == (await gateway.http.get("/v1/async/status/t0")).json()
    assert "retry: 2000" in stream.text
    assert {} == gateway.waiters._watches


async def test_a_stream_goes_on_behind_each_event_and_elsewhere_too(gateway: FakeGateway) -> None:
    scene = Scene(gateway, 1)
    ids: list[str] = []
    for step in (None, scene.start, scene.end):
        if step is not None:
            step("t0")
        async with Stream(gateway, "task_id=t0", ids[-1] if ids else None) as stream:
            event = await stream.event()
            assert event
            ids.append(event[0])
        restarted(gateway)
    assert 3 == len(set(ids))
    async with Stream(gateway, "task_id=t0", ids[-1]) as stream:
        assert 204 == stream.status
    async with Stream(gateway, "task_id=t0", ids[0]) as stream:
        assert [("t0", "completed")] == told(await stream.rest())


async def test_nothing_is_told_again_while_nothing_happens(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.following.KEEP_ALIVE_S", 0.001)
    scene = Scene(gateway, 1)
    scene.start("t0")
    async with Stream(gateway, "task_id=t0") as stream:
        event = await stream.event()
        assert event
    async with Stream(gateway, "task_id=t0", event[0]) as stream:
        assert ["retry: 2000\n\n", ": keep-alive\n\n", ": keep-alive\n\n"] == [await stream.lines() for _ in range(3)]


async def test_every_task_of_a_batch_is_followed(gateway: FakeGateway) -> None:
    scene = Scene(gateway, 5)
    scene.end("t4", Outcome.FAILED)
    scene.start("t3")
    async with Stream(gateway, "batch_id=b") as stream:
        first = [event for _ in range(5) if (event := await stream.event())]
        assert [("t0", "queued"), ("t1", "queued"), ("t2", "queued")] == told(first)[:3]
        assert {("t3", "processing"), ("t4", "failed")} == set(told(first)[3:])
        for task_id in scene.ids[:4]:
            scene.end(task_id)
        rest = await stream.rest()
        assert {(task_id, "completed") for task_id in scene.ids[:4]} == set(told(rest))
    async with Stream(gateway, "batch_id=b", rest[-1][0]) as stream:
        assert 204 == stream.status
    async with Stream(gateway, "batch_id=b", first[1][0]) as stream:
        assert set(scene.ids) == {task_id for task_id, _ in told(await stream.rest())}


async def test_a_batch_that_is_not_whole_ends_its_stream_but_is_not_over(gateway: FakeGateway) -> None:
    value = orjson.dumps({"task_id": "t", "messages": MESSAGES})
    gateway.fake.put(NAMES.requests(Lane.LOW), 0, None, value, [(names.BATCH, b"b;0;2")])
    gateway.fake.put_result(make_result("t", lane=Lane.LOW))
    async with Stream(gateway, "batch_id=b") as stream:
        ((last, _),) = await stream.rest()
    async with Stream(gateway, "batch_id=b", last) as stream:
        assert (200, []) == (stream.status, await stream.rest())


async def test_who_leaves_leaves_nothing_behind(gateway: FakeGateway) -> None:
    Scene(gateway, 2)
    stream = Stream(gateway, "batch_id=b")
    await stream.__aenter__()
    await stream.event()
    assert 2 == len(gateway.waiters._watches)
    await stream.leave()
    assert {} == gateway.waiters._watches
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_stopping_gateway_ends_its_streams(gateway: FakeGateway) -> None:
    Scene(gateway, 1)
    async with Stream(gateway, "task_id=t0") as stream:
        assert [("t0", "queued")] == told([event for event in [await stream.event()] if event])
        gateway.close()
        assert await stream.event() is None
    async with Stream(gateway, "task_id=t0") as stream:
        assert [("t0", "queued")] == told(await stream.rest())


async def test_a_result_that_cannot_be_read_ends_the_stream_untold(gateway: FakeGateway) -> None:
    scene = Scene(gateway, 1)
    async with Stream(gateway, "task_id=t0") as stream:
        await stream.event()

        async def away(topic: str, partition: int, offset: int) -> Stored | None:
            raise Unavailable("away")

        gateway.fake.read = away  # type: ignore[method-assign]
        scene.end("t0")
        assert await stream.event() is None


@pytest.mark.parametrize(
    ("query", "last", "status"),
    [
        ("", None, 422),
        ("task_id=t0&batch_id=b", None, 422),
        ("task_id=t0", "secret", 422),
        ("task_id=t0", "1/3:4", 422),
        ("task_id=t0", "1/" + "0:1-1," * 5_000, 422),
        ("task_id=unknown", None, 404),
        ("task_id=has%20spaces", None, 404),
        ("batch_id=unknown", None, 404),
        ("batch_id=", None, 404),
    ],
)
async def test_what_cannot_be_followed_is_a_problem(
    gateway: FakeGateway, query: str, last: str | None, status: int
) -> None:
    Scene(gateway, 1)
    headers = {"last-event-id": last} if last else {}
    response = await gateway.http.get(f"/v1/async/events?{query}", headers=headers)
    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    assert "secret" not in response.text


# What is told when


STANDINGS = st.lists(
    st.builds(Standing, st.integers(0, 5), st.just("t"), st.integers(0, 2), st.integers(-1, 4), st.integers(-1, 4)),
    max_size=8,
)


@given(STANDINGS)
def test_everything_is_told_once_and_what_is_told_is_never_left(standings: list[Standing]) -> None:
    so_far = Told()
    for standing in so_far.left(standings):
        so_far.tell(standing)
    assert [] == so_far.left(standings)


@given(STANDINGS, st.integers(0, 8))
def test_a_stream_that_breaks_goes_on_with_exactly_the_rest(standings: list[Standing], broken_after: int) -> None:
    so_far = Told()
    all_of_them = so_far.left(standings)
    for standing in all_of_them[:broken_after]:
        so_far.tell(standing)
    again = Told.parse(str(so_far))
    assert again is not None
    told_places = {(each.place, each.index if each.place is None else 0) for each in all_of_them[:broken_after]}
    rest = [each for each in all_of_them if (each.place, each.index if each.place is None else 0) not in told_places]
    assert rest == again.left(standings)


@given(STANDINGS)
def test_an_event_s_id_reads_back(standings: list[Standing]) -> None:
    so_far = Told()
    for standing in so_far.left(standings):
        so_far.tell(standing)
    assert str(so_far) == str(Told.parse(str(so_far)))


@given(st.text(max_size=20))
def test_other_text_is_no_event_s_id(text: str) -> None:
    found = Told.parse(text)
    assert found is None or "/" in text


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_and_wherever_it_breaks_each_task_is_told_forward_to_its_end(seed: int) -> None:
    rng = random.Random(seed)
    async with FakeGateway() as gateway:
        scene = Scene(gateway, 4)
        order = {"queued": 0, "processing": 1, "completed": 2}
        known: dict[str, tuple[int, int]] = {}
        last: str | None = None
        attempts = dict.fromkeys(scene.ids, 0)
        queues = {task_id: ["start", "start", "end"] for task_id in scene.ids}
        while True:
            async with Stream(gateway, "batch_id=b", last) as stream:
                if stream.status == 204:
                    break
                for _ in range(rng.randrange(1, 6)):
                    for _ in range(rng.randrange(3)):
                        task_id = rng.choice(scene.ids)
                        if queues[task_id]:
                            if queues[task_id].pop(0) == "start":
                                attempts[task_id] += 1
                                scene.start(task_id, attempts[task_id])
                            else:
                                scene.end(task_id)
                    try:
                        async with asyncio.timeout(0.01):
                            event = await stream.event()
                    except TimeoutError:
                        break
                    if event is None:
                        break
                    last, body = event
                    now = (order[body["status"]], body["attempts"] if body["status"] == "processing" else 0)
                    assert known.get(body["task_id"], (-1, 0)) < now
                    known[body["task_id"]] = now
            if rng.random() < 0.3:
                restarted(gateway)
        assert dict.fromkeys(scene.ids, (2, 0)) == known


async def test_a_watch_tells_each_change_once_and_nothing_after_a_while() -> None:
    waiters = Waiters()
    with waiters.watching([("a", 0), ("b", 0)]) as watch:
        for task in ("a", "b", "a", "c"):
            waiters.changed((task, 0))
        assert [("a", 0), ("b", 0)] == await watch.changed(10)
        assert [] == await watch.changed(0.001)
        waiters.wake(("b", 0))
        assert [("b", 0)] == await watch.changed(10)
        waiters.close()
        assert ([], True) == (await watch.changed(10), watch.is_closed)
    with waiters.watching([("a", 0)]) as watch:
        assert ([], True) == (await watch.changed(10), watch.is_closed)
    assert {} == waiters._watches
