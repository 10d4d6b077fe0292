"""A worker of the small world: fetches, batches, calls, writes, acknowledges in order, and does each wrongly when told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from tests.faults.bugs import Bug
from tests.faults.bugs.world import LANE, LIMIT, PARTITIONS, RETRY, Line, Request, World

Place = tuple[str, int]
STARTS = 3
_SPAN, _BATCH, _POLL_MS, _COMMIT_MS, _RETRY_MS, _SESSION_MS = 8, 3, 20, 60, 80, 400


@dataclass
class Intake:
    """What a worker has of a place; `open` maps the fetched offsets above the committed one to whether they are finished."""

    position: int
    committed: int
    open: dict[int, bool] = field(default_factory=dict)


@dataclass(eq=False)
class Item:
    """A request that a worker has taken in."""

    place: Place
    intake: Intake
    offset: int
    request: Request


class Worker:
    """One incarnation: it dies once, and another takes its name."""

    def __init__(self, world: World, group: Group, name: str) -> None:
        self.world, self.group, self.name = world, group, name
        self.alive, self.paused, self.drains = True, False, False
        self.generation = 0
        self.owned: dict[Place, Intake] = {}
        self.window: list[Item] = []
        self.running: dict[str, Item] = {}
        self._batches = count()
        world.after(_POLL_MS, self.poll)
        world.after(_COMMIT_MS, self.commit_regularly)

    # Intake.

    def assign(self, places: set[Place], generation: int) -> None:
        for place in set(self.owned) - places:
            if self.world.has(Bug.WINDOW_LOST_ON_REBALANCE) and any(item.place == place for item in self.window):
                self.world.commit(place, self.owned[place].position, generation)
            del self.owned[place]
        self.window = [item for item in self.window if item.place in self.owned]
        self.generation = generation
        for place in places - set(self.owned):
            start = self.world.committed[place]
            self.owned[place] = Intake(start, start)

    def poll(self) -> None:
        if not self.alive:
            return
        self.world.after(_POLL_MS, self.poll)
        if self.paused:
            return
        self.leave_ended_calls()
        if not self.drains:
            for place, intake in list(self.owned.items()):
                self.fetch(place, intake)
            self.dispatch()

    def fetch(self, place: Place, intake: Intake) -> None:
        log = self.world.places[place]
        while intake.position < len(log) and len(intake.open) < _SPAN:
            line = log[intake.position]
            if place[0] == RETRY and line["at_ms"] + _RETRY_MS > self.world.now_ms:
                return
            item = Item(place, intake, intake.position, self.world.requests[line["task"]])
            intake.position += 1
            intake.open[item.offset] = False
            self.take(item)

    def take(self, item: Item) -> None:
        world, request = self.world, item.request
        if world.first(request.task):
            self.complete(item)
        elif request.unreadable:
            self.complete(item) if world.has(Bug.UNREADABLE_SKIPPED) else self.fail(item)
        elif len(world.started_ms[request.task]) >= STARTS + request.fails:
            if world.has(Bug.QUARANTINE_WITHOUT_OUTCOME):
                self.dead_letter(item, lambda: self.complete(item))
            else:
                self.fail(item)
        else:
            self.window.append(item)

    # Dispatch.

    def dispatch(self) -> None:
        most = LIMIT if self.world.has(Bug.MORE_CALLS_THAN_THE_LIMIT) else LIMIT // 2
        while taken := self.distinct()[: min(_BATCH, most - len(self.running))]:
            self.window = [item for item in self.window if item not in taken]
            batch = [item for item in taken if self.is_due(item)]
            name = f"{self.name}-{next(self._batches)}"
            for number, item in enumerate(batch):
                mates = batch[number:] + batch[:number]
                self.begin(item, name, mates)

    def distinct(self) -> list[Item]:
        """Return what waits, each task once; a redelivery of what waits or runs waits for that one's end."""
        running = {item.request.task for item in self.running.values()}
        first = {item.request.task: item for item in reversed(self.window) if item.request.task not in running}
        return list(reversed(first.values()))

    def is_due(self, item: Item) -> bool:
        world, request = self.world, item.request
        if request.due_ms is not None and world.now_ms >= request.due_ms:
            if world.has(Bug.DISPATCH_AFTER_THE_DEADLINE):
                return True
            world.result(self, request, "expired", lambda: self.complete(item))
            return False
        if world.first(request.task):
            self.complete(item)
            return False
        return True

    def begin(self, item: Item, batch: str, mates: list[Item]) -> None:
        world, request = self.world, item.request
        world.started_ms[request.task].append(world.now_ms)
        world.append("progress", "started", "t.progress", request.partition, tasks=[request.task], batch=batch)
        call = world.call(request, lambda: self.answered(call, batch, mates))
        self.running[call] = item
        if request.crashes:
            world.after(15, self.crash)

    def leave_ended_calls(self) -> None:
        world = self.world
        if world.bug in (Bug.CANCEL_IGNORED_WHILE_RUNNING, Bug.RUNS_ON_AFTER_THE_DEADLINE):
            return
        for call, item in list(self.running.items()):
            first, due_ms = world.first(item.request.task), item.request.due_ms
            if first is not None or (due_ms is not None and world.now_ms > due_ms):
                del self.running[call]
                world.hang_up(call)
                if first is not None:
                    self.complete(item)
                else:
                    world.result(self, item.request, "expired", partial(self.complete, item))

    # Answers.

    def answered(self, call: str, batch: str, mates: list[Item]) -> None:
        world = self.world
        if self.paused:
            world.after(_POLL_MS, lambda: self.answered(call, batch, mates))
            return
        item = self.running.pop(call, None)
        if item is None or not self.alive:
            return
        request = item.request
        if request.refused or len(world.started_ms[request.task]) <= request.fails:
            self.failed(item)
            return
        off = world.has(Bug.DEMUX_OFF_BY_ONE)
        fields: Line = {"answer": f"echo {mates[-1 if off else 0].request.nonce}", "batch": batch}
        if world.has(Bug.SOURCE_OF_A_BATCH_MATE):
            fields["source"] = world.sources[mates[-1].request.task]
        if world.has(Bug.RESULT_ON_ANOTHER_PARTITION) and world.rng.random() < 0.2:
            fields["partition"] = (request.partition + 1) % PARTITIONS
        self.write(item, **fields)
        if world.has(Bug.ANSWERED_TWICE) and len(mates) > 1:
            world.result(self, request, "completed", _nothing, **{**fields, "answer": f"and {fields['answer']}"})
        if world.has(Bug.RESULT_NOBODY_ASKED_FOR) and world.rng.random() < 0.1:
            world.result(self, request, "completed", _nothing, **fields, task=f"ghost-of-{request.task}")

    def write(self, item: Item, **fields: Any) -> None:
        if self.world.has(Bug.COMMIT_BEFORE_PRODUCE_IS_ACKNOWLEDGED):
            self.complete(item)
            self.commit()
        self.world.result(self, item.request, "completed", lambda: self.complete(item), **fields)

    def failed(self, item: Item) -> None:
        """A try failed: for good, or to be tried again later."""
        world, request = self.world, item.request
        if world.has(Bug.ACK_IN_FINALLY):
            self.complete(item)
        elif request.refused:
            self.fail(item)
        elif world.has(Bug.RETRY_RECORD_DROPPED):
            self.complete(item)
        else:
            task, number = request.task, request.partition
            world.send(self, "retry", "retry", RETRY, number, lambda: self.complete(item), task=task)

    def fail(self, item: Item) -> None:
        """Dead letter, then result, then acknowledgement."""
        world, request = self.world, item.request

        def result(then: Callable[[], None]) -> None:
            world.result(self, request, "failed", then)

        if world.has(Bug.NO_DEAD_LETTER):
            result(lambda: self.complete(item))
        elif world.has(Bug.DEAD_LETTER_AFTER_THE_RESULT):
            result(lambda: self.dead_letter(item, lambda: self.complete(item)))
        elif world.has(Bug.DEAD_LETTER_AFTER_THE_COMMIT):

            def late() -> None:
                self.complete(item)
                world.after(300, lambda: self.dead_letter(item, _nothing))

            result(late)
        else:
            self.dead_letter(item, lambda: result(lambda: self.complete(item)))

    def dead_letter(self, item: Item, then: Callable[[], None]) -> None:
        task, number = item.request.task, item.request.partition
        self.world.send(self, "dead", "dead", "dlq.t.requests", number, then, task=task)

    # Acknowledgement.

    def complete(self, item: Item) -> None:
        if self.world.has(Bug.HEAD_NEVER_ACKNOWLEDGED) and item.offset == 3:
            return
        if item.offset in item.intake.open:
            item.intake.open[item.offset] = True

    def commit_regularly(self) -> None:
        if not self.alive:
            return
        self.world.after(_COMMIT_MS, self.commit_regularly)
        if not self.paused:
            self.commit()

    def commit(self) -> None:
        for place, intake in list(self.owned.items()):
            done = [offset for offset, finished in intake.open.items() if finished]
            if self.world.has(Bug.COMMIT_HIGHEST_SEEN):
                head = max(done, default=-1) + 1
            else:
                head = min(
                    (offset for offset, finished in intake.open.items() if not finished), default=intake.position
                )
            if head <= intake.committed:
                continue
            if not self.world.commit(place, head, self.generation):
                self.group.rejoin(self)
                return
            intake.committed = head
            intake.open = {offset: finished for offset, finished in intake.open.items() if offset >= head}

    # Ends.

    def crash(self) -> None:
        if not self.alive:
            return
        self.alive = False
        for call in self.running:
            self.world.hang_up(call)
        self.world.after(_SESSION_MS, lambda: self.group.without(self))
        self.world.after(self.world.some_ms(150, 600), self.group.start)

    def drain(self) -> None:
        """Stop intake, finish what runs, commit, leave."""
        if not self.alive or self.paused:
            return
        self.drains = True
        if self.world.has(Bug.DRAIN_COMMITS_WHAT_IT_DROPS):
            for place, intake in self.owned.items():
                self.world.commit(place, intake.position, self.generation)
            self.leave()
            return
        self.window.clear()
        self.world.after(_POLL_MS, self.leave_when_done)

    def leave_when_done(self) -> None:
        if self.running and self.alive:
            self.world.after(_POLL_MS, self.leave_when_done)
        elif self.alive:
            self.world.after(100, self.leave)

    def leave(self) -> None:
        if not self.alive:
            return
        self.commit()
        self.alive = False
        for call in self.running:
            self.world.hang_up(call)
        self.group.without(self)
        self.world.after(self.world.some_ms(50, 300), self.group.start)

    def pause(self, for_ms: float) -> None:
        """Stop like a process that gets SIGSTOP; the group goes on without it."""
        self.paused = True
        self.world.after(_SESSION_MS, lambda: self.group.without(self) if self.paused else None)
        self.world.after(for_ms, self.resume)

    def resume(self) -> None:
        self.paused = False


class Group:
    """The workers that live, and who reads what."""

    def __init__(self, world: World, size: int) -> None:
        self.world = world
        self.members: list[Worker] = []
        self._numbers = count()
        for _ in range(size):
            self.start()

    def start(self) -> None:
        self.members.append(Worker(self.world, self, f"worker-{next(self._numbers)}"))
        self.balance()

    def rejoin(self, worker: Worker) -> None:
        """A worker learned that its generation is over: what it held is not its own any more."""
        worker.owned.clear()
        worker.window.clear()
        if worker not in self.members:
            self.members.append(worker)
        self.balance()

    def without(self, worker: Worker) -> None:
        if worker in self.members:
            self.members.remove(worker)
            self.balance()

    def balance(self) -> None:
        generation = self.world.next_generation()
        places = [(topic, number) for topic in (LANE, RETRY) for number in range(PARTITIONS)]
        awake = [worker for worker in self.members if worker.alive and not worker.paused]
        for number, worker in enumerate(awake):
            mine = {place for at, place in enumerate(places) if (at + generation) % len(awake) == number}
            worker.assign(mine, generation)

    @property
    def is_idle(self) -> bool:
        """Whether all that is in the logs is committed and nothing runs."""
        world = self.world
        return not world.calls and all(world.committed[place] >= len(log) for place, log in world.places.items())


def _nothing() -> None:
    return None
