"""From a seed to the faults of a run: which, when, how long and on whom."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done; the part before the first dash is what it is done to."""

    WORKER_KILL = "worker-kill"
    WORKER_TERM = "worker-term"
    WORKER_PAUSE = "worker-pause"
    WORKER_SCALE = "worker-scale"
    GATEWAY_KILL = "gateway-kill"
    GATEWAY_TERM = "gateway-term"
    BROKER_KILL = "broker-kill"
    BROKER_PAUSE = "broker-pause"
    BROKER_LEADER = "broker-leader"
    BROKER_TWO = "broker-two"
    BACKEND_DOWN = "backend-down"
    BACKEND_ALL = "backend-all"
    BACKEND_500 = "backend-500"
    BACKEND_429 = "backend-429"
    BACKEND_HANG = "backend-hang"
    BACKEND_SLOW = "backend-slow"
    BACKEND_RESET = "backend-reset"
    BACKEND_GARBAGE = "backend-garbage"
    NETWORK_SLOW = "network-slow"
    NETWORK_CUT = "network-cut"
    LOAD_FLOOD = "load-flood"
    LOAD_CANCELS = "load-cancels"
    LOAD_POISON = "load-poison"

    @property
    def family(self) -> str:
        """What is broken: of one family there is one fault at a time."""
        family = self.value.partition("-")[0]
        return "backend" if family == "network" else family


LONG = tuple(Kind)
SHORT = (
    Kind.WORKER_KILL,
    Kind.LOAD_CANCELS,
    Kind.BROKER_LEADER,
    Kind.BACKEND_500,
    Kind.GATEWAY_KILL,
    Kind.LOAD_POISON,
    Kind.WORKER_PAUSE,
    Kind.BACKEND_DOWN,
    Kind.WORKER_TERM,
)

# Seconds for which a fault of a kind lasts; 0: it is over as soon as it is mended.
_LASTS_S: dict[Kind, tuple[float, float]] = {
    Kind.WORKER_PAUSE: (2, 20),
    Kind.BROKER_KILL: (1, 8),
    Kind.BROKER_LEADER: (1, 8),
    Kind.BROKER_PAUSE: (3, 12),
    Kind.BROKER_TWO: (3, 8),
    Kind.BACKEND_DOWN: (2, 8),
    Kind.BACKEND_ALL: (2, 5),
    **dict.fromkeys((Kind.BACKEND_500, Kind.BACKEND_429, Kind.BACKEND_RESET, Kind.BACKEND_GARBAGE), (2, 6)),
    **dict.fromkeys((Kind.BACKEND_HANG, Kind.BACKEND_SLOW, Kind.NETWORK_SLOW, Kind.NETWORK_CUT), (3, 8)),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: `at_s` after the load began, for `lasts_s`; `pick` in [0, 1) says on which of those that are there."""

    name: str
    kind: Kind
    at_s: float
    lasts_s: float
    pick: float

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:7.1f} s  {self.name}{lasts}"


def plan(
    seed: int, seconds: float, kinds: Sequence[Kind], *, gap_s: tuple[float, float], longest_s: float = 20.0
) -> list[Planned]:
    """Return the faults of a run of this length. Every kind is there once before one comes again; faults may overlap."""
    rng = random.Random(seed)
    turn = _turns(rng, kinds)
    planned: list[Planned] = []
    at_s = rng.uniform(1, 3)
    while at_s < seconds:
        kind = next(turn)
        low_s, high_s = _LASTS_S.get(kind, (0.0, 0.0))
        lasts_s = rng.uniform(low_s, min(high_s, max(longest_s, low_s)))
        number = 1 + sum(each.kind is kind for each in planned)
        planned.append(Planned(f"{kind.value}-{number}", kind, round(at_s, 1), round(lasts_s, 1), rng.random()))
        at_s += rng.uniform(*gap_s)
    return planned


def _turns(rng: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    while True:
        yield from rng.sample(kinds, len(kinds))
