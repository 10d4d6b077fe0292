"""Streams of statuses: every change of a task, or of the tasks of a batch, as the view reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway import rendering
from gateway.batches import FORGOTTEN, Batches
from gateway.callers import Caller
from gateway.events import Standing, Told
from gateway.finished import Finished
from gateway.problems import Kind, Problem
from gateway.tasks import Tasks
from gateway.view import Unfinished, View
from gateway.waiters import Waiters

KEEP_ALIVE_S = 15.0


class Event(NamedTuple):
    """A status and the id under which a stream goes on behind it."""

    id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Followed:
    """The tasks of one stream. `is_whole` False: more of them are on their way."""

    standings: Sequence[Standing]
    is_whole: bool


class Following:
    """The events route over one view, for one caller each. Raises, everywhere: Problem, and Unavailable while the view cannot tell."""

    def __init__(self, view: View, tasks: Tasks, batches: Batches, waiters: Waiters) -> None:
        self._view, self._tasks, self._batches, self._waiters = view, tasks, batches, waiters

    async def task(self, caller: Caller, task_id: str) -> Followed:
        """Return one task as it stands now."""
        return Followed([_standing(0, await self._tasks.found(caller, task_id))], is_whole=True)

    async def batch(self, caller: Caller, batch_id: str) -> Followed:
        """Return the tasks of a batch as they stand now."""
        members = await self._batches.members(caller, batch_id)
        remembered = [each for each in members if self._batches.state_of(caller, each) != FORGOTTEN]
        rows = [self._now(Standing(each.index, each.task_id, each.partition)) for each in remembered]
        if not rows:
            raise Problem(Kind.GONE, "its tasks are forgotten or past their retention")
        total = max(each.total for each in members)
        return Followed([row for row in rows if row is not None], is_whole=len(members) >= total)

    def has_ended(self, followed: Followed, told: Told) -> bool:
        """Whether there will never be anything more to tell."""
        return followed.is_whole and not told.left(followed.standings) and _have_ended(followed.standings)

    async def events(self, followed: Followed, told: Told) -> AsyncIterator[Event | None]:
        """Yield what `told` has not told, and every change from then on until all have ended; None when all is quiet for a while."""
        rows = {(each.task_id, each.partition): each for each in followed.standings}
        with self._waiters.watching(rows) as watch:
            # What came between the look and the watch.
            changed: Iterable[tuple[str, int]] = list(rows)
            while True:
                rows |= {key: now for key in changed if (now := self._now(rows[key])) is not None}
                for standing in told.left(rows[key] for key in changed):
                    found = self._found(standing)
                    # What has changed meanwhile is told in its turn.
                    if found is not None and _standing(standing.index, found) == standing:
                        told.tell(standing)
                        yield Event(str(told), await self._body(found))
                if _have_ended(rows.values()) or watch.is_closed:
                    return
                changed = await watch.changed(KEEP_ALIVE_S)
                if not changed:
                    yield None

    async def _body(self, found: Finished | Unfinished) -> dict[str, Any]:
        try:
            return await self._tasks.status_of(found)
        except Problem:  # its result is no longer there: the row says what is left to say
            return rendering.finished_status(found, {}) if isinstance(found, Finished) else {}

    def _now(self, standing: Standing) -> Standing | None:
        found = self._found(standing)
        return None if found is None else _standing(standing.index, found)

    def _found(self, standing: Standing) -> Finished | Unfinished | None:
        entry = self._view.unfinished((standing.task_id, standing.partition))
        if entry is not None:
            return entry
        rows = self._view.finished.find(standing.task_id)
        return next((row for row in rows if row.partition == standing.partition), None)


def _standing(index: int, found: Finished | Unfinished) -> Standing:
    if isinstance(found, Finished):
        return Standing(index, found.task_id, found.partition, ended_offset=found.offset)
    return Standing(index, found.task_id, found.partition, started_offset=found.started_offset)


def _have_ended(standings: Iterable[Standing]) -> bool:
    return all(each.ended_offset >= 0 for each in standings)
