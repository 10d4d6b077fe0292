"""A run of the small world: clients, two gateways, an operator and a nemesis around the workers. Returns its history."""

from __future__ import annotations

from functools import partial

from tests.faults.bugs import Bug
from tests.faults.bugs.worker import Group
from tests.faults.bugs.world import EPOCH_MS, LANE, PARTITIONS, Line, Request, World

_LOAD_MS, _FAULTS_MS, _MOST_MS = 2_500, (300, 2_800), 25_000
_TENANTS = ("ward1", "ward2")


def history(seed: int, bug: Bug | None = None, *, tasks: int = 40) -> list[Line]:
    """Return the lines of a run; the same for the same arguments. Without a bug everything in it is as promised."""
    world = World(seed, bug)
    scenario = _Scenario(world)
    for number in range(tasks):
        world.after(world.some_ms(0, _LOAD_MS), partial(scenario.submit, number))
    for number in range(3):
        scenario.plan_fault(number)
    world.after(3_200, scenario.replay)
    world.run(lambda: scenario.is_over, _MOST_MS)
    return world.lines()


class Gateway:
    """One incarnation of a gateway: it answers from the logs."""

    def __init__(self, world: World) -> None:
        self.world, self.alive, self.since_ms = world, True, world.now_ms

    def status(self, request: Request, tenant: str) -> Line:
        world = self.world
        if tenant != request.tenant and not world.has(Bug.TENANT_NOT_CHECKED):
            return {"status": "unknown"}
        if world.has(Bug.UNKNOWN_WHILE_CATCHING_UP) and EPOCH_MS < self.since_ms > world.now_ms - 300:
            return {"status": "unknown"}
        results = world.results[request.task]
        if request.due_ms and world.now_ms > request.due_ms and world.has(Bug.EXPIRED_SHOWN_FOR_A_COMPLETED_TASK):
            return {"status": "expired"}
        if world.has(Bug.TOLD_BEFORE_DURABLE) and not results and request.task in world.pending:
            return _told(world.pending[request.task])
        if results:
            return _told(results[-1 if world.has(Bug.LAST_WRITER_WINS) else 0])
        started = world.started_ms[request.task]
        if world.has(Bug.PROCESSING_FORGOTTEN_BY_A_RESTART):
            started = [at_ms for at_ms in started if at_ms >= self.since_ms]
        return {"status": "processing" if started else "queued"}


def _told(result: Line) -> Line:
    return {"status": result["outcome"], "digest": result["digest"]}


class _Scenario:
    def __init__(self, world: World) -> None:
        self.world = world
        self.group = Group(world, 2)
        self.gateways = [Gateway(world), Gateway(world)]
        self.open = 0  # flows of clients that are not over
        self.replays = True

    @property
    def is_over(self) -> bool:
        quiet = self.world.now_ms > EPOCH_MS + 4_500 and not self.open and not self.replays
        return quiet and self.group.is_idle

    # Clients.

    def submit(self, number: int) -> None:
        world = self.world
        request = self.make(number)
        world.requests[request.task] = request
        self.open += 1
        world.see("submitted", who="client-1", nonce=request.nonce, tenant=request.tenant)
        gateway = world.rng.choice(self.gateways)
        over = False

        def accepted() -> None:
            nonlocal over
            if not over:
                over = True
                world.see("acknowledged", who="client-1", task=request.task)
                self.follow(request)

        def unanswered() -> None:
            nonlocal over
            if not over:
                over = True
                self.open -= 1
                world.see("unanswered", who="client-1", nonce=request.nonce)

        row: Line = {"task": request.task, "tenant": request.tenant, "nonce": request.nonce}
        if request.due_ms is not None:
            row["deadline_ms"] = request.due_ms
        world.after(200, unanswered)
        if gateway.alive:
            world.send(gateway, "requests", "request", LANE, request.partition, accepted, **row)
            if world.has(Bug.ACCEPTED_BEFORE_ACK):
                world.after(1, accepted)

    def make(self, number: int) -> Request:
        rng = self.world.rng
        request = Request(
            task=f"task-{number}",
            tenant=rng.choice(_TENANTS),
            nonce=f"nonce-{number}x",
            partition=rng.randrange(PARTITIONS),
            takes_ms=rng.uniform(20, 200),
        )
        kind = rng.random()
        if kind < 0.15:
            request.takes_ms = rng.uniform(800, 2_800)
        elif kind < 0.25:
            request.fails = rng.choice((1, 2))
        elif kind < 0.33:
            request.refused = True
        elif kind < 0.38:
            request.unreadable = True
        elif kind < 0.40:
            request.crashes = True
        if rng.random() < 0.3:
            request.due_ms = self.world.now_ms + rng.uniform(200, 1_500)
        return request

    def follow(self, request: Request) -> None:
        """Read a task until it has ended, and some times more; some are cancelled meanwhile."""
        world = self.world
        self.read("client-1", request, 2)
        world.after(world.some_ms(0, 1_500), lambda: self.look(request))
        if world.rng.random() < 0.25:
            world.after(world.some_ms(50, 900), lambda: self.cancel(request))
        if request.due_ms is not None:
            world.after(max(request.due_ms - world.now_ms, 0) + world.some_ms(20, 400), lambda: self.expire(request))

    def look(self, request: Request) -> None:
        """Another client looks once, and so does another tenant's."""
        self.open += 2
        self.read("client-2", request, 0)
        other = next(tenant for tenant in _TENANTS if tenant != request.tenant)
        self.read("client-3", request, 0, tenant=other)

    def read(self, who: str, request: Request, more: int, *, tenant: str | None = None) -> None:
        world = self.world
        gateway, asked_ms = world.rng.choice(self.gateways), world.now_ms
        tenant = tenant or request.tenant

        def answer() -> None:
            told = gateway.status(request, tenant) if gateway.alive else None
            world.after(world.some_ms(1, 5), lambda: hear(told))

        def hear(told: Line | None) -> None:
            left = more
            if told is None:
                world.see("unread", who=who, task=request.task)
            else:
                world.see("read", who=who, task=request.task, tenant=tenant, asked_ms=asked_ms, **told)
                left -= told["status"] not in ("queued", "processing")
            if more and left and world.now_ms < EPOCH_MS + 8_000:
                world.after(world.some_ms(40, 200), lambda: self.read(who, request, left))
            else:
                self.open -= 1

        world.after(world.some_ms(1, 5), answer)

    def cancel(self, request: Request) -> None:
        gateway = self.world.rng.choice(self.gateways)
        open_ = not self.world.first(request.task)
        if gateway.alive and request.task in self.world.sources and (open_ or self.world.rng.random() < 0.3):
            self.world.result(gateway, request, "cancelled", lambda: None)

    def expire(self, request: Request) -> None:
        """The gateway ends what is over its deadline; it may be beaten to it."""
        gateway = self.world.rng.choice(self.gateways)
        if gateway.alive and request.task in self.world.sources and not self.world.first(request.task):
            self.world.result(gateway, request, "expired", lambda: None)

    # The operator.

    def replay(self) -> None:
        world = self.world
        self.replays = False
        for task in [task for task, results in world.results.items() if results and results[0]["outcome"] == "failed"][
            :3
        ]:
            old = world.requests[task]
            world.see("replayed", who="operator", task=task)
            name = task if world.has(Bug.REPLAY_UNDER_THE_OLD_ID) else f"{task}:replay.{old.partition}.0"
            world.requests[name] = Request(name, old.tenant, old.nonce, old.partition, 50)
            row = {"task": name, "tenant": old.tenant, "nonce": old.nonce}
            world.append("requests", "request", LANE, old.partition, **row)

    # The nemesis.

    def plan_fault(self, number: int) -> None:
        world = self.world
        kind = world.rng.choice(("kill", "pause", "drain", "gateway"))
        name = f"{kind}-{number}"
        world.fault(name, "planned")
        world.after(world.some_ms(*_FAULTS_MS), lambda: self.break_something(name, kind))

    def break_something(self, name: str, kind: str) -> None:
        world = self.world
        workers = [each for each in self.group.members if each.alive and not each.paused and not each.drains]
        if kind != "gateway" and not workers:
            world.after(100, lambda: self.break_something(name, kind))
            return
        world.fault(name, "begun")
        world.fault(name, "evidence")
        takes_ms = 0.0
        if kind == "gateway":
            self.restart_gateway()
        elif kind == "kill":
            world.rng.choice(workers).crash()
        elif kind == "drain":
            world.rng.choice(workers).drain()
        else:
            takes_ms = world.some_ms(100, 900)
            world.rng.choice(workers).pause(takes_ms)
        world.after(takes_ms, lambda: world.fault(name, "ended"))

    def restart_gateway(self) -> None:
        number = self.world.rng.randrange(2)
        self.gateways[number].alive = False

        def start() -> None:
            self.gateways[number] = Gateway(self.world)

        self.world.after(150, start)
