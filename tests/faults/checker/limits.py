"""What a run may do and still pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a judgement, in seconds. Time in which a fault is active counts towards none of them but `clock_slack_s`.

    `clock_slack_s`: how far a participant's `at_ms` may be off broker time. Too high hides EARLY and OVERCOMMIT, too low invents them.
    `late_s`: from the decision to dispatch until the backend has the call. `grace_s`: from the deadline until the call is aborted.
    `cancel_s`: from `cancelled` in the log until the call is aborted. `stuck_s`: how long a partition's commits may stand still
    while it has requests; more than the longest call and its retries in place. `ok_ratio`: of the clients' operations, 0 to 1.
    """

    clock_slack_s: float = 0.005
    late_s: float = 0.25
    grace_s: float = 1.0
    cancel_s: float = 1.0
    stuck_s: float = 60.0
    ok_ratio: float = 0.8
