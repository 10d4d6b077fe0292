"""Commits: whether each went past finished requests only, went forward, and came in time."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from math import inf

from tests.faults.checker.anomalies import Anomaly, Report
from tests.faults.checker.faults import Faults
from tests.faults.checker.limits import Limits
from tests.faults.checker.tracks import Track
from tests.faults.history import Line


class Place:
    """A partition of a lane or of a retry tier: its records in offset order, and the commits of its group."""

    __slots__ = ("appended_ms", "committed", "due_ms", "is_retry", "judged", "moved_ms", "offsets", "tracks")

    def __init__(self, *, is_retry: bool) -> None:
        self.is_retry = is_retry
        self.offsets = array("q")
        self.appended_ms = array("d")
        self.due_ms = array("d")  # a retry record may not be run before
        self.tracks: list[Track] = []
        self.judged = 0  # so many records lie below the highest commit
        self.committed = 0
        self.moved_ms = 0.0

    def add(self, line: Line, track: Track) -> None:
        self.offsets.append(line["offset"])
        self.appended_ms.append(line["at_ms"])
        self.due_ms.append(line.get("due_ms") or line["at_ms"])
        self.tracks.append(track)

    def at(self, offset: int) -> Track | None:
        """Return whose record is at an offset."""
        number = bisect_left(self.offsets, offset)
        return self.tracks[number] if number < len(self.offsets) and self.offsets[number] == offset else None

    def passed(self, offset: int) -> range:
        """Return the numbers of the records that a commit of `offset` goes past first, and take note of them."""
        first, self.judged = self.judged, bisect_left(self.offsets, offset)
        return range(first, self.judged)

    def waiting_since_ms(self) -> float | None:
        """Return since when the oldest uncommitted record waits for the commit to move; None: there is none."""
        if self.judged >= len(self.offsets):
            return None
        return max(self.moved_ms, self.due_ms[self.judged])

    def handed_ms(self, number: int) -> float:
        """Return when a record was handed over to a retry record after it, `inf` when it was not."""
        handed = self.tracks[number].handed_ms
        if handed is None:
            return inf
        since_ms = self.appended_ms[number] if self.is_retry else -inf
        return min((at_ms for at_ms in handed if at_ms > since_ms), default=inf)


class Commits:
    """Fed with the lanes' and retry tiers' records, and with the commits once every result is known."""

    def __init__(self, limits: Limits, faults: Faults, report: Report) -> None:
        self._stuck_ms, self._slack_ms = limits.stuck_s * 1000, limits.clock_slack_s * 1000
        self._faults, self._report = faults, report
        self._places: dict[tuple[str, int], Place] = {}
        self._generations: dict[str, int] = {}
        self.count = 0
        self.longest_stall_ms = 0.0

    def add(self, line: Line, track: Track, *, is_retry: bool) -> None:
        """Take note of a record that a group reads; those of a partition come in offset order."""
        where = (line["topic"], line["partition"])
        place = self._places.get(where)
        if place is None:
            place = self._places[where] = Place(is_retry=is_retry)
        place.add(line, track)

    def at(self, topic: str, partition: int, offset: int) -> Track | None:
        """Return whose record is at a place."""
        place = self._places.get((topic, partition))
        return place.at(offset) if place else None

    def generation(self, line: Line) -> None:
        self._generations[line["group"]] = line["generation"]

    def commit(self, line: Line) -> None:
        self.count += 1
        where = f"{line['topic']}/{line['partition']}"
        generation, newest = line.get("generation"), self._generations.get(line["group"], 0)
        if generation is not None and generation < newest:
            self._report(Anomaly.ZOMBIE_WRITE, None, f"{where}: committed in generation {generation}, it is {newest}")
        place = self._places.get((line["topic"], line["partition"]))
        if place is None or line["offset"] == place.committed:
            return
        offset, at_ms = line["offset"], line["at_ms"]
        if offset < place.committed:
            self._report(Anomaly.ZOMBIE_WRITE, None, f"{where}: committed {offset} after {place.committed}")
            return
        self._stood_still(where, place, at_ms)
        for number in place.passed(offset):
            self._passed(place, number, f"{where}/{place.offsets[number]}", at_ms)
        place.committed, place.moved_ms = offset, at_ms

    def close(self, at_ms: float) -> None:
        """Judge what is uncommitted at the end. Without any commit in the history nothing can be said."""
        if self.count:
            for (topic, partition), place in self._places.items():
                self._stood_still(f"{topic}/{partition}", place, at_ms)

    def _passed(self, place: Place, number: int, where: str, at_ms: float) -> None:
        """Judge the first commit that went past a request."""
        track, known_ms = place.tracks[number], at_ms + self._slack_ms
        handed_ms = place.handed_ms(number)
        if handed_ms <= known_ms:
            return  # what becomes of it is the retry record's business
        done_ms = min(handed_ms, track.outcome_ms)
        if done_ms > known_ms:
            later = "for ever" if done_ms == inf else f"for {done_ms - at_ms:.0f} ms more"
            self._report(Anomaly.OVERCOMMIT, track.task_id, f"committed past {where}, which was open {later}")

    def _stood_still(self, where: str, place: Place, until_ms: float) -> None:
        since_ms = place.waiting_since_ms()
        if since_ms is None:
            return
        stall_ms = self._faults.calm_ms(since_ms, until_ms)
        self.longest_stall_ms = max(stall_ms, self.longest_stall_ms)
        if stall_ms > self._stuck_ms:
            detail = f"{where} stood at {place.committed} for {stall_ms / 1000:.1f} s"
            self._report(Anomaly.STUCK, place.tracks[place.judged].task_id, detail)
