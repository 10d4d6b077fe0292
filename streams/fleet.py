"""What is known of the cards right now; what is not known is None, which is neither idle nor full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from schemas.gpu import GPUMetrics
from streams.pressure import MemoryPressureLevel, PressureChange, PressureGauge
from streams.settings import PressureSettings

# Clocks of hosts differ by less; a sample from further ahead comes from a clock that is wrong.
MAX_AHEAD_S = 5.0
# Use beyond a server's own pool that is more than rounding, contexts and the driver's own share of the card.
FOREIGN_RATIO = 0.05


@dataclass(slots=True)
class Card:
    """The newest sample of one card. `taken_at_s` is monotonic; `level` None when the sample does not say."""

    sample: GPUMetrics
    taken_at_s: float
    gauge: PressureGauge
    level: MemoryPressureLevel | None = None


@dataclass(slots=True)
class Fleet:
    """The dispatcher's view of the cards.

    A sample that is stale, implausible or from a lost card means unknown. A card is named by its uuid or "host:index".
    The loop that owns the dispatcher is its only writer. Times are monotonic seconds given by the caller.
    """

    stale_after_s: float = 5.0
    pressure: PressureSettings = field(default_factory=PressureSettings)
    _cards: dict[str, Card] = field(default_factory=dict)
    _uuids: dict[str, str] = field(default_factory=dict)  # "host:index" -> uuid

    def observe(self, sample: GPUMetrics, *, now_s: float, age_s: float) -> PressureChange | None:
        """Take a sample that is `age_s` old, and return the change of level it caused.

        A sample older than the known one is ignored, unless that one is stale: a host whose clock was set back is heard
        again. A sample from the future makes its card unknown and sets no mark for later ones.
        """
        card = self._cards.get(sample.gpu.uuid)
        if age_s < -MAX_AHEAD_S:
            if card is not None:
                card.level = None
            return None
        if card is None:
            card = self._cards[sample.gpu.uuid] = Card(sample, now_s - age_s, PressureGauge(self.pressure))
        elif sample.sampled_at_ms < card.sample.sampled_at_ms and not self._is_stale(card, now_s):
            return None
        self._uuids[f"{sample.gpu.host}:{sample.gpu.index}"] = sample.gpu.uuid
        card.sample, card.taken_at_s = sample, now_s - age_s
        return self._measure(card, now_s)

    def levels(self, *, now_s: float) -> dict[str, MemoryPressureLevel | None]:
        """Return every card's level by uuid, None where it is not known."""
        return {uuid: None if self._is_stale(card, now_s) else card.level for uuid, card in self._cards.items()}

    def pressure_of(
        self, gpus: Sequence[str], *, now_s: float, owns_memory: bool = False, pool_bytes: int | None = None
    ) -> MemoryPressureLevel | None:
        """Return the worst known level of a backend's cards, None when none is known or it has no cards.

        `owns_memory`: the server preallocates, so that its cards look full while it idles. Its level is None unless
        `pool_bytes`, what it takes of each card, shows that somebody else uses the card too.
        """
        if owns_memory and pool_bytes is None:
            return None
        worst: MemoryPressureLevel | None = None
        for card in self._known(gpus, now_s):
            if card.level is None or (owns_memory and not _has_foreign_use(card.sample, pool_bytes or 0)):
                continue
            if worst is None or card.level > worst:
                worst = card.level
        return worst

    def lost(self, gpus: Sequence[str], *, now_s: float) -> bool:
        """Whether a card of the backend has fallen off; one is enough, since a model spans all of a backend's cards."""
        return any(card.sample.lost for card in self._known(gpus, now_s))

    def _known(self, gpus: Sequence[str], now_s: float) -> Iterator[Card]:
        for key in gpus:
            card = self._cards.get(self._uuids.get(key, key))
            if card is not None and not self._is_stale(card, now_s):
                yield card

    def _is_stale(self, card: Card, now_s: float) -> bool:
        return now_s - card.taken_at_s > self.stale_after_s

    def _measure(self, card: Card, now_s: float) -> PressureChange | None:
        ratio = None if self._is_stale(card, now_s) else used_ratio(card.sample)
        if ratio is None:
            card.level = None
            return None
        before = card.gauge.last_change
        card.level = card.gauge.update(ratio, card.taken_at_s)
        return card.gauge.last_change if card.gauge.last_change is not before else None


def used_ratio(sample: GPUMetrics) -> float | None:
    """Return used/total memory in [0, 1], None when the sample does not say or says what cannot be."""
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    if sample.lost or used is None or total is None or not 0 < total < inf or not 0 <= used <= total:
        return None
    return used / total


def _has_foreign_use(sample: GPUMetrics, pool_bytes: int) -> bool:
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    return used is not None and total is not None and used - pool_bytes > FOREIGN_RATIO * total
