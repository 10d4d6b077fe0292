"""The checker tested: it is silent on correct histories, and calls each seeded bug by its name; needs no broker."""

from __future__ import annotations

import pytest

from tests.faults.bugs import CALLED, Bug
from tests.faults.bugs.scenario import history
from tests.faults.checker import Limits, judge_lines

LIMITS = Limits(late_s=0.1, grace_s=0.3, cancel_s=0.3, stuck_s=15)
SEEDS = range(60)


def test_it_has_nothing_to_say_about_correct_histories() -> None:
    verdicts = {seed: judge_lines(history(seed), LIMITS) for seed in SEEDS}
    assert {} == {seed: verdict.table() for seed, verdict in verdicts.items() if not verdict.passed}
    # They are no easy ones: crashes, redelivery, and results that came late are in them.
    for count in ("run again", "results repeated", "retry records", "dead letters", "unanswered"):
        assert sum(verdict.counts[count] for verdict in verdicts.values()) > len(SEEDS) / 2, count
    assert {"completed", "failed", "cancelled", "expired"} == {name for v in verdicts.values() for name in v.outcomes}


def test_a_seed_gives_the_same_history_again() -> None:
    assert history(3, Bug.LAST_WRITER_WINS) == history(3, Bug.LAST_WRITER_WINS)


def test_every_seeded_bug_has_the_name_it_is_called_by() -> None:
    assert set(Bug) == set(CALLED)


def test_every_seeded_bug_is_called_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """At the first seed that brings it out; a bug that no seed does is a hole in the checker."""
    first_seed = {bug: _first_seed(bug) for bug in Bug}
    called = [bug for bug, seed in first_seed.items() if seed is not None]
    with capsys.disabled():
        print(f"\nseeded bugs called by name: {len(called)} of {len(Bug)}")
    assert [] == [bug.name for bug in Bug if bug not in called]


def _first_seed(bug: Bug) -> int | None:
    return next((seed for seed in SEEDS if CALLED[bug].value in judge_lines(history(seed, bug), LIMITS).names), None)
