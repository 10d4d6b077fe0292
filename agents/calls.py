"""Calls to backends that run: one for each task, or one for a whole batch where the backend takes such."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from streams.dispatcher import Batch, Dispatcher
from streams.errors import BackendError, InternalError, ServingError
from streams.ports import Answer, Backend, Call, Reply
from streams.splitting import Splitting, Step
from streams.task import Task
from wire.clock import monotonic_s
from wire.logs import get_logger

# The deadline itself ends a call by an Abort; the time-out behind it is for a loop that is late.
_AFTER_DEADLINE_S = 1.0

log = get_logger(__name__)


class _Running:
    """A call, and the tasks that still want its answer. `splitting`: it is one of those made for a batch."""

    __slots__ = ("batch", "splitting", "tasks", "work")

    def __init__(self, batch: Batch, tasks: Sequence[Task], splitting: Splitting[Task] | None = None) -> None:
        self.batch, self.tasks, self.splitting = batch, dict.fromkeys(tasks), splitting
        self.work: asyncio.Task[None] | None = None


class Calls:
    """Owns each call from the batch that it is for until every task of it was reported with its end, or given up.

    A call is closed when none of its tasks wants it any more; that one is given up before harms no other. `report` is told what
    became of each task, once.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        backends: Mapping[str, Backend],
        *,
        report: Callable[[Batch, Task, Answer | ServingError], Coroutine[Any, Any, None]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._dispatcher, self._backends, self._report, self._spawn = dispatcher, backends, report, spawn
        self._running: dict[Task, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, batch: Batch) -> None:
        """Call the backend for those tasks of a batch that still run."""
        tasks = [task for task in batch.tasks if self._dispatcher.runs(task)]
        if len(tasks) > 1 and self._backends[batch.backend].takes_together([_call(batch, task) for task in tasks]):
            self._ask_together(batch, tasks, Splitting(tasks))
            return
        for task in tasks:
            # Each in work of its own, so that one can be given up without the others.
            call = _Running(batch, [task])
            self._begin(call, self._ask(call, task))

    def give_up(self, task: Task) -> None:
        """Nobody waits for a task's answer any more."""
        call = self._running.pop(task, None)
        if call is None:
            return
        del call.tasks[task]
        if not call.tasks and call.work is not None:
            call.work.cancel()
            if call.splitting is not None:
                self._go_on(call.batch, call.splitting, call.splitting.replied([]))

    def _begin(self, call: _Running, work: Coroutine[Any, Any, None]) -> None:
        for task in call.tasks:
            self._running[task] = call
        call.work = self._spawn(work)

    async def _ask(self, call: _Running, task: Task) -> None:
        reply: Answer | ServingError
        try:
            backend = self._backends[call.batch.backend]
            reply = await backend.complete(_call(call.batch, task), timeout_s=self._timeout_s(call.batch, [task]))
        except ServingError as error:
            reply = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the task gets an outcome
            reply = _inside(call.batch, error)
        self._running.pop(task, None)
        await self._report(call.batch, task, reply)

    # One call for several

    def _ask_together(self, batch: Batch, part: Sequence[Task], splitting: Splitting[Task]) -> None:
        call = _Running(batch, [task for task in part if self._dispatcher.runs(task)], splitting)
        if call.tasks:
            self._begin(call, self._together(call, splitting))
        else:
            self._go_on(batch, splitting, splitting.replied([]))

    async def _together(self, call: _Running, splitting: Splitting[Task]) -> None:
        asked = list(call.tasks)
        try:
            replies = await self._replies(call.batch, asked)
        except BackendError as error:
            step = splitting.failed(asked, error)
            log.info(
                "batch call failed",
                batch=call.batch.id,
                backend=call.batch.backend,
                error=error.type.value,
                detail=error.detail,
                tasks=len(asked),
                is_split=bool(step.calls),
            )
        else:
            step = splitting.replied(zip(asked, replies, strict=True))
        for task in call.tasks:
            del self._running[task]
        self._go_on(call.batch, splitting, step)

    async def _replies(self, batch: Batch, tasks: Sequence[Task]) -> Sequence[Reply]:
        """Raises: BackendError when the call failed as a whole."""
        backend, timeout_s = self._backends[batch.backend], self._timeout_s(batch, tasks)
        calls = [_call(batch, task) for task in tasks]
        try:
            if len(calls) == 1:
                return [await backend.complete(calls[0], timeout_s=timeout_s)]
            return await backend.complete_batch(calls, timeout_s=timeout_s)
        except BackendError:
            raise
        except Exception as error:
            raise _inside(batch, error) from error

    def _go_on(self, batch: Batch, splitting: Splitting[Task], step: Step[Task]) -> None:
        for task, reply in step.ends:
            if self._dispatcher.runs(task):
                self._spawn(self._report(batch, task, reply))
        for part in step.calls:
            self._ask_together(batch, part, splitting)

    def _timeout_s(self, batch: Batch, tasks: Sequence[Task]) -> float:
        # One that may be shared goes on for those that share it, whatever becomes of the first.
        left_s = max(math.inf if task.may_coalesce else task.deadline_s for task in tasks) - monotonic_s()
        longest_s = self._dispatcher.backends[batch.backend].settings.timeout_s
        return min(longest_s, max(left_s, 0.0) + _AFTER_DEADLINE_S)


def _call(batch: Batch, task: Task) -> Call:
    return Call(task.task_id, batch.model, task.request.messages, task.parameters)


def _inside(batch: Batch, error: Exception) -> InternalError:
    log.error("backend call failed inside the worker", backend=batch.backend, error=type(error).__name__)
    return InternalError()
