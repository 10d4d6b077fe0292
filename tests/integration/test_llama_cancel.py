"""A cancel on the real thing: the slot of a llama.cpp server becomes free."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from cli.embedded.models import instruct_model
from schemas.topics import Lane
from tests.integration.test_delivery import cancel, results, send
from tests.support.llama import llama_server
from tests.support.stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.llama]


# A waiting call looks for its client's end when it has heard nothing for a second, and every answer to anybody wakes all of them:
# asked more often than that, the server would not notice at all.
_LOOK_EVERY_S = 1.5


async def until_processing(client: httpx.AsyncClient, count: int, *, timeout_s: float) -> None:
    """Wait until the server says that it processes so many requests."""
    async with asyncio.timeout(timeout_s):
        while f"llamacpp:requests_processing {count}\n" not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - a scrape
            await asyncio.sleep(_LOOK_EVERY_S)


async def test_a_cancel_frees_the_slot_of_a_real_server(kafka: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(instruct_model().path)
    with llama_server(model, context=8192) as server:
        async with (
            Stack(kafka, tmp_path / "stack", [("llamacpp", server.url)], slots=2) as stack,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            await stack.start_worker()
            endless = {"max_tokens": 8000, "ignore_eos": True}
            source = await send(stack, "endless", Lane.HIGH, parameters=endless)
            await until_processing(client, 1, timeout_s=30)
            await cancel(stack, "endless", source, Lane.HIGH)
            await until_processing(client, 0, timeout_s=10)
            found = await results(stack, 1)
    assert ["cancelled"] == [row["outcome"] for row in found.values()]
