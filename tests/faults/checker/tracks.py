"""What is remembered of one task."""

from __future__ import annotations

from math import inf

QUEUED, PROCESSING, ENDED = 0, 1, 2
UNKNOWN = -1
RANKS = {"unknown": UNKNOWN, "queued": QUEUED, "processing": PROCESSING}
"""How far a status is along; every other one is an outcome."""


class Track:
    """One task: the automaton's state. Times are broker milliseconds; None: not yet."""

    __slots__ = (
        "acknowledged",
        "again_ms",
        "appended_ms",
        "asked",
        "batch",
        "dead_ms",
        "deadline_ms",
        "digest",
        "floor",
        "floor_ms",
        "handed_ms",
        "nonce",
        "outcome",
        "outcome_ms",
        "partition",
        "reader",
        "results",
        "runs",
        "shares_nonce",
        "task_id",
        "tenant",
    )

    def __init__(self, task_id: str, partition: int | None) -> None:
        self.task_id = task_id
        self.partition = partition
        self.tenant: str | None = None
        self.nonce: str | None = None
        self.shares_nonce = False
        self.appended_ms: float | None = None  # its first request
        self.deadline_ms: float | None = None
        self.asked = False
        self.acknowledged = False
        self.handed_ms: list[float] | None = None  # its retry records
        self.dead_ms: float | None = None
        self.outcome: str | None = None
        self.outcome_ms = inf
        self.digest: str | None = None
        self.batch: str | None = None
        self.results = 0
        self.runs = 0
        self.reader: str | None = None
        self.floor = UNKNOWN  # what `reader` was told at most
        self.floor_ms = 0.0
        self.again_ms = -inf  # its last request but the first

    def hand_over(self, at_ms: float) -> None:
        self.handed_ms = [*(self.handed_ms or ()), at_ms]
