"""Does the simulation see what it is for? Each mistake must be found, by the promise it breaks."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS, Bug, seed_that_finds


def test_should_know_at_least_seventeen_mistakes() -> None:
    assert len({bug.name for bug in BUGS}) >= 17


@pytest.mark.faults
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_should_find_each_mistake_by_the_promise_it_breaks(bug: Bug) -> None:
    assert seed_that_finds(bug) is not None
