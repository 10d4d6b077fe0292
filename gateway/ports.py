"""What the gateway needs of the logs, declared for `gateway/tasks.py`. Kafka is behind it, in tests a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from schemas.headers import Headers


class Unavailable(Exception):
    """Kafka does not answer, or the view has not read far enough; the call may be tried again."""


class OutcomeUnknown(Unavailable):
    """The record was sent and not acknowledged in time: it may be written, or not, or later."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it lies in its log."""

    value: bytes | None
    headers: Headers


class Logs(Protocol):
    """The logs, and the view's place in them."""

    @property
    def now_ms(self) -> int:
        """Broker time."""

    @property
    def is_reachable(self) -> bool:
        """Whether Kafka answered within the last five seconds."""

    def require(self) -> None:
        """Return when task routes can answer. Raises: Unavailable before the view has caught up and while Kafka is away."""

    async def append(
        self, topic: str, partition: int, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        """Return the record's offset once it is durable. Raises: OutcomeUnknown after 5 s; RecordTooLarge."""

    async def reach(self, partition: int | None) -> None:
        """Return when the view knows everything that is in the logs now of the known tasks of this partition number.

        None: when it knows every task that is there, and how it stands. Raises: Unavailable.
        """

    async def reach_state(self) -> None:
        """Return when the view knows everything that is remembered together. Raises: Unavailable."""

    async def reach_result(self, partition: int, offset: int, timeout_s: float) -> bool:
        """Return whether the view has read this record of the results log within `timeout_s`."""

    async def read(self, topic: str, partition: int, offset: int) -> Stored | None:
        """Return one record, None when the log no longer has it. Raises: Unavailable."""
