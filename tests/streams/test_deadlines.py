"""When an answer is due, in broker time."""

from __future__ import annotations

import pytest

from schemas.request import InferenceTask
from streams.deadlines import LONGEST_MS, deadline_ms
from streams.errors import InvalidRequest

APPENDED_MS = 1_795_420_000_000


@pytest.mark.parametrize(
    ("created_at_ms", "deadline_at_ms", "due_ms"),
    [
        (None, None, APPENDED_MS + LONGEST_MS),
        (5, None, APPENDED_MS + LONGEST_MS),
        (None, APPENDED_MS + 30_000, APPENDED_MS + 30_000),
        (APPENDED_MS - 200, APPENDED_MS + 29_800, APPENDED_MS + 30_000),
        (1000, 31_000, APPENDED_MS + 30_000),  # a clock that is decades behind costs nothing
        (9_000_000_000_000, 9_000_000_030_000, APPENDED_MS + 30_000),  # nor one that is ahead
        (31_000, 1000, APPENDED_MS - 30_000),  # due before it was made: it has passed
        (None, 0, 0),
        (0, LONGEST_MS, APPENDED_MS + LONGEST_MS),
    ],
)
def test_a_deadline_is_the_producers_own_difference_from_when_kafka_took_the_record(
    created_at_ms: int | None, deadline_at_ms: int | None, due_ms: int
) -> None:
    request = _request(created_at_ms, deadline_at_ms)
    assert due_ms == deadline_ms(request, APPENDED_MS)


@pytest.mark.parametrize(
    ("created_at_ms", "deadline_at_ms"), [(0, LONGEST_MS + 1), (None, APPENDED_MS + LONGEST_MS + 1)]
)
def test_a_deadline_more_than_71_hours_ahead_is_refused(created_at_ms: int | None, deadline_at_ms: int) -> None:
    request = _request(created_at_ms, deadline_at_ms)
    with pytest.raises(InvalidRequest, match="deadline_at_ms: lies more than 71 h ahead"):
        deadline_ms(request, APPENDED_MS)


def _request(created_at_ms: int | None, deadline_at_ms: int | None) -> InferenceTask:
    times = {"created_at_ms": created_at_ms, "deadline_at_ms": deadline_at_ms}
    return InferenceTask.model_validate({"messages": [{"role": "user"}], **times})
