"""The programs of `examples/`, started as a user starts them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.jars import ensure_jars
from cli.embedded.processes import die_with_parent
from tests.support.debian import lacks, program

EXAMPLES = Path(__file__).parents[2] / "examples"
LANGUAGES = ("python", "java", "go", "kcat")
_BUILD_LIMIT_S = 240
_RUN_LIMIT_S = 60


@dataclass(frozen=True)
class Ended:
    """What a program left: its lines, split at tabs."""

    code: int
    rows: list[list[str]]
    errors: str


@dataclass(frozen=True)
class Example:
    """One language's producer and consumer, as the starts of their command lines."""

    producer: Sequence[str]
    consumer: Sequence[str]

    async def produce(self, *arguments: str) -> Ended:
        return await ended([*self.producer, *arguments])

    async def consume(self, *arguments: str, **environment: str) -> Ended:
        return await ended([*self.consumer, *arguments], environment)


def example(language: str, folder: Path) -> Example:
    """Return the example in this language; what has to be built goes to `folder`."""
    return {"python": _python, "java": _java, "go": _go, "kcat": _kcat}[language](folder)


def _python(folder: Path) -> Example:
    return Example(
        [sys.executable, str(EXAMPLES / "python/producer.py")], [sys.executable, str(EXAMPLES / "python/consumer.py")]
    )


def _java(folder: Path) -> Example:
    program("javac", "default-jdk-headless")
    start = [program("java", "default-jdk-headless"), "-cp", f"{ensure_jars()[0].parent}/*"]
    return Example([*start, str(EXAMPLES / "java/Produce.java")], [*start, str(EXAMPLES / "java/Consume.java")])


def _go(folder: Path) -> Example:
    go = program("go", "golang-go")
    built = subprocess.run(
        [go, "build", "-buildvcs=false", "-o", f"{folder}/", "./..."],
        cwd=EXAMPLES / "go",
        capture_output=True,
        text=True,
        timeout=_BUILD_LIMIT_S,
        check=False,
    )
    if "requires go" in built.stderr or "invalid go version" in built.stderr:
        lacks(f"this test needs a newer Go: {built.stderr.strip()}")
    assert (0, "") == (built.returncode, built.stderr if built.returncode else "")
    return Example([str(folder / "produce")], [str(folder / "consume")])


def _kcat(folder: Path) -> Example:
    program("kcat", "kcat")
    script = str(EXAMPLES / "kcat.sh")
    return Example([script, "produce"], [script, "consume"])


async def ended(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        limit=1 << 24,
        preexec_fn=die_with_parent(),
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), _RUN_LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Ended(process.returncode or 0, [line.split("\t") for line in out.decode().splitlines()], errors.decode())
