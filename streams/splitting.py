"""A batch call that fails as a whole: halved until what makes it fail stands alone, so that its mates are unharmed.

One bad item of n costs at most 2 * ceil(log2 n) calls more: for 2, 4, 8, 16 items 2, 4, 6, 8. k of them cost k times that at most, and
never more than 2n - 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from streams.errors import BackendError, BackendFailed, BackendProtocolError, BackendRejected, Poisonous
from streams.ports import Answer, Reply

T = TypeVar("T")


def is_split(error: BackendError) -> bool:
    """Whether another failure is to be expected from the same batch, and not from a part of it.

    | the batch call ended with | split |
    |---|---|
    | 500 | yes: an item breaks the server's handling |
    | 4xx but 408, 425, 429 | yes: an item is too long, or has what the server refuses |
    | an answer that cannot be read, or told apart by item | yes |
    | 429, 503 | no: there is no room, for a part neither |
    | a time-out | no: it was long enough, and the parts would wait as long again |
    | no connection, or lost; 502, 504 | no: the server is away |
    """
    return isinstance(error, BackendFailed | BackendRejected | BackendProtocolError)


@dataclass(slots=True)
class Step(Generic[T]):
    """What comes next: `calls` to make, and `ends`, each item with what became of it."""

    calls: list[list[T]] = field(default_factory=list)
    ends: list[tuple[T, Reply]] = field(default_factory=list)


@dataclass
class Splitting(Generic[T]):
    """The calls of one batch, from the first for all `members` until each has its end, which it gets once.

    The shell makes the calls and says of each how it ended: `replied`, or `failed` as a whole. An item that fails alone waits for
    its mates: where one of them was answered the item is to blame (`Poisonous`), else the server is, and the error stays its own.
    A server that answers 500 to everything is not asked for long: once the calls that one bad item would cost are used up, a
    part that gets another 500 ends with it, which may be tried again.
    """

    members: Sequence[T]
    _open: int = 1
    _calls_left: int = 0
    _is_answered: bool = False
    _alone: list[tuple[T, BackendError]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._calls_left = 2 * (len(self.members) - 1).bit_length()

    def replied(self, replies: Iterable[tuple[T, Reply]]) -> Step[T]:
        """A call ended with a reply for each of its items; with none at all when all of them were given up."""
        step = Step(ends=list(replies))
        self._is_answered |= any(isinstance(reply, Answer) for _, reply in step.ends)
        return self._closed(step)

    def failed(self, part: Sequence[T], error: BackendError) -> Step[T]:
        """A call failed as a whole; `part` is all that it was for, those given up meanwhile too:
        any of them may be to blame."""
        if not is_split(error):
            return self._closed(Step(ends=[(member, error) for member in part]))
        if len(part) < 2:
            self._alone += [(member, error) for member in part]
            return self._closed(Step())
        if isinstance(error, BackendFailed) and self._calls_left < 2:
            return self._closed(Step(ends=[(member, error) for member in part]))
        half = (len(part) + 1) // 2
        self._calls_left -= 2
        self._open += 2
        return self._closed(Step(calls=[list(part[:half]), list(part[half:])]))

    def _closed(self, step: Step[T]) -> Step[T]:
        self._open -= 1
        if self._is_answered or not self._open:
            alone, self._alone = self._alone, []
            step.ends += [(member, self._blamed(error)) for member, error in alone]
        return step

    def _blamed(self, error: BackendError) -> BackendError:
        if not self._is_answered or len(self.members) < 2:
            return error
        return Poisonous(f"fails alone after its batch was split: {error.detail}")
