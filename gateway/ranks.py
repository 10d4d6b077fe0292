"""Who is before whom: a sorted list that gains and loses members and tells how many stand before one."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, TypeVar

_CHUNK = 1024

_Member = TypeVar("_Member", int, tuple[int, str])


@dataclass
class Ranks(Generic[_Member]):
    """A sorted multiset, in chunks of about a thousand, so that a backlog of a million is searched in microseconds."""

    _chunks: list[list[_Member]] = field(default_factory=list)
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    @property
    def first(self) -> _Member | None:
        """Return the smallest member, None when there is none."""
        return self._chunks[0][0] if self._chunks else None

    def smallest(self, count: int) -> list[_Member]:
        """Return the first so many members, in order."""
        return list(islice(chain.from_iterable(self._chunks), count))

    def add(self, member: _Member) -> None:
        self._count += 1
        if not self._chunks:
            self._chunks.append([member])
            return
        at = min(self._chunk_of(member), len(self._chunks) - 1)
        chunk = self._chunks[at]
        insort(chunk, member)
        if len(chunk) > 2 * _CHUNK:
            self._chunks[at : at + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]

    def remove(self, member: _Member) -> None:
        """Take one such member out. Raises: KeyError when there is none."""
        at = self._chunk_of(member)
        chunk = self._chunks[at] if at < len(self._chunks) else []
        place = bisect_left(chunk, member)
        if place == len(chunk) or chunk[place] != member:
            raise KeyError(member)
        del chunk[place]
        self._count -= 1
        if not chunk:
            del self._chunks[at]

    def before(self, member: _Member) -> int:
        """Return how many members are smaller."""
        at = self._chunk_of(member)
        smaller = sum(len(chunk) for chunk in self._chunks[:at])
        return smaller + (bisect_left(self._chunks[at], member) if at < len(self._chunks) else 0)

    def _chunk_of(self, member: _Member) -> int:
        """Return the first chunk that ends at or after `member`."""
        return bisect_left(self._chunks, member, key=lambda chunk: chunk[-1])
