"""Settings from flags, environment, file and defaults; and what is said about wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cli.configuration import load
from cli.errors import SettingsError
from streams.settings import Settings

FILE = """\
allow_insecure_dev = true

[kafka]
bootstrap = "file:9092"
partitions = 6

[lanes.high]
weight = 9

[[backends]]
name = "a"
url = "http://a/v1"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(
    config: Path | None, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, flags, environ=environ or {})
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold(here: Path) -> None:
    loaded = load(None, environ={})
    assert Settings() == loaded.settings
    assert {"default"} == set(loaded.origins.values())


@pytest.mark.parametrize(
    ("flags", "environ", "bootstrap", "origin"),
    [
        ({}, {}, "file:9092", "triage.toml:4"),
        ({}, {"TRIAGE_KAFKA__BOOTSTRAP": "env:1"}, "env:1", "TRIAGE_KAFKA__BOOTSTRAP"),
        ({}, {"TRIAGE_KAFKA": '{"bootstrap": "env:1"}'}, "env:1", "TRIAGE_KAFKA"),
        ({}, {"TRIAGE_KAFKA__BOOTSTRAP": ""}, "file:9092", "triage.toml:4"),
        ({"kafka.bootstrap": "flag:1"}, {"TRIAGE_KAFKA__BOOTSTRAP": "env:1"}, "flag:1", "flag"),
        ({"kafka.bootstrap": None}, {"TRIAGE_KAFKA__BOOTSTRAP": "env:1"}, "env:1", "TRIAGE_KAFKA__BOOTSTRAP"),
    ],
)
def test_flag_over_environment_over_file(
    flags: dict[str, object], environ: dict[str, str], bootstrap: str, origin: str, here: Path
) -> None:
    (here / "triage.toml").write_text(FILE)
    loaded = load(None, flags, environ=environ)
    assert (bootstrap, origin) == (loaded.settings.kafka.bootstrap, loaded.origins["kafka.bootstrap"])
    assert (loaded.settings.kafka.partitions, loaded.origins["kafka.partitions"]) == (6, "triage.toml:5")


def test_a_lane_keeps_the_defaults_that_are_not_set(here: Path) -> None:
    (here / "triage.toml").write_text(FILE)
    loaded = load(None, environ={"TRIAGE_LANES__HIGH__WINDOW_MS": "7"})
    high = loaded.settings.lanes.high
    assert (high.weight, high.window_ms, high.max_wait_s) == (9, 7.0, 120.0)
    assert tuple(loaded.origins[f"lanes.high.{name}"] for name in ("weight", "window_ms", "max_wait_s")) == (
        "triage.toml:8",
        "TRIAGE_LANES__HIGH__WINDOW_MS",
        "default",
    )


@pytest.mark.parametrize(
    ("name", "text", "path", "expected"),
    [
        ("TRIAGE_AUTH__MODES", '["jwt", "keys"]', "auth.modes", ["jwt", "keys"]),
        ("TRIAGE_PRESSURE__THRESHOLDS", "[0.1, 0.2, 0.3]", "pressure.thresholds", (0.1, 0.2, 0.3)),
        ("TRIAGE_SCHEDULING__SIZE_AWARE", "true", "scheduling.size_aware", True),
        ("TRIAGE_METRICS__PORT", "0", "metrics.port", 0),
        ("TRIAGE_GATEWAY__PORT", "1", "gateway.port", 1),
        ("TRIAGE_KAFKA__CA_FILE", "/ca", "kafka.ca_file", Path("/ca")),
        ("TRIAGE_ALLOW_INSECURE_DEV", "1", "allow_insecure_dev", True),
        ("ALLOW_INSECURE_DEV", "true", "allow_insecure_dev", True),
    ],
)
def test_variables(name: str, text: str, path: str, expected: object, here: Path) -> None:
    loaded = load(None, environ={name: text})
    found: object = loaded.settings
    for part in path.split("."):
        found = getattr(found, part)
    assert (expected, name) == (found, loaded.origins[path])


def test_a_list_in_the_environment_replaces_the_one_of_the_file(here: Path) -> None:
    loaded = load(write(here, FILE), environ={"TRIAGE_BACKENDS": '[{"name": "b", "url": "https://b"}]'})
    assert [each.name for each in loaded.settings.backends] == ["b"]
    assert loaded.origins["backends"] == "TRIAGE_BACKENDS"
    told = refusal(write(here, FILE), {"TRIAGE_BACKENDS": '[{"name": "b", "url": "b"}]'})
    assert told.startswith("TRIAGE_BACKENDS: backends.0.url should match")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[kafka]\nbootstrp = "x"', "x.toml:2: kafka.bootstrp is not a setting; did you mean bootstrap?"),
        ("[kafak]\n", "x.toml:1: kafak is not a setting; did you mean kafka?"),
        ("[lanes.critical]\nweigth = 3", "x.toml:2: lanes.critical.weigth is not a setting; did you mean weight?"),
        (
            "# c\n[kafka]\npartitions = 6\n\n[lanes.critcal]\nweight = 3\n",
            "x.toml:5: lanes.critcal is not a setting; did you mean critical?",
        ),
        ("kafka.partitons = 3", "x.toml:1: kafka.partitons is not a setting; did you mean partitions?"),
        ("\nxyzzy = 3", "x.toml:2: xyzzy is not a setting."),
        ('[kafka]\n\npartitions = "many"', "x.toml:3: kafka.partitions should be a valid integer, unable to parse"),
        ('kafka = { partitions = "many" }', "x.toml:1: kafka.partitions should be a valid integer"),
        ("[kafka]\npartitions = 0", "x.toml:2: kafka.partitions should be greater than or equal to 1."),
        ('[logging]\nformat = "xml"', "x.toml:2: logging.format should be 'json' or 'console'."),
        ("[pressure]\nthresholds = [1, 1, 1]", "x.toml:2: pressure thresholds must ascend between 0 and 1."),
        (
            '[[backends]]\nname = "a"\nurl = "http://a"\n[[backends]]\nname = "b"\nurll = "http://b"',
            "x.toml:6: backends.1.urll is not a setting; did you mean url?",
        ),
        ('[[backends]]\nname = "a"', "x.toml:1: backends.0.url is missing."),
        ('[[models]]\nname = "a"\n[[models]]\nname = "a"', "settings: models: the name 'a' stands twice."),
        ("[kafka]\npartitions 3", "x.toml: not TOML: Expected '=' after a key in a key/value pair (at line 2,"),
        ("kafka = 3", "x.toml:1: kafka should be a valid dictionary or instance of KafkaSettings."),
    ],
)
def test_what_is_said_about_a_wrong_file(text: str, told: str, here: Path) -> None:
    write(here, text)
    assert told in refusal(Path("x.toml"))


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (
            {"TRIAGE_KAFKA__BOOTSTRP": "x"},
            "TRIAGE_KAFKA__BOOTSTRP is not a setting; did you mean TRIAGE_KAFKA__BOOTSTRAP?",
        ),
        (
            {"TRIAGE_KAFKA_BOOTSTRAP": "x"},
            "TRIAGE_KAFKA_BOOTSTRAP is not a setting; did you mean TRIAGE_KAFKA__BOOTSTRAP?",
        ),
        ({"TRIAGE_XYZZY": "x"}, "TRIAGE_XYZZY is not a setting."),
        ({"TRIAGE_AUTH__MODES": "jwt"}, "TRIAGE_AUTH__MODES: expected JSON, as in TRIAGE_AUTH__MODES='[\"jwt\"]'."),
        (
            {"TRIAGE_KAFKA__PARTITIONS": "0"},
            "TRIAGE_KAFKA__PARTITIONS: kafka.partitions should be greater than or equal to 1.",
        ),
    ],
)
def test_what_is_said_about_a_wrong_variable(environ: dict[str, str], told: str, here: Path) -> None:
    assert told == refusal(None, environ)


def test_a_wrong_flag_is_named(here: Path) -> None:
    assert refusal(None, flags={"kafka.partitions": 0}).startswith("flag: kafka.partitions should be greater")


def test_every_fault_has_its_line(here: Path) -> None:
    told = refusal(write(here, "[kafka]\npartitons = 1\nreplication = 0\n"), {"TRIAGE_XYZZY": "x"})
    assert len(told.splitlines()) == 3


def test_a_value_is_never_repeated(here: Path) -> None:
    told = refusal(
        write(here, '[kafka]\npassword = "hunter2"\npartitions = "hunter2"'), {"TRIAGE_AUTH__MODES": "hunter2"}
    )
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TRIAGE_DEBUG", "1"),
        ("TRIAGE_GATEWAY_PORT", "tcp://10.0.0.1:8400"),
        ("TRIAGE_GATEWAY_PORT_8400_TCP_ADDR", "10.0.0.1"),
        ("TRIAGE_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("TRIAGE_GATEWAY_SERVICE_PORT_HTTP", "8400"),
        ("PATH", "/bin"),
    ],
)
def test_variables_that_are_not_settings_are_left_alone(name: str, text: str, here: Path) -> None:
    assert Settings() == load(None, environ={name: text}).settings


def test_a_named_file_must_be_there(here: Path) -> None:
    assert refusal(Path("gone.toml")) == "The settings file gone.toml cannot be read: No such file or directory."


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TRIAGE_KAFKA__REPLICATION": "1"}, "kafka.replication = 1 loses acknowledged requests with a disk"),
        ({"TRIAGE_KAFKA__BOOTSTRAP": "10.0.0.1:9092"}, "sends prompts unencrypted to 10.0.0.1:9092"),
        ({"TRIAGE_KAFKA__BOOTSTRAP": "127.0.0.1:1,kafka:9092"}, "sends prompts unencrypted"),
        (
            {"TRIAGE_GATEWAY__HOST": "0.0.0.0"},
            'auth.modes = ["none"] lets everyone in who reaches gateway.host = 0.0.0.0',
        ),
        ({"TRIAGE_GATEWAY__HOST": "::"}, 'auth.modes = ["none"] lets everyone in who reaches gateway.host = ::'),
        (
            {"TRIAGE_GATEWAY__HOST": "10.0.0.1", "TRIAGE_AUTH__MODES": '["jwt"]'},
            "without gateway.tls_cert_file prompts go unencrypted to gateway.host = 10.0.0.1",
        ),
    ],
)
def test_unsafe_settings_need_the_switch(environ: dict[str, str], told: str, here: Path) -> None:
    assert told in refusal(None, environ)
    assert load(None, environ={**environ, "ALLOW_INSECURE_DEV": "true"}).settings.allow_insecure_dev
    assert not load(None, environ=environ, refuse_unsafe=False).settings.allow_insecure_dev


@pytest.mark.parametrize(
    "environ",
    [
        {"TRIAGE_GATEWAY__HOST": "localhost"},
        {"TRIAGE_GATEWAY__HOST": "127.0.0.2"},
        {"TRIAGE_GATEWAY__HOST": "::1"},
        {"TRIAGE_GATEWAY__HOST": "0.0.0.0", "TRIAGE_AUTH__MODES": '["jwt"]', "TRIAGE_GATEWAY__TLS_CERT_FILE": "/c"},
    ],
)
def test_a_gateway_on_loopback_or_with_tokens_and_tls_is_safe(environ: dict[str, str], here: Path) -> None:
    assert environ["TRIAGE_GATEWAY__HOST"] == load(None, environ=environ).settings.gateway.host


@pytest.mark.parametrize("bootstrap", ["localhost:9092", "127.77.3.9:9092", "[::1]:9092", "127.0.0.1:1, 127.0.0.1:2"])
def test_loopback_needs_no_encryption(bootstrap: str, here: Path) -> None:
    assert load(None, environ={"TRIAGE_KAFKA__BOOTSTRAP": bootstrap}).settings.kafka.bootstrap == bootstrap
