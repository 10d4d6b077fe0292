"""What readers were told: the first record and nothing else, not before the log had it, and never a step back."""

from __future__ import annotations

from sys import intern

from tests.faults.checker.anomalies import Anomaly, Report
from tests.faults.checker.limits import Limits
from tests.faults.checker.tracks import ENDED, QUEUED, RANKS, UNKNOWN, Track
from tests.faults.history import Line


class Reads:
    """Fed with what each client was told, in the order of time, after the logs."""

    def __init__(self, limits: Limits, report: Report) -> None:
        self._slack_ms, self._report = limits.clock_slack_s * 1000, report
        self._floors: dict[tuple[str, str], tuple[int, float]] = {}  # of a task's second and later readers
        self.count = 0

    def acknowledged(self, line: Line, track: Track) -> None:
        """A client was told that its request is queued."""
        at_ms = line["at_ms"]
        if track.appended_ms is not None and at_ms < track.appended_ms - self._slack_ms:
            ahead_ms = track.appended_ms - at_ms
            self._report(Anomaly.EARLY, track.task_id, f"acknowledged {ahead_ms:.0f} ms before it was in the log")
        if track.reader is None:
            track.reader, track.floor, track.floor_ms = intern(line["who"]), QUEUED, at_ms

    def read(self, line: Line, track: Track | None) -> None:
        self.count += 1
        status = line["status"]
        rank = RANKS.get(status, ENDED)
        if track is None:
            if rank != UNKNOWN:
                self._report(Anomaly.PHANTOM, line["task"], f"told as {status}, and nobody asked for it")
            return
        tenant = line.get("tenant")
        if rank != UNKNOWN and tenant is not None and track.tenant not in (None, tenant):
            self._report(Anomaly.CROSSED, track.task_id, f"{tenant} was shown what is {track.tenant}'s")
            return
        if rank == ENDED:
            self._told(line, track)
        self._moves_on(line, track, rank)

    def _told(self, line: Line, track: Track) -> None:
        """Hold an outcome that a reader was told against the first record."""
        status, who, digest = line["status"], line["who"], line.get("digest")
        if track.outcome is None:
            self._report(Anomaly.EARLY, track.task_id, f"told as {status}, which the log does not have")
            return
        ahead_ms = track.outcome_ms - line["at_ms"]
        if ahead_ms > self._slack_ms:
            self._report(Anomaly.EARLY, track.task_id, f"told {ahead_ms:.0f} ms before the log had an outcome")
        if status != track.outcome:
            self._report(Anomaly.CHANGED, track.task_id, f"{who} was told {status}, the log says {track.outcome}")
        elif digest is not None and digest != track.digest:
            self._report(Anomaly.CHANGED, track.task_id, f"{who} was given another {status} than the first")

    def _moves_on(self, line: Line, track: Track, rank: int) -> None:
        who, at_ms = line["who"], line["at_ms"]
        if track.reader is None:
            track.reader = intern(who)
        mine = track.reader == who
        if mine:
            floor, floor_ms = track.floor, track.floor_ms
        else:
            floor, floor_ms = self._floors.get((who, track.task_id), (UNKNOWN, 0.0))
        if rank < floor and (line.get("asked_ms") or at_ms) >= floor_ms:
            self._report(Anomaly.REGRESS, track.task_id, f"{who} was told {line['status']} after a later status")
        if rank <= floor:
            return
        if mine:
            track.floor, track.floor_ms = rank, at_ms
        else:
            self._floors[who, track.task_id] = (rank, at_ms)
