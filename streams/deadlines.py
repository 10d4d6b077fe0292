"""When an answer is due, in broker time."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, sqrt

from schemas.request import InferenceTask
from streams.errors import InvalidRequest
from streams.task import Task
from streams.workers import Rate

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


# A rate is not told from fewer tasks than this, nor from a worker that has hardly served yet.
_LEAST_COUNTED = 20
# The rate is taken to be this many of its own standard deviations higher than measured.
_DEVIATIONS = 3.0


def cannot_be_met(left_s: float, tokens_ahead: float, rate: Rate) -> bool:
    """Whether `tokens_ahead`, of tasks that all must start before a task and outlive its deadline, take longer than `left_s`.

    `rate` is what the backends have served of all lanes while work waited. It is taken three standard deviations higher than measured
    (n tasks tell it to 1/sqrt(n)), and as if all of it served nothing but what is ahead: whatever happens, but for backends that
    are added, the task is not started in time. False while too little was measured.
    """
    if rate.counted < _LEAST_COUNTED:
        return False
    return tokens_ahead > max(left_s, 0.0) * rate.tokens_per_s * (1 + _DEVIATIONS / sqrt(rate.counted))


def is_infeasible(
    task: Task, waiting: Iterable[Task], rate: Rate, answer_s: float, *, by_size: bool, now_s: float
) -> bool:
    """Whether a task that is taken in now ends as expired whatever happens.

    `waiting` are those of its lane, tenant and model; `answer_s` is the least that an answer takes. Before it go those of its budget and
    agent type that are due no later, and (`by_size`: the lane sends the short first) cost no more. What is due so early that it may
    expire first counts for nothing.
    """
    start_by_s = task.deadline_s - answer_s
    most_tokens = task.cost_tokens if by_size else inf
    before = (each for each in waiting if start_by_s <= each.deadline_s <= task.deadline_s)
    tokens = sum(each.cost_tokens for each in before if each.cost_tokens <= most_tokens and _is_alike(each, task))
    return cannot_be_met(start_by_s - now_s, tokens, rate)


def _is_alike(one: Task, other: Task) -> bool:
    """Whether two tasks of a class stand in the same line: it is one for each budget, and each agent type may have models of its own."""
    return one.request.budget == other.request.budget and one.request.agent_type == other.request.agent_type
