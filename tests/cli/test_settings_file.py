"""What a stack takes over from the user's settings, and what it fixes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cli.configuration import load
from cli.embedded.settings_file import given, is_ours, place, toml, write
from cli.errors import SettingsError

OWN = """
[kafka]
bootstrap = "kafka.example:9092"
security = "SASL_SSL"
partitions = 12
prefix = "ward"
[lanes.low]
weight = 3
[gpus]
source = "none"
period_s = 2
[cache]
ttl_s = 60
[[tenants]]
name = "ward7 ünïcode 🏥"
weight = 2
priorities = ["high", "low"]
"""
LLAMA = {"name": "llama-1", "kind": "llamacpp", "url": "http://127.0.0.1:1", "any_model": True}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def own(text: str = OWN) -> Path:
    Path("own.toml").write_text(text)
    return Path("own.toml")


def test_the_users_settings_lie_below_what_the_stack_fixes() -> None:
    write(Path("dev.toml"), given(own()).document("127.0.0.1:5", [LLAMA]))
    settings = load(Path("dev.toml"), environ={}).settings
    assert ("127.0.0.1:5", "PLAINTEXT", 6, 1, "ward") == (
        settings.kafka.bootstrap,
        settings.kafka.security,
        settings.kafka.partitions,
        settings.kafka.replication,
        settings.kafka.prefix,
    )
    assert (3, 8) == (settings.lanes.low.weight, settings.lanes.critical.weight)
    assert ("none", 2, 60, 0) == (
        settings.gpus.source,
        settings.gpus.period_s,
        settings.cache.ttl_s,
        settings.metrics.port,
    )
    assert ["ward7 ünïcode 🏥"] == [tenant.name for tenant in settings.tenants]
    assert [LLAMA["url"]] == [backend.url for backend in settings.backends]


def test_backends_of_the_settings_are_used_and_flags_win() -> None:
    config = own('[[backends]]\nname = "mine"\nurl = "http://gpu:8000"\n')
    assert ["mine"] == [row["name"] for row in given(config).backends]
    flagged = given(config, [("vllm", "http://a"), ("openai", "http://b")]).backends
    assert [("backend-1", "vllm"), ("backend-2", "openai")] == [(row["name"], row["kind"]) for row in flagged]
    assert [] == given(None).backends


def test_variables_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAGE_CACHE__TTL_S", "7")
    assert given(None).document("127.0.0.1:5", [])["cache"] == {"ttl_s": 7}


@pytest.mark.parametrize(
    ("backends", "gpus", "told"),
    [
        ([("openai", "gpu:8000")], None, "backends.0.url should match pattern"),
        ([], "simulated", "gpus.source should match pattern"),
        ([], "dcgm", 'gpus.source = "dcgm" needs the exporter\'s address'),
    ],
)
def test_a_wrong_flag_is_a_sentence(backends: list[tuple[str, str]], gpus: str | None, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        given(None, backends, gpus)


def test_a_wrong_setting_is_named_with_its_line() -> None:
    with pytest.raises(SettingsError, match=r"own.toml:.: lanes.lo is not a setting; did you mean low"):
        given(own("[lanes.high]\n[lanes.lo]\nweight = 1\n"))


def test_what_an_earlier_stack_wrote_is_not_taken_for_the_users_own() -> None:
    write(Path("triage.toml"), given(None).document("127.0.0.1:5", [LLAMA]))
    assert [] == given(None).backends


def test_a_settings_file_of_the_users_own_is_not_written_over() -> None:
    folder = Path.cwd()
    assert folder / "triage.toml" == place(folder)
    write(place(folder), {"allow_insecure_dev": True})
    assert folder / "triage.toml" == place(folder)
    (folder / "triage.toml").write_text(OWN)
    assert folder / "dev.toml" == place(folder)
    assert not is_ours(folder / "triage.toml")


def test_a_document_survives_being_written() -> None:
    document = {
        "allow_insecure_dev": True,
        "kafka": {"bootstrap": "127.0.0.1:1", "partitions": 6},
        "lanes": {"low": {"weight": 3, "window_ms": 0.5}},
        "pressure": {"thresholds": [0.5, 0.7, 0.85]},
        "backends": [{"name": "a", "url": "http://x", "any_model": True}, {"name": 'b"\\', "url": "http://🏥"}],
        "tenants": [],
    }
    assert document == tomllib.loads(toml(document))
