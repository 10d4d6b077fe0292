"""`triage demo`: mixed requests over the four lanes of a real stack, a picture or lines of how they fare, and a recap."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from cli.picture.stage import Stage

# Bursts per second and lane: together a little more than the small model answers on two cores, so that lanes have to wait.
RATES = {Lane.CRITICAL: 0.2, Lane.HIGH: 0.3, Lane.NORMAL: 0.4, Lane.LOW: 0.5}
# Requests of a burst come together, so that those with the same parameters leave in one batch.
BURST = (2, 4)
# A slower machine gets fewer requests: a lane sends no more while this many of its tasks have no outcome.
MOST_WAITING = {Lane.CRITICAL: 2, Lane.HIGH: 4, Lane.NORMAL: 6, Lane.LOW: 8}
# A tide: from so many open tasks on no lane sends, until hardly one is left. Under an endless backlog a slot would be taken the moment
# it is free, and every batch would be of one task.
MOST_OPEN, FEW_OPEN = 8, 1
_TELL_EVERY_S, _LOOK_EVERY_S = 2.0, 0.2
# What is under way at the end is waited for; longer where a lane would have nothing to show, or something was killed.
_FINISH_S, _FINISH_LONG_S = 15.0, 45.0
_FINISH_LOOK_S = 0.5
_HELD_S = 0.1
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
        self.is_paused = False
        self._end_s: float | None = None
        self._is_produced = self._ebbs = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None

    @property
    def left_s(self) -> float:
        """How long requests will still be produced."""
        return self._seconds if self._end_s is None else max(self._end_s - monotonic_s(), 0.0)

    def pause(self) -> None:
        """Send nothing more until it is called again."""
        self.is_paused = not self.is_paused

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
                self._end_s = monotonic_s() + self._seconds
                rng = random.Random(1)  # noqa: S311 - a mixture, not a secret
                producing = [group.create_task(self._produce(producer, lane, rng)) for lane in Lane]
                await asyncio.wait(producing)
                self._is_produced = True
                await self._finish(reading)
                for task in (reading, telling):
                    task.cancel()

    async def _finish(self, reading: asyncio.Task[None]) -> None:
        """Wait for what is under way."""
        produced_s = monotonic_s()
        while not reading.done():
            is_long = self.tally.is_silent or self.tally.kills
            if monotonic_s() - produced_s > (_FINISH_LONG_S if is_long else _FINISH_S):
                return
            await asyncio.wait([reading], timeout=_FINISH_LOOK_S)

    async def _produce(self, producer: AIOKafkaProducer, lane: Lane, rng: random.Random) -> None:
        number = 0
        while self.left_s:
            if self.is_paused or self._is_ebb():
                await asyncio.sleep(min(_HELD_S, self.left_s))
                continue
            size = min(rng.randint(*BURST), MOST_WAITING[lane] - self.tally.waiting(lane))
            if size > 0:
                await asyncio.gather(*(self._send(producer, lane, number + each, rng) for each in range(1, size + 1)))
                number += size
            await asyncio.sleep(min(rng.expovariate(RATES[lane]), self.left_s))

    def _is_ebb(self) -> bool:
        if self.tally.open >= MOST_OPEN:
            self._ebbs = True
        elif self.tally.open <= FEW_OPEN:
            self._ebbs = False
        return self._ebbs

    async def _send(self, producer: AIOKafkaProducer, lane: Lane, number: int, rng: random.Random) -> None:
        task_id = f"demo-{lane.value}-{number}"
        question, value = new_request(task_id, lane, number, rng)
        self.tally.ask(task_id, lane, question)
        await producer.send_and_wait(self._stack.names.requests(lane), value, key=task_id.encode())

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


class DemoStack(DevStack):
    """A stack whose logs outlive it, in `kept_logs`: those of the last demo, in the user's cache."""

    kept_logs: Path | None = None

    def _release(self) -> None:
        if self.logs.exists():
            with suppress(OSError):  # a full disk is no reason to fail now
                self.kept_logs = keep_logs(self.logs.iterdir(), cache() / "demo-logs")
        super()._release()


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "triage"


def keep_logs(logs: Iterable[Path], folder: Path) -> Path:
    """Copy the files that exist to `folder`/last, in the place of what was there, and return it. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    made, last = Path(tempfile.mkdtemp(dir=folder)), folder / "last"
    for log in logs:
        if log.exists():
            shutil.copyfile(log, made / log.name)
    shutil.rmtree(last, ignore_errors=True)
    return made.rename(last)


def run_demo(seconds: float, *, as_json: bool = False, config: Path | None = None) -> int:
    """Run the demo and return the exit code: 0, or 130 when it was interrupted. `config` None: no file is read.

    On a terminal it is a live picture, else a line every two seconds.

    Raises: Failed when requests could not be sent or results not be read.
    """
    logs.configure("console", "error")
    is_live = not as_json and is_terminal()
    echo = to_stderr if as_json else typer.echo
    stage: Stage | None = None

    def said(line: str) -> None:
        if stage is None or not stage.note(line):
            echo(line)

    echo("Starting Kafka, a worker, a GPU publisher and a small language model here ...")
    stack = DemoStack(Options(port=0, kafka_port=0, config=config or NO_FILE), said=said)
    load = Load(stack, seconds, tells=not as_json and not is_live)

    def ready(record: dict[str, Any]) -> None:
        nonlocal stage
        echo(f"Ready after {record['took_s']:.1f} s: Kafka at {record['kafka']}, GPUs {stack.given.gpus},")
        echo(f"model {stack.model.note if stack.model is not None else ', '.join(record['backends'])}")
        if is_live:
            from cli.picture.screen import show
            from cli.picture.stage import Stage

            stage = Stage(stack, load)
            load.start()
            stage.run(show)
        else:
            echo(f"\nMixed requests for {seconds:g} s:\n\n{heading()}")
            load.start()

    def is_over() -> bool:
        return load.is_over.is_set() or (stage is not None and stage.has_left)

    try:
        interrupted = run(stack, ready, until=is_over, before_end=load.end)
    except BaseException:
        tell_logs(stack, to_stderr)
        raise
    if load.error is not None:
        tell_logs(stack, to_stderr)
        raise Failed(f"The demo's load ended with {type(load.error).__name__}: {load.error}") from load.error
    if as_json:
        typer.echo(json.dumps(load.tally.as_record(interrupted=interrupted)))
    elif load.tally.sent:
        print_recap(load.tally, interrupted=interrupted)
        tell_logs(stack, echo)
        echo("`triage dev` runs a stack that stays; `triage top` shows this picture of any cluster.")
    return INTERRUPTED if interrupted else OK


def is_terminal() -> bool:
    """Whether a picture can be shown and keys be read."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def tell_logs(stack: DemoStack, echo: Callable[[str], None]) -> None:
    if stack.kept_logs is not None:
        names = ", ".join(sorted(log.name for log in stack.kept_logs.iterdir()))
        echo(f"Logs of this run, until the next: {stack.kept_logs.as_uri()} ({names})")
