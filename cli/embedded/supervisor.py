"""Child processes of `triage dev`: started, watched, started again when they die, and ended in order."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cli.embedded.processes import die_with_parent
from wire.clock import monotonic_s

_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.2, 5.0
# A child that lived this long starts with the first back-off again.
_HEALTHY_S = 30.0


@dataclass
class Child:
    """A process and the files it writes to. `ready` is the record of its ready line, {} before it came."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[str] | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    is_ready: threading.Event = field(default_factory=threading.Event)
    restarts: int = 0
    started_s: float = 0.0
    due_s: float | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


class Supervisor:
    """Owns the children. Everything is called from the main thread: the kernel ties a child's life to the thread that forked it."""

    def __init__(self, logs: Path, *, said: Callable[[str], None]) -> None:
        self._logs, self._said = logs, said
        self.children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        child = Child(name, command, environment, self._logs / f"{name}.jsonl")
        self.children[name] = child
        self._launch(child)
        return child

    def wait_ready(self, child: Child, timeout_s: float) -> bool:
        """Return whether the child said it is ready; False when it ended or the time is up."""
        deadline_s = monotonic_s() + timeout_s
        while monotonic_s() < deadline_s:
            if child.is_ready.wait(0.02):
                return True
            assert child.process is not None
            if child.process.poll() is not None:
                return False
        return False

    def watch(self) -> list[Child]:
        """Start again what has died, after a back-off of 0.2, 0.4, ... 5 s; return the children that were started now."""
        started = []
        now_s = monotonic_s()
        for child in self.children.values():
            assert child.process is not None
            code = child.process.poll()
            if code is None:
                continue
            if child.due_s is None:
                child.restarts = 0 if now_s - child.started_s > _HEALTHY_S else child.restarts
                child.due_s = now_s + min(_FIRST_BACKOFF_S * 2**child.restarts, _MOST_BACKOFF_S)
                self._said(f"{child.name} {_ended(code)}; starting it again")
            if now_s >= child.due_s:
                child.restarts += 1
                self._launch(child)
                started.append(child)
        return started

    def stop(self, timeout_s: float) -> None:
        """End all children, the newest first told first, each with SIGTERM and after `timeout_s` with SIGKILL."""
        alive = [child for child in reversed(self.children.values()) if child.process and child.process.poll() is None]
        for child in alive:
            assert child.process is not None
            child.process.send_signal(signal.SIGTERM)
        deadline_s = monotonic_s() + timeout_s
        for child in alive:
            assert child.process is not None
            try:
                child.process.wait(max(deadline_s - monotonic_s(), 0.1))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def kill(self) -> None:
        for child in self.children.values():
            if child.process is not None and child.process.poll() is None:
                child.process.kill()

    def _launch(self, child: Child) -> None:
        child.is_ready.clear()
        child.started_s, child.due_s = monotonic_s(), None
        child.process = subprocess.Popen(  # noqa: S603 - the commands are our own
            child.command,
            env=dict(child.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Its own group: a Ctrl-C in the terminal reaches the supervisor alone, which ends the children in order.
            process_group=0,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only asks the kernel, and takes no lock
        )
        for pipe in (child.process.stdout, child.process.stderr):
            assert pipe is not None
            threading.Thread(target=self._read, args=(child, pipe), daemon=True).start()

    def _read(self, child: Child, pipe: IO[str]) -> None:
        with child.log.open("a") as log, pipe:
            for line in pipe:
                record = _record(line)
                if record.get("event") == "ready" and not child.is_ready.is_set():
                    child.ready = record
                    child.is_ready.set()
                log.write(json.dumps(record) + "\n")
                log.flush()


def _record(line: str) -> dict[str, Any]:
    """Return a log line as the record it is, or as the event of one: not every child writes JSON."""
    text = line.rstrip("\n")
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    return {"event": text}


def _ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
