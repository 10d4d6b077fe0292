"""`triage bench load` against a real gateway and a real worker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cli.bench import Tally
from cli.main import main
from schemas.topics import Lane
from tests.gateway.process import running_gateway
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack

pytestmark = pytest.mark.kafka


async def test_a_hundred_at_once_are_all_answered_and_the_urgent_wait_less(
    kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ScriptedServer(latency_s=0.05) as server, Stack(kafka, tmp_path, [("openai", server.url)]) as stack:
        await stack.start_worker()
        async with running_gateway(stack, tmp_path / "gateway") as gateway:
            arguments = [
                "bench",
                "load",
                "--concurrency",
                "100",
                "--tasks",
                "300",
                "--json",
                "--gateway",
                str(gateway.http.base_url),
            ]
            code = await asyncio.to_thread(main, arguments)
    report = json.loads(capsys.readouterr().out)
    assert (0, 300, {"completed": 300}, 0, True) == (
        code,
        report["sent"],
        report["outcomes"],
        report["lost"],
        report["urgent_first"],
    )
    assert 300 == report["counted_by_stats"]["completed"]
    assert 300 == sum(row["tasks"] for row in report["lanes"].values())


def test_a_gateway_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert 3 == main(["bench", "load", "--gateway", "http://127.0.0.1:9"])
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_what_has_no_outcome_is_lost_and_an_inversion_is_told() -> None:
    tally = Tally(sent=3)
    for lane, queue_ms in ((Lane.CRITICAL, 900.0), (Lane.LOW, 10.0)):
        tally.end(lane, {"outcome": "completed", "timing": {"queue_ms": queue_ms}}, 1.0)
    assert (1, False) == (tally.lost, tally.is_urgent_first)
