"""The composition root of a worker: the one place that names concrete adapters, and where everything is started and ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import secrets
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faust.contrib.asgi import bind_to_running_loop
from prometheus_client import CollectorRegistry, start_http_server

from agents.backends.openai import OpenAIBackend
from agents.cache import CacheFollower
from agents.control import ControlApp, new_control_app
from agents.dispatch import DispatchLoop
from agents.ends import AskedEnds
from agents.faust_app import new_app
from agents.history import History
from agents.intake import LaneIntake
from agents.metrics import WorkerMetrics
from agents.retries import RetryIntake
from agents.snapshots import Snapshots, process_identity
from agents.transport import App
from schemas.progress import WorkerSnapshot
from schemas.topics import Lane
from streams.brokertime import BrokerClock
from streams.caching import AnswerCache, CacheIndex
from streams.dispatcher import Dispatcher
from streams.fleet import Fleet, pools_of
from streams.ports import Backend
from streams.retrying import InPlaceRetries, RetryBudget
from streams.settings import Settings
from streams.snapshot import Describer
from streams.watchdog import STUCK_AFTER_S, Reading, Watchdog
from wire import topics
from wire.clock import monotonic_s
from wire.connection import BrokersUnreachable, wait_for_brokers
from wire.logs import get_logger
from wire.producing import DurableProducer
from wire.safety import refuse_unsafe

DEFAULT_METRICS_PORT = 8401
SESSION_S = 6.0
DRAIN_S = 25.0
_STOP_APPS_S = 10.0
_TICK_S = 1.0
_FLEET_TICK_S = 0.5
_PROBE_UP_S, _PROBE_DOWN_S = 2.0, 0.5
# Queue sizes and fetch bounds per lane: little for lanes whose backlog is large, all that came for the most urgent.
_BUFFERS = {Lane.CRITICAL: 4096, Lane.HIGH: 1024, Lane.NORMAL: 1024, Lane.LOW: 1024}
_MOST_RECORDS = {Lane.CRITICAL: None, Lane.HIGH: 500, Lane.NORMAL: 500, Lane.LOW: 500}

log = get_logger(__name__)


class WorkerCrashed(RuntimeError):
    """A part of the worker ended by itself; its supervisor is to start it again."""


class Worker:
    """One worker process: a Faust app per lane, the control app, the Dispatcher and its shell, all in one event loop."""

    def __init__(
        self, settings: Settings, *, datadir: Path, session_s: float = SESSION_S, drain_s: float = DRAIN_S
    ) -> None:
        self._settings, self._kafka, self._names = settings, settings.kafka, settings.kafka.names
        self._datadir, self._session_s, self._drain_s = datadir, session_s, drain_s
        self._host, self._pid = process_identity()
        self.id = f"{self._host}-{self._pid}-{secrets.token_hex(2)}"
        self.registry = CollectorRegistry()
        self.metrics_port: int | None = None
        self._metrics_server: Any = None
        self._metrics = WorkerMetrics(self.registry)
        self._clock = BrokerClock()
        self._fleet = Fleet(settings.gpus.stale_after_s, settings.pressure, pools_of(settings.backends))
        self._cache = AnswerCache(settings.cache.max_entries, settings.cache.max_bytes)
        self._is_draining = False
        self._catching_up, self._retry_watchdog = Watchdog(), Watchdog()
        self._background: list[asyncio.Task[None]] = []
        self._crash: asyncio.Future[None] | None = None
        self._down: dict[str, asyncio.Event] = {row.name: asyncio.Event() for row in settings.backends}
        self._intakes: list[LaneIntake] = []
        self._dispatch: DispatchLoop | None = None
        self._describer: Describer | None = None

    async def run(self, stop: asyncio.Event, *, ready: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set, then drain: finish running calls, commit, leave the groups.

        Raises: TopicsDiffer before anything was taken in; WorkerCrashed.
        """
        self._crash = asyncio.get_running_loop().create_future()
        await wait_for_brokers(self._kafka, log=log, stop=stop)
        if stop.is_set():
            return
        await self._verify(stop)
        if stop.is_set():
            return
        self._datadir.mkdir(parents=True, exist_ok=True)
        await self._build()
        try:
            self._start()
            joining = asyncio.create_task(self._say_when_ready(ready))
            await self._until(stop)
            joining.cancel()
        finally:
            await self._end()

    async def _verify(self, stop: asyncio.Event) -> None:
        """Return when the topics are as they should be, or `stop` is set; brokers that go away meanwhile are waited for."""
        while not stop.is_set():
            try:
                await topics.require(self._kafka)
                await refuse_unsafe(self._kafka, self._settings.allow_insecure_dev)
            except (BrokersUnreachable, KafkaError) as error:
                log.warning("the topics cannot be looked at; trying again", error=type(error).__name__)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _TICK_S)
                await wait_for_brokers(self._kafka, log=log, stop=stop)
            else:
                return

    async def _build(self) -> None:
        client_id = f"triage-worker-{self.id}"
        self._producer = DurableProducer(
            self._kafka,
            client_id=client_id,
            on_appended=self._appended,
            on_replaced=self._metrics.producer_replaced.inc,
        )
        await self._producer.start()
        self._snapshots = Snapshots(self._producer, self._names.workers, self.id, self._describe)
        await self._snapshots.send()
        batch_numbers = count(1)
        short, retry = self.id.rsplit("-", 2)[1], self._settings.retry
        dispatcher = Dispatcher(
            self._settings,
            self._clock,
            self._fleet,
            self._cache,
            new_batch_id=lambda: f"b-{short}-{next(batch_numbers)}",
            retries=InPlaceRetries(retry.enabled, RetryBudget(retry.budget_ratio), random.Random()),  # noqa: S311 - jitter
        )
        describer = self._describer = Describer(dispatcher)
        self._backends: dict[str, Backend] = {row.name: OpenAIBackend(row) for row in self._settings.backends}
        self._history = History(self._kafka, client_id=client_id, worker=self.id)
        self._dispatch = DispatchLoop(
            dispatcher,
            self._backends,
            self._producer,
            self._history,
            self._names,
            worker=self.id,
            metrics=self._metrics,
            after_let_go=self._snapshots.send,
            on_room=self._wake_intakes,
            cannot_be_met=lambda task: describer.cannot_be_met(task, now_s=monotonic_s()),
            on_sent=lambda batch: describer.sent(batch, now_s=monotonic_s()),
            on_finished=lambda lane: describer.finished(lane, now_s=monotonic_s()),
            on_backend_down=lambda name: self._down[name].set(),
            on_fatal=self._fail,
        )
        cache = self._settings.cache
        index = CacheIndex(cache.max_entries, cache.max_bytes, self._kafka.partitions)
        self._cache_follower = CacheFollower(self._kafka, self._cache, index, client_id=client_id)
        self._history.on_outcome = self._dispatch.ended
        self._intakes = [self._new_intake(lane) for lane in Lane]
        self._retries = RetryIntake(
            self._kafka,
            clock=self._clock,
            receiver=self._dispatch,
            past=self._history,
            metrics=self._metrics,
            client_id=client_id,
            session_s=self._session_s,
        )
        self._ends = AskedEnds(self._kafka, client_id=client_id, wanted=self._read_partitions)
        self._control: ControlApp = new_control_app(
            self._kafka, index, datadir=self._datadir, session_s=self._session_s
        )

    def _new_intake(self, lane: Lane) -> LaneIntake:
        assert self._dispatch is not None
        app = new_app(
            self._names.group(lane.value),
            self._kafka,
            datadir=self._datadir,
            session_s=self._session_s,
            buffer_size=_BUFFERS[lane],
            most_records=_MOST_RECORDS[lane],
        )
        self._metrics.window_s[lane].set(self._settings.lanes[lane].window_ms / 1000)
        return LaneIntake(
            lane,
            app,
            self._names.requests(lane),
            clock=self._clock,
            receiver=self._dispatch,
            past=self._history,
            metrics=self._metrics,
        )

    @property
    def _apps(self) -> list[App]:
        return [*(intake.app for intake in self._intakes), self._control.app]

    def _start(self) -> None:
        self._serve_metrics()
        self._watch(self._tick(), "ticker")  # from here on it is heard of, also while it joins its groups
        self._watch(self._history.run(), "log reader")
        self._watch(self._retries.run(), "retry intake")
        self._watch(self._cache_follower.run(), "cache reader")
        self._watch(self._ends.run(), "reader of ends")
        for name, backend in self._backends.items():
            self._watch(self._probe(name, backend), f"probe of {name}")
        for app in self._apps:
            bind_to_running_loop(app)
            app.finalize()
        # Not awaited: one has started when it was given partitions and has read its tables, which takes as long as they are large.
        for app in self._apps:
            self._watch(_started_and_stopped(app), f"app {app.conf.id}")
        self._watch(self._follow_fleet(), "GPU reader")

    async def _say_when_ready(self, ready: asyncio.Event | None) -> None:
        """Ready means: in every lane's group, with the results log read for the partitions that fell to this worker."""
        for intake in self._intakes:
            await intake.joined.wait()
            while missing := [p for p in intake.partitions if not self._history.is_caught_up(intake.topic, p)]:
                await self._history.caught_up(intake.topic, missing[0])
        # What was imported and set up stays: a full collection that looks through it all holds the loop for 50 to 100 ms.
        gc.collect()
        gc.freeze()
        log.info("worker ready", worker=self.id, metrics_port=self.metrics_port)
        if ready is not None:
            ready.set()

    def _serve_metrics(self) -> None:
        settings = self._settings.metrics
        port = DEFAULT_METRICS_PORT if settings.port is None else settings.port
        server, _ = start_http_server(port, settings.host, self.registry)
        self._metrics_server = server
        self.metrics_port = server.server_port

    async def _until(self, stop: asyncio.Event) -> None:
        assert self._crash is not None
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopped, self._crash], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._crash.done():
            self._crash.result()

    async def _end(self) -> None:
        """Take nothing more in, finish what runs, commit, leave the groups; bounded at every step."""
        self._is_draining = True
        assert self._dispatch is not None
        log.info(
            "draining", worker=self.id, running=len(self._dispatch.dispatcher.running), for_at_most_s=self._drain_s
        )
        intakes: list[LaneIntake | RetryIntake] = [*self._intakes, self._retries]
        for intake in intakes:
            intake.close()
            self._dispatch.withdraw(intake, running=False)
        drained = await self._dispatch.drain(self._drain_s)
        log.info("drained" if drained else "drain time is up; what still runs goes to the next worker", worker=self.id)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(self._stop_apps(), self._retries.stop()), _STOP_APPS_S)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._dispatch.close()
        for backend in self._backends.values():
            await backend.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._snapshots.retract(), _TICK_S)
        await self._producer.stop()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()

    async def _stop_apps(self) -> None:
        for result in await asyncio.gather(*(app.stop() for app in self._apps), return_exceptions=True):
            if isinstance(result, BaseException):
                log.warning("an app did not stop cleanly", error=type(result).__name__)

    # What runs beside the apps

    def _watch(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Run `work` for as long as the worker lives; that it ends by itself is a crash."""

        async def watched() -> None:
            reason = "ended"
            try:
                await work
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                reason = "ended as cancelled, though nobody cancelled it"
            except Exception as error:  # noqa: BLE001 - said once, by the crash
                reason = f"{type(error).__name__}: {error}"
            self._fail(f"{what} {reason}")

        self._background.append(asyncio.create_task(watched()))

    def _fail(self, reason: str) -> None:
        if not self._is_draining and self._crash is not None and not self._crash.done():
            self._crash.set_exception(WorkerCrashed(reason))

    async def _probe(self, name: str, backend: Backend) -> None:
        """Look at a backend again and again, at once when a call says that it is down."""
        assert self._dispatch is not None
        dispatcher = self._dispatch.dispatcher
        was_up: bool | None = None
        while True:
            self._down[name].clear()
            probe = await backend.probe()
            self._dispatch.perform(dispatcher.probed(name, probe, now_s=monotonic_s()))
            self._metrics.backend_up.labels(name).set(probe.up)
            if probe.up is not was_up:
                log.info("backend up" if probe.up else "backend down", backend=name, reason=probe.reason)
                was_up = probe.up
            if probe.up:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._down[name].wait(), _PROBE_UP_S)
            else:
                await asyncio.sleep(_PROBE_DOWN_S)

    async def _follow_fleet(self) -> None:
        assert self._dispatch is not None
        while True:
            now_s = monotonic_s()
            now_ms = self._clock.ms(now_s)
            for sample, appended_ms in self._control.gpu_samples():
                self._fleet.observe(sample, now_s=now_s, age_s=(now_ms - appended_ms) / 1000)
            for change in self._fleet.changes(now_s=now_s):
                before, after = (level.name if level is not None else None for level in (change.before, change.after))
                log.info("GPU pressure changed", gpu=change.gpu, before=before, after=after, cause=change.cause)
                self._dispatch.kick()
            await asyncio.sleep(_FLEET_TICK_S)

    async def _tick(self) -> None:
        assert self._dispatch is not None
        assert self._describer is not None
        while True:
            await asyncio.sleep(_TICK_S)
            self._measure()
            self._describer.look(now_s=monotonic_s())
            self._judge_progress()
            self._dispatch.reconsider()
            await self._snapshots.tick()

    def _measure(self) -> None:
        assert self._dispatch is not None
        dispatcher, now_s, metrics = self._dispatch.dispatcher, monotonic_s(), self._metrics
        for lane in Lane:
            metrics.waiting[lane].set(dispatcher.waiting(lane))
            metrics.oldest_wait_s[lane].set(dispatcher.oldest_wait_s(lane, now_s))
        for state in dispatcher.backends.values():
            metrics.in_flight.labels(state.name).set(state.busy)
            metrics.backend_limit.labels(state.name).set(state.limit)
            metrics.backend_failure_ratio.labels(state.name).set(state.failure_ratio)
            for model, latency_s in state.latency_s.items():
                metrics.backend_latency_s.labels(state.name, model).set(latency_s)
        for gpu, level in self._fleet.levels(now_s=now_s).items():
            if level is None:
                with contextlib.suppress(KeyError):
                    metrics.gpu_pressure.remove(gpu)
            else:
                metrics.gpu_pressure.labels(gpu).set(int(level))

    def _read_partitions(self) -> Iterator[TopicPartition]:
        for intake in self._intakes:
            yield from (TopicPartition(intake.topic, partition) for partition in intake.partitions)
        yield from self._retries.partitions

    def _wake_intakes(self) -> None:
        for intake in self._intakes:
            intake.wake()

    def _judge_progress(self) -> None:
        """End the process when a lane's reading stands still: its supervisor starts it again, and other workers take over meanwhile."""
        now_s = monotonic_s()
        is_behind, read_to = self._history.reading
        if self._catching_up.look({0: Reading(read_to, read_to + is_behind, has_room=True)}, now_s=now_s) is not None:
            self._fail(
                f"the logs of its partitions have not been read on for {STUCK_AFTER_S:g} s, and intake waits for them"
            )
        if self._retry_watchdog.look(self._retries.reading(self._ends.now), now_s=now_s) is not None:
            self._fail(f"a retry topic's partition has stood still for {STUCK_AFTER_S:g} s with records to read")
        for intake in self._intakes:
            stuck = intake.watchdog.look(intake.reading(self._ends.now), now_s=now_s)
            if stuck is not None:
                self._fail(
                    f"partition {stuck} of {intake.topic} has stood still for {STUCK_AFTER_S:g} s with records to read"
                )

    def _appended(self, appended_ms: int) -> None:
        self._clock.observe(appended_ms, now_s=monotonic_s())

    def _describe(self) -> WorkerSnapshot:
        now_s = monotonic_s()
        bare = WorkerSnapshot(
            worker=self.id,
            host=self._host,
            pid=self._pid,
            at_ms=self._clock.ms(now_s) if self._clock.is_set else 0,
            draining=self._is_draining,
        )
        if self._describer is None:
            return bare
        return replace(
            bare,
            lanes=self._describer.lanes(now_s=now_s),
            in_flight=self._dispatch.in_flight if self._dispatch is not None else [],
            fetched_through={
                f"{intake.topic}/{partition}": offset
                for intake in self._intakes
                for partition, offset in intake.fetched_through.items()
            },
            classes=self._describer.classes(now_s=now_s, to_ms=self._clock.ms),
            backends=self._describer.backends(now_s=now_s),
            pace=self._describer.pace(now_s=now_s),
            strict=self._settings.scheduling.policy == "strict",
        )


async def _started_and_stopped(app: App) -> None:
    await app.maybe_start()
    await app.wait_until_stopped()
