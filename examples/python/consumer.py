"""Store the outcomes of one tenant's tasks and print those of the IDs given, or all: task_id, partition, outcome, result.

The result, as JSON, is printed of completed tasks only. It reads every partition, so it has no partitioner. It ends when every ID
has its outcome (exit 0), or after TIMEOUT_S seconds (environment, default 30; exit 1 if an ID is missing).
STORE (environment, default in memory): an SQLite file to go on from next time, one for each cluster, topic and tenant.
Run: pip install aiokafka; python consumer.py [BOOTSTRAP [RESULTS_TOPIC [TENANT [ID...]]]]
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError

TIMEOUT_S = float(os.environ.get("TIMEOUT_S", "30"))
STORE = os.environ.get("STORE", ":memory:")
TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (task_id TEXT, partition INTEGER, outcome TEXT, value TEXT, PRIMARY KEY (task_id, partition));
CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next_offset INTEGER);
"""
# The first record of (task_id, partition) in offset order is the outcome, for ever: a later one changes nothing.
KEEP_FIRST = "INSERT INTO outcomes VALUES (?, ?, ?, ?) ON CONFLICT (task_id, partition) DO NOTHING"
MOVE = "INSERT INTO positions VALUES (?, ?) ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset"


def keep(
    db: sqlite3.Connection, place: TopicPartition, records: list[Any], tenant: str
) -> Iterator[tuple[str, int, str, str]]:
    """Store the first record of each task and the position behind them in one transaction; yield what was new."""
    new = []
    with db:
        for record in records:
            headers = dict(reversed(record.headers))  # the first of a name counts
            if headers.get("triage.tenant") != tenant.encode():
                continue  # by the header: the value is not parsed
            row = record.key.decode(), record.partition, headers["triage.outcome"].decode(), record.value.decode()
            if db.execute(KEEP_FIRST, row).rowcount:
                new.append(row)
        db.execute(MOVE, (place.partition, records[-1].offset + 1))
    yield from new


def show(task_id: str, partition: int, outcome: str, value: str) -> None:
    print(task_id, partition, outcome, value if outcome == "completed" else "", sep="\t", flush=True)


async def follow(db: sqlite3.Connection, bootstrap: str, topic: str, tenant: str, missing: set[str]) -> None:
    """Read on from the stored positions and take what comes out of `missing`, until it is empty; for ever if it was."""
    wanted = set(missing)
    for row in db.execute("SELECT * FROM outcomes ORDER BY rowid").fetchall():
        if row[0] in wanted:
            show(*row)
            missing.discard(row[0])
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,  # the positions are in the store, beside what was read up to them
        isolation_level="read_committed",
    )
    async with consumer:
        positions = dict(db.execute("SELECT * FROM positions"))
        for place in consumer.assignment():
            if place.partition in positions:
                consumer.seek(place, positions[place.partition])
        while missing or not wanted:
            for place, records in (await consumer.getmany(timeout_ms=1000)).items():
                for row in keep(db, place, records, tenant):
                    if not wanted or row[0] in wanted:
                        show(*row)
                        missing.discard(row[0])


def main(bootstrap: str = "127.0.0.1:9092", topic: str = "triage.results", tenant: str = "default", *ids: str) -> int:
    missing = set(ids)
    db = sqlite3.connect(STORE)
    db.executescript(TABLES)
    try:
        asyncio.run(asyncio.wait_for(follow(db, bootstrap, topic, tenant, missing), TIMEOUT_S))
    except TimeoutError:
        if missing:
            print(f"no outcome within {TIMEOUT_S:g} s: {' '.join(sorted(missing))}", file=sys.stderr)
    except KafkaConnectionError as error:
        sys.exit(str(error))
    finally:
        db.close()
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
