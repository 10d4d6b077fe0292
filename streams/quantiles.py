"""One rule for medians and percentiles, alike in the gateway's statistics, the picture and the load test."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` of the values lie, None of none: of 1, 2, 3, 4 and 0.5 it is 3."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None
