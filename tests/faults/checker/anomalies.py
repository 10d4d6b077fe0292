"""The ways in which a promise can be broken, each with the name it is reported under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

_EXAMPLES = 10


class Anomaly(StrEnum):
    """A broken promise."""

    LOST = "LOST"
    """Acknowledged, or in a lane's log, and without an outcome at the end."""
    CHANGED = "CHANGED"
    """A reader was told something else than the first record of the task says."""
    PHANTOM = "PHANTOM"
    """A result, or a request, that nobody asked for."""
    CROSSED = "CROSSED"
    """An answer or an outcome of another request or tenant."""
    EARLY = "EARLY"
    """Told before the log had it."""
    REGRESS = "REGRESS"
    """A status went back at one client."""
    OVERRUN = "OVERRUN"
    """A backend had more calls at once than its limit, or a call ran on after its deadline."""
    OVERCOMMIT = "OVERCOMMIT"
    """A commit went past a request that had neither an outcome nor a retry record."""
    STUCK = "STUCK"
    """A partition had requests, and its committed offset did not move."""
    UNDEAD_LETTERED = "UNDEAD-LETTERED"
    """A failed outcome without its dead letter before it (and so before the commit)."""
    LATE_DISPATCH = "LATE-DISPATCH"
    """A call began after its task's deadline."""
    UNCANCELLED = "UNCANCELLED"
    """A call went on although `cancelled` was its task's outcome."""
    ZOMBIE_WRITE = "ZOMBIE-WRITE"
    """A commit by a member of a generation that is over; without generations told by an offset that went back."""


Report = Callable[[Anomaly, str | None, str], None]
"""Takes an anomaly, the task if it is one task's, and what happened in words."""


@dataclass
class Finding:
    """How often an anomaly was met, and the first few times in words with the task, if it was one task's."""

    count: int = 0
    examples: list[tuple[str | None, str]] = field(default_factory=list)

    def add(self, task_id: str | None, detail: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((task_id, detail))
