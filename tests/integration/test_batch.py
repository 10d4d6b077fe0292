"""`triage batch` on a real Kafka: straight through it, and through a gateway; broken off and gone on with."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from cli.embedded.processes import die_with_parent
from schemas.topics import Lane
from tests.gateway.process import running_gateway
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack

pytestmark = pytest.mark.kafka

COUNT = 30


def questions(path: Path, count: int = COUNT) -> Path:
    rows = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"question {number}"}]},
        }
        for number in range(count)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return path


def answers(path: Path) -> dict[str, str]:
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert len(rows) == len({row["custom_id"] for row in rows})
    return {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}


def start(stack: Stack, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli", "batch", *map(str, arguments), "--config", str(stack.config)]
    dies_with_us = die_with_parent()

    def as_from_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a run of the tests in the background has it ignored
        if dies_with_us is not None:
            dies_with_us()

    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_a_terminal,  # noqa: PLW1509 - it only sets flags of the child
    )


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


async def requests_of(stack: Stack) -> Sequence[object]:
    async with stack.reader(stack.names.requests(Lane.LOW)) as reader:
        return await reader.to_end()


@pytest.mark.parametrize("way", ["kafka", "gateway"])
async def test_a_file_is_answered_and_after_ctrl_c_the_same_command_goes_on(
    stack: Stack, server: ScriptedServer, tmp_path: Path, way: str
) -> None:
    source, output = questions(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    async with running_gateway(stack, tmp_path / "gateway") as gateway:
        through = ["--gateway", str(gateway.http.base_url)] if way == "gateway" else []
        first = start(stack, source, "-o", output, *through)
        async with stack.reader(stack.names.requests(Lane.LOW)) as reader:
            await reader.until(min(COUNT, stack.partitions))
        first.send_signal(signal.SIGINT)
        code, _, told = await ended(first)
        assert (130, True) == (code, "the same command goes on" in told)
        assert b"" == output.read_bytes()
        await stack.start_worker()
        code, told, err = await ended(start(stack, source, "-o", output, "--json", *through))
        assert (0, "") == (code, err)
        counts = {"total": COUNT, "completed": COUNT, "failed": 0, "bad_lines": 0, "output": str(output)}
        assert counts == orjson.loads(told)
        expected = {f"c{number}": server.answer(f"question {number}", server.nonce) for number in range(COUNT)}
        assert expected == answers(output)
        served, written = sum(server.executions.values()), len(await requests_of(stack))
        output.unlink()
        code, told, _ = await ended(start(stack, source, "-o", output, *through))
        assert (0, f"{COUNT} completed: {output}\n") == (code, told)
        assert (expected, served, written) == (
            answers(output),
            sum(server.executions.values()),
            len(await requests_of(stack)),
        )


async def test_without_kafka_it_says_so(tmp_path: Path) -> None:
    stack = Stack("127.0.0.1:1", tmp_path, [], creates_topics=False)
    stack.config.write_text(stack.settings())
    code, _, err = await ended(start(stack, questions(tmp_path / "in.jsonl", 1), "-o", tmp_path / "out.jsonl"))
    assert (3, True) == (code, "Kafka" in err)
