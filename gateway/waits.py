"""Where a task stands among those that wait, how long that takes, and what has no chance to start in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import ceil
from typing import NamedTuple

from gateway import reasons
from gateway.fleet import Fleet
from gateway.ports import Logs
from gateway.problems import Kind, Problem
from gateway.submission import Submission
from gateway.view import Unfinished, View
from schemas.topics import TopicNames
from streams.deadlines import cannot_be_met
from streams.estimating import SURE, Estimate, ahead, estimate
from streams.explaining import SHUT, Explanation, explain, standing
from streams.settings import ModelSettings
from streams.workers import Workers


class Wait(NamedTuple):
    """A place, counted from 1, and when it starts; None where that is not known."""

    position: int | None = None
    estimate: Estimate | None = None


class Waits:
    """Told from the view and the workers' snapshots, while these are fresh. `models` are the settings'."""

    def __init__(
        self, topics: TopicNames, view: View, fleet: Fleet, logs: Logs, models: Sequence[ModelSettings] = ()
    ) -> None:
        self._topics, self._view, self._fleet, self._logs, self._models = topics, view, fleet, logs, models

    def of(self, entry: Unfinished) -> Wait:
        """Return how long a task waits that was not started."""
        now_ms = self._logs.now_ms
        if not entry.is_waiting or not self._fleet.is_fresh(now_ms):
            return Wait()
        asked, workers = reasons.entry_of(entry, self._topics), self._fleet.together(now_ms)
        before, guess = standing(asked, self._view.rank(entry), self._view.all_waiting, workers, now_ms=now_ms)
        return Wait(None if asked.next_try_ms is not None else before.position, guess)

    def explained(self, entry: Unfinished) -> Explanation:
        """Return why a task without an outcome stands where it does."""
        now_ms = self._logs.now_ms
        return explain(
            reasons.entry_of(entry, self._topics),
            self._view.rank(entry),
            self._view.all_waiting,
            self._fleet.together(now_ms),
            self._models,
            is_fresh=self._fleet.is_fresh(now_ms),
            now_ms=now_ms,
        )

    def of_next(self, made: Submission) -> Wait:
        """Return how long a request would wait that comes now. Raises: Problem 503 when its deadline cannot be met."""
        now_ms = self._logs.now_ms
        if not self._fleet.is_fresh(now_ms):
            return Wait()
        workers, waiting = self._fleet.together(now_ms), self._view.all_waiting
        rank = self._view.rank_of_next(made.lane, made.due_ms)
        before = ahead(workers, made.lane, made.tenant, rank, waiting, is_fetched=False)
        row = workers.class_of(made.lane, made.tenant, made.model, "")
        if row is not None and row.gate in SHUT:
            return Wait(before.position)
        found = Wait(before.position, estimate(workers, made.lane, before))
        if found.estimate is not None and self._is_infeasible(made, found.estimate, workers, now_ms):
            raise _infeasible(found.estimate, before.position, (made.due_ms - now_ms) / 1000)
        return found

    def _is_infeasible(self, made: Submission, found: Estimate, workers: Workers, now_ms: int) -> bool:
        """Whether a request that would come now ends as expired whatever happens.

        Those that must start before it: of the lane's backlog in Kafka what must be fetched first, and what is due before it by less
        than an answer takes. What is due earlier may expire without being served, and counts for nothing.
        """
        left_s = (made.due_ms - now_ms) / 1000
        if found.confidence < SURE or found.low_s <= left_s:
            return False
        lane, view = workers.lanes[made.lane], self._view
        due_before = view.due_before(made.lane, made.due_ms)
        in_kafka = view.waiting(made.lane) - due_before - lane.waiting
        answer_s = min(workers.fastest_s / 2, left_s)
        together = due_before - view.due_before(made.lane, made.due_ms - round(answer_s * 1000))
        return cannot_be_met(left_s - answer_s, max(in_kafka, together) * lane.mean_tokens, workers.rate)


def _infeasible(found: Estimate, position: int, left_s: float) -> Problem:
    return Problem(
        Kind.INFEASIBLE,
        f"it would start in {found.low_s:.1f} to {found.high_s:.1f} s, and is due in {left_s:.1f} s",
        headers={"Retry-After": str(max(ceil(found.low_s - left_s), 1))},
        position=position,
        estimate=asdict(found),
    )
