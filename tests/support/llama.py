"""A real llama.cpp server as a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.llama import llama_command
from cli.embedded.processes import die_with_parent


@dataclass(frozen=True)
class LlamaServer:
    """A running server; `log` is the file of what it wrote to stderr."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_text(self) -> str:
        return self.log.read_text()


@contextmanager
def llama_server(
    model: Path, *, slots: int = 4, context: int = 2048, alias: str = "tiny", port: int = 0
) -> Iterator[LlamaServer]:
    """Serve `model` until the end of the block. The log lies beside the model, one per process.

    Raises: RuntimeError with the end of its log when it ends before it is ready.
    """
    command = llama_command(model, port=port, slots=slots, context=context, alias=alias)
    with _started(command, model.parent) as (process, log):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with {process.wait()}: {log.read_text()[-2000:]}")
        yield LlamaServer(json.loads(line)["url"], process, log)


@contextmanager
def _started(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    pending = folder / f"llama-{len(list(folder.glob('llama-*.log')))}.log"
    with (
        pending.open("w") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only asks the kernel, and takes no lock
        ) as process,
    ):
        try:
            yield process, pending
        finally:
            process.kill()
