"""Runs that once broke a promise, by the plan and the seed that showed it, and gaps that are known: such a test says by passing
that its gap is closed.
"""

from __future__ import annotations

import pytest

from tests.simulation.bugs import MOVING, ONE_POISON
from tests.simulation.scenario import Scenario
from tests.simulation.world import Violation


@pytest.mark.xfail(
    raises=Violation,
    reason="a task that is given up frees its slot at once, though the batch call it is part of goes on for the others",
)
@pytest.mark.parametrize("seed", [470, 1120, 1174])
def test_should_count_the_slots_of_a_batch_call_until_it_ends(seed: int) -> None:
    Scenario(seed).run()


@pytest.mark.xfail(
    raises=Violation,
    reason="a task that cannot be parked, as too large for a retry topic, gets its tries in place anew",
)
def test_should_not_give_new_tries_to_a_task_that_cannot_be_parked() -> None:
    Scenario(1835).run()


def test_should_blame_a_worker_that_fell_silent_while_a_task_was_held_back() -> None:
    Scenario(29, ONE_POISON).run()


def test_should_wait_for_the_result_of_a_worker_that_says_it_has_ended_a_task() -> None:
    Scenario(104, MOVING).run()


def test_should_not_count_a_worker_that_has_left_as_crashed() -> None:
    Scenario(170, MOVING).run()
