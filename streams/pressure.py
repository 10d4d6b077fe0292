"""How full a card's memory is, as one of four levels that do not flap."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum

from streams.settings import PressureSettings


class MemoryPressureLevel(IntEnum):
    """How short of memory a card is; a higher number is worse, and the number is the metric's value."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class PressureChange:
    """A level that was left for another, and the used/total ratio that caused it. `before` None: the first sample."""

    before: MemoryPressureLevel | None
    after: MemoryPressureLevel
    used_ratio: float
    at_s: float


@dataclass(slots=True)
class PressureGauge:
    """The level of one card.

    Upwards at once: memory that is gone is gone. Downwards only when the ratio is more than `hysteresis` below the
    level's threshold, and `dwell_s` have passed since a sample last stood at or above it. Falling skips levels.
    With the defaults (0.50, 0.70, 0.85; 0.03; 5 s):

        second   0     1     2     3     6     7     8     12
        ratio   .40   .71   .69   .66   .66   .66   .86   .30
        level   LOW   HIGH  HIGH  HIGH  NORM  NORM  CRIT  CRIT
                            (.69 ≥ .67) (3 - 1 < 5 s)     (12 - 8 < 5 s; from 13 on LOW)

    Times are monotonic seconds given by the caller; ratios are finite, 0 is empty and 1 full.
    """

    settings: PressureSettings = field(default_factory=PressureSettings)
    level: MemoryPressureLevel | None = None
    last_change: PressureChange | None = None
    _supported_at_s: float = 0.0

    def update(self, used_ratio: float, now_s: float) -> MemoryPressureLevel:
        """Return the level after a sample of `used_ratio` taken at `now_s`."""
        reached, level = self._reached(used_ratio, 0.0), self.level
        if level is None or reached > level:
            return self._change(reached, used_ratio, now_s)
        if reached == level:
            self._supported_at_s = now_s
            return level
        kept = self._reached(used_ratio, self.settings.hysteresis)
        if kept < level and now_s - self._supported_at_s >= self.settings.dwell_s:
            return self._change(kept, used_ratio, now_s)
        return level

    def _reached(self, used_ratio: float, slack: float) -> MemoryPressureLevel:
        begins = [threshold - slack for threshold in self.settings.thresholds]
        return MemoryPressureLevel(bisect_right(begins, used_ratio))

    def _change(self, after: MemoryPressureLevel, used_ratio: float, now_s: float) -> MemoryPressureLevel:
        self.last_change = PressureChange(self.level, after, used_ratio, now_s)
        self.level = after
        self._supported_at_s = now_s
        return after
