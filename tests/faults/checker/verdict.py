"""What the checker says in the end: a table for people, a document for machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.faults.checker.anomalies import Anomaly, Finding

_SHOWN = 3


def at_most(count: int) -> float | None:
    """Return the share that is not exceeded at 95 % when 0 of `count` were met: 3/count, the rule of three; None for none.

    3 of 3,000 is 0.001. Source: Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 1983.
    """
    return min(1.0, 3 / count) if count else None


@dataclass
class Verdict:
    """`invalid` says why the run proves nothing; `unjudged` which anomalies could not have been seen, and why."""

    findings: dict[Anomaly, Finding]
    counts: dict[str, int]
    invalid: list[str]
    unjudged: dict[Anomaly, str]
    recoveries_s: dict[str, float | None]
    longest_stall_s: float
    ok_ratio: float
    judging_s: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def word(self) -> str:
        if self.findings:
            return "FAILED"
        return "INVALID" if self.invalid else "PASSED"

    @property
    def passed(self) -> bool:
        return self.word == "PASSED"

    @property
    def names(self) -> set[str]:
        """Return the names of the anomalies that were met."""
        return {anomaly.value for anomaly in self.findings}

    @property
    def bound(self) -> float | None:
        """Return what share of tasks an anomaly that was not met has at most, at 95 %."""
        return at_most(self.counts["tasks"])

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.word,
            "invalid": self.invalid,
            "anomalies": {
                anomaly.value: {
                    "count": finding.count,
                    "examples": [{"task": task, "detail": detail} for task, detail in finding.examples],
                }
                for anomaly, finding in self.findings.items()
            },
            "unjudged": {anomaly.value: why for anomaly, why in self.unjudged.items()},
            "outcomes": self.outcomes,
            "counts": self.counts,
            "ok_ratio": round(self.ok_ratio, 4),
            "at_most_ratio_95": self.bound,
            "longest_stall_s": round(self.longest_stall_s, 3),
            "recoveries_s": self.recoveries_s,
            "judging_s": round(self.judging_s, 2),
        }

    def table(self) -> str:
        rows = [f"{'verdict':<18}{self.word}", *(f"{'':<18}{reason}" for reason in self.invalid)]
        counts = {**self.counts, **{f"  {name}": count for name, count in sorted(self.outcomes.items())}}
        rows += [f"{name:<18}{count:>12,}" for name, count in counts.items()]
        rows += [
            f"{'operations ok':<18}{self.ok_ratio:>12.1%}",
            f"{'longest stall':<18}{self.longest_stall_s:>10.1f} s",
        ]
        healed = [taken for taken in self.recoveries_s.values() if taken is not None]
        if self.recoveries_s:
            last = f"{max(healed):.1f} s at most until the next outcome" if healed else "no outcome after any"
            rows.append(f"{'recovery':<18}{len(healed)} of {len(self.recoveries_s)} faults, {last}")
        rows += [row for anomaly in Anomaly for row in self._rows(anomaly)]
        rows.append(f"judged in {self.judging_s:.1f} s of CPU")
        return "\n".join(rows)

    def _rows(self, anomaly: Anomaly) -> list[str]:
        finding = self.findings.get(anomaly)
        if finding is None:
            bound = "" if self.bound is None else f"  at most {self.bound:.2g} of all tasks, at 95 %"
            return [
                f"{anomaly.value:<18}{0:>12}{bound if anomaly not in self.unjudged else '  ' + self.unjudged[anomaly]}"
            ]
        shown = [f"    {task or ''} {detail}".rstrip() for task, detail in finding.examples[:_SHOWN]]
        return [f"{anomaly.value:<18}{finding.count:>12,}  <<<", *shown]
