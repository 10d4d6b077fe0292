"""Latency at a steady rate, open loop: Triage beside the bare loop, in turns. `python -m benchmarks.paced [RATE] [SECONDS] [ROUNDS]`.

A request's latency runs from the moment it was due, not from when the generator got round to sending it, so a stall is not hidden.
It ends when the broker has the result.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from dataclasses import dataclass
from itertools import count

import orjson

from benchmarks.harness import LATENCY_MS, Bench, bench, cpu_s, median, percentile, prompt
from schemas.topics import Lane, TopicNames
from wire.clock import monotonic_s, wall_ms

_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Figures:
    """Milliseconds beyond the backend's own time, and CPU milliseconds per task."""

    p50_ms: float
    p99_ms: float
    cpu_ms: float


async def run(bench: Bench, contender: str, lane: Lane, rate: float, seconds: float) -> Figures:
    names = await bench.topics(f"p{uuid.uuid4().hex[:8]}")
    numbers = count()
    async with bench.results(names) as results, bench.producer() as producer:
        with bench.worker(names) if contender == "triage" else bench.bare(names) as process:

            async def send(due_s: float, due: dict[str, float]) -> None:
                number = next(numbers)
                due[f"bench-{number}"] = wall_ms() + (due_s - monotonic_s()) * 1000
                await producer.send(_topic(names, contender, lane), prompt(number), key=b"%d" % number)

            warm: dict[str, float] = {}
            await _load(send, rate, _WARM_UP_S, warm)
            await results.take(len(warm))
            used_s = cpu_s(process.pid)
            due: dict[str, float] = {}
            await _load(send, rate, seconds, due)
            records = await results.take(len(due))
            used_s = cpu_s(process.pid) - used_s
    late_ms = [r.timestamp - due[orjson.loads(r.value)["task_id"]] - LATENCY_MS for r in records]
    return Figures(percentile(late_ms, 0.5), percentile(late_ms, 0.99), used_s / len(due) * 1000)


def _topic(names: TopicNames, contender: str, lane: Lane) -> str:
    return names.requests(lane if contender == "triage" else Lane.NORMAL)


async def _load(send, rate: float, seconds: float, due: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    began_s = monotonic_s()
    for number in range(int(rate * seconds)):
        due_s = began_s + number / rate
        if (ahead_s := due_s - monotonic_s()) > 0:
            await asyncio.sleep(ahead_s)
        await send(due_s, due)


def main(rate: float = 200, seconds: float = 10, rounds: int = 2) -> None:
    contenders = [("bare", Lane.NORMAL), ("triage", Lane.CRITICAL), ("triage", Lane.NORMAL)]
    print(
        f"paced: {rate:g}/s for {seconds:g} s, backend {LATENCY_MS:g} ms, {rounds} rounds in turns; ms beyond the backend's own time"
    )
    rows: dict[str, list[Figures]] = {}
    with bench() as running:
        for _ in range(rounds):
            for contender, lane in contenders:
                name = contender if contender == "bare" else f"triage {lane.value}"
                rows.setdefault(name, []).append(asyncio.run(run(running, contender, lane, rate, seconds)))
    for name, figures in rows.items():
        p50, p99, cpu = (median([getattr(f, field) for f in figures]) for field in ("p50_ms", "p99_ms", "cpu_ms"))
        print(f"  {name:16} p50 {p50:6.1f}  p99 {p99:6.1f}  CPU {cpu:.3f} ms/task")


if __name__ == "__main__":
    main(*(float(a) if i < 2 else int(a) for i, a in enumerate(sys.argv[1:])))  # type: ignore[arg-type]
