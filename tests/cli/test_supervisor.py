"""The children of `triage dev`: their lines, their deaths, their end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.embedded.supervisor import Backoff, Child, Supervisor, as_record

READY = """echo '{"event": "ready", "metrics_port": 1}'"""
# Waits for ever, without a grandchild that would keep the pipes open.
IDLE = "while :; do read -r line < fifo; done"


class Family:
    """A supervisor whose children are shell scripts, and what it said."""

    def __init__(self, folder: Path) -> None:
        os.mkfifo(folder / "fifo")
        self.folder, self.said = folder, list[str]()
        self.supervisor = Supervisor(folder / "logs", said=self.said.append)

    def start(self, name: str, script: str) -> Child:
        return self.supervisor.start(name, ["sh", "-c", f"cd '{self.folder}'; {script}"], os.environ)

    def ready(self, name: str, script: str) -> Child:
        child = self.start(name, script)
        assert self.supervisor.wait_ready(child, 10)
        return child


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    made = Family(tmp_path)
    yield made
    made.supervisor.kill()
    for child in made.supervisor.children.values():
        child.process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_backoff_doubles_up_to_five_seconds_and_starts_again_after_a_healthy_life() -> None:
    backoff, now_s, delays = Backoff(), 0.0, []
    for _ in range(2000):  # nothing overflows, however long it keeps dying
        backoff.started(now_s)
        assert backoff.died(now_s)
        assert backoff.due_s is not None
        delays.append(round(backoff.due_s - now_s, 3))
        now_s = backoff.due_s
    assert ([0.2, 0.4, 0.8, 1.6, 3.2, 5.0], {5.0}) == (delays[:6], set(delays[6:]))
    backoff.started(now_s)
    backoff.died(now_s + 31)
    assert backoff.due_s == pytest.approx(now_s + 31.2)


def test_a_death_is_news_once_and_due_after_its_delay() -> None:
    backoff = Backoff()
    assert [True, False] == [backoff.died(1.0), backoff.died(1.1)]
    assert [False, True] == [backoff.is_due(1.1), backoff.is_due(1.2)]


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ('{"event": "worker ready", "level": "info"}\n', {"event": "worker ready", "level": "info"}),
        ("llama says\n", {"timestamp": "2026-11-24T00:00:00.250Z", "event": "llama says"}),
        ("{broken\n", {"timestamp": "2026-11-24T00:00:00.250Z", "event": "{broken"}),
        ("[1]\n", {"timestamp": "2026-11-24T00:00:00.250Z", "event": "[1]"}),
    ],
)
def test_every_line_becomes_a_record(line: str, record: dict[str, str]) -> None:
    assert record == as_record(line, now_ms=1795478400250)


def test_both_streams_go_to_the_log_and_the_ready_line_is_kept(family: Family) -> None:
    child = family.ready("a", f"echo loading >&2; {READY}; {IDLE}")
    assert {"event": "ready", "metrics_port": 1} == child.ready
    wait_until(lambda: len(child.log.read_text().splitlines()) == 2)
    assert {"loading", "ready"} == {json.loads(line)["event"] for line in child.log.read_text().splitlines()}


def test_a_child_that_ends_before_it_is_ready_is_not_waited_for(family: Family) -> None:
    assert not family.supervisor.wait_ready(family.start("a", "exit 3"), 10)


def test_a_child_that_died_is_started_again_and_said_once(family: Family) -> None:
    child = family.ready("a", f"{READY}; {IDLE}")
    first = child.pid
    signal.pidfd_send_signal(os.pidfd_open(first), signal.SIGKILL)
    wait_until(lambda: family.supervisor.watch() == [child])
    assert child.pid != first
    assert family.supervisor.wait_ready(child, 10)
    assert [f"a was ended by SIGKILL; starting it again (log: {child.log})"] == family.said


def test_a_worker_that_ends_still_finds_its_model_server(family: Family) -> None:
    family.ready("server", f"echo $$ > pid; {READY}; {IDLE}")
    asks = "kill -0 $(cat pid) && echo there > asked; exit 0"
    family.ready("worker", f"trap '{asks}' TERM; {READY}; {IDLE}")
    family.supervisor.stop(5, last=["server"])
    assert (family.folder / "asked").read_text() == "there\n"
    assert not any(child.is_alive for child in family.supervisor.children.values())


def test_a_child_that_does_not_end_is_killed_when_the_time_is_up(family: Family) -> None:
    child = family.ready("a", f"trap '' TERM; {READY}; {IDLE}")
    family.supervisor.stop(0.2)
    assert -signal.SIGKILL == child.process.returncode
