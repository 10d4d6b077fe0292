"""Acknowledgement in offset order: what may be committed when requests finish in any order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Token = TypeVar("_Token")


@dataclass(slots=True)
class _Slot(Generic[_Token]):
    token: _Token
    done: bool = False


@dataclass
class InOrderAcks(Generic[_Token]):
    """Hold finished requests of one (partition, generation) back until all before them are finished.

    A released token means that every lower offset seen is finished, so committing past it loses nothing, however the consumer
    computes what it commits. Faust 0.15.3 commits past unfinished requests when acknowledgements come out of order.
    Offsets are added in ascending order and each is completed once; one that never is holds its partition for ever.
    """

    _slots: OrderedDict[int, _Slot[_Token]] = field(default_factory=OrderedDict)

    def add(self, offset: int, token: _Token) -> None:
        """Take note of a request that was delivered. An offset below one already seen is a redelivery and is ignored."""
        if self._slots and offset <= next(reversed(self._slots)):
            return
        self._slots[offset] = _Slot(token)

    def complete(self, offset: int) -> list[_Token]:
        """Mark a request finished; return what may be acknowledged now, in offset order. Unknown offsets release nothing."""
        slot = self._slots.get(offset)
        if slot is None:
            return []
        slot.done = True
        released = []
        while self._slots:
            first, head = next(iter(self._slots.items()))
            if not head.done:
                break
            released.append(head.token)
            del self._slots[first]
        return released

    @property
    def span(self) -> int:
        """Return how many offsets lie between the oldest unfinished and the newest seen, both included; 0 when all are finished."""
        if not self._slots:
            return 0
        return next(reversed(self._slots)) - next(iter(self._slots)) + 1

    @property
    def oldest(self) -> int | None:
        """Return the oldest unfinished offset."""
        return next(iter(self._slots), None)

    @property
    def unfinished(self) -> list[int]:
        """Return the offsets not yet completed, ascending."""
        return [offset for offset, slot in self._slots.items() if not slot.done]

    def __repr__(self) -> str:
        return f"InOrderAcks(oldest={self.oldest}, span={self.span})"
