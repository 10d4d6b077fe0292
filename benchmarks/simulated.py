"""How long a simulated hour of 200 tasks per second takes, and where the time goes. `python -m benchmarks.simulated [SECONDS]`."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time

from cli.simulation import scenario
from cli.simulation.policy import Policy
from cli.simulation.simulator import Simulation

_PROFILED_S = 60.0
_HOUR_S = 3600.0


def main(seconds: float = _HOUR_S) -> None:
    given = scenario.load("day-and-night")
    simulation = Simulation(given, Policy.WEIGHTS)
    began_s, used_s = time.perf_counter(), time.process_time()
    simulation.advance(seconds)
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - used_s
    tasks = sum(row["served"] for row in simulation.figures()["lanes"].values())
    print(
        f"simulated: {seconds:g} s, {tasks} tasks ({tasks / seconds:.0f}/s): {took_s:.1f} s, of CPU {used_s:.1f} s and "
        f"{used_s / tasks * 1e6:.0f} µs a task; an hour of 200/s takes {used_s / tasks * 200 * _HOUR_S:.0f} s of CPU"
    )
    print("  of which " + ", ".join(f"{name} {share:.0%}" for name, share in parts(min(seconds, _PROFILED_S)).items()))


def parts(seconds: float) -> dict[str, float]:
    """Return the shares of a minute's CPU by folder, from a profile: library code counts for nobody."""
    simulation = Simulation(scenario.load("day-and-night"), Policy.WEIGHTS)
    profile = cProfile.Profile()
    profile.runcall(simulation.advance, seconds)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {"streams": 0.0, "cli/simulation": 0.0, "schemas": 0.0}
    for (file, _, _), (_, _, own_s, _, _) in stats.items():
        for name in spent:
            spent[name] += own_s if f"/{name}/" in file else 0.0
    total = sum(row[2] for row in stats.values())
    return {name: own_s / total for name, own_s in spent.items()} | {"built-ins": 1 - sum(spent.values()) / total}


if __name__ == "__main__":
    main(*(float(argument) for argument in sys.argv[1:]))
