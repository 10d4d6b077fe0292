"""The public fakes."""

from __future__ import annotations

import pytest

from streams.errors import BackendOverloaded
from streams.ports import Call
from streams.testing import FakeBackend, FakeClock

CALL = Call("task-1", "fake", [{"role": "user", "content": "two words"}])


def test_the_clock_goes_on_only_when_told_and_never_back() -> None:
    clock = FakeClock(5)

    assert (clock(), clock.advance(2.5), clock.now_s) == (5, 7.5, 7.5)
    with pytest.raises(ValueError, match="does not step back"):
        clock.advance(-1)


async def test_the_backend_echoes_raises_what_it_is_given_and_counts() -> None:
    overloaded = BackendOverloaded(retry_after_s=3)
    backend = FakeBackend()
    answer = await backend.complete(CALL, timeout_s=1)
    failing = FakeBackend(answer=lambda call: overloaded)

    assert answer.output.content == "TWO WORDS"
    with pytest.raises(BackendOverloaded):
        await failing.complete(CALL, timeout_s=1)
    assert (backend.calls, backend.in_flight, backend.most_in_flight) == ([CALL], 0, 1)


async def test_a_call_is_in_flight_until_the_test_lets_it_end() -> None:
    seen: list[int] = []

    async def before(call: Call) -> None:
        seen.append(backend.in_flight)
        raise RuntimeError("as a cancelled task would")

    backend = FakeBackend(before=before)
    with pytest.raises(RuntimeError):
        await backend.complete(CALL, timeout_s=1)

    assert (seen, backend.in_flight, backend.cancelled) == ([1], 0, 1)
