"""What holds for every decision, whatever the candidates are."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from streams.pressure import MemoryPressureLevel
from streams.routing import SCORERS, SIZES, Candidate, ModelDecision, NoRoute, Want, choose, normalised

NAMES = ("tiny", "mid", "big")
TYPES = ("triage", "summary")


@st.composite
def candidates(draw: st.DrawFn, min_size: int = 0) -> list[Candidate]:
    """Return up to eight candidates on backends of different names."""
    count = draw(st.integers(min_size, 8))
    return [draw(one(f"b{n}")) for n in range(count)]


def one(backend: str) -> st.SearchStrategy[Candidate]:
    """Return a strategy for one candidate. A choice of few values is one draw: eight candidates are many."""
    return st.builds(
        Candidate,
        backend=st.just(backend),
        kind=st.sampled_from(("openai", "llamacpp", "vllm")),
        model=st.sampled_from(NAMES),
        size=st.sampled_from(SIZES),
        in_flight=st.integers(0, 6),
        limit=st.integers(0, 8),
        latency_ema_s=st.none() | st.floats(0, 100),
        failure_ratio=st.floats(0, 1),
        pressure=st.sampled_from((None, *MemoryPressureLevel)),
        up=st.sampled_from((True, True, True, False)),
        draining=st.sampled_from((False, False, False, True)),
        lost=st.sampled_from((False, False, False, True)),
        agent_types=st.sampled_from([frozenset(), *(frozenset({each}) for each in TYPES), frozenset(TYPES)]),
        context_tokens=st.none() | st.integers(1, 1000),
        aliases=st.sampled_from([frozenset(), frozenset({"alias"}), frozenset({"other"})]),
    )


wants = st.builds(
    Want,
    model=st.none() | st.sampled_from((*NAMES, "alias", "nobody's")),
    agent_type=st.none() | st.sampled_from((*TYPES, "unheard of")),
    tokens=st.integers(1, 1000),
)


@given(wants, candidates())
def test_a_filtered_backend_is_never_picked(want: Want, given_: list[Candidate]) -> None:
    decision = choose(want, given_)
    if isinstance(decision, NoRoute):
        return
    won = next(c for c in given_ if c.backend == decision.backend)
    assert won.up
    assert not won.draining
    assert not won.lost
    assert won.in_flight < won.limit
    assert won.context_tokens is None or want.tokens <= won.context_tokens
    assert want.model is None or want.model in {won.model, *won.aliases}
    assert won.pressure is not MemoryPressureLevel.CRITICAL or won.in_flight == 0


@given(wants, candidates(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(want: Want, given_: list[Candidate], dice: object) -> None:
    shuffled = list(given_)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(want, given_, explain=True) == choose(want, shuffled, explain=True)


@given(candidates(min_size=1), st.data())
def test_a_longer_queue_never_raises_a_score(given_: list[Candidate], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(given_) - 1))
    idle = replace(given_[i], limit=8, in_flight=data.draw(st.integers(0, 6)))
    rest = given_[:i] + given_[i + 1 :]
    want = Want(None, None, 1)
    shorter, longer = (_score(want, [*rest, each]) for each in (idle, replace(idle, in_flight=idle.in_flight + 1)))
    assert longer is None or (shorter is not None and longer <= shorter)


def _score(want: Want, given_: list[Candidate]) -> float | None:
    """Return the last candidate's score, None when it is refused."""
    rows = choose(want, given_, explain=True).considered
    return next(row.score for row in rows if row.backend == given_[-1].backend)


@given(candidates(min_size=1))
def test_scores_lie_between_0_and_1_and_the_best_has_1(given_: list[Candidate]) -> None:
    able = [replace(c, limit=c.in_flight + 1) for c in given_]
    for scorer in SCORERS:
        scores = normalised(scorer.raw(able))
        assert max(scores) == 1.0
        assert min(scores) >= 0.0


@given(one("a"), st.integers(1, 8))
def test_equal_candidates_all_score_1(candidate: Candidate, count: int) -> None:
    equal = [replace(candidate, limit=candidate.in_flight + 1)] * count
    assert all([1.0] * count == normalised(scorer.raw(equal)) for scorer in SCORERS)


@given(wants, candidates())
def test_an_explanation_does_not_change_the_decision(want: Want, given_: list[Candidate]) -> None:
    told, untold = choose(want, given_, explain=True), choose(want, given_)
    assert untold == replace(told, considered=())
    assert len(given_) == len(told.considered)


@given(wants, candidates(min_size=1))
def test_some_candidate_is_picked_when_all_are_idle_and_may_serve(want: Want, given_: list[Candidate]) -> None:
    able = [
        replace(c, up=True, draining=False, lost=False, in_flight=0, limit=max(c.limit, 1), context_tokens=None)
        for c in given_
    ]
    decision = choose(replace(want, model=None), able)
    assert isinstance(decision, ModelDecision)
    assert 0 < decision.score <= 1
