"""A real Apache Kafka as child processes: one node, or three that replicate."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from cli.embedded.errors import BrokerDied, DiskFull, NotReady, PortTaken, explained
from cli.embedded.jars import KAFKA_VERSION
from cli.embedded.jvm import Jvm, ensure_jvm, environment
from cli.embedded.nodes import Node, server_properties, write_settings
from cli.embedded.probe import why_not_ready
from cli.embedded.processes import die_with_parent, free_ports, is_port_free
from cli.embedded.storage import DataFolder, ensure_cluster_id, write_storage
from wire.clock import monotonic_s

_PORT_TRIES = 3
_TICK_S = 0.02
_WATCH_S = 0.5
_STOP_S = 20.0
_TAIL_BYTES = 64 * 1024


class KafkaCluster:
    """One or three Kafka nodes on 127.0.0.1, owned by this process: they end when it ends, even by SIGKILL (on Linux).

    Nodes are numbered from 1. `port` is the first broker's, the others follow; 0 takes free ones. `data` keeps the log
    for the next cluster of the same size; None keeps it in a throw-away folder. `properties` override server settings.
    `logs` is a folder for what the nodes say, `kafka-<n>.jsonl` each; None: plain lines beside a node's data.

    Ready means: every running broker lists all running brokers in its metadata, and the controller, asked through each,
    would create a topic with a replica on all of them. From then on a produce works; no topic is left behind.

    Everything here blocks, and nodes must be started from the main thread (the kernel ties them to it). Nothing is
    printed: `progress` is told what takes long.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        port: int = 0,
        data: Path | None = None,
        logs: Path | None = None,
        properties: Mapping[str, str] | None = None,
        heap_mb: int = 256,
        progress: Callable[[str], None] | None = None,
        jvm: Jvm | None = None,
        jvm_flags: Sequence[str] | None = None,
    ) -> None:
        if brokers not in (1, 3):
            raise ValueError("brokers must be 1 or 3")
        self._count, self._port, self._heap_mb = brokers, port, heap_mb
        self._folder, self._logs = DataFolder(data), logs
        self._properties = dict(properties or {})
        self._progress = progress or (lambda _: None)
        self._jvm, self._jvm_flags = jvm, jvm_flags
        self._nodes: list[Node] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()

    def __repr__(self) -> str:
        state = f"at {self.bootstrap}" if self.pids else "stopped"
        return f"<KafkaCluster of {self._count} {state}>"

    @property
    def bootstrap(self) -> str:
        """Addresses of all brokers, comma-separated, as Kafka clients take them; empty before the first start."""
        return ",".join(f"127.0.0.1:{node.broker_port}" for node in self._nodes)

    @property
    def data(self) -> Path | None:
        """Where the log lies; None while there is none."""
        return self._folder.path

    @property
    def pids(self) -> list[int]:
        """Process ids of the nodes that run, paused ones included."""
        return [process.pid for process in self._processes.values() if process.poll() is None]

    def __enter__(self) -> KafkaCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout_s: float = 60.0) -> None:
        """Start all nodes and return when they are ready; on any failure everything is stopped again.

        Raises: EmbeddedError, a sentence for people; BrokerDied and NotReady carry the end of the log.
        """
        try:
            for last_try in (*[False] * (_PORT_TRIES - 1), True):
                self.prepare()
                for node in self._nodes:
                    self._spawn(node)
                try:
                    self.wait_ready(timeout_s)
                    return
                except BrokerDied as died:
                    if self._port or last_try or "Address already in use" not in died.log_tail:
                        raise
                    self._end_processes(signal.SIGKILL)  # a port was taken after it was found free: other ports
        except BaseException:
            self.stop()
            raise

    def prepare(self) -> None:
        """Fetch what is missing, choose ports and write every file, so that `command` can be run."""
        jvm = self._ready_jvm()
        ports = self._broker_ports()
        controllers = free_ports(self._count, avoid=tuple(ports))
        data = self._folder.claim()
        numbers = range(1, self._count + 1)
        self._nodes = [
            Node(
                number,
                data / f"broker-{number}",
                ports[number - 1],
                controllers[number - 1],
                self._logs and self._logs / f"kafka-{number}.jsonl",
            )
            for number in numbers
        ]
        checkpoint = jvm.checkpoint()
        try:
            cluster_id = ensure_cluster_id(data, self._count)
            for node in self._nodes:
                write_settings(node, server_properties(node, self._nodes, self._properties))
                write_storage(node, cluster_id, checkpoint)
        except OSError as error:
            raise explained(error, data) from error

    def command(self, node: int) -> list[str]:
        """Return the command line of a prepared node; run it with `environment()` of `cli.embedded.jvm`."""
        return self._ready_jvm().command(self._node(node), heap_mb=self._heap_mb, flags=self._jvm_flags)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return when all running, unpaused nodes are ready (may be called from any thread).

        Raises: BrokerDied, NotReady.
        """
        expected = {number for number in self._processes if self.poll(number) is None} - self._paused
        pending, ends_s = sorted(expected or self._processes), monotonic_s() + timeout_s
        while pending:
            self._raise_if_died(pending)
            why = why_not_ready(self._node(pending[0]).broker_port, expected)
            if why is None:
                pending.pop(0)
                continue
            if monotonic_s() > ends_s:
                raise NotReady(timeout_s, why, self.log_tail(pending[0]))
            with suppress(subprocess.TimeoutExpired):
                self._processes[pending[0]].wait(_TICK_S)

    def _raise_if_died(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            code = self.poll(number)
            if code is not None:
                tail = self.log_tail(number)
                if "No space left on device" in tail:
                    raise DiskFull(self._node(number).folder)
                raise BrokerDied(number, code, tail)

    def wait_died(self) -> NoReturn:
        """Watch the nodes until one ends by itself.

        Raises: BrokerDied, always; nothing else ends the wait.
        """
        while True:
            self._raise_if_died(sorted(self._processes))
            with suppress(subprocess.TimeoutExpired):
                self._processes[1].wait(_WATCH_S)

    def poll(self, node: int) -> int | None:
        """Return a node's exit status (negative: the signal that ended it), or None while it runs."""
        return self._processes[node].poll()

    def log_tail(self, node: int, lines: int = 40) -> str:
        """Return the last lines of a node's log, after what the Java runtime itself said (normally nothing)."""
        files = self._node(node)
        said = [line for file in (files.output_file, files.log_file) for line in _last_lines(file, lines)]
        return "\n".join(said)

    def kill(self, node: int) -> None:
        """End a node with SIGKILL. Others notice when its session ends: 9 s, or `broker.session.timeout.ms`."""
        self._processes[node].kill()
        self._processes[node].wait()
        self._paused.discard(node)

    def pause(self, node: int) -> None:
        """Freeze a node with SIGSTOP, and return when it is: its connections stay open and silent."""
        self._processes[node].send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._processes[node].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused.add(node)

    def resume(self, node: int) -> None:
        """Let a frozen node go on."""
        self._processes[node].send_signal(signal.SIGCONT)
        self._paused.discard(node)

    def restart(self, node: int, *, timeout_s: float = 60.0, wait: bool = True) -> None:
        """Start a node again on its ports and its log, after a clean end if it still runs; `wait` until it is ready.

        Raises: BrokerDied, NotReady; the other nodes go on.
        """
        if self.poll(node) is None:
            self._end(node, signal.SIGTERM)
        self._spawn(self._node(node))
        if wait:
            self.wait_ready(timeout_s)

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """End all nodes and remove throw-away data; does nothing when there is nothing to stop.

        One node ends cleanly in 0.3 s. Three end cleanly only where the log is kept: the last one waits for a quorum
        that is gone, 5.5 s in all.
        """
        clean = self._count == 1 or self._folder.is_kept
        self._end_processes(signal.SIGTERM if clean else signal.SIGKILL, timeout_s)
        self._folder.release()

    def _end_processes(self, how: signal.Signals, timeout_s: float = _STOP_S) -> None:
        running = [number for number in self._processes if self.poll(number) is None]
        for number in running:
            if number in self._paused:
                self.resume(number)
            self._processes[number].send_signal(how)
        ends_s = monotonic_s() + timeout_s
        for number in running:
            self._wait_or_kill(number, ends_s - monotonic_s())

    def _end(self, number: int, how: signal.Signals) -> None:
        self._processes[number].send_signal(how)
        self._wait_or_kill(number, _STOP_S)

    def _wait_or_kill(self, number: int, timeout_s: float) -> None:
        try:
            self._processes[number].wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self.kill(number)

    def _spawn(self, node: Node) -> None:
        with node.output_file.open("wb") as output:
            self._processes[node.number] = subprocess.Popen(  # noqa: S603 - our own runtime and arguments
                self.command(node.number),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                # Ctrl-C in a terminal goes to a whole group: nodes are ended by us, in our order.
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - it calls prctl and getppid, nothing that takes a lock
            )

    def _ready_jvm(self) -> Jvm:
        if self._jvm is None:
            self._jvm = ensure_jvm(report=self._report)
        return self._jvm

    def _report(self, done: int, total: int) -> None:
        if done == 0:
            self._progress(f"Fetching Apache Kafka {KAFKA_VERSION}: {total} files, once on this machine")

    def _broker_ports(self) -> list[int]:
        if not self._port:
            return free_ports(self._count)
        ports = [self._port + i for i in range(self._count)]
        for port in ports:
            if not is_port_free(port):
                raise PortTaken(port)
        return ports

    def _node(self, number: int) -> Node:
        return self._nodes[number - 1]


def _last_lines(file: Path, lines: int) -> list[str]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            return opened.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
