"""Apache Kafka's jars, fetched once into a per-user cache.

`kafka-jars.txt` pins every jar by coordinate and SHA-256. All are hashed on every use: 45 MB take 0.03 s where the
processor has SHA instructions, and no marker can go stale. With a complete cache no network is touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cli.embedded.errors import DevExtraMissing, DiskFull, EmbeddedError, JarCorrupt, JarsUnreachable, explained

KAFKA_VERSION = "4.3.1"
_FETCHERS = 8


@dataclass(frozen=True)
class Jar:
    """One pinned jar."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


Fetch = Callable[[Jar, Path], Path]
"""Puts a jar somewhere under the given folder and returns where; any exception means it could not."""

Report = Callable[[int, int], None]
"""Told how many jars are there and how many there will be; from 0 of them to all, and only when some are missing."""


def pinned_jars() -> list[Jar]:
    """Return the jars of `kafka-jars.txt`."""
    text = resources.files("cli.embedded").joinpath("kafka-jars.txt").read_text()
    return [_parsed(line) for line in text.splitlines() if line.strip()]


def _parsed(line: str) -> Jar:
    coordinate, sha256 = line.split()
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, sha256)


def cache_folder() -> Path:
    """Return where everything of this Kafka version is kept for this user: jars, archives, the bootstrap snapshot."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "triage" / f"kafka-{KAFKA_VERSION}"


def ensure_jars(
    *,
    cache: Path | None = None,
    fetch: Fetch | None = None,
    report: Report | None = None,
    jars: list[Jar] | None = None,
) -> list[Path]:
    """Return the paths of all jars, sorted, after fetching the missing or damaged ones.

    Several processes may call this at once: one fetches, the others wait for it.

    Raises: EmbeddedError (JarsUnreachable, JarCorrupt, DiskFull, NotWritable, DevExtraMissing); nothing that failed the
    check is left in the cache.
    """
    jars = pinned_jars() if jars is None else jars
    cache = cache_folder() if cache is None else cache
    folder = cache / "jars"
    if _missing(jars, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(cache / "jars.lock"):
                _fetch_all(_missing(jars, folder), folder, fetch or _maven(), report)
        except OSError as error:
            raise explained(error, cache) from error
    return sorted(folder / jar.file_name for jar in jars)


def _missing(jars: list[Jar], folder: Path) -> list[Jar]:
    return [jar for jar in jars if _sha256(folder / jar.file_name) != jar.sha256]


def _fetch_all(jars: list[Jar], folder: Path, fetch: Fetch, report: Report | None) -> None:
    report = report or (lambda done, total: None)
    report(0, len(jars))
    staging = folder / ".fetching"  # one name, and ours while we hold the lock: what a killed fetch left goes first
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with ThreadPoolExecutor(_FETCHERS) as pool:
        tries = [pool.submit(_fetch_one, jar, folder, staging, fetch) for jar in jars]
        try:
            for done, one in enumerate(tries, 1):
                one.result()
                report(done, len(jars))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _fetch_one(jar: Jar, folder: Path, staging: Path, fetch: Fetch) -> None:
    try:
        found = fetch(jar, staging)
    except EmbeddedError:
        raise
    except Exception as error:  # the Maven client raises what it likes
        full = isinstance(error, OSError) and isinstance(explained(error, folder), DiskFull)
        raise (DiskFull(folder) if full else JarsUnreachable(jar.file_name, folder)) from error
    actual = _sha256(found) or ""
    if actual != jar.sha256:
        raise JarCorrupt(jar.file_name, expected=jar.sha256, actual=actual)
    found.replace(folder / jar.file_name)


def _maven() -> Fetch:
    try:
        import jgo.maven
    except ImportError as error:
        raise DevExtraMissing("jgo") from error

    def fetch(jar: Jar, into: Path) -> Path:
        # Each call has a context of its own: nothing says that one may be shared between threads.
        context = jgo.maven.MavenContext(repo_cache=into, timeout=30)
        return Path(context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve())

    return fetch


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # absent or unreadable: making it anew says why, if that fails too
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it goes with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
