"""The one real clock. Everything else takes the time as an argument."""

from __future__ import annotations

import time


def monotonic_s() -> float:
    """Return seconds of a clock that never steps; its zero has no meaning."""
    return time.monotonic()  # noqa: TID251 - the one place that reads it


def wall_ms() -> int:
    """Return this machine's UTC epoch in milliseconds: for people and logs, never for a decision."""
    return time.time_ns() // 1_000_000
