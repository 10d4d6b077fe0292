"""The logs as lists, and a gateway over them: the HTTP surface without Kafka."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from gateway.app import new_app
from gateway.calls import Calls
from gateway.core import Gateway
from gateway.finished import FinishedFile
from gateway.ports import OutcomeUnknown, Stored, Unavailable
from gateway.view import View
from gateway.waiters import Waiters
from schemas.codec import encode
from schemas.headers import Headers
from schemas.progress import Started
from schemas.result import ErrorType, Outcome, Output, Result, ResultError, Source, Timing
from schemas.topics import Lane, TopicNames
from streams.outcome import result_headers
from streams.settings import Settings
from streams.task import TaskKey
from wire.producing import RecordTooLarge

NAMES = TopicNames()
PARTITIONS = 3
NOW_MS = 1_795_420_000_000


@dataclass(frozen=True)
class Record:
    """A record of a log."""

    topic: str
    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class FakeLogs:
    """Logs in memory (`Logs` of `gateway/ports.py`). Records reach the view when somebody asks it to reach them.

    `is_silent`: appends are taken and never acknowledged. `is_behind`: the view gets nothing more. `before_append` is called once,
    before the next append: what somebody else does at that moment.
    """

    view: View
    now_ms: int = NOW_MS
    is_caught_up: bool = True
    is_reachable: bool = True
    is_silent: bool = False
    is_behind: bool = False
    before_append: Callable[[], None] | None = None
    most_bytes: int = 2 << 20
    records: dict[tuple[str, int], list[Record]] = field(default_factory=lambda: defaultdict(list))
    unread: list[Record] = field(default_factory=list)

    def require(self) -> None:
        if not self.is_caught_up or not self.is_reachable:
            raise Unavailable("not now")

    async def append(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        if len(value or b"") > self.most_bytes:
            raise RecordTooLarge("too large")
        meanwhile, self.before_append = self.before_append, None
        if meanwhile is not None:
            meanwhile()
        if self.is_silent:
            raise OutcomeUnknown("not acknowledged")
        return self.put(topic, partition, key, value, headers)

    async def reach(self, partition: int | None) -> None:
        if self.is_behind or not self.is_reachable:
            raise Unavailable("behind")
        self.feed()

    async def reach_state(self) -> None:
        await self.reach(None)

    async def reach_result(self, partition: int, offset: int, timeout_s: float) -> bool:
        if not self.is_behind:
            self.feed()
        return not self.is_behind

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        found = self.records[topic, partition]
        return Stored(found[offset].value, found[offset].headers) if offset < len(found) else None

    # What others write

    def put(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers = ()) -> int:
        """Append a record that the view has not read yet."""
        log = self.records[topic, partition]
        record = Record(topic, partition, len(log), self.now_ms, key, value, headers)
        log.append(record)
        self.unread.append(record)
        return record.offset

    def put_request(self, lane: Lane = Lane.NORMAL, partition: int = 0, **fields: object) -> int:
        value = orjson.dumps({"messages": [{"role": "user", "content": "a secret"}], **fields})
        return self.put(NAMES.requests(lane), partition, None, value)

    def put_started(self, task_id: str, lane: Lane, partition: int, offset: int, attempt: int = 1) -> None:
        rows = [(task_id, NAMES.requests(lane), offset, attempt)]
        self.put(NAMES.progress, partition, b"b-1", encode(Started("b-1", "w", "b", rows, self.now_ms)))

    def put_result(self, result: Result) -> int:
        headers = result_headers(result, (), None)
        key = result.task_id.encode()
        return self.put(NAMES.results, result.source.partition, key, encode(result), headers)

    def feed(self) -> None:
        """Let the view read what it has not read."""
        unread, self.unread = self.unread, []
        for record in unread:
            feed(self.view, record)


def feed(view: View, record: Record) -> str | None:
    """Give one record to a view as the follower would; returns the id of the task that a result belongs to."""
    if record.topic == NAMES.results:
        found = view.result_record(
            record.partition, record.offset, record.at_ms, record.key, record.headers, record.value
        )
        view.finished.consumed(record.partition, record.offset + 1)
        return found
    if record.topic == NAMES.progress:
        view.progress_record(record.partition, record.value, record.offset)
    elif record.topic == NAMES.state:
        view.state_record(record.key, record.value)
    elif ".retry." in record.topic:
        view.retry_record(record.partition, record.headers, record.value)
    else:
        lane = NAMES.lane_of(record.topic)
        view.lane_record(lane, record.partition, record.offset, record.at_ms, record.value, record.headers)
    return None


def make_view(finished: FinishedFile | None = None) -> View:
    return View(NAMES, PARTITIONS, finished or FinishedFile())


def make_result(
    task_id: str,
    outcome: Outcome = Outcome.COMPLETED,
    *,
    lane: Lane = Lane.NORMAL,
    partition: int = 0,
    offset: int = 0,
    tenant: str = "default",
    **fields: Any,
) -> Result:
    """Return a result record; what is not said is as of a task that ran once."""
    is_completed = outcome is Outcome.COMPLETED
    error = ResultError(ErrorType.BACKEND_REJECTED, "refused")
    given: dict[str, Any] = {
        "output": Output("an answer", "stop") if is_completed else None,
        "error": None if is_completed else error,
        "attempts": 1,
        "timing": Timing(NOW_MS, NOW_MS, NOW_MS + 5, NOW_MS + 9, 5.0, 4.0),
        **fields,
    }
    return Result(task_id, tenant, outcome, lane, Source(NAMES.requests(lane), partition, offset), **given)


class WatchedWaiters(Waiters):
    """Says when somebody waits: `waiting` is set before a call does."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = asyncio.Event()

    async def ended(self, task: TaskKey, timeout_s: float) -> None:
        # The one who is told of it goes on in the next turn of the loop, when the wait has begun.
        self.waiting.set()
        await super().ended(task, timeout_s)


class FakeGateway(Gateway):
    """A gateway whose logs are lists; `http` calls its application. Use as `async with`."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or Settings(), cache_home=Path("/nonexistent"))
        self.watched = self.waiters = WatchedWaiters()
        self.view = make_view()
        self.view.is_live = True
        self.fake = self.logs = FakeLogs(self.view)
        self.ready.set()
        numbers = itertools.count()
        self._calls = Calls.over(
            NAMES,
            PARTITIONS,
            self.view,
            self.fleet,
            self.fake,
            self.waiters,
            self.metrics,
            random=lambda count: next(numbers).to_bytes(count, "big"),
        )
        transport = httpx.ASGITransport(new_app(self), raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def __aenter__(self) -> FakeGateway:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        self.view.finished.close()
