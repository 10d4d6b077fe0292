"""`triage worker`: take requests in, batch them, send them to backends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def worker(
    config: Annotated[Path | None, typer.Option("--config", help="Settings file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a ready line for machines.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Worker processes.")] = 1,
    session_s: Annotated[float, typer.Option("--session-s", hidden=True)] = 6.0,
    drain_s: Annotated[float, typer.Option("--drain-s", hidden=True)] = 25.0,
) -> None:
    """Take requests in, batch them, send them to backends; ends cleanly on SIGTERM."""
    from cli.configuration import load
    from wire import logs

    settings = load(config).settings
    logs.configure(settings.logging.format, settings.logging.level)
    if processes > 1:
        from agents.app import DEFAULT_METRICS_PORT
        from cli.embedded.processes import own_command
        from cli.several import run_several

        port = DEFAULT_METRICS_PORT if settings.metrics.port is None else settings.metrics.port
        verb = ["worker", "--json", "--session-s", str(session_s), "--drain-s", str(drain_s)]
        verb += ["--config", str(config)] if config is not None else []
        run_several(own_command(*verb), processes, first_metrics_port=port, as_json=as_json)
        return
    serve(settings, as_json=as_json, session_s=session_s, drain_s=drain_s)


def serve(settings: object, *, as_json: bool, session_s: float, drain_s: float) -> None:
    """Run a worker until a signal; a second signal ends the process at once."""
    import asyncio
    import json
    import tempfile

    import uvloop

    from agents.app import Worker
    from cli.stopping import stop_on_signals
    from streams.settings import Settings

    assert isinstance(settings, Settings)

    async def main() -> None:
        stop, ready = stop_on_signals(), asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="triage-worker-") as folder:
            running = Worker(settings, datadir=Path(folder), session_s=session_s, drain_s=drain_s)
            work = asyncio.create_task(running.run(stop, ready=ready))
            announced = asyncio.create_task(ready.wait())
            await asyncio.wait([work, announced], return_when=asyncio.FIRST_COMPLETED)
            if ready.is_set():
                line = {
                    "event": "ready",
                    "worker": running.id,
                    "metrics_port": running.metrics_port,
                    "pid": os.getpid(),
                }
                print(json.dumps(line) if as_json else f"worker {running.id} is ready", flush=True)
            announced.cancel()
            await work

    uvloop.run(main())
