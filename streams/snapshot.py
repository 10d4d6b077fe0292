"""What a worker tells the others of itself: lanes, classes with what they wait for, backends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import nsmallest

from schemas.progress import BackendStatus, ClassState, Gate, LaneState
from schemas.topics import Lane
from streams.backends import BackendState
from streams.dispatcher import Dispatcher
from streams.waiting import ClassKey

MOST_CLASSES = 256
_MINUTE_S = 60.0


@dataclass
class Describer:
    """Reads the Dispatcher, changes nothing in it, and remembers how long each gate has been shut and what was finished lately.

    Times are monotonic seconds given by the caller.
    """

    dispatcher: Dispatcher
    _done: dict[Lane, deque[tuple[int, int]]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    _gates: dict[ClassKey, tuple[Gate, float]] = field(default_factory=dict)

    def finished(self, lane: Lane, *, now_s: float) -> None:
        """Take note of an outcome."""
        done, second = self._done[lane], int(now_s)
        if done and done[-1][0] == second:
            done[-1] = (second, done[-1][1] + 1)
        else:
            done.append((second, 1))
            self._forget_old(done, now_s)

    def lanes(self, *, now_s: float) -> dict[str, LaneState]:
        running = dict.fromkeys(Lane, 0)
        for task in self.dispatcher.running:
            running[task.lane] += 1
        return {
            lane.value: LaneState(
                waiting=self.dispatcher.waiting(lane),
                in_flight=running[lane],
                oldest_wait_s=round(self.dispatcher.oldest_wait_s(lane, now_s), 1),
                done_per_minute=self._done_per_minute(lane, now_s),
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

    def backends(self) -> list[BackendStatus]:
        return [_status(state) for state in self.dispatcher.backends.values()]

    def _done_per_minute(self, lane: Lane, now_s: float) -> int:
        done = self._done[lane]
        self._forget_old(done, now_s)
        return sum(count for _, count in done)

    @staticmethod
    def _forget_old(done: deque[tuple[int, int]], now_s: float) -> None:
        while done and done[0][0] <= now_s - _MINUTE_S:
            done.popleft()


def _status(state: BackendState) -> BackendStatus:
    latencies = state.latency_s.values()
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
    )
