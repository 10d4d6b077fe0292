"""Calls that wait for a task to end, and streams that want to hear of every change of some tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from streams.task import TaskKey


@dataclass(eq=False)
class Watch:
    """The tasks that changed since they were last asked for; made by `Waiters.watching`."""

    is_closed: bool = False
    _changed: dict[TaskKey, None] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, task: TaskKey) -> None:
        self._changed[task] = None
        self._woken.set()

    def close(self) -> None:
        self.is_closed = True
        self._woken.set()

    async def changed(self, timeout_s: float) -> list[TaskKey]:
        """Return what has changed, each task once, when something has; nothing after `timeout_s`, or when the gateway stops."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return []
        changed, self._changed = list(self._changed), {}
        if not self.is_closed:
            self._woken.clear()
        return changed


@dataclass
class Waiters:
    """Wakes those who wait for a task when a terminal record of it was read, and all of them when the gateway stops."""

    _by_task: dict[TaskKey, set[asyncio.Future[None]]] = field(default_factory=dict)
    _watches: dict[TaskKey, set[Watch]] = field(default_factory=dict)
    _is_closed: bool = False

    async def ended(self, task: TaskKey, timeout_s: float) -> None:
        """Return when a terminal record of the task is read, after `timeout_s`, or at once when the gateway stops."""
        if self._is_closed or timeout_s <= 0:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._by_task.setdefault(task, set())
        waiting.add(future)
        try:
            await asyncio.wait({future}, timeout=timeout_s)
        finally:
            waiting.discard(future)
            if not waiting and self._by_task.get(task) is waiting:
                del self._by_task[task]

    @contextmanager
    def watching(self, tasks: Iterable[TaskKey]) -> Iterator[Watch]:
        """Give a watch over these tasks; it hears of everything from now on."""
        watch, watched = Watch(self._is_closed), list(tasks)
        if self._is_closed:
            watch.close()
        for task in watched:
            self._watches.setdefault(task, set()).add(watch)
        try:
            yield watch
        finally:
            for task in watched:
                watching = self._watches.get(task, set())
                watching.discard(watch)
                if not watching:
                    self._watches.pop(task, None)

    def wake(self, task: TaskKey) -> None:
        """A terminal record of the task was read."""
        for future in self._by_task.get(task, ()):
            if not future.done():
                future.set_result(None)
        self.changed(task)

    def changed(self, task: TaskKey) -> None:
        """A record that says something new of the task was read."""
        for watch in self._watches.get(task, ()):
            watch.note(task)

    def close(self) -> None:
        """Let everybody go, now and from now on."""
        self._is_closed = True
        for task in list(self._by_task):
            self.wake(task)
        for watch in {watch for watching in self._watches.values() for watch in watching}:
            watch.close()
