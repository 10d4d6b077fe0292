"""README's words, typed one by one in a fresh clone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded.llama import llama_command
from cli.embedded.models import instruct_model
from tests.newcomer.clone import Network, blocks, clean_environment, fresh_clone, own_network

pytestmark = [pytest.mark.kafka, pytest.mark.llama, pytest.mark.timeout(400)]

_DEV = ".venv/bin/triage dev"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_clone(tmp_path_factory.mktemp("clone") / "triage")


@pytest.fixture(scope="module")
def readme(clone: Path) -> list[tuple[str, str]]:
    return blocks((clone / "README.md").read_text())


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with own_network() as network:
        yield network


def test_readme_word_by_word(clone: Path, readme: list[tuple[str, str]], network: Network) -> None:
    """One command after another: the first installs and may use the network, the others must not need it."""
    (make_demo, *others) = readme
    assert ("sh", "make demo\n") == make_demo
    demo = subprocess.run(
        ["bash", "-ec", make_demo[1]], cwd=clone, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "From request to answer" in demo.stdout

    dev, server = _DEV.split(), llama_command(instruct_model().path, port=8000)
    with network.running(dev, cwd=clone) as stack, network.running(server, cwd=clone) as own:
        stack.until("Triage is ready", timeout_s=60)
        own.until('"ready"', timeout_s=60)
        for language, text in others:
            _try(language, text, clone, network)
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(15) == 0


def _try(language: str, text: str, clone: Path, network: Network) -> None:
    *commands, last = text.rstrip("\n").split("\n")
    if last.startswith(_DEV):  # it stays until Ctrl-C
        _typed(["bash", "-ec", "\n".join(commands)], clone, network)
        if last != _DEV:
            with network.running(last.split(), cwd=clone) as another:
                another.until("Triage is ready", timeout_s=60)
                another.process.send_signal(signal.SIGINT)
                assert another.process.wait(15) == 0
        return
    command = [".venv/bin/python", "-c", text] if language == "python" else ["bash", "-ec", text]
    said = _typed(command, clone, network)
    if "curl" in text:
        assert '"outcome":"completed"' in said
    if language == "python" and "result" in text:
        assert "completed" in said
    if "France" in text:
        assert "Paris" in said


def _typed(command: list[str], clone: Path, network: Network) -> str:
    done = network.run(command, cwd=clone)
    assert done.returncode == 0, f"{command[-1]}: {done.stdout}{done.stderr}"
    return done.stdout


def test_every_file_that_readme_names_is_there(clone: Path, readme: list[tuple[str, str]]) -> None:
    page = (clone / "README.md").read_text()
    named = {word.strip("`(),.") for word in page.replace("](", " ").replace(")", " ").split() if "/" in word}
    paths = {word for word in named if word.startswith(("docs/", "tests/", "examples/"))}
    assert len(paths) > 8
    assert [] == sorted(path for path in paths if not (clone / path).exists())
