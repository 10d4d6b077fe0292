"""Gaps that are known: each of these runs shows one. Where one is closed its test says so, by passing.

Until then the other runs let them pass (`Checks`, not strict).
"""

from __future__ import annotations

import pytest

from schemas.topics import Lane
from tests.simulation.scenario import Plan, Scenario
from tests.simulation.serving import STUBBORN
from tests.simulation.world import Chances, Violation

_FULL_OF_RETRIES = Plan(
    workers=1,
    lanes=(Lane.NORMAL,),
    tasks=30,
    tries=0,
    slots=1,
    slow_s=3.0,
    waiting=1,
    cancels=15,
    invalid=0.3,
    traits={STUBBORN: 0.5},
    chances=Chances(backend_failed=0.3),
)


@pytest.mark.xfail(raises=Violation, reason="a lane that waits for room is not woken when a retry leaves it")
def test_should_read_on_when_only_retries_filled_the_lane() -> None:
    Scenario(19, _FULL_OF_RETRIES).run()


@pytest.mark.xfail(raises=Violation, reason="a try that failed before its worker ended is counted as a crash")
def test_should_quarantine_only_what_workers_ended_with() -> None:
    Scenario(996, is_strict=True).run()


@pytest.mark.xfail(raises=Violation, reason="the grace for another worker's result counts from the last look")
def test_should_wait_a_whole_second_for_the_result_of_another_worker() -> None:
    Scenario(1084, is_strict=True).run()


@pytest.mark.xfail(raises=Violation, reason="a worker knows the end of a retry only once it has read it back")
def test_should_know_its_own_results_of_retries() -> None:
    Scenario(2012, is_strict=True).run()
