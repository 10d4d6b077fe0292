"""What the dispatcher keeps of a model server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.topics import Lane
from streams.backends import DEFAULT_SLOTS, OVERLOAD_PAUSE_S, BackendState
from streams.ports import Probe
from streams.settings import BackendSettings


def state(slots: int | None = 4, reserved: dict[Lane, int] | None = None, **fields: object) -> BackendState:
    row = {"name": "b1", "url": "http://b1", "max_concurrency": slots, **fields}
    return BackendState(BackendSettings.model_validate(row), reserved or {})


@pytest.mark.parametrize(
    ("slots", "probe", "limit"),
    [
        (3, Probe(True, slots=9), 3),
        (None, Probe(True, slots=9), 9),
        (None, Probe(True), DEFAULT_SLOTS),
        (None, None, DEFAULT_SLOTS),
    ],
)
def test_its_limit_is_the_settings_else_what_it_said_else_eight(
    slots: int | None, probe: Probe | None, limit: int
) -> None:
    backend = state(slots)
    backend.probe = probe
    assert limit == backend.limit


def test_its_models_are_the_settings_else_what_it_said() -> None:
    said, told = state(), state(models=["named"])
    assert ((), ("named",), False) == (said.models, told.models, said.has_answered)
    said.probe = told.probe = Probe(True, models=("said",))
    assert (("said",), ("named",), True) == (said.models, told.models, said.has_answered)


@pytest.mark.parametrize(
    ("slots", "in_flight", "critical", "others"),
    [
        (4, {}, 4, 3),
        (4, {Lane.LOW: 2}, 2, 1),
        (4, {Lane.LOW: 3}, 1, 0),
        (4, {Lane.CRITICAL: 1}, 3, 3),  # the reserved slot is in use by its lane
        (4, {Lane.CRITICAL: 2, Lane.LOW: 1}, 1, 1),
        (4, {Lane.LOW: 4}, 0, 0),
        (2, {}, 2, 1),
        (1, {}, 1, 1),  # with one slot none is reserved
        (1, {Lane.LOW: 1}, 0, 0),
        (2, {Lane.LOW: 5}, 0, 0),  # the limit went down
    ],
)
def test_the_reserved_slot_is_never_lent(slots: int, in_flight: dict[Lane, int], critical: int, others: int) -> None:
    backend = state(slots, {Lane.CRITICAL: 1})
    for lane, count in in_flight.items():
        backend.start(lane, count)
    assert critical == backend.free(Lane.CRITICAL)
    assert {others} == {backend.free(lane) for lane in (Lane.HIGH, Lane.NORMAL, Lane.LOW)}


def test_in_sequential_mode_there_is_one_slot_for_all() -> None:
    backend = state(4, {Lane.CRITICAL: 1})
    assert {1} == {backend.free(lane, sequential=True) for lane in Lane}
    backend.start(Lane.LOW, 1)
    assert {0} == {backend.free(lane, sequential=True) for lane in Lane}


def test_reservations_together_leave_one_slot() -> None:
    backend = state(4, {Lane.CRITICAL: 2, Lane.HIGH: 9})
    assert (1, 3, 2) == (backend.free(Lane.LOW), backend.free(Lane.CRITICAL), backend.free(Lane.HIGH))


reservations = st.dictionaries(st.sampled_from(Lane), st.integers(0, 6))


@given(st.integers(1, 8), reservations, st.lists(st.tuples(st.sampled_from(Lane), st.booleans()), max_size=40))
def test_no_sequence_of_calls_exceeds_the_limit_or_takes_what_is_reserved_for_others(
    slots: int, reserved: dict[Lane, int], calls: list[tuple[Lane, bool]]
) -> None:
    backend = state(slots, reserved)
    for lane, starts in calls:
        if starts and backend.free(lane):
            backend.start(lane, 1)
        elif not starts and backend.in_flight.get(lane):
            backend.finish(lane)
        assert backend.busy <= slots
        for own in Lane:
            kept_free = backend.limit - backend.busy
            assert backend.free(own) <= kept_free
        # Whatever runs, a lane that keeps within its reservation always finds its slot free.
        room = slots - 1
        for own, count in reserved.items():
            effective = min(count, room)
            room -= effective
            if backend.in_flight.get(own, 0) < effective:
                assert backend.free(own) >= effective - backend.in_flight.get(own, 0)


def test_latency_and_failures_are_moving_averages() -> None:
    backend = state()
    backend.observe("tiny", 2.0)
    assert ({"tiny": 2.0}, 0.0) == (backend.latency_s, backend.failure_ratio)
    backend.observe("tiny", 4.0)
    backend.observe("tiny", None)
    assert [2.2, 0.1] == pytest.approx([backend.latency_s["tiny"], backend.failure_ratio])


def test_a_pause_lasts_as_long_as_was_asked_and_is_not_shortened() -> None:
    backend = state()
    backend.pause(30, now_s=100)
    backend.pause(None, now_s=101)
    assert 130 == backend.paused_until_s
    backend.pause(None, now_s=200)
    assert 200 + OVERLOAD_PAUSE_S == backend.paused_until_s
    assert "BackendState('b1', up=False, 0/4)" == repr(backend)
