"""A worker ends at every boundary there is, one run for each: before a produce, between append and acknowledgement, after it, and
before and after each commit.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.scenario import Plan, Scenario
from tests.simulation.serving import HUGE, STUBBORN
from tests.simulation.world import Chances, Violation

SEED = 7
BOUNDARIES = {
    "crash before a produce",
    "crash between append and acknowledgement",
    "crash after a produce",
    "crash before a commit",
    "crash after a commit",
}


def scenario(crash_at: int | None = None) -> Scenario:
    plan = Plan(
        partitions=2,
        workers=2,
        tasks=10,
        tiers=1,
        tries=1,
        until_s=22.0,
        drains=[6.0],
        traits={HUGE: 0.15, STUBBORN: 0.25},
        chances=Chances(backend_failed=0.2),
    )
    return Scenario(SEED, plan, crash_at=crash_at)


@pytest.mark.faults
def test_should_lose_nothing_wherever_a_worker_ends() -> None:
    whole = scenario()
    whole.run()
    fired: Counter[str] = Counter()
    for crash_at in range(1, whole.world.boundaries + 1):
        run = scenario(crash_at)
        try:
            run.run()
        except Violation as found:
            pytest.fail(
                f"{found}, when a worker ends at boundary {crash_at} of {whole.world.boundaries}", pytrace=False
            )
        ends = {kind: times for kind, times in run.world.fired.items() if kind in BOUNDARIES}
        assert 1 == sum(ends.values())
        fired += Counter(ends)
    assert set(fired) == BOUNDARIES
    assert fired["crash before a commit"] >= 5
    assert whole.world.fired["handed over to 5s"] > 0
