"""Which backend takes a batch, with which model, and why: filter, score, pick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from streams.pressure import MemoryPressureLevel

SIZES = ("tiny", "small", "medium", "large")
_RANK = {size: rank for rank, size in enumerate(SIZES)}


class Row(NamedTuple):
    """What a level of pressure means. `sizes` None: only the smallest that is there; `kind` None: no preference."""

    sizes: frozenset[str] | None
    preferred_sizes: frozenset[str]
    kind: str | None
    sequential: bool
    sheds_low: bool
    headroom: float


_ALL, _MEDIUM, _SMALL = frozenset(SIZES), frozenset(SIZES[:3]), frozenset(SIZES[:2])

# None is an unknown level: nothing is forbidden, and its headroom lies in the middle.
MATRIX: Mapping[MemoryPressureLevel | None, Row] = {
    None: Row(_ALL, _ALL, None, False, False, 0.5),
    MemoryPressureLevel.LOW: Row(_ALL, _ALL, "vllm", False, False, 1.0),
    MemoryPressureLevel.NORMAL: Row(_ALL, _SMALL, "llamacpp", False, False, 0.7),
    MemoryPressureLevel.HIGH: Row(_MEDIUM, _SMALL, "llamacpp", False, False, 0.3),
    MemoryPressureLevel.CRITICAL: Row(None, _ALL, None, True, True, 0.0),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one backend, as it stands now.

    `latency_ema_s` None: never called. `pressure` None: not known. `agent_types` empty: listed for none in particular.
    """

    backend: str
    kind: str
    model: str
    size: str
    in_flight: int
    limit: int
    latency_ema_s: float | None
    failure_ratio: float
    pressure: MemoryPressureLevel | None
    up: bool
    draining: bool
    lost: bool
    agent_types: frozenset[str]
    context_tokens: int | None
    aliases: frozenset[str]
    any_model: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """What a batch needs. `model` None: routing chooses; `tokens` are prompt and answer together."""

    model: str | None
    agent_type: str | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Considered:
    """A candidate that was looked at: its score, or the filter that refused it."""

    backend: str
    model: str
    score: float | None
    why_not: str | None


class Reason(StrEnum):
    """Why the one that was picked was picked; the closed list of the metric's label."""

    PINNED = "pinned model"
    ONLY = "only one that can"
    SMALLEST = "under pressure, smallest model"
    QUEUE = "fits, shortest queue"
    FASTEST = "fits, fastest"
    BALANCE = "fits, best on balance"


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """The pick. `considered` is empty unless asked for."""

    backend: str
    model: str
    score: float
    reason: Reason
    pressure: MemoryPressureLevel | None
    considered: tuple[Considered, ...] = ()


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Nobody can take it now. `why_not` is the filter that refused the last ones.

    `permanent` is for the caller to set, who knows whether a backend may still answer with other models.
    """

    why_not: str
    considered: tuple[Considered, ...] = ()
    permanent: bool = False


Candidates: TypeAlias = Sequence[Candidate]
_Keep = Callable[[Want, Candidates], Candidates]
_Raw = Callable[[Candidates], list[float]]


def _of_model(want: Want, candidates: Candidates) -> Candidates:
    model = want.model
    if model is None:
        return candidates
    return [c for c in candidates if c.model == model or model in c.aliases or c.any_model]


def _of_agent_type(want: Want, candidates: Candidates) -> Candidates:
    # A type that no model left lists is unknown, and any will do: other models' types do not refuse a pinned one.
    agent_type = want.agent_type
    if agent_type is None:
        return candidates
    return [c for c in candidates if agent_type in c.agent_types] or candidates


def _with_context(want: Want, candidates: Candidates) -> Candidates:
    tokens = want.tokens
    return [c for c in candidates if c.context_tokens is None or tokens <= c.context_tokens]


def _that_are_up(_: Want, candidates: Candidates) -> Candidates:
    return [c for c in candidates if c.up]


def _not_draining(_: Want, candidates: Candidates) -> Candidates:
    return [c for c in candidates if not c.draining]


def _not_lost(_: Want, candidates: Candidates) -> Candidates:
    return [c for c in candidates if not c.lost]


def _under_pressure(want: Want, candidates: Candidates) -> Candidates:
    """Keep the sizes that each candidate's level allows.

    At CRITICAL that is the smallest size class among the candidates at CRITICAL. A pinned model has no alternative and
    is not refused. For the same reason the smallest class is kept where the levels would refuse every candidate:
    otherwise a large model whose own weights fill its card to HIGH would never serve, and at CRITICAL it would again.
    """
    if want.model is not None or all(c.pressure is None or c.pressure < MemoryPressureLevel.HIGH for c in candidates):
        return candidates
    tight = [c for c in candidates if MATRIX[c.pressure].sizes is None]
    smallest = frozenset([_smallest(tight)]) if tight else _ALL
    kept = [c for c in candidates if c.size in (MATRIX[c.pressure].sizes or smallest)]
    return kept or [c for c in candidates if c.size == _smallest(candidates)]


def _with_room(_: Want, candidates: Candidates) -> Candidates:
    return [c for c in candidates if c.in_flight < (min(c.limit, 1) if MATRIX[c.pressure].sequential else c.limit)]


def _smallest(candidates: Candidates) -> str:
    return min((c.size for c in candidates), key=_RANK.__getitem__)


# Asked in this order; the first that refuses a candidate names why.
FILTERS: tuple[tuple[str, _Keep], ...] = (
    ("other model", _of_model),
    ("agent type", _of_agent_type),
    ("context", _with_context),
    ("down", _that_are_up),
    ("draining", _not_draining),
    ("gpu lost", _not_lost),
    ("pressure", _under_pressure),
    ("busy", _with_room),
)
_ABLE = FILTERS[:6]  # could serve it, were there memory and room


def _speed(candidates: Candidates) -> list[float]:
    # One that was never called counts as fast as the fastest known, or it would never be tried.
    known = [c.latency_ema_s for c in candidates if c.latency_ema_s is not None]
    unknown_s = min(known, default=1.0)
    return [
        c.limit / (max(unknown_s if c.latency_ema_s is None else c.latency_ema_s, 1e-6) * (c.limit + c.in_flight))
        for c in candidates
    ]


def _free_slots(candidates: Candidates) -> list[float]:
    return [(c.limit - c.in_flight) / c.limit for c in candidates]


def _success(candidates: Candidates) -> list[float]:
    return [1.0 - c.failure_ratio for c in candidates]


def _headroom(candidates: Candidates) -> list[float]:
    return [MATRIX[c.pressure].headroom for c in candidates]


def _preference(candidates: Candidates) -> list[float]:
    rows = [MATRIX[c.pressure] for c in candidates]
    return [
        (0.5 if row.kind in (None, c.kind) else 0.0) + (0.5 if c.size in row.preferred_sizes else 0.0)
        for c, row in zip(candidates, rows, strict=True)
    ]


class Scorer(NamedTuple):
    """`raw` gives each candidate a number ≥ 0, more is better; it keeps no state."""

    name: str
    weight: float
    raw: _Raw


SCORERS = (
    Scorer("latency", 2.0, _speed),
    Scorer("queue", 2.0, _free_slots),
    Scorer("success", 2.0, _success),
    Scorer("headroom", 1.0, _headroom),
    Scorer("preference", 1.0, _preference),
)


def normalised(raw: list[float]) -> list[float]:
    """Return each number's share of the best one: in [0, 1], 1 is best, equal ones all 1. 2, 4, 4 -> 0.5, 1, 1."""
    best = max(raw)
    return [value / best for value in raw] if best > 0 else [1.0] * len(raw)


@dataclass(frozen=True, slots=True)
class Router:
    """Picks a candidate. A score is the weighted mean of the scorers'; ties go by the names of backend and model."""

    scorers: tuple[Scorer, ...] = field(default=SCORERS)

    def choose(self, want: Want, candidates: Candidates, *, explain: bool = False) -> ModelDecision | NoRoute:
        """Return the pick, or who refused. The order of `candidates` does not matter."""
        refused: list[Considered] = []
        left = candidates
        why_not = "no candidates"
        for name, keep in FILTERS:
            if not left:
                break
            kept = keep(want, left)
            if len(kept) < len(left):
                why_not = name
                if explain:
                    refused += [Considered(c.backend, c.model, None, name) for c in left if c not in kept]
            left = kept
        if not left:
            return NoRoute(why_not, _sorted(refused))
        return self._pick(want, left, refused, explain)

    def sheds_low(self, want: Want, candidates: Candidates) -> bool:
        """Whether the low lane is deferred: every candidate that could serve it sheds at its level of pressure."""
        for _, keep in _ABLE:
            candidates = keep(want, candidates)
        return bool(candidates) and all(MATRIX[c.pressure].sheds_low for c in candidates)

    def _pick(self, want: Want, left: Candidates, refused: list[Considered], explain: bool) -> ModelDecision:
        rows = {scorer.name: normalised(scorer.raw(left)) for scorer in self.scorers}
        scores = self._means(rows, len(left))
        best = max(scores)
        tied = [i for i, score in enumerate(scores) if score == best]
        i = tied[0] if len(tied) == 1 else min(tied, key=lambda i: (left[i].backend, left[i].model))
        considered: tuple[Considered, ...] = ()
        if explain:
            scored = [Considered(c.backend, c.model, score, None) for c, score in zip(left, scores, strict=True)]
            considered = _sorted(scored + refused)
        won = left[i]
        return ModelDecision(won.backend, won.model, best, _reason(want, left, i, rows), won.pressure, considered)

    def _means(self, rows: Mapping[str, list[float]], count: int) -> list[float]:
        total = [0.0] * count
        weight = 0.0
        for scorer in self.scorers:
            weight += scorer.weight
            total = [sum_ + scorer.weight * score for sum_, score in zip(total, rows[scorer.name], strict=True)]
        return [sum_ / weight for sum_ in total]


def _reason(want: Want, left: Candidates, i: int, rows: Mapping[str, list[float]]) -> Reason:
    if want.model is not None:
        return Reason.PINNED
    if len(left) == 1:
        return Reason.ONLY
    if (left[i].pressure or 0) >= MemoryPressureLevel.HIGH and left[i].size == _smallest(left):
        return Reason.SMALLEST
    queue, latency = rows.get("queue", [1.0] * len(left)), rows.get("latency", [1.0] * len(left))
    if queue[i] == 1.0 and (min(queue) < 1.0 or min(latency) == 1.0):
        return Reason.QUEUE
    return Reason.FASTEST if latency[i] == 1.0 else Reason.BALANCE


def matrix_row(level: MemoryPressureLevel | None) -> Row:
    """Return what a level of pressure, or one that is not known, means."""
    return MATRIX[level]


def _sorted(rows: list[Considered]) -> tuple[Considered, ...]:
    return tuple(sorted(rows, key=lambda row: (row.backend, row.model)))


choose = Router().choose
"""Pick with the usual scorers."""
