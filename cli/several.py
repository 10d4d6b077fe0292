"""Several worker processes under one: started, started again when they die, and ended together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.embedded.processes import die_with_parent
from cli.embedded.supervisor import Backoff
from wire.clock import monotonic_s
from wire.logs import get_logger

_LOOK_EVERY_S = 0.2
_FORCED_EXIT = 1

log = get_logger(__name__)


@dataclass
class _One:
    command: Sequence[str]
    metrics_port: int
    process: subprocess.Popen[str]
    backoff: Backoff = field(default_factory=Backoff)
    ready: dict[str, Any] | None = None


def run_several(command: Sequence[str], count: int, *, first_metrics_port: int, as_json: bool) -> None:
    """Run `count` processes of `command` until a signal; a second signal ends all of them at once. For the main thread.

    Their logs go where ours go. Metrics ports follow each other from the first on; 0: each takes any free one. When all are ready,
    one line says so.
    """
    stop = threading.Event()
    ones: list[_One] = []

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            for one in ones:
                one.process.kill()
            os._exit(_FORCED_EXIT)
        stop.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, on_signal)
    for number in range(count):
        port = first_metrics_port + number if first_metrics_port else 0
        ones.append(_One(command, port, _spawn(command, port)))
        _follow(ones[-1])
    announced = False
    while not stop.wait(_LOOK_EVERY_S):
        for one in ones:
            _look_after(one)
        if not announced and all(one.ready for one in ones):
            announced = True
            _announce(ones, as_json=as_json)
    for one in ones:
        one.process.send_signal(signal.SIGTERM)
    for one in ones:
        one.process.wait()


def _spawn(command: Sequence[str], metrics_port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - our own command
        command,
        env={**os.environ, "TRIAGE_METRICS__PORT": str(metrics_port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # Its own group: a Ctrl-C in the terminal reaches us alone, and we end them.
        process_group=0,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only asks the kernel, and takes no lock
    )


def _follow(one: _One) -> None:
    """Read a process's ready line, and take off it whatever else it says."""
    one.backoff.started(monotonic_s())
    process, one.ready = one.process, None

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if one.ready is None and line.startswith("{"):
                    one.ready = json.loads(line)

    threading.Thread(target=read, daemon=True).start()


def _look_after(one: _One) -> None:
    code = one.process.poll()
    if code is None:
        return
    now_s = monotonic_s()
    if one.backoff.died(now_s):
        log.warning("worker process ended; starting it again", exit_code=code, pid=one.process.pid)
    if one.backoff.is_due(now_s):
        one.process = _spawn(one.command, one.metrics_port)
        _follow(one)


def _announce(ones: Sequence[_One], *, as_json: bool) -> None:
    workers = [one.ready for one in ones if one.ready]
    if as_json:
        print(json.dumps({"event": "ready", "pid": os.getpid(), "workers": workers}), flush=True)
    else:
        print(f"{len(workers)} workers are ready: {', '.join(each['worker'] for each in workers)}", flush=True)
