"""A worker process in virtual time: `agents/app.py` without its I/O. It starts, beats, drains, stands still and dies."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from itertools import count

from schemas.progress import WorkerSnapshot
from schemas.topics import Lane, RetryTier
from streams.brokertime import BrokerClock
from streams.caching import AnswerCache
from streams.dispatcher import Dispatcher
from streams.fleet import Fleet
from streams.retrying import InPlaceRetries, RetryBudget
from streams.settings import Settings
from streams.task import Task
from tests.simulation.broker import Broker, Group, Place
from tests.simulation.checks import Checks
from tests.simulation.dispatch import DispatchLoop
from tests.simulation.history import History
from tests.simulation.intake import Bounds, LaneIntake
from tests.simulation.producing import Producer, ProducerClosed
from tests.simulation.retries import RetryIntake
from tests.simulation.serving import Server
from tests.simulation.world import Signal, Sleep, Steps, World

DRAIN_S = 25.0
_STOP_APPS_S = 10.0
_TICK_S = 1.0
_PROBE_UP_S, _PROBE_DOWN_S = 2.0, 0.5
_UNCHANGED_EVERY = 3
_SESSION_S = 6.0


class Worker:
    """One incarnation: a restart is another Worker with another id. Its monotonic clock has its own zero."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        name: str,
        settings: Settings,
        servers: Mapping[str, Server],
        lanes: Mapping[Lane, Group],
        retries: Group,
        checks: Checks,
        bounds: Bounds,
        *,
        on_ended: Callable[[Worker], None],
    ) -> None:
        self.world, self.broker, self.id, self.checks = world, broker, name, checks
        self.may_end, self.is_alive, self.is_paused, self.is_draining = True, True, False, False
        self._is_ending = False
        self.stash: list[Callable[[], None]] = []
        self._settings, self._servers, self._on_ended = settings, servers, on_ended
        self._zero_s = world.rng.uniform(1.0, 1e5)
        self._groups = [*lanes.values(), retries]
        self.clock = BrokerClock()
        self._last: tuple[list[str], bool] | None = None
        self._unchanged = 0
        self._last_beat_s = 0.0
        self.producer = Producer(world, broker, self, self._appended)
        batches, retry = count(1), settings.retry
        self.dispatcher = Dispatcher(
            settings,
            self.clock,
            Fleet(settings.gpus.stale_after_s, settings.pressure),
            AnswerCache(settings.cache.max_entries, settings.cache.max_bytes),
            new_batch_id=lambda: f"b-{name}-{next(batches)}",
            retries=InPlaceRetries(retry.enabled, RetryBudget(retry.budget_ratio), random.Random(world.rng.random())),
        )
        names = broker.names
        topics = {names.requests(lane): group for lane, group in lanes.items()}
        topics |= {names.retry(tier): retries for tier in RetryTier}
        self.history = History(world, broker, topics, {names.retry(tier) for tier in RetryTier}, self)
        self.dispatch = DispatchLoop(
            world,
            self,
            self.dispatcher,
            servers,
            self.producer,
            self.history,
            names,
            checks,
            now=self.now,
            after_let_go=self.send_snapshot,
            on_room=self._wake_intakes,
            on_backend_down=lambda backend: self._probe_soon(backend, 0.0),
        )
        self.history.on_outcome = self.dispatch.ended
        parts = (self.dispatch, self.history, checks, bounds)
        self.intakes = [
            LaneIntake(world, broker, self, lane, group, *parts, now=self.now) for lane, group in lanes.items()
        ]
        self.retries = RetryIntake(world, broker, self, retries, *parts, now=self.now)
        self.members: list[LaneIntake | RetryIntake] = [*self.intakes, self.retries]

    def now(self) -> float:
        return self.world.now_s + self._zero_s

    def start(self) -> None:
        self.world.say(self.id, "starts")
        self.world.spawn(self, self._start())

    def _start(self) -> Steps[None]:
        yield from self.send_snapshot()
        self._tick()
        for name in self._servers:
            self._probe_soon(name, self.world.rng.uniform(0.0, 0.05))
        self.world.spawn(self, self.history.run())
        for intake in self.members:
            yield Sleep(self.world.rng.uniform(0.0, 0.1))
            if self.is_draining:
                return
            intake.start()

    # Beside the apps

    def _wake_intakes(self) -> None:
        for intake in self.intakes:
            intake.wake()

    def _tick(self) -> None:
        if self._is_ending:
            return
        self.checks.clock(self, self.clock.ms(self.now()))
        self.dispatch.reconsider()
        self._tick_snapshot()
        is_idle = not len(self.dispatcher) and not self.dispatch.in_flight and self._last is not None
        self.world.after(_TICK_S * (_UNCHANGED_EVERY if is_idle else 1), self._tick, self)

    def _tick_snapshot(self) -> None:
        content = (self.dispatch.in_flight, self.is_draining)
        self._unchanged += 1
        is_due = self.world.now_s - self._last_beat_s >= _UNCHANGED_EVERY - 0.1
        if content == self._last and not is_due:
            return
        self._last, self._last_beat_s = content, self.world.now_s
        self.producer.post(self.broker.names.workers, 0, self.id, self._snapshot())

    def _snapshot(self) -> WorkerSnapshot:
        at_ms = self.clock.ms(self.now()) if self.clock.is_set else 0
        return WorkerSnapshot(self.id, "host", 1, at_ms, draining=self.is_draining, in_flight=self.dispatch.in_flight)

    def send_snapshot(self) -> Steps[None]:
        yield self.producer.write(self.broker.names.workers, 0, self.id, self._snapshot())

    def _appended(self, timestamp: int) -> None:
        late_ms = self.broker.now_ms() - timestamp
        self.checks.slowest_ms[self.id] = max(late_ms, self.checks.slowest_ms[self.id])
        self.clock.observe(timestamp, now_s=self.now())

    def _probe_soon(self, name: str, wait_s: float) -> None:
        self.world.after(wait_s + self.world.rng.uniform(0.001, 0.02), lambda: self.probe(name), self)

    def probe(self, name: str) -> None:
        if self._is_ending:
            return
        probe = self._servers[name].probe()
        self.dispatch.perform(self.dispatcher.probed(name, probe, now_s=self.now()))
        if not probe.up:
            self._probe_soon(name, _PROBE_DOWN_S)

    # Ends

    def crash(self) -> None:
        self._end(self.dispatch.in_hand)
        for intake in self.members:
            self.world.after(_SESSION_S, self._silence(intake.group, intake))

    def _end(self, running: list[Task]) -> None:
        self.checks.ended_while_running(self, running)
        self.is_alive = False
        for server in self._servers.values():
            server.forget(self.id)
        self._on_ended(self)

    @staticmethod
    def _silence(group: Group, member: LaneIntake | RetryIntake) -> Callable[[], None]:
        return lambda: group.leave(member)

    def pause(self, seconds: float) -> None:
        """Stand still, as a process does that is stopped or swapped out; the brokers put out who is silent for a session."""
        self.world.say(self.id, f"stands still for {seconds:.1f} s")
        self.world.fire("pause", disrupts=True)
        self.is_paused = True
        self.checks.ended_while_running(self, self.dispatch.in_hand)
        self.world.after(_SESSION_S, self._put_out_if_paused)
        self.world.after(seconds, self._wake)

    def _put_out_if_paused(self) -> None:
        if self.is_paused:
            for intake in self.members:
                if intake.group.has(intake):
                    self.world.fire("put out while it stood still")
                intake.group.leave(intake)

    def _wake(self) -> None:
        if not self.is_alive or not self.is_paused:
            return
        self.world.say(self.id, "goes on")
        self.world.resume(self)
        for intake in self.members:
            if intake.is_member and not intake.is_closed:
                intake.group.rejoin(intake)

    def drain(self) -> None:
        if not self._last_beat_s:
            return
        self.world.say(self.id, "drains")
        self.world.fire("drain")
        self.world.spawn(self, self._drain())

    def _drain(self) -> Steps[None]:
        self.is_draining = True
        for intake in self.members:
            intake.close()
            self.dispatch.withdraw(intake, running=False)
        if not (yield from self.dispatch.drain(DRAIN_S)):
            self.world.fire("drained out of time")
        yield from self._stop_apps()
        self._is_ending = True
        self.history.stop()
        self.dispatch.close()
        retracted = Signal()
        self.world.spawn(self, self._retract(retracted))
        yield retracted.wait(_TICK_S)
        yield from self.producer.stop()
        self.world.say(self.id, "is gone")
        self._end([])

    def _retract(self, retracted: Signal) -> Steps[None]:
        with contextlib.suppress(ProducerClosed):
            yield self.producer.write(self.broker.names.workers, 0, self.id, None)
            retracted.set()

    def _stop_apps(self) -> Steps[None]:
        for intake in self.members:
            yield from intake.stop()

    # What is left

    @property
    def unfinished(self) -> dict[Place, list[int]]:
        found: dict[Place, list[int]] = {}
        for intake in self.members:
            found |= intake.unfinished
        return found

    @property
    def leftovers(self) -> dict[str, int]:
        sizes = self.dispatch.leftovers
        # Without news of a commit (it failed, or another worker's was slept through), the next one forgets it.
        is_informed = not self.world.fired["commit failed"] and not self.world.fired["pause"]
        if is_informed and len(self.history.index):
            sizes["finished"] = len(self.history.index)
        return sizes
