"""`triage gateway`: the HTTP surface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streams.settings import Settings


def gateway(
    config: Annotated[Path | None, typer.Option("--config", help="Settings file.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of gateway.port; 0 takes any free one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a ready line for machines.")] = False,
) -> None:
    """Answer over HTTP: submit, status, result, cancel; ends cleanly on SIGTERM."""
    from cli.configuration import load
    from cli.errors import Failed
    from wire import logs

    settings = load(config, {"gateway.port": port}).settings
    if settings.auth.modes != ["none"]:
        raise Failed('auth.modes other than ["none"] are not there yet.')
    logs.configure(settings.logging.format, settings.logging.level)
    serve(settings, as_json=as_json)


def serve(settings: Settings, *, as_json: bool) -> None:
    """Run a gateway until a signal; a second signal ends the process at once.

    Raises: Failed, when the port is taken, the certificate cannot be used or the topics differ from the catalogue.
    """
    import asyncio
    import json

    import uvloop

    from cli.errors import Failed
    from cli.stopping import stop_on_signals
    from gateway import server
    from gateway.core import Gateway
    from wire.clock import monotonic_s

    began_s = monotonic_s()
    host, port = settings.gateway.host, settings.gateway.port
    try:
        listening = server.listen(host, port)
    except OSError as error:
        raise Failed(
            f"Port {port} of {host} cannot be used ({os.strerror(error.errno or 0)}): choose one with --port, 0 for any free one."
        ) from None
    scheme = "http" if settings.gateway.tls_cert_file is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    async def main() -> None:
        stop = stop_on_signals()
        running = Gateway(settings, cache_home=_cache_home())
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: running.close())
        work = asyncio.create_task(server.serve(running, listening))
        ready = asyncio.create_task(running.ready.wait())
        await asyncio.wait([work, ready], return_when=asyncio.FIRST_COMPLETED)
        if running.ready.is_set():
            line = {"event": "ready", "gateway": url, "took_s": round(monotonic_s() - began_s, 2), "pid": os.getpid()}
            print(json.dumps(line) if as_json else f"gateway is ready at {url}", flush=True)
        ready.cancel()
        await work
        stopping.cancel()

    try:
        uvloop.run(main())
    except server.CertificateUnusable as error:
        raise Failed(str(error)) from None


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
