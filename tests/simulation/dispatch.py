"""`agents/dispatch.py` in virtual time: carries out what the Dispatcher decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from agents.delivery import Delivery, Owner
from agents.retries import headers_of
from schemas.cache import CacheEntry
from schemas.codec import DecodeError
from schemas.progress import Released, Started
from schemas.result import Outcome, Result, ResultError
from schemas.topics import Lane, TopicNames
from streams import outcome
from streams.dispatcher import MOST_CRASHES, Abort, Batch, Dispatcher, Drop, Effect, Finish, HandOver, Send
from streams.errors import BackendProtocolError, InternalError, ServingError
from streams.ports import Answer
from streams.task import Task, TaskKey
from tests.simulation.calls import Calls
from tests.simulation.checks import Checks
from tests.simulation.history import History
from tests.simulation.producing import Producer, ProducerClosed, Write
from tests.simulation.serving import DEEP, HUGE, WIDE, Server, answer_to, text_of
from tests.simulation.world import Actor, Process, Signal, Sleep, Steps, World
from wire.producing import RecordTooLarge

_LET_GO_S = 2.0


class DispatchLoop:
    """The shell around the Dispatcher of one worker."""

    def __init__(
        self,
        world: World,
        actor: Actor,
        dispatcher: Dispatcher,
        servers: Mapping[str, Server],
        producer: Producer,
        history: History,
        names: TopicNames,
        checks: Checks,
        *,
        now: Callable[[], float],
        after_let_go: Callable[[], Steps[None]],
        on_room: Callable[[], None],
        on_backend_down: Callable[[str], None],
    ) -> None:
        self.world, self.actor, self.dispatcher, self._servers = world, actor, dispatcher, servers
        self._producer, self._history, self._names, self.checks = producer, history, names, checks
        self._now, self._after_let_go, self._on_room = now, after_let_go, on_room
        self._on_backend_down = on_backend_down
        self._finishing: dict[TaskKey, Task] = {}
        self._calls = Calls(
            world, actor, dispatcher, servers, history, checks, now=now, report=self._report, spawn=self._spawn
        )
        self._background: list[Process] = []
        self._is_scheduled = False
        self._timer = 0
        self._settled = Signal()
        self.in_place = 0

    # What the intake gives

    def accept(self, task: Task) -> None:
        finishing = self._finishing.get(task.key)
        if finishing is not None:
            self.world.fire("delivered while its outcome is written")
            self._attach(finishing, task)
            return
        now_s = self._now()
        now_ms = self.dispatcher.clock.ms(now_s)
        is_new = not self.dispatcher.holds(task.key)
        elsewhere = is_new and self._history.redelivery.taken_in(task, now_s=now_s, now_ms=now_ms)
        if not is_new:
            self.world.fire("delivered while it is held")
        if elsewhere:
            self.world.fire("waits for another worker")
        if task.crashes == MOST_CRASHES:
            self.world.fire("suspected")
        self.world.say(self.actor.id, "accepts", task, "elsewhere" if elsewhere else "", f"crashes={task.crashes}")
        self._perform(self.dispatcher.accept(task, now_s=now_s, elsewhere=elsewhere))
        self.kick()

    def _attach(self, held: Task, task: Task) -> None:
        held.deliveries.extend(task.deliveries)

    def ended(self, key: TaskKey) -> None:
        if key not in self._finishing and self.dispatcher.holds(key):
            self._perform(self.dispatcher.cancel(key))
            self.kick()

    def reconsider(self) -> None:
        now_s = self._now()
        still = partial(self._history.redelivery.still_waits, now_s=now_s, now_ms=self.dispatcher.clock.ms(now_s))
        self._perform(self.dispatcher.reconsider(still, now_s=now_s))
        self.kick()

    def reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        self._spawn(self._reject(delivery, error, task_id))

    def is_held(self, key: TaskKey) -> bool:
        return self.dispatcher.holds(key) or key in self._finishing

    def held(self, lane: Lane) -> int:
        return self.dispatcher.loads.lanes[lane].requests

    def withdraw(self, owner: Owner, *, running: bool) -> None:
        def keep(delivery: object) -> bool:
            return not isinstance(delivery, Delivery) or delivery.owner is not owner

        gone = self.dispatcher.withdraw(keep, running=running)
        if gone:
            self.world.say(self.actor.id, "gives up", gone)
        self._on_room()

    def let_go(self, owner: Owner, timeout_s: float) -> Steps[None]:
        self.withdraw(owner, running=False)
        deadline_s = self._now() + timeout_s
        while self._runs_for(owner) and (left_s := deadline_s - self._now()) > 0:
            self._settled.clear()
            yield self._settled.wait(left_s)
        self.withdraw(owner, running=False)
        if self._runs_for(owner):
            self.world.fire("let go while running")
            told = Signal()
            self._spawn(self._tell(told))
            yield told.wait(_LET_GO_S)

    def _tell(self, told: Signal) -> Steps[None]:
        try:
            yield from self._after_let_go()
        except ProducerClosed:
            self.world.fire("snapshot not sent on revoke")
        told.set()

    def _runs_for(self, owner: Owner) -> bool:
        tasks = [*self.dispatcher.running, *self.dispatcher.following, *self._finishing.values()]
        return any(isinstance(d, Delivery) and d.owner is owner for task in tasks for d in task.deliveries)

    @property
    def in_flight(self) -> list[str]:
        return [task.task_id for task in self.in_hand]

    @property
    def in_hand(self) -> list[Task]:
        """Return the tasks of `in_flight`."""
        return [*self.dispatcher.running, *self.dispatcher.following, *self._finishing.values()]

    @property
    def leftovers(self) -> dict[str, int]:
        sizes = {"tasks": len(self.dispatcher), "finishing": len(self._finishing), "calls": len(self._calls)}
        sizes["in flight"] = sum(state.busy for state in self.dispatcher.backends.values())
        return {name: size for name, size in sizes.items() if size}

    # The loop

    def kick(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.world.after(0.0, self._step, self.actor)

    def _step(self) -> None:
        self._is_scheduled = False
        now_s = self._now()
        self._perform(self.dispatcher.step(now_s))
        self._timer += 1
        due_s = self.dispatcher.next_deadline_s
        if due_s is not None:
            number = self._timer
            self.world.after(max(due_s - now_s, 0.0), lambda: self._timed(number), self.actor)

    def _timed(self, number: int) -> None:
        if number == self._timer:
            self.kick()

    def perform(self, effects: Iterable[Effect]) -> None:
        self._perform(effects)
        self.kick()

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, Abort):
                self._on_room()
            if isinstance(effect, Send):
                self.checks.sent(self.actor, effect.batch, self._now())
                self._spawn(self._run_batch(effect.batch))
            elif isinstance(effect, Finish):
                self._finishing[effect.task.key] = effect.task
                self._spawn(self._finish(effect))
            elif isinstance(effect, HandOver):
                if effect.error is None:
                    self.checks.parked(self._servers.values(), effect.task)
                else:
                    self.checks.came_to_nothing(self.actor, effect.task)
                    self._release(effect.task)
                self._finishing[effect.task.key] = effect.task
                self._spawn(self._hand_over(effect))
            elif isinstance(effect, Drop):
                self.checks.came_to_nothing(self.actor, effect.task)
                self._release(effect.task)
                self._acknowledge(effect.task)
            else:
                self._calls.give_up(effect.task)

    # A batch

    def _run_batch(self, batch: Batch) -> Steps[None]:
        self._announce(batch)
        yield Sleep(self.world.rng.uniform(0.0, 0.05) if self.world.rng.random() < 0.2 else 0.0)
        self._calls.start(batch)

    def _announce(self, batch: Batch) -> None:
        rows: dict[int, list[tuple[str, str, int, int]]] = {}
        for task in batch.tasks:
            source = task.source
            rows.setdefault(source.partition, []).append((task.task_id, source.topic, source.offset, task.attempts))
        at_ms = batch.tasks[0].dispatched_ms or 0
        for partition, tasks in rows.items():
            started = Started(batch.id, self.actor.id, batch.backend, tasks, at_ms)
            self._producer.post(self._names.progress, partition, batch.id, started)

    def _report(self, batch: Batch, task: Task, reply: Answer | ServingError) -> Steps[None]:
        if isinstance(reply, Answer):
            effects = self.dispatcher.answered(task, reply, now_s=self._now())
        else:
            effects = self._failed(batch, task, reply)
        self.kick()
        self._perform(effects[1:])
        for effect in effects[:1]:
            if isinstance(effect, Finish):
                self._finishing[effect.task.key] = effect.task
                yield from self._finish(effect)
            else:
                self._perform([effect])

    def _failed(self, batch: Batch, task: Task, error: ServingError) -> list[Effect]:
        was_up = self.dispatcher.backends[batch.backend].up
        effects = self.dispatcher.failed(task, error, now_s=self._now())
        if was_up and not self.dispatcher.backends[batch.backend].up:
            self._on_backend_down(batch.backend)
        if self.dispatcher.has(task):
            self.world.fire("tried again in place")
            self.in_place += 1
            self.checks.came_to_nothing(self.actor, task)
            self._release(task)
        return effects

    def _begun_here(self) -> list[Task]:
        return [task for task in self.dispatcher.running if self.dispatcher.runs(task)]

    def _release(self, task: Task) -> None:
        if task.attempts:
            self._spawn(self._say_released([task]))

    def _say_released(self, tasks: Sequence[Task]) -> Steps[None]:
        at_ms = self.dispatcher.clock.ms(self._now())
        for task in tasks:
            row = (task.task_id, task.source.topic, task.source.offset, task.attempts)
            record = Released(self.actor.id, [row], at_ms)
            self.world.fire("start released")
            self._producer.post(self._names.progress, task.source.partition, self.actor.id, record)
        return
        yield

    # The end of a task

    def _finish(self, effect: Finish) -> Steps[None]:
        task, result = effect.task, effect.result
        try:
            result = yield from self._write(task, result)
        except ProducerClosed:
            return
        except TypeError:
            self.world.fire("result not writable")
            result = yield from self._write(task, self._failed_inside(task, "the result could not be written"))
        self._history.ended(task.key, task.source, result.outcome)
        self.checks.wrote(self.actor, task.key)
        self._acknowledge(task)
        self._remember(task, result, effect.cacheable)

    def _hand_over(self, effect: HandOver) -> Steps[None]:
        task, origin = effect.task, effect.task.origin
        assert isinstance(origin, Delivery)
        try:
            yield self._retry_record(effect, origin)
        except ProducerClosed:
            return
        except RecordTooLarge:
            self.world.fire("retry not writable")
            if effect.error is None:
                del self._finishing[task.key]
                self.accept(task)
            else:
                failed = self._failed_inside(task, "the retry could not be written")
                yield from self._finish(Finish(task, failed))
            return
        self.world.fire("parked" if effect.error is None else f"handed over to {effect.tier.value}")
        self._acknowledge(task)

    def _retry_record(self, effect: HandOver, origin: Delivery) -> Write:
        topic, partition = self._names.retry(effect.tier), effect.task.source.partition
        key = effect.task.task_id
        write = self._producer.write(topic, partition, key, origin.value, headers_of(effect, origin))
        if text_of(effect.task.request).startswith(WIDE):
            write.problem = RecordTooLarge("too large")
        return write

    def _acknowledge(self, task: Task) -> None:
        self._finishing.pop(task.key, None)
        for delivery in task.deliveries:
            assert isinstance(delivery, Delivery)
            delivery.complete()
        self._settled.set()

    def _failed_inside(self, task: Task, detail: str) -> Result:
        now_s = self._now()
        error = InternalError(detail)
        failed = outcome.failed(task, error, now_s=now_s, now_ms=self.dispatcher.clock.ms(now_s))
        return replace(failed, metadata={})

    def _write(self, task: Task, result: Result) -> Steps[Result]:
        if result.outcome is Outcome.FAILED and isinstance(task.origin, Delivery):
            yield from self._write_dead_letter(task.origin, result)
        try:
            yield self._result_record(task, result)
        except RecordTooLarge:
            self.world.fire("result too large")
            now_s = self._now()
            error = BackendProtocolError("the answer is too large for a result record")
            result = outcome.failed(task, error, now_s=now_s, now_ms=self.dispatcher.clock.ms(now_s))
            if isinstance(task.origin, Delivery):
                yield from self._write_dead_letter(task.origin, result)
            yield self._result_record(task, result)
        return result

    def _result_record(self, task: Task, result: Result) -> Write:
        content = (result.output.content or "") if result.output else ""
        write = self._producer.write(self._names.results, task.source.partition, task.task_id, result)
        if content.startswith(answer_to(HUGE)):
            write.problem = RecordTooLarge("too large")
        elif content.startswith(answer_to(DEEP)):
            write.problem = TypeError("nested too deeply")
        return write

    def _write_dead_letter(self, delivery: Delivery, result: Result) -> Steps[None]:
        yield self._producer.write(self._names.dead_letters, delivery.partition, result.task_id, delivery.value)

    def _reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> Steps[None]:
        now_ms = self.dispatcher.clock.ms(self._now())
        told = ResultError(error.type, error.detail)
        result = outcome.rejected(
            task_id, "default", delivery.lane, delivery.source, told, appended_ms=delivery.appended_ms, now_ms=now_ms
        )
        try:
            yield from self._write_dead_letter(delivery, result)
            yield self._producer.write(self._names.results, delivery.partition, task_id, result)
        except ProducerClosed:
            return
        self._history.ended((task_id, delivery.partition), delivery.source, result.outcome)
        delivery.complete()

    def _remember(self, task: Task, result: Result, cacheable: str | None) -> None:
        if cacheable is None or task.fingerprint is None or result.output is None:
            return
        if result.outcome is Outcome.COMPLETED:
            at_ms = result.timing.finished_at_ms or 0
            entry = CacheEntry(result.output, result.usage, result.model, at_ms, at_ms + 300_000, task.tenant)
            self.dispatcher.cache.put(task.fingerprint, entry, 256)

    # The end of the worker

    def drain(self, timeout_s: float) -> Steps[bool]:
        deadline_s = self._now() + timeout_s
        while self._calls or self._finishing or self.dispatcher.running:
            left_s = deadline_s - self._now()
            if left_s <= 0:
                return False
            self._settled.clear()
            yield self._settled.wait(left_s)
        return True

    def close(self) -> None:
        self._timer += 1
        for task in self._begun_here():
            self.checks.came_to_nothing(self.actor, task)
        for wait in self._say_released(self._begun_here()):
            raise AssertionError(wait)
        for running in self._background:
            running.cancel()

    def _spawn(self, work: Steps[None]) -> Process:
        process = self.world.spawn(self.actor, self._watched(work))
        self._background.append(process)
        return process

    def _watched(self, work: Steps[None]) -> Steps[None]:
        yield from work
        self._settled.set()
