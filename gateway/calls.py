"""What the routes call, over one view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.batches import Batches
from gateway.cleanup import Cleanup
from gateway.fleet import Fleet
from gateway.following import Following
from gateway.metrics import GatewayMetrics
from gateway.ports import Logs
from gateway.tasks import Tasks
from gateway.view import View
from gateway.waiters import Waiters
from schemas.topics import TopicNames
from streams.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Calls:
    """The task routes, by family."""

    tasks: Tasks
    batches: Batches
    cleanup: Cleanup
    following: Following

    @classmethod
    def over(
        cls,
        topics: TopicNames,
        partitions: int,
        view: View,
        fleet: Fleet,
        logs: Logs,
        waiters: Waiters,
        metrics: GatewayMetrics,
        *,
        random: Callable[[int], bytes],
        models: Sequence[ModelSettings] = (),
    ) -> Calls:
        """Return them over one view of the logs; `random` gives so many random bytes, `models` are the settings'."""
        tasks = Tasks(topics, partitions, view, fleet, logs, waiters, random=random, models=models)
        batches = Batches(topics, partitions, view, logs, tasks, metrics)
        return cls(tasks, batches, Cleanup(topics, view, logs), Following(view, tasks, batches, waiters))
