"""Runs seeds of the simulated delivery core, or looks how many seeded mistakes it finds."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from tests.simulation.bugs import BUGS, seed_that_finds
from tests.simulation.scenario import Scenario
from tests.simulation.world import Violation

_PROGRESS_EVERY_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--seeds", type=int, default=1000, help="run so many (default 1000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="begin with this seed")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--bugs", action="store_true", help="make each known mistake, and say which are found")
    given = parser.parse_args()
    return find_bugs() if given.bugs else run_seeds(given)


def find_bugs() -> int:
    found = 0
    for bug in BUGS:
        seed = seed_that_finds(bug)
        found += seed is not None
        print(f"{bug.name:42} {bug.breaks:12} {'missed' if seed is None else f'seed {seed}'}", flush=True)
    print(f"{found} of {len(BUGS)}")
    return 0 if found == len(BUGS) else 1


def run_seeds(given: argparse.Namespace) -> int:
    seeds = range(given.first, given.first + given.seeds) if given.seed is None else [given.seed]
    fired: Counter[str] = Counter()
    broken = 0
    began_s = shown_s = time.monotonic()
    for done, seed in enumerate(seeds):
        scenario = Scenario(seed, trace=given.trace)
        try:
            scenario.run()
        except Violation as found:
            broken += 1
            print(f"seed {seed}: {found}\n  python -m tests.simulation --seed {seed} --trace")
        if given.trace:
            print("\n".join(scenario.world.lines or []))
        fired += scenario.world.fired
        if time.monotonic() - shown_s > _PROGRESS_EVERY_S:
            shown_s = time.monotonic()
            print(f"{done + 1} of {len(seeds)} seeds, {broken} broken", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{len(seeds)} seeds in {took_s:.1f} s ({1000 * took_s / len(seeds):.0f} ms each), {broken} broken")
    for kind, times in sorted(fired.items()):
        print(f"  {times:8} {kind}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
