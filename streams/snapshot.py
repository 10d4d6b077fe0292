"""What a worker tells the others of itself: lanes, classes with what they wait for, backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import nsmallest

from schemas.progress import BackendStatus, ClassState, Gate, LaneState, Pace
from schemas.topics import Lane
from streams import deadlines
from streams.backends import BackendState
from streams.dispatcher import Batch, Dispatcher
from streams.pace import Gauge, Minute
from streams.task import Task
from streams.waiting import ClassKey, class_of
from streams.workers import Rate, rate_of

MOST_CLASSES = 256


@dataclass
class Describer:
    """Reads the Dispatcher, changes nothing in it, and remembers how long each gate has been shut and what was done lately.

    Times are monotonic seconds given by the caller.
    """

    dispatcher: Dispatcher
    _done: dict[Lane, Minute] = field(default_factory=lambda: {lane: Minute() for lane in Lane})
    _sent_tokens: dict[Lane, Minute] = field(default_factory=lambda: {lane: Minute() for lane in Lane})
    _gauges: dict[Lane, Gauge] = field(default_factory=lambda: {lane: Gauge() for lane in Lane})
    _all_lanes: Gauge = field(default_factory=Gauge)
    _rate: Rate = field(default_factory=Rate)
    _gates: dict[ClassKey, tuple[Gate, float]] = field(default_factory=dict)

    def finished(self, lane: Lane, *, now_s: float) -> None:
        """Take note of an outcome."""
        self._done[lane].add(1, now_s=now_s)

    def sent(self, batch: Batch, *, now_s: float) -> None:
        """Take note of a batch that left."""
        lane = batch.tasks[0].lane
        self._sent_tokens[lane].add(batch.tokens, now_s=now_s)
        for gauge in (self._gauges[lane], self._all_lanes):
            gauge.sent(len(batch.tasks), batch.tokens)

    def look(self, *, now_s: float) -> None:
        """Called each second: see which lanes have work that waits for a slot."""
        held_up = {lane: self._is_held_up(lane) for lane in Lane}
        for lane, gauge in self._gauges.items():
            gauge.look(waits=held_up[lane], now_s=now_s)
        self._all_lanes.look(waits=any(held_up.values()), now_s=now_s)
        self._rate = rate_of([self.pace(now_s=now_s)])

    def pace(self, lane: Lane | None = None, *, now_s: float) -> Pace:
        """Return a lane's pace, of all lanes together without one."""
        return (self._all_lanes if lane is None else self._gauges[lane]).pace(now_s=now_s)

    def cannot_be_met(self, task: Task, *, now_s: float) -> bool:
        """Whether the deadline of a task that was just accepted is out of reach.

        Not for one that was started before, or that does not wait for itself: it has its answer, or waits for that to an identical one.
        """
        count = self.dispatcher.waiting_counts.classes.get(class_of(task))
        if count is None or task not in count.members or task.attempts or task.hops:
            return False
        latencies = [each for state in self.dispatcher.backends.values() for each in state.latency_s.values()]
        # Answers differ in length: half of the mean is as good as none to count on.
        answer_s = min(min(latencies, default=0.0) / 2, task.deadline_s - now_s)
        if not deadlines.cannot_be_met(task.deadline_s - answer_s - now_s, count.tokens, self._rate):
            return False  # not even if all of them went first
        by_size = self.dispatcher.settings.scheduling.size_aware
        if by_size is None:
            by_size = task.lane in (Lane.NORMAL, Lane.LOW)
        others = count.members - {task}
        return deadlines.is_infeasible(task, others, self._rate, answer_s, by_size=by_size, now_s=now_s)

    def lanes(self, *, now_s: float) -> dict[str, LaneState]:
        running = dict.fromkeys(Lane, 0)
        for task in self.dispatcher.running:
            running[task.lane] += 1
        tokens = dict.fromkeys(Lane, 0)
        for key, count in self.dispatcher.waiting_counts.classes.items():
            tokens[key.lane] += count.tokens
        return {
            lane.value: LaneState(
                waiting=self.dispatcher.waiting(lane),
                in_flight=running[lane],
                oldest_wait_s=round(self.dispatcher.oldest_wait_s(lane, now_s), 1),
                done_per_minute=self._done[lane].total(now_s=now_s),
                tokens=tokens[lane],
                sent_tokens=self._sent_tokens[lane].total(now_s=now_s),
                weight=self.dispatcher.settings.lanes[lane].weight,
                pace=self.pace(lane, now_s=now_s),
            )
            for lane in Lane
        }

    def classes(self, *, now_s: float, to_ms: Callable[[float], int]) -> list[ClassState]:
        """Return the classes that have waited longest. `to_ms` turns a time into broker time."""
        counts = self.dispatcher.waiting_counts.classes
        oldest = nsmallest(MOST_CLASSES, counts, key=lambda key: counts[key].since_s)
        known, self._gates = self._gates, {}
        rows = []
        for key in oldest:
            gate = self.dispatcher.gate(key.lane, key.model, now_s=now_s)
            before = known.get(key)
            since_s = before[1] if before is not None and before[0] is gate else now_s
            self._gates[key] = (gate, since_s)
            count = counts[key]
            rows.append(ClassState(*key, waiting=count.tasks, tokens=count.tokens, gate=gate, since_ms=to_ms(since_s)))
        return rows

    def backends(self, *, now_s: float) -> list[BackendStatus]:
        return [self._backend(state, now_s) for state in self.dispatcher.backends.values()]

    def _is_held_up(self, lane: Lane) -> bool:
        """Whether a lane's work waits for nothing but a slot: a backend is up, and none that is has one for it."""
        if not self.dispatcher.waiting(lane):
            return False
        up = [state for state in self.dispatcher.backends.values() if state.up and not state.draining]
        return bool(up) and all(state.free(lane) == 0 for state in up)

    def _backend(self, state: BackendState, now_s: float) -> BackendStatus:
        latencies, gpus = state.latency_s.values(), state.settings.gpus
        owns_memory, pool_bytes = state.settings.kind == "vllm", state.settings.pool_bytes
        fleet = self.dispatcher.fleet
        level = fleet.pressure_of(gpus, now_s=now_s, owns_memory=owns_memory, pool_bytes=pool_bytes) if gpus else None
        return BackendStatus(
            name=state.name,
            kind=state.settings.kind,
            up=state.up,
            in_flight=state.busy,
            limit=state.limit,
            models=list(state.models),
            latency_ema_s=round(min(latencies), 3) if latencies else None,
            failure_ratio=round(state.failure_ratio, 3),
            draining=state.draining,
            reason=None if state.up else state.down_reason,
            paused=state.up and state.paused_until_s > now_s,
            pressure=None if level is None else level.name,
            any_model=state.settings.any_model,
            lost=fleet.lost(gpus, now_s=now_s),
            kept={lane.value: slots for lane, slots in _kept(state).items() if slots},
        )


def _kept(state: BackendState) -> dict[Lane, int]:
    """Return the free slots that a lane alone may use: what is free for it and not for those that have none of their own."""
    free = {lane: state.free(lane) for lane in Lane}
    return {lane: slots - min(free.values()) for lane, slots in free.items()}
