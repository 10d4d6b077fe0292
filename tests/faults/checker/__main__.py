"""`python -m tests.faults.checker FOLDER [--json]`: judge a history by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from tests.faults.checker import Limits, Verdict, judge
from tests.faults.history import read_history

_TASKS_SHOWN = 5


def trace(folder: Path, verdict: Verdict) -> dict[str, list[bytes]]:
    """Return every line that is about one of the first few tasks complained of, by their ids or their nonces."""
    named = [task for finding in verdict.findings.values() for task, _ in finding.examples[:1] if task]
    rows: dict[str, list[bytes]] = {task: [] for task in named[:_TASKS_SHOWN]}
    by_nonce: dict[str, str] = {}
    for line in read_history(folder):
        task, nonce = line.get("task"), line.get("nonce")
        if task in rows and nonce is not None:
            by_nonce[nonce] = task
        about = task if task is not None else by_nonce.get(nonce or "")
        if about in rows:
            rows[about].append(orjson.dumps(line))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.checker", description="Judge a history.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print one document")
    parser.add_argument("--stuck-s", type=float, default=Limits().stuck_s)
    chosen = parser.parse_args()
    verdict = judge(chosen.folder, Limits(stuck_s=chosen.stuck_s))
    if chosen.json:
        print(orjson.dumps(verdict.as_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        print(verdict.table())
        for task, lines in trace(chosen.folder, verdict).items():
            print(f"\n{task}", *(f"  {line.decode()}" for line in lines), sep="\n")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
