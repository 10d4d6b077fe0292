"""From a seed to a run: what there is, what goes wrong and when, and how the end is reached."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from schemas.request import CachePolicy, InferenceTask
from schemas.topics import Lane, RetryTier
from streams.settings import Settings
from streams.task import TaskKey
from tests.simulation.broker import Broker, Group, Place
from tests.simulation.checks import Checks
from tests.simulation.intake import Bounds
from tests.simulation.outside import Gateway
from tests.simulation.serving import BAD, DEEP, HUGE, POISON, STUBBORN, WIDE, Server
from tests.simulation.worker import Worker
from tests.simulation.world import EPOCH_MS, Chances, World

MODELS = ("tiny", "mid")
_RATIO = 0.1
_MOST_S = 2000.0
_LOOK_S = 5.0
_Do: TypeAlias = Callable[[], None]


@dataclass
class Plan:
    """What a run is made of. Times are seconds of the world; `until_s` is when the last fault may happen."""

    partitions: int = 2
    workers: int = 2
    lanes: tuple[Lane, ...] = (Lane.CRITICAL, Lane.NORMAL)
    tasks: int = 20
    tiers: int = 1
    tries: int = 2
    slots: int = 3
    slow_s: float = 0.6
    span: int = 512
    waiting: int = 256
    held: int = 64
    own_room: int = 64
    until_s: float = 25.0
    is_calm: bool = False
    takes_batches: bool = False
    alike: float = 0.0
    cancels: int = 2
    invalid: float = 0.03
    traits: dict[str, float] = field(default_factory=dict)
    chances: Chances = field(default_factory=Chances)
    skew_ms: tuple[int, ...] = (0, 0, 0)
    outages: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    brokers_away: list[tuple[float, float]] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    crashes: list[float] = field(default_factory=list)
    drains: list[float] = field(default_factory=list)
    joins: list[float] = field(default_factory=list)


def plan_of(seed: int) -> Plan:
    """Return what the seed draws: one in six is calm, where nothing fails and workers come and go in good order."""
    rng = random.Random(seed ^ 0x5EED)
    plan = Plan(
        partitions=rng.choice([2, 2, 3]),
        workers=rng.choice([1, 2, 2, 3]),
        lanes=tuple(sorted(rng.sample(list(Lane), 2), key=list(Lane).index)),
        tasks=rng.randint(10, 32),
        tiers=rng.choice([0, 1, 1, 2, 2, 3, 3]),
        tries=rng.choice([0, 1, 2, 2, 6]),
        slots=rng.choice([1, 2, 3, 4]),
        slow_s=rng.choice([0.2, 0.6, 2.0, 5.0]),
        until_s=rng.uniform(12.0, 30.0),
        cancels=rng.choice([0, 2, 5]),
    )
    plan.drains = [rng.uniform(2, plan.until_s) for _ in range(rng.choice([0, 1, 2]))]
    plan.joins = [rng.uniform(1, plan.until_s) for _ in range(rng.choice([0, 1, 1]))]
    if rng.random() < 0.3:
        plan.span, plan.waiting, plan.held = rng.choice([3, 6]), rng.choice([2, 4]), rng.choice([1, 3])
        plan.own_room = rng.choice([1, 2])
    plan.is_calm = rng.random() < 1 / 6
    if not plan.is_calm:
        _spoil(plan, rng)
    plan.takes_batches, plan.alike = rng.random() < 0.4, rng.choice([0.0, 0.0, 0.3, 0.8])
    if not plan.is_calm and rng.random() < 0.3:
        plan.traits[BAD] = rng.uniform(0.05, 0.3)
    return plan


def _spoil(plan: Plan, rng: random.Random) -> None:
    def some(chance: float, most: float) -> float:
        return rng.uniform(0, most) if rng.random() < chance else 0.0

    plan.chances = Chances(
        produce_failed=some(0.4, 0.06),
        ack_lost=some(0.4, 0.06),
        produce_delayed=some(0.4, 0.08),
        crash=some(0.5, 0.01),
        commit_failed=some(0.3, 0.1),
        backend_failed=some(0.7, 0.3),
        backend_hangs=some(0.3, 0.05),
    )
    plan.traits = {HUGE: some(0.2, 0.1), DEEP: some(0.2, 0.1), STUBBORN: some(0.4, 0.2), POISON: 0.0}
    plan.traits[WIDE] = some(0.2, 0.15)
    if rng.random() < 0.06:
        plan.traits[POISON] = 1.5 / plan.tasks
    plan.skew_ms = tuple(rng.choice([0, 0, -120, 120]) for _ in range(3))
    for model in MODELS:
        if rng.random() < 0.25:
            begin = rng.uniform(0, plan.until_s)
            plan.outages[model] = [(begin, begin + rng.choice([2.0, 10.0, 45.0]))]
    if rng.random() < 0.2:
        begin = rng.uniform(0, plan.until_s)
        plan.brokers_away = [(begin, begin + rng.uniform(1.0, 8.0))]
    plan.pauses = [
        (rng.uniform(1, plan.until_s), rng.choice([3.0, 8.0, 15.0])) for _ in range(rng.choice([0, 0, 1, 2]))
    ]
    plan.crashes = [rng.uniform(1, plan.until_s) for _ in range(rng.choice([0, 0, 1, 2]))]


class Scenario:
    """One run of a plan. `run` raises Violation where a promise is broken."""

    def __init__(
        self,
        seed: int,
        plan: Plan | None = None,
        *,
        crash_at: int | None = None,
        trace: bool = False,
    ) -> None:
        self.plan = plan = plan or plan_of(seed)
        self.world = world = World(seed, plan.chances, crash_at=crash_at, lines=[] if trace else None)
        self.checks = Checks(
            world,
            tiers=plan.tiers,
            tries=plan.tries,
            slots=plan.slots,
            skew_ms=max(abs(skew) for skew in plan.skew_ms),
            is_calm=plan.is_calm,
        )
        self.broker = Broker(world, self.checks, dict(enumerate(plan.skew_ms)))
        names = self.broker.names
        self.lanes = {
            lane: Group(world, self.broker, names.group(lane.value), [names.requests(lane)], plan.partitions)
            for lane in plan.lanes
        }
        retry_topics = [names.retry(tier) for tier in RetryTier]
        self.retries = Group(world, self.broker, names.group("retry"), retry_topics, plan.partitions)
        self.servers = {
            f"s-{model}": Server(
                world, f"s-{model}", model, plan.slots, plan.slow_s, plan.outages.get(model, ()), plan.takes_batches
            )
            for model in MODELS
        }
        self.settings = Settings.model_validate(
            {
                "backends": [
                    {
                        "name": name,
                        "url": "http://s",
                        "models": [s.model],
                        "max_concurrency": plan.slots,
                        "timeout_s": 20,
                    }
                    for name, s in self.servers.items()
                ],
                "retry": {
                    "in_place_tries": plan.tries,
                    "budget_ratio": _RATIO,
                    "tiers": ["5s", "60s", "600s"][: plan.tiers],
                },
            }
        )
        self.gateway = Gateway(world, self.broker, self.checks, plan.partitions, list(plan.lanes))
        self.workers: list[Worker] = []
        self._number = 0

    # The run

    def run(self) -> None:
        """Run the plan, then drain without faults, then check the end. Raises: Violation."""
        world, plan = self.world, self.plan
        for number in range(plan.workers):
            world.after(world.rng.uniform(0.0, 0.5), self._start_worker if number else self._start_first)
        self._submit_all()
        self._plan_faults()
        world.run(plan.until_s)
        world.has_faults = False
        world.say("world", "no more faults")
        self._let_it_end()
        for worker in self.workers:
            self.checks.retried(worker, worker.dispatch.in_place, _RATIO)
        self.checks.at_the_end(list(self.live), self._lags())

    @property
    def live(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def _let_it_end(self) -> None:
        """Give everything time; what a failed commit left behind is delivered again by one more rebalance."""
        world = self.world
        quiet = 0
        while quiet < 3 and world.now_s < _MOST_S:
            world.run(world.now_s + _LOOK_S)
            quiet = quiet + 1 if self._is_quiet() else 0
        if self._lags() and world.fired["commit failed"]:
            self._start_worker()
            world.run(world.now_s + 15 * _LOOK_S)

    def _is_quiet(self) -> bool:
        if any(key not in self.checks.firsts for key in self.checks.requests):
            return False
        if any(worker.leftovers or worker.unfinished or worker.is_paused for worker in self.live):
            return False
        return not self._lags() or (self.world.fired["commit failed"] > 0 and self._were_read())

    def _were_read(self) -> bool:
        return self.world.now_s > self.plan.until_s + 15 * _LOOK_S

    def _lags(self) -> dict[Place, str]:
        lags = {}
        for group in (*self.lanes.values(), self.retries):
            for place in group.places:
                at, end = group.committed.get(place, 0), self.broker.end(place)
                if at < end:
                    lags[place] = f"{at} of {end}"
        return lags

    # Workers

    def _start_first(self) -> None:
        self._start_worker()

    def _start_worker(self) -> None:
        self._number += 1
        plan = self.plan
        worker = Worker(
            self.world,
            self.broker,
            f"w{self._number}",
            self.settings,
            self.servers,
            self.lanes,
            self.retries,
            self.checks,
            Bounds(plan.span, plan.waiting, plan.held, plan.own_room),
            on_ended=self._ended,
        )
        self.workers.append(worker)
        worker.start()

    def _ended(self, _worker: Worker) -> None:
        """Its supervisor starts another one."""
        self.world.after(self.world.rng.uniform(0.3, 4.0), self._start_worker)

    def _some_worker(self) -> Worker | None:
        able = [worker for worker in self.live if not worker.is_paused and not worker.is_draining]
        return self.world.rng.choice(able) if able else None

    # What happens

    def _submit_all(self) -> None:
        world, rng, plan = self.world, self.world.rng, self.plan
        texts = [f"shared {n}" for n in range(2)]
        for number in range(plan.tasks):
            lane, partition = rng.choice(plan.lanes), rng.randrange(plan.partitions)
            at_s = rng.uniform(0.0, plan.until_s * 0.6)
            task_id = f"t{number}"
            if rng.random() < plan.invalid:
                world.at(at_s, self._invalid(lane, partition))
                continue
            trait = next((name for name, chance in plan.traits.items() if rng.random() < chance), "plain")
            is_shared = trait == "plain" and not plan.is_calm and rng.random() < 0.15
            text = rng.choice(texts) if is_shared else f"{trait} {number}"
            request = self._request(task_id, text, use_cache=is_shared)
            if plan.alike and trait == "plain" and rng.random() < plan.alike:
                request = self._alike(request)
            world.at(at_s, self._submission(lane, partition, task_id, request))
            if not plan.is_calm and rng.random() < 0.08:
                world.fire("submitted twice")
                world.at(at_s + rng.uniform(0.0, 8.0), self._submission(lane, partition, task_id, request))
            if rng.random() < plan.cancels / plan.tasks:
                world.at(at_s + rng.uniform(0.0, 6.0), self._cancel((task_id, partition)))

    def _request(self, task_id: str, text: str, *, use_cache: bool) -> InferenceTask:
        rng = self.world.rng
        messages: Any = [{"role": "user", "content": text}]
        wrong_ms = rng.randint(-10_000_000, 10_000_000)
        lives_ms = rng.choice([None, None, None, None, 300, 3_000, 12_000, 60_000])
        return InferenceTask.model_construct(
            messages=messages,
            task_id=task_id,
            model=rng.choice(["auto", "auto", *MODELS]),
            parameters={"max_tokens": rng.choice([16, 32])},
            created_at_ms=EPOCH_MS + wrong_ms,
            deadline_at_ms=None if lives_ms is None else EPOCH_MS + wrong_ms + lives_ms,
            cache=CachePolicy(mode="use" if use_cache else "bypass"),
        )

    def _alike(self, request: InferenceTask) -> InferenceTask:
        """Return a request of another id and deadline as one of two that coalesce, and are not answered from the cache."""
        text = f"alike {self.world.rng.randrange(2)}"
        same = {"model": "auto", "parameters": {"max_tokens": 16}, "cache": CachePolicy(mode="refresh")}
        return request.model_copy(update={"messages": [{"role": "user", "content": text}], **same})

    def _submission(self, lane: Lane, partition: int, task_id: str, request: InferenceTask) -> _Do:
        return lambda: self.gateway.submit(lane, partition, task_id, request)

    def _invalid(self, lane: Lane, partition: int) -> _Do:
        def submit() -> None:
            self.world.fire("no request")
            self.gateway.submit(lane, partition, "", None)

        return submit

    def _cancel(self, key: TaskKey) -> _Do:
        return lambda: self.gateway.cancel(key)

    def _plan_faults(self) -> None:
        world, plan = self.world, self.plan
        for at_s, seconds in plan.pauses:
            world.at(at_s, self._pause(seconds))
        for at_s in plan.crashes:
            world.at(at_s, self._crash)
        for at_s in plan.drains:
            world.at(at_s, self._drain)
        for at_s in plan.joins:
            world.at(at_s, self._start_worker)
        for begin_s, end_s in plan.brokers_away:
            world.at(begin_s, self._brokers_away(end_s))
        for server in self.servers.values():
            for begin_s, end_s in server.outages:
                world.at(begin_s + world.rng.uniform(0.0, 2.0), self._probe_all(server.name))
                world.at(end_s + world.rng.uniform(0.0, 2.0), self._probe_all(server.name))

    def _pause(self, seconds: float) -> _Do:
        def pause() -> None:
            worker = self._some_worker()
            if worker is not None:
                worker.pause(seconds)

        return pause

    def _crash(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.world.say(worker.id, "is killed")
            self.world.fire("kill", disrupts=True)
            worker.crash()

    def _drain(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            worker.drain()

    def _brokers_away(self, until_s: float) -> _Do:
        def away() -> None:
            self.world.say("brokers", f"are away until {until_s:.1f} s")
            self.world.fire("brokers away", disrupts=True)
            self.broker.away_until_s = until_s

        return away

    def _probe_all(self, name: str) -> _Do:
        def probe() -> None:
            for worker in self.live:
                self.world.after(0.0, partial(worker.probe, name), worker)

        return probe
