"""A whole Dispatcher on a scripted clock, with an account of what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from schemas.gpu import GpuId, GPUMetrics, GpuSource
from schemas.result import Output, Result, Usage
from schemas.topics import Lane
from streams.brokertime import BrokerClock
from streams.caching import AnswerCache
from streams.dispatcher import Abort, Batch, Dispatcher, Drop, Effect, Finish, HandOver, Send
from streams.errors import ServingError
from streams.fleet import Fleet
from streams.ports import Answer, Probe
from streams.settings import BackendSettings, Settings
from streams.task import Task
from streams.testing import FakeClock
from tests.support.tasks import EPOCH_MS, make_task

MOST_STEPS = 10_000


def as_expected(task: Task) -> Answer:
    """Return an answer that took as many tokens as its task was charged."""
    return Answer(Output("fine", "stop"), Usage(0, task.cost_tokens, task.cost_tokens))


def backend(name: str = "b1", *, slots: int = 4, **fields: Any) -> BackendSettings:
    """Return a backend's settings."""
    return BackendSettings(name=name, url=f"http://{name}", max_concurrency=slots, **fields)


def up(*models: str, slots: int | None = None, context_tokens: int | None = None) -> Probe:
    """Return the probe of a backend that answers."""
    return Probe(up=True, models=models or ("tiny",), slots=slots, context_tokens=context_tokens)


DOWN = Probe(up=False, reason="connection refused")


@dataclass
class Scene:
    """Drives a Dispatcher as the worker's shell does: every change is followed by a step at the clock's time.

    `sent`, `finished`, `handed`, `dropped` and `aborted` hold what it ordered, oldest first.
    """

    settings: Settings
    clock: FakeClock = field(default_factory=FakeClock)
    sent: list[Batch] = field(default_factory=list)
    finished: list[Finish] = field(default_factory=list)
    handed: list[HandOver] = field(default_factory=list)
    dropped: list[Task] = field(default_factory=list)
    aborted: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        broker = BrokerClock()
        broker.observe(EPOCH_MS + int(self.now_s * 1000), now_s=self.now_s)
        names = count(1)
        self.dispatcher = Dispatcher(
            settings=self.settings,
            clock=broker,
            fleet=Fleet(self.settings.gpus.stale_after_s, self.settings.pressure),
            cache=AnswerCache(self.settings.cache.max_entries, self.settings.cache.max_bytes),
            new_batch_id=lambda: f"batch-{next(names)}",
        )

    @classmethod
    def of(cls, *backends: BackendSettings, models: Sequence[str] = ("tiny",), **sections: Any) -> Scene:
        """Return a scene whose backends are up and serve `models`."""
        scene = cls(Settings.model_validate({"backends": backends or (backend(),), **sections}))
        for name in scene.dispatcher.backends:
            scene.probed(name, up(*models))
        return scene

    @property
    def now_s(self) -> float:
        return self.clock.now_s

    # What happens

    def accept(self, task_id: str | None = None, lane: Lane = Lane.NORMAL, **fields: Any) -> Task:
        """Have a task taken in now."""
        task = make_task(task_id, lane, now_s=self.now_s, **fields)
        self.take(task)
        return task

    def accept_many(self, number: int, lane: Lane = Lane.NORMAL, **fields: Any) -> list[Task]:
        """Have tasks taken in before the next step."""
        tasks = [make_task(None, lane, now_s=self.now_s, **fields) for _ in range(number)]
        for task in tasks:
            self.perform(self.dispatcher.accept(task, now_s=self.now_s))
        self.step()
        return tasks

    def take(self, task: Task, *, elsewhere: bool = False) -> None:
        self.perform(self.dispatcher.accept(task, now_s=self.now_s, elsewhere=elsewhere))
        self.step()

    def reconsider(self, still: Callable[[Task], bool]) -> None:
        self.perform(self.dispatcher.reconsider(still, now_s=self.now_s))
        self.step()

    def answered(self, task: Task, reply: Answer | None = None) -> None:
        """Have a call answered; without a `reply` it took as many tokens as it was expected to."""
        self.perform(self.dispatcher.answered(task, reply or as_expected(task), now_s=self.now_s))
        self.step()

    def failed(self, task: Task, error: ServingError) -> None:
        self.perform(self.dispatcher.failed(task, error, now_s=self.now_s))
        self.step()

    def cancelled(self, task: Task) -> None:
        """Have a terminal record of the task come from outside."""
        self.perform(self.dispatcher.cancel(task.key))
        self.step()

    def probed(self, name: str, probe: Probe) -> None:
        self.perform(self.dispatcher.probed(name, probe, now_s=self.now_s))
        self.step()

    def gpu(self, uuid: str, used_ratio: float, *, lost: bool = False) -> None:
        """Have a card's sample arrive."""
        total = 1_000_000
        used = int(total * used_ratio)
        taken_ms = EPOCH_MS + int(self.now_s * 1000)
        card = GpuId(uuid, 0, "card", uuid)
        sample = GPUMetrics(card, GpuSource.SIMULATED, taken_ms, total, used, total - used, lost=lost)
        self.dispatcher.fleet.observe(sample, now_s=self.now_s, age_s=0.0)
        self.step()

    def step(self) -> None:
        self.perform(self.dispatcher.step(self.now_s))

    def advance(self, seconds: float) -> None:
        """Let time pass, with a step whenever the Dispatcher asked for one, and at the end."""
        end_s = self.now_s + seconds
        for _ in range(MOST_STEPS):
            due_s = self.dispatcher.next_deadline_s
            if due_s is None or due_s > end_s:
                break
            self.clock.advance(max(due_s - self.now_s, 0.0))
            self.step()
        else:
            raise AssertionError("the dispatcher asks for steps without end")
        self.clock.advance(max(end_s - self.now_s, 0.0))
        self.step()

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append(effect.batch)
            elif isinstance(effect, Finish):
                self.finished.append(effect)
            elif isinstance(effect, HandOver):
                self.handed.append(effect)
            elif isinstance(effect, Drop):
                self.dropped.append(effect.task)
            else:
                assert isinstance(effect, Abort)
                self.aborted.append(effect.task)

    # What can be seen

    @property
    def running(self) -> list[Task]:
        return self.dispatcher.running

    @property
    def calls(self) -> list[Task]:
        """Return the tasks whose calls run, by which the shell knows them."""
        return list(self.dispatcher._calls)

    @property
    def results(self) -> dict[str, Result]:
        """Return the results by task_id; an id that ended twice fails the test."""
        found = {effect.result.task_id: effect.result for effect in self.finished}
        assert len(found) == len(self.finished), "a task ended twice"
        return found

    @property
    def order(self) -> list[Task]:
        """Return the tasks in the order in which they were sent."""
        return [task for batch in self.sent for task in batch.tasks]

    def leftovers(self) -> dict[str, int]:
        """Return what the Dispatcher still holds in each of its collections, those that hold nothing left out."""
        inside = self.dispatcher
        sizes = {
            "tasks": len(inside._tasks),
            "waiting": len(inside._waiting),
            "load": len(inside.loads),
            "running": len(inside._running),
            "calls": len(inside._calls),
            "coalescing": len(inside._coalescing),
            "windows": sum(len(windows) for windows in inside._windows.values()),
            "elsewhere": len(inside._elsewhere),
            "suspects": len(inside._suspects) + (inside._suspect is not None),
            "delayed": len([task for _, _, task in inside._delayed if inside.holds(task.key)]),
            "in flight": sum(state.busy for state in inside.backends.values()),
        }
        return {name: size for name, size in sizes.items() if size}
