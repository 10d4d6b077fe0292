"""The answer cache: what a worker answers from, and what the table's owner removes."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field

from schemas.cache import CacheEntry

MOST_REMOVALS_PER_EVENT = 8


@dataclass
class AnswerCache:
    """Answers by fingerprint, bounded in entries and bytes; the least recently used goes first.

    The newest entry of a fingerprint wins, whatever order they arrive in. Expired entries answer nothing.
    """

    max_entries: int
    max_bytes: int
    _entries: OrderedDict[str, tuple[CacheEntry, int]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    hits: int = 0
    misses: int = 0

    def put(self, fingerprint: str, entry: CacheEntry, size_bytes: int) -> None:
        known = self._entries.get(fingerprint)
        if known is not None:
            if known[0].stored_at_ms > entry.stored_at_ms:
                return
            self._bytes -= known[1]
        self._entries[fingerprint] = (entry, size_bytes)
        self._entries.move_to_end(fingerprint)
        self._bytes += size_bytes
        while self._entries and (len(self._entries) > self.max_entries or self._bytes > self.max_bytes):
            _, (_, size) = self._entries.popitem(last=False)
            self._bytes -= size

    def get(self, fingerprint: str, now_ms: int) -> CacheEntry | None:
        """Return the answer, None when there is none or it has expired; counts a hit or a miss."""
        found = self._entries.get(fingerprint)
        if found is None or found[0].expires_at_ms <= now_ms:
            self.misses += 1
            return None
        self._entries.move_to_end(fingerprint)
        self.hits += 1
        return found[0]

    def remove(self, fingerprint: str) -> None:
        _, size = self._entries.pop(fingerprint, (None, 0))
        self._bytes -= size

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return self._bytes


@dataclass
class CacheIndex:
    """What each partition of the cache table holds, oldest first, so that its owner can keep it within bounds.

    `removals` marks what it returns as removed at once: the tombstone comes back through the changelog only later.
    """

    max_entries: int
    max_bytes: int
    partitions: int
    _keys: dict[int, OrderedDict[str, tuple[int, int]]] = field(default_factory=lambda: defaultdict(OrderedDict))
    _bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def put(self, partition: int, fingerprint: str, expires_at_ms: int, size_bytes: int) -> None:
        self.remove(partition, fingerprint)
        self._keys[partition][fingerprint] = (expires_at_ms, size_bytes)
        self._bytes[partition] += size_bytes

    def remove(self, partition: int, fingerprint: str) -> None:
        _, size = self._keys[partition].pop(fingerprint, (0, 0))
        self._bytes[partition] -= size

    def removals(self, partition: int, now_ms: int) -> list[str]:
        """Return up to eight fingerprints to delete: expired ones at the old end, then the oldest beyond the partition's bounds."""
        keys = self._keys[partition]
        most = max(self.max_entries // self.partitions, min(self.max_entries, 1))
        most_bytes = self.max_bytes // self.partitions
        removed: list[str] = []
        while keys and len(removed) < MOST_REMOVALS_PER_EVENT:
            fingerprint, (expires_at_ms, _) = next(iter(keys.items()))
            if expires_at_ms > now_ms and len(keys) <= most and self._bytes[partition] <= most_bytes:
                break
            removed.append(fingerprint)
            self.remove(partition, fingerprint)
        return removed

    def count(self, partition: int) -> int:
        return len(self._keys[partition])
