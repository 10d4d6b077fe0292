"""The producers of `examples/`: plain Kafka clients, each in its own language."""

from __future__ import annotations

import orjson
import pytest

from schemas.ids import home
from schemas.topics import Lane
from tests.examples.conftest import PARTITIONS
from tests.support.programs import LANGUAGES, Example
from tests.support.scripted import ScriptedServer, expected_answer
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.timeout(300),  # with cold caches the first test of a language fetches and builds
]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_request_lies_on_its_tasks_home_partition_and_is_answered(
    stack: Stack, server: ScriptedServer, program: Example, language: str
) -> None:
    topic = stack.names.requests(Lane.HIGH)
    texts = [f'{language} asks "{number}":\n\\{number}\té' for number in range(8)]
    produced = await program.produce(stack.bootstrap, topic, *texts)
    assert (0, "") == (produced.code, produced.errors)
    ids = [row[0] for row in produced.rows]

    async with stack.reader(topic) as reader:
        requests = {orjson.loads(record.value)["task_id"]: record for record in await reader.to_end()}
    assert {task_id: (task_id.encode(), home(task_id, PARTITIONS)) for task_id in ids} == {
        task_id: (requests[task_id].key, requests[task_id].partition) for task_id in ids
    }
    if language != "kcat":  # it does not tell where a record came to lie
        places = [[task_id, str(requests[task_id].partition), str(requests[task_id].offset)] for task_id in ids]
        assert places == produced.rows

    consumed = await program.consume(stack.bootstrap, stack.names.results, "default", *ids)
    assert (0, "") == (consumed.code, consumed.errors)
    results = [orjson.loads(value) for _, _, _, value in consumed.rows]
    assert {expected_answer(text, server.nonce) for text in texts} == {row["output"]["content"] for row in results}
    assert sorted(ids) == sorted(row["task_id"] for row in results)
