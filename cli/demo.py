"""`triage demo`: mixed requests over the four lanes of a real stack, told line by line, and a recap."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import orjson
import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from cli.dev import run
from cli.embedded.stack import PARTITIONS, DevStack, Options
from cli.errors import INTERRUPTED, Failed
from schemas.codec import decode
from schemas.result import Outcome, Result
from schemas.topics import Lane, TopicNames
from wire.clock import monotonic_s, wall_ms

# Requests per second and lane: together a little more than the small model answers on two cores, so that lanes have to wait.
RATES = {Lane.CRITICAL: 0.7, Lane.HIGH: 1.2, Lane.NORMAL: 2.0, Lane.LOW: 2.5}
_TELL_EVERY_S = 2.0
_FINISH_S = 20.0
_QUESTIONS = {
    Lane.CRITICAL: ["Is chest pain an emergency?", "Name one sign of a stroke.", "What number calls an ambulance?"],
    Lane.HIGH: ["What is a normal body temperature?", "What is the capital of France?", "Name a vitamin in oranges."],
    Lane.NORMAL: ["Why do we sleep?", "How much water should one drink?", "What does the heart do?"],
    Lane.LOW: ["Summarise why exercise is good.", "Write a line about spring.", "Name three fruits."],
}


@dataclass
class Tally:
    """What the demo has seen. Latency runs from append to result, by the broker's clock."""

    sent: Counter[Lane] = field(default_factory=Counter)
    done: Counter[Lane] = field(default_factory=Counter)
    failed: Counter[Lane] = field(default_factory=Counter)
    latency_ms: dict[Lane, list[float]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    batches: dict[str, int] = field(default_factory=dict)
    cached: int = 0
    tokens: int = 0
    ours: set[str] = field(default_factory=set)
    answers: deque[tuple[Lane, str, str]] = field(default_factory=lambda: deque(maxlen=1))

    @property
    def open(self) -> int:
        return len(self.ours)

    def take(self, result: Result, appended_ms: int, question: str) -> None:
        if result.task_id not in self.ours:
            return  # a later record of a task that has its outcome
        self.ours.discard(result.task_id)
        lane = result.priority
        if result.outcome is not Outcome.COMPLETED or result.output is None:
            self.failed[lane] += 1
            return
        self.done[lane] += 1
        self.cached += result.cached
        self.latency_ms[lane].append(appended_ms - (result.timing.created_at_ms or appended_ms))
        if result.batch is not None:
            self.batches[result.batch.id] = result.batch.size
        if result.usage is not None and not result.cached:
            self.tokens += result.usage.completion_tokens
        self.answers.append((lane, question, (result.output.content or "").strip().replace("\n", " ")))


class Load:
    """Produces and reads in a thread of its own, with a loop of its own; the main thread looks after the processes."""

    def __init__(self, stack: DevStack, seconds: float) -> None:
        self._stack, self._seconds = stack, seconds
        self.tally = Tally()
        self.is_over = threading.Event()
        self.error: Exception | None = None
        self._questions: dict[str, str] = {}
        self._is_produced = False

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error
        finally:
            self.is_over.set()

    async def _main(self) -> None:
        names = TopicNames()
        bootstrap = self._stack.bootstrap
        async with (
            AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
            AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer,
        ):
            tps = [TopicPartition(names.results, number) for number in range(PARTITIONS)]
            consumer.assign(tps)
            await consumer.seek_to_end(*tps)
            reading = asyncio.create_task(self._read(consumer))
            telling = asyncio.create_task(self._tell())
            rng = random.Random(1)  # noqa: S311 - a mixture, not a secret
            await asyncio.gather(*(self._produce(producer, names, lane, rng) for lane in Lane))
            self._is_produced = True
            if self.tally.open:
                await asyncio.wait([reading], timeout=_FINISH_S)
            for task in (reading, telling):
                task.cancel()
            await asyncio.gather(reading, telling, return_exceptions=True)

    async def _produce(self, producer: AIOKafkaProducer, names: TopicNames, lane: Lane, rng: random.Random) -> None:
        end_s = monotonic_s() + self._seconds
        number = 0
        while monotonic_s() < end_s:
            number += 1
            question = rng.choice(_QUESTIONS[lane])
            task_id = f"demo-{lane.value}-{number}"
            self._questions[task_id] = question
            self.tally.ours.add(task_id)
            value = _request(task_id, question, repeats=rng.random() < 0.25, number=number)
            await producer.send_and_wait(names.requests(lane), value, key=task_id.encode())
            self.tally.sent[lane] += 1
            await asyncio.sleep(rng.expovariate(RATES[lane]))

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while self.tally.open or not self._is_produced:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    result = decode(Result, record.value)
                    self.tally.take(result, record.timestamp, self._questions.get(result.task_id, ""))

    async def _tell(self) -> None:
        began_s = monotonic_s()
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            typer.echo(_line(self.tally, monotonic_s() - began_s))


def run_demo(seconds: float) -> int:
    """Run the demo and return the exit code: 0, or 130 when it was interrupted."""
    typer.echo("Starting Kafka, a worker, two simulated GPUs and a small language model on this machine ...")
    stack = DevStack(Options(kafka_port=0), said=typer.echo)
    load = Load(stack, seconds)

    def ready(record: dict[str, Any]) -> None:
        note = stack.model.note if stack.model is not None else ""
        typer.echo(f"Ready after {record['took_s']} s: Kafka at {record['kafka']}, {note}")
        typer.echo(f"Mixed requests for {seconds:g} s; `waiting` is what has no outcome yet.\n")
        load.start()

    interrupted = run(stack, ready, load.is_over.is_set)
    if load.error is not None:
        raise Failed(f"The demo's load ended with {type(load.error).__name__}: {load.error}")
    typer.echo(_recap(load.tally, interrupted))
    return INTERRUPTED if interrupted else 0


def _request(task_id: str, question: str, *, repeats: bool, number: int) -> bytes:
    """Return a request; one that `repeats` is the same question to the letter, so the cache may answer it."""
    text = question if repeats else f"{question} (case {number})"
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
    parameters = {"max_tokens": 24, "temperature": 0.0 if repeats else 0.7}
    now_ms = wall_ms()
    return orjson.dumps(
        {
            "task_id": task_id,
            "messages": messages,
            "parameters": parameters,
            "created_at_ms": now_ms,
            "deadline_at_ms": now_ms + 120_000,
            "cache": {"mode": "use" if repeats else "bypass"},
        }
    )


def _line(tally: Tally, at_s: float) -> str:
    lanes = "  ".join(f"{lane.value} {tally.done[lane]}/{tally.sent[lane]}" for lane in Lane)
    answer = ""
    if tally.answers:
        lane, question, text = tally.answers[-1]
        answer = f"\n        {lane.value}: {question} -> {text[:70]}"
    return f"{at_s:5.0f} s  {lanes}  waiting {tally.open}{answer}"


def _recap(tally: Tally, interrupted: bool) -> str:
    rows = [f"{'lane':10}{'done':>6}{'failed':>8}{'p50':>9}{'p95':>9}"]
    for lane in Lane:
        latency = sorted(tally.latency_ms[lane])
        rows.append(
            f"{lane.value:10}{tally.done[lane]:6}{tally.failed[lane]:8}{_quantile(latency, 0.5):>9}{_quantile(latency, 0.95):>9}"
        )
    sizes = list(tally.batches.values())
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    end = "Interrupted." if interrupted else "Done."
    return "\n".join(
        [
            f"\n{end} From append to answer, by Kafka's clock:\n",
            *rows,
            f"\n{len(sizes)} batches of {mean:.1f} tasks on average, {tally.cached} answers from the cache, "
            f"{tally.tokens} tokens generated, {tally.open} tasks without an outcome yet.",
            "Keep a stack running with `triage dev`; its logs are in the folder that it names.",
        ]
    )


def _quantile(ordered: list[float], share: float) -> str:
    if not ordered:
        return "-"
    return f"{ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000:.2f} s"
