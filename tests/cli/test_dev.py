"""`triage dev` as a newcomer starts it: real Kafka, real worker, real llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from cli.embedded.processes import free_ports
from schemas.topics import Lane, TopicNames
from streams.settings import KafkaSettings
from tests.support.stack import Reader, first_results, request
from wire.connection import wait_for_brokers
from wire.logs import get_logger

pytestmark = [pytest.mark.kafka, pytest.mark.llama, pytest.mark.timeout(120)]

NAMES = TopicNames()
COMMAND = [sys.executable, "-m", "cli"]


@contextmanager
def running_dev(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [*COMMAND, "dev", "--json", "--kafka-port", "0", "--port", "0", "--data", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_verb(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=90, check=False)


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dev.json").read_text())
    return found


def ready_line(folder: Path, name: str) -> dict[str, Any]:
    lines = Path(state(folder)["logs"][name]).read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return next(row for row in rows if row["event"] == "ready")


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def until_restarted(folder: Path, name: str, old: int) -> None:
    async with asyncio.timeout(20):
        while state(folder)["processes"].get(name, old) == old:  # noqa: ASYNC110 - the file is the signal
            await asyncio.sleep(0.05)


def short(text: str, **fields: object) -> bytes:
    return request(text, parameters={"max_tokens": 4}, **fields)


async def test_dev_serves_every_lane_survives_a_killed_worker_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with running_dev(tmp_path) as (process, ready):
        assert {"event", "gateway", "kafka", "backends", "data", "pid", "took_s"} == set(ready)
        assert (process.pid, str(tmp_path)) == (ready["pid"], ready["data"])
        pids = state(tmp_path)["processes"]
        assert (
            {"kafka-1", "gateway", "worker-1", "backend-1", "gpu-publisher"}
            == set(pids)
            == set(state(tmp_path)["logs"])
        )
        async with httpx.AsyncClient() as client:
            shown = [(await client.get(url)).text for url in state(tmp_path)["metrics"]]
        assert [True, True, True] == sorted("triage_" in text for text in shown)
        async with (
            AIOKafkaProducer(bootstrap_servers=ready["kafka"], acks="all") as producer,
            Reader(ready["kafka"], NAMES.results, 6) as reader,
        ):
            await _forty_minimal_records(producer, reader)
            await _a_second_copy_is_cached(producer, reader)
            task_id = await _the_gateway_answers(ready["gateway"])
            os.kill(pids["gateway"], signal.SIGKILL)
            await until_restarted(tmp_path, "gateway", pids["gateway"])
            await _a_killed_worker_loses_nothing(producer, reader, tmp_path, pids["worker-1"])
            await _the_gateway_remembers(ready["gateway"], task_id)
        verified = ["topics", "verify", "--config", str(tmp_path / "triage.toml")]
        assert (await asyncio.to_thread(run_verb, verified)).returncode == 0
        pids = state(tmp_path)["processes"]
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert [] == [name for name, pid in pids.items() if is_alive(pid)]


async def _forty_minimal_records(producer: AIOKafkaProducer, reader: Reader) -> None:
    rng = random.Random(3)
    placed = {}
    for number in range(40):
        lane = list(Lane)[number % 4]
        key = rng.randbytes(5) if number % 2 else None
        sent = await producer.send_and_wait(NAMES.requests(lane), short(f"Say {number}."), key=key)
        placed[f"{lane}.{sent.partition}.{sent.offset}"] = sent.partition
    results = first_results(await reader.until(40, timeout_s=60))
    assert placed == {task_id: row["_record"].partition for task_id, row in results.items()}
    assert {"completed"} == {row["outcome"] for row in results.values()}
    assert any(row["output"]["content"] for row in results.values())


async def _a_second_copy_is_cached(producer: AIOKafkaProducer, reader: Reader) -> None:
    sent = await producer.send_and_wait(NAMES.requests(Lane.HIGH), short("Say 0."))
    results = first_results(await reader.until(41))
    assert results[f"high.{sent.partition}.{sent.offset}"]["cached"] is True


async def _the_gateway_answers(url: str) -> str:
    body = {"priority": "high", "messages": [{"role": "user", "content": "Name a fruit."}]}
    async with httpx.AsyncClient(base_url=url, timeout=70) as client:
        submitted = await client.post("/v1/async/submit", json={**body, "parameters": {"max_tokens": 4}})
        assert submitted.status_code == 202
        task_id: str = submitted.json()["task_id"]
        result = await client.get(f"/v1/async/result/{task_id}", params={"wait": 60})
        assert (200, "completed") == (result.status_code, result.json()["status"])
    return task_id


async def _the_gateway_remembers(url: str, task_id: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=10) as client, asyncio.timeout(20):
        while True:
            try:
                answer = await client.get(f"/v1/async/status/{task_id}")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code != 503:
                break
            await asyncio.sleep(0.05)
    assert (200, "completed") == (answer.status_code, answer.json()["status"])


async def _a_killed_worker_loses_nothing(producer: AIOKafkaProducer, reader: Reader, folder: Path, worker: int) -> None:
    for number in range(20):
        value = short(f"Count {number}.", task_id=f"kill-{number}", model="any-name", cache={"mode": "bypass"})
        await producer.send_and_wait(NAMES.requests(Lane.NORMAL), value, key=b"%d" % number)
    await reader.until(45)
    os.kill(worker, signal.SIGKILL)
    await until_restarted(folder, "worker-1", worker)
    results = first_results(await reader.until(62, timeout_s=60))
    assert {f"kill-{number}" for number in range(20)} <= set(results)
    assert {"completed"} == {row["outcome"] for row in results.values()}


async def test_what_ctrl_c_interrupts_is_finished_by_the_next_dev_on_the_same_data(tmp_path: Path) -> None:
    ids = {f"kept-{number}" for number in range(10)}
    with running_dev(tmp_path, "--gpus", "none") as (process, ready):
        async with AIOKafkaProducer(bootstrap_servers=ready["kafka"], acks="all") as producer:
            for task_id in sorted(ids):
                value = request(task_id, parameters={"max_tokens": 16}, task_id=task_id)
                await producer.send_and_wait(NAMES.requests(Lane.NORMAL), value, key=task_id.encode())
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0
    with running_dev(tmp_path, "--gpus", "none") as (_, ready):
        kafka = state(tmp_path)["processes"]["kafka-1"]
        os.kill(kafka, signal.SIGKILL)
        await until_restarted(tmp_path, "kafka-1", kafka)
        await wait_for_brokers(KafkaSettings(bootstrap=ready["kafka"]), log=get_logger(__name__), timeout_s=30)
        async with Reader(ready["kafka"], NAMES.results, 6) as reader:
            results = first_results(await reader.until(10, timeout_s=60))
    assert ids == set(results)
    assert {"completed"} == {row["outcome"] for row in results.values()}


async def test_every_worker_sees_the_cards_also_one_that_starts_when_samples_are_there(tmp_path: Path) -> None:
    """The table of cards is recovered: a value type that Faust cannot read back kept the control app from starting."""
    with running_dev(tmp_path, "--workers", "2", "--gpus", "simulated:2") as (process, _):
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            for name in ("worker-1", "worker-2"):
                url = f"http://127.0.0.1:{ready_line(tmp_path, name)['metrics_port']}/metrics"
                while (await client.get(url)).text.count("triage_gpu_pressure{") < 2:  # noqa: ASYNC110 - a scrape
                    await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 10) == 0


async def test_a_killed_dev_takes_its_children_with_it(tmp_path: Path) -> None:
    with running_dev(tmp_path, "--gpus", "none") as (process, _):
        pids = state(tmp_path)["processes"]
        process.kill()
        process.wait(5)
        async with asyncio.timeout(10):
            while any(is_alive(pid) for pid in pids.values()):  # noqa: ASYNC110 - other people's processes have no signal
                await asyncio.sleep(0.02)


async def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with running_dev(tmp_path, "--gpus", "none") as (process, _):
        pids = state(tmp_path)["processes"]
        os.kill(pids["worker-1"], signal.SIGSTOP)  # a worker that will not end by itself
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 3) == 130
        async with asyncio.timeout(5):
            while any(is_alive(pid) for pid in pids.values()):  # noqa: ASYNC110 - other people's processes have no signal
                await asyncio.sleep(0.02)


def test_the_gateways_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_verb(["dev", "--port", port, "--kafka-port", "0", "--data", str(tmp_path)])
    assert done.returncode == 1
    assert f"Port {port} is taken" in done.stderr
    assert "--port" in done.stderr


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with running_dev(tmp_path / "a", "--gpus", "none") as (_, ready):
        port = ready["kafka"].rpartition(":")[2]
        second = run_verb(["dev", "--port", "0", "--kafka-port", port, "--data", str(tmp_path / "b")])
    assert second.returncode == 1
    assert f"Port {port} is taken" in second.stderr
    assert "Traceback" not in second.stderr


def test_an_own_model_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    with running_dev(tmp_path, "--gpus", "none", "--backend-url", f"http://127.0.0.1:{closed}") as (process, ready):
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=15)[1]
    assert [f"http://127.0.0.1:{closed}"] == ready["backends"]
    assert f"backend-1 at http://127.0.0.1:{closed} does not answer" in said
