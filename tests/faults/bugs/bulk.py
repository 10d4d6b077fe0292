"""A large correct history, written quickly: every task is asked, run, answered, committed and read, some of them twice.

`python -m tests.faults.bugs.bulk 1000000` judges a million tasks and prints what it took.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import orjson

from tests.faults.checker import judge
from tests.faults.history import Line

EPOCH_MS = 1_795_420_000_000.0
PARTITIONS = 12
_EVERY_MS = 0.5
_TOPIC = "triage.requests.normal"
_COMMIT_EVERY = 20


def write(folder: Path, tasks: int, *, seed: int = 0) -> None:
    """Write a history of `tasks` tasks, one every half millisecond; one in fifty runs again and has a second result."""
    rng = random.Random(seed)
    names = ("log-requests", "log-results", "log-commits", "seen-client", "seen-backend")
    files = {name: (folder / f"{name}.jsonl").open("wb") for name in names}

    def put(name: str, line: Line) -> None:
        files[name].write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    later: list[Line] = []
    results = [0] * PARTITIONS
    put("seen-backend", {"what": "backend", "who": "b1", "backend": "b1", "limit": 64, "at_ms": EPOCH_MS})
    for number in range(tasks):
        at_ms, partition, offset = EPOCH_MS + number * _EVERY_MS, number % PARTITIONS, number // PARTITIONS
        task, nonce, call = f"3f2a:{number:032x}", f"nonce-{rng.getrandbits(64):016x}", f"b1-{number}"
        who = {"who": "client", "task": task, "tenant": "ward7"}
        place = {"topic": _TOPIC, "partition": partition}
        row = {"task": task, "tenant": "ward7", "nonce": nonce, "deadline_ms": at_ms + 30_000}
        put("log-requests", {"what": "request", **place, "offset": offset, "at_ms": int(at_ms), **row})
        result: Line = {
            "what": "result",
            "topic": "triage.results",
            "partition": partition,
            "at_ms": int(at_ms + 25),
            "task": task,
            "tenant": "ward7",
            "outcome": "completed",
            "source": f"{_TOPIC}/{partition}/{offset}",
            "digest": f"{rng.getrandbits(64):016x}",
            "answer": f"echo {nonce}",
            "batch": f"b-{number // 4}",
        }
        again = {**result, "digest": "again", "batch": f"c-{number // 4}"}
        for line in (result, again) if number % 50 == 0 else (result,):
            put("log-results", {**line, "offset": results[partition]})
            results[partition] += 1
        if offset % _COMMIT_EVERY == _COMMIT_EVERY - 1 or number >= tasks - PARTITIONS:
            commit = {"group": "triage-normal", **place, "offset": offset + 1, "at_ms": int(at_ms + 40)}
            put("log-commits", {"what": "commit", **commit})
        later += [
            {"what": "submitted", **who, "nonce": nonce, "at_ms": at_ms - 3},
            {"what": "acknowledged", **who, "at_ms": at_ms + 3},
            {"what": "read", **who, "status": "queued", "at_ms": at_ms + 5},
            {"what": "began", "who": "b1", "backend": "b1", "call": call, "nonce": nonce, "at_ms": at_ms + 6},
            {"what": "ended", "who": "b1", "backend": "b1", "call": call, "at_ms": at_ms + 20},
            {"what": "read", **who, "status": "completed", "digest": result["digest"], "at_ms": at_ms + 60},
        ]
        if number % 50 == 0:
            second = {"who": "b1", "backend": "b1", "call": f"{call}-again"}
            later.append({"what": "began", **second, "nonce": nonce, "at_ms": at_ms + 7})
            later.append({"what": "ended", **second, "at_ms": at_ms + 21})
        if len(later) > 10_000 or number == tasks - 1:
            later.sort(key=lambda line: line["at_ms"])
            # What may still be overtaken by the next tasks' lines stays.
            done = len(later) if number == tasks - 1 else len(later) - 2_000
            for line in later[:done]:
                put("seen-client" if line["who"] == "client" else "seen-backend", line)
            del later[:done]
    put("seen-client", {"what": "finished", "who": "client", "at_ms": EPOCH_MS + tasks * _EVERY_MS + 100})
    for name, topic in (("log-requests", _TOPIC), ("log-results", "triage.results")):
        put(name, {"what": "dumped", "topic": topic, "partition": 0, "first": 0, "end": tasks})
    for file in files.values():
        file.close()


def main() -> None:
    tasks = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, tasks)
        size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        started_s = time.monotonic()
        verdict = judge(folder)
        print(verdict.table())
        print(f"{size_mb:.0f} MB of history, {time.monotonic() - started_s:.1f} s by the clock")
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory at most")


if __name__ == "__main__":
    main()
