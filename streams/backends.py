"""What the dispatcher knows of each model server: slots, models, latency, failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.topics import Lane
from streams.ports import Probe
from streams.settings import BackendSettings

DEFAULT_SLOTS = 8
# Weight of the newest observation in the moving averages: about the last twenty count.
_EMA_WEIGHT = 0.1
# A server that said "too busy" without saying for how long is asked again after this.
OVERLOAD_PAUSE_S = 0.5


@dataclass
class BackendState:
    """One model server as the dispatcher sees it. In-flight counts are the dispatcher's own and act at once.

    `reserved` are slots that a lane alone may use: never lent, since a running model call cannot be recalled. Together they leave
    at least one slot, so a server with one slot reserves none.
    """

    settings: BackendSettings
    reserved: Mapping[Lane, int] = field(default_factory=dict)
    probe: Probe | None = None
    up: bool = False
    down_reason: str | None = None
    draining: bool = False
    paused_until_s: float = 0.0
    in_flight: dict[Lane, int] = field(default_factory=dict)
    latency_s: dict[str, float] = field(default_factory=dict)
    failure_ratio: float = 0.0

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def has_answered(self) -> bool:
        """Whether the server has said, since start, what it serves."""
        return self.probe is not None and self.probe.up

    @property
    def models(self) -> tuple[str, ...]:
        """Return the names it serves: the settings', else what it said."""
        return tuple(self.settings.models) or (self.probe.models if self.probe else ())

    @property
    def limit(self) -> int:
        """Return how many calls it may have in flight: the settings', else the slots it said, else 8."""
        slots = self.probe.slots if self.probe else None
        return self.settings.max_concurrency or slots or DEFAULT_SLOTS

    @property
    def busy(self) -> int:
        return sum(self.in_flight.values())

    def free(self, lane: Lane, *, sequential: bool = False) -> int:
        """Return how many calls of `lane` may start now. `sequential`: one at a time, and no slot is reserved."""
        if sequential:
            return max(1 - self.busy, 0)
        kept = 0
        room = self.limit - 1
        for other, slots in self.reserved.items():
            effective = min(slots, room)
            room -= effective
            if other is not lane:
                kept += max(effective - self.in_flight.get(other, 0), 0)
        return max(self.limit - self.busy - kept, 0)

    def start(self, lane: Lane, count: int) -> None:
        self.in_flight[lane] = self.in_flight.get(lane, 0) + count

    def finish(self, lane: Lane) -> None:
        self.in_flight[lane] -= 1

    def observe(self, model: str, latency_s: float | None) -> None:
        """Learn from a call that ended: its latency, or None when it failed."""
        self.failure_ratio += _EMA_WEIGHT * ((latency_s is None) - self.failure_ratio)
        if latency_s is not None:
            known = self.latency_s.get(model)
            self.latency_s[model] = latency_s if known is None else known + _EMA_WEIGHT * (latency_s - known)

    def pause(self, retry_after_s: float | None, *, now_s: float) -> None:
        """Send nothing for as long as a server that is too busy asked for."""
        self.paused_until_s = max(self.paused_until_s, now_s + (retry_after_s or OVERLOAD_PAUSE_S))

    def __repr__(self) -> str:
        return f"BackendState({self.name!r}, up={self.up}, {self.busy}/{self.limit})"
