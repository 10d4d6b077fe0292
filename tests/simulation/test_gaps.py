"""Gaps that are known: each of these runs shows one. Where one is closed its test says so, by passing."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import MOVING, ONE_POISON
from tests.simulation.scenario import Scenario
from tests.simulation.world import Violation


@pytest.mark.xfail(
    raises=Violation, reason="crashes are counted when a task is taken in, and not again when it is queued"
)
def test_should_blame_a_worker_that_fell_silent_while_a_task_was_held_back() -> None:
    Scenario(29, ONE_POISON).run()


@pytest.mark.xfail(
    raises=Violation, reason="what no snapshot lists is run at once, though its result may be on its way"
)
def test_should_wait_for_the_result_of_a_worker_that_says_it_has_ended_a_task() -> None:
    Scenario(104, MOVING).run()


@pytest.mark.xfail(raises=Violation, reason="a worker that has left counts as crashed until its last results are read")
def test_should_not_count_a_worker_that_has_left_as_crashed() -> None:
    Scenario(170, MOVING).run()
