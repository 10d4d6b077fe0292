"""The planned faults of a run: whether each happened, when one was active, and how soon outcomes came again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any


@dataclass
class _Fault:
    phases: set[str] = field(default_factory=set)
    begun_ms: float | None = None
    ended_ms: float | None = None


@dataclass
class Faults:
    """Fed with the nemesis' lines before anything else is asked. A fault that was never ended is active for ever."""

    _faults: dict[str, _Fault] = field(default_factory=dict)
    _starts: list[float] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)
    _before: list[float] = field(default_factory=list)

    def note(self, line: dict[str, Any]) -> None:
        fault = self._faults.setdefault(line["fault"], _Fault())
        fault.phases.add(line["phase"])
        if line["phase"] == "begun":
            fault.begun_ms = line["at_ms"]
        elif line["phase"] == "ended":
            fault.ended_ms = line["at_ms"]
        self._starts.clear()

    def missing(self) -> list[str]:
        """Return in words which planned faults left no trace."""
        rows = []
        for name, fault in self._faults.items():
            if "begun" not in fault.phases:
                rows.append(f"the fault {name} was planned and never begun")
            elif "evidence" not in fault.phases:
                rows.append(f"the fault {name} left no evidence that it happened")
        return rows

    def calm_ms(self, start_ms: float, end_ms: float) -> float:
        """Return how much of a time no fault was active in; negative for a time that ends before it starts."""
        if not self._faults or end_ms <= start_ms:
            return end_ms - start_ms
        if not self._starts:
            self._merge()
        return end_ms - start_ms - self._active_until(end_ms) + self._active_until(start_ms)

    def recoveries(self, outcomes_ms: Sequence[float]) -> dict[str, float | None]:
        """Return, by fault, the seconds from its end to the next outcome in the log (ascending times); None: none came."""
        found: dict[str, float | None] = {}
        for name, fault in self._faults.items():
            over_ms = fault.ended_ms if fault.ended_ms is not None else fault.begun_ms
            if over_ms is not None:
                at = bisect_right(outcomes_ms, over_ms)
                found[name] = (outcomes_ms[at] - over_ms) / 1000 if at < len(outcomes_ms) else None
        return found

    def __len__(self) -> int:
        return len(self._faults)

    def _merge(self) -> None:
        """Make disjoint spans in ascending order, each with the active time before it."""
        self._ends, self._before = [], []
        active_ms = 0.0
        spans = [
            (fault.begun_ms, inf if fault.ended_ms is None else fault.ended_ms)
            for fault in self._faults.values()
            if fault.begun_ms is not None
        ]
        for start, end in sorted(spans):
            if self._ends and start <= self._ends[-1]:
                active_ms += max(end - self._ends[-1], 0.0)
                self._ends[-1] = max(end, self._ends[-1])
                continue
            self._starts.append(start)
            self._ends.append(end)
            self._before.append(active_ms)
            active_ms += end - start

    def _active_until(self, at_ms: float) -> float:
        number = bisect_right(self._starts, at_ms) - 1
        if number < 0:
            return 0.0
        return self._before[number] + min(at_ms, self._ends[number]) - self._starts[number]
