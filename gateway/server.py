"""A gateway and its HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from gateway.app import new_app
from gateway.core import Gateway
from wire.logs import get_logger

# Calls that run when the gateway stops have this long; those that wait for a task are let go at once.
_FINISH_S = 20
_CLOSE_S = 10
_BACKLOG = 1024

log = get_logger(__name__)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the command line has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises: OSError, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    found.setblocking(False)
    return found


async def serve(gateway: Gateway, listening: socket.socket) -> None:
    """Answer on `listening` until the gateway is closed, then finish running calls. Raises: what ended the gateway."""
    config = uvicorn.Config(
        new_app(gateway),
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_FINISH_S,
    )
    server = _Server(config)
    answering = asyncio.create_task(server.serve(sockets=[listening]))
    stop = asyncio.create_task(gateway.stop.wait())
    # The view outlives the server: calls that are being finished still read it.
    ending = asyncio.Event()
    running = asyncio.create_task(gateway.run(ending))
    await asyncio.wait({answering, stop, running}, return_when=asyncio.FIRST_COMPLETED)
    gateway.close()
    server.should_exit = True
    await answering
    ending.set()
    stop.cancel()
    done, _ = await asyncio.wait({running}, timeout=_CLOSE_S)
    if not done:
        log.warning("Kafka does not answer: closing without it")
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
