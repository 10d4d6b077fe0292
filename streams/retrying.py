"""Tries within the worker: how many, how soon, and how much of the traffic they may be.

Source: full jitter from Brooker, Exponential Backoff and Jitter (AWS, 2015); the budget from Finagle's RetryBudget.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streams.errors import BackendError, ServingError

BASE_DELAY_S = 0.2
MOST_DELAY_S = 10.0
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
        if not self.enabled or not error.retriable or tries_left <= 0 or not self.budget.take():
            return None
        ceiling = min(BASE_DELAY_S * 2 ** max(attempts - 1, 0), MOST_DELAY_S)
        asked = error.retry_after_s if isinstance(error, BackendError) else None
        return max(self.rng.uniform(0, ceiling), asked or 0.0)
