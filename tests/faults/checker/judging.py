"""The judgement: one pass over a history's lines, an automaton per task.

The logs come first and say what is true; then every participant's lines are held against it. Time and memory grow with the number of
lines and of tasks: tasks are independent of each other, so nothing is searched.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from sys import intern

from tests.faults.checker.anomalies import Anomaly, Finding
from tests.faults.checker.calls import Calls
from tests.faults.checker.commits import Commits
from tests.faults.checker.faults import Faults
from tests.faults.checker.limits import Limits
from tests.faults.checker.reads import Reads
from tests.faults.checker.tracks import Track
from tests.faults.checker.verdict import Verdict
from tests.faults.history import Line, read_history

_BY_COMMITS = (Anomaly.OVERCOMMIT, Anomaly.STUCK, Anomaly.ZOMBIE_WRITE)
_BY_CALLS = (Anomaly.OVERRUN, Anomaly.LATE_DISPATCH, Anomaly.UNCANCELLED)
_BY_READS = (Anomaly.CHANGED, Anomaly.REGRESS)


def judge(folder: Path, limits: Limits | None = None) -> Verdict:
    """Return the verdict on a history. Raises: ValueError when one of its files is damaged or has a line nobody knows."""
    return judge_lines(read_history(folder), limits)


def judge_lines(lines: Iterable[Line], limits: Limits | None = None) -> Verdict:
    """Return the verdict on lines that come in the order of `history.read_history`."""
    judgement = Judgement(limits or Limits())
    collected = gc.isenabled()
    gc.disable()  # millions of tracks and no cycle among them
    try:
        start_s = time.process_time()
        judgement.feed(lines)
        verdict = judgement.verdict()
        verdict.judging_s = time.process_time() - start_s
        return verdict
    finally:
        if collected:
            gc.enable()


class Judgement:
    """Fed with lines, asked for the verdict once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._findings: dict[Anomaly, Finding] = {}
        self._faults = Faults()
        self._commits = Commits(limits, self._faults, self._report)
        self._reads = Reads(limits, self._report)
        self._calls = Calls(limits, self._faults, self._report)
        self._tracks: dict[str, Track] = {}
        self._twins: dict[tuple[str, int], Track] = {}  # ids met on a second partition number
        self._by_nonce: dict[str, Track] = {}
        self._outcomes_ms = array("d")
        self._counts: Counter[str] = Counter()
        self._unreadable: list[str] = []
        self._dumped: set[str] = set()
        self._now_ms = 0.0
        self._finished_ms: float | None = None

    def feed(self, lines: Iterable[Line]) -> None:
        handlers: dict[str, Callable[[Line], None]] = {
            "fault": self._faults.note,
            "request": self._request,
            "retry": self._retry,
            "dead": self._dead,
            "result": self._result,
            "started": self._started,
            "commit": self._commits.commit,
            "generation": self._commits.generation,
            "dumped": self._dumped_to_end,
            "submitted": self._submitted,
            "acknowledged": self._acknowledged,
            "unanswered": self._not_ok,
            "read": self._read,
            "unread": self._not_ok,
            "replayed": self._replayed,
            "backend": self._calls.backend,
            "began": self._began,
            "ended": self._calls.ended,
            "finished": self._finished,
            "note": lambda line: None,
        }
        for line in lines:
            handler = handlers.get(line["what"])
            if handler is None:
                raise ValueError(f"no line is called {line['what']!r}")
            handler(line)
            self._now_ms = line.get("at_ms", 0.0)

    def verdict(self) -> Verdict:
        end_ms = self._now_ms if self._finished_ms is None else self._finished_ms
        self._calls.close(end_ms)
        self._commits.close(end_ms)
        outcomes: Counter[str] = Counter()
        again = duplicates = 0
        for tracks in (self._tracks.values(), self._twins.values()):
            for track in tracks:
                self._end(track)
                outcomes[track.outcome or "none"] += 1
                again += max(track.runs - 1, 0)
                duplicates += max(track.results - 1, 0)
        tasks = len(self._tracks) + len(self._twins)
        operations = self._counts["submitted"] + self._reads.count + self._counts["unread"]
        ok_ratio = (self._counts["acknowledged"] + self._reads.count) / operations if operations else 0.0
        return Verdict(
            findings=self._findings,
            counts={
                "tasks": tasks,
                "acknowledged": self._counts["acknowledged"],
                "unanswered": self._counts["unanswered"],
                "reads": self._reads.count,
                "calls": self._calls.count,
                "run again": again,
                "results repeated": duplicates,
                "retry records": self._counts["retry"],
                "dead letters": self._counts["dead"],
                "commits": self._commits.count,
                "faults": len(self._faults),
            },
            invalid=self._invalid(operations, ok_ratio),
            unjudged=self._unjudged(),
            recoveries_s=self._faults.recoveries(sorted(self._outcomes_ms)),
            longest_stall_s=self._commits.longest_stall_ms / 1000,
            ok_ratio=ok_ratio,
            outcomes=dict(outcomes),
        )

    def _invalid(self, operations: int, ok_ratio: float) -> list[str]:
        reasons = [*self._faults.missing(), *self._unreadable]
        if not operations:
            reasons.append("no client did anything")
        elif ok_ratio < self._limits.ok_ratio:
            reasons.append(
                f"{ok_ratio:.1%} of the clients' operations were ok; at least {self._limits.ok_ratio:.0%} are asked"
            )
        if not self._dumped:
            reasons.append("no log was copied to its end")
        return reasons

    def _unjudged(self) -> dict[Anomaly, str]:
        """Return which anomalies nobody could have seen, so that a 0 is not taken for more than it is."""
        needs = (
            ("commits", self._commits.count, _BY_COMMITS),
            ("calls", self._calls.count, _BY_CALLS),
            ("reads", self._reads.count, _BY_READS),
        )
        return {
            anomaly: f"not judged: no {rows} in the history"
            for rows, count, anomalies in needs
            if not count
            for anomaly in anomalies
        }

    def _report(self, anomaly: Anomaly, task_id: str | None, detail: str) -> None:
        self._findings.setdefault(anomaly, Finding()).add(task_id, detail)

    # What is in the logs.

    def _request(self, line: Line) -> None:
        track = self._track(line["task"], line["partition"])
        if track.appended_ms is None:
            track.appended_ms = line["at_ms"]
            track.tenant = intern(line["tenant"])
            track.deadline_ms = line.get("deadline_ms")
            if (nonce := line.get("nonce")) is not None:
                track.nonce = nonce
                first = self._by_nonce.setdefault(nonce, track)
                first.shares_nonce = first.shares_nonce or first is not track
        else:
            track.again_ms = line["at_ms"]
        self._commits.add(line, track, is_retry=False)

    def _retry(self, line: Line) -> None:
        self._counts["retry"] += 1
        track = self._track(line["task"], line["partition"])
        track.hand_over(line["at_ms"])
        self._commits.add(line, track, is_retry=True)

    def _dead(self, line: Line) -> None:
        self._counts["dead"] += 1
        track = self._track(line["task"], line["partition"])
        if track.dead_ms is None:
            track.dead_ms = line["at_ms"]

    def _result(self, line: Line) -> None:
        task_id, number = line["task"], line["partition"]
        track = self._known(task_id, number)
        if track is None or track.appended_ms is None:
            self._report(
                Anomaly.PHANTOM, task_id, f"a result at {number}/{line['offset']} for which there is no request"
            )
            return
        self._belongs(line, track)
        track.results += 1
        if track.outcome is None:
            track.outcome = intern(line["outcome"])
            track.outcome_ms = line["at_ms"]
            track.digest = line["digest"]
            track.batch = line["batch"]
            self._outcomes_ms.append(line["at_ms"])
        elif (
            # Run again it may be answered otherwise; one batch answers each of its tasks once.
            line["batch"] == track.batch is not None
            and line["outcome"] == track.outcome == "completed"
            and line["digest"] != track.digest
        ):
            self._report(Anomaly.CHANGED, task_id, f"batch {track.batch} answered it in two ways")

    def _belongs(self, line: Line, track: Track) -> None:
        task_id = track.task_id
        if line["tenant"] != track.tenant:
            self._report(Anomaly.CROSSED, task_id, f"asked by {track.tenant}, its result is {line['tenant']}'s")
        if track.nonce is not None and line["outcome"] == "completed" and track.nonce not in (line["answer"] or ""):
            self._report(Anomaly.CROSSED, task_id, f"the answer at offset {line['offset']} is another request's")
        topic, number, offset = line["source"].rsplit("/", 2)
        asked = self._commits.at(topic, int(number), int(offset))
        if asked is None:
            self._report(Anomaly.PHANTOM, task_id, f"its result names {line['source']}, where no request is")
        elif asked is not track:
            self._report(Anomaly.CROSSED, task_id, f"its result names {line['source']}, the request of {asked.task_id}")

    def _started(self, line: Line) -> None:
        self._counts["started"] += len(line["tasks"])

    def _dumped_to_end(self, line: Line) -> None:
        self._dumped.add(line["topic"])
        if line["first"] > 0 and not line["topic"].startswith("__"):
            where = f"{line['topic']}/{line['partition']}"
            self._unreadable.append(f"the records of {where} below {line['first']} were gone before they were copied")

    # Who asked what and was told what.

    def _submitted(self, line: Line) -> None:
        self._counts["submitted"] += 1
        track = self._meant(line)
        if track is None:
            return
        track.asked = True
        if track.shares_nonce and "task" not in line:
            return  # one of several with this prompt, perhaps of several tenants
        if (tenant := line.get("tenant")) is not None and track.tenant not in (None, tenant):
            self._report(Anomaly.CROSSED, track.task_id, f"asked by {tenant}, in the log it is {track.tenant}'s")

    def _acknowledged(self, line: Line) -> None:
        self._counts["acknowledged"] += 1
        track = self._meant(line)
        if track is None:  # not in the log
            place = f"{line.get('topic')}/{line.get('partition')}/{line.get('offset')}"
            track = self._track(line.get("task", place), None)
        track.acknowledged = track.asked = True
        self._reads.acknowledged(line, track)

    def _not_ok(self, line: Line) -> None:
        self._counts[line["what"]] += 1

    def _replayed(self, line: Line) -> None:
        if (new := self._tracks.get(line.get("new", ""))) is not None:
            new.asked = True
        track = self._tracks.get(line["task"])
        if track is not None and track.again_ms > line["at_ms"] - self._limits.clock_slack_s * 1000:
            self._report(Anomaly.PHANTOM, track.task_id, "a replay asked for it again under its old id")

    def _read(self, line: Line) -> None:
        self._reads.read(line, self._known(line["task"], line.get("partition")))

    def _began(self, line: Line) -> None:
        self._calls.began(line, self._meant(line))

    def _finished(self, line: Line) -> None:
        self._finished_ms = line["at_ms"]

    # At the end.

    def _end(self, track: Track) -> None:
        if track.outcome is None:
            how = "acknowledged" if track.acknowledged else "in the log, not acknowledged"
            self._report(Anomaly.LOST, track.task_id, f"{how}, and no outcome")
        elif track.outcome == "failed":
            if track.dead_ms is None:
                self._report(Anomaly.UNDEAD_LETTERED, track.task_id, "failed, and no dead letter")
            elif track.dead_ms > track.outcome_ms:  # and so, if the result was, after the commit too
                late_ms = track.dead_ms - track.outcome_ms
                self._report(Anomaly.UNDEAD_LETTERED, track.task_id, f"dead letter {late_ms:.0f} ms after the result")
        if not track.asked and not self._asked_by_nonce(track):
            self._report(Anomaly.PHANTOM, track.task_id, "a request that nobody sent")

    def _asked_by_nonce(self, track: Track) -> bool:
        return track.nonce is not None and self._by_nonce[track.nonce].asked

    # Who is meant.

    def _track(self, task_id: str, partition: int | None) -> Track:
        """Return the task of this id and partition number, made where there is none; the first one met has the id for itself."""
        track = self._known(task_id, partition)
        if track is not None:
            return track
        track = Track(task_id, partition)
        if task_id not in self._tracks:
            self._tracks[task_id] = track
        elif partition is not None:
            self._twins[task_id, partition] = track
        return track

    def _known(self, task_id: str, partition: int | None) -> Track | None:
        track = self._tracks.get(task_id)
        if track is None or partition is None or track.partition == partition:
            return track
        return self._twins.get((task_id, partition))

    def _meant(self, line: Line) -> Track | None:
        """Return the task a participant's line is about: by its id, its place in a lane, or its nonce."""
        if (task_id := line.get("task")) is not None:
            return self._known(task_id, line.get("partition"))
        if (topic := line.get("topic")) is not None:
            return self._commits.at(topic, line["partition"], line["offset"])
        return self._by_nonce.get(line["nonce"])
