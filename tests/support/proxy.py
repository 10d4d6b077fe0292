"""A TCP proxy that does to a connection what a bad network does: Toxiproxy's toxics, in this process.

A Kafka broker tells its clients where to reach it, so it must advertise the proxy: `broker_behind` starts one that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

from cli.embedded.kafka import KafkaCluster
from cli.embedded.processes import free_ports
from wire.clock import monotonic_s

Way = Literal["up", "down"]
"""`up`: from the client to the server; `down`: from the server to the client."""

_READ_BYTES = 1 << 16
_BUFFERED_CHUNKS = 256
_NOTHING: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes as they arrived, at `arrived_s` of the monotonic clock."""

    data: bytes
    arrived_s: float


class Toxic:
    """What happens to each chunk that goes one way, and to that way's end. This one does nothing."""

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        """Yield what of the chunk goes on, when it is time."""
        yield chunk.data

    async def end(self, link: Link) -> None:
        """Return when the other side may hear that this one has closed."""


@dataclass(eq=False)
class Latency(Toxic):
    """Each chunk comes `delay_s` later, give or take `jitter_s`; the order stays."""

    delay_s: float
    jitter_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        delay_s = max(0.0, self.delay_s + self._random.uniform(-self.jitter_s, self.jitter_s))
        await link.pause(chunk.arrived_s + delay_s - monotonic_s())
        yield chunk.data


@dataclass(eq=False)
class Bandwidth(Toxic):
    """At most this many bytes a second over each connection."""

    bytes_per_s: float

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        step = max(1, int(self.bytes_per_s / 20))
        for piece in _cut(chunk.data, step):
            await link.pause(len(piece) / self.bytes_per_s)
            yield piece


@dataclass(eq=False)
class Slicer(Toxic):
    """Bytes come in pieces of this size, each `delay_s` after the one before."""

    piece_bytes: int = 1
    delay_s: float = 0.0

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        for piece in _cut(chunk.data, self.piece_bytes):
            yield piece
            await link.pause(self.delay_s)


@dataclass(eq=False)
class SlowClose(Toxic):
    """The other side hears of an end this much later."""

    delay_s: float

    async def end(self, link: Link) -> None:
        await link.pause(self.delay_s)


@dataclass(eq=False)
class Silence(Toxic):
    """Toxiproxy's `timeout`: nothing goes through until the toxic is taken away; after `close_s` the connection is closed."""

    close_s: float | None = None

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        if not await link.gone(self, self.close_s):
            link.close()
            return
        yield chunk.data


@dataclass(eq=False)
class ResetPeer(Toxic):
    """Both sides get a reset as soon as something is to go through, `after_s` later."""

    after_s: float = 0.0

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        await link.pause(self.after_s)
        link.reset()
        for piece in _NOTHING:
            yield piece


@dataclass(eq=False)
class LimitData(Toxic):
    """After `most_bytes` the connection is closed, or reset; `times` connections get this, None: every one."""

    most_bytes: int
    is_reset: bool = False
    times: int | None = None

    def __post_init__(self) -> None:
        self.tripped = asyncio.Event()
        self._seen: dict[Link, int] = {}

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        seen = self._seen.setdefault(link, 0)
        self._seen[link] += len(chunk.data)
        if self._seen[link] <= self.most_bytes or self.times == 0:
            yield chunk.data
            return
        self.times = self.times and self.times - 1
        if head := chunk.data[: self.most_bytes - seen]:
            yield head
        link.reset() if self.is_reset else link.close()
        self.tripped.set()


@dataclass(eq=False)
class HalfOpen(Toxic):
    """What is sent vanishes, and an end of one side is not told to the other, as when a firewall forgets the connection."""

    async def pieces(self, link: Link, chunk: Chunk) -> AsyncIterator[bytes]:
        for piece in _NOTHING:
            yield piece

    async def end(self, link: Link) -> None:
        await link.gone(self, None)


class Link:
    """One way of one connection."""

    def __init__(self, proxy: Proxy, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._way, self._reader, self._writer = proxy, way, reader, writer
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue(_BUFFERED_CHUNKS)
        self.pair: tuple[asyncio.StreamWriter, ...] = ()

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        try:
            while (chunk := await self._chunks.get()) is not None:
                await self._pass(self._proxy.toxics(self._way), chunk)
            for toxic in self._proxy.toxics(self._way):
                await toxic.end(self)
            if self._writer.can_write_eof():
                self._writer.write_eof()
        except (ConnectionError, OSError):
            self.close()
        finally:
            reading.cancel()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                await self._chunks.put(Chunk(data, monotonic_s()))
        await self._chunks.put(None)

    async def _pass(self, toxics: Sequence[Toxic], chunk: Chunk) -> None:
        if not toxics:
            if not self._writer.is_closing():
                self._writer.write(chunk.data)
                await self._writer.drain()
            return
        async for piece in toxics[0].pieces(self, chunk):
            await self._pass(toxics[1:], Chunk(piece, chunk.arrived_s))

    async def pause(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def gone(self, toxic: Toxic, timeout_s: float | None) -> bool:
        """Return True when the toxic was taken away, False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while toxic in self._proxy.toxics(self._way):
                    await self._proxy.changed()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        for writer in self.pair:
            writer.close()

    def reset(self) -> None:
        for writer in self.pair:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Listens on `port` of 127.0.0.1 (0: a free one) and passes each connection on to `target`, host and port."""

    def __init__(self, target: tuple[str, int], *, port: int = 0) -> None:
        self.target, self.port = target, port
        self.accepted_count = 0
        self._toxics: dict[Way, list[Toxic]] = {"up": [], "down": []}
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def toxics(self, way: Way) -> Sequence[Toxic]:
        return tuple(self._toxics[way])

    def add(self, way: Way, toxic: Toxic) -> None:
        """Let `toxic` act on open connections and new ones, after those that were added before."""
        self._toxics[way].append(toxic)
        self._tell()

    def clear(self) -> None:
        """Take all toxics away."""
        for toxics in self._toxics.values():
            toxics.clear()
        self._tell()

    async def changed(self) -> None:
        """Return when a toxic is added or taken away."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted_count += 1
        writers = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
            writers.append(server_writer)
            up = Link(self, "up", reader, server_writer)
            down = Link(self, "down", server_reader, writer)
            up.pair = down.pair = (writer, server_writer)
            await asyncio.gather(up.run(), down.run())
        except (ConnectionError, asyncio.CancelledError):
            pass  # a server that is away, or the end of the test: the client sees its connection close
        finally:
            for each in writers:
                each.close()
            self._connections.discard(task)


@contextmanager
def broker_behind() -> Iterator[tuple[KafkaCluster, int]]:
    """Yield a broker that advertises a port of 127.0.0.1 where nobody listens yet, and that port."""
    [port] = free_ports(1)
    with KafkaCluster(properties={"advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}"}) as cluster:
        yield cluster, port


@asynccontextmanager
async def proxied(cluster: KafkaCluster, port: int) -> AsyncIterator[Proxy]:
    """Listen on the advertised port of a broker from `broker_behind`."""
    host, broker_port = cluster.bootstrap.split(":")
    async with Proxy((host, int(broker_port)), port=port) as proxy:
        yield proxy


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))
