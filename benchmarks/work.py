"""A backlog and a steady stream of urgent tasks, and what came of them: what `benchmarks.priority` asks of each contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness import percentile
from schemas.topics import Lane


@dataclass(frozen=True)
class Work:
    """`backlog` tasks per lane that wait at the start, and `rate` critical ones per second for `seconds`."""

    rate: float
    seconds: float
    backlog: Mapping[Lane, int] = field(default_factory=dict)
    warm_up_s: float = 2.0


@dataclass(frozen=True)
class Figures:
    """Of the paced critical tasks: milliseconds from when one was due to its answer, and to its start. `served`: answers in the seconds."""

    totals_ms: Sequence[float]
    waits_ms: Sequence[float]
    served: Mapping[Lane, int]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(self.served.values()) / self.seconds

    @property
    def shares(self) -> dict[Lane, float]:
        total = sum(self.served.values())
        return {lane: count / total for lane, count in self.served.items() if count} if total else {}

    def __str__(self) -> str:
        times = "  ".join(
            f"{name} p50 {percentile(values, 0.5):6.1f} p99 {percentile(values, 0.99):7.1f} ms"
            for name, values in (("wait", self.waits_ms), ("total", self.totals_ms))
            if values
        )
        shares = ", ".join(f"{lane.value} {share:.1%}" for lane, share in self.shares.items())
        return f"{times or 'no critical'}  {self.rate:5.0f} tasks/s: {shares}"
