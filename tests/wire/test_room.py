"""The bound on what waits inside the producer."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from wire.producing import Room


async def test_who_finds_no_room_waits_in_turn() -> None:
    room, order = Room(10), list[str]()

    async def take(name: str, size_bytes: int) -> None:
        await room.take(size_bytes)
        order.append(name)

    await room.take(8)
    large, small = asyncio.create_task(take("large", 9)), asyncio.create_task(take("small", 1))
    await asyncio.sleep(0)
    assert [] == order, "the small one would fit, but came later"
    room.give(8)
    await asyncio.gather(large, small)
    assert (["large", "small"], 10) == (order, room.used_bytes)


async def test_what_is_larger_than_the_room_fits_when_it_is_empty() -> None:
    room = Room(10)
    await room.take(25)
    assert not room.admits(1)
    room.give(25)
    assert room.admits(1)


async def test_a_waiter_that_gives_up_lets_the_next_one_in() -> None:
    room = Room(10)
    await room.take(6)
    large, small = asyncio.create_task(room.take(9)), asyncio.create_task(room.take(2))
    await asyncio.sleep(0)
    large.cancel()
    await asyncio.wait({small}, timeout=5)
    assert (True, 8) == (small.done(), room.used_bytes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=40))
def test_no_byte_is_lost_or_let_in_above_the_bound(takers: list[tuple[int, bool]]) -> None:
    async def run() -> None:
        room, most = Room(10), 0

        async def use(size_bytes: int, gives_up: bool) -> None:
            nonlocal most
            try:
                async with asyncio.timeout(0 if gives_up else None):
                    await room.take(size_bytes)
            except TimeoutError:
                return
            most = max(most, room.used_bytes)
            assert room.used_bytes <= 10 or room.used_bytes == size_bytes
            await asyncio.sleep(0)
            room.give(size_bytes)

        async with asyncio.timeout(5):
            await asyncio.gather(*(use(*each) for each in takers))
        assert 0 == room.used_bytes

    asyncio.run(run())
