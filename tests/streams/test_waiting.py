"""How much a lane holds, and when that is enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import Lane
from streams.settings import LaneSettings, LanesSettings
from streams.task import Task
from streams.waiting import Load, Loads
from tests.support.tasks import make_task

BOUNDS = LaneSettings(max_batch_requests=4, max_waiting_requests=4, max_waiting_bytes=1000, max_waiting_tokens=500)


def sized(size_bytes: int, tokens: int, lane: Lane = Lane.NORMAL) -> Task:
    task = make_task(lane=lane, cost_tokens=tokens)
    task.size_bytes = size_bytes
    return task


@pytest.mark.parametrize(
    ("load", "has_room", "is_heavy"),
    [
        (Load(), True, False),
        (Load(3, 999, 499), True, False),
        (Load(4, 10, 10), False, False),
        (Load(1, 1000, 10), False, True),
        (Load(1, 10, 500), False, True),
        (Load(1, 1_000_000, 10), False, True),
    ],
)
def test_should_be_full_by_requests_bytes_or_tokens(load: Load, has_room: bool, is_heavy: bool) -> None:
    assert (has_room, is_heavy) == (load.has_room(BOUNDS), load.is_heavy(BOUNDS))


def test_should_leave_retries_room_of_their_own() -> None:
    assert [True, False] == [Load(requests).has_room(BOUNDS, 1.25) for requests in (4, 5)]


def test_should_take_one_task_that_alone_is_larger_than_the_bounds() -> None:
    loads = Loads()
    assert loads.lanes[Lane.NORMAL].has_room(BOUNDS)
    loads.add(sized(5000, 5000))
    assert not loads.lanes[Lane.NORMAL].has_room(BOUNDS)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.booleans()),
        max_size=60,
    )
)
def test_should_count_each_task_once_however_often_it_is_said(said: list[tuple[int, bool]]) -> None:
    tasks = [sized(number * 10, number + 1, list(Lane)[number % 4]) for number in range(10)]
    loads, held = Loads(), set[Task]()
    for number, comes in said:
        (loads.add if comes else loads.remove)(tasks[number])
        (held.add if comes else held.discard)(tasks[number])
    for lane, load in loads.lanes.items():
        mine = [task for task in held if task.lane is lane]
        expected = (len(mine), sum(task.size_bytes for task in mine), sum(task.cost_tokens for task in mine))
        assert expected == (load.requests, load.size_bytes, load.tokens)
    assert len(held) == len(loads)


def test_should_refuse_a_lane_that_could_never_fill_a_batch() -> None:
    with pytest.raises(ValueError, match="max_waiting_requests must be at least max_batch_requests"):
        LanesSettings.model_validate({"low": {"max_waiting_requests": 8}})


def test_should_keep_each_lanes_own_bounds_where_none_are_set() -> None:
    lanes = LanesSettings.model_validate({"low": {"max_waiting_bytes": 5}})
    assert [2048, 1024, 512, 256] == [lanes[lane].max_waiting_requests for lane in Lane]
    assert [32 << 20, 16 << 20, 16 << 20, 5] == [lanes[lane].max_waiting_bytes for lane in Lane]
