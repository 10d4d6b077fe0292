"""How fast work leaves for the backends while more of it waits: what a wait can be told from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.progress import Pace

MINUTE_S = 60.0


@dataclass
class Minute:
    """Sums of the last 60 s, kept by the second. Times are monotonic seconds given by the caller and never go back."""

    _seconds: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, amount: int, *, now_s: float) -> None:
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + amount)
        else:
            self._seconds.append((second, amount))
            self._forget(now_s)

    def total(self, *, now_s: float) -> int:
        self._forget(now_s)
        return sum(amount for _, amount in self._seconds)

    def _forget(self, now_s: float) -> None:
        while self._seconds and self._seconds[0][0] <= now_s - MINUTE_S:
            self._seconds.popleft()


@dataclass
class Gauge:
    """Counts what is sent, in spans from one look to the next, and keeps those of the last 60 s in which work had to wait all along.

    Work is taken to have waited all along when it does at both ends of a span. Of the other spans nothing can be told: there, what
    was sent is what was asked for, not what could have been served.
    """

    _spans: deque[tuple[float, Pace]] = field(default_factory=deque)
    _tasks: int = 0
    _tokens: int = 0
    _began_s: float | None = None

    def sent(self, tasks: int, tokens: int) -> None:
        self._tasks += tasks
        self._tokens += tokens

    def look(self, *, waits: bool, now_s: float) -> None:
        """End the span, and begin another. `waits`: work waits for a slot now."""
        if waits and self._began_s is not None and now_s > self._began_s:
            self._spans.append((now_s, Pace(self._tasks, self._tokens, now_s - self._began_s)))
        self._began_s = now_s if waits else None
        self._tasks = self._tokens = 0

    def pace(self, *, now_s: float) -> Pace:
        """Return the sum of the spans that ended within the last 60 s."""
        while self._spans and self._spans[0][0] <= now_s - MINUTE_S:
            self._spans.popleft()
        return together(pace for _, pace in self._spans)


def together(paces: Iterable[Pace]) -> Pace:
    """Return one after another's sum."""
    found = list(paces)
    return Pace(
        sum(pace.tasks for pace in found),
        sum(pace.tokens for pace in found),
        round(sum(pace.seconds for pace in found), 3),
    )
