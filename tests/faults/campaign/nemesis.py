"""Carries the schedule out: breaks, shows that it broke, mends, and writes each step into the history."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from aiokafka.admin import AIOKafkaAdminClient

from cli.embedded.kafka import KafkaCluster
from tests.faults.campaign.backends import STORMS, Backend
from tests.faults.campaign.load import Load
from tests.faults.campaign.schedule import Kind, Planned
from tests.faults.campaign.system import Member, System
from tests.faults.history import Recorder
from tests.support.proxy import HalfOpen, Latency, Proxy
from wire.clock import monotonic_s

_STORM_SHARE = 0.7
_EVIDENCE_S = 30.0
_LOOK_S = 0.05
_LATENCY_S = 0.15
_SILENT_S = 1.0
_FLOOD_S, _CANCELS, _POISONS = 8, 60, 20
_NODES = (1, 2, 3)

Evidence = Callable[[str], None]
T = TypeVar("T")


@dataclass
class Nemesis:
    """Owns what it breaks from `begun` to `ended`. Faults of one family wait for each other, others overlap."""

    cluster: KafkaCluster
    system: System
    backends: Sequence[Backend]
    proxy: Proxy
    load: Load
    recorder: Recorder
    say: Callable[[str], None]
    zero_s: float = 0.0

    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._until_s = 0.0
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        storms: dict[Kind, Callable[[Planned, Evidence], Awaitable[None]]] = dict.fromkeys(STORMS, self._storm)
        self._ways = storms | {
            Kind.WORKER_KILL: self._kill_worker,
            Kind.WORKER_TERM: self._end_worker,
            Kind.WORKER_PAUSE: self._pause_worker,
            Kind.WORKER_SCALE: self._scale_workers,
            Kind.GATEWAY_KILL: self._kill_gateway,
            Kind.GATEWAY_TERM: self._end_gateway,
            Kind.BROKER_KILL: self._kill_broker,
            Kind.BROKER_PAUSE: self._pause_broker,
            Kind.BROKER_LEADER: self._kill_leader,
            Kind.BROKER_TWO: self._kill_two_brokers,
            Kind.BACKEND_DOWN: self._down_backend,
            Kind.BACKEND_ALL: self._down_backends,
            Kind.NETWORK_SLOW: self._slow_network,
            Kind.NETWORK_CUT: self._cut_network,
            Kind.LOAD_FLOOD: self._flood,
            Kind.LOAD_CANCELS: self._cancels,
            Kind.LOAD_POISON: self._poison,
        }

    async def run(self, planned: Sequence[Planned], until_s: float) -> None:
        """Return when every fault is over; one whose turn comes more than `until_s` after the start is left out.

        Raises: whatever one could not be mended of, as a group.
        """
        self.zero_s, self._until_s = monotonic_s(), until_s
        async with asyncio.TaskGroup() as group:
            for each in planned:
                group.create_task(self._carry_out(each))

    async def _carry_out(self, fault: Planned) -> None:
        await asyncio.sleep(self.zero_s + fault.at_s - monotonic_s())
        async with self._turns[fault.kind.family]:
            if self._now_s() > self._until_s:
                self.left_out.append(fault.name)
                self.say(f"{self._now_s():7.1f} s  {fault.name} is left out: its turn comes too late")
                return
            self._write(fault, "planned")
            self._write(fault, "begun")
            self.say(f"{self._now_s():7.1f} s  {fault.name} begins")
            await self._ways[fault.kind](fault, lambda detail: self._write(fault, "evidence", detail=detail))
            self._write(fault, "ended")
            self.say(f"{self._now_s():7.1f} s  {fault.name} is over")

    def _write(self, fault: Planned, phase: str, **fields: Any) -> None:
        self.recorder.write("fault", fault=fault.name, phase=phase, kind=fault.kind.value, **fields)

    def _now_s(self) -> float:
        return monotonic_s() - self.zero_s

    # Workers and gateways.

    async def _kill_worker(self, fault: Planned, evidence: Evidence) -> None:
        await _ended_and_back(_one_of(self.system.workers, fault), signal.SIGKILL, evidence)

    async def _end_worker(self, fault: Planned, evidence: Evidence) -> None:
        await _ended_and_back(_one_of(self.system.workers, fault), signal.SIGTERM, evidence)

    async def _kill_gateway(self, fault: Planned, evidence: Evidence) -> None:
        await _ended_and_back(_one_of(self.system.gateways, fault), signal.SIGKILL, evidence)

    async def _end_gateway(self, fault: Planned, evidence: Evidence) -> None:
        await _ended_and_back(_one_of(self.system.gateways, fault), signal.SIGTERM, evidence)

    async def _pause_worker(self, fault: Planned, evidence: Evidence) -> None:
        worker = _one_of(self.system.workers, fault)
        evidence(f"state {worker.pause()}")
        await asyncio.sleep(fault.lasts_s)
        worker.resume()

    async def _scale_workers(self, fault: Planned, evidence: Evidence) -> None:
        """One more, then only that one, then those of before."""
        extra = self.system.new_worker()
        await extra.back()
        codes = await asyncio.gather(*(worker.end(signal.SIGTERM) for worker in self.system.workers))
        evidence(f"{extra.name} joined, then the others ended with {codes}")
        await asyncio.gather(*(worker.back() for worker in self.system.workers))
        evidence(f"{extra.name} ended with {await extra.end(signal.SIGTERM)}")

    # Brokers.

    async def _kill_broker(self, fault: Planned, evidence: Evidence) -> None:
        await self._down_and_back([_node(fault)], fault.lasts_s, evidence)

    async def _kill_two_brokers(self, fault: Planned, evidence: Evidence) -> None:
        spared = _node(fault)
        await self._down_and_back([node for node in _NODES if node != spared], fault.lasts_s, evidence)

    async def _kill_leader(self, fault: Planned, evidence: Evidence) -> None:
        """Kill the broker that leads a partition of the results."""
        stack = self.system.stack
        partition = int(fault.pick * stack.partitions)
        leader = await _leader(self.cluster.bootstrap, stack.names.results, partition)
        evidence(f"led {stack.names.results}/{partition}")
        await self._down_and_back([leader], fault.lasts_s, evidence)

    async def _down_and_back(self, nodes: Sequence[int], seconds: float, evidence: Evidence) -> None:
        for node in nodes:
            self.cluster.kill(node)
        evidence(f"exit codes {[self.cluster.poll(node) for node in nodes]}")
        await asyncio.sleep(seconds)
        for node in nodes:
            self.cluster.restart(node, wait=False)
        await asyncio.to_thread(self.cluster.wait_ready, 90.0)

    async def _pause_broker(self, fault: Planned, evidence: Evidence) -> None:
        node = _node(fault)
        self.cluster.pause(node)
        evidence(f"broker {node} is stopped")
        await asyncio.sleep(fault.lasts_s)
        self.cluster.resume(node)
        await asyncio.to_thread(self.cluster.wait_ready, 90.0)

    # Backends and the way to one of them.

    async def _storm(self, fault: Planned, evidence: Evidence) -> None:
        backend = _one_of(self.backends, fault)
        backend.fail(fault.kind, _STORM_SHARE)
        try:
            await asyncio.sleep(fault.lasts_s)
            async with asyncio.timeout(_EVIDENCE_S):
                while not backend.failed_count:  # noqa: ASYNC110 - calls come many a second
                    await asyncio.sleep(_LOOK_S)
        finally:
            backend.heal()
        evidence(f"{backend.failed_count} calls of {backend.name} failed")

    async def _down_backend(self, fault: Planned, evidence: Evidence) -> None:
        await self._away([_one_of(self.backends, fault)], fault.lasts_s, evidence)

    async def _down_backends(self, fault: Planned, evidence: Evidence) -> None:
        await self._away(self.backends, fault.lasts_s, evidence)

    async def _away(self, backends: Sequence[Backend], seconds: float, evidence: Evidence) -> None:
        for backend in backends:
            await backend.down()
        evidence(f"{[await _tried(backend.server.url) for backend in backends]}")
        await asyncio.sleep(seconds)
        for backend in backends:
            await backend.up()

    async def _slow_network(self, fault: Planned, evidence: Evidence) -> None:
        for way in ("up", "down"):
            self.proxy.add(way, Latency(_LATENCY_S, _LATENCY_S / 2, seed=int(fault.pick * 1e6)))
        await self._behind_proxy(fault, evidence)

    async def _cut_network(self, fault: Planned, evidence: Evidence) -> None:
        for way in ("up", "down"):
            self.proxy.add(way, HalfOpen())
        await self._behind_proxy(fault, evidence)

    async def _behind_proxy(self, fault: Planned, evidence: Evidence) -> None:
        began_s = monotonic_s()
        try:
            told = await _tried(f"http://127.0.0.1:{self.proxy.port}")
            evidence(f"{told} after {monotonic_s() - began_s:.2f} s")
            await asyncio.sleep(fault.lasts_s)
        finally:
            self.proxy.clear()

    # What clients do.

    async def _flood(self, fault: Planned, evidence: Evidence) -> None:
        evidence(f"{await self.load.flood(int(_FLOOD_S * self.load.per_s))} low requests at once")

    async def _cancels(self, fault: Planned, evidence: Evidence) -> None:
        evidence(f"{await self.load.cancel_storm(_CANCELS)} of {_CANCELS} cancelled")

    async def _poison(self, fault: Planned, evidence: Evidence) -> None:
        evidence(f"{await self.load.poison(_POISONS)} acknowledged")


def _one_of(all_: Sequence[T], fault: Planned) -> T:
    return all_[int(fault.pick * len(all_))]


def _node(fault: Planned) -> int:
    return 1 + int(fault.pick * len(_NODES))


async def _ended_and_back(member: Member, how: signal.Signals, evidence: Evidence) -> None:
    pid = member.pid
    code = await member.end(how)
    evidence(f"{member.name}, pid {pid}, ended with {code}")
    if await member.back():
        evidence(f"{member.name} is ready again as pid {member.pid}")


async def _leader(bootstrap: str, topic: str, partition: int) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        [described] = await admin.describe_topics([topic])
    finally:
        await admin.close()
    return next(int(each["leader"]) for each in described["partitions"] if each["partition"] == partition)


async def _tried(url: str) -> str:
    """Return what a call got: a status, or the name of an error."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SILENT_S)) as http,
            http.get(f"{url}/health") as answer,
        ):
            return str(answer.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
