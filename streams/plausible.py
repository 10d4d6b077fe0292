"""Readings that no card can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from schemas.gpu import GPUMetrics, ReadingError

# Wide: what lies outside is a broken sensor, a value that stands for "unknown", or a wrong unit, not an unusual card.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "memory_total_bytes": (1, 1 << 45),
    "memory_used_bytes": (0, 1 << 45),
    "memory_free_bytes": (0, 1 << 45),
    "utilization_ratio": (0, 1),
    "temperature_c": (-40, 150),
    "temperature_limit_c": (20, 150),
    "power_w": (0, 20_000),
    "energy_joules_total": (0, 1e15),
    "sm_clock_mhz": (0, 20_000),
}
_MEMORY = ("memory_total_bytes", "memory_used_bytes", "memory_free_bytes")


def plausible(sample: GPUMetrics) -> GPUMetrics:
    """Return the sample without the readings that cannot be; each is None, and its error says what it said."""
    absent = {name: _told(value) for name in BOUNDS if not _can_be(name, value := getattr(sample, name))}
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    if not absent.keys() & set(_MEMORY) and used is not None and total is not None and used > total:
        absent |= dict.fromkeys(_MEMORY, f"{used} bytes used of {total}")
    if not absent:
        return sample
    errors = [*sample.errors, *(ReadingError(name, f"implausible: {told}") for name, told in absent.items())]
    nothing: dict[str, Any] = dict.fromkeys(absent)
    return replace(sample, **nothing, errors=errors)


def _can_be(name: str, value: float | None) -> bool:
    low, high = BOUNDS[name]
    return value is None or (isfinite(value) and low <= value <= high)


def _told(value: float) -> str:
    return f"{value:.10g}"
