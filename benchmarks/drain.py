"""How fast a queue is worked off: Triage beside the bare loop, in turns. `python -m benchmarks.drain [N] [ROUNDS]`.

`batches` is Triage before a server that takes a batch in one call.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from subprocess import Popen

from benchmarks.harness import IN_FLIGHT, LATENCY_MS, Bench, bench, cpu_s, median, prompt, rss_mb
from schemas.topics import TopicNames


@dataclass(frozen=True)
class Figures:
    """Of the middle 80 % of a run: tasks per second, and CPU milliseconds per task."""

    rate: float
    cpu_ms: float
    rss_mb: float


async def run(bench: Bench, contender: str, count: int) -> Figures:
    names = await bench.topics(f"d{uuid.uuid4().hex[:8]}")
    async with bench.producer() as producer:
        pending = [
            await producer.send(f"{names.prefix}.requests.normal", prompt(number), key=b"%d" % number)
            for number in range(count)
        ]
        await asyncio.gather(*pending)
    start: AbstractContextManager[Popen[str]] = _start(bench, contender, names)
    async with bench.results(names) as results:
        with start as process:
            records = await results.take(count // 10)
            used_s, first_ms = cpu_s(process.pid), records[-1].timestamp
            records = await results.take(count * 8 // 10)
            used_s = cpu_s(process.pid) - used_s
            took_s = max(records[-1].timestamp - first_ms, 1) / 1000
            return Figures(len(records) / took_s, used_s / len(records) * 1000, rss_mb(process.pid))


def _start(bench: Bench, contender: str, names: TopicNames) -> AbstractContextManager[Popen[str]]:
    if contender == "bare":
        return bench.bare(names)
    return bench.worker(names, kind="vllm" if contender == "batches" else "openai")


def main(count: int = 10_000, rounds: int = 3) -> None:
    print(f"drain: {count} queued tasks, backend {LATENCY_MS:g} ms, {IN_FLIGHT} in flight, {rounds} rounds in turns")
    figures: dict[str, list[Figures]] = {"bare": [], "triage": [], "batches": []}
    with bench() as running:
        for _ in range(rounds):
            for contender, rows in figures.items():
                rows.append(asyncio.run(run(running, contender, count)))
                print(
                    f"  {contender:7} {rows[-1].rate:7.0f} tasks/s {rows[-1].cpu_ms:6.3f} ms CPU/task {rows[-1].rss_mb:5.0f} MB"
                )
    rates = {name: median([row.rate for row in rows]) for name, rows in figures.items()}
    cpus = {name: median([row.cpu_ms for row in rows]) for name, rows in figures.items()}
    for name in ("triage", "batches"):
        print(
            f"{name} {rates[name]:.0f}/s against {rates['bare']:.0f}/s: {rates[name] / rates['bare']:.2f} of the bare loop; "
            f"CPU {cpus[name]:.3f} against {cpus['bare']:.3f} ms: {cpus[name] / cpus['bare']:.2f} times"
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
