"""Deficit round robin over lanes: each lane's share of the tokens served follows its weight.

Source: Shreedhar and Varghese, Efficient Fair Queuing Using Deficit Round Robin, SIGCOMM 1995.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.topics import Lane

# Tokens a lane of weight 1 gains per round. Small against a usual batch, so that a lane never gets far ahead of its share.
QUANTUM_TOKENS = 64
# A lane whose reserved slots alone serve more than its share owes no more than this, about four large batches.
MOST_DEBT_TOKENS = 65_536


@dataclass
class DeficitRoundRobin:
    """Say whose turn it is. A lane may send while its deficit covers the cost of its head; what it sends beyond that is debt.

    With weights 8, 4, 2, 1 and all lanes waiting with equal costs, 15 turns are 8 critical, 4 high, 2 normal, 1 low.
    A lane without work keeps no credit, but its debt: else one that comes in bursts, each a whole batch, would pay for the
    first request of each only. Served alone, a lane is not charged, since it takes nothing from anybody, and what others owe
    is paid off as their shares of that service would have been.
    """

    weights: Mapping[Lane, int]
    _deficit: dict[Lane, float] = field(default_factory=dict)
    _order: list[Lane] = field(default_factory=list)
    _turn: int = 0

    def __post_init__(self) -> None:
        self._order = [lane for lane in Lane if lane in self.weights]
        self._deficit = dict.fromkeys(self._order, 0.0)
        self._turn = len(self._order) - 1  # so that the first to gain is the most urgent

    def pick(self, costs: Mapping[Lane, int]) -> Lane:
        """Return the lane that may send now, of those in `costs` (lane -> tokens of what it would send first; not empty)."""
        if len(costs) == 1:
            return next(iter(costs))
        lane = self._order[self._turn]
        if lane in costs and self._deficit[lane] >= costs[lane]:
            return lane
        self._skip_rounds(costs)
        while True:
            self._turn = (self._turn + 1) % len(self._order)
            lane = self._order[self._turn]
            if lane not in costs:
                continue
            self._deficit[lane] += self._gain(lane)
            if self._deficit[lane] >= costs[lane]:
                return lane

    def spend(self, lane: Lane, tokens: int, *, alone: bool) -> None:
        """Charge a lane for what it sent. `alone`: no other lane waits for the same backend."""
        if not alone:
            self._deficit[lane] = max(self._deficit[lane] - tokens, -MOST_DEBT_TOKENS)
            return
        self._deficit[lane] = max(self._deficit[lane], 0.0)
        for other, deficit in self._deficit.items():
            if deficit < 0:
                share = tokens * self.weights[other] / self.weights[lane]
                self._deficit[other] = min(deficit + share, 0.0)

    def correct(self, lane: Lane, tokens: int) -> None:
        """Charge a lane what a task took beyond its cost, or pay back (negative) what it took less."""
        self._deficit[lane] = max(self._deficit[lane] - tokens, -MOST_DEBT_TOKENS)

    def forget(self, lane: Lane) -> None:
        """Take a lane's credit away: it has no work."""
        self._deficit[lane] = min(self._deficit[lane], 0.0)

    def _gain(self, lane: Lane) -> int:
        return self.weights[lane] * QUANTUM_TOKENS

    def _skip_rounds(self, costs: Mapping[Lane, int]) -> None:
        """Credit at once the whole rounds in which nobody could send, so that one large request costs no long loop."""
        rounds = min(math.ceil((cost - self._deficit[lane]) / self._gain(lane)) for lane, cost in costs.items()) - 1
        if rounds > 0:
            for lane in costs:
                self._deficit[lane] += rounds * self._gain(lane)
