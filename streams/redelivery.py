"""What a redelivered request is checked against besides outcomes: who started it, and who of them still lives.

A request is delivered again after a crash and after a rebalance. In the first case it must run again; in the second the worker that had
it goes on with its running call, and a second run would be work for nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.progress import Released, Started, WorkerSnapshot
from streams.task import Task, TaskKey

LIVE_MS = 5_000
GRACE_S = 1.0
_MOST_KEPT = 100_000
# Beyond this many, workers that have not been heard of lately are forgotten.
_MOST_PEERS = 64
_MOST_LEFT = 1_000


class Start(NamedTuple):
    """One start of a task. `ended`: its worker said that it came to nothing."""

    worker: str
    attempt: int
    at_ms: int
    ended: bool = False


@dataclass
class RecentEnds:
    """Tasks of which a terminal record was seen, the newest of them: what a due retry, and a late `started`, is checked against.

    At least half of `most` and at most `most`: the older half is forgotten at once. In order they would take three times the memory.
    A retry's request was committed in its lane long ago, so nothing says when its outcome may be forgotten. One that was forgotten
    costs a run for nothing: the first record in the log stays the outcome.
    """

    most: int = _MOST_KEPT
    _newer: set[int] = field(default_factory=set)
    _older: set[int] = field(default_factory=set)

    def add(self, key: TaskKey) -> None:
        if 2 * len(self._newer) >= self.most:
            self._older, self._newer = self._newer, set()
        # Not the id, of up to 128 characters; two alike of 100,000 are a matter of 1e-10.
        self._newer.add(hash(key))

    def __contains__(self, key: TaskKey) -> bool:
        return hash(key) in self._newer or hash(key) in self._older


@dataclass
class StartsIndex:
    """Starts of tasks that have no outcome yet, from the progress topic; the newest `most` tasks of them.

    Results and starts come by two logs: a start that is read after its task's outcome (in `ends`) is none.
    """

    ends: RecentEnds = field(default_factory=RecentEnds)
    most: int = _MOST_KEPT
    _starts: OrderedDict[TaskKey, tuple[Start, ...]] = field(default_factory=OrderedDict)

    def observe(self, started: Started, partition: int) -> None:
        """Take note of a batch. Feeding the same record twice changes nothing."""
        for task_id, _topic, _offset, attempt in started.tasks:
            key = (task_id, partition)
            known = self._starts.get(key, ())
            is_new = all((start.worker, start.attempt) != (started.worker, attempt) for start in known)
            if is_new and key not in self.ends:
                # In the order in which they were made: a log that is read again from further back brings older ones last.
                start = Start(started.worker, attempt, started.at_ms)
                self._starts[key] = tuple(sorted((*known, start), key=lambda each: (each.attempt, each.at_ms)))
        while len(self._starts) > self.most:
            self._starts.popitem(last=False)

    def released(self, record: Released, partition: int) -> None:
        """Take note of starts that came to nothing, as their worker said."""
        for task_id, _topic, _offset, attempt in record.released:
            key = (task_id, partition)
            if key in self._starts:
                self._starts[key] = tuple(
                    start._replace(ended=True) if (start.worker, start.attempt) == (record.worker, attempt) else start
                    for start in self._starts[key]
                )

    def ended(self, key: TaskKey) -> None:
        self._starts.pop(key, None)

    def release(self, partition: int) -> None:
        """Forget a partition number that is no longer followed."""
        for key in [key for key in self._starts if key[1] == partition]:
            del self._starts[key]

    def of(self, key: TaskKey, *, after_attempt: int = 0) -> Sequence[Start]:
        """Return a task's starts, oldest first, without those up to `after_attempt`: they ended, since a retry was written."""
        return [start for start in self._starts.get(key, ()) if start.attempt > after_attempt]

    def __len__(self) -> int:
        return len(self._starts)


@dataclass(frozen=True, slots=True)
class _Seen:
    appended_ms: int
    at_ms: int
    in_flight: frozenset[str]


@dataclass
class Peers:
    """The other workers, by their newest snapshots, and the newest of those that have said goodbye. `own` is this worker's id."""

    own: str
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _left: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _newest_ms: int = 0

    def observe(self, worker: str, snapshot: WorkerSnapshot | None, appended_ms: int) -> None:
        """Take note of a snapshot, also of this worker's own; None: its worker has gone."""
        self._newest_ms = max(self._newest_ms, appended_ms)
        if snapshot is None:
            self._seen.pop(worker, None)
            self._left[worker] = appended_ms
            if len(self._left) > _MOST_LEFT:
                self._left.popitem(last=False)
        elif worker != self.own:
            self._left.pop(worker, None)
            self._seen[worker] = _Seen(appended_ms, snapshot.at_ms, frozenset(snapshot.in_flight))
        if len(self._seen) > _MOST_PEERS:
            self._seen = {name: seen for name, seen in self._seen.items() if self.is_live(name, self._newest_ms)}

    def is_live(self, worker: str, now_ms: int) -> bool:
        """Whether a worker was heard of within five seconds, in broker time.

        Silence counts from the newest snapshot of anybody: while brokers are away nobody is heard of.
        """
        seen = self._seen.get(worker)
        return seen is not None and min(now_ms, self._newest_ms) - seen.appended_ms < LIVE_MS

    def runs(self, task_id: str, starts: Sequence[Start], now_ms: int) -> bool:
        """Whether a live worker still runs a task: its snapshot lists it, or is older than that worker's start of it."""
        if any(task_id in seen.in_flight and self.is_live(worker, now_ms) for worker, seen in self._seen.items()):
            return True
        if not starts or starts[-1].ended or not self.is_live(starts[-1].worker, now_ms):
            return False
        return self._seen[starts[-1].worker].at_ms <= starts[-1].at_ms

    def may_have_ended(self, starts: Sequence[Start], now_ms: int) -> bool:
        """Whether a task's last start may have a result that is not read yet: its worker lives, or said goodbye within five seconds."""
        if not starts or starts[-1].ended:
            return False
        worker = starts[-1].worker
        left_ms = self._left.get(worker)
        has_just_left = left_ms is not None and min(now_ms, self._newest_ms) - left_ms < LIVE_MS
        return has_just_left or self.is_live(worker, now_ms)

    def crashes(self, starts: Sequence[Start], now_ms: int) -> int:
        """Return how many workers started a task, said of no end, and are gone without a goodbye: each ended while it ran it.

        A worker that tried it several times ended the earlier tries itself.
        """
        last = {start.worker: start for start in starts}
        return sum(
            not start.ended and worker != self.own and worker not in self._left and not self.is_live(worker, now_ms)
            for worker, start in last.items()
        )

    def live(self, now_ms: int) -> int:
        """Return how many other workers live."""
        return sum(self.is_live(worker, now_ms) for worker in self._seen)


@dataclass(frozen=True)
class Redelivery:
    """Decides of a redelivered task whether it waits for another worker's result, and tells it how it has fared so far."""

    starts: StartsIndex
    peers: Peers

    def taken_in(self, task: Task, *, now_s: float, now_ms: int) -> bool:
        """Whether a task waits that was just delivered. The attempts it comes with have ended: a retry was written after them."""
        task.past_attempts = task.attempts
        starts = self._learn(task, now_ms)
        if self.peers.runs(task.task_id, starts, now_ms):
            task.not_before_s = math.inf
        else:
            task.not_before_s = now_s + GRACE_S if self.peers.may_have_ended(starts, now_ms) else now_s
        return now_s < task.not_before_s

    def still_waits(self, task: Task, *, now_s: float, now_ms: int) -> bool:
        """Whether a task goes on waiting: until a second after another worker was last seen to run it.

        Its worker's last word and its result come by two logs, so the result may be a moment behind. A start that came to nothing
        has none.
        """
        starts = self._learn(task, now_ms)
        if self.peers.runs(task.task_id, starts, now_ms):
            task.not_before_s = math.inf
        elif starts and starts[-1].ended:
            task.not_before_s = now_s
        elif task.not_before_s == math.inf:
            task.not_before_s = now_s + GRACE_S
        return now_s < task.not_before_s

    def _learn(self, task: Task, now_ms: int) -> Sequence[Start]:
        starts = self.starts.of(task.key, after_attempt=task.past_attempts)
        if starts:
            task.attempts = max(start.attempt for start in starts)
            task.crashes = self.peers.crashes(starts, now_ms)
        return starts
