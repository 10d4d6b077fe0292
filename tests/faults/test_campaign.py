"""A whole Triage on three brokers under load, broken again and again: nothing is lost, nothing told changes."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.campaign import LONG, SHORT, Form, run, system
from tests.faults.campaign.report import answered_again, silent_s
from tests.faults.campaign.schedule import plan
from tests.faults.history import Line
from tests.support.kafka import FAST_FAILOVER

SHORT_SEED = 1
SHORT_FORM = Form(
    seconds=20.0,
    kinds=SHORT,
    ok_ratio=0.6,  # nine faults in half a minute, with hardly a time in which nothing is broken
    per_s=60.0,
    session_s=3.0,
    gap_s=(2.0, 2.8),
    longest_s=4.0,
    properties=FAST_FAILOVER,
)


@pytest.fixture
def say(pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print at once where the length was asked for: somebody watches. Else it is shown with a failure."""
    is_watched = pytestconfig.getoption("--fault-seconds") is not None

    def line(text: str) -> None:
        if not is_watched:
            print(text)
            return
        with capsys.disabled():
            print(text, flush=True)

    return line


@pytest.mark.kafka
@pytest.mark.faults
async def test_under_seeded_faults_nothing_is_lost_and_nothing_told_changes(
    pytestconfig: pytest.Config, say: Callable[[str], None], tmp_path: Path
) -> None:
    seconds = pytestconfig.getoption("--fault-seconds")
    form = SHORT_FORM if seconds is None else Form(seconds)
    seed = SHORT_SEED if seconds is None else secrets.randbelow(1_000_000)
    say(f"\nagain by hand: python -m tests.faults.campaign --seconds {form.seconds:g} --seed {seed}")
    report = await run(form, seed, tmp_path, say)
    say(f"\n{report.table()}\n\nhistory and logs: {tmp_path}")
    assert report.is_drained
    assert report.verdict.passed, report.verdict.table()
    assert {} == report.ended_alone
    assert {} == report.overdue
    assert {} == report.late
    assert len(report.kinds) >= (6 if seconds is None else 1)


async def test_a_process_that_is_not_ready_in_time_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_READY_S", 0.05)
    said: list[str] = []
    command = ["sleep", "60"]
    member = system.Member("deaf", lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True), said.append)
    assert not await member.back()
    assert (1, ["deaf was not ready within 0.05 s"]) == (member.late_count, said)
    assert member.process is not None
    member.process.kill()
    await asyncio.get_running_loop().shutdown_default_executor()  # it still reads for the line
    member.process.communicate()


def test_a_seed_gives_one_schedule_and_another_seed_another() -> None:
    first, again, other = (plan(seed, 600, LONG, gap_s=(4, 9)) for seed in (7, 7, 8))
    assert first == again
    assert [each.kind for each in first] != [each.kind for each in other]


def test_every_kind_comes_before_one_comes_again_and_no_name_twice() -> None:
    planned = plan(3, 600, LONG, gap_s=(4, 9))
    assert set(LONG) == {each.kind for each in planned[: len(LONG)]}
    assert len(planned) == len({each.name for each in planned})


def test_the_short_form_has_six_faults_or_more_and_one_of_each_family() -> None:
    planned = plan(SHORT_SEED, SHORT_FORM.seconds, SHORT_FORM.kinds, gap_s=SHORT_FORM.gap_s)
    assert len(planned) >= 6
    assert {"worker", "gateway", "broker", "backend", "load"} == {each.kind.family for each in planned}


def test_a_fault_is_got_over_when_every_partition_answered_what_came_after_its_beginning() -> None:
    def fault(phase: str, at_ms: float) -> Line:
        return {"what": "fault", "fault": "a-1", "kind": "a", "phase": phase, "at_ms": at_ms}

    def request(partition: int, offset: int, at_ms: float) -> Line:
        return {"what": "request", "topic": "t", "partition": partition, "offset": offset, "at_ms": at_ms}

    def result(partition: int, offset: int, at_ms: float) -> Line:
        return {"what": "result", "partition": partition, "source": f"t/{partition}/{offset}", "at_ms": at_ms}

    lines = [
        fault("begun", 1000),
        *(request(partition, 0, 990) for partition in (0, 1)),
        *(request(partition, 1, 1010) for partition in (0, 1)),
        # What was asked before the fault, and answered after it, does not count.
        result(0, 0, 1100),
        result(0, 1, 1200),
        result(1, 0, 1300),
    ]
    assert ({"a-1": "a"}, {"a-1": None}) == answered_again(lines, 2)
    assert ({"a-1": "a"}, {"a-1": 1.5}) == answered_again([*lines, result(1, 1, 2500)], 2)


def test_the_longest_silence_is_between_two_completed_tasks_in_order_of_time() -> None:
    rows = ((5000, "completed"), (1000, "completed"), (2000, "completed"), (4000, "expired"))
    lines: list[Line] = [{"what": "result", "at_ms": at_ms, "outcome": outcome} for at_ms, outcome in rows]
    assert 3.0 == silent_s(lines)
    assert 0.0 == silent_s(lines[:1])
