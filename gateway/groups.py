"""What belongs together: the tasks of a batch, and what was sent under an idempotency key. Told by the records' own headers.

The rows lie in the view's file beside the finished tasks, and can be thrown away with it: any gateway finds them again in the logs.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from schemas.result import Outcome
from schemas.topics import Lane

BATCH_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MEMBERSHIP = re.compile(rb"([A-Za-z0-9._:-]{1,128});(\d{1,9});(\d{1,9})")
_KEY = re.compile(rb"[\x21-\x7e]{1,128}")
_OUTCOMES, _LANES = list(Outcome), list(Lane)

TABLES = """
CREATE TABLE members (tenant TEXT, batch_id TEXT, number INTEGER, task_id TEXT, partition INTEGER, total INTEGER, at_ms INTEGER,
                      PRIMARY KEY (tenant, batch_id, number, task_id, partition)) WITHOUT ROWID;
CREATE INDEX members_by_time ON members (at_ms);
CREATE TABLE claims (key_hash TEXT, claim TEXT, at_ms INTEGER, PRIMARY KEY (key_hash, claim)) WITHOUT ROWID;
CREATE INDEX claims_by_time ON claims (at_ms);
"""
_MEMBERS = """
SELECT number, members.task_id, members.partition, total, outcome, lane, "offset", finished.at_ms FROM members
LEFT JOIN finished ON finished.task_id = members.task_id AND finished.partition = members.partition
WHERE members.tenant = ? AND members.batch_id = ? ORDER BY number
"""


@dataclass(frozen=True, slots=True)
class Membership:
    """The header `triage.batch`. `index` is the task's place in the submitted list, `total` how many were accepted."""

    batch_id: str
    index: int
    total: int

    @classmethod
    def parse(cls, text: bytes | None) -> Membership | None:
        """Return what the header says, None when it is none."""
        found = _MEMBERSHIP.fullmatch(text or b"")
        return cls(found[1].decode(), int(found[2]), int(found[3])) if found else None

    def encode(self) -> bytes:
        return f"{self.batch_id};{self.index};{self.total}".encode()


class Ended(NamedTuple):
    """How and where a member ended; `at_ms` is broker time."""

    outcome: Outcome
    lane: Lane
    offset: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """A task of a batch. `ended` None: it has no outcome, or none that is remembered."""

    index: int
    task_id: str
    partition: int
    total: int
    ended: Ended | None


class Groups:
    """Members of batches, and claims: what was sent under the hash of a key, a task's id or a batch's. Written by `flush`."""

    def __init__(self) -> None:
        self._members: dict[tuple[object, ...], None] = {}
        self._claims: dict[str, dict[str, int]] = {}

    @property
    def unwritten(self) -> int:
        return len(self._members) + len(self._claims)

    def note(
        self, tenant: str, task_id: str, partition: int, at_ms: int, *, batch: bytes | None, key_hash: bytes | None
    ) -> None:
        """Take note of a request's or a result's headers; whatever is no such header counts for nothing."""
        membership = Membership.parse(batch)
        if membership is not None:
            row = (tenant, membership.batch_id, membership.index, task_id, partition, membership.total, at_ms)
            self._members[row] = None
        if key_hash is not None and _KEY.fullmatch(key_hash):
            claim = task_id if membership is None else membership.batch_id
            self._claims.setdefault(key_hash.decode(), {}).setdefault(claim, at_ms)

    def claims(self, database: sqlite3.Connection, key_hash: str) -> set[str]:
        """Return what was sent under a key: ids of tasks, or of batches."""
        stored = database.execute("SELECT claim FROM claims WHERE key_hash = ?", (key_hash,))
        return {*self._claims.get(key_hash, ()), *(claim for (claim,) in stored)}

    def members(self, database: sqlite3.Connection, tenant: str, batch_id: str) -> list[Member]:
        """Return the tasks of a batch in the order of their index. What is not flushed yet is left out."""
        return [
            Member(
                number,
                task_id,
                partition,
                total,
                ended=outcome if outcome is None else _ended(outcome, lane, offset, at),
            )
            for number, task_id, partition, total, outcome, lane, offset, at in database.execute(
                _MEMBERS, (tenant, batch_id)
            )
        ]

    def flush(self, database: sqlite3.Connection) -> None:
        """Write what is new, within the caller's transaction."""
        database.executemany("INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", self._members)
        rows = [(key_hash, claim, at) for key_hash, claims in self._claims.items() for claim, at in claims.items()]
        database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", rows)
        self.clear()

    def clear(self) -> None:
        """Forget what is not written."""
        self._members, self._claims = {}, {}

    def forget_older(self, database: sqlite3.Connection, before_ms: int, most: int) -> None:
        """Drop up to so many rows of each kind that are older."""
        old = "SELECT tenant, batch_id, number, task_id, partition FROM members WHERE at_ms < ? LIMIT ?"
        keys = "(tenant, batch_id, number, task_id, partition)"
        database.execute(f"DELETE FROM members WHERE {keys} IN ({old})", (before_ms, most))  # noqa: S608 - constants
        old = "SELECT key_hash, claim FROM claims WHERE at_ms < ? LIMIT ?"
        database.execute(f"DELETE FROM claims WHERE (key_hash, claim) IN ({old})", (before_ms, most))  # noqa: S608 - constants


def _ended(outcome: int, lane: int, offset: int, at_ms: int) -> Ended:
    return Ended(_OUTCOMES[outcome], _LANES[lane], offset, at_ms)
