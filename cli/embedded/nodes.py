"""One Kafka node, a broker and a controller in one process: where it lives and what it reads at its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A value of 4 MiB (the largest a topic of ours allows) with its key, headers and batch around it.
_MAX_RECORD_BYTES = 5 * 1024 * 1024

# Measured: these halve a node's memory (297 to 162 MB) and take a third off its start.
_SMALL = {
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "2",
    "num.io.threads": "2",
    "num.network.threads": "2",
    "num.replica.fetchers": "1",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.io.buffer.size": "65536",
    "offsets.load.buffer.size": "1048576",
}

_SERVING = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "message.max.bytes": str(_MAX_RECORD_BYTES),
    "replica.fetch.max.bytes": str(_MAX_RECORD_BYTES),
    # Only for topics without a rule of their own: a week, as stock Kafka.
    "log.retention.ms": str(7 * 24 * 3600 * 1000),
}

_LOG4J2 = """\
status=error
appender.f.type=RollingFile
appender.f.name=F
appender.f.fileName=${sys:kafka.log}
appender.f.filePattern=${sys:kafka.log}.%i
appender.f.layout.type=PatternLayout
appender.f.layout.pattern=@PATTERN@
appender.f.policies.type=Policies
appender.f.policies.size.type=SizeBasedTriggeringPolicy
appender.f.policies.size.size=10MB
appender.f.strategy.type=DefaultRolloverStrategy
appender.f.strategy.max=1
rootLogger.level=${sys:kafka.level:-warn}
rootLogger.appenderRef.f.ref=F
"""
_PLAIN = "%d{HH:mm:ss.SSS} %p %c{1} %m%n"
_JSON = (
    '{"timestamp": "%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}{UTC}Z", "level": "%level{lowerCase=true}", "logger": "%c", '
    '"event": "%enc{%m%ex}{JSON}"}%n'
)


@dataclass(frozen=True)
class Node:
    """Where one node lives: its id (from 1), its folder and its two ports on 127.0.0.1.

    `log` is where its log goes, JSON lines where the name ends in `.jsonl`; None: plain lines in its folder.
    """

    number: int
    folder: Path
    broker_port: int
    controller_port: int
    log: Path | None = None

    @property
    def properties_file(self) -> Path:
        return self.folder / "server.properties"

    @property
    def log4j_file(self) -> Path:
        return self.folder / "log4j2.properties"

    @property
    def log_file(self) -> Path:
        return self.log or self.folder / "kafka.log"

    @property
    def log_pattern(self) -> str:
        """How Log4j writes a line."""
        return _JSON if self.log_file.suffix == ".jsonl" else _PLAIN

    @property
    def output_file(self) -> Path:
        """What the Java runtime itself says: normally empty."""
        return self.folder / "kafka.out"

    @property
    def data(self) -> Path:
        return self.folder / "data"


def server_properties(node: Node, nodes: Sequence[Node], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of `node` in a cluster of `nodes`; `extra` has the last word."""
    count = len(nodes)
    replicas, in_sync = str(count), str(max(1, count - 1))
    internal_topics = {
        f"{topic}.{setting}": value
        for topic in ("transaction.state.log", "share.coordinator.state.topic")
        for setting, value in (("replication.factor", replicas), ("min.isr", in_sync))
    }
    listener, controller = f"127.0.0.1:{node.broker_port}", f"127.0.0.1:{node.controller_port}"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.number),
        "controller.quorum.voters": ",".join(f"{n.number}@127.0.0.1:{n.controller_port}" for n in nodes),
        "listeners": f"PLAINTEXT://{listener},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{listener}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(node.data),
        "offsets.topic.replication.factor": replicas,
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        **internal_topics,
        **_SMALL,
        **_SERVING,
        **extra,
    }


def write_settings(node: Node, properties: Mapping[str, str]) -> None:
    """Write the files that a node reads at its start, over those of an earlier start."""
    node.folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{name}={_escaped(value)}\n" for name, value in properties.items())
    node.properties_file.write_text("".join(lines), encoding="ascii")
    node.log4j_file.write_text(_LOG4J2.replace("@PATTERN@", node.log_pattern), encoding="ascii")


def _escaped(value: str) -> str:
    # Kafka reads the file as ISO 8859-1; Java's properties format has \uXXXX (UTF-16) for everything else.
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)
