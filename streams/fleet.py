"""What is known of the cards right now; what is not known is None, which is neither idle nor full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from schemas.gpu import GPUMetrics
from streams.forecast import JUDGED_S, MOST_SAMPLES, Forecast, Forecaster, NoForecast, Sample
from streams.plausible import plausible
from streams.pressure import MemoryPressureLevel, PressureGauge
from streams.settings import BackendSettings, PressureSettings
from streams.thermal import ThermalGauge, Warmth

# Clocks of hosts differ by less; a sample from further ahead comes from a clock that is wrong.
MAX_AHEAD_S = 5.0
# Use beyond the servers' own pools that is more than rounding, contexts and the driver's own share of the card.
FOREIGN_RATIO = 0.05
# Memory is as good as out here, and a forecast that it will be holds placements off for this long.
FULL_RATIO, _HELD_OFF_S = 0.97, 10.0
# Half a minute is looked at.
_WARMTH_SAMPLES = 40
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A card's level that was left for another, and why. `before` and `after` None: not known, neither idle nor full."""

    gpu: str
    before: MemoryPressureLevel | None
    after: MemoryPressureLevel | None
    cause: str


@dataclass(frozen=True, slots=True)
class Limit:
    """What the cards of a backend leave it: the worst of them.

    `factor`, from 0 to 1, is of its concurrency; 0 when it is `is_out`, because a card is lost or broken. `may_place` False: what
    runs may end, but nothing new is given to it, since memory is about to run out. `reason` None: nothing holds it back.
    """

    factor: float = 1.0
    is_out: bool = False
    may_place: bool = True
    reason: str | None = None
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Memory that a known server takes of each of its cards by design; `size_bytes` None when nobody says how much."""

    gpus: tuple[str, ...]
    size_bytes: int | None = None


@dataclass(slots=True)
class Card:
    """The newest sample of one card. `taken_at_s` is monotonic; `level` None when the sample does not say, and `unknown` why."""

    sample: GPUMetrics
    taken_at_s: float
    gauge: PressureGauge
    level: MemoryPressureLevel | None = None
    unknown: str = "never seen"
    told: MemoryPressureLevel | None = None
    history: deque[GPUMetrics] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    warmth: deque[Warmth] = field(default_factory=lambda: deque(maxlen=_WARMTH_SAMPLES))
    memory: Forecaster = field(default_factory=Forecaster)
    heat: ThermalGauge = field(default_factory=ThermalGauge)
    full_until_s: float = -inf


@dataclass(slots=True)
class Fleet:
    """The dispatcher's view of the cards.

    A sample that is stale, implausible or from a lost card means unknown. A card is named by its uuid or "host:index", an instance
    of one (MIG) by its uuid only. `pools` are the servers that take their memory at their start, so that what others take is told
    from it. The loop that owns the dispatcher is its only writer. Times are monotonic seconds given by the caller.
    """

    stale_after_s: float = 5.0
    pressure: PressureSettings = field(default_factory=PressureSettings)
    pools: Sequence[Pool] = ()
    _cards: dict[str, Card] = field(default_factory=dict)
    _uuids: dict[str, str] = field(default_factory=dict)  # "host:index" -> uuid

    def observe(self, sample: GPUMetrics, *, now_s: float, age_s: float) -> None:
        """Take a sample that is `age_s` old.

        A sample older than the known one is ignored, unless that one is stale: a host whose clock was set back is heard
        again. A sample from the future makes its card unknown and sets no mark for later ones.
        """
        card = self._cards.get(sample.gpu.uuid)
        if age_s < -MAX_AHEAD_S:
            if card is not None:
                card.level, card.unknown = None, f"its sample is {-age_s:.0f} s ahead of the brokers' time"
            return
        sample = plausible(sample)
        if card is None:
            card = self._cards[sample.gpu.uuid] = Card(sample, now_s - age_s, PressureGauge(self.pressure))
        elif sample.sampled_at_ms < card.sample.sampled_at_ms and not self._is_stale(card, now_s):
            return
        if not sample.gpu.uuid.startswith("MIG-"):
            self._uuids[f"{sample.gpu.host}:{sample.gpu.index}"] = sample.gpu.uuid
        card.sample, card.taken_at_s = sample, now_s - age_s
        self._measure(card, now_s)
        if not self._is_stale(card, now_s):
            self._remember(card, now_s)

    def changes(self, *, now_s: float) -> list[LevelChange]:
        """Return each card's change of level since this was asked last, once; to be asked every second or so.

        Cards that are not heard of recover from their heat meanwhile.
        """
        found = []
        for uuid, card in self._cards.items():
            if self._is_stale(card, now_s):
                card.heat.update((), now_s)
            level = self._level(card, now_s)
            if level is not card.told:
                found.append(LevelChange(uuid, card.told, level, self._cause(card, now_s)))
                card.told = level
        return found

    def levels(self, *, now_s: float) -> dict[str, MemoryPressureLevel | None]:
        """Return every card's level by uuid, None where it is not known."""
        return {uuid: self._level(card, now_s) for uuid, card in self._cards.items()}

    def history(self, gpu: str) -> Sequence[GPUMetrics]:
        """Return the card's last hundred samples, oldest first."""
        card = self._cards.get(self._uuids.get(gpu, gpu))
        return () if card is None else tuple(card.history)

    def forecast(self, gpu: str, *, now_s: float) -> Forecast | NoForecast:
        """Return how full the card will be, counted from its newest sample on."""
        for card in self._known([gpu], now_s):
            return card.memory.now()
        return NoForecast("no fresh sample")

    def pressure_of(
        self, gpus: Sequence[str], *, now_s: float, owns_memory: bool = False, pool_bytes: int | None = None
    ) -> MemoryPressureLevel | None:
        """Return the worst known level of a backend's cards, None when none is known or it has no cards.

        `owns_memory`: the server preallocates, so that its cards look full while it idles. Its level is None unless somebody else
        is known to use the card too, by what its processes hold or beyond `pool_bytes`, what the server takes of each card.
        """
        worst: MemoryPressureLevel | None = None
        owns = owns_memory or pool_bytes is not None
        for card in self._known(gpus, now_s):
            if card.level is None or (owns and not self._has_foreign_use(card, pool_bytes)):
                continue
            if worst is None or card.level > worst:
                worst = card.level
        return worst

    def lost(self, gpus: Sequence[str], *, now_s: float) -> bool:
        """Whether a card of the backend has fallen off or is broken; one is enough, since a model spans all of a backend's cards."""
        return any(card.sample.lost or bool(card.sample.faults) for card in self._known(gpus, now_s))

    def limit_of(
        self, gpus: Sequence[str], *, now_s: float, owns_memory: bool = False, pool_bytes: int | None = None
    ) -> Limit:
        """Return what the worst of a backend's cards leaves it. Cards that are not known leave what they left last, and recover."""
        worst = Limit()
        owns = owns_memory or pool_bytes is not None
        for key in gpus:
            uuid = self._uuids.get(key, key)
            card = self._cards.get(uuid)
            if card is None:
                continue
            watches_memory = not owns or self._has_foreign_use(card, pool_bytes)
            found = self._limit(uuid, card, now_s, watches_memory)
            if (found.factor, found.may_place) < (worst.factor, worst.may_place):
                worst = found
        return worst

    def _limit(self, uuid: str, card: Card, now_s: float, watches_memory: bool) -> Limit:
        is_fresh = not self._is_stale(card, now_s)
        if is_fresh and (card.sample.lost or card.sample.faults):
            why = "lost" if card.sample.lost else ", ".join(card.sample.faults)
            return Limit(0.0, True, False, why, uuid)
        if watches_memory and now_s < card.full_until_s:
            return Limit(card.heat.factor, False, False, "memory is about to run out", uuid)
        return Limit(card.heat.factor, reason=card.heat.reason, gpu=None if card.heat.factor == 1 else uuid)

    def _known(self, gpus: Sequence[str], now_s: float) -> Iterator[Card]:
        for key in gpus:
            card = self._cards.get(self._uuids.get(key, key))
            if card is not None and not self._is_stale(card, now_s):
                yield card

    def _is_stale(self, card: Card, now_s: float) -> bool:
        return now_s - card.taken_at_s > self.stale_after_s

    def _level(self, card: Card, now_s: float) -> MemoryPressureLevel | None:
        return None if self._is_stale(card, now_s) else card.level

    def _cause(self, card: Card, now_s: float) -> str:
        if self._is_stale(card, now_s):
            return f"no sample for more than {self.stale_after_s:g} s"
        ratio = used_ratio(card.sample)
        if card.level is None or ratio is None:
            return card.unknown
        return f"{ratio:.0%} of {(card.sample.memory_total_bytes or 0) / GIB:.1f} GiB used"

    def _measure(self, card: Card, now_s: float) -> None:
        ratio = None if self._is_stale(card, now_s) else used_ratio(card.sample)
        if ratio is None:
            card.level, card.unknown = None, _why_unknown(card.sample)
        else:
            card.level = card.gauge.update(ratio, card.taken_at_s)

    def _remember(self, card: Card, now_s: float) -> None:
        """Take a sample that is newer than the last into the history, and act on heat and memory once for each."""
        sample = card.sample
        if card.history and sample.sampled_at_ms == card.history[-1].sampled_at_ms:
            return
        if card.history and sample.sampled_at_ms < card.history[-1].sampled_at_ms:
            card.history.clear()
            card.warmth.clear()  # its host's clock was set back: times before and after do not compare
        card.history.append(sample)
        card.warmth.append(_warmth(sample))
        ratio = used_ratio(sample)
        if ratio is not None:
            card.memory.add(Sample(sample.sampled_at_ms / 1000, ratio))
            if _runs_out(card.memory.now()):
                card.full_until_s = now_s + _HELD_OFF_S
        if sample.lost or sample.faults:
            card.heat.restart(now_s)
        else:
            card.heat.update(tuple(card.warmth), now_s)

    def _has_foreign_use(self, card: Card, pool_bytes: int | None) -> bool:
        """Whether others use the card: now, or within the dwell, so that a use around the bound does not flap."""
        names = {card.sample.gpu.uuid, f"{card.sample.gpu.host}:{card.sample.gpu.index}"}
        pools = [pool.size_bytes for pool in self.pools if names.intersection(pool.gpus)] or [pool_bytes]
        since_ms = card.sample.sampled_at_ms - self.pressure.dwell_s * 1000
        recent = (sample for sample in reversed(card.history) if sample.sampled_at_ms >= since_ms)
        return any(_is_foreign(sample, pools) for sample in recent)


def pools_of(backends: Sequence[BackendSettings]) -> list[Pool]:
    """Return the memory that the configured servers take at their start: vLLM does, others where `pool_bytes` says so."""
    return [
        Pool(tuple(backend.gpus), backend.pool_bytes)
        for backend in backends
        if backend.gpus and (backend.kind == "vllm" or backend.pool_bytes is not None)
    ]


def used_ratio(sample: GPUMetrics) -> float | None:
    """Return used/total memory in [0, 1], None when the sample does not say or says what cannot be."""
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    if sample.lost or used is None or total is None or not 0 < total < inf or not 0 <= used <= total:
        return None
    return used / total


def foreign_bytes(sample: GPUMetrics, pools: Sequence[int | None]) -> int | None:
    """Return what others than the known servers use of a card, None when nobody can say.

    `pools` are the servers' own parts. Where each is declared, it is what is used beyond them. Else each server is taken for one of
    the card's largest processes, and the rest are others; for that every process must tell its size.
    """
    used = sample.memory_used_bytes
    if used is None:
        return None
    declared = [size for size in pools if size is not None]
    if len(declared) == len(pools):
        return max(used - sum(declared), 0)
    sizes = sorted(process.used_bytes for process in sample.processes if process.used_bytes is not None)
    if not sizes or len(sizes) < len(sample.processes):
        return None
    return sum(sizes[: max(len(sizes) - len(pools), 0)])


def _is_foreign(sample: GPUMetrics, pools: Sequence[int | None]) -> bool:
    foreign, total = foreign_bytes(sample, pools), sample.memory_total_bytes
    return foreign is not None and total is not None and foreign > FOREIGN_RATIO * total


def _runs_out(found: Forecast | NoForecast) -> bool:
    """Whether memory is on its way to run out within a minute. A card that is full and stands still is not."""
    if isinstance(found, NoForecast) or not found.is_rising:
        return False
    in_s = found.seconds_to(FULL_RATIO)
    return in_s is not None and in_s <= JUDGED_S


def _warmth(sample: GPUMetrics) -> Warmth:
    return Warmth(
        sample.sampled_at_ms / 1000,
        sample.temperature_c,
        sample.temperature_limit_c,
        tuple(sample.clock_event_reasons),
    )


def _why_unknown(sample: GPUMetrics) -> str:
    if sample.lost:
        return "the card is lost"
    for error in sample.errors:
        if error.field.startswith("memory"):
            return f"no memory reading: {error.reason}"
    return "no memory reading"
