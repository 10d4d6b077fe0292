"""When an answer is due, in broker time."""

from __future__ import annotations

from schemas.request import InferenceTask
from streams.errors import InvalidRequest

# One hour short of the request's retention, so that `expired` is in the log before Kafka removes the request.
LONGEST_MS = 71 * 3_600_000


def deadline_ms(request: InferenceTask, appended_ms: int) -> int:
    """Return the deadline in broker time of a request whose record Kafka appended at `appended_ms`.

    With `created_at_ms` only the producer's own difference counts, so a producer whose clock is wrong loses nothing.

    Raises: InvalidRequest when it lies more than 71 h ahead.
    """
    asked = request.deadline_at_ms
    if asked is None:
        return appended_ms + LONGEST_MS
    due = asked if request.created_at_ms is None else appended_ms + asked - request.created_at_ms
    if due - appended_ms > LONGEST_MS:
        raise InvalidRequest("deadline_at_ms: lies more than 71 h ahead")
    return due
