"""What came of the tasks of a run, counted as it goes."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from cli.simulation.arrivals import Arrival
from cli.simulation.fair import due_tokens
from schemas.result import Outcome
from schemas.topics import Lane
from streams.quantiles import quantile


def _times() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Tally:
    """Tasks of one lane or of one tenant in it. Times in seconds: `waits_s` from arrival to the first start, `totals_s` to the answer.

    `late` are tasks whose deadline passed without an answer, and those answered after it.
    """

    offered: int = 0
    ends: dict[Outcome, int] = field(default_factory=dict)
    late: int = 0
    waits_s: array[float] = field(default_factory=_times)
    totals_s: array[float] = field(default_factory=_times)
    tokens: int = 0

    def figures(self) -> dict[str, Any]:
        return {
            "offered": self.offered,
            "served": self.ends.get(Outcome.COMPLETED, 0),
            "expired": self.ends.get(Outcome.EXPIRED, 0),
            "failed": self.ends.get(Outcome.FAILED, 0),
            "unfinished": self.offered - sum(self.ends.values()),
            "late": self.late,
            "wait_s": _quantiles(self.waits_s),
            "total_s": _quantiles(self.totals_s),
            "tokens": self.tokens,
        }


@dataclass
class Account:
    """Every task of a run, by lane and by tenant within its lane."""

    lanes: dict[Lane, Tally] = field(default_factory=lambda: defaultdict(Tally))
    tenants: dict[tuple[Lane, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    ended_twice: int = 0
    _offered: dict[Lane, list[float]] = field(default_factory=lambda: defaultdict(list))
    _sent: dict[Lane, list[float]] = field(default_factory=lambda: defaultdict(list))

    def offered(self, arrival: Arrival) -> None:
        for tally in self._tallies(arrival):
            tally.offered += 1
        _add(self._offered[arrival.kind.lane], arrival.at_s, arrival.tokens)

    def started(self, arrival: Arrival, now_s: float) -> None:
        """Take note of a task's first start."""
        if arrival.started_s is None:
            arrival.started_s = now_s
            for tally in self._tallies(arrival):
                tally.waits_s.append(now_s - arrival.at_s)
            _add(self._sent[arrival.kind.lane], now_s, arrival.tokens)

    def ended(self, arrival: Arrival, outcome: Outcome, now_s: float) -> None:
        if arrival.is_over:
            self.ended_twice += 1
            return
        arrival.is_over = True
        if arrival.started_s is None:
            _add(self._offered[arrival.kind.lane], now_s, -arrival.tokens)
        for tally in self._tallies(arrival):
            tally.ends[outcome] = tally.ends.get(outcome, 0) + 1
            tally.late += arrival.due_s < now_s or outcome is Outcome.EXPIRED
            if outcome is Outcome.COMPLETED:
                tally.totals_s.append(now_s - arrival.at_s)
                tally.tokens += arrival.tokens

    def shares(self, weights: Mapping[Lane, int]) -> dict[Lane, tuple[float, float]]:
        """Return each lane's share of the tokens sent, and what it was due of them by its weight; {} when nothing was sent."""
        sent = {lane: sum(tokens) for lane, tokens in self._sent.items()}
        total = sum(sent.values())
        each_second = [sum(tokens) for tokens in zip_longest(*self._sent.values(), fillvalue=0.0)]
        due = due_tokens(self._offered, each_second, weights)
        return {lane: (sent.get(lane, 0.0) / total, due[lane] / total) for lane in self._offered} if total else {}

    def figures(self, weights: Mapping[Lane, int]) -> dict[str, Any]:
        shares = self.shares(weights)
        lanes: dict[str, Any] = {}
        for lane in (lane for lane in Lane if lane in self.lanes):
            lanes[lane.value] = self.lanes[lane].figures()
            share, due = shares.get(lane, (None, None))
            lanes[lane.value] |= {"share": _rounded(share), "due_share": _rounded(due)}
        rows: dict[str, Any] = {lane: {} for lane in lanes}
        for (lane, tenant), tally in sorted(self.tenants.items()):
            rows[lane.value][tenant] = tally.figures()
        return {"lanes": lanes, "tenants": {lane: row for lane, row in rows.items() if len(row) > 1}}

    def _tallies(self, arrival: Arrival) -> tuple[Tally, Tally]:
        kind = arrival.kind
        return self.lanes[kind.lane], self.tenants[kind.lane, kind.tenant]


def _add(seconds: list[float], at_s: float, tokens: float) -> None:
    second = int(at_s)
    seconds.extend([0.0] * (second + 1 - len(seconds)))
    seconds[second] += tokens


def _quantiles(values: array[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {name: _rounded(quantile(ordered, share)) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
