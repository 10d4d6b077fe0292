"""Finished tasks in a local SQLite file: which record of the results log holds each outcome.

The file is derived from the log and can be thrown away: a missing, foreign, damaged or older one is begun anew. How far the log was
read is stored in the transaction that stores the rows, so that a restart goes on where the file ends.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gateway.groups import TABLES as GROUP_TABLES
from gateway.groups import Groups, Member
from schemas.result import Outcome
from schemas.topics import Lane

VERSION = 3
_CACHE_KIB = 16 * 1024
_OUTCOMES, _LANES = list(Outcome), list(Lane)
_OUTCOME_CODES = {outcome: code for code, outcome in enumerate(_OUTCOMES)}
_LANE_CODES = {lane: code for code, lane in enumerate(_LANES)}
# Of a machine that lost power while the file was open nothing is known of the file: writes are not synced (see `_open`).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_TABLES = """
CREATE TABLE finished (task_id TEXT, partition INTEGER, tenant TEXT, outcome INTEGER, lane INTEGER, offset INTEGER, at_ms INTEGER,
                       batch_id TEXT, counted INTEGER, PRIMARY KEY (task_id, partition)) WITHOUT ROWID;
CREATE TABLE counts (lane INTEGER, outcome INTEGER, count INTEGER, PRIMARY KEY (lane, outcome)) WITHOUT ROWID;
CREATE TABLE consumed (partition INTEGER PRIMARY KEY, offset INTEGER);
CREATE TABLE origin (name TEXT PRIMARY KEY, value TEXT);
"""
_INSERT = "INSERT INTO finished VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_NEW = _INSERT.replace("INSERT", "INSERT OR IGNORE")


class Finished(NamedTuple):
    """A task with its outcome. Its body is the record at `offset` of the results log; `at_ms` is that record's broker time."""

    task_id: str
    partition: int
    tenant: str
    outcome: Outcome
    lane: Lane
    offset: int
    at_ms: int
    batch_id: str | None = None


_FROM_THE_FIRST = ("", -1)

_Row = tuple[str, int, str, int, int, int, int, str | None, int]
_SCANNED = 5_000


class FinishedFile:
    """The rows of finished tasks: the first record of each (task_id, partition) stays. Written in batches by `flush`.

    `path` None: in memory. `origin` names the log that the rows come from (cluster and prefix); another one begins a new file.
    What a tenant had forgotten (`forget`) stays as a row, so that it is known to have been there, and is counted no longer.
    """

    def __init__(self, path: Path | None = None, *, origin: str = "") -> None:
        self._path, self._origin = path, origin
        self._fresh: dict[str, dict[int, _Row]] = {}
        self._consumed: dict[int, int] = {}
        self.unwritten = 0
        self.groups = Groups()
        self._looked_through = _FROM_THE_FIRST
        self._forgotten: dict[str, int] = {}
        self.has_more_to_forget = False
        try:
            self._database = self._open()
        except sqlite3.DatabaseError:
            self._remove()
            self._database = self._open()

    def add(self, row: Finished) -> None:
        """Take note of an outcome, given in offset order per partition; a later one of the same task changes nothing."""
        rows = self._fresh.setdefault(row.task_id, {})
        if row.partition not in rows:
            rows[row.partition] = (
                row.task_id,
                row.partition,
                row.tenant,
                _OUTCOME_CODES[row.outcome],
                _LANE_CODES[row.lane],
                row.offset,
                row.at_ms,
                row.batch_id,
                1,
            )
            self.unwritten += 1

    def find(self, task_id: str) -> list[Finished]:
        """Return the outcomes under this id, one for each partition number on which it has one."""
        stored: Iterable[_Row] = self._database.execute("SELECT * FROM finished WHERE task_id = ?", (task_id,))
        rows = {row[1]: row for row in stored}
        return [_finished(row) for row in {**self._fresh.get(task_id, {}), **rows}.values()]

    def partitions(self, task_id: str) -> set[int]:
        """Return the partition numbers on which there is an outcome under this id."""
        stored = self._database.execute("SELECT partition FROM finished WHERE task_id = ?", (task_id,))
        return {*self._fresh.get(task_id, ()), *(partition for (partition,) in stored)}

    def consumed(self, partition: int, offset: int) -> None:
        """Take note that everything below `offset` of the results log was given to `add`."""
        self._consumed[partition] = offset

    def offsets(self) -> Mapping[int, int]:
        """Return, per partition, the next offset to be read."""
        return {**dict(self._database.execute("SELECT partition, offset FROM consumed")), **self._consumed}

    def counts(self) -> dict[tuple[Lane, Outcome], int]:
        """Return how many tasks ended how."""
        self.flush()
        rows = self._database.execute("SELECT lane, outcome, count FROM counts")
        return {(_LANES[lane], _OUTCOMES[outcome]): count for lane, outcome, count in rows}

    def claims(self, key_hash: str) -> set[str]:
        """Return what was sent under the hash of an idempotency key: ids of tasks, or of batches."""
        return self.groups.claims(self._database, key_hash)

    def members(self, tenant: str, batch_id: str) -> list[Member]:
        """Return the tasks of a tenant's batch that are known, in the order of their index."""
        self.flush()
        return self.groups.members(self._database, tenant, batch_id)

    def flush(self) -> None:
        """Write what is new. Sorted, so that neighbours in the table are written together: three times as quick."""
        if not self._consumed and not self.groups.unwritten:
            return
        rows = sorted((*row[:8], self._counts(row)) for rows in self._fresh.values() for row in rows.values())
        database = self._database
        database.execute("BEGIN")
        self._count(self._insert(rows))
        database.executemany("INSERT OR REPLACE INTO consumed VALUES (?, ?)", self._consumed.items())
        self.groups.flush(database)
        database.execute("COMMIT")
        self._fresh, self._consumed, self.unwritten = {}, {}, 0

    def _count(self, counts: Mapping[tuple[int, int], int]) -> None:
        self._database.executemany(
            "UPDATE counts SET count = count + ?3 WHERE lane = ?1 AND outcome = ?2",
            [(lane, outcome, count) for (lane, outcome), count in counts.items()],
        )

    def _insert(self, rows: Sequence[_Row]) -> Counter[tuple[int, int]]:
        """Insert the rows of tasks that have none yet, and return how many of them there were of each lane and outcome."""
        database = self._database
        database.execute("SAVEPOINT rows")
        try:
            database.executemany(_INSERT, rows)
        except sqlite3.IntegrityError:  # seldom: some task has its outcome already, so one by one
            database.execute("ROLLBACK TO rows")
            rows = [row for row in rows if database.execute(_INSERT_NEW, row).rowcount]
        database.execute("RELEASE rows")
        return Counter((row[4], row[3]) for row in rows if row[8])

    # Cleanup

    def forget(self, tenant: str, through_ms: int) -> None:
        """Count a tenant's tasks that ended up to then no longer; a smaller time than before changes nothing."""
        if through_ms > self.forgotten_ms(tenant):
            self._forgotten[tenant] = through_ms
            self._looked_through, self.has_more_to_forget = _FROM_THE_FIRST, True

    def forgotten_ms(self, tenant: str) -> int:
        """Return up to when a tenant's finished tasks are forgotten, -1 when none are."""
        return self._forgotten.get(tenant, -1)

    def count_ended(self, tenant: str, after_ms: int, through_ms: int) -> Iterator[int]:
        """Yield how many tasks of a tenant ended in between, a few thousand rows at a time: a million take a second in all."""
        self.flush()
        query = (
            "SELECT task_id, partition, tenant, at_ms FROM finished WHERE (task_id, partition) > (?, ?) "
            "ORDER BY task_id, partition LIMIT ?"
        )
        last = _FROM_THE_FIRST
        while rows := self._database.execute(query, (*last, _SCANNED)).fetchall():
            last = rows[-1][:2]
            yield sum(each == tenant and after_ms < at_ms <= through_ms for _, _, each, at_ms in rows)

    def _counts(self, row: _Row) -> int:
        return int(row[6] > self.forgotten_ms(row[2]))

    def forget_older(self, before_ms: int, *, looked_at: int = 1_000) -> int:
        """Drop what ended before `before_ms` among the next `looked_at` rows, and return how many that were.

        Of the others, those that their tenant had forgotten are counted no longer. Rows are gone through by id, round and round, a few
        milliseconds at a time: an index by time would cost every insert.
        """
        query = (
            "SELECT task_id, partition, lane, outcome, at_ms, tenant, counted FROM finished "
            "WHERE (task_id, partition) > (?, ?) ORDER BY task_id, partition LIMIT ?"
        )
        rows = self._database.execute(query, (*self._looked_through, looked_at)).fetchall()
        is_whole = len(rows) < looked_at
        self._looked_through = _FROM_THE_FIRST if is_whole else rows[-1][:2]
        self.has_more_to_forget &= not is_whole
        old = [row for row in rows if row[4] < before_ms]
        forgotten = [row for row in rows if row[6] and before_ms <= row[4] <= self.forgotten_ms(row[5])]
        self._database.execute("BEGIN")
        self._database.executemany("DELETE FROM finished WHERE task_id = ? AND partition = ?", [r[:2] for r in old])
        self._database.executemany(
            "UPDATE finished SET counted = 0 WHERE task_id = ? AND partition = ?", [r[:2] for r in forgotten]
        )
        gone = Counter(row[2:4] for row in (*old, *forgotten) if row[6])
        self._count({key: -count for key, count in gone.items()})
        self.groups.forget_older(self._database, before_ms, looked_at)
        self._database.execute("COMMIT")
        return len(old)

    def clear(self) -> None:
        """Forget everything: the log is another one than the file was made from."""
        self._fresh, self._consumed, self.unwritten = {}, {}, 0
        self.groups.clear()
        self._database.close()
        self._remove()
        self._database = self._open()

    def close(self) -> None:
        """Write everything to the disk and close."""
        self.flush()
        with suppress(sqlite3.Error):
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("UPDATE origin SET value = '' WHERE name = 'boot'")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path or ":memory:", isolation_level=None)
        try:
            is_usable = self._prepare(database)
        except sqlite3.DatabaseError:
            database.close()
            raise
        if is_usable:
            return database
        database.close()
        self._remove()
        return self._open()

    def _prepare(self, database: sqlite3.Connection) -> bool:
        """Set a connection up; False when its file is of another version, another log or a machine that lost power."""
        database.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing so, and a machine that lost power is found by its boot id.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (version != VERSION or not self._is_ours(database)):
            return False
        if not tables:
            self._create(database)
        database.execute("INSERT OR REPLACE INTO origin VALUES ('boot', ?)", (_boot_id(),))
        return True

    def _is_ours(self, database: sqlite3.Connection) -> bool:
        origin = dict(database.execute("SELECT name, value FROM origin"))
        return origin.get("log") == self._origin and origin.get("boot") in ("", _boot_id())

    def _create(self, database: sqlite3.Connection) -> None:
        database.executescript(_TABLES + GROUP_TABLES)
        codes = [(lane, outcome, 0) for lane in range(len(_LANES)) for outcome in range(len(_OUTCOMES))]
        database.executemany("INSERT INTO counts VALUES (?, ?, ?)", codes)
        database.execute("INSERT INTO origin VALUES ('log', ?)", (self._origin,))
        database.execute(f"PRAGMA user_version = {VERSION}")

    def _remove(self) -> None:
        if self._path is not None:
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _finished(row: _Row) -> Finished:
    task_id, partition, tenant, outcome, lane, offset, at_ms, batch_id, _ = row
    return Finished(task_id, partition, tenant, _OUTCOMES[outcome], _LANES[lane], offset, at_ms, batch_id)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
