"""Calls that wait for a task to end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from streams.task import TaskKey


@dataclass
class Waiters:
    """Wakes those who wait for a task when a terminal record of it was read, and all of them when the gateway stops."""

    _by_task: dict[TaskKey, set[asyncio.Future[None]]] = field(default_factory=dict)
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

    def wake(self, task: TaskKey) -> None:
        for future in self._by_task.get(task, ()):
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Let everybody go, now and from now on."""
        self._is_closed = True
        for task in list(self._by_task):
            self.wake(task)
