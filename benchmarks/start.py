"""From a fresh clone to the first real answer: `python -m benchmarks.start [--cold]`.

Warm: the caches of pip and of Triage (jars, model) are this user's. `--cold`: both are empty, so the network is measured too.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.newcomer.clone import clean_environment, fresh_clone
from wire.clock import monotonic_s

_QUESTION = "What is the capital of France?"
_HELP_ROUNDS = 5


def main(arguments: Sequence[str] = ()) -> None:
    cold = "--cold" in arguments
    with tempfile.TemporaryDirectory(prefix="triage-start-") as folder:
        environment = clean_environment()
        if cold:
            environment |= {"XDG_CACHE_HOME": f"{folder}/cache", "PIP_CACHE_DIR": f"{folder}/pip"}
        clone = fresh_clone(Path(folder) / "triage")
        began_s = monotonic_s()
        subprocess.run(["make", "install"], cwd=clone, env=environment, check=True, capture_output=True)
        installed_s = monotonic_s()
        answer, ready_s, answered_s = _first_answer(clone, environment)
        rows = {
            "install_s": installed_s - began_s,
            "ready_s": ready_s - installed_s,
            "answer_s": answered_s - ready_s,
            "total_s": answered_s - began_s,
            "help_s": _help_s(clone, environment),
        }
    print(
        f"{'cold' if cold else 'warm'} caches: " + json.dumps({name: round(value, 2) for name, value in rows.items()})
    )
    print(f"{_QUESTION} → {answer}")


def _first_answer(clone: Path, environment: Mapping[str, str]) -> tuple[str, float, float]:
    triage = str(clone / ".venv/bin/triage")
    command = [triage, "dev", "--json", "--port", "0", "--kafka-port", "0", "--data", str(clone / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as stack:
        try:
            assert stack.stdout is not None
            gateway = json.loads(stack.stdout.readline())["gateway"]
            ready_s = monotonic_s()
            ask = [triage, "submit", "--gateway", gateway, "--max-tokens", "24", "--wait", _QUESTION]
            answer = subprocess.run(ask, env=environment, check=True, capture_output=True, text=True).stdout
            return " ".join(answer.split()), ready_s, monotonic_s()
        finally:
            stack.send_signal(signal.SIGINT)


def _help_s(clone: Path, environment: Mapping[str, str]) -> float:
    """Return the median of a few `triage --help`."""
    took = []
    for _ in range(_HELP_ROUNDS):
        began_s = monotonic_s()
        subprocess.run(
            [clone / ".venv/bin/triage", "--help"], env=dict(environment), check=True, stdout=subprocess.DEVNULL
        )
        took.append(monotonic_s() - began_s)
    return sorted(took)[_HELP_ROUNDS // 2]


if __name__ == "__main__":
    main(sys.argv[1:])
