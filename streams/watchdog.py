"""Progress is judged by what is read while there is something to read: a process that is up may be deaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

STUCK_AFTER_S = 60.0


class Reading(NamedTuple):
    """A partition: it was read to `read_to` (the next offset), its records end at `end`; `has_room`: we would take more."""

    read_to: int
    end: int
    has_room: bool


@dataclass
class Watchdog:
    """Finds a partition that is not read on for a minute although records wait and there is room for them.

    A partition that is held up by this side (a full lane, a long span), or has nothing to read, is not stuck.
    """

    after_s: float = STUCK_AFTER_S
    _since: dict[int, tuple[int, float]] = field(default_factory=dict)
    _looked_s: float | None = None

    def look(self, readings: Mapping[int, Reading], *, now_s: float) -> int | None:
        """Return a partition that is stuck, None when there is none. Called every second or so."""
        # A process that was itself stopped for a while has read nothing meanwhile: its time begins anew.
        slept = self._looked_s is not None and now_s - self._looked_s > self.after_s / 4
        before, self._since, self._looked_s = {} if slept else self._since, {}, now_s
        for partition, (read_to, end, has_room) in readings.items():
            if not has_room or read_to >= end:
                continue
            known = before.get(partition)
            since_s = known[1] if known is not None and known[0] == read_to else now_s
            self._since[partition] = (read_to, since_s)
            if now_s - since_s >= self.after_s:
                return partition
        return None
