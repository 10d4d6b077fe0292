"""Runs that once broke a promise, by the plan and the seed that showed it."""

from __future__ import annotations

from tests.simulation.bugs import MOVING, ONE_POISON
from tests.simulation.scenario import Scenario


def test_should_blame_a_worker_that_fell_silent_while_a_task_was_held_back() -> None:
    Scenario(29, ONE_POISON).run()


def test_should_wait_for_the_result_of_a_worker_that_says_it_has_ended_a_task() -> None:
    Scenario(104, MOVING).run()


def test_should_not_count_a_worker_that_has_left_as_crashed() -> None:
    Scenario(170, MOVING).run()
