"""A gateway and its HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import new_app
from gateway.core import Gateway
from wire.logs import get_logger

# Calls that run when the gateway stops have this long; those that wait for a task are let go at once.
_FINISH_S = 20
_CLOSE_S = 10
_BACKLOG = 1024
# Longer than clients keep an idle connection (httpx 5 s, nginx 60 s): who closes it first must be the one that would send on it.
_KEEP_ALIVE_S = 75
_MOST_HEAD_BYTES = 64 << 10

log = get_logger(__name__)


class CertificateUnusable(ValueError):
    """The certificate or its key cannot be used; change the settings."""


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the command line has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with a bound on a request's head: the parser in C has none."""

    _is_in_head, _head_bytes = False, 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self._is_in_head and self._head_bytes > _MOST_HEAD_BYTES:
            self.send_400_response("The request's head is too large.")


def _quiet(app: ASGIApp) -> ASGIApp:
    """Return `app` with its errors kept from uvicorn, which would log their text: they have been answered and logged without it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Exception):
            await app(scope, receive, send)

    return answer


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises: OSError, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    found.setblocking(False)
    return found


async def serve(gateway: Gateway, listening: socket.socket) -> None:
    """Answer on `listening` until the gateway is closed, then finish running calls.

    Raises: CertificateUnusable; what ended the gateway.
    """
    settings = gateway.settings.gateway
    config = uvicorn.Config(
        _quiet(new_app(gateway)),
        http=_Protocol,
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_FINISH_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise CertificateUnusable(f"gateway.tls_cert_file or tls_key_file cannot be used: {error}.") from error
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
