"""How true the gateway's wait estimates are: `python -m benchmarks.estimates [SECONDS] [SLOTS] [LATENCY_MS] [WAITING]`.

A real broker, worker and gateway, and a stub server of SLOTS slots. Callers keep WAITING tasks waiting in each of two lanes, each task
submitted through the gateway as another one ends; then the same with an open loop at 70 % of what the server can do. Of each task the
estimate of its submit call is held against when its result says that it was sent to the backend.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from benchmarks.harness import PARTITIONS, Bench, bench, child, median, percentile
from schemas.topics import Lane
from wire.clock import monotonic_s, wall_ms

LANES = (Lane.HIGH, Lane.LOW)
# Before that the worker has not seen itself serve for long enough.
_WARM_UP_S = 15.0


@dataclass(frozen=True)
class Told:
    """What was told of a task at `at_ms`, and when it began."""

    lane: Lane
    wait_s: float
    low_s: float
    high_s: float
    began_s: float

    @property
    def is_inside(self) -> bool:
        return self.low_s <= self.began_s <= self.high_s


def settings(running: Bench, prefix: str, slots: int) -> str:
    return f"""allow_insecure_dev = true
[kafka]
bootstrap = "{running.bootstrap}"
prefix = "{prefix}"
partitions = {PARTITIONS}
replication = 1
[gateway]
port = 0
[metrics]
port = 0
[logging]
level = "warning"
[[backends]]
name = "stub"
url = "{running.url}"
max_concurrency = {slots}
"""


class Load:
    """Tasks through one gateway. Those submitted from `since_s` to `until_s` count, and the load goes on until each of them has begun.

    `untold` are those for which nothing was told.
    """

    def __init__(self, http: aiohttp.ClientSession, since_s: float, until_s: float) -> None:
        self._http, self._since_s, self._until_s = http, since_s, until_s
        self.told: list[Told] = []
        self.untold = self._open = 0

    @property
    def goes_on(self) -> bool:
        return monotonic_s() < self._until_s or self._open > 0

    async def one(self, lane: Lane) -> None:
        """Submit a task and wait for its result."""
        body = {
            "priority": lane.value,
            "messages": [{"role": "user", "content": f"question {uuid.uuid4().hex}"}],
            # As long as the stub's answers: while costs are learned, shares shift, and the load is not steady.
            "parameters": {"max_tokens": 2},
            "cache": {"mode": "bypass"},
        }
        counts = self._since_s <= monotonic_s() < self._until_s
        self._open += counts
        at_ms = wall_ms()
        async with self._http.post("/v1/async/submit", json=body) as response:
            sent = orjson.loads(await response.read())
        estimate = sent["estimate"]
        result: dict[str, Any] = {}
        while "timing" not in result:
            async with self._http.get(f"/v1/async/result/{sent['task_id']}?wait=30") as response:
                result = orjson.loads(await response.read())
        if not counts:
            return
        self._open -= 1
        if estimate is None:
            self.untold += 1
            return
        began_s = max(result["timing"]["dispatched_at_ms"] - at_ms, 0) / 1000
        self.told.append(Told(lane, estimate["wait_s"], estimate["low_s"], estimate["high_s"], began_s))

    async def backlog(self, waiting: int) -> None:
        """Keep so many tasks of each lane under way."""

        async def again(lane: Lane) -> None:
            while self.goes_on:
                await self.one(lane)

        async with asyncio.TaskGroup() as group:
            for lane in LANES:
                for _ in range(waiting):
                    group.create_task(again(lane))

    async def paced(self, rate: float) -> None:
        """Submit at a steady rate over all lanes."""
        async with asyncio.TaskGroup() as group:
            number = 0
            while self.goes_on:
                group.create_task(self.one(list(Lane)[number % len(Lane)]))
                number += 1
                await asyncio.sleep(1 / rate)


def report(name: str, load: Load) -> bool:
    """Print how true it was; return whether eight of ten were inside, in intervals no wider than the estimate."""
    good = True
    for lane in Lane:
        rows = [each for each in load.told if each.lane is lane]
        if not rows:
            continue
        inside = sum(each.is_inside for each in rows) / len(rows)
        width = median([(each.high_s - each.low_s) / each.wait_s for each in rows if each.wait_s > 0])
        error = median([abs(each.began_s - each.wait_s) for each in rows])
        waits = [each.began_s for each in rows]
        good &= inside >= 0.8 and width <= 1.0
        print(
            f"  {name:8} {lane.value:8} {len(rows):6} tasks  wait p50 {percentile(waits, 0.5):7.2f} s  inside {inside:4.0%}"
            f"  width/estimate {width:4.2f}  error p50 {error:6.2f} s"
        )
    if load.untold:
        print(f"  {name:8} {load.untold} tasks without an estimate")
    return good


async def run(running: Bench, seconds: float, slots: int, latency_ms: float, waiting: int) -> bool:
    prefix = f"e{uuid.uuid4().hex[:8]}"
    await running.topics(prefix)
    config = Path(tempfile.mkdtemp(prefix="triage-estimates-")) / "triage.toml"
    config.write_text(settings(running, prefix, slots))
    verb = [sys.executable, "-m", "cli"]
    options = ["--json", "--config", str(config)]
    with child([*verb, "worker", *options]) as worker, child([*verb, "gateway", *options]) as gateway:
        assert worker.stdout is not None
        assert gateway.stdout is not None
        await asyncio.to_thread(worker.stdout.readline)
        url = json.loads(await asyncio.to_thread(gateway.stdout.readline))["gateway"]
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            began_s = monotonic_s()
            backlog = Load(http, began_s + _WARM_UP_S, began_s + _WARM_UP_S + seconds)
            await backlog.backlog(waiting)
            began_s = monotonic_s()
            paced = Load(http, began_s + 5, began_s + 5 + seconds)
            await paced.paced(0.7 * slots / (latency_ms / 1000))
    good = report("backlog", backlog)
    report("at 70 %", paced)
    return good


def main(seconds: float = 30, slots: int = 8, latency_ms: float = 200, waiting: int = 60) -> None:
    print(
        f"estimates: {slots} slots of {latency_ms:g} ms, {waiting} tasks under way in each of two lanes, {seconds:g} s"
    )
    with bench(latency_ms) as running:
        good = asyncio.run(run(running, seconds, slots, latency_ms, waiting))
    print("target (backlog: 80 % inside, width at most the estimate):", "met" if good else "MISSED")


if __name__ == "__main__":
    main(*(kind(given) for kind, given in zip((float, int, float, int), sys.argv[1:], strict=False)))
