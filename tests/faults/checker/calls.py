"""Calls at the backends: how many at once, and whether each was begun and ended in time."""

from __future__ import annotations

from typing import Any

from tests.faults.checker.anomalies import Anomaly, Report
from tests.faults.checker.faults import Faults
from tests.faults.checker.limits import Limits
from tests.faults.checker.tracks import Track


class Calls:
    """Fed with the backends' lines in the order of time, after the logs. Only calls that run are kept."""

    def __init__(self, limits: Limits, faults: Faults, report: Report) -> None:
        self._limits, self._faults, self._report = limits, faults, report
        self._most: dict[str, int] = {}
        self._open: dict[str, dict[str, tuple[Track | None, float]]] = {}
        self.count = 0

    def backend(self, line: dict[str, Any]) -> None:
        """A backend (re)started: what it ran is over. `limit` None: there is none."""
        name = line["backend"]
        for call in list(self._open.get(name, ())):
            self._close(name, call, line["at_ms"])
        self._open[name] = {}
        if line.get("limit") is not None:
            self._most[name] = line["limit"]

    def began(self, line: dict[str, Any], track: Track | None) -> None:
        name, at_ms = line["backend"], line["at_ms"]
        self.count += 1
        if track is not None and track.shares_nonce and "task" not in line:
            track = None
        running = self._open.setdefault(name, {})
        running[line["call"]] = (track, at_ms)
        if len(running) > self._most.get(name, len(running)):
            task_id = track.task_id if track else None
            self._report(
                Anomaly.OVERRUN, task_id, f"call {len(running)} at once at {name}, whose limit is {self._most[name]}"
            )
        if track is None:
            return
        track.runs += 1
        if track.deadline_ms is not None:
            late_ms = self._faults.calm_ms(track.deadline_ms, at_ms)
            if late_ms > self._limits.late_s * 1000:
                self._report(
                    Anomaly.LATE_DISPATCH, track.task_id, f"dispatched to {name} {late_ms:.0f} ms after its deadline"
                )

    def ended(self, line: dict[str, Any]) -> None:
        self._close(line["backend"], line["call"], line["at_ms"])

    def close(self, at_ms: float) -> None:
        """Judge what still runs at the end as if it ended then."""
        for name, running in self._open.items():
            for call in list(running):
                self._close(name, call, at_ms)

    def _close(self, name: str, call: str, at_ms: float) -> None:
        track, began_ms = self._open.get(name, {}).pop(call, (None, 0.0))
        if track is None:
            return
        if track.deadline_ms is not None:
            over_ms = self._faults.calm_ms(track.deadline_ms, at_ms)
            if over_ms > self._limits.grace_s * 1000:
                self._report(Anomaly.OVERRUN, track.task_id, f"ran at {name} until {over_ms:.0f} ms after its deadline")
        if track.outcome == "cancelled":
            on_ms = self._faults.calm_ms(max(began_ms, track.outcome_ms), at_ms)
            if on_ms > self._limits.cancel_s * 1000:
                self._report(
                    Anomaly.UNCANCELLED, track.task_id, f"ran on at {name} for {on_ms:.0f} ms after it was cancelled"
                )
