"""What the peers need and Triage does not: a virtual environment of their own, and a Redis server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from _pytest.outcomes import Failed, Skipped

from benchmarks.harness import child
from cli.embedded.processes import free_ports
from tests.support.debian import program

FOLDER = Path(__file__).parent
_ENVIRONMENT = FOLDER / ".venv"


class PeerMissing(Exception):
    """A peer cannot be had here; the message says what is missing."""


def python() -> Path:
    """Return the peers' Python, with what `requirements.txt` names. Raises: PeerMissing."""
    found, stamp = _ENVIRONMENT / "bin" / "python", _ENVIRONMENT / "requirements.txt"
    wanted = FOLDER / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(_ENVIRONMENT)],
            [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)],
        ]
        for command in commands:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if ended.returncode:
                raise PeerMissing(f"the peers' packages cannot be installed: {ended.stderr.strip().splitlines()[-1]}")
        shutil.copy(wanted, stamp)
    return found


@contextmanager
def redis() -> Iterator[str]:
    """A Redis server of our own that keeps nothing on disk; its URL. Raises: PeerMissing."""
    try:
        server = program("redis-server", "redis-server")
    except (Skipped, Failed) as missing:
        raise PeerMissing(missing.msg or "redis-server") from missing
    (port,) = free_ports(1)
    with TemporaryDirectory(prefix="triage-redis-") as folder:
        command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with child(command) as process:
            assert process.stdout is not None
            while (line := process.stdout.readline()) and "Ready to accept" not in line:
                pass
            yield f"redis://127.0.0.1:{port}/0"
