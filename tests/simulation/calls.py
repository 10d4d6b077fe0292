"""`agents/calls.py` in virtual time: one call for each task, or one for a whole batch where the server takes such."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from streams.dispatcher import Batch, Dispatcher
from streams.errors import BackendError, ServingError
from streams.ports import Answer, Call
from streams.splitting import Splitting, Step
from streams.task import Task
from tests.simulation.checks import Checks
from tests.simulation.history import History
from tests.simulation.serving import Answering, Server
from tests.simulation.world import Actor, Process, Steps, World

_AFTER_DEADLINE_S = 1.0


class _Running:
    def __init__(self, batch: Batch, tasks: Sequence[Task], splitting: Splitting[Task] | None = None) -> None:
        self.batch, self.tasks, self.splitting = batch, dict.fromkeys(tasks), splitting
        self.work: Process | None = None
        self.answering: Answering | None = None


class Calls:
    """Owns each call from the batch that it is for until every task of it was reported with its end, or given up."""

    def __init__(
        self,
        world: World,
        actor: Actor,
        dispatcher: Dispatcher,
        servers: Mapping[str, Server],
        history: History,
        checks: Checks,
        *,
        now: Callable[[], float],
        report: Callable[[Batch, Task, Answer | ServingError], Steps[None]],
        spawn: Callable[[Steps[None]], Process],
    ) -> None:
        self.world, self.actor, self._dispatcher, self._servers = world, actor, dispatcher, servers
        self._history, self._checks = history, checks
        self._now, self._report, self._spawn = now, report, spawn
        self._running: dict[Task, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, batch: Batch) -> None:
        tasks = [task for task in batch.tasks if self._dispatcher.runs(task)]
        if len(tasks) > 1 and self._servers[batch.backend].takes_batches:
            self.world.fire("called together")
            self._ask_together(batch, tasks, Splitting(tasks))
            return
        for task in tasks:
            call = _Running(batch, [task])
            self._begin(call, self._ask(call, task))

    def give_up(self, task: Task) -> None:
        call = self._running.pop(task, None)
        if call is None:
            return
        del call.tasks[task]
        if call.tasks:
            self.world.fire("left a call that goes on")
        elif call.work is not None and call.answering is not None:
            self.world.fire("call aborted")
            call.work.cancel()
            call.answering.close()
            if call.splitting is not None:
                self._go_on(call.batch, call.splitting, call.splitting.replied([]))

    def _begin(self, call: _Running, work: Steps[None]) -> None:
        for task in call.tasks:
            self._running[task] = call
        call.answering = self._answering(call.batch, list(call.tasks))
        call.work = self._spawn(work)

    def _answering(self, batch: Batch, tasks: Sequence[Task]) -> Answering:
        calls = [self._call(batch, task) for task in tasks]
        return self._servers[batch.backend].complete(self.actor, calls, timeout_s=self._timeout_s(batch, tasks))

    def _call(self, batch: Batch, task: Task) -> Call:
        return Call(task.task_id, batch.model, task.request.messages, task.parameters)

    def _timeout_s(self, batch: Batch, tasks: Sequence[Task]) -> float:
        left_s = max(math.inf if task.may_coalesce else task.deadline_s for task in tasks) - self._now()
        longest_s = self._dispatcher.backends[batch.backend].settings.timeout_s
        return min(longest_s, max(left_s, 0.0) + _AFTER_DEADLINE_S)

    def _ask(self, call: _Running, task: Task) -> Steps[None]:
        reply: Answer | ServingError
        self._begins(call.batch, [task])
        try:
            assert call.answering is not None
            (reply,) = yield call.answering
        except ServingError as error:
            reply = error
        self._running.pop(task, None)
        yield from self._report(call.batch, task, reply)

    def _begins(self, batch: Batch, tasks: Sequence[Task]) -> None:
        owners = [self._dispatcher._calls[task].owner for task in tasks]
        self._checks.called(self.actor, self._history.seen, self._servers[batch.backend], owners)

    # One call for several

    def _ask_together(self, batch: Batch, part: Sequence[Task], splitting: Splitting[Task]) -> None:
        call = _Running(batch, [task for task in part if self._dispatcher.runs(task)], splitting)
        if call.tasks:
            self._begin(call, self._together(call, splitting))
        else:
            self._go_on(batch, splitting, splitting.replied([]))

    def _together(self, call: _Running, splitting: Splitting[Task]) -> Steps[None]:
        asked = list(call.tasks)
        self._begins(call.batch, asked)
        try:
            assert call.answering is not None
            replies = yield call.answering
        except BackendError as error:
            step = splitting.failed(asked, error)
            if step.calls:
                self.world.fire("batch split")
        else:
            step = splitting.replied(zip(asked, replies, strict=True))
        for task in call.tasks:
            del self._running[task]
        self._go_on(call.batch, splitting, step)

    def _go_on(self, batch: Batch, splitting: Splitting[Task], step: Step[Task]) -> None:
        for task, reply in step.ends:
            if self._dispatcher.runs(task):
                self._spawn(self._report(batch, task, reply))
        for part in step.calls:
            self._ask_together(batch, part, splitting)
