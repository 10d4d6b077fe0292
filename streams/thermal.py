"""What a card's heat leaves of its work: less before it slows itself down, more again slowly when it is cool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

# What the card or its power supply does against damage. `sw_power_cap` is not among them: under load it is normal.
BRAKES = frozenset({"hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown"})
# Where a card slows itself down that does not say so.
DEFAULT_LIMIT_C = 85.0
# Too hot from here below the limit on, cool below that; between them nothing changes, so that it settles there.
_HOT_C, _COOL_C = 3.0, 8.0
# The slope is taken over this long, and counts as if it went on for that long.
_SLOPE_S, _LEAD_S, _SLOPE_SAMPLES = 30.0, 10.0, 5
# Heat follows load within some seconds to a minute, so a step is given time to show; up goes slower than down.
_CUT_EVERY_S, _RAISE_EVERY_S, _CALM_S = 5.0, 10.0, 30.0
_CUT, _BRAKED_CUT, _RAISE = 0.8, 0.5, 0.05
# Near the factor at which it last got too hot it goes up in small steps, so that it settles below instead of swinging around it.
_NEAR, _CAREFUL_RAISE, _CAREFUL_EVERY_S = 0.85, 0.02, 60.0
LEAST_FACTOR = 0.25


class Warmth(NamedTuple):
    """A card's temperature at a time in seconds, None where it does not say."""

    at_s: float
    temperature_c: float | None
    limit_c: float | None
    reasons: tuple[str, ...]


@dataclass(slots=True)
class ThermalGauge:
    """The factor, from 0.25 to 1, by which a card's heat lowers the concurrency of the backends on it.

    A brake halves it; a temperature that is, or with its slope within ten seconds will be, within 3 °C of the limit takes a fifth;
    at most once in 5 s. Below 8 °C under the limit it rises by 0.05 every 10 s, not within 30 s of a cut, and from 0.85 of where it
    last got too hot to there by 0.02 every 60 s: from 0.25 to 0.85 in three minutes, to 1 in ten. A card that does not say how hot
    it is, or that is not heard of, recovers as one that is cool.
    """

    factor: float = 1.0
    reason: str | None = None
    _ceiling: float = 1.0
    _changed_at_s: float = 0.0
    _cut_at_s: float | None = None

    def update(self, recent: Sequence[Warmth], now_s: float) -> float:
        """Return the factor after the newest of `recent`, oldest first; [] when nothing is known."""
        why = _too_hot(recent)
        if why is not None:
            is_braked = bool(BRAKES.intersection(recent[-1].reasons))
            if self._is_calm(now_s):
                self._ceiling = self.factor
            if self._cut_at_s is None or now_s - self._cut_at_s >= _CUT_EVERY_S:
                self._set(self.factor * (_BRAKED_CUT if is_braked else _CUT), now_s)
                self._cut_at_s = now_s
            self.reason = why
        elif self.factor < 1 and _is_cool(recent):
            is_near = _NEAR * self._ceiling <= self.factor < self._ceiling
            step, every_s = (_CAREFUL_RAISE, _CAREFUL_EVERY_S) if is_near else (_RAISE, _RAISE_EVERY_S)
            if self._is_calm(now_s) and now_s - self._changed_at_s >= every_s:
                self._set(self.factor + step, now_s)
            self.reason = None if self.factor == 1 else "recovering"
        return self.factor

    def restart(self, now_s: float) -> None:
        """Begin at the bottom: the card was out, and comes back step by step."""
        self.factor, self._changed_at_s, self.reason = LEAST_FACTOR, now_s, "recovering"
        self._ceiling = 1.0

    def _is_calm(self, now_s: float) -> bool:
        return self._cut_at_s is None or now_s - self._cut_at_s >= _CALM_S

    def _set(self, factor: float, now_s: float) -> None:
        self.factor = round(min(max(factor, LEAST_FACTOR), 1.0), 6)
        self._changed_at_s = now_s


def coolness(temperature_c: float | None, limit_c: float | None) -> float:
    """Return a score from 1, 20 °C or more under the limit, to 0, at it; 0.5 when the card does not say how hot it is."""
    if temperature_c is None:
        return 0.5
    return min(max((_limit(limit_c) - temperature_c) / 20.0, 0.0), 1.0)


def slope_c_per_s(recent: Sequence[Warmth]) -> float:
    """Return how fast it gets hotter, by least squares over the last half minute; 0 from less than five samples."""
    rows = [(w.at_s, w.temperature_c) for w in recent if w.temperature_c is not None]
    rows = [row for row in rows if rows[-1][0] - row[0] <= _SLOPE_S]
    if len(rows) < _SLOPE_SAMPLES:
        return 0.0
    middle_s, middle_c = fmean(t for t, _ in rows), fmean(c for _, c in rows)
    spread = sum((t - middle_s) ** 2 for t, _ in rows)
    return sum((t - middle_s) * (c - middle_c) for t, c in rows) / spread if spread > 0 else 0.0


def _too_hot(recent: Sequence[Warmth]) -> str | None:
    """Return why the card is too hot or braked, None where it is not."""
    if not recent:
        return None
    newest = recent[-1]
    brakes = [reason for reason in newest.reasons if reason in BRAKES]
    if brakes:
        return ", ".join(brakes)
    if newest.temperature_c is None:
        return None
    ahead_c, limit_c = _ahead_c(recent), _limit(newest.limit_c)
    if ahead_c < limit_c - _HOT_C:
        return None
    rising = "" if ahead_c == newest.temperature_c else f", rising to {ahead_c:.0f} °C"
    return f"{newest.temperature_c:.0f} °C{rising}, limit {limit_c:.0f} °C"


def _is_cool(recent: Sequence[Warmth]) -> bool:
    if not recent or recent[-1].temperature_c is None:
        return True
    return _ahead_c(recent) < _limit(recent[-1].limit_c) - _COOL_C


def _ahead_c(recent: Sequence[Warmth]) -> float:
    now_c = recent[-1].temperature_c
    assert now_c is not None
    return now_c + max(slope_c_per_s(recent), 0.0) * _LEAD_S


def _limit(limit_c: float | None) -> float:
    return DEFAULT_LIMIT_C if limit_c is None else limit_c
