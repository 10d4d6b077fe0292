"""A clock and a model server for tests of programs that use Triage's parts. Neither does any I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from schemas.result import Output, Usage
from streams.errors import BackendError, BackendUnavailable
from streams.ports import Answer, Call, Probe, Reply


@dataclass
class FakeClock:
    """A clock that stands still until it is told to go on; called, it returns its time."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> float:
        """Return the new time. Raises: ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not step back ({seconds} s)")
        self.now_s += seconds
        return self.now_s


def echo(call: Call) -> Answer:
    """Answer with the last message's text in upper case; tokens are its words."""
    content = str(call.messages[-1].get("content")).upper()
    words = len(content.split())
    return Answer(Output(content, "stop"), Usage(words, words, 2 * words))


@dataclass
class FakeBackend:
    """A `streams.ports.Backend` that answers by a function: an exception that `answer` returns is raised.

    `before` is awaited in each call, so that a test decides when a call ends; None ends it at once. `calls` holds every
    call in the order of their starts; one that ends before its answer is counted in `cancelled`.
    """

    name: str = "fake"
    answer: Callable[[Call], Answer | Exception] = echo
    before: Callable[[Call], Awaitable[object]] | None = None
    view: Probe = field(default_factory=lambda: Probe(up=True, models=("fake",)))
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    cancelled: int = 0
    is_closed: bool = False
    batches: bool = False
    batch_calls: list[list[Call]] = field(default_factory=list)

    async def complete(self, call: Call, *, timeout_s: float) -> Answer:
        """Return what `answer` returns. `timeout_s` is not kept: there is no clock here."""
        if self.is_closed:
            raise BackendUnavailable("the backend was closed")
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        ended = False
        try:
            if self.before is not None:
                await self.before(call)
            ended = True
        finally:
            self.in_flight -= 1
            self.cancelled += not ended
        answer = self.answer(call)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def takes_together(self, calls: Sequence[Call]) -> bool:
        return self.batches and len(calls) > 1

    async def complete_batch(self, calls: Sequence[Call], *, timeout_s: float) -> list[Reply]:
        """Return what `answer` returns for each call; `batch_calls` holds them."""
        self.batch_calls.append(list(calls))
        return [await self._reply(call, timeout_s) for call in calls]

    async def _reply(self, call: Call, timeout_s: float) -> Reply:
        try:
            return await self.complete(call, timeout_s=timeout_s)
        except BackendError as error:
            return error

    async def probe(self) -> Probe:
        """Return `view`."""
        return self.view

    async def close(self) -> None:
        self.is_closed = True
