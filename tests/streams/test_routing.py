"""Who takes a batch, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.pressure import MemoryPressureLevel
from streams.routing import (
    Candidate,
    Considered,
    ModelDecision,
    NoRoute,
    Reason,
    Router,
    Want,
    choose,
    matrix_row,
    normalised,
)

LOW, NORMAL, HIGH, CRITICAL = MemoryPressureLevel
AUTO = Want(None, None, 100)

A = Candidate(
    backend="a",
    kind="llamacpp",
    model="tiny",
    size="tiny",
    in_flight=0,
    limit=4,
    latency_ema_s=1.0,
    failure_ratio=0.0,
    pressure=None,
    up=True,
    draining=False,
    lost=False,
    agent_types=frozenset(),
    context_tokens=None,
    aliases=frozenset({"small-one"}),
)
B = replace(A, backend="b", model="big", size="large", aliases=frozenset())


def picked(want: Want, *candidates: Candidate) -> str | None:
    """Return the backend that is picked, None when there is no route."""
    decision = choose(want, candidates)
    return decision.backend if isinstance(decision, ModelDecision) else None


def refusal(want: Want, *candidates: Candidate) -> str | None:
    """Return what refused the last candidates."""
    decision = choose(want, candidates)
    return decision.why_not if isinstance(decision, NoRoute) else None


@pytest.mark.parametrize(
    ("candidate", "want", "why_not"),
    [
        (A, Want("other", None, 1), "other model"),
        (replace(A, context_tokens=99), AUTO, "context"),
        (replace(A, up=False), AUTO, "down"),
        (replace(A, draining=True), AUTO, "draining"),
        (replace(A, lost=True), AUTO, "gpu lost"),
        (replace(A, in_flight=4), AUTO, "busy"),
        (replace(A, limit=0), AUTO, "busy"),
        (replace(A, pressure=CRITICAL, in_flight=1), AUTO, "busy"),
    ],
)
def test_a_candidate_is_refused_with_the_filters_name(candidate: Candidate, want: Want, why_not: str) -> None:
    assert why_not == refusal(want, candidate)
    found = choose(want, [candidate], explain=True)
    assert (Considered("a", "tiny", None, why_not),) == found.considered


def test_without_candidates_there_is_no_route_and_it_is_not_called_permanent() -> None:
    assert NoRoute("no candidates", (), permanent=False) == choose(AUTO, [])


def test_a_pinned_model_is_found_by_name_or_alias() -> None:
    assert picked(Want("tiny", None, 1), A, B) == "a"
    assert picked(Want("small-one", None, 1), A, B) == "a"
    assert picked(Want("big", None, 1), A, B) == "b"


def test_an_agent_type_goes_to_the_models_that_list_it() -> None:
    listed = replace(B, agent_types=frozenset({"triage"}), latency_ema_s=60.0)
    assert picked(Want(None, "triage", 1), A, listed) == "b"
    assert refusal(Want(None, "triage", 1), A, replace(listed, up=False)) == "down"


def test_an_agent_type_that_no_model_lists_goes_anywhere() -> None:
    assert picked(Want(None, "unheard of", 1), A) == "a"


def test_a_pinned_model_is_not_refused_for_an_agent_type_of_others() -> None:
    other = replace(B, agent_types=frozenset({"triage"}))
    assert picked(Want("tiny", "triage", 1), A, other) == "a"


def test_a_lost_card_sends_the_batch_to_a_surviving_backend() -> None:
    assert picked(AUTO, replace(A, lost=True), replace(A, backend="b", latency_ema_s=9.0)) == "b"


@pytest.mark.parametrize(
    ("level", "sizes"),
    [
        (None, {"tiny", "small", "medium", "large"}),
        (LOW, {"tiny", "small", "medium", "large"}),
        (NORMAL, {"tiny", "small", "medium", "large"}),
        (HIGH, {"tiny", "small", "medium"}),
        (CRITICAL, {"tiny"}),
    ],
)
def test_a_level_allows_the_sizes_of_its_row(level: MemoryPressureLevel | None, sizes: set[str]) -> None:
    every = [
        replace(A, backend=size, model=size, size=size, pressure=level) for size in ("tiny", "small", "medium", "large")
    ]
    decision = choose(AUTO, every, explain=True)
    assert sizes == {row.backend for row in decision.considered if row.why_not is None}
    assert {"pressure"} >= {row.why_not for row in decision.considered if row.why_not is not None}


def test_critical_keeps_the_smallest_that_is_there_at_critical() -> None:
    small, large = replace(A, pressure=CRITICAL, size="small"), replace(B, pressure=CRITICAL)
    easy = replace(A, backend="c", size="tiny", pressure=LOW, up=False)
    assert picked(AUTO, small, large, easy) == "a"
    assert picked(AUTO, large) == "b"


def test_a_large_model_serves_at_high_only_where_nothing_smaller_is_there() -> None:
    large = replace(B, pressure=HIGH)
    assert picked(AUTO, large) == "b"
    assert picked(AUTO, large, replace(A, pressure=HIGH)) == "a"
    assert refusal(AUTO, large, replace(A, pressure=HIGH, in_flight=4)) == "busy"


def test_a_pinned_model_is_not_refused_for_its_size() -> None:
    assert picked(Want("big", None, 1), replace(B, pressure=CRITICAL), replace(A, pressure=CRITICAL)) == "b"


def test_a_pinned_model_waits_its_turn_at_critical() -> None:
    assert refusal(Want("big", None, 1), replace(B, pressure=CRITICAL, in_flight=1)) == "busy"


def test_each_level_prefers_its_kind() -> None:
    def kind_at(level: MemoryPressureLevel) -> str | None:
        return picked(AUTO, *(replace(A, backend=kind, kind=kind, pressure=level) for kind in ("llamacpp", "vllm")))

    assert [kind_at(level) for level in (LOW, NORMAL, HIGH)] == ["vllm", "llamacpp", "llamacpp"]


def test_normal_prefers_small_models() -> None:
    assert picked(AUTO, replace(A, backend="z", pressure=NORMAL), replace(B, pressure=NORMAL)) == "z"


def test_one_never_called_is_tried() -> None:
    assert picked(AUTO, A, replace(A, backend="new", latency_ema_s=None, in_flight=0), replace(A, in_flight=1)) == "a"
    assert picked(AUTO, replace(A, latency_ema_s=9.0), replace(A, backend="z", latency_ema_s=0.1)) == "z"
    assert picked(AUTO, replace(A, in_flight=2), replace(A, backend="new", latency_ema_s=None)) == "new"


def test_one_that_fails_is_avoided() -> None:
    assert picked(AUTO, replace(A, failure_ratio=0.5), replace(A, backend="z")) == "z"


@pytest.mark.parametrize(
    ("want", "candidates", "reason"),
    [
        (Want("tiny", None, 1), [A, B], Reason.PINNED),
        (AUTO, [A], Reason.ONLY),
        (AUTO, [A, replace(A, backend="b", up=False)], Reason.ONLY),
        (AUTO, [A, replace(A, backend="b")], Reason.QUEUE),
        (AUTO, [A, replace(A, backend="b", in_flight=1)], Reason.QUEUE),
        (AUTO, [A, replace(A, backend="b", latency_ema_s=2.0)], Reason.FASTEST),
        (AUTO, [replace(A, pressure=CRITICAL), replace(A, backend="b", pressure=CRITICAL)], Reason.SMALLEST),
        (
            AUTO,
            [replace(A, in_flight=1), replace(A, backend="b", latency_ema_s=0.9, failure_ratio=0.9)],
            Reason.BALANCE,
        ),
    ],
)
def test_a_decision_keeps_its_reason(want: Want, candidates: list[Candidate], reason: Reason) -> None:
    decision = choose(want, candidates)
    assert isinstance(decision, ModelDecision)
    assert reason is decision.reason


def test_an_explanation_names_every_candidate_with_its_score_or_refusal() -> None:
    down = replace(A, backend="c", up=False)
    decision = choose(AUTO, [down, replace(A, backend="b", in_flight=2), A], explain=True)
    assert isinstance(decision, ModelDecision)
    assert [row.backend for row in decision.considered] == ["a", "b", "c"]
    best, second, refused = decision.considered
    assert (best.score, best.why_not) == (1.0, None)
    assert second.score is not None
    assert 0.5 < second.score < 1.0
    assert (refused.score, refused.why_not) == (None, "down")
    assert choose(AUTO, [A]).considered == ()


def test_the_low_lane_is_shed_when_all_that_could_serve_it_are_critical() -> None:
    full = replace(A, pressure=CRITICAL, in_flight=1)
    assert Router().sheds_low(AUTO, [full, replace(A, up=False)])
    assert not Router().sheds_low(AUTO, [full, replace(A, backend="b", in_flight=4)])
    assert not Router().sheds_low(AUTO, [full, replace(A, backend="b", pressure=LOW)])
    assert not Router().sheds_low(AUTO, [replace(A, up=False)])


def test_only_critical_is_sequential_and_sheds() -> None:
    levels = [None, *MemoryPressureLevel]
    assert [level for level in levels if matrix_row(level).sequential and matrix_row(level).sheds_low] == [CRITICAL]


def test_a_share_of_the_best_is_one_for_equals() -> None:
    assert normalised([2.0, 4.0, 4.0]) == [0.5, 1.0, 1.0]
    assert normalised([0.0, 0.0]) == [1.0, 1.0]
