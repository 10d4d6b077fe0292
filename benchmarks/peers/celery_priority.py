"""Celery with Redis priorities, on the work of `benchmarks.priority`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack

from benchmarks.harness import child
from benchmarks.peers import environment
from benchmarks.work import Figures, Work
from schemas.topics import Lane


def run(work: Work, url: str, slots: int) -> Figures:
    """Return what a Celery worker of `slots` processes made of the work. Raises: environment.PeerMissing."""
    python = str(environment.python())
    with environment.redis() as broker:
        variables = {**os.environ, "BENCH_REDIS": broker, "BENCH_URL": url, "PYTHONWARNINGS": "ignore"}
        variables.pop("PYTHONPATH", None)

        def load(*arguments: str) -> str:
            command = [python, str(environment.FOLDER / "celery_load.py"), *arguments]
            return subprocess.run(
                command, env=variables, check=True, capture_output=True, text=True, timeout=600
            ).stdout

        load("fill", json.dumps({lane.value: count for lane, count in work.backlog.items()}))
        command = [python, "-m", "celery", "--workdir", str(environment.FOLDER), "-A", "celery_app", "worker"]
        command += ["-c", str(slots), "-O", "fair", "-l", "error", "--without-gossip", "--without-mingle"]
        with ExitStack() as stack:
            stack.enter_context(child(command, env=variables))
            load("pace", str(work.rate), str(work.warm_up_s))
            told = json.loads(load("pace", str(work.rate), str(work.seconds)))
    return Figures(
        totals_ms=[(ended_s - due_s) * 1000 for due_s, _, ended_s in told["critical"]],
        waits_ms=[(began_s - due_s) * 1000 for due_s, began_s, _ in told["critical"]],
        served=_by_lane(told["served"]),
        seconds=work.seconds,
    )


def _by_lane(served: Mapping[str, int]) -> dict[Lane, int]:
    return {Lane(name): count for name, count in served.items()}
