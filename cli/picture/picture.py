"""The picture of a cluster, fed with what its topics say."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, TypeVar

from cli.picture.frame import BackendRow, BatchRow, Frame, GpuRow, LaneRow, Notice, WorkerRow
from schemas.gpu import GPUMetrics
from schemas.progress import BackendStatus, LaneState, Started, WorkerSnapshot
from schemas.result import Result
from schemas.topics import Lane, TopicNames
from streams.fleet import used_ratio
from streams.pressure import MemoryPressureLevel, PressureGauge
from streams.quantiles import quantile
from streams.settings import PressureSettings

LIVE_MS = 5_000
_WINDOW_S = 60
_SHORT_S = 10
# A card that has sent nothing for this long is not shown any more.
_FORGET_GPU_MS = 120_000
_MOST_BATCHES, _MOST_NOTICES, _MOST_REMEMBERED = 20, 50, 50_000
# Quantiles of a busy lane are those of its newest outcomes: sorting more would cost a tenth of a core.
_MOST_LATENCIES = 2_000

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Remembered(Generic[_Key, _Value]):
    """A mapping that forgets its oldest entries."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        return self._entries.get(key)

    def swap(self, key: _Key, value: _Value) -> _Value | None:
        """Remember `value` and return what was there before."""
        before = self._entries.get(key)
        self._entries[key] = value
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
        return before


@dataclass(frozen=True, slots=True)
class LogEnd:
    """A lane's partition: the offset of its next record, and the next that its group reads."""

    end: int
    committed: int


@dataclass
class _Batch:
    worker: str
    backend: str
    lane: Lane | None
    at_ms: int
    size: int = 0


@dataclass
class _Flow:
    """The outcomes of a lane: by second and kind, and how long the newest took. Records of several partitions come in any order."""

    seconds: dict[int, Counter[str]] = field(default_factory=dict)
    latencies: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_MOST_LATENCIES))
    reasons: dict[int, Counter[str]] = field(default_factory=dict)

    def add(self, at_ms: int, outcome: str, latency_s: float | None, reason: str | None) -> None:
        self.seconds.setdefault(at_ms // 1000, Counter())[outcome] += 1
        if reason is not None:
            self.reasons.setdefault(at_ms // 1000, Counter())[reason] += 1
        if latency_s is not None:
            self.latencies.append((at_ms, latency_s))

    def forget(self, now_ms: int) -> None:
        first = now_ms // 1000 - _WINDOW_S + 1
        for kept in (self.seconds, self.reasons):
            for second in [each for each in kept if each < first]:
                del kept[second]

    def latencies_s(self, now_ms: int) -> list[float]:
        return [latency_s for at_ms, latency_s in self.latencies if now_ms - at_ms < _WINDOW_S * 1000]

    def by_second(self, now_ms: int) -> list[int]:
        counts = [0] * _WINDOW_S
        for second, outcomes in self.seconds.items():
            ago = max(now_ms // 1000 - second, 0)
            counts[_WINDOW_S - 1 - ago] += outcomes.total()
        return counts


@dataclass
class _Card:
    sample: GPUMetrics
    at_ms: int
    gauge: PressureGauge
    level: MemoryPressureLevel | None = None


@dataclass
class Picture:
    """Keeps what the last minute's records say, and gives a frame of it for any moment. All times are broker milliseconds.

    A result counts once: the first record of a (task_id, partition). A worker is gone when its snapshot is 5 s old, or withdrawn.
    """

    names: TopicNames = field(default_factory=TopicNames)
    pressure: PressureSettings = field(default_factory=PressureSettings)
    stale_after_s: float = 5.0
    run_again: int = 0
    _workers: dict[str, tuple[WorkerSnapshot, int]] = field(default_factory=dict)
    _cards: dict[str, _Card] = field(default_factory=dict)
    _flows: dict[Lane, _Flow] = field(default_factory=lambda: {lane: _Flow() for lane in Lane})
    _batches: dict[str, _Batch] = field(default_factory=dict)
    _ended_of: Remembered[str, int] = field(default_factory=lambda: Remembered(_MOST_REMEMBERED))
    _logs: dict[str, LogEnd] = field(default_factory=dict)
    _seen_through: dict[str, int] = field(default_factory=dict)
    _ended: Remembered[tuple[str, int], bool] = field(default_factory=lambda: Remembered(_MOST_REMEMBERED))
    _starts: Remembered[tuple[str, int], str] = field(default_factory=lambda: Remembered(_MOST_REMEMBERED))
    _notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=_MOST_NOTICES))
    _silent: set[str] = field(default_factory=set)
    _were_there: set[str] | None = None
    _were_up: dict[str, bool] = field(default_factory=dict)

    # What comes in

    def snapshot(self, worker: str, snapshot: WorkerSnapshot | None, at_ms: int) -> None:
        """Take a worker's snapshot; None: it has withdrawn."""
        if snapshot is None:
            self._workers.pop(worker, None)
            return
        self._workers[worker] = (snapshot, at_ms)

    def sample(self, sample: GPUMetrics, at_ms: int) -> None:
        """Take a reading of a card."""
        card = self._cards.get(sample.gpu.uuid)
        if card is None:
            card = self._cards[sample.gpu.uuid] = _Card(sample, at_ms, PressureGauge(self.pressure))
        if sample.lost and not card.sample.lost:
            self.note(f"GPU {sample.gpu.index} of {sample.gpu.host} has fallen off", at_ms)
        card.sample, card.at_ms = sample, at_ms
        ratio = used_ratio(sample)
        card.level = None if ratio is None else card.gauge.update(ratio, at_ms / 1000)

    def started(self, started: Started, partition: int, at_ms: int) -> None:
        """Take a batch that left: one record for each of its partitions."""
        batch = self._batches.get(started.batch_id)
        if batch is None:
            batch = _Batch(started.worker, started.backend, self._lane_of(started), at_ms)
            self._batches[started.batch_id] = batch
            if len(self._batches) > _MOST_BATCHES:
                del self._batches[min(self._batches, key=lambda id_: self._batches[id_].at_ms)]
                if started.batch_id not in self._batches:  # it was the oldest itself
                    return
        batch.size += len(started.tasks)
        for task_id, topic, offset, _ in started.tasks:
            self._saw(f"{topic}/{partition}", offset)
            before = self._starts.swap((task_id, partition), started.batch_id)
            self.run_again += before is not None and before != started.batch_id

    def result(self, result: Result, partition: int, at_ms: int) -> bool:
        """Take a result; return whether it is its task's outcome."""
        if self._ended.swap((result.task_id, partition), True):
            return False
        if result.attempts or result.cached:  # a worker had it; others may have ended it where it waits
            self._saw(f"{result.source.topic}/{result.source.partition}", result.source.offset)
        begun_ms = result.timing.created_at_ms or result.timing.accepted_at_ms
        latency_s = None if begun_ms is None else max(at_ms - begun_ms, 0) / 1000
        self._flows[result.priority].add(at_ms, result.outcome.value, latency_s, result.routing.reason)
        if result.batch is not None:
            self._ended_of.swap(result.batch.id, (self._ended_of.get(result.batch.id) or 0) + 1)
        return True

    def logs(self, ends: Mapping[str, LogEnd]) -> None:
        """Take where the lanes' logs (`topic/partition`) end."""
        self._logs = dict(ends)

    def note(self, text: str, at_ms: int) -> None:
        """Take a notice."""
        self._notices.append(Notice(at_ms, text))

    # What comes out

    def frame(self, now_ms: int) -> Frame:
        """Return the picture at `now_ms`."""
        self._forget(now_ms)
        backends = list(self._backends())
        self._note_workers(now_ms)
        self._note_backends(backends, now_ms)
        return Frame(
            at_ms=now_ms,
            lanes=[self._lane(lane, now_ms) for lane in Lane],
            batches=[self._batch(id_, now_ms) for id_ in sorted(self._batches, key=self._newest_first)],
            backends=backends,
            workers=[_worker(snapshot, at_ms, now_ms) for snapshot, at_ms in self._by_name(self._workers)],
            gpus=sorted(
                (self._gpu(card, now_ms) for card in self._cards.values()), key=lambda gpu: (gpu.host, gpu.index)
            ),
            run_again=self.run_again,
            notices=list(self._notices),
            decisions=self._decisions(),
        )

    def _forget(self, now_ms: int) -> None:
        for worker in [name for name, (_, at_ms) in self._workers.items() if now_ms - at_ms > LIVE_MS]:
            del self._workers[worker]
            self._silent.add(worker)
        self._cards = {uuid: card for uuid, card in self._cards.items() if now_ms - card.at_ms <= _FORGET_GPU_MS}
        for flow in self._flows.values():
            flow.forget(now_ms)

    def _lane(self, lane: Lane, now_ms: int) -> LaneRow:
        states = [found for s, _ in self._workers.values() if (found := s.lanes.get(lane.value)) is not None]
        flow = self._flows[lane]
        by_second = flow.by_second(now_ms)
        latencies = flow.latencies_s(now_ms)
        outcomes: Counter[str] = Counter()
        for counted in flow.seconds.values():
            outcomes.update(counted)
        return LaneRow(
            lane=lane,
            waiting=self._unfetched(lane) + sum(state.waiting for state in states),
            in_flight=sum(state.in_flight for state in states),
            rate_10s_per_minute=sum(by_second[-_SHORT_S:]) * (60 // _SHORT_S),
            rate_60s_per_minute=sum(by_second),
            ended_by_second=by_second,
            p50_s=quantile(latencies, 0.5),
            p95_s=quantile(latencies, 0.95),
            oldest_wait_s=max((state.oldest_wait_s for state in states), default=None),
            outcomes=dict(outcomes),
            share_ratio=self._share(lane, lambda state: state.sent_tokens),
            weight_ratio=self._share(lane, lambda state: state.weight),
            gate=self._gate(lane),
        )

    def _share(self, lane: Lane, part: Callable[[LaneState], int]) -> float | None:
        """Return a lane's part of the sum over all lanes and workers, None where that is nothing."""
        parts: Counter[str] = Counter()
        for snapshot, _ in self._workers.values():
            for name, state in snapshot.lanes.items():
                parts[name] += part(state)
        total = parts.total()
        return round(parts[lane.value] / total, 3) if total else None

    def _gate(self, lane: Lane) -> str | None:
        held: Counter[str] = Counter()
        for snapshot, _ in self._workers.values():
            for row in snapshot.classes:
                if row.lane is lane:
                    held[row.gate.value] += row.waiting
        return max(held, key=lambda gate: held[gate], default=None)

    def _decisions(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for flow in self._flows.values():
            for counted in flow.reasons.values():
                found.update(counted)
        return dict(found.most_common())

    def _unfetched(self, lane: Lane) -> int:
        """Return how many of a lane's records no worker has fetched.

        A snapshot is up to a second old; what was started or ended since was fetched too.
        """
        prefix = f"{self.names.requests(lane)}/"
        total = 0
        for place, log in self._logs.items():
            if not place.startswith(prefix):
                continue
            fetched = [s.fetched_through[place] for s, _ in self._workers.values() if place in s.fetched_through]
            read = max(*fetched, self._seen_through.get(place, -1), -1) + 1 if fetched else 0
            total += max(log.end - max(read, log.committed), 0)
        return total

    def _newest_first(self, id_: str) -> int:
        return -self._batches[id_].at_ms

    def _batch(self, id_: str, now_ms: int) -> BatchRow:
        batch = self._batches[id_]
        ended = min(self._ended_of.get(id_) or 0, batch.size)
        return BatchRow(
            id=id_,
            lane=batch.lane,
            size=batch.size,
            ended=ended,
            worker=batch.worker,
            backend=batch.backend,
            age_s=max(now_ms - batch.at_ms, 0) / 1000,
            is_orphaned=ended < batch.size and batch.worker not in self._workers,
        )

    def _backends(self) -> Iterator[BackendRow]:
        seen: dict[str, list[BackendStatus]] = {}
        for snapshot, _ in self._workers.values():
            for status in snapshot.backends:
                seen.setdefault(status.name, []).append(status)
        for name, views in sorted(seen.items()):
            latencies = [view.latency_ema_s for view in views if view.latency_ema_s is not None]
            yield BackendRow(
                name=name,
                kind=views[0].kind,
                workers=len(views),
                up_for=sum(view.up for view in views),
                draining=any(view.draining for view in views),
                reason=next((view.reason for view in views if not view.up and view.reason), None),
                in_flight=sum(view.in_flight for view in views),
                limit=sum(view.limit for view in views),
                latency_s=fmean(latencies) if latencies else None,
            )

    def _note_workers(self, now_ms: int) -> None:
        """Note who came and went since the last frame; before the first one nobody was expected."""
        before, there = self._were_there, set(self._workers)
        self._were_there = there
        for worker in sorted(there - (there if before is None else before)):
            self.note(f"worker {worker} is there", now_ms)
        for worker in sorted((before or set()) - there):
            told = f"is gone: no snapshot for {LIVE_MS // 1000} s" if worker in self._silent else "has left"
            self.note(f"worker {worker} {told}", now_ms)
        self._silent.clear()

    def _note_backends(self, backends: Iterable[BackendRow], now_ms: int) -> None:
        for backend in backends:
            was_up = self._were_up.get(backend.name)
            self._were_up[backend.name] = backend.is_up
            if was_up is not None and was_up != backend.is_up:
                told = "is up again" if backend.is_up else f"is down: {backend.reason or 'no reason is given'}"
                self.note(f"backend {backend.name} {told}", now_ms)

    def _gpu(self, card: _Card, now_ms: int) -> GpuRow:
        sample, age_s = card.sample, max(now_ms - card.at_ms, 0) / 1000
        stale = age_s > self.stale_after_s
        return GpuRow(
            uuid=sample.gpu.uuid,
            index=sample.gpu.index,
            name=sample.gpu.name,
            host=sample.gpu.host,
            used_bytes=sample.memory_used_bytes,
            total_bytes=sample.memory_total_bytes,
            utilization_ratio=sample.utilization_ratio,
            temperature_c=sample.temperature_c,
            pressure=None if stale or sample.lost or card.level is None else card.level.name,
            age_s=age_s,
            stale=stale,
            lost=sample.lost,
        )

    def _saw(self, place: str, offset: int) -> None:
        self._seen_through[place] = max(self._seen_through.get(place, -1), offset)

    def _lane_of(self, started: Started) -> Lane | None:
        try:
            return self.names.lane_of(started.tasks[0][1])
        except (IndexError, ValueError):
            return None

    @staticmethod
    def _by_name(found: Mapping[str, _Value]) -> list[_Value]:
        return [found[name] for name in sorted(found)]


def _worker(snapshot: WorkerSnapshot, at_ms: int, now_ms: int) -> WorkerRow:
    return WorkerRow(
        id=snapshot.worker,
        host=snapshot.host,
        pid=snapshot.pid,
        draining=snapshot.draining,
        waiting=sum(state.waiting for state in snapshot.lanes.values()),
        in_flight=len(snapshot.in_flight),
        age_s=max(now_ms - at_ms, 0) / 1000,
    )
