"""`triage demo`: what it asks, counts and shows, and the whole of it on real parts."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.demo import keep_logs, new_request
from cli.demo_picture import Tally, heading, line, print_recap
from cli.picture.kills import Kill
from schemas.codec import decode
from schemas.request import InferenceTask
from schemas.result import BatchRef, Outcome, Output, Result, Source, Timing, Usage
from schemas.topics import Lane, TopicNames
from streams.quantiles import quantile

DEMO = [sys.executable, "-m", "cli", "demo"]


def result(task_id: str, lane: Lane, outcome: Outcome = Outcome.COMPLETED, **fields: Any) -> Result:
    given: dict[str, Any] = {
        "tenant": "default",
        "output": Output(content="Paris,\nof  course."),
        "usage": Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12),
        "batch": BatchRef("b-1", 2),
        "timing": Timing(created_at_ms=1000),
    }
    source = Source(TopicNames().requests(lane), 0, 0)
    return Result(task_id=task_id, outcome=outcome, priority=lane, source=source, **{**given, **fields})


def tally(*results: Result, appended_ms: int = 1500) -> Tally:
    made = Tally()
    for each in results:
        if each.task_id not in made.questions:
            made.ask(each.task_id, each.priority, "Capital of France?")
    for each in results:
        made.take(each, appended_ms)
    return made


def test_only_the_first_result_of_a_task_counts_and_others_tasks_do_not() -> None:
    seen = tally(result("a", Lane.HIGH), result("a", Lane.HIGH, Outcome.FAILED))
    seen.take(result("somebody-elses", Lane.HIGH), 1500)
    assert (1, 1, 0, 0, 0) == (
        seen.sent[Lane.HIGH],
        seen.done[Lane.HIGH],
        seen.failed[Lane.HIGH],
        seen.waiting(Lane.HIGH),
        seen.open,
    )


def test_the_recap_adds_up() -> None:
    seen = tally(
        result("a", Lane.CRITICAL),
        result("b", Lane.CRITICAL, cached=True, batch=None),
        result("c", Lane.LOW, Outcome.EXPIRED, output=None),
    )
    seen.ask("d", Lane.LOW, "Still there?")
    recap = seen.as_record(interrupted=False)
    assert {"sent": 2, "done": 2, "failed": 0, "p50_s": 0.5, "p95_s": 0.5} == recap["lanes"]["critical"]
    assert {"sent": 2, "done": 0, "failed": 1, "p50_s": None, "p95_s": None} == recap["lanes"]["low"]
    assert (1, 2.0, 1, 7, 1) == tuple(
        recap[name] for name in ("batches", "batch_size_mean", "cached", "tokens", "unfinished")
    )


def test_a_line_fits_the_terminal_and_stands_under_its_heading() -> None:
    seen = tally(result("a", Lane.HIGH))
    seen.ask("b", Lane.HIGH, "And?")
    numbers, answer = line(seen, 4.2, 50).splitlines()
    assert len(heading()) == len(numbers) <= 80
    assert ["4", "s", "0+0", "1+1", "0+0", "0+0"] == numbers.split()
    assert answer == "    high: Capital of France? → Paris, of course."
    assert len(line(tally(result("a", Lane.HIGH)), 4.2, 30).splitlines()[1]) == 30


def test_an_answer_is_shown_once() -> None:
    seen = tally(result("a", Lane.HIGH))
    assert [2, 1] == [len(line(seen, 1, 80).splitlines()) for _ in range(2)]


def test_the_recap_in_a_pipe_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_recap(tally(result("a", Lane.HIGH)), interrupted=True)
    shown = capsys.readouterr().out
    assert "Interrupted. From request to answer:" in shown
    assert ["high", "1", "0", "0.50", "s", "0.50", "s"] == next(r for r in shown.splitlines() if "high" in r).split()
    assert "\x1b" not in shown
    assert "┃" not in shown


def test_the_recap_tells_how_kills_were_got_over(capsys: pytest.CaptureFixture[str]) -> None:
    seen = tally(result("a", Lane.HIGH))
    seen.ask("b", Lane.HIGH, "And?")
    seen.kills.append(Kill("worker-1", 7, 2000, frozenset({"b"}), running=1, back_ms=5100))
    seen.run_again = 1
    seen.take(result("b", Lane.HIGH, timing=Timing(created_at_ms=1000, dispatched_at_ms=5200)), 6000)
    print_recap(seen, interrupted=False)
    *_, told, again = capsys.readouterr().out.splitlines()
    assert "worker-1 was killed: back after 3.10 s, first new answer after 4.00 s; of 1 open tasks 0 were lost." == told
    assert "Tasks run again: 1." == again


def test_the_logs_of_a_run_take_the_place_of_those_of_the_one_before(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "worker-1.jsonl").write_text(text)
        kept = keep_logs([tmp_path / "worker-1.jsonl", tmp_path / "missing.jsonl"], tmp_path / "demo-logs")
    assert tmp_path / "demo-logs" / "last" == kept
    assert ["second"] == [log.read_text() for log in kept.iterdir()]
    assert ["last"] == [each.name for each in (tmp_path / "demo-logs").iterdir()]


@pytest.mark.parametrize(("values", "median"), [([], None), ([3.0], 3.0), ([4.0, 1.0, 3.0, 2.0], 3.0)])
def test_a_quantile_is_one_of_the_values(values: list[float], median: float | None) -> None:
    assert median == quantile(values, 0.5)


@pytest.mark.parametrize("lane", list(Lane))
def test_requests_are_valid_and_some_repeat_to_the_letter(lane: Lane) -> None:
    rng = random.Random(2)
    made = [decode(InferenceTask, new_request(f"t-{n}", lane, n, rng)[1]) for n in range(200)]
    repeated = [task for task in made if task.cache is not None and task.cache.mode == "use"]
    assert 20 < len(repeated) < 80
    assert len({json.dumps(task.messages, default=str) for task in repeated}) == 2
    assert len({json.dumps(task.messages, default=str) for task in made}) == 202 - len(repeated)
    assert {lane in (Lane.CRITICAL, Lane.HIGH)} == {task.deadline_at_ms is not None for task in made}


@pytest.fixture
def usual_gateway_port_is_taken() -> Iterator[None]:
    """Another stack of this machine has the port, ours or somebody else's: a demo takes free ones."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # taken already
            other.bind(("127.0.0.1", 8400))
            other.listen()
        yield


@pytest.mark.kafka
@pytest.mark.llama
@pytest.mark.usefixtures("usual_gateway_port_is_taken")
def test_the_demo_shows_all_four_lanes_and_ends_by_itself() -> None:
    done = subprocess.run([*DEMO, "--seconds", "6"], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "→" in done.stdout
    recap = done.stdout.partition("From request to answer")[2]
    for lane in Lane:
        row = next(line for line in recap.splitlines() if line.startswith(lane.value))
        assert int(row.split()[1]) > 0, done.stdout


@pytest.mark.kafka
@pytest.mark.llama
def test_an_interrupted_demo_ends_with_its_recap() -> None:
    with subprocess.Popen([*DEMO, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while "Mixed requests" not in running.stderr.readline():
            pass
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=10)
    assert running.returncode == 130
    recap = json.loads(said)
    assert ("recap", True, {"critical", "high", "normal", "low"}) == (
        recap["event"],
        recap["interrupted"],
        set(recap["lanes"]),
    )
