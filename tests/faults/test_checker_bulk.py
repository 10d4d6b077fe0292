"""The checker keeps up with a night's campaign: a million tasks in a minute of one core."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.bugs import bulk
from tests.faults.checker import judge

TASKS = 50_000
MILLION_S = 60.0


@pytest.mark.faults
def test_fifty_thousand_tasks_are_judged_at_the_pace_of_a_million_a_minute(tmp_path: Path) -> None:
    bulk.write(tmp_path, TASKS)
    verdict = judge(tmp_path)
    assert verdict.passed, verdict.table()
    assert TASKS == verdict.counts["tasks"] == verdict.outcomes["completed"]
    assert TASKS // 50 == verdict.counts["run again"] == verdict.counts["results repeated"]
    assert verdict.judging_s < MILLION_S * TASKS / 1_000_000
