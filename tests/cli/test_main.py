"""The command line as such: speed, exit codes, what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cli.errors import Failed, NoSuchTask, NotReachable, SettingsError
from cli.main import VERBS, Verb, main
from streams.settings import KafkaSettings
from wire.connection import BrokersUnreachable, CredentialsUnusable

ROOT = Path(__file__).parents[2]
# What a verb that needs none of it does not wait for. (typer itself takes pydantic to convert a verb's options.)
SLOW = {"faust", "mode", "aiokafka", "aiohttp", "pydantic_settings", "httpx", "rich", "structlog"}

_raised: BaseException | None = None


def broken() -> None:
    """Raise what the test asked for."""
    if _raised is not None:
        raise _raised


@pytest.fixture
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "broken", Verb(f"{__name__}:broken", "Break.", "triage broken"))


@pytest.mark.usefixtures("_verb")
@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (None, 0, ""),
        (typer.Exit(0), 0, ""),
        (typer.Exit(1), 1, ""),
        (Failed("No room."), 1, "triage: No room.\n"),
        (SettingsError("x.toml:3: wrong."), 2, "triage: x.toml:3: wrong.\n"),
        (CredentialsUnusable("No password."), 2, "triage: No password.\n"),
        (typer.BadParameter("no"), 2, "Invalid value: no"),
        (NotReachable("Away."), 3, "triage: Away.\n"),
        (BrokersUnreachable(KafkaSettings(), "refused"), 3, "triage: Kafka does not answer at 127.0.0.1:9092"),
        (NoSuchTask("Unknown."), 4, "triage: Unknown.\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("ouch"), 1, "triage: unexpected ZeroDivisionError: ouch (TRIAGE_DEBUG=1 shows where)\n"),
    ],
)
def test_every_failure_is_an_exit_code_and_a_sentence(
    raised: BaseException | None,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TRIAGE_DEBUG", raising=False)
    monkeypatch.setattr(sys.modules[__name__], "_raised", raised)
    assert code == main(["broken"])
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert bool(told) == bool(shown)


@pytest.mark.usefixtures("_verb")
def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRIAGE_DEBUG", "1")
    monkeypatch.setattr(sys.modules[__name__], "_raised", Failed("No room."))
    assert main(["broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Usage: triage {name}" in shown
    assert f"Example: {VERBS[name].example}" in shown


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name, verb in VERBS.items() if f"  {name} " not in shown or verb.help not in shown] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verson"], "No such command 'verson'. Did you mean 'version'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["version", "--jason"], "No such option"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["--help", "version"])
def test_help_and_version_import_nothing_slow(verb: str) -> None:
    program = f"import sys; from cli.main import main; main([{verb!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set() == SLOW & set(done.stderr.split())


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; from cli.main import run; run()"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"Python finds the package 'agents' at {tmp_path}/agents/__init__.py" in done.stderr
    assert done.stderr.count("\n") == 1


def test_version_names_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["triage", "python", "faust", "aiokafka", "kafka"]
    assert found["kafka"] == "4.3.1 (embedded)"
