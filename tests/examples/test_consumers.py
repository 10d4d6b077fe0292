"""The consumers of `examples/` against a results log that has later records, other tenants and failures in it."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import Lane
from tests.support import debian
from tests.support.kafka import fresh_name
from tests.support.programs import EXAMPLES, LANGUAGES, Example, ended
from tests.support.stack import Stack, first_results, request

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.timeout(300),  # with cold caches the first test of a language fetches and builds
]

PLACE = 4
"""The partition on which everything of these tests lies, so that its order is the log's."""


@dataclass
class Log:
    """Sends a tenant's requests, and later records of tasks that have their outcome."""

    stack: Stack
    tenant: str

    async def ask(self, name: str, *, tenant: str | None = None, **fields: object) -> str:
        """Send a request and return its task_id."""
        task_id = f"{self.tenant}-{name}"
        value = request(name, task_id=task_id, tenant=tenant or self.tenant, cache={"mode": "bypass"}, **fields)
        async with self.stack.producer() as producer:
            await producer.send_and_wait(self.stack.names.requests(Lane.HIGH), value, key=b"any", partition=PLACE)
        return task_id

    async def outcomes(self, *ids: str) -> list[Any]:
        """Return the first result record of each task; waits for them."""
        async with self.stack.reader(self.stack.names.results) as reader:
            records = await reader.to_end()
            while not set(ids) <= first_results(records).keys():
                records = await reader.until(len({record.key for record in records}) + 1)
            return [first_results(records)[task_id]["_record"] for task_id in ids]

    async def append_later(self, task_id: str, outcome: str) -> None:
        """Append a later record of a task, as a worker thought dead might."""
        headers = [("triage.tenant", self.tenant.encode()), ("triage.outcome", outcome.encode())]
        async with self.stack.producer() as producer:
            topic = self.stack.names.results
            await producer.send_and_wait(
                topic, b'{"later": true}', key=task_id.encode(), partition=PLACE, headers=headers
            )


@pytest.fixture
def log(stack: Stack) -> Log:
    return Log(stack, fresh_name("tenant"))


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_first_record_of_a_task_counts_whatever_comes_later(
    log: Log, program: Example, tmp_path: Path, language: str
) -> None:
    stack = log.stack
    answered = await log.ask("answered")
    (first,) = await log.outcomes(answered)
    refused = await log.ask("refused", messages=[])  # one after the other: a refusal may overtake an answer
    await log.outcomes(refused)
    await log.append_later(answered, "failed")
    await log.append_later(refused, "completed")
    last = await log.ask("last")  # who has its outcome has read the later records too

    consumed = await program.consume(
        stack.bootstrap, stack.names.results, log.tenant, answered, refused, last, STORE=str(tmp_path / "store")
    )
    (final,) = await log.outcomes(last)
    assert (0, "") == (consumed.code, consumed.errors)
    assert [
        [answered, str(PLACE), "completed", first.value.decode()],
        [refused, str(PLACE), "failed", ""],
        [last, str(PLACE), "completed", final.value.decode()],
    ] == consumed.rows


@pytest.mark.parametrize("language", LANGUAGES)
async def test_another_tenants_outcome_is_not_seen_and_the_wait_for_it_ends(
    log: Log, program: Example, tmp_path: Path, language: str
) -> None:
    theirs = await log.ask("theirs", tenant="somebody-else")
    await log.outcomes(theirs)
    consumed = await program.consume(
        log.stack.bootstrap,
        log.stack.names.results,
        log.tenant,
        theirs,
        TIMEOUT_S="1.5",
        STORE=str(tmp_path / "store"),
    )
    assert (1, []) == (consumed.code, consumed.rows)
    assert f"no outcome within 1.5 s: {theirs}" in consumed.errors.splitlines()


@pytest.mark.parametrize("language", ["python"])
async def test_the_store_goes_on_where_it_stopped_and_keeps_the_first_outcome(
    log: Log, program: Example, tmp_path: Path, language: str
) -> None:
    where = (log.stack.bootstrap, log.stack.names.results, log.tenant)
    store = tmp_path / "store"
    answered = await log.ask("answered")
    before = await program.consume(*where, answered, STORE=str(store))
    (first,) = await log.outcomes(answered)
    assert [[answered, str(PLACE), "completed", first.value.decode()]] == before.rows
    with sqlite3.connect(store) as db:
        assert [(first.offset + 1,)] == db.execute(
            f"SELECT next_offset FROM positions WHERE partition = {PLACE}"
        ).fetchall()

    await log.append_later(answered, "failed")
    last = await log.ask("last")
    (final,) = await log.outcomes(last)
    after = await program.consume(*where, answered, last, STORE=str(store))
    assert [*before.rows, [last, str(PLACE), "completed", final.value.decode()]] == after.rows
    with sqlite3.connect(store) as db:
        db.execute(f"UPDATE positions SET next_offset = {final.offset + 1}")
        db.execute("DELETE FROM outcomes")
    skipped = await program.consume(*where, answered, STORE=str(store), TIMEOUT_S="1.5")
    assert (1, []) == (skipped.code, skipped.rows)


async def test_the_recipes_one_liner_prints_the_first_record_of_each_task(log: Log) -> None:
    debian.program("kcat", "kcat")
    answered = await log.ask("answered")
    await log.outcomes(answered)
    await log.append_later(answered, "failed")
    recipe = (EXAMPLES.parent / "docs/howto/consume-results.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", recipe, re.DOTALL | re.MULTILINE)
    (line,) = [block for block in blocks if "awk" in block]
    line = line.replace("127.0.0.1:9092", log.stack.bootstrap).replace("triage.results", log.stack.names.results)
    printed = await ended(["bash", "-c", line])
    assert [[answered, str(PLACE), "completed"]] == [row[:3] for row in printed.rows if row[0] == answered]
