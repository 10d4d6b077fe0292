"""Carries out what the Dispatcher decides: calls to backends, records to Kafka, acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aiokafka.errors import ProducerClosed

from agents import retries
from agents.calls import Calls
from agents.deadletters import DeadLetters
from agents.delivery import Delivery, Owner
from agents.history import History
from agents.metrics import WorkerMetrics
from schemas import headers
from schemas.cache import CacheEntry
from schemas.codec import DecodeError, encode
from schemas.progress import Released, Started
from schemas.request import DEFAULT_TENANT
from schemas.result import Outcome, Result, ResultError
from schemas.topics import Lane, TopicNames
from streams import outcome
from streams.deadlines import LONGEST_MS
from streams.dispatcher import Abort, Batch, Dispatcher, Drop, Effect, Finish, HandOver, Send
from streams.errors import BackendProtocolError, DeadlineInfeasible, InternalError, ServingError
from streams.ports import Answer, Backend
from streams.task import Task, TaskKey
from wire.clock import monotonic_s
from wire.logs import get_logger
from wire.producing import DurableProducer, RecordTooLarge

_LET_GO_S = 2.0

log = get_logger(__name__)


class DispatchLoop:
    """The shell around the Dispatcher, and its only writer. Runs in the worker's loop.

    A task belongs to the Dispatcher until its `Finish`; from then until its result is durable and its deliveries are acknowledged it
    belongs to `_finishing`, so that a request delivered again in between attaches to it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        backends: Mapping[str, Backend],
        producer: DurableProducer,
        history: History,
        names: TopicNames,
        *,
        worker: str,
        metrics: WorkerMetrics,
        after_let_go: Callable[[], Awaitable[None]],
        cannot_be_met: Callable[[Task], bool] = lambda _task: False,
        on_sent: Callable[[Batch], None] = lambda _batch: None,
        on_finished: Callable[[Lane], None] = lambda _lane: None,
        on_room: Callable[[], None] = lambda: None,
        on_backend_down: Callable[[str], None] = lambda _name: None,
        on_fatal: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.dispatcher = dispatcher
        self._producer, self._history, self._names = producer, history, names
        self._worker, self._metrics, self._on_backend_down = worker, metrics, on_backend_down
        self._on_sent, self._on_finished, self._on_fatal = on_sent, on_finished, on_fatal
        self._dead_letters = DeadLetters(producer, names, metrics)
        self._finishing: dict[TaskKey, Task] = {}
        self._after_let_go, self._on_room = after_let_go, on_room
        self._cannot_be_met = cannot_be_met
        self._calls = Calls(dispatcher, backends, report=self._report, spawn=self._spawn)
        self._background: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._settled = asyncio.Event()

    # What the intake gives (Receiver)

    def accept(self, task: Task) -> None:
        """Take a task from an intake."""
        finishing = self._finishing.get(task.key)
        if finishing is not None:
            finishing.deliveries.extend(task.deliveries)
            return
        now_s = monotonic_s()
        now_ms = self.dispatcher.clock.ms(now_s)
        is_new = not self.dispatcher.holds(task.key)
        elsewhere = is_new and self._history.redelivery.taken_in(task, now_s=now_s, now_ms=now_ms)
        effects = self.dispatcher.accept(task, now_s=now_s, elsewhere=elsewhere)
        if is_new and self._cannot_be_met(task):
            self.dispatcher.cancel(task.key)  # it ends here instead
            effects = [Finish(task, outcome.failed(task, DeadlineInfeasible(), now_s=now_s, now_ms=now_ms))]
        self._perform(effects)
        self.kick()

    def ended(self, key: TaskKey) -> None:
        """A terminal record of a task is in the log, written by whomever: what is held of it is let go of."""
        if key not in self._finishing and self.dispatcher.holds(key):
            self._perform(self.dispatcher.cancel(key))
            self.kick()

    def reconsider(self) -> None:
        """Called each second: queue what need not wait for another worker any more."""
        now_s = monotonic_s()
        still = partial(self._history.redelivery.still_waits, now_s=now_s, now_ms=self.dispatcher.clock.ms(now_s))
        self._perform(self.dispatcher.reconsider(still, now_s=now_s))
        self.kick()

    def reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        """Give a record that is no request its outcome: dead letter, then a `failed` result, then the acknowledgement."""
        self._spawn(self._reject(delivery, error, task_id))

    def is_held(self, key: TaskKey) -> bool:
        return self.dispatcher.holds(key) or key in self._finishing

    def has_room(self, lane: Lane, share: float = 1.0) -> bool:
        return self.dispatcher.has_room(lane, share)

    def is_heavy(self, lane: Lane) -> bool:
        return self.dispatcher.is_heavy(lane)

    def withdraw(self, owner: Owner, *, running: bool) -> None:
        """Let go of an intake's deliveries: of tasks that wait, or (`running`) of all."""

        def keep(delivery: object) -> bool:
            return not isinstance(delivery, Delivery) or delivery.owner is not owner

        self.dispatcher.withdraw(keep, running=running)
        self._on_room()

    async def let_go(self, owner: Owner, timeout_s: float) -> None:
        """Give up what waits for an intake, wait until its running tasks have ended, no longer than that, and tell what still runs."""
        self.withdraw(owner, running=False)
        deadline_s = monotonic_s() + timeout_s
        while self._runs_for(owner) and (left_s := deadline_s - monotonic_s()) > 0:
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), left_s)
            except TimeoutError:
                break
        self.withdraw(owner, running=False)  # what failed meanwhile and waited for another try here
        if self._runs_for(owner):
            try:
                async with asyncio.timeout(_LET_GO_S):
                    await self._after_let_go()
            except Exception as error:  # noqa: BLE001 - then the next owner runs again what runs here: work, not an outcome
                log.warning("snapshot not sent on revoke", error=type(error).__name__)

    def _runs_for(self, owner: Owner) -> bool:
        tasks = [*self.dispatcher.running, *self.dispatcher.following, *self._finishing.values()]
        return any(isinstance(d, Delivery) and d.owner is owner for task in tasks for d in task.deliveries)

    @property
    def in_flight(self) -> list[str]:
        """Return the ids of tasks that run here, or whose outcome is being written."""
        return [
            task.task_id for task in (*self.dispatcher.running, *self.dispatcher.following, *self._finishing.values())
        ]

    # The loop

    def kick(self) -> None:
        """Look, once in this turn of the loop, at what is due."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._is_scheduled = False
        now_s = monotonic_s()
        self._perform(self.dispatcher.step(now_s))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self.dispatcher.next_deadline_s
        if due_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(due_s - now_s, 0.0), self.kick)

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out effects of a change made elsewhere (a probe), and look at what is due."""
        self._perform(effects)
        self.kick()

    def _perform(self, effects: Iterable[Effect]) -> None:
        has_room = False
        for effect in effects:
            has_room |= not isinstance(effect, Abort)  # fewer wait than before, or may
            if isinstance(effect, Send):
                self._on_sent(effect.batch)
                self._spawn(self._run_batch(effect.batch))
            elif isinstance(effect, Finish):
                self._finishing[effect.task.key] = effect.task
                self._spawn(self._finish(effect))
            elif isinstance(effect, HandOver):
                if effect.error is not None:
                    self._release(effect.task)
                self._finishing[effect.task.key] = effect.task
                self._spawn(self._hand_over(effect))
            elif isinstance(effect, Drop):
                self._release(effect.task)
                self._acknowledge(effect.task)
            else:
                self._calls.give_up(effect.task)
        if has_room:
            self._on_room()

    # A batch

    async def _run_batch(self, batch: Batch) -> None:
        tasks = list(batch.tasks)
        self._metrics.batch_size[tasks[0].lane].observe(len(tasks))
        self._metrics.decisions.labels(batch.reason).inc()
        for task in tasks:
            self._metrics.queue_wait_s[task.lane].observe((task.dispatched_s or task.accepted_s) - task.accepted_s)
        try:
            await self._announce(batch)
        except Exception as error:  # noqa: BLE001 - the calls must begin whatever becomes of their announcement
            log.error("batch not announced", batch=batch.id, error=type(error).__name__)
        self._calls.start(batch)

    async def _announce(self, batch: Batch) -> None:
        """Send `started`, one record per partition; the calls do not wait for its acknowledgement."""
        rows: dict[int, list[tuple[str, str, int, int]]] = {}
        for task in batch.tasks:
            source = task.source
            rows.setdefault(source.partition, []).append((task.task_id, source.topic, source.offset, task.attempts))
        at_ms = batch.tasks[0].dispatched_ms or 0
        for partition, tasks in rows.items():
            started = Started(batch.id, self._worker, batch.backend, tasks, at_ms)
            await self._producer.post(self._names.progress, partition, key=batch.id.encode(), value=encode(started))

    async def _report(self, batch: Batch, task: Task, reply: Answer | ServingError) -> None:
        """Carry out what follows from a call that ended."""
        if isinstance(reply, Answer):
            effects = self.dispatcher.answered(task, reply, now_s=monotonic_s())
        else:
            effects = self._failed(batch, task, reply)
        self.kick()
        self._perform(effects[1:])  # of those that shared the call
        for effect in effects[:1]:
            if isinstance(effect, Finish):  # most calls end so, and it needs no task of its own
                self._finishing[effect.task.key] = effect.task
                await self._finish(effect)
            else:
                self._perform([effect])

    def _failed(self, batch: Batch, task: Task, error: ServingError) -> list[Effect]:
        log.info(
            "call failed",
            task_id=task.task_id,
            backend=batch.backend,
            error=error.type.value,
            attempt=task.attempts,
            detail=error.detail,
        )
        was_up = self.dispatcher.backends[batch.backend].up
        effects = self.dispatcher.failed(task, error, now_s=monotonic_s())
        if was_up and not self.dispatcher.backends[batch.backend].up:
            self._on_backend_down(batch.backend)
        if self.dispatcher.has(task):
            self._metrics.retries.labels("in_place").inc()
            self._release(task)
        return effects

    def _begun_here(self) -> list[Task]:
        """Return the running tasks whose start was announced: not those that took over the call of another."""
        return [task for task in self.dispatcher.running if self.dispatcher.runs(task)]

    def _release(self, task: Task) -> None:
        """Say that a task's last start came to nothing, so that it does not count as a crash when this worker ends."""
        if task.attempts:
            self._spawn(self._say_released([task]))

    async def _say_released(self, tasks: Sequence[Task]) -> None:
        at_ms = self.dispatcher.clock.ms(monotonic_s())
        for task in tasks:
            row = (task.task_id, task.source.topic, task.source.offset, task.attempts)
            record = Released(self._worker, [row], at_ms)
            partition = task.source.partition
            await self._producer.post(self._names.progress, partition, key=self._worker.encode(), value=encode(record))

    # The end of a task

    async def _finish(self, effect: Finish) -> None:
        """Make an outcome durable, then acknowledge every delivery of its task, those that came meanwhile included."""
        task, result = effect.task, effect.result
        try:
            result = await self._write(task, result, effect.cacheable)
        except ProducerClosed:
            return  # not acknowledged: delivered again to whoever comes next
        except Exception as error:  # noqa: BLE001 - an outcome that cannot be written (nested too deeply) must not hold its partition
            log.error("result not writable", task_id=task.task_id, error=type(error).__name__)
            result = await self._write(task, self._bare(task, InternalError("the result could not be written")), None)
        self._history.ended(task.key, task.source, result.outcome)
        self._acknowledge(task)
        self._count(task, result)
        self._remember(task, result, effect.cacheable)

    async def _hand_over(self, effect: HandOver) -> None:
        """Make a retry record durable, then acknowledge the task's deliveries: from here on the retry topic has it."""
        task, origin = effect.task, effect.task.origin
        assert isinstance(origin, Delivery)
        try:
            await self._producer.write(
                self._names.retry(effect.tier),
                task.source.partition,
                key=origin.key,
                value=origin.value,
                headers=retries.headers_of(effect, origin),
            )
        except ProducerClosed:
            return  # not acknowledged: delivered again to whoever comes next
        except Exception as error:  # noqa: BLE001 - what cannot be handed over stays here, or ends with an outcome
            log.error("retry not writable", task_id=task.task_id, error=type(error).__name__)
            if effect.error is None:
                del self._finishing[task.key]
                self.accept(task)
            else:
                await self._finish(Finish(task, self._bare(task, InternalError("the retry could not be written"))))
            return
        reason = "parked" if effect.error is None else effect.error.type.value
        log.info("handed over", task_id=task.task_id, tier=effect.tier.value, reason=reason, attempt=task.attempts)
        if effect.error is not None:
            self._metrics.retries.labels(effect.tier.value).inc()
        self._acknowledge(task)

    def _acknowledge(self, task: Task) -> None:
        """Complete every delivery of a task, those that came meanwhile included."""
        self._finishing.pop(task.key, None)
        for delivery in task.deliveries:
            assert isinstance(delivery, Delivery)
            delivery.complete()
        self._settled.set()

    def _bare(self, task: Task, error: ServingError) -> Result:
        """Return the result of a task that failed, with nothing of its request that could keep it from being written."""
        now_s = monotonic_s()
        failed = outcome.failed(task, error, now_s=now_s, now_ms=self.dispatcher.clock.ms(now_s))
        return replace(failed, metadata={})

    async def _write(self, task: Task, result: Result, cacheable: str | None) -> Result:
        delivery = task.origin
        assert isinstance(delivery, Delivery)
        record_headers = outcome.result_headers(result, headers.copied(task.headers), cacheable)
        try:
            await self._append(delivery, result, record_headers, attempts=task.attempts, deadline_ms=task.deadline_ms)
        except RecordTooLarge:
            result = self._bare(task, BackendProtocolError("the answer is too large for a result record"))
            bare_headers = outcome.result_headers(result, [], None)
            await self._append(delivery, result, bare_headers, attempts=task.attempts, deadline_ms=task.deadline_ms)
        return result

    async def _append(
        self, delivery: Delivery, result: Result, record_headers: headers.Headers, *, attempts: int, deadline_ms: int
    ) -> None:
        """Make a result durable, after its dead letter where it failed."""
        if result.outcome is Outcome.FAILED:
            await self._dead_letters.write(delivery, result, attempts=attempts, deadline_ms=deadline_ms)
        await self._producer.write(
            self._names.results,
            result.source.partition,
            key=result.task_id.encode(),
            value=encode(result),
            headers=record_headers,
        )

    async def _reject(self, delivery: Delivery, error: DecodeError, task_id: str) -> None:
        result = outcome.rejected(
            task_id,
            error.tenant or DEFAULT_TENANT,
            delivery.lane,
            delivery.source,
            ResultError(error.type, error.detail),
            appended_ms=delivery.appended_ms,
            now_ms=self.dispatcher.clock.ms(monotonic_s()),
        )
        log.info("request rejected", lane=delivery.lane.value, reason=error.type.value, source=str(delivery.source))
        record_headers = outcome.result_headers(result, headers.copied(delivery.headers), None)
        try:
            # What no deadline could be read from has the longest.
            due_ms = delivery.appended_ms + LONGEST_MS
            await self._append(delivery, result, record_headers, attempts=0, deadline_ms=due_ms)
        except ProducerClosed:
            return
        self._history.ended((task_id, delivery.partition), delivery.source, result.outcome)
        delivery.complete()
        self._metrics.results[delivery.lane, result.outcome].inc()
        self._on_finished(delivery.lane)

    def _count(self, task: Task, result: Result) -> None:
        metrics = self._metrics
        metrics.results[task.lane, result.outcome].inc()
        self._on_finished(task.lane)
        metrics.end_to_end_s[task.lane].observe(max((result.timing.finished_at_ms or 0) - task.appended_ms, 0) / 1000)
        if result.coalesced_with is not None:
            metrics.coalesced.inc()
            return  # the call, and its tokens, are counted with the task that it was begun for
        if result.cached:
            metrics.cache_hits.inc()
        elif task.wants_cache and task.fingerprint is not None:
            metrics.cache_misses.inc()
        if result.backend is not None and result.timing.inference_ms is not None:
            metrics.inference_s.labels(result.model or "", result.backend).observe(result.timing.inference_ms / 1000)
        if result.usage is not None and not result.cached:
            metrics.tokens.labels("prompt", result.model or "").inc(result.usage.prompt_tokens)
            metrics.tokens.labels("completion", result.model or "").inc(result.usage.completion_tokens)

    def _remember(self, task: Task, result: Result, cacheable: str | None) -> None:
        """Answer from this worker's own results at once; other workers learn of them from the table."""
        if (
            cacheable is None
            or task.fingerprint is None
            or result.output is None
            or result.outcome is not Outcome.COMPLETED
        ):
            return
        finished_ms = result.timing.finished_at_ms or 0
        entry = CacheEntry(
            result.output, result.usage, result.model, finished_ms, finished_ms + task.cache.ttl_s * 1000, task.tenant
        )
        self.dispatcher.cache.put(task.fingerprint, entry, len(result.output.content or "") + 256)

    # The end of the worker

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every running call has its durable result; False when the time was up before."""
        deadline_s = monotonic_s() + timeout_s
        while self._calls or self._finishing or self.dispatcher.running:
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), deadline_s - monotonic_s())
            except TimeoutError:
                return False
        return True

    async def close(self) -> None:
        """End what still runs; nothing of it is acknowledged, and it does not count as a crash of its task."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._say_released(self._begun_here()), _LET_GO_S)
        for running in list(self._background):
            running.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        running = asyncio.get_running_loop().create_task(work)
        self._background.add(running)
        running.add_done_callback(self._ended)
        return running

    def _ended(self, running: asyncio.Task[Any]) -> None:
        self._background.discard(running)
        self._settled.set()
        if not running.cancelled() and (error := running.exception()) is not None:
            # A task would be held for ever: a new worker gets it delivered again.
            log.error("work ended with an error", error=type(error).__name__)
            self._on_fatal(f"a task's work ended with {type(error).__name__}")
