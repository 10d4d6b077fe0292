"""All of Triage on one machine: an embedded Kafka, a model server, workers and a GPU publisher as child processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.embedded.fetching import ensure_jvm_shown
from cli.embedded.kafka import KafkaCluster
from cli.embedded.llama import llama_command
from cli.embedded.models import ModelFile, instruct_model
from cli.embedded.processes import free_ports, is_port_free
from cli.embedded.supervisor import Child, Supervisor
from cli.errors import Failed
from streams.settings import KafkaSettings
from wire import topics
from wire.clock import monotonic_s

PARTITIONS = 6
SLOTS, CONTEXT_TOKENS = 4, 2048
_READY_S = 60.0
# Ctrl-C ends everything within ten seconds: a worker's drain, its leave, and the broker's own second.
DRAIN_S, _STOP_CHILDREN_S = 4.0, 7.0


@dataclass(frozen=True)
class Options:
    """What `triage dev` was asked for. `backends`: (kind, url) of own model servers, empty for the embedded one."""

    kafka_port: int = 9092
    data: Path | None = None
    workers: int = 1
    backends: Sequence[tuple[str, str]] = ()
    gpus: str | None = None
    config: Path | None = None


class DevStack:
    """Starts, watches and ends the processes; `ready` is the contract's ready record. For the main thread."""

    def __init__(self, options: Options, *, said: Callable[[str], None]) -> None:
        self._options, self._said = options, said
        self._is_kept = options.data is not None
        self.folder = (options.data or Path(tempfile.mkdtemp(prefix="triage-dev-"))).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(self.folder / "logs", said=said)
        self.model: ModelFile | None = None
        self.gpus = options.gpus or _default_gpus()
        self._cluster: KafkaCluster | None = None
        self._took_s = 0.0
        self._known_ready: set[str] = set()

    @property
    def config(self) -> Path:
        return self.folder / "triage.toml"

    @property
    def bootstrap(self) -> str:
        assert self._cluster is not None
        return self._cluster.bootstrap

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap, partitions=PARTITIONS, replication=1)

    def start(self) -> dict[str, Any]:
        """Start all of it and return the ready record.

        Raises: Failed, EmbeddedError.
        """
        began_s = monotonic_s()
        port = self._options.kafka_port
        if port and not is_port_free(port):
            raise Failed(
                f"Port {port} is taken, perhaps by another Kafka: choose one with --kafka-port, 0 for any free one."
            )
        fetched: list[ModelFile | BaseException] = []
        fetching = threading.Thread(target=self._fetch_model, args=(fetched,), daemon=True)
        fetching.start()
        self._cluster = KafkaCluster(
            port=port,
            data=self.folder / "kafka" if self._is_kept else None,
            progress=self._said,
            jvm=ensure_jvm_shown(),
        )
        self._cluster.start()
        asyncio.run(topics.apply(self.kafka))
        backends = self._start_backend(fetching, fetched)
        self.config.write_text(_toml(self._document(backends)))
        self._start_rest()
        self._took_s = round(monotonic_s() - began_s, 2)
        return self.record()

    def _fetch_model(self, fetched: list[ModelFile | BaseException]) -> None:
        if self._options.backends:
            return
        try:
            fetched.append(instruct_model(progress=self._said))
        except BaseException as error:  # noqa: BLE001 - raised again where the main thread waits for it
            fetched.append(error)

    def _start_backend(
        self, fetching: threading.Thread, fetched: list[ModelFile | BaseException]
    ) -> list[dict[str, Any]]:
        fetching.join()
        if self._options.backends:
            return [
                {"name": f"backend-{number}", "kind": kind, "url": url}
                for number, (kind, url) in enumerate(self._options.backends, 1)
            ]
        (found,) = fetched
        if isinstance(found, BaseException):
            raise found
        self.model = found
        (port,) = free_ports(1)
        command = llama_command(found.path, port=port, slots=SLOTS, context=CONTEXT_TOKENS, alias=found.name)
        self.supervisor.start("backend-1", command, os.environ)
        # It runs on the CPU, so no card is set: a simulated one must not hold its work back.
        row = {"name": "llama-1", "kind": "llamacpp", "url": f"http://127.0.0.1:{port}", "any_model": True}
        return [row]

    def _start_rest(self) -> None:
        command = [sys.executable, "-P", "-m", "cli"]
        # The file says all: a variable meant for another cluster must not reach the children.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIAGE_")}
        config = ["--config", str(self.config), "--json"]
        if self.gpus != "none":
            self.supervisor.start("gpu-publisher", [*command, "gpu-publisher", *config], environment)
        workers = [
            self.supervisor.start(
                f"worker-{number}", [*command, "worker", *config, "--drain-s", str(DRAIN_S)], environment
            )
            for number in range(1, self._options.workers + 1)
        ]
        waited = [child for child in self.supervisor.children.values() if child.name == "backend-1"] + workers
        for child in waited:
            if not self.supervisor.wait_ready(child, _READY_S):
                raise Failed(f"{child.name} did not become ready: {_last_line(child)} (see {child.log})")

    def _document(self, backends: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the settings of the children: the user's own, with what this machine's stack fixes on top."""
        given: dict[str, Any] = {}
        if self._options.config is not None:
            given = tomllib.loads(self._options.config.read_text())
        kafka = {"bootstrap": self.bootstrap, "partitions": PARTITIONS, "replication": 1}
        fixed = {"allow_insecure_dev": True, "kafka": kafka, "metrics": {"port": 0}, "gpus": {"source": self.gpus}}
        return {**given, **fixed, "backends": backends}

    def watch(self) -> None:
        """Look after the children once: start again what died, and write dev.json anew if something changed."""
        assert self._cluster is not None
        changed = bool(self.supervisor.watch())
        if self._cluster.poll(1) is not None:
            self._said("kafka-1 ended; starting it again")
            self._cluster.restart(1)
            changed = True
        newly_ready = {name for name, child in self.supervisor.children.items() if child.is_ready.is_set()}
        if changed or newly_ready != self._known_ready:
            self._known_ready = newly_ready
            self.record()

    def record(self) -> dict[str, Any]:
        """Write dev.json and return the ready record."""
        assert self._cluster is not None
        children = self.supervisor.children
        ready = {
            "event": "ready",
            "gateway": None,
            "kafka": self.bootstrap,
            "backends": self._backend_urls(),
            "data": str(self.folder),
            "pid": os.getpid(),
            "took_s": self._took_s,
        }
        data = self._cluster.data
        kafka_log = data / "broker-1" / "kafka.log" if data is not None else None
        more = {
            "processes": {"kafka-1": self._cluster.pids[0], **{name: child.pid for name, child in children.items()}},
            "metrics": [
                f"http://127.0.0.1:{child.ready['metrics_port']}/metrics"
                for child in children.values()
                if child.ready.get("metrics_port")
            ],
            "logs": {"kafka-1": str(kafka_log), **{name: str(child.log) for name, child in children.items()}},
            "config": str(self.config),
        }
        temporary = self.folder / ".dev.json"
        temporary.write_text(json.dumps({**ready, **more}, indent=1))
        temporary.replace(self.folder / "dev.json")
        return ready

    def _backend_urls(self) -> list[str]:
        own = self.supervisor.children.get("backend-1")
        return [str(own.ready.get("url"))] if own is not None else [url for _, url in self._options.backends]

    def stop(self) -> None:
        """End everything within ten seconds, and remove a throw-away folder."""
        self.supervisor.stop(_STOP_CHILDREN_S)
        if self._cluster is not None:
            self._cluster.stop()
        if not self._is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End everything now."""
        self.supervisor.kill()
        if self._cluster is not None:
            self._cluster.kill(1)


def _default_gpus() -> str:
    from agents.gpu_sources import reader

    source = reader("nvml")
    try:
        return "nvml" if source.read(now_ms=0) else "simulated:2"
    finally:
        source.close()


def _last_line(child: Child) -> str:
    if not child.log.exists():
        return "it wrote nothing"
    lines = child.log.read_text().splitlines()
    return str(json.loads(lines[-1]).get("event", "")) if lines else "it wrote nothing"


def _toml(document: dict[str, Any]) -> str:
    """Return a settings document as TOML: JSON's strings, numbers, booleans and flat lists are TOML's too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in document.items() if not _is_table(value)]
    for key, value in document.items():
        if isinstance(value, dict):
            lines += _table(key, value)
        elif _is_table(value):
            for row in value:
                lines += [f"[[{key}]]", *(f"{name} = {json.dumps(item)}" for name, item in row.items())]
    return "\n".join(lines) + "\n"


def _table(name: str, table: dict[str, Any]) -> list[str]:
    lines = [f"[{name}]", *(f"{key} = {json.dumps(item)}" for key, item in table.items() if not _is_table(item))]
    for key, item in table.items():
        if isinstance(item, dict):
            lines += _table(f"{name}.{key}", item)
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
