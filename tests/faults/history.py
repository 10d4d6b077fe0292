"""The history of a fault run: what every participant saw and did, and what the logs hold in the end.

A history is a folder of JSON lines. Participants (clients, backends, the nemesis, the operator) append to one file each while the
run goes on; afterwards `dump_topics` and `dump_commits` copy the logs. `tests/faults/checker` says how a test uses it, and which
lines there are.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from schemas import headers as names
from schemas.codec import DecodeError, decode_request
from schemas.ids import is_task_id, made_id
from schemas.topics import Lane, RetryTier, TopicNames
from streams.deadlines import deadline_ms
from streams.errors import InvalidRequest

Line = dict[str, Any]

# Read in this order: what happened to the system, then what is in the logs, then who was told what, by time.
_FAULTS, _LOGS, _SEEN = "faults", "log", "seen"
_LOG_ORDER = ("requests", "retry", "dead", "results", "progress", "commits")
_NONCE = re.compile(r"nonce-[0-9A-Za-z]+")
_POLL_MS, _SILENT_MS = 250, 5_000


class Recorder:
    """Appends one participant's lines to its file; each is with the kernel before `write` returns, so a kill loses none.

    Lines carry `at_s`, this machine's monotonic clock, and `at_ms`, broker time: the wall clock as it was when the recorder was made,
    moved on by the monotonic one, so that a wall clock that is set meanwhile moves nothing. `broker_ahead_ms` is how far the brokers'
    clock is ahead of this machine's; 0 where they run on it.
    """

    def __init__(self, folder: Path, who: str, *, kind: str = _SEEN, broker_ahead_ms: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.who = who
        self._file = (folder / f"{kind}-{who}.jsonl").open("ab", buffering=0)
        self._zero_ms = time.time_ns() / 1e6 - time.monotonic() * 1000 + broker_ahead_ms

    @classmethod
    def of_faults(cls, folder: Path, who: str = "nemesis") -> Recorder:
        """Return the recorder of whoever breaks things: its lines are `fault` lines."""
        return cls(folder, who, kind=_FAULTS)

    def write(self, what: str, **fields: Any) -> None:
        """Append a line. `at_s` may be given for what happened a moment ago."""
        at_s = fields.pop("at_s", None) or time.monotonic()
        line = {"what": what, "who": self.who, "at_s": at_s, "at_ms": round(self._zero_ms + at_s * 1000, 3), **fields}
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def digest(result: Mapping[str, Any]) -> str:
    """Return what two readers' copies of a result are compared by; `status`, which the gateway adds, does not count."""
    told = {name: value for name, value in result.items() if name != "status"}
    return hashlib.blake2b(orjson.dumps(told, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()


def nonce_in(prompt: str) -> str | None:
    """Return the `nonce-…` in a prompt: a backend that repeats it shows whose answer it gives."""
    found = _NONCE.search(prompt)
    return found[0] if found else None


def read_history(folder: Path) -> Iterator[Line]:
    """Yield the lines in the order in which they are judged; a last line that a kill cut short is left out.

    Raises: ValueError for a line that is none within a file.
    """
    for path in sorted(folder.glob(f"{_FAULTS}-*.jsonl")):
        yield from _lines(path)
    for kind in _LOG_ORDER:
        for path in sorted(folder.glob(f"{_LOGS}-{kind}*.jsonl")):
            yield from _lines(path)
    seen = [_lines(path) for path in sorted(folder.glob(f"{_SEEN}-*.jsonl"))]
    yield from heapq.merge(*seen, key=lambda line: line["at_ms"])


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, row in enumerate(file, 1):
            try:
                yield orjson.loads(row)
            except orjson.JSONDecodeError:
                if row.endswith(b"\n"):
                    raise ValueError(f"{path.name}: line {number} is not JSON") from None


async def dump_topics(
    bootstrap: str, topics: TopicNames, folder: Path, *, nonce_of: Callable[[str], str | None] = nonce_in
) -> None:
    """Copy lanes, retries, dead letters, results and progress, each from its first committed record to its end.

    `nonce_of` says from a request's prompt what a right answer to it contains; None: any answer is taken for its own.

    Raises: KeyError for a topic that does not exist; TimeoutError for one that cannot be read to its end within 5 s of silence.
    """

    def request(record: Any) -> Line:
        return _request(record, topics.lane_of(record.topic), nonce_of)

    plan: list[tuple[str, str, Callable[[Any], Line]]] = [
        *((topics.requests(lane), "requests", request) for lane in Lane),
        *((topics.retry(tier), "retry", _passed_on("retry")) for tier in RetryTier),
        (topics.dead_letters, "dead", _passed_on("dead")),
        (topics.results, "results", _result),
        (topics.progress, "progress", _started),
    ]
    counts = await _partitions(bootstrap)
    async with _consumer(bootstrap) as consumer:
        for topic, kind, line_of in plan:
            with _new_file(folder, f"{kind}-{topic}") as file:
                await _copy(consumer, _all(topic, counts), _one(line_of), file)


async def dump_commits(bootstrap: str, topics: TopicNames, folder: Path) -> None:
    """Copy every commit of our groups, and the generations they had, from Kafka's own log of them.

    So each commit is judged at the moment the coordinator took it, not at the next sample. What was compacted away is missing: with
    stock settings a run of an hour or two is kept whole.
    """
    prefix = topics.group("")
    tps = _all("__consumer_offsets", await _partitions(bootstrap))
    async with _consumer(bootstrap) as consumer:
        with _new_file(folder, "commits") as file:
            await _copy(consumer, tps, lambda record: _commit(record, prefix), file)


def _new_file(folder: Path, name: str) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{_LOGS}-{name}.jsonl").open("wb")


def _all(topic: str, counts: Mapping[str, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(counts[topic])]


def _one(line_of: Callable[[Any], Line]) -> Callable[[Any], list[Line]]:
    return lambda record: [line_of(record)]


def _consumer(bootstrap: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed")


async def _partitions(bootstrap: str) -> dict[str, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return {each["topic"]: len(each["partitions"]) for each in await admin.describe_topics()}
    finally:
        await admin.close()


async def _copy(
    consumer: AIOKafkaConsumer, tps: list[TopicPartition], lines_of: Callable[[Any], list[Line]], file: BinaryIO
) -> None:
    consumer.assign(tps)
    firsts, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    for tp in tps:
        consumer.seek(tp, firsts[tp])
    silent_ms = 0
    # The position also moves over transaction markers, which carry no record.
    while left := [tp for tp in tps if await consumer.position(tp) < ends[tp]]:
        fetched = await consumer.getmany(timeout_ms=_POLL_MS)
        silent_ms = 0 if fetched else silent_ms + _POLL_MS
        if silent_ms > _SILENT_MS:
            raise TimeoutError(f"{left[0].topic}/{left[0].partition} cannot be read to its end")
        for records in fetched.values():
            for record in records:
                file.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines_of(record))
    for tp in tps:
        line = {"what": "dumped", "topic": tp.topic, "partition": tp.partition, "first": firsts[tp], "end": ends[tp]}
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _place(record: Any, what: str, task: str | None) -> Line:
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "at_ms": record.timestamp}
    return {"what": what, "task": task, **place}


def _request(record: Any, lane: Lane, nonce_of: Callable[[str], str | None]) -> Line:
    own = made_id(lane, record.partition, record.offset)
    try:
        request = decode_request(record.value)
    except DecodeError as error:
        return {**_place(record, "request", error.task_id or own), "tenant": error.tenant or "default"}
    prompt = request.messages[-1].get("content") if request.messages else None
    line = _place(record, "request", request.task_id if is_task_id(request.task_id) else own)
    line["tenant"] = request.tenant or "default"
    if isinstance(prompt, str) and (nonce := nonce_of(prompt)):
        line["nonce"] = nonce
    if request.deadline_at_ms is not None:
        with suppress(InvalidRequest):  # it fails, and has no deadline
            line["deadline_ms"] = deadline_ms(request, record.timestamp)
    return line


def _passed_on(what: str) -> Callable[[Any], Line]:
    def line(record: Any) -> Line:
        find = partial(names.find, record.headers)
        row = {**_place(record, what, find(names.TASK_ID)), "source": find(names.SOURCE)}
        if due_ms := find(names.NOT_BEFORE_MS):
            row["due_ms"] = int(due_ms)
        return row

    return line


def _result(record: Any) -> Line:
    row = orjson.loads(record.value)
    source, batch = row["source"], row["batch"]
    return {
        **_place(record, "result", record.key.decode()),
        "tenant": row["tenant"],
        "outcome": row["outcome"],
        "source": f"{source['topic']}/{source['partition']}/{source['offset']}",
        "digest": digest(row),
        "answer": (row["output"] or {}).get("content"),
        "batch": batch and batch["id"],
    }


def _started(record: Any) -> Line:
    row = orjson.loads(record.value)
    if "released" in row:  # starts that came to nothing: nothing is judged by it
        return _place(record, "note", None)
    tasks = [task_id for task_id, *_ in row["tasks"]]
    return {**_place(record, "started", None), "tasks": tasks, "batch": row["batch_id"], "worker": row["worker"]}


# Source: Apache Kafka 4.3, group-coordinator, OffsetCommitKey.json, OffsetCommitValue.json, GroupMetadataKey.json,
# GroupMetadataValue.json: a key begins with its kind (0 and 1 a commit, 2 a group), a value with its version, all big-endian.
def _commit(record: Any, prefix: str) -> list[Line]:
    key, value = _Bytes(record.key), record.value
    kind, group = key.int(2), key.text()
    if value is None or not group.startswith(prefix):
        return []
    line = {"group": group, "at_ms": record.timestamp}
    body = _Bytes(value)
    body.int(2)
    if kind in (0, 1):
        return [{"what": "commit", **line, "topic": key.text(), "partition": key.int(4), "offset": body.int(8)}]
    if kind == 2:
        body.text()  # the kind of protocol
        return [{"what": "generation", **line, "generation": body.int(4)}]
    return []


class _Bytes:
    """Takes Kafka's numbers and texts from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def int(self, size: int) -> int:
        kind = {2: ">h", 4: ">i", 8: ">q"}[size]
        number: int = struct.unpack_from(kind, self._data, self._at)[0]
        self._at += size
        return number

    def text(self) -> str:
        start = self._at + 2
        self._at = start + self.int(2)
        return self._data[start : self._at].decode()
