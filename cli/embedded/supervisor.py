"""Child processes of `triage dev`: started, watched, started again when they die, and ended in order."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from cli.embedded.processes import die_with_parent
from wire.clock import monotonic_s, wall_ms

_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.2, 5.0
_MOST_DOUBLINGS = 5
# What lived this long starts with the first back-off again.
_HEALTHY_S = 30.0


@dataclass
class Backoff:
    """When to start again what keeps dying: 0.2, 0.4, ... 5 s after a death, and 0.2 s again once it lived for 30 s."""

    deaths: int = 0
    started_s: float = 0.0
    due_s: float | None = None

    def started(self, now_s: float) -> None:
        """It runs."""
        self.started_s, self.due_s = now_s, None

    def died(self, now_s: float) -> bool:
        """Note that it is dead; return whether that is news."""
        if self.due_s is not None:
            return False
        if now_s - self.started_s > _HEALTHY_S:
            self.deaths = 0
        self.due_s = now_s + min(_FIRST_BACKOFF_S * 2 ** min(self.deaths, _MOST_DOUBLINGS), _MOST_BACKOFF_S)
        self.deaths += 1
        return True

    def is_due(self, now_s: float) -> bool:
        """Whether it is dead and to be started now."""
        return self.due_s is not None and now_s >= self.due_s


@dataclass
class Child:
    """A process and the file its lines go to. `ready` is the record of its ready line, {} before it came."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[str]
    backoff: Backoff = field(default_factory=Backoff)
    ready: dict[str, Any] = field(default_factory=dict)
    is_ready: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


class Supervisor:
    """Owns the children. Everything is called from the main thread: the kernel ties a child's life to the thread that forked it."""

    def __init__(self, logs: Path, *, said: Callable[[str], None]) -> None:
        self._logs, self._said = logs, said
        self.children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start a process whose output, line by line, goes to `<name>.jsonl`; its ready line is `{"event": "ready", ...}`."""
        child = Child(name, command, environment, self._logs / f"{name}.jsonl", _spawn(command, environment))
        self.children[name] = child
        self._follow(child)
        return child

    def wait_ready(self, child: Child, timeout_s: float) -> bool:
        """Return whether the child said it is ready; False when it ended or the time is up."""
        deadline_s = monotonic_s() + timeout_s
        while monotonic_s() < deadline_s:
            if child.is_ready.wait(0.02):
                return True
            if not child.is_alive:
                return False
        return False

    def watch(self) -> list[Child]:
        """Start again, after its back-off, what has died, and say so; return the children that were started now."""
        started = []
        now_s = monotonic_s()
        for child in self.children.values():
            if child.is_alive:
                continue
            if child.backoff.died(now_s):
                self._said(f"{child.name} {_ended(child.process.returncode)}; starting it again (log: {child.log})")
            if child.backoff.is_due(now_s):
                child.process = _spawn(child.command, child.environment)
                self._follow(child)
                started.append(child)
        return started

    def stop(self, timeout_s: float, *, last: Collection[str] = ()) -> None:
        """End all children with SIGTERM, those that still run after `timeout_s` with SIGKILL.

        The children named `last` are told only when the others have ended: a worker that finishes its calls still needs its model server.
        """
        deadline_s = monotonic_s() + timeout_s
        for group in (self.children.keys() - set(last), last):
            running = [child for name, child in self.children.items() if name in group and child.is_alive]
            for child in running:
                child.process.send_signal(signal.SIGTERM)
            for child in running:
                try:
                    child.process.wait(max(deadline_s - monotonic_s(), 0.1))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()

    def kill(self) -> None:
        """End all children at once."""
        for child in self.children.values():
            if child.is_alive:
                child.process.kill()

    def _follow(self, child: Child) -> None:
        child.backoff.started(monotonic_s())
        child.is_ready, child.ready = threading.Event(), {}
        for pipe in (child.process.stdout, child.process.stderr):
            assert pipe is not None
            threading.Thread(target=_copy, args=(child, child.is_ready, pipe), daemon=True).start()


def _spawn(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the commands are our own
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Its own group: a Ctrl-C in the terminal reaches the supervisor alone, which ends the children in order.
        process_group=0,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only asks the kernel, and takes no lock
    )


def _copy(child: Child, is_ready: threading.Event, pipe: IO[str]) -> None:
    """Write what one process says into the child's log. `is_ready` is that process's own: the next one's is another."""
    with child.log.open("a") as log, pipe:
        for line in pipe:
            record = as_record(line, now_ms=wall_ms())
            if record.get("event") == "ready" and is_ready is child.is_ready and not is_ready.is_set():
                child.ready = record
                is_ready.set()
            log.write(json.dumps(record) + "\n")
            log.flush()


def as_record(line: str, *, now_ms: int) -> dict[str, Any]:
    """Return a log line as the record it is, or as the event of one with the time: not every child writes JSON."""
    text = line.rstrip("\n")
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"timestamp": stamp.replace("+00:00", "Z"), "event": text}


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
