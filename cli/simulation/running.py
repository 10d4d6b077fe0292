"""Run a scenario's policies one after another, tell how far it is, and keep what there is when it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from cli.simulation.scenario import Scenario
from cli.simulation.simulator import Simulation

_SLICE_S = 1.0
_TELL_EVERY_S = 0.5


def run(name: str, scenario: Scenario, clock_s: Callable[[], float]) -> tuple[dict[str, Any], bool]:
    """Return the report, and whether it was interrupted: then it has the runs that ended and the beginning of one.

    Tells on stderr how far it is. `clock_s` is the wall's monotonic clock.
    """
    runs: list[dict[str, Any]] = []
    interrupted = False
    for policy in scenario.policies:
        simulation = Simulation(scenario, policy)
        began_s = clock_s()
        try:
            _advance(simulation, clock_s)
        except KeyboardInterrupt:
            interrupted = True
        runs.append({**simulation.figures(), "took_s": round(clock_s() - began_s, 2)})
        if interrupted:
            break
    return {
        "scenario": name,
        "title": scenario.title,
        "seconds": scenario.seconds,
        "seed": scenario.seed,
        "workers": scenario.workers,
        "runs": runs,
    }, interrupted


def _advance(simulation: Simulation, clock_s: Callable[[], float]) -> None:
    seconds = simulation.scenario.seconds
    told_s = clock_s()
    try:
        while simulation.now_s < seconds:
            simulation.advance(min(simulation.now_s + _SLICE_S, seconds))
            if clock_s() - told_s >= _TELL_EVERY_S:
                told_s = clock_s()
                _tell(f"{simulation.policy.value}: {simulation.now_s:.0f} of {seconds:g} s")
    finally:
        _tell("")


def _tell(text: str) -> None:
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
