"""How many tasks start before one, and how long that takes: told from what waits and from the pace at which it was sent lately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from schemas.progress import BackendStatus
from schemas.topics import Lane
from streams.workers import LaneTotals, Rate, Workers

SURE = 0.7
"""From this confidence on a request is refused for what its estimate says: about two dozen tasks were measured."""
# A pace that was told from fewer tasks says nothing of a lane.
_LEAST_COUNTED = 5
# Half the width of an interval, in standard deviations: eight of ten lie within 1.28 where errors are normal, and ours have longer tails.
_WIDTH = 1.6
# The demand of other lanes and the backends' speed change within a minute by about this much.
_DRIFT_RATIO = 0.1
# A call's duration spreads by about its half.
_SPREAD_RATIO = 0.5
# With a free slot: the lane's window, and what it takes to be fetched.
_SOON_S, _SOON_AT_MOST_S = 0.1, 0.5
_SOON_CONFIDENCE, _UNMEASURED_CONFIDENCE = 0.5, 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds until a task is sent to a backend: about `wait_s`, and for eight of ten between `low_s` and `high_s`.

    `confidence` in [0, 1] tells how much was measured: n tasks that were sent while others waited give n / (n + 10).
    """

    wait_s: float
    low_s: float
    high_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a task stands among the waiting of its lane: how many are older, and how many have an earlier deadline."""

    older: int
    due_earlier: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is expected to start before a task: in its own lane, and over all lanes."""

    in_lane: int
    tasks: int
    tokens: int

    @property
    def position(self) -> int:
        return 1 + self.tasks


def ahead(
    workers: Workers, lane: Lane, tenant: str, rank: Rank, waiting: Mapping[Lane, int], *, is_fetched: bool
) -> Ahead:
    """Return what starts before a task. `waiting` counts the tasks that wait in each lane, those still in Kafka included.

    Within its lane a task that a worker has fetched is served by deadline, one that is still in Kafka after those that must be
    fetched before it; of what is fetched, a tenant's tasks wait for as many of each other tenant's as come before them of its own.
    Of another lane as many tokens start meanwhile as the lanes' weights give it, and no more than wait there.
    """
    own = workers.lanes[lane]
    in_lane = _ahead_in_lane(own, tenant, rank, is_fetched=is_fetched)
    mean_tokens = _mean_tokens(own, workers)
    tasks, tokens = in_lane, in_lane * mean_tokens
    for other, totals in workers.lanes.items():
        if other is not lane:
            other_tokens = _mean_tokens(totals, workers)
            # Those of its own lane, and itself, are what the other lane's share is measured by.
            share = (in_lane + 1) * mean_tokens * totals.weight / own.weight / other_tokens
            started = waiting[other] if _is_above(other, lane) else 0
            if not workers.is_strict:
                started = min(waiting[other], round(share))
            tasks += started
            tokens += started * other_tokens
    return Ahead(in_lane, tasks, round(tokens))


def estimate(workers: Workers, lane: Lane, before: Ahead) -> Estimate | None:
    """Return when a task starts that waits for nothing but a slot; None where no backend is up, or nothing is known of their speed.

    A lane that had to wait lately goes on at its own pace, which has the other lanes' demand in it. For one that had not, what is
    ahead over all lanes is served at the pace of all. The wait ends with the departure after those ahead: n + 1 of them at rate μ,
    so (n + 1) / μ, with the variance of n + 1 departures, of the rate itself, and of what changes meanwhile.
    """
    up = [row for row in workers.backends.values() if row.up and not row.paused and not row.draining and not row.lost]
    if not up:
        return None
    if not workers.lanes[lane].is_held_up and before.in_lane == 0 and any(row.free(lane) for row in up):
        return Estimate(_SOON_S, 0.0, _SOON_AT_MOST_S, _SOON_CONFIDENCE)
    own, slots_per_s = (
        workers.lanes[lane].rate,
        sum((row.limit - _kept(row, lane)) / row.latency_ema_s for row in up if row.latency_ema_s),
    )
    if own.counted >= _LEAST_COUNTED:
        found = _from_rate(own, before.in_lane + 1, _confidence(own))
    elif workers.rate.counted >= _LEAST_COUNTED:
        found = _from_rate(workers.rate, before.tasks + 1, _confidence(workers.rate))
    elif slots_per_s:
        found = _from_rate(Rate(slots_per_s, 0.0, 1), before.tasks + 1, _UNMEASURED_CONFIDENCE)
    else:
        return None
    if not workers.lanes[lane].is_held_up:  # what waits may be gone the next moment: a second ago nothing had to
        return Estimate(found.wait_s, 0.0, max(found.high_s, _SOON_AT_MOST_S), found.confidence)
    return found


def after(delay_s: float, then: Estimate | None) -> Estimate | None:
    """Return the estimate of a task that joins the waiting only after `delay_s`."""
    if then is None:
        return None
    wait_s, low_s, high_s = (round(each + delay_s, 3) for each in (then.wait_s, then.low_s, then.high_s))
    return Estimate(wait_s, low_s, high_s, then.confidence)


def _from_rate(rate: Rate, departures: int, confidence: float) -> Estimate:
    wait_s = departures / rate.tasks_per_s
    variance = _SPREAD_RATIO**2 * (1 / departures + 1 / rate.counted) + _DRIFT_RATIO**2
    half_s = _WIDTH * wait_s * sqrt(variance)
    return Estimate(
        wait_s=round(wait_s, 3),
        low_s=round(max(wait_s - half_s, 0.0), 3),
        high_s=round(wait_s + half_s, 3),
        confidence=confidence,
    )


def _confidence(rate: Rate) -> float:
    return round(rate.counted / (rate.counted + 10), 2)


def _ahead_in_lane(lane: LaneTotals, tenant: str, rank: Rank, *, is_fetched: bool) -> int:
    fetched = max(lane.waiting - is_fetched, 0)  # besides itself
    due = min(rank.due_earlier, fetched) if is_fetched else rank.due_earlier
    among = min(due, fetched)
    if not among:
        return due if is_fetched else max(rank.older - fetched, due)
    # Of each tenant's fetched tasks as many stand before it as of all: their deadlines are taken to be alike.
    part = among / fetched
    own = (lane.tenants.get(tenant, 0) - (is_fetched and tenant in lane.tenants)) * part
    others = [count * part for name, count in lane.tenants.items() if name != tenant]
    untold = max(among - own - sum(others), 0)
    fair = round(own + untold + sum(min(count, own + 1) for count in others))
    expected = due - among + min(fair, among)
    return expected if is_fetched else max(rank.older - fetched, expected)


def _kept(backend: BackendStatus, lane: Lane) -> int:
    return backend.limit - backend.in_flight - backend.free(lane)


def _mean_tokens(lane: LaneTotals, workers: Workers) -> float:
    """Return what a task of a lane costs; like one of any lane where nothing is known, and 1 where nothing is known at all."""
    rate = workers.rate
    return lane.mean_tokens or (rate.tokens_per_s / rate.tasks_per_s if rate.tasks_per_s else 0.0) or 1.0


def _is_above(one: Lane, other: Lane) -> bool:
    order = list(Lane)
    return order.index(one) < order.index(other)
