"""One worker on fresh topics, with a scripted model server, for all examples."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.programs import Example, example
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack

PARTITIONS = 6


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stack(kafka: str, tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("examples")
    async with Stack(kafka, folder, [("openai", server.url)], partitions=PARTITIONS) as prepared:
        await prepared.start_worker()
        yield prepared


@pytest.fixture(scope="package")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Example]:
    """The examples made ready so far, by language."""
    return {}


@pytest.fixture
def program(language: str, programs: dict[str, Example], tmp_path_factory: pytest.TempPathFactory) -> Example:
    if language not in programs:
        programs[language] = example(language, tmp_path_factory.mktemp(language))
    return programs[language]
