"""What a stream of statuses has told and what it has to tell next. Decisions only; the route beside it sends.

A task's newest status lies in a record: its start in the progress log, its outcome in the results log, of its partition number. A
stream tells them in the order of these records, so that two offsets per partition say what was told, to whichever gateway is asked next.
What has no such record yet is told first, in the order of the batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_PLACE = r"\d{1,4}:\d{1,19}-\d{1,19}"
_ID = re.compile(rf"(\d{{1,9}})/({_PLACE}(?:,{_PLACE})*)?")
_PROGRESS, _RESULTS = 0, 1


@dataclass(frozen=True, slots=True)
class Standing:
    """A task's newest status and the record that says it: `ended_offset` in the results log, else `started_offset` in the progress
    log, else -1 each. `index` is its place in its batch, 0 of a task by itself.
    """

    index: int
    task_id: str
    partition: int
    started_offset: int = -1
    ended_offset: int = -1

    @property
    def place(self) -> tuple[int, int, int] | None:
        """Return partition, log and offset of the record; None when there is none."""
        if self.ended_offset >= 0:
            return self.partition, _RESULTS, self.ended_offset
        return (self.partition, _PROGRESS, self.started_offset) if self.started_offset >= 0 else None


@dataclass
class Told:
    """What a stream has told. As text it is an event's id: `<announced>/<partition>:<progress offset>-<results offset>,…`.

    Offsets are the next ones; `announced` is one more than the highest index that was told without a record.
    """

    announced: int = 0
    offsets: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Told | None:
        """Return what an event's id says, None when it is none."""
        found = _ID.fullmatch(text)
        if found is None:
            return None
        told = cls(int(found[1]))
        for place in filter(None, (found[2] or "").split(",")):
            partition, _, offsets = place.partition(":")
            told.offsets[int(partition)] = [int(offset) for offset in offsets.split("-")]
        return told

    def __str__(self) -> str:
        places = (f"{partition}:{row[0]}-{row[1]}" for partition, row in sorted(self.offsets.items()))
        return f"{self.announced}/{','.join(places)}"

    def left(self, standings: Iterable[Standing]) -> list[Standing]:
        """Return what of these has not been told, in the order in which it is to be told."""
        return sorted(filter(self._is_new, standings), key=_turn)

    def tell(self, standing: Standing) -> None:
        """Take note that this was told, and so was all that comes before it."""
        row = self.offsets.setdefault(standing.partition, [0, 0])
        if standing.place is None:
            self.announced = max(self.announced, standing.index + 1)
        else:
            _, log, offset = standing.place
            row[log] = max(row[log], offset + 1)

    def _is_new(self, standing: Standing) -> bool:
        if standing.place is None:
            return standing.index >= self.announced
        partition, log, offset = standing.place
        return offset >= self.offsets.get(partition, [0, 0])[log]


def _turn(standing: Standing) -> tuple[int, tuple[int, ...]]:
    return (0, (standing.index,)) if standing.place is None else (1, standing.place)
