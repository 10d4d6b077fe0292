"""How full a card will be: a line through its last samples, how sure that is, and a refusal where no line is to be seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean, median
from typing import NamedTuple

# Fewer say nothing of the next minute.
MIN_SAMPLES, MOST_SAMPLES = 20, 100
# The band that holds 90 % of what comes, and the horizon by which a forecast is judged.
BAND = 0.90
_QUANTILE = 1.6449
JUDGED_S = 60.0
# A band that reaches further each way says nothing any more.
MAX_HALF_WIDTH = 0.25
# Never surer than this: a card that stood still so far may still move.
_LEAST_SIGMA = 0.002
# A step is a difference that leaves the others this far behind, in robust standard deviations; and no small one.
_STEP_SIGMAS, _LEAST_STEP = 6.0, 0.02
_MAD_TO_SIGMA = 1.4826
# Differences so near to each other are one step that took a while.
_ONE_STEP_SAMPLES = 3
_HABIT_S = 600.0
_MOST_CORRELATION = 0.9
_LEAST_FREEDOM = 2.0
# The line of the older part foretells the newer part; a miss of more than this many standard deviations is beyond chance.
_OLDER, _USUAL_MISS = 0.6, 1.2


class Sample(NamedTuple):
    """Used/total memory at a time in seconds; only differences of times matter."""

    at_s: float
    used_ratio: float


class Point(NamedTuple):
    """What is expected, and the band that holds 90 % of what comes; ratios in [0, 1]."""

    used_ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NoForecast:
    """Nothing can be said, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """A line through the samples since the last step.

    `sigma` is the standard deviation of a sample around it, `slope_error` that of the slope, both in ratio of the card's memory;
    `step` is the step within the window that may come again, so the band reaches that much further, 0 without one.
    """

    used_ratio: float
    slope_per_s: float
    slope_error: float
    sigma: float
    step: float
    widened: float
    _mean_error: float
    _since_middle_s: float
    _t: float

    def at(self, in_s: float) -> Point:
        """Return what is expected `in_s` seconds after the last sample."""
        expected, half = self.line(in_s), self.half_width(in_s)
        return Point(_clipped(expected), _clipped(expected - half), _clipped(expected + half))

    def line(self, in_s: float) -> float:
        """Return the line's ratio `in_s` seconds after the last sample, not clipped."""
        return self.used_ratio + self.slope_per_s * in_s

    def error(self, in_s: float) -> float:
        """Return the standard deviation of a sample `in_s` seconds after the last one around that."""
        from_middle_s = self._since_middle_s + in_s
        return sqrt(self.sigma**2 + self._mean_error**2 + (self.slope_error * from_middle_s) ** 2)

    def half_width(self, in_s: float) -> float:
        """Return how far the band reaches each way `in_s` seconds after the last sample, not clipped."""
        return self._t * self.error(in_s) * self.widened + self.step

    def seconds_to(self, ratio: float) -> float | None:
        """Return when the line reaches `ratio`: 0 when it is there, None when it never does."""
        if self.used_ratio >= ratio:
            return 0.0
        return (ratio - self.used_ratio) / self.slope_per_s if self.slope_per_s > 0 else None

    @property
    def confidence(self) -> float:
        """From 1, a band without width in a minute, to 0, one so wide that there would be no forecast."""
        return max(1 - self.half_width(JUDGED_S) / MAX_HALF_WIDTH, 0.0)

    @property
    def is_rising(self) -> bool:
        """Whether the rise is beyond chance: a card that stands still is taken for rising less than once in a thousand times."""
        return self.slope_per_s > 3.3 * self.slope_error and self.slope_per_s * JUDGED_S > 0.01


class Forecaster:
    """A card's last hundred samples, and the steps it went in within ten minutes: two of them make a habit, which will go on."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)
        self._steps: deque[tuple[float, float]] = deque()
        self._found: Forecast | NoForecast | None = None

    def add(self, sample: Sample) -> None:
        """Take a sample. One that is not newer than the last begins anew: the clock of its host was set back."""
        if self.samples and sample.at_s <= self.samples[-1].at_s:
            self.samples.clear()
            self._steps.clear()
        self.samples.append(sample)
        self._found = None
        if len(self.samples) >= MIN_SAMPLES:
            self._remember(sample.at_s)

    def now(self) -> Forecast | NoForecast:
        """Return the forecast from the last sample on; worked out once per sample."""
        if self._found is None:
            habit = max(size for _, size in self._steps) if len(self._steps) > 1 else 0.0
            self._found = forecast(list(self.samples), habit=habit)
        return self._found

    def _remember(self, now_s: float) -> None:
        while self._steps and now_s - self._steps[0][0] > _HABIT_S:
            self._steps.popleft()
        known = {at_s for at_s, _ in self._steps}
        for step in steps(list(self.samples)):
            at_s = self.samples[step.first].at_s
            if step.first == len(self.samples) - 1 and at_s not in known:
                self._steps.append((at_s, step.size))


def forecast(samples: Sequence[Sample], *, habit: float = 0.0) -> Forecast | NoForecast:
    """Return the line of a card's samples, oldest first. `habit` is the size of steps that come again and again.

    Ordinary least squares over the samples since the last step. Neighbouring samples that err alike count for less than they
    are: with a correlation r of neighbours, n of them count as n (1 - r) / (1 + r).
    Source: the variance of a prediction in simple linear regression, s² (1 + 1/n + (x - mean)² / Sxx), with Student's t.
    """
    if len(samples) < MIN_SAMPLES:
        return NoForecast(f"only {len(samples)} samples of at least {MIN_SAMPLES}")
    went = steps(samples)
    if len(went) > 1:
        return NoForecast(f"memory went in {len(went)} steps within the last {len(samples)} samples")
    since = samples[went[0].first :] if went else samples
    size = max(went[0].size if went else 0.0, habit)
    if len(since) < MIN_SAMPLES:
        return NoForecast(f"memory stepped by {went[0].size:.0%} of the card {len(since)} samples ago")
    found = _line(since, size)
    if found is None:
        return NoForecast("memory follows no line")
    half = found.half_width(JUDGED_S)
    if half > MAX_HALF_WIDTH:
        return NoForecast(f"too noisy: ±{min(half, 1):.0%} of the card in {JUDGED_S:.0f} s")
    return found


class Step(NamedTuple):
    """A change that leaves the others behind; `first` is the first sample after it."""

    first: int
    size: float
    is_up: bool


def steps(samples: Sequence[Sample]) -> list[Step]:
    """Return the steps, oldest first."""
    gaps = [(max(b.at_s - a.at_s, 1e-3), b.used_ratio - a.used_ratio) for a, b in pairwise(samples)]
    slope = median(change / gap_s for gap_s, change in gaps)
    beyond = [change - slope * gap_s for gap_s, change in gaps]
    bound = max(_STEP_SIGMAS * _MAD_TO_SIGMA * median(map(abs, beyond)), _LEAST_STEP)
    found: list[Step] = []
    for index, change in enumerate(beyond, start=1):
        if abs(change) <= bound:
            continue
        last = found[-1] if found else None
        if last is not None and index - last.first <= _ONE_STEP_SAMPLES and last.is_up == (change > 0):
            found[-1] = Step(index, last.size + abs(change), last.is_up)
        else:
            found.append(Step(index, abs(change), change > 0))
    return found


def _line(samples: Sequence[Sample], step: float) -> Forecast | None:
    """Return the line of all samples, its band widened by as much as that of the older ones missed the newer ones."""
    found = _fit(samples, step)
    older = _fit(samples[: round(len(samples) * _OLDER)], step)
    if found is None or older is None:
        return None
    newer = samples[round(len(samples) * _OLDER) :]
    begin_s = newer[0].at_s - (newer[1].at_s - newer[0].at_s)
    misses = [(s.used_ratio - older.line(s.at_s - begin_s)) / older.error(s.at_s - begin_s) for s in newer]
    return replace(found, widened=max(sqrt(fmean(miss * miss for miss in misses)) / _USUAL_MISS, 1.0))


def _fit(samples: Sequence[Sample], step: float) -> Forecast | None:
    count, last_s = len(samples), samples[-1].at_s
    times = [sample.at_s - last_s for sample in samples]
    middle_s, middle = fmean(times), fmean(sample.used_ratio for sample in samples)
    spread = sum((t - middle_s) ** 2 for t in times)
    if spread <= 0:
        return None
    pairs = list(zip(times, (sample.used_ratio for sample in samples), strict=True))
    slope = sum((t - middle_s) * (ratio - middle) for t, ratio in pairs) / spread
    errors = [ratio - middle - slope * (t - middle_s) for t, ratio in pairs]
    squares = sum(error * error for error in errors)
    sigma = sqrt(squares / (count - 2))
    correlation = 0.0
    if sigma > _LEAST_SIGMA:
        correlation = min(max(sum(a * b for a, b in pairwise(errors)) / squares, 0.0), _MOST_CORRELATION)
    alike = (1 + correlation) / (1 - correlation)
    freedom = count / alike - 2
    if freedom < _LEAST_FREEDOM:
        return None
    sigma = max(sigma, _LEAST_SIGMA)
    return Forecast(
        used_ratio=middle - slope * middle_s,
        slope_per_s=slope,
        slope_error=sigma * sqrt(alike / spread),
        sigma=sigma,
        step=step,
        widened=1.0,
        _mean_error=sigma * sqrt(alike / count),
        _since_middle_s=-middle_s,
        _t=_students_t(freedom),
    )


def _students_t(freedom: float) -> float:
    """Return the 95 % quantile of Student's t. 3 -> 2.33 (2.35), 10 -> 1.81, 98 -> 1.66.

    Source: the first terms of the Cornish-Fisher expansion, Abramowitz and Stegun 26.7.5.
    """
    if freedom == inf:
        return _QUANTILE
    z, z3, z5 = _QUANTILE, _QUANTILE**3, _QUANTILE**5
    return z + (z3 + z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom**2)


def _clipped(ratio: float) -> float:
    return min(max(ratio, 0.0), 1.0)
