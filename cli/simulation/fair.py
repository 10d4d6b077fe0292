"""What each lane is due by its weight: the yardstick for the shares that a run gave.

Source: generalised processor sharing, Parekh and Gallager, 1993: an ideal server that splits itself at every moment among the lanes
with work, by their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.topics import Lane


def due_tokens(
    offered: Mapping[Lane, Sequence[float]], sent: Sequence[float], weights: Mapping[Lane, float]
) -> dict[Lane, float]:
    """Return the tokens each lane would have got of an ideal server that sent as many as the real one did, second by second.

    `offered` are the tokens that came per second (less than zero where waiting ones went away), `sent` all that left per second.
    """
    waiting, due = dict.fromkeys(offered, 0.0), dict.fromkeys(offered, 0.0)
    for second, tokens in enumerate(sent):
        for lane, came in offered.items():
            waiting[lane] = max(waiting[lane] + (came[second] if second < len(came) else 0.0), 0.0)
        for lane, part in split(tokens, waiting, weights).items():
            waiting[lane] -= part
            due[lane] += part
    return due


def split(tokens: float, wanted: Mapping[Lane, float], weights: Mapping[Lane, float]) -> dict[Lane, float]:
    """Return `tokens` split by weight, nobody getting more than wanted; what one leaves goes to the others by their weights.

    100 to be split 3 : 1 among lanes that want 30 and 90: 30 and 70.
    """
    given = dict.fromkeys(wanted, 0.0)
    open_lanes = {lane for lane, want in wanted.items() if want > 0}
    while open_lanes and tokens > 0:
        weight = sum(weights[lane] for lane in open_lanes)
        content = {lane for lane in open_lanes if wanted[lane] <= tokens * weights[lane] / weight}
        for lane in content or open_lanes:
            given[lane] = wanted[lane] if content else tokens * weights[lane] / weight
        if not content:
            break
        tokens -= sum(wanted[lane] for lane in content)
        open_lanes -= content
    return given
