"""A fresh clone in an empty folder, and a network of its own to try it in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

ROOT = Path(__file__).parent.parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Brings loopback up in a new network, says so, and holds the network until stdin ends.
_HOLDER = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14s", b"lo", 0x41, b""))
print("up", flush=True)
input()
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return a page's fenced blocks that name a language, as (language, text), in their order."""
    return _BLOCK.findall(page)


def fresh_clone(target: Path) -> Path:
    """Copy what git knows of this tree, or would know, and nothing that was built in it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # not one that was removed meanwhile
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def clean_environment() -> dict[str, str]:
    """Return a newcomer's environment: nothing of this test run's settings or virtual environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRIAGE_", "PYTEST", "VIRTUAL_ENV", "PYTHON", "COV_")) and name != "ALLOW_INSECURE_DEV"
    }


@dataclass
class Running:
    """A process in the background and the lines it has said so far."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    _lines: Queue[str] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def until(self, text: str, *, timeout_s: float) -> None:
        """Wait for a line with `text`. Raises: AssertionError with all that was said, when it ends or the time is up."""
        while True:
            try:
                line = self._lines.get(timeout=timeout_s)
            except Empty:
                line = ""
            assert line, f"{text!r} did not come; it said: {''.join(self.said)}"
            self.said.append(line)
            if text in line:
                return


@dataclass(frozen=True)
class Network:
    """Runs commands in a network of their own (loopback and nothing else), or in this one where that is not allowed."""

    prefix: Sequence[str]

    def run(self, command: Sequence[str], *, cwd: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command],
            cwd=cwd,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def running(self, command: Sequence[str], *, cwd: Path) -> Iterator[Running]:
        """Run a command in the background; one that still runs at the end is killed."""
        process = subprocess.Popen(
            [*self.prefix, *command],
            cwd=cwd,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def own_network() -> Iterator[Network]:
    """Give a network without a way out, so that usual ports are free and nothing can be fetched; root only."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        yield Network([])
        return
    holder = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        yield Network(["nsenter", "--target", str(holder.pid), "--net"])
    finally:
        holder.communicate("\n")
