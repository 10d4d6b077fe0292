"""What the tests on a real Kafka share: a scripted model server, and a stack of fresh topics in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
async def stack(kafka: str, tmp_path: Path, server: ScriptedServer) -> AsyncIterator[Stack]:
    async with Stack(kafka, tmp_path, [("openai", server.url)]) as prepared:
        yield prepared
