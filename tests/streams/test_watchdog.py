"""A partition that is up and not read."""

from __future__ import annotations

import pytest

from streams.watchdog import Reading, Watchdog


def judged(*readings: Reading, every_s: float = 1.0, after_s: float = 10.0) -> list[bool]:
    """Return, for each look at one partition, whether it was found stuck."""
    watchdog = Watchdog(after_s)
    return [watchdog.look({3: each}, now_s=number * every_s) == 3 for number, each in enumerate(readings)]


def test_a_partition_that_stands_still_with_records_to_read_is_stuck_after_its_time() -> None:
    assert [False] * 10 + [True] == judged(*[Reading(5, 9, has_room=True)] * 11)


@pytest.mark.parametrize(
    "readings",
    [
        [Reading(5, 5, has_room=True)] * 30,  # nothing to read
        [Reading(5, 9, has_room=False)] * 30,  # held up by this side
        [Reading(number, 1000, has_room=True) for number in range(30)],  # it moves
        [Reading(5, 9, has_room=number % 9 != 0) for number in range(30)],  # there was no room in between
    ],
)
def test_a_partition_that_moves_or_need_not_is_not_stuck(readings: list[Reading]) -> None:
    assert not any(judged(*readings))


def test_a_process_that_was_stopped_itself_gets_its_time_anew() -> None:
    watchdog = Watchdog(after_s=10.0)
    stuck = {3: Reading(5, 9, has_room=True)}
    found = [watchdog.look(stuck, now_s=at_s) for at_s in (0.0, 1.0, 100.0, 102.0)]
    assert [None] * 4 == found


def test_a_partition_that_was_given_back_and_came_again_begins_anew() -> None:
    watchdog = Watchdog(after_s=10.0)
    stuck = Reading(5, 9, has_room=True)
    for at_s, readings in ((0.0, {3: stuck}), (2.0, {}), *((at_s, {3: stuck}) for at_s in (4.0, 6.0, 8.0, 10.0, 12.0))):
        assert watchdog.look(readings, now_s=at_s) is None
    assert 3 == watchdog.look({3: stuck}, now_s=14.0)
