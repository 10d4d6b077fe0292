"""What the decisions need from outside, as small protocols declared for their users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from schemas.gpu import GPUMetrics
from schemas.result import Output, Usage
from streams.errors import BackendError


@dataclass(frozen=True, slots=True)
class Call:
    """One conversation for one model. `parameters` are the request's, not yet filtered for the backend's kind."""

    task_id: str
    model: str
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend returned. `dropped` names parameters that its kind does not take; `usage` None when it does not count."""

    output: Output
    usage: Usage | None
    dropped: tuple[str, ...] = ()


Reply: TypeAlias = Answer | BackendError
"""What became of one call of several."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A look at a backend. `models` empty and `slots` None when it does not say; `reason` says why `up` is False."""

    up: bool
    models: tuple[str, ...] = ()
    slots: int | None = None
    context_tokens: int | None = None
    reason: str | None = None


class Backend(Protocol):
    """One model server."""

    @property
    def name(self) -> str: ...

    async def complete(self, call: Call, *, timeout_s: float) -> Answer:
        """Return the answer. Cancelling the awaiting task closes the connection, which makes the server stop.

        Raises: BackendError, of the family that says what to do next.
        """
        ...

    def takes_together(self, calls: Sequence[Call]) -> bool:
        """Whether `complete_batch` sends these as one call; else each is to be sent by `complete`."""
        ...

    async def complete_batch(self, calls: Sequence[Call], *, timeout_s: float) -> list[Reply]:
        """Return what became of each call, in their order; cancelling the awaiting task gives all of them up.

        Raises: BackendError when the call failed as a whole, or when its answer cannot be told apart by item.
        """
        ...

    async def probe(self) -> Probe:
        """Look whether the server is up and what it serves. Never raises: what goes wrong is the probe's `reason`."""
        ...

    async def close(self) -> None: ...


class GpuReader(Protocol):
    """A source of GPU samples; `read` may block for as long as the driver does."""

    @property
    def unavailable_reason(self) -> str | None:
        """Return one sentence after a `read` that gave nothing, else None."""
        ...

    def read(self, *, now_ms: int) -> list[GPUMetrics]:
        """Return one sample per card, [] when there is none. Never raises: what cannot be read is None with a reason."""
        ...

    def close(self) -> None: ...
