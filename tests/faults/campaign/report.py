"""What a campaign says in the end: the checker's table, and what it has no eye for."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from tests.faults.checker import Anomaly, Verdict
from tests.faults.history import Line


@dataclass(frozen=True)
class Report:
    """`answered_s`: by fault, seconds from its beginning until each partition had answered something asked after it; None: never.
    `ended_alone`: exit statuses of processes that ended unasked; `overdue`: how often one ended too late after SIGTERM,
    `late`: how often one was not ready in time.
    `silent_s`: the longest time between two tasks that completed. `lag_s`: how late the harness itself was at most."""

    verdict: Verdict
    seed: int
    load_s: float
    kinds: Mapping[str, str]
    left_out: Sequence[str]
    answered_s: Mapping[str, float | None]
    silent_s: float
    twice_count: int
    ended_alone: Mapping[str, Sequence[int]]
    overdue: Mapping[str, int]
    late: Mapping[str, int]
    is_drained: bool
    lag_s: float

    @property
    def passed(self) -> bool:
        return self.verdict.passed and self.is_drained and not (self.ended_alone or self.overdue or self.late)

    def as_json(self) -> dict[str, Any]:
        return self.verdict.as_json() | {
            "seed": self.seed,
            "load_s": round(self.load_s, 1),
            "longest_without_completed_s": round(self.silent_s, 3),
            "answered_twice": self.twice_count,
            "answered_again_s": self.answered_s,
            "ended_by_itself": {name: list(codes) for name, codes in self.ended_alone.items()},
            "ended_too_late": dict(self.overdue),
            "ready_too_late": dict(self.late),
            "drained": self.is_drained,
            "left_out": list(self.left_out),
            "harness_late_s": round(self.lag_s, 3),
        }

    def table(self) -> str:
        tasks = self.verdict.counts["tasks"]
        share = self.twice_count / tasks if tasks else 0.0
        found = self.verdict.findings
        counts = {name: found[name].count if name in found else 0 for name in (Anomaly.LOST, Anomaly.CHANGED)}
        rows = [
            self.verdict.table(),
            "",
            f"{'load':<18}{self.load_s:>10.0f} s  {tasks / self.load_s:.0f} tasks a second, seed {self.seed}",
            f"{'lost, changed':<18}{counts[Anomaly.LOST]:>12,}, {counts[Anomaly.CHANGED]:,}",
            f"{'none completed':<18}{self.silent_s:>10.1f} s  at most, during faults too; the longest stall above is outside them",
            f"{'answered twice':<18}{self.twice_count:>12,}  {share:.2%} of the tasks: run again though a backend had answered",
            f"{'drained':<18}{'yes' if self.is_drained else 'NO: tasks or commits were open when the time was up':>12}",
        ]
        rows.append(
            f"{'harness late':<18}{self.lag_s:>10.2f} s  at most: so much later everything may be that is bounded"
        )
        if self.left_out:
            rows.append(
                f"{'faults left out':<18}{len(self.left_out):>12}  their turn came too late: {', '.join(self.left_out)}"
            )
        alone = Counter(f"{name} with {code}" for name, codes in self.ended_alone.items() for code in codes)
        rows += [f"{'ended by itself':<18}{count:>12}  {what}" for what, count in sorted(alone.items())]
        rows += [f"{'ended too late':<18}{count:>12}  {name}" for name, count in sorted(self.overdue.items())]
        rows += [f"{'ready too late':<18}{count:>12}  {name}" for name, count in sorted(self.late.items())]
        rows += [
            "",
            f"{'faults':<18}{'count':>6}{'p50':>9}{'max':>9}   until all partitions answered what came after its beginning",
        ]
        return "\n".join([*rows, *self._by_kind()])

    def _by_kind(self) -> Iterable[str]:
        by_kind: defaultdict[str, list[float]] = defaultdict(list)
        for name, taken_s in self.answered_s.items():
            by_kind[self.kinds[name]].append(math.inf if taken_s is None else taken_s)
        for kind, taken in sorted(by_kind.items()):
            yield f"{kind:<18}{len(taken):>6}{median(taken):>7.1f} s{max(taken):>7.1f} s"


def silent_s(lines: Iterable[Line]) -> float:
    """Return the longest time between two `completed` results in the log, 0 where there are fewer.

    Gateways expire tasks also while no worker gets anywhere.
    """
    times_ms = sorted(line["at_ms"] for line in lines if line["what"] == "result" and line["outcome"] == "completed")
    return max((later - earlier for earlier, later in pairwise(times_ms)), default=0.0) / 1000


def answered_again(lines: Iterable[Line], partitions: int) -> tuple[dict[str, str], dict[str, float | None]]:
    """Return each fault's kind, and how long after its beginning every partition had answered something asked after that."""
    kinds: dict[str, str] = {}
    begun_ms: dict[str, float] = {}
    appended_ms: dict[tuple[str, int, int], float] = {}
    results: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        if line["what"] == "fault":
            kinds[line["fault"]] = line["kind"]
            if line["phase"] == "begun":
                begun_ms[line["fault"]] = line["at_ms"]
        elif line["what"] == "request":
            appended_ms[line["topic"], line["partition"], line["offset"]] = line["at_ms"]
        elif line["what"] == "result":
            topic, number, offset = line["source"].rsplit("/", 2)
            asked_ms = appended_ms.get((topic, int(number), int(offset)), 0.0)
            results[line["partition"]].append((line["at_ms"], asked_ms))
    for rows in results.values():
        rows.sort()
    times = {name: [_first_after(results[number], ms) for number in range(partitions)] for name, ms in begun_ms.items()}
    return kinds, {name: None if math.inf in found else max(found) for name, found in times.items()}


def _first_after(rows: Sequence[tuple[float, float]], begun_ms: float) -> float:
    for at_ms, asked_ms in rows[bisect_right(rows, (begun_ms, math.inf)) :]:
        if asked_ms > begun_ms:
            return (at_ms - begun_ms) / 1000
    return math.inf
