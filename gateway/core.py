"""A gateway without its HTTP: what is started, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from gateway import places
from gateway.answers import Answers
from gateway.calls import Calls
from gateway.ends import Ends
from gateway.expiry import Expiry
from gateway.finished import FinishedFile
from gateway.fleet import GATEWAY_KEY, Fleet
from gateway.follower import Follower
from gateway.kafka_logs import KafkaLogs
from gateway.metrics import GatewayMetrics
from gateway.ports import Logs, Unavailable
from gateway.tasks import Tasks
from gateway.view import View
from gateway.waiters import Waiters
from schemas.codec import encode
from schemas.progress import WorkerSnapshot
from schemas.topics import Lane
from streams.brokertime import BrokerClock
from streams.settings import Settings
from wire import topics
from wire.clock import monotonic_s
from wire.connection import BrokersUnreachable, client_options, wait_for_brokers
from wire.logs import get_logger
from wire.producing import DurableProducer
from wire.safety import refuse_unsafe

_QUIET_S = 10.0
_TICK_S = 1.0
_RETRACT_S = 1.0
_RETRY_S = 0.5

log = get_logger(__name__)


class Gateway:
    """One gateway process. `calls` is there from the moment the logs are being read, `stop` is set when no more calls are wanted.

    `ready` is set when the view has caught up. `cache_home` is where the view's file goes when no `gateway.data_dir` is set.
    """

    def __init__(self, settings: Settings, *, cache_home: Path) -> None:
        self.settings, self._kafka, self._cache_home = settings, settings.kafka, cache_home
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.metrics = GatewayMetrics()
        self.ready, self.stop = asyncio.Event(), asyncio.Event()
        self.fleet = Fleet(settings.gpus.stale_after_s)
        self._client_id = f"triage-gateway-{self.id}"
        self._clock, self.waiters = BrokerClock(), Waiters()
        self._sent_s = monotonic_s()
        self._calls: Calls | None = None
        self.logs: Logs | None = None

    @property
    def calls(self) -> Calls:
        """Return what the task routes call. Raises: Unavailable before Kafka was reached."""
        if self._calls is None:
            raise Unavailable("the gateway waits for Kafka")
        return self._calls

    @property
    def tasks(self) -> Tasks:
        return self.calls.tasks

    def close(self) -> None:
        """Let calls that wait for a task go, and ask for the end."""
        self.waiters.close()
        self.stop.set()

    async def run(self, ending: asyncio.Event) -> None:
        """Keep the view until `ending` is set. Raises: TopicsDiffer; any other error of a part that ended by itself."""
        while not ending.is_set():
            await wait_for_brokers(self._kafka, log=log, stop=self.stop)
            if self.stop.is_set():
                return
            try:
                await topics.require(self._kafka)
                await refuse_unsafe(self._kafka, self.settings.allow_insecure_dev)
                async with contextlib.AsyncExitStack() as stack:
                    await self._serve(stack, ending)
            except (KafkaError, BrokersUnreachable) as error:  # they answered, and then they did not
                log.warning("Kafka went away while the gateway started; trying again", error=type(error).__name__)
                self._calls = self.logs = None
                await asyncio.sleep(_RETRY_S)

    async def _serve(self, stack: contextlib.AsyncExitStack, ending: asyncio.Event) -> None:
        names, partitions = self._kafka.names, self._kafka.partitions
        finished = await self._open_file(stack)
        view = View(names, partitions, finished, on_second_partition=self.metrics.on_two_partitions.inc)
        producer = DurableProducer(
            self._kafka,
            client_id=self._client_id,
            on_appended=self._appended,
            on_replaced=self.metrics.producer_replaced.inc,
        )
        ends, answers = Ends(self._kafka, client_id=self._client_id), Answers(self._kafka, client_id=self._client_id)
        for part in (producer, ends, answers):
            stack.push_async_callback(part.stop)
        await producer.start()
        await ends.start()
        await answers.start(names.results, *map(names.requests, Lane))
        await self._snapshot(producer)
        stack.push_async_callback(self._retract, producer)
        follower = Follower(
            self._kafka,
            view,
            self.fleet,
            self.waiters,
            answers.kept,
            ends,
            client_id=self._client_id,
            now_ms=lambda: self._clock.ms(monotonic_s()),
        )
        logs = KafkaLogs(producer, follower, ends, answers, self._clock)
        self._calls = Calls.over(
            names,
            partitions,
            view,
            self.fleet,
            logs,
            self.waiters,
            self.metrics,
            random=secrets.token_bytes,
            models=self.settings.models,
        )
        self.logs = logs
        expiry = Expiry(names, partitions, view, logs, gateway_id=self.id)
        await self._until(
            ending,
            follower.run(),
            logs.beat(),
            expiry.run(),
            self._keep_heard(producer),
            self._say_when_ready(follower),
        )

    async def _until(self, ending: asyncio.Event, *works: Coroutine[Any, Any, None]) -> None:
        """Run the parts until `ending`; one that fails ends all. Raises: its error."""
        stopped = asyncio.create_task(ending.wait())
        running: set[asyncio.Task[Any]] = {stopped, *(asyncio.create_task(work) for work in works)}
        try:
            while not stopped.done():
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running -= done
                for part in done:
                    part.result()
        finally:
            for part in running:
                part.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _open_file(self, stack: contextlib.AsyncExitStack) -> FinishedFile:
        admin = AIOKafkaAdminClient(**client_options(self._kafka, client_id=self._client_id))
        try:
            await admin.start()
            cluster = (await admin.describe_cluster())["cluster_id"]
        finally:
            await admin.close()
        origin = f"{cluster}/{self._kafka.prefix}/{self._kafka.partitions}"
        folder = self.settings.gateway.data_dir or places.default_folder(self._cache_home, origin)
        place = places.claim(folder)
        stack.callback(place.release)
        finished = FinishedFile(place.path, origin=origin)
        stack.callback(finished.close)
        log.info("view's file opened", path=place.path or "memory")
        return finished

    async def _say_when_ready(self, follower: Follower) -> None:
        await follower.caught_up.wait()
        self.ready.set()

    # Snapshots: they set the broker's clock and keep it right

    async def _keep_heard(self, producer: DurableProducer) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if monotonic_s() - self._sent_s >= _QUIET_S:
                self._sent_s = monotonic_s()
                await self._snapshot(producer)

    async def _snapshot(self, producer: DurableProducer) -> None:
        key = f"{GATEWAY_KEY}{self.id}"
        at_ms = self._clock.ms(monotonic_s()) if self._clock.is_set else 0
        snapshot = WorkerSnapshot(worker=key, host=socket.gethostname(), pid=os.getpid(), at_ms=at_ms)
        await producer.write(self._kafka.names.workers, 0, key=key.encode(), value=encode(snapshot))

    async def _retract(self, producer: DurableProducer) -> None:
        key = f"{GATEWAY_KEY}{self.id}".encode()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(producer.write(self._kafka.names.workers, 0, key=key, value=None), _RETRACT_S)

    def _appended(self, appended_ms: int) -> None:
        self._sent_s = monotonic_s()
        self._clock.observe(appended_ms, now_s=self._sent_s)
