"""`triage gateway` as a child process, ready when the block is entered."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from cli.embedded.processes import die_with_parent
from tests.support.stack import Stack


class GatewayProcess:
    """A running gateway: `http` talks to it. `folder` holds the view's file, for a later gateway to go on with."""

    def __init__(self, stack: Stack, folder: Path, http: httpx.AsyncClient, process: subprocess.Popen[str]) -> None:
        self.stack, self.folder, self.http, self.process = stack, folder, http, process

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def spawn(stack: Stack, folder: Path, *, port: int = 0) -> subprocess.Popen[str]:
    """Start a gateway on the stack's topics; its log lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"TRIAGE_GATEWAY__PORT": str(port), "TRIAGE_GATEWAY__DATA_DIR": str(folder), "TRIAGE_DEBUG": "1"}
    with (folder / "gateway.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", "gateway", "--json", "--config", str(stack.config)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **settings},
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only sets a flag of the child
        )


@asynccontextmanager
async def running_gateway(stack: Stack, folder: Path) -> AsyncIterator[GatewayProcess]:
    """Start a gateway and wait for its ready line; kill it at the end if it still runs."""
    process = spawn(stack, folder)
    assert process.stdout is not None
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, f"the gateway ended before it was ready:\n{(folder / 'gateway.log').read_text()[-4000:]}"
        ready = json.loads(line)
        assert ready["event"] == "ready"
        async with httpx.AsyncClient(base_url=ready["gateway"], timeout=70, trust_env=False) as http:
            yield GatewayProcess(stack, folder, http, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
