"""Whether a lane may take more: what waits too long is removed by Kafka before anybody has run it."""

from __future__ import annotations

from math import ceil

from gateway.ports import Logs
from gateway.problems import Kind, Problem
from gateway.view import View
from schemas.topics import HOUR_MS, Lane

REQUESTS_KEPT_MS = 72 * HOUR_MS
_SHORTEST_S, _LONGEST_S = 60, 3600
_LANES = {lane.value: lane for lane in Lane}


class LaneRoom:
    """Refuses requests for a lane whose oldest one has waited for more than half of its retention."""

    def __init__(self, view: View, logs: Logs) -> None:
        self._view, self._logs = view, logs

    def require_any(self) -> None:
        """Raises: Problem 503 when every lane is full, so that nothing need be read of the request."""
        if all(map(self._is_full, Lane)):
            raise self._problem(Lane.NORMAL, "every lane")

    def require(self, priority: object) -> None:
        """Raises: Problem 503 when the lane of this name, in any case, is full; another name is none of our business."""
        given = Lane.NORMAL if priority is None else priority
        lane = _LANES.get(given.lower()) if isinstance(given, str) else None
        if lane is not None and self._is_full(lane):
            raise self._problem(lane, f"the lane {lane.value}")

    def _is_full(self, lane: Lane) -> bool:
        oldest_ms = self._view.oldest_ms(lane)
        return oldest_ms is not None and self._logs.now_ms - oldest_ms > REQUESTS_KEPT_MS // 2

    def _problem(self, lane: Lane, what: str) -> Problem:
        """Return the problem; it is worth coming back when those that are too old are served at the rate of the last minute."""
        now_ms = self._logs.now_ms
        per_minute = self._view.recent.per_minute(now_ms, lane)
        old = self._view.waiting_since(lane, now_ms - REQUESTS_KEPT_MS // 2)
        wait_s = ceil(60 * old / per_minute) if per_minute else _LONGEST_S
        retry_s = min(max(wait_s, _SHORTEST_S), _LONGEST_S)
        return Problem(Kind.LANE_FULL, f"{what} is over half of its retention", headers={"Retry-After": str(retry_s)})
