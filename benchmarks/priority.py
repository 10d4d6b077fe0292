"""Whether priority is real where the waiting happens. `python -m benchmarks.priority [LOW] [SECONDS]`, by default 200000 and 30.

A model server of 8 slots and 20 ms a call, so 400 tasks per second at best. Critical tasks come at 20 per second, open loop: a task's
time runs from the moment it was due. Beside Triage the same work on Celery with Redis priorities, in the same run, where it can be had.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import orjson

from benchmarks.harness import Bench, Results, bench, percentile, prompt
from benchmarks.peers import celery_priority
from benchmarks.peers.environment import PeerMissing
from benchmarks.work import Figures, Work
from cli.simulation.fair import split
from schemas.topics import Lane, TopicNames
from streams.settings import LanesSettings
from wire.clock import monotonic_s, wall_ms

SLOTS = 8
RATE = 20.0
NOTHING_RESERVED = "[lanes.critical]\nreserved_slots = 0\n"
LOWER = (Lane.HIGH, Lane.NORMAL, Lane.LOW)
_WEIGHTS = {lane: float(LanesSettings()[lane].weight) for lane in Lane}


async def run(bench: Bench, work: Work, *, workers: int = 1, settings: str = "") -> Figures:
    """Return what so many of Triage's workers made of the work; together they have the server's slots."""
    names = await bench.topics(f"q{uuid.uuid4().hex[:8]}")
    await fill(bench, names, work.backlog)
    slots = -(-SLOTS // workers)
    async with bench.results(names) as results:
        with ExitStack() as stack:
            for _ in range(workers):
                stack.enter_context(bench.worker(names, slots=slots, settings=settings))
            await pace(bench, names, results, Work(work.rate, work.warm_up_s, work.backlog))
            return await pace(bench, names, results, work)


async def fill(bench: Bench, names: TopicNames, backlog: Mapping[Lane, int]) -> None:
    async with bench.producer() as producer:
        for lane, count in backlog.items():
            pending = [
                await producer.send(
                    names.requests(lane), prompt(number, task_id=f"{lane.value}-{number}"), key=b"%d" % number
                )
                for number in range(count)
            ]
            await asyncio.gather(*pending)


async def pace(bench: Bench, names: TopicNames, results: Results, work: Work) -> Figures:
    """Send critical tasks for the seconds, wait for their answers, and count what else was answered in the time."""
    due_ms: dict[str, float] = {}
    began_ms, began_s = wall_ms(), monotonic_s()
    topic = names.requests(Lane.CRITICAL)

    async def send() -> None:
        async with bench.producer() as producer:
            for number in range(int(work.rate * work.seconds)):
                due_s = number / work.rate
                await asyncio.sleep(max(began_s + due_s - monotonic_s(), 0))
                task_id = uuid.uuid4().hex
                due_ms[task_id] = began_ms + due_s * 1000
                await producer.send(topic, prompt(number, task_id=task_id), key=task_id.encode())
        await asyncio.sleep(max(began_s + work.seconds - monotonic_s(), 0))

    sending = asyncio.create_task(send())
    served: dict[Lane, int] = dict.fromkeys(Lane, 0)
    totals_ms: list[float] = []
    waits_ms: list[float] = []
    async with asyncio.timeout(work.seconds + 120):
        while not sending.done() or len(totals_ms) < len(due_ms):
            for record in await results.more():
                result = orjson.loads(record.value)
                served[Lane(result["priority"])] += record.timestamp < began_ms + work.seconds * 1000
                if (was_due_ms := due_ms.get(result["task_id"])) is not None:
                    totals_ms.append(record.timestamp - was_due_ms)
                    waits_ms.append(result["timing"]["dispatched_at_ms"] - was_due_ms)
    await sending
    return Figures(totals_ms, waits_ms, served, work.seconds)


def told(name: str, figures: Figures) -> Figures:
    print(f"  {name:34} {figures}", flush=True)
    return figures


def due(figures: Figures) -> str:
    """Return what each lane was due by its weight: critical's demand is what it sent, the others' has no end."""
    total = float(sum(figures.served.values()))
    wanted = dict.fromkeys(LOWER, total) | {Lane.CRITICAL: float(len(figures.totals_ms)) or total}
    parts = split(total, wanted, _WEIGHTS)
    return ", ".join(f"{lane.value} {parts[lane] / total:.1%}" for lane in Lane)


def target(what: str, value: float, bound: float, *, at_most: bool = True) -> None:
    is_met = value <= bound if at_most else value >= bound
    print(
        f"    {what}: {value:.2f}, target {'at most' if at_most else 'at least'} {bound:g}: {'met' if is_met else 'MISSED'}"
    )


def triage(running: Bench, low: int, seconds: float) -> None:
    lowers = dict.fromkeys(LOWER, int(1.5 * 400 * (seconds + 4)))
    alone = told("critical alone", asyncio.run(run(running, Work(RATE, seconds))))
    beside = told(f"beside {low} low", asyncio.run(run(running, Work(RATE, seconds, {Lane.LOW: low}))))
    target("critical's p99 beside the backlog over alone", _p99(beside.totals_ms) / _p99(alone.totals_ms), 1.5)
    target("low's share", beside.shares.get(Lane.LOW, 0.0), 1 / 9, at_most=False)
    fifo_work = Work(0, seconds, {Lane.NORMAL: int(400 * (seconds + 6))})
    fifo = told("one lane, first come first served", asyncio.run(run(running, fifo_work, settings=NOTHING_RESERVED)))
    for workers in (1, 3):
        figures = asyncio.run(run(running, Work(RATE, seconds, lowers), workers=workers))
        told(f"every lane overloaded, {workers} worker{'s' * (workers > 1)}", figures)
        print(f"    due by weight: {due(figures)}")
        target("critical's wait, p99 in ms", _p99(figures.waits_ms), 250)
        target("tasks per second over one lane's", figures.rate / fifo.rate, 0.95, at_most=False)


def celery(running: Bench, low: int, seconds: float) -> None:
    lowers = dict.fromkeys(LOWER, int(1.5 * 400 * (seconds + 4)))
    for name, backlog in (
        ("critical alone", {}),
        (f"beside {low} low", {Lane.LOW: low}),
        ("every lane overloaded", lowers),
    ):
        told(name, celery_priority.run(Work(RATE, seconds, backlog), running.url, SLOTS))


def main(low: int = 200_000, seconds: float = 30) -> None:
    print(f"priority: {SLOTS} slots of 20 ms, {RATE:g} critical tasks per second for {seconds:g} s")
    print(
        f"  {os.cpu_count()} cores, {os.getloadavg()[0]:.1f} busy before the start: on a machine with other work the times are that work's"
    )
    with bench(slots=SLOTS) as running:
        print(" triage")
        triage(running, low, seconds)
        print(" celery, redis priorities")
        try:
            celery(running, low, seconds)
        except PeerMissing as missing:
            print(f"  not run: {missing}")


def _p99(values_ms: Sequence[float]) -> float:
    return percentile(values_ms, 0.99)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
