"""`triage gateway` as a process, and its HTTP server, without a Kafka behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from cli.embedded.processes import die_with_parent, free_ports
from gateway import server
from gateway.server import CertificateUnusable
from streams.settings import GatewaySettings, Settings
from tests.gateway.fakes import FakeGateway

HEAD = b"POST /v1/async/submit HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "cli", "gateway"]
        env = {**os.environ, "TRIAGE_GATEWAY__PORT": port}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == ended.returncode
    assert f"triage: Port {port} of 127.0.0.1 cannot be used" in ended.stderr
    assert 1 == len(ended.stderr.splitlines())


@contextmanager
def away_from_kafka(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a gateway whose Kafka is not there: process and port. It listens from its start on."""
    port, kafka = free_ports(2)
    settings = {"TRIAGE_GATEWAY__PORT": str(port), "TRIAGE_KAFKA__BOOTSTRAP": f"127.0.0.1:{kafka}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "gateway"],
        env={**os.environ, **settings},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent(),  # noqa: PLW1509 - it only sets a flag of the child
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def connected(port: int, process: subprocess.Popen[bytes]) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 10)
        except ConnectionRefusedError:
            assert process.poll() is None


def until_it_stops_listening(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # it was closing just then
            continue


@pytest.mark.faults
@pytest.mark.timeout(30, func_only=True)  # if it is the last test of a run, the broker of all is removed after it
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once_whatever_still_runs(
    tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    with away_from_kafka(tmp_path) as (process, port), connected(port, process) as sending:
        # Answers that nobody reads, more than the sockets hold: the first signal waits for such a call.
        sending.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200)
        assert sending.recv(12) == b"HTTP/1.1 200"
        process.send_signal(first)
        until_it_stops_listening(port)
        assert process.poll() is None
        process.send_signal(second)
        assert 1 == process.wait(2)


@asynccontextmanager
async def serving(gateway: FakeGateway) -> AsyncIterator[int]:
    """Serve a gateway over lists on a real socket."""
    listening = server.listen("127.0.0.1", 0)
    running = asyncio.create_task(server.serve(gateway, listening))
    try:
        yield listening.getsockname()[1]
    finally:
        gateway.close()
        await running


class Served(FakeGateway):
    """Keeps nothing from Kafka up to date: it only waits for its end."""

    async def run(self, ending: asyncio.Event) -> None:
        await ending.wait()


async def test_an_idle_connection_is_kept_longer_than_clients_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is closed under a request that is on its way: seen with 500 callers, of which one got no answer."""
    kept_s: list[float] = []

    class Watched(server._Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            kept_s.append(self.timeout_keep_alive)
            super().connection_made(transport)

    monkeypatch.setattr(server, "_Protocol", Watched)
    async with Served() as gateway, serving(gateway) as port:
        await exchange(port, b"GET /healthz/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    nginx_keeps_s = 60
    assert [True] == [each > nginx_keeps_s for each in kept_s]


async def exchange(port: int, *chunks: bytes) -> bytes:
    """Send chunks on one connection, and return all that comes until the other side closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "chunks",
    [
        [b"GET /" + b"x" * (1 << 17)],
        [HEAD, *[b"x-many: a\r\n" * 1_000] * 20],
        [HEAD, b"x-long: ", *[b"a" * 10_000] * 20],
    ],
    ids=["path", "many", "long"],
)
async def test_a_head_without_end_is_cut_off(chunks: list[bytes]) -> None:
    async with Served() as gateway, serving(gateway) as port:
        answer = await exchange(port, *chunks)
    assert answer[:12] in (b"HTTP/1.1 400", b"")


async def test_a_large_body_is_no_large_head_and_a_large_head_on_a_used_connection_is() -> None:
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 500_000)
    call = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    async with Served() as gateway, serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(call)
            assert (await reader.readuntil(b'"}}')).startswith(b"HTTP/1.1 202")
        writer.write(HEAD + b"x-long: " + b"a" * 100_000)
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).startswith(b"HTTP/1.1 2")
        writer.close()


async def test_what_nobody_foresaw_is_logged_without_its_text(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("a secret")

    async with Served() as gateway, serving(gateway) as port:
        gateway.fake.require = broken  # type: ignore[method-assign]
        async with httpx.AsyncClient(trust_env=False) as http:
            response = await http.get(f"http://127.0.0.1:{port}/v1/async/stats")
    said = "".join(capsys.readouterr()) + caplog.text  # wherever logs go by now
    assert (500, True, False) == (response.status_code, "request failed" in said, "secret" in said)


async def test_a_caller_that_hangs_up_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    async with Served() as gateway, serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert ("", "") == capsys.readouterr()
    assert not any(gateway.fake.records.values())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signed itself, with its key in one file."""
    path = tmp_path / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(path), "-keyout", "-"]
    key = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    path.write_bytes(key + path.read_bytes())
    return path


async def test_with_a_certificate_it_speaks_tls_alone(certificate: Path) -> None:
    settings = Settings(gateway=GatewaySettings(tls_cert_file=certificate, tls_key_file=certificate))
    trusted = ssl.create_default_context(cafile=certificate)
    async with (
        Served(settings) as gateway,
        serving(gateway) as port,
        httpx.AsyncClient(verify=trusted, trust_env=False) as http,
    ):
        assert 200 == (await http.get(f"https://127.0.0.1:{port}/healthz/live")).status_code
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{port}/healthz/live")


async def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    settings = Settings(gateway=GatewaySettings(tls_cert_file=tmp_path / "x.pem"))
    with server.listen("127.0.0.1", 0) as listening:
        async with Served(settings) as gateway:
            with pytest.raises(CertificateUnusable, match=r"gateway\.tls_cert_file or tls_key_file cannot be used"):
                await server.serve(gateway, listening)
