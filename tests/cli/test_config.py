"""`triage config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.config import masked
from cli.main import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_show_names_each_value_and_its_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "triage.toml").write_text("[kafka]\npartitions = 6\n")
    monkeypatch.setenv("TRIAGE_KAFKA__PREFIX", "q")
    assert main(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kafka.partitions"] == {"value": 6, "origin": "triage.toml:2"}
    assert shown["kafka.prefix"] == {"value": "q", "origin": "TRIAGE_KAFKA__PREFIX"}
    assert shown["lanes.critical.weight"] == {"value": 8, "origin": "default"}
    assert main(["config", "show"]) == 0
    assert "kafka.partitions" in capsys.readouterr().out


def test_show_also_shows_what_is_unsafe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRIAGE_KAFKA__REPLICATION", "1")
    assert main(["config", "show"]) == 0
    assert "unsafe: kafka.replication = 1" in capsys.readouterr().err


def test_a_wrong_file_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "triage.toml").write_text("[kafka]\npartitons = 6\n")
    assert main(["config", "show"]) == 2
    assert (
        capsys.readouterr().err == "triage: triage.toml:2: kafka.partitons is not a setting; did you mean partitions?\n"
    )


def test_schema_is_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert {"kafka", "lanes", "backends"} <= set(json.loads(capsys.readouterr().out)["properties"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("password", "x", "********"),
        ("api_key", "x", "********"),
        ("api_key_file", "/x", "/x"),
        ("password", None, None),
        ("url", "http://me:secret@host/v1", "http://********@host/v1"),
        ("urls", ["http://me:secret@host"], ["http://********@host"]),
        ("backends", [{"url": "http://k@h", "token": "x"}], [{"url": "http://********@h", "token": "********"}]),
        ("partitions", 6, 6),
    ],
)
def test_secrets_are_masked(name: str, value: object, expected: object) -> None:
    assert expected == masked(name, value)
