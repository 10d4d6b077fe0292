"""Rates, from the results of the last minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from schemas.result import Outcome
from schemas.topics import Lane

KEPT_MS = 5 * 60_000
_MINUTE_MS = 60_000
_MOST = 20_000
_EMA_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """What one result says of speed; a duration is None where there was none."""

    lane: Lane
    at_ms: int
    queue_ms: float | None
    inference_ms: float | None
    is_cached: bool
    completed: bool


@dataclass
class ModelRates:
    """Of one model: mean latency and share of failures, newer results counting more."""

    latency_ema_ms: float | None = None
    failure_ratio: float = 0.0

    def observe(self, outcome: Outcome, inference_ms: float | None) -> None:
        failed = 1.0 if outcome is Outcome.FAILED else 0.0
        self.failure_ratio += _EMA_WEIGHT * (failed - self.failure_ratio)
        if outcome is Outcome.COMPLETED and inference_ms is not None:
            before = inference_ms if self.latency_ema_ms is None else self.latency_ema_ms
            self.latency_ema_ms = before + _EMA_WEIGHT * (inference_ms - before)


@dataclass
class Recent:
    """Results of the last five minutes, at most 20,000 of them, and what each model did since this process began."""

    models: dict[str, ModelRates] = field(default_factory=dict)
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_MOST))

    def observe(self, lane: Lane, outcome: Outcome, at_ms: int, value: bytes | None) -> None:
        """Take note of an outcome; a value that cannot be read still counts for the rate."""
        raw = _parsed(value)
        timing = raw.get("timing")
        timing = timing if isinstance(timing, dict) else {}
        queue_ms, inference_ms = _number(timing, "queue_ms"), _number(timing, "inference_ms")
        is_cached = raw.get("cached") is True
        ran = inference_ms is not None and not is_cached
        self._samples.append(
            Sample(lane, at_ms, queue_ms, inference_ms if ran else None, is_cached, outcome is Outcome.COMPLETED)
        )
        model = raw.get("model")
        if isinstance(model, str) and ran:
            self.models.setdefault(model, ModelRates()).observe(outcome, inference_ms)

    def samples(self, now_ms: int) -> Sequence[Sample]:
        """Return what is not older than five minutes."""
        while self._samples and self._samples[0].at_ms < now_ms - KEPT_MS:
            self._samples.popleft()
        return self._samples

    def per_minute(self, now_ms: int, lane: Lane | None = None) -> int:
        """Return how many results the last minute brought."""
        return sum(
            sample.at_ms >= now_ms - _MINUTE_MS and lane in (None, sample.lane) for sample in self.samples(now_ms)
        )


def mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _parsed(value: bytes | None) -> dict[str, Any]:
    try:
        raw = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _number(raw: dict[str, Any], name: str) -> float | None:
    given = raw.get(name)
    return float(given) if isinstance(given, int | float) else None
