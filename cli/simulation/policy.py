"""The policies that a scenario compares."""

from __future__ import annotations

from enum import StrEnum


class Policy(StrEnum):
    """What decides in a run. `FIFO` is no policy of the worker: one queue for all lanes, as a yardstick."""

    AS_SET = "as set"
    FIFO = "fifo"
    STRICT = "strict"
    WEIGHTS = "weights"
    SIZE_AWARE = "size-aware"
