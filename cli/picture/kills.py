"""Processes that the demo's user killed on purpose, and how the rest got over it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from cli.picture.marks import seconds
from schemas.result import Outcome, Result


@dataclass
class Kill:
    """A killed process. Times are broker milliseconds, None until it has happened.

    `pid` was its own; `again_before` counts what had been run again by then. `open_ids`: the tasks without an outcome at that
    moment, `running` of them at a backend. `back_ms`: its successor was ready. `answered_ms`: the first answer whose task was
    started afterwards. `settled_ms`: each of `open_ids` has its outcome.
    """

    name: str
    pid: int
    at_ms: int
    open_ids: frozenset[str]
    running: int
    again_before: int = 0
    back_ms: int | None = None
    answered_ms: int | None = None
    settled_ms: int | None = None

    def result(self, result: Result, appended_ms: int) -> None:
        """Take note of a result."""
        started_ms = result.timing.dispatched_at_ms or 0
        if self.answered_ms is None and result.outcome is Outcome.COMPLETED and started_ms >= self.at_ms:
            self.answered_ms = appended_ms

    def settle(self, open_ids: Set[str], now_ms: int) -> bool:
        """Take note of the tasks that are open now; return whether the last of the kill's own has ended with this."""
        if self.settled_ms is not None or not self.open_ids.isdisjoint(open_ids):
            return False
        self.settled_ms = now_ms
        return True

    def lost(self, open_ids: Set[str]) -> int:
        """Return how many of its open tasks still have no outcome."""
        return len(self.open_ids & open_ids)

    def begun(self) -> str:
        """Return what to say when it happens."""
        heir = "go to its successor" if self.name.startswith("worker") else "are tried again"
        return f"{self.name} killed (SIGKILL): {self.running} running tasks {heir}"

    def back(self) -> str:
        """Return what to say when its successor is ready."""
        return f"{self.name} is back after {self._after(self.back_ms)}"

    def settled(self, again: int) -> str:
        """Return what to say when its open tasks have ended; `again` counts what has been run again by now."""
        told = f"{again - self.again_before} run again"
        return f"{len(self.open_ids)} tasks were open when {self.name} was killed: 0 lost, {told}"

    def recap(self, open_ids: Set[str]) -> str:
        """Return a sentence for the end."""
        back = "it was not back" if self.back_ms is None else f"back after {self._after(self.back_ms)}"
        lost, count = self.lost(open_ids), len(self.open_ids)
        end = f"{lost} of {count} open tasks have no outcome" if lost else f"of {count} open tasks 0 were lost"
        return f"{self.name} was killed: {back}, first new answer after {self._after(self.answered_ms)}; {end}."

    def _after(self, at_ms: int | None) -> str:
        return seconds(None if at_ms is None else max(at_ms - self.at_ms, 0) / 1000)
