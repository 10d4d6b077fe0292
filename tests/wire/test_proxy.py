"""The proxy of bad networks, on a server that sends back what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.proxy import (
    Bandwidth,
    HalfOpen,
    Latency,
    LimitData,
    Proxy,
    ResetPeer,
    Silence,
    Slicer,
    SlowClose,
)
from wire.clock import monotonic_s


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Proxy, Client]]:
    """Yield a proxy before an echo server, and a client that is connected through it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with asyncio.timeout(20), Proxy(server.sockets[0].getsockname()[:2]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        yield proxy, Client(reader, writer)
        writer.close()
    server.close()
    await server.wait_closed()


async def test_without_toxics_bytes_and_the_end_go_through() -> None:
    async with echo() as (_, client):
        data = bytes(range(256)) * 4000
        assert data == await client.say(data)
        client.writer.write_eof()
        assert b"" == await client.reader.read()


async def test_latency_delays_each_chunk_and_keeps_the_order() -> None:
    async with echo() as (proxy, client):
        proxy.add("down", Latency(0.2, jitter_s=0.1))
        began_s = monotonic_s()
        assert b"hello" == await client.say(b"hello")
        assert 0.1 <= monotonic_s() - began_s
        # Delays of chunks overlap: ten of them take far less than ten times 0.2 s.
        began_s = monotonic_s()
        for number in range(10):
            client.writer.write(b"%d" % number)
            await asyncio.sleep(0.01)
        assert b"0123456789" == await client.reader.readexactly(10)
        assert 0.1 <= monotonic_s() - began_s < 1.8


async def test_bandwidth_is_a_bound() -> None:
    async with echo() as (proxy, client):
        proxy.add("up", Bandwidth(100_000))
        began_s = monotonic_s()
        await client.say(b"x" * 50_000)
        assert 0.5 <= monotonic_s() - began_s


async def test_slicer_gives_single_bytes() -> None:
    async with echo() as (proxy, client):
        proxy.add("down", Slicer(1, delay_s=0.01))
        client.writer.write(b"abc")
        assert [b"a", b"b", b"c"] == [await client.reader.read(100) for _ in range(3)]


async def test_slow_close_tells_the_end_late() -> None:
    async with echo() as (proxy, client):
        proxy.add("down", SlowClose(0.3))
        began_s = monotonic_s()
        client.writer.write_eof()
        assert b"" == await client.reader.read()
        assert 0.3 <= monotonic_s() - began_s


async def test_silence_holds_bytes_back_until_it_is_over() -> None:
    async with echo() as (proxy, client):
        proxy.add("up", Silence())
        saying = asyncio.create_task(client.say(b"hello"))
        assert set() == (await asyncio.wait({saying}, timeout=0.2))[0]
        proxy.clear()
        assert b"hello" == await saying


async def test_silence_with_an_end_closes() -> None:
    async with echo() as (proxy, client):
        proxy.add("up", Silence(close_s=0.1))
        client.writer.write(b"hello")
        assert b"" == await client.reader.read()


async def test_reset_peer_resets() -> None:
    async with echo() as (proxy, client):
        proxy.add("up", ResetPeer())
        client.writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@pytest.mark.parametrize("is_reset", [False, True])
async def test_limit_data_cuts_after_so_many_bytes_and_lets_the_next_connection_be(is_reset: bool) -> None:
    async with echo() as (proxy, client):
        limit = LimitData(3, is_reset=is_reset, times=1)
        proxy.add("down", limit)
        client.writer.write(b"hello")
        if is_reset:
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
        else:
            assert b"hel" == await client.reader.read()
        assert limit.tripped.is_set()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert b"hello" == await Client(reader, writer).say(b"hello")
        writer.close()


async def test_half_open_swallows_bytes_and_the_end() -> None:
    async with echo() as (proxy, client):
        proxy.add("down", HalfOpen())
        client.writer.write(b"hello")
        client.writer.write_eof()
        reading = asyncio.create_task(client.reader.read())
        assert set() == (await asyncio.wait({reading}, timeout=0.2))[0]
        proxy.clear()
        assert b"" == await reading


async def test_a_server_that_is_away_closes_the_client() -> None:
    async with echo() as (proxy, _):
        proxy.target = ("127.0.0.1", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert b"" == await reader.read()
        writer.close()
