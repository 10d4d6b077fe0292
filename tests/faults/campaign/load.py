"""The clients: producers that write to the lanes, and callers of the gateways, at a rate that follows what the machine bears."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from confluent_kafka import KafkaError, Message, Producer

from schemas.ids import made_id
from schemas.topics import Lane, TopicNames
from tests.faults.campaign.outcomes import Outcomes
from tests.faults.campaign.requests import Requests, Wanted
from tests.faults.history import Recorder, digest
from wire.clock import monotonic_s

_TICK_S = 0.02
_POLL_S = 0.01
_ADAPT_S = 1.0
# More open than this much work at the highest rate: the machine does not keep up.
_BACKLOG_S = 3.0
_LEAST_PER_S = 20.0
_CALLERS, _MOST_CALLS = 8, 300
_SUBMIT_TRIES = 6
_WAIT_S = 10
_LONGEST_PAUSE_S = 10.0
_CALL_S = 30.0
_FLOOD_DUE_S = 120.0
_GATEWAY_SHARE = 0.25


class Producing:
    """An idempotent librdkafka producer that never gives a record up, so that each is acknowledged in the end."""

    def __init__(self, bootstrap: str, names: TopicNames, outcomes: Outcomes, recorder: Recorder) -> None:
        self._names, self._outcomes, self._recorder = names, outcomes, recorder
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "message.timeout.ms": 0,
                "message.max.bytes": 2_000_000,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 1000,
                "log_level": 0,
            }
        )
        self.acknowledged_count = 0

    async def poll(self) -> None:
        """Hear acknowledgements until cancelled."""
        while True:
            self._producer.poll(0)
            await asyncio.sleep(_POLL_S)

    def write(self, wanted: Wanted) -> None:
        topic = self._names.requests(wanted.lane)
        about = {"task": wanted.task_id} if wanted.task_id else {"nonce": wanted.nonce}
        self._recorder.write("submitted", tenant=wanted.tenant, **about)

        def delivered(error: KafkaError | None, record: Message) -> None:
            if error is not None:
                self._recorder.write("unanswered", **about)
                return
            partition, offset = record.partition() or 0, record.offset() or 0
            self.acknowledged_count += 1
            place = {"topic": topic, "partition": partition, "offset": offset}
            self._recorder.write("acknowledged", **({"task": wanted.task_id} if wanted.task_id else place))
            self._outcomes.expect(wanted.task_id or made_id(wanted.lane, partition, offset))

        self._producer.produce(topic, wanted.value, wanted.key, on_delivery=delivered)

    @property
    def unacknowledged_count(self) -> int:
        return len(self._producer)

    async def all_acknowledged(self) -> None:
        while self.unacknowledged_count:  # noqa: ASYNC110 - it is polled anyway
            await asyncio.sleep(_POLL_S)


class Caller:
    """One client of the gateways: it remembers nothing but ids, and asks now this gateway and now that one."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        urls: Sequence[str],
        recorder: Recorder,
        requests: Requests,
        outcomes: Outcomes,
        rng: random.Random,
    ) -> None:
        self._http, self._urls, self._recorder = http, urls, recorder
        self._requests, self._outcomes, self._rng = requests, outcomes, rng

    async def task(self) -> None:
        """Submit, ask for the status, wait for the result; sometimes cancel."""
        task_id = await self._submitted(self._requests.due_s())
        if task_id is None:
            return
        if self._rng.random() < 0.05:
            await asyncio.sleep(self._rng.uniform(0, 0.1))
            await self._cancel(task_id)
        await self._followed(task_id)

    async def cancelled(self) -> bool:
        """Submit and cancel at once; return whether the task ended as cancelled."""
        task_id = await self._submitted(60.0)
        if task_id is None:
            return False
        told = await self._cancel(task_id)
        await self._followed(task_id)
        return told

    async def _submitted(self, due_s: float) -> str | None:
        """Return the task's id; what got no 202 is asked again, as the Retry-After says, until it gets one."""
        nonce = self._requests.nonce()
        body = self._requests.body(nonce) | {"priority": self._requests.lane().value, "timeout_s": due_s}
        for tries in range(_SUBMIT_TRIES):
            self._recorder.write("submitted", nonce=nonce, tenant="default")
            status, answer, after_s = await self._call("POST", "/v1/async/submit", body)
            if status == 202:
                task_id: str = answer["task_id"]
                self._recorder.write("acknowledged", task=task_id)
                self._outcomes.expect(task_id)
                return task_id
            self._recorder.write("unanswered", nonce=nonce, status=status, type=answer.get("type"))
            await asyncio.sleep(_pause_s(after_s, tries))
        return None

    async def _followed(self, task_id: str) -> None:
        """Ask until the outcome's result is told; what got no answer is asked again, ever later."""
        path = f"/v1/async/status/{task_id}" if self._rng.random() < 0.5 else f"/v1/async/result/{task_id}?wait=0"
        tries = 0
        while True:
            status, answer, after_s = await self._call("GET", path)
            if status in (200, 202, 404):
                tries = 0
                told = "unknown" if status == 404 else answer["status"]
                fields = {"tenant": "default", "digest": digest(answer)} if "outcome" in answer else {}
                self._recorder.write("read", task=task_id, status=told, **fields)
                if "outcome" in answer:
                    return
            else:
                self._recorder.write("unread", task=task_id, status=status, type=answer.get("type"))
                await asyncio.sleep(_pause_s(after_s, tries))
                tries += 1
            path = f"/v1/async/result/{task_id}?wait={_WAIT_S}"

    async def _cancel(self, task_id: str) -> bool:
        status, answer, _ = await self._call("DELETE", f"/v1/async/cancel/{task_id}")
        told = {200: answer.get("status"), 202: answer.get("status"), 404: "unknown", 409: answer.get("outcome")}
        if told.get(status):
            self._recorder.write("read", task=task_id, status=told[status])
        else:
            self._recorder.write("unread", task=task_id, status=status, type=answer.get("type"))
        return status == 200

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any], float]:
        """Return the status, 0 for no answer; the body; and how long to wait before another try."""
        url = self._rng.choice(self._urls) + path
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._http.request(
                method, url, data=data, headers={"Content-Type": "application/json"} if data else None
            ) as answer:
                after_s = min(float(answer.headers.get("Retry-After", 1)), 2.0)
                return answer.status, orjson.loads(await answer.read()), after_s
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return 0, {}, 1.0


class Load:
    """All clients. `per_s` follows the backlog: it falls while more is open than three seconds bring at most, and rises again."""

    def __init__(
        self,
        bootstrap: str,
        names: TopicNames,
        urls: Sequence[str],
        outcomes: Outcomes,
        folder: Path,
        *,
        run: str,
        seed: int,
        per_s: float,
    ) -> None:
        self.per_s, self._most_per_s = per_s, per_s
        self._rng = random.Random(seed)
        self._requests = Requests(random.Random(seed + 1), run)
        self._outcomes, self._urls, self._folder = outcomes, urls, folder
        self._calls: set[asyncio.Task[Any]] = set()
        self._recorders = [Recorder(folder, f"caller-{number}") for number in range(_CALLERS)]
        self._own = Recorder(folder, "producer")
        self.producing = Producing(bootstrap, names, outcomes, self._own)

    async def run(self) -> None:
        """Ask on until cancelled."""
        adapted_s = next_s = monotonic_s()
        while True:
            now_s = monotonic_s()
            while next_s <= now_s:
                next_s += 1 / self.per_s
                self._one(now_s)
            if now_s - adapted_s >= _ADAPT_S:
                adapted_s = now_s
                self._adapt()
            await asyncio.sleep(_TICK_S)

    async def __aenter__(self) -> Load:
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_CALL_S), connector=aiohttp.TCPConnector(limit=0)
        )
        callers = [
            Caller(self._http, self._urls, recorder, self._requests, self._outcomes, self._rng)
            for recorder in self._recorders
        ]
        self._callers = cycle(callers)
        self._polling = asyncio.create_task(self.producing.poll())
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in (self._polling, *self._calls):
            task.cancel()
        await asyncio.gather(self._polling, *self._calls, return_exceptions=True)
        await self._http.close()
        for recorder in (self._own, *self._recorders):
            recorder.close()

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    async def flood(self, count: int) -> int:
        """Write many requests to the low lane at once; return how many were acknowledged, once all are."""
        before = self.producing.acknowledged_count
        for _ in range(count):
            self.producing.write(self._requests.good(_now_ms(), Lane.LOW, _FLOOD_DUE_S))
        await self.producing.all_acknowledged()
        return self.producing.acknowledged_count - before

    async def cancel_storm(self, count: int) -> int:
        """Submit and cancel so many tasks at once; return how many ended as cancelled."""
        calls = [self._spawn(next(self._callers).cancelled()) for _ in range(count)]
        return sum(await asyncio.gather(*calls))

    async def poison(self, count: int) -> int:
        """Write requests that can only fail; return how many were acknowledged, once all are."""
        for _ in range(count):
            self.producing.write(self._requests.poison())
        await self.producing.all_acknowledged()
        return count

    async def finished(self) -> None:
        """Return when every record is acknowledged and every caller has its answer."""
        while self._calls:
            await asyncio.wait(self._calls)
        await self.producing.all_acknowledged()

    def _one(self, now_s: float) -> None:
        if self._rng.random() < _GATEWAY_SHARE:
            if len(self._calls) < _MOST_CALLS:
                self._spawn(next(self._callers).task())
            return
        wanted = self._requests.good(_now_ms())
        self.producing.write(wanted)
        if wanted.is_sent_twice:
            self._spawn(self._again(wanted))

    async def _again(self, wanted: Wanted) -> None:
        await asyncio.sleep(self._rng.uniform(0, 2))
        self.producing.write(wanted)

    def _adapt(self) -> None:
        open_count = len(self._outcomes.waiting) + self.producing.unacknowledged_count
        factor = 0.8 if open_count > _BACKLOG_S * self._most_per_s else 1.1
        self.per_s = max(_LEAST_PER_S, min(self._most_per_s, self.per_s * factor))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task


def _pause_s(asked_s: float, tries: int) -> float:
    """Return how long a client waits before it asks again: as it was asked, doubled with each try, at most 10 s."""
    return min(asked_s * 2.0**tries, _LONGEST_PAUSE_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
