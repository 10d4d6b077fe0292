"""Broker time: the only clock that processes share, kept as a distance from this process's monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

# An acknowledgement comes after the append, so each estimate is late by the way back; the largest of a stretch is the best of it.
_STRETCH_S = 10.0


@dataclass
class BrokerClock:
    """Turns monotonic seconds into broker milliseconds, from produce acknowledgements (the topics use LogAppendTime).

    A step of this machine's wall clock changes nothing. `is_set` is False before the first acknowledgement.
    """

    _best_ms: float | None = None
    _previous_ms: float | None = None
    _since_s: float = 0.0

    @property
    def is_set(self) -> bool:
        return self._best_ms is not None

    def observe(self, appended_ms: int, *, now_s: float) -> None:
        """Take note that the broker's clock stood at `appended_ms` a moment before `now_s`."""
        offset_ms = appended_ms - now_s * 1000
        if self._best_ms is None or now_s - self._since_s > _STRETCH_S:
            self._previous_ms, self._best_ms, self._since_s = self._best_ms, offset_ms, now_s
        else:
            self._best_ms = max(self._best_ms, offset_ms)

    def ms(self, now_s: float) -> int:
        """Return broker milliseconds at `now_s`. Raises: RuntimeError before the first acknowledgement."""
        if self._best_ms is None:
            raise RuntimeError("broker time is not known before the first acknowledgement")
        best = self._best_ms if self._previous_ms is None else max(self._best_ms, self._previous_ms)
        return int(now_s * 1000 + best)

    def monotonic_s(self, broker_ms: int, *, now_s: float) -> float:
        """Return when, on the monotonic clock, the broker's stands at `broker_ms`."""
        return now_s + (broker_ms - self.ms(now_s)) / 1000
