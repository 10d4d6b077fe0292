"""What the decisions need from outside, as small protocols declared for their users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.gpu import GPUMetrics
from schemas.result import Output, Usage


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
