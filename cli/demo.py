"""`triage demo`: mixed requests over the four lanes of a real stack, told line by line, and a recap."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from cli.demo_picture import Tally, heading, line, print_recap
from cli.dev import run, to_stderr
from cli.embedded.settings_file import NO_FILE, PARTITIONS
from cli.embedded.stack import DevStack, Options
from cli.errors import INTERRUPTED, OK, Failed
from schemas.codec import decode
from schemas.result import Result
from schemas.topics import Lane
from wire import logs
from wire.clock import monotonic_s, wall_ms

# Requests per second and lane: together a little more than the small model answers on two cores, so that lanes have to wait.
RATES = {Lane.CRITICAL: 0.7, Lane.HIGH: 1.2, Lane.NORMAL: 2.0, Lane.LOW: 2.5}
# A slower machine gets fewer requests: a lane sends no more while this many of its tasks have no outcome.
MOST_WAITING = {Lane.CRITICAL: 2, Lane.HIGH: 4, Lane.NORMAL: 6, Lane.LOW: 8}
_TELL_EVERY_S, _LOOK_EVERY_S = 2.0, 0.2
# What is under way at the end is waited for; longer where a lane would have nothing to show.
_FINISH_S, _FINISH_SILENT_S = 15.0, 45.0
_ENDING_S = 3.0
_REPEATED_RATIO = 0.25
_REPEATED = ["What is the capital of France?", "What is a normal body temperature?"]
_QUESTIONS = {
    Lane.CRITICAL: ["Is chest pain an emergency?", "Name one sign of a stroke.", "What number calls an ambulance?"],
    Lane.HIGH: ["How long does a cold last?", "When is a fever high?", "Name a vitamin in oranges."],
    Lane.NORMAL: ["Why do we sleep?", "How much water should one drink?", "What does the heart do?"],
    Lane.LOW: ["Summarise why exercise is good.", "Write a line about spring.", "Name three fruits."],
}
_DEADLINE_MS = {Lane.CRITICAL: 60_000, Lane.HIGH: 120_000}


class Load:
    """Produces and reads in a thread of its own, with a loop of its own; the main thread looks after the processes."""

    def __init__(self, stack: DevStack, seconds: float, *, tells: bool) -> None:
        self._stack, self._seconds, self._tells = stack, seconds, tells
        self.tally = Tally()
        self.is_over = threading.Event()
        self.error: BaseException | None = None
        self._is_produced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """Have it end where it is, and wait until it has; does nothing when it is over."""
        if self._loop is not None and self._work is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._loop.call_soon_threadsafe(self._work.cancel)
            self.is_over.wait(_ENDING_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        finally:
            self.is_over.set()

    async def _main(self) -> None:
        self._loop, self._work = asyncio.get_running_loop(), asyncio.current_task()
        names, bootstrap = self._stack.names, self._stack.bootstrap
        async with (
            AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
            AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer,
        ):
            partitions = [TopicPartition(names.results, number) for number in range(PARTITIONS)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(consumer))
                telling = group.create_task(self._tell())
                rng = random.Random(1)  # noqa: S311 - a mixture, not a secret
                producing = [group.create_task(self._produce(producer, lane, rng)) for lane in Lane]
                await asyncio.wait(producing)
                self._is_produced = True
                await asyncio.wait([reading], timeout=_FINISH_S)
                if self.tally.is_silent:
                    await asyncio.wait([reading], timeout=_FINISH_SILENT_S)
                for task in (reading, telling):
                    task.cancel()

    async def _produce(self, producer: AIOKafkaProducer, lane: Lane, rng: random.Random) -> None:
        topic, end_s, number = self._stack.names.requests(lane), monotonic_s() + self._seconds, 0
        while monotonic_s() < end_s:
            if self.tally.waiting(lane) < MOST_WAITING[lane]:
                number += 1
                task_id = f"demo-{lane.value}-{number}"
                question, value = new_request(task_id, lane, number, rng)
                self.tally.ask(task_id, lane, question)
                await producer.send_and_wait(topic, value, key=task_id.encode())
            await asyncio.sleep(min(rng.expovariate(RATES[lane]), max(end_s - monotonic_s(), 0)))

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while self.tally.open or not self._is_produced:
            for records in (await consumer.getmany(timeout_ms=int(_LOOK_EVERY_S * 1000))).values():
                for record in records:
                    self.tally.take(decode(Result, record.value), record.timestamp)

    async def _tell(self) -> None:
        began_s = monotonic_s()
        width = shutil.get_terminal_size().columns
        while self._tells:
            await asyncio.sleep(_TELL_EVERY_S)
            typer.echo(line(self.tally, monotonic_s() - began_s, width))


def new_request(task_id: str, lane: Lane, number: int, rng: random.Random) -> tuple[str, bytes]:
    """Return a question and the record that asks it: some are repeated to the letter, so that the cache answers them."""
    repeats = rng.random() < _REPEATED_RATIO
    question = rng.choice(_REPEATED if repeats else _QUESTIONS[lane])
    text = question if repeats else f"{question} (case {number})"
    now_ms = wall_ms()
    body: dict[str, Any] = {
        "task_id": task_id,
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}],
        "parameters": {"max_tokens": 24, "temperature": 0.0 if repeats else 0.7},
        "created_at_ms": now_ms,
        "cache": {"mode": "use" if repeats else "bypass"},
    }
    if lane in _DEADLINE_MS:
        body["deadline_at_ms"] = now_ms + _DEADLINE_MS[lane]
    return question, orjson.dumps(body)


def run_demo(seconds: float, *, as_json: bool = False, config: Path | None = None) -> int:
    """Run the demo and return the exit code: 0, or 130 when it was interrupted. `config` None: no file is read.

    Raises: Failed when requests could not be sent or results not be read.
    """
    logs.configure("console", "error")
    said = to_stderr if as_json else typer.echo
    said("Starting Kafka, a worker, a GPU publisher and a small language model here ...")
    stack = DevStack(Options(port=0, kafka_port=0, config=config or NO_FILE), said=said)
    load = Load(stack, seconds, tells=not as_json)

    def ready(record: dict[str, Any]) -> None:
        said(f"Ready after {record['took_s']:.1f} s: Kafka at {record['kafka']}, GPUs {stack.given.gpus},")
        said(f"model {stack.model.note if stack.model is not None else ', '.join(record['backends'])}")
        said(f"Logs, while it runs: {stack.logs}\n\nMixed requests for {seconds:g} s:\n\n{heading()}")
        load.start()

    interrupted = run(stack, ready, until=load.is_over.is_set, before_end=load.end)
    if load.error is not None:
        raise Failed(f"The demo's load ended with {type(load.error).__name__}: {load.error}") from load.error
    if as_json:
        typer.echo(json.dumps(load.tally.as_record(interrupted=interrupted)))
    elif load.tally.sent:
        print_recap(load.tally, interrupted=interrupted)
        typer.echo("`triage dev` runs a stack that stays, and keeps its logs with --data.")
    return INTERRUPTED if interrupted else OK
