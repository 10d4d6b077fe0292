"""Tries after a failure: within the worker, then through the retry topics; and what is parked there.

Within the worker: how many, how soon, and how much of the traffic they may be.

Source: full jitter from Brooker, Exponential Backoff and Jitter (AWS, 2015); the budget from Finagle's RetryBudget.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.topics import Lane, RetryTier
from streams.errors import BackendError, ServingError

BASE_DELAY_S = 0.2
MOST_DELAY_S = 10.0
# A server that asks for a longer pause gets it in a retry topic: a task that waits here holds its partition up.
MOST_IN_PLACE_S = 5.0
# A task that cannot be dispatched for this long, while others of its partition could, makes way for them.
PARKED_AFTER_S = 30.0
_SOON_S = 600.0
# Retries that a quiet worker may make before any traffic has earned them.
_BUDGET_FLOOR = 10.0
_BUDGET_CEILING = 100.0


@dataclass
class RetryBudget:
    """A share of traffic for retries: each call earns `ratio` of a retry, each retry takes one.

    With ratio 0.1 a flood of failures adds at most a tenth to the load of servers that already struggle.
    """

    ratio: float
    _credit: float = _BUDGET_FLOOR

    def earn(self) -> None:
        self._credit = min(self._credit + self.ratio, _BUDGET_CEILING)

    def take(self) -> bool:
        if self.ratio <= 0 or self._credit < 1:
            return False
        self._credit -= 1
        return True


@dataclass
class InPlaceRetries:
    """Decide whether and when a failed task is tried again within this worker."""

    enabled: bool
    budget: RetryBudget
    rng: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - jitter, not a secret

    def delay_s(self, error: ServingError, *, tries_left: int, attempts: int) -> float | None:
        """Return how long to wait before the next try, None when there is none.

        A uniform draw from [0, 0.2 s * 2^(attempts - 1)], at most 10 s: up to 0.2, 0.4, 0.8 s; never sooner than the server asked.
        """
        asked_s = asked_pause_s(error)
        if not self.enabled or not error.retriable or tries_left <= 0 or asked_s > MOST_IN_PLACE_S:
            return None
        if not self.budget.take():
            return None
        ceiling = min(BASE_DELAY_S * 2 ** max(attempts - 1, 0), MOST_DELAY_S)
        return max(self.rng.uniform(0, ceiling), asked_s)


def asked_pause_s(error: ServingError) -> float:
    """Return how long the server asked to be left alone, 0.0 when it said nothing."""
    return (error.retry_after_s or 0.0) if isinstance(error, BackendError) else 0.0


def next_tier(tiers: Sequence[RetryTier], hops: int, *, asked_s: float, left_s: float) -> RetryTier | None:
    """Return the retry topic of a task that has gone through `hops` of them; None: it has had its last try.

    The next one, or a later one where the server asked for a longer pause; `left_s` is the time to its deadline, and a try that
    would begin after that is none.
    """
    left = tiers[hops:]
    tier = next((each for each in left if each.delay_ms >= asked_s * 1000), left[-1] if left else None)
    return tier if tier is not None and tier.delay_ms < left_s * 1000 else None


def parking_tier(lane: Lane, left_s: float) -> RetryTier:
    """Return where a task waits that holds its partition up: not long when it is urgent or due within ten minutes."""
    urgent = lane in (Lane.CRITICAL, Lane.HIGH) or left_s <= _SOON_S
    return RetryTier.FIVE_SECONDS if urgent else RetryTier.SIXTY_SECONDS
