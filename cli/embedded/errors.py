"""What can go wrong with the embedded Kafka: each message is one sentence that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path


class EmbeddedError(RuntimeError):
    """The embedded Kafka could not do what was asked; the message is for the person who asked."""


class DevExtraMissing(EmbeddedError):
    """The extra `dev` is not installed."""

    def __init__(self, module: str) -> None:
        super().__init__(
            f"The embedded Kafka needs the Python module {module}, which is not installed: "
            "run `pip install 'triage-kafka[dev]'`."
        )


class JarsUnreachable(EmbeddedError):
    """A jar is not in the cache and could not be fetched."""

    def __init__(self, jar: str, cache: Path) -> None:
        super().__init__(
            f"Could not fetch {jar} for the embedded Kafka, which needs a network on first use only: "
            f"connect (or set HTTPS_PROXY) and try again, or copy {cache} from a machine that has it."
        )


class JarCorrupt(EmbeddedError):
    """A fetched jar is not the pinned one."""

    def __init__(self, jar: str, *, expected: str, actual: str) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(
            f"The fetched {jar} has SHA-256 {actual[:12]}…, not the pinned {expected[:12]}…, and was thrown away: "
            "try again, and if it stays so look for a proxy that rewrites downloads."
        )


class DiskFull(EmbeddedError):
    """No space is left where the embedded Kafka writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"No space is left for {path}: free some there, or name another place "
            "(--data for Kafka's log, XDG_CACHE_HOME for its jars, TMPDIR for throw-away data)."
        )


class NotWritable(EmbeddedError):
    """A folder cannot be made or written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"Cannot write {path} ({reason}): name another place "
            "(--data for Kafka's log, XDG_CACHE_HOME for its jars, TMPDIR for throw-away data)."
        )


class PortTaken(EmbeddedError):
    """Somebody else listens on a port that was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        super().__init__(
            f"Port {port} on 127.0.0.1 is taken: stop what listens there, or choose another port (0 takes a free one)."
        )


class DataInUse(EmbeddedError):
    """Another embedded Kafka runs on the data directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"Another embedded Kafka runs on {path}: stop it, or name another data directory.")


class DataMismatch(EmbeddedError):
    """The data directory was made by a cluster of another size."""

    def __init__(self, path: Path, *, found: int, asked: int) -> None:
        super().__init__(
            f"{path} holds a cluster of {found} broker(s), not {asked}: start {found}, or name another data directory."
        )


class BrokerDied(EmbeddedError):
    """A broker ended by itself; `log_tail` holds its last lines."""

    def __init__(self, node: int, code: int, log_tail: str) -> None:
        self.node, self.code, self.log_tail = node, code, log_tail
        super().__init__(f"Kafka broker {node} ended by itself (exit code {code}): see the end of its log.")


class NotReady(EmbeddedError):
    """The brokers run but did not become ready in time; `log_tail` holds the first broker's last lines."""

    def __init__(self, timeout_s: float, why: str, log_tail: str) -> None:
        self.log_tail = log_tail
        super().__init__(
            f"Kafka was not ready within {timeout_s:g} s ({why}): the machine may be overloaded; "
            "see the end of its log, and try again."
        )


def explained(error: OSError, path: Path) -> EmbeddedError:
    """Return the sentence for a failed write at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(path)
    return NotWritable(path, error.strerror or str(error))
