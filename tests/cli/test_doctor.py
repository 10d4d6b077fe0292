"""`triage doctor`: what each check makes of what it sees, how it is shown, and all of it on nothing and on a real Kafka."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.checks import backends, brokers, clock, consumers, disk, gpus, installed, settings, topics
from cli.checks.bounds import bounded, in_thread
from cli.checks.brokers import Cluster
from cli.checks.consumers import Group
from cli.checks.finding import Finding, Level, error, listed, ok, skipped, warning
from cli.checks.servers import Server
from cli.configuration import unsafe
from cli.doctor import Report, rendered, with_config
from cli.main import main
from schemas.codec import encode
from schemas.gpu import GpuId, GPUMetrics, GpuSource, ReadingError
from schemas.topics import catalogue
from streams.catalogue import Action, Difference
from streams.ports import Probe
from streams.settings import BackendSettings, GpuSettings, KafkaSettings, ModelSettings, Settings
from tests.support.scripted import ScriptedServer
from tests.support.stack import Stack, request
from wire.clock import wall_ms

GIB = 1 << 30


def levels(found: list[Finding]) -> list[str]:
    return [each.level.value for each in found]


# Settings and secrets


def test_safe_settings_are_one_line() -> None:
    assert [ok("settings", "x.toml; nothing unsafe")] == settings.permitted(Settings(), "x.toml")


def test_what_is_unsafe_is_an_error_without_the_switch_and_a_warning_with_it() -> None:
    values = {"kafka": {"replication": 1, "bootstrap": "broker:9092"}}
    found = settings.permitted(Settings.model_validate(values), "x.toml")
    risks = unsafe(Settings.model_validate(values))
    assert [(Level.ERROR, risk) for risk in risks] == [(each.level, each.found) for each in found]
    assert all("allow_insecure_dev = true" in (each.remedy or "") for each in found)
    found = settings.permitted(Settings.model_validate({**values, "allow_insecure_dev": True}), "x.toml")
    switch = "allow_insecure_dev = true permits unsafe settings"
    assert [(Level.WARNING, each) for each in (switch, *risks)] == [(each.level, each.found) for each in found]


@pytest.mark.parametrize(
    ("mode", "level", "told"),
    [(0o600, "ok", "1 file"), (0o640, "warning", "has mode 640"), (None, "error", "No such file")],
)
def test_a_secret_is_there_for_its_owner_alone(tmp_path: Path, mode: int | None, level: str, told: str) -> None:
    path = tmp_path / "key"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    given = Settings.model_validate({"backends": [{"name": "a", "url": "http://a", "api_key_file": path}]})
    (found,) = settings.secrets(given)
    assert (level, True) == (found.level.value, told in found.found)
    assert (level == "ok") is (found.remedy is None)
    if level == "warning":
        assert found.remedy == f"chmod 600 {path}"


def test_without_a_secret_nothing_is_said() -> None:
    assert [] == settings.secrets(Settings())


# This installation


def test_this_installation_has_its_libraries_and_codecs() -> None:
    assert ["ok", "ok"] == levels(installed.look())
    assert {"faust-streaming", "aiokafka"} == set(installed.pinned())


@pytest.mark.parametrize("found", ["0.13.0", None])
def test_another_release_of_a_pinned_library_is_an_error(found: str | None) -> None:
    (told,) = installed.libraries({"aiokafka": "0.14.0"}, {"aiokafka": found})
    assert (Level.ERROR, "pip install 'aiokafka==0.14.0'") == (told.level, told.remedy)
    assert (found or "not installed") in told.found


def test_a_codec_that_does_not_give_back_what_it_was_given_is_an_error() -> None:
    def absent(data: bytes) -> bytes:
        raise NotImplementedError("not available")

    found = installed.codecs({"gzip": (bytes, bytes), "zstd": (absent, bytes), "lz4": (bytes, lambda data: data[1:])})
    assert ["error", "error"] == levels(found)
    assert ["zstd: NotImplementedError", "lz4: does not give back"] == [
        each.found[: len(told)]
        for each, told in zip(found, ["zstd: NotImplementedError", "lz4: does not give back"], strict=True)
    ]


@pytest.mark.parametrize(
    ("free_bytes", "is_writable", "level"),
    [(2 * GIB, True, "ok"), (GIB // 2, True, "warning"), (GIB // 20, True, "error"), (2 * GIB, False, "error")],
)
def test_little_room_is_a_warning_and_none_an_error(free_bytes: int, is_writable: bool, level: str) -> None:
    assert [level] == levels(disk.room(Path("/data"), free_bytes, is_writable=is_writable))


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_around_it(tmp_path: Path) -> None:
    (found,) = disk.look(tmp_path / "not" / "yet")
    assert f"for {tmp_path}/not/yet" in found.found


def test_files_go_to_the_data_folder_else_to_the_cache() -> None:
    assert Path("/c") == disk.folder(Settings(), {"XDG_CACHE_HOME": "/c"})
    assert Path("/d") == disk.folder(Settings.model_validate({"gateway": {"data_dir": "/d"}}), {"XDG_CACHE_HOME": "/c"})


# Kafka


@pytest.mark.parametrize(
    ("cluster", "replication", "expected", "told"),
    [
        (Cluster(3, 4), 3, ["ok"], "3 brokers, Kafka 4.0 or newer"),
        (Cluster(3, 0), 3, ["ok"], "Kafka before 4.0"),
        (Cluster(1), 1, ["ok"], "answers: 1 broker"),
        (Cluster(1), 3, ["ok", "error"], "set kafka.replication = 1 and allow_insecure_dev = true"),
        (Cluster(2), 3, ["ok", "error"], "set kafka.replication = 2"),
        (Cluster(3, leaderless=("a",), in_sync=0, min_in_sync=1), 3, ["ok", "error", "error"], "no broker leads a"),
        (Cluster(3, behind=("a",), in_sync=2, min_in_sync=2), 3, ["ok", "warning"], "copies are behind in a"),
        (Cluster(3, behind=("a",), in_sync=1, min_in_sync=2), 3, ["ok", "error"], "1 of 2 copies in sync"),
    ],
)
def test_a_cluster_must_be_able_to_keep_what_is_written(
    cluster: Cluster, replication: int, expected: list[str], told: str
) -> None:
    found = brokers.findings(cluster, KafkaSettings(replication=replication))
    assert expected == levels(found)
    assert told in " ".join(f"{each.found} {each.remedy}" for each in found)


def test_the_metadata_tells_which_copies_are_behind() -> None:
    def partition(leader: int, replicas: int, in_sync: int) -> dict[str, Any]:
        return {"leader": leader, "replicas": list(range(replicas)), "isr": list(range(in_sync))}

    described = [
        {"topic": "a", "partitions": [partition(0, 3, 3), partition(1, 3, 2), partition(1, 3, 2)]},
        {"topic": "b", "partitions": [partition(-1, 3, 1)]},
    ]
    assert Cluster(3, 4, ("b",), ("a", "b"), 1, 2) == brokers.seen(3, 4, described, 2)
    assert Cluster(3) == brokers.seen(3, None, [], None)


def test_missing_topics_are_one_finding_and_others_name_what_to_do() -> None:
    missing = [Difference(f"t{n}", "topic", "", "missing", "", Action.CREATE) for n in range(5)]
    altered = Difference("a", "message.timestamp.type", "LogAppendTime", "CreateTime", "", Action.ALTER)
    fixed = Difference("b", "partitions", "12", "6", "set kafka.partitions", Action.NONE)
    assert [
        error("topics", "missing: t0, t1, t2 and 2 more", "`triage topics apply`"),
        error("topics", "a: message.timestamp.type is CreateTime, wanted LogAppendTime", "`triage topics apply`"),
        error("topics", "b: partitions is 6, wanted 12", "set kafka.partitions"),
    ] == topics.findings([*missing, altered, fixed], 17)
    assert [ok("topics", "17 topics match the catalogue")] == topics.findings([], 17)
    assert topics.findings([altered] * 8, 17)[-1].found == "3 more differences"


@pytest.mark.parametrize(
    ("appended_ms", "level", "told"),
    [
        (100_020, "ok", "within 40 ms"),
        (101_000, "ok", "within 1020 ms"),
        (103_500, "warning", "this machine's clock is 3.5 s behind the broker's"),
        (97_000, "warning", "this machine's clock is 3.0 s ahead of the broker's"),
        (115_000, "error", "15.0 s behind"),
        (40_000, "error", "60.0 s ahead of"),
    ],
)
def test_a_clock_that_is_off_is_told_with_its_direction(appended_ms: int, level: str, told: str) -> None:
    (found,) = clock.findings(clock.skew(appended_ms, before_ms=99_980, after_ms=100_020))
    assert (level, True) == (found.level.value, told in found.found)


def test_a_slow_answer_proves_no_skew() -> None:
    assert ["ok"] == levels(clock.findings(clock.skew(100_000, before_ms=100_000, after_ms=104_000)))
    assert ["skipped"] == levels(clock.findings(None))


@pytest.mark.parametrize(
    ("members", "lag", "level", "told"),
    [
        (1, 7, "ok", "1 worker in the groups; requests not acknowledged: l 7"),
        (0, 0, "warning", "nothing waits"),
        (0, 7, "error", "no worker in l (7 waiting)"),
    ],
)
def test_a_group_without_members_is_an_error_only_while_requests_wait(
    members: int, lag: int, level: str, told: str
) -> None:
    (found,) = consumers.findings([Group("l", members, lag), Group("c", 1)])
    assert (level, True) == (found.level.value, told in found.found)
    assert found.remedy == (None if level == "ok" else "start `triage worker`")


# Backends


def server(*models: str, up: bool = True, slots: int | None = 4, **seen: Any) -> Server:
    probe = Probe(up, models, slots, reason=None if up else "HTTP 503 from /health")
    kind = seen.get("kind", "llamacpp")
    return Server(
        kind, seen.get("looks_like", kind), probe, seen.get("has_metrics", True), seen.get("needs_key", False)
    )


def backend(**fields: Any) -> BackendSettings:
    return BackendSettings.model_validate({"name": "a", "kind": "llamacpp", "url": "http://a", **fields})


@pytest.mark.parametrize(
    ("row", "seen", "expected", "remedy"),
    [
        (backend(), server("tiny"), ["ok"], None),
        (backend(models=["tiny"]), server("tiny", "other"), ["ok"], None),
        (backend(models=["big"]), server("tiny"), ["ok", "error"], 'serve it, or set models = ["tiny"] for backend a'),
        (backend(models=["big"], any_model=True), server("tiny"), ["ok"], None),
        (backend(models=["big"]), server(), ["ok"], None),
        (backend(max_concurrency=4), server("tiny"), ["ok"], None),
        (backend(max_concurrency=8), server("tiny"), ["ok", "warning"], "set max_concurrency = 4, or leave it out"),
        (backend(max_concurrency=8), server("tiny", slots=None), ["ok"], None),
        (backend(), server("tiny", has_metrics=False), ["ok", "warning"], "start llama.cpp's server with --metrics"),
        (
            backend(kind="vllm"),
            server(kind="vllm", has_metrics=False),
            ["ok", "warning"],
            "let this machine reach the server's /metrics",
        ),
        (
            backend(kind="openai"),
            server(kind="openai", looks_like="vllm", has_metrics=None),
            ["ok", "warning"],
            'set kind = "vllm"',
        ),
        (backend(), server(looks_like="openai"), ["ok"], None),
        (
            backend(),
            server(up=False),
            ["error"],
            "start the server, or correct the url of backend a; `curl -i` on it shows what answers",
        ),
        (
            backend(),
            server(up=False, needs_key=True),
            ["error"],
            "put its key into a file of mode 600 and set api_key_file of backend a",
        ),
    ],
)
def test_a_backend_is_what_the_settings_say(
    row: BackendSettings, seen: Server, expected: list[str], remedy: str | None
) -> None:
    found = backends.findings(row, seen)
    assert (expected, remedy) == (levels(found), found[-1].remedy)


def test_a_model_that_no_backend_serves_is_named_once_all_are_known() -> None:
    rows = [ModelSettings(name="tiny"), ModelSettings(name="huge"), ModelSettings(name="x", aliases=["tiny"])]
    found = backends.unserved(rows, [backend()], {"a": server("tiny")})
    assert ["no backend serves the model huge"] == [each.found for each in found]
    assert [] == backends.unserved(rows, [backend(any_model=True)], {"a": server("tiny")})
    assert [] == backends.unserved(rows, [backend()], {"a": server()})
    assert [] == backends.unserved(rows, [backend()], {})


def test_without_a_backend_the_remedy_writes_one() -> None:
    (found,) = backends.missing(Settings())
    assert (Level.WARNING, True) == (found.level, "triage config init --backend-url" in (found.remedy or ""))


async def test_a_backend_is_looked_at_with_its_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    async with ScriptedServer(models=("scripted",), slots=2) as running:
        row = backend(kind="openai", url=running.url, models=["scripted"], api_key_file=key)
        seen, found = await backends.look(row)
    assert ("llamacpp", ["ok", "warning"]) == (seen.looks_like, levels(found))


# GPUs


def sample(uuid: str = "GPU-1", **readings: Any) -> GPUMetrics:
    full = {"memory_total_bytes": 24 * GIB, "memory_used_bytes": GIB, **readings}
    return GPUMetrics(GpuId(uuid, 0, "NVIDIA L4", "h"), GpuSource.NVML, 0, **full)


@pytest.mark.parametrize(
    ("source", "samples", "expected", "told"),
    [
        ("none", [], ["ok"], "by choice"),
        ("nvml", [], ["warning"], 'set gpus.source = "none"'),
        ("nvml", [sample()], ["ok"], "nvml: 0 NVIDIA L4"),
        ("simulated:1", [sample()], ["ok"], "not real ones"),
        ("nvml", [sample(lost=True)], ["ok", "error"], "card 0 is lost"),
        ("nvml", [sample(faults=["xid_48"])], ["ok", "error"], "card 0 is broken: xid_48"),
        (
            "nvml",
            [sample(memory_used_bytes=None, errors=[ReadingError("memory", "No Permission")])],
            ["ok", "warning"],
            "(No Permission)",
        ),
        ("nvml", [sample(errors=[ReadingError("power_w", "Not Supported")])], ["ok", "ok"], "power_w (Not Supported)"),
    ],
)
def test_cards_are_named_with_what_they_do_not_tell(
    source: str, samples: list[GPUMetrics], expected: list[str], told: str
) -> None:
    found = gpus.cards(source, samples, "no driver")
    assert expected == levels(found)
    assert told in " ".join(f"{each.found} {each.remedy}" for each in found)


@pytest.mark.parametrize(
    ("ages_s", "source", "level", "told"),
    [
        ([0.4, 1.2], "nvml", "ok", "2 cards, the oldest sample 1.2 s old"),
        ([0.4, 61], "nvml", "warning", "1 of 2 cards are stale: GPU-1 (61 s old)"),
        ([600], "none", "warning", "GPU-0 (10 min old)"),
        ([], "nvml", "warning", "no samples"),
        ([], "none", "ok", "as gpus.source says"),
    ],
)
def test_old_samples_ask_for_a_publisher(ages_s: list[float], source: str, level: str, told: str) -> None:
    seen = [gpus.Seen(sample(f"GPU-{number}"), age_s) for number, age_s in enumerate(ages_s)]
    (found,) = gpus.samples_seen(seen, GpuSettings(source=source))
    assert (level, True) == (found.level.value, told in found.found)
    assert (level == "warning") is ("`triage gpu-publisher`" in (found.remedy or ""))


@pytest.mark.parametrize(
    ("status", "told", "level"),
    [
        (200, 'DCGM_FI_DEV_FB_USED{gpu="0"} 1', "ok"),
        (200, "<html>", "error"),
        (404, "", "error"),
        (None, "ConnectError", "error"),
    ],
)
def test_a_dcgm_exporter_must_tell_readings(status: int | None, told: str, level: str) -> None:
    assert [level] == levels(gpus.dcgm("http://dcgm:9400/metrics", status, told))


async def test_dcgm_without_a_url_or_an_exporter_is_an_error() -> None:
    assert ["error"] == levels(await gpus.look(GpuSettings(source="dcgm")))
    assert ["error"] == levels(await gpus.look(GpuSettings(source="dcgm", dcgm_url="http://127.0.0.1:9/metrics")))


# Bounds, and what is shown


async def test_a_look_that_hangs_is_given_up() -> None:
    async def hang() -> list[Finding]:
        await asyncio.Event().wait()
        raise AssertionError

    expected = [error("x", "no answer within 0.01 s", "mend it")]
    assert expected == await bounded("x", hang(), remedy="mend it", timeout_s=0.01)


async def test_a_look_that_fails_is_a_finding() -> None:
    async def fail() -> list[Finding]:
        raise OSError("broken")

    assert [error("x", "OSError: broken", "mend it")] == await bounded("x", fail(), remedy="mend it")


async def test_a_driver_that_hangs_is_left_behind() -> None:
    release, ended = threading.Event(), threading.Event()

    def hang() -> None:
        release.wait()
        ended.set()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(in_thread(hang), 0.01)
    release.set()
    assert ended.wait(5)
    assert await in_thread(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


FOUND = [ok("kafka", "answers"), error("topics", "missing", "`triage topics apply`"), skipped("clock", "no topics")]


def test_a_person_sees_sign_check_and_remedy() -> None:
    assert rendered(FOUND).splitlines() == [
        "ok       kafka   answers",
        "error    topics  missing",
        "                 → `triage topics apply`",
        "skipped  clock   no topics",
        "",
        "1 error, 0 warnings",
    ]


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("`triage topics apply`", "`triage topics apply --config 'my files/x.toml'`"),
        ("start `triage worker`", "start `triage worker --config 'my files/x.toml'`"),
        ("`triage kafka run`", "`triage kafka run`"),
    ],
)
def test_commands_name_the_settings_file(remedy: str, expected: str) -> None:
    found = warning("x", "y", remedy)
    assert expected == with_config(found, Path("my files/x.toml")).remedy
    assert found == with_config(found, None)


@pytest.mark.parametrize(
    ("found", "is_reachable", "has_settings", "code"),
    [
        ([warning("a", "b", "c")], True, True, 0),
        ([error("a", "b", "c")], True, True, 1),
        ([error("a", "b", "c")], False, True, 3),
        ([error("a", "b", "c")], False, False, 2),
    ],
)
def test_the_exit_code_says_how_bad_it_is(
    found: list[Finding], is_reachable: bool, has_settings: bool, code: int
) -> None:
    assert code == Report(found, is_reachable, has_settings).exit_code


def test_a_list_is_cut() -> None:
    assert ["a, b, c", "a, b, c and 1 more"] == [listed(list("abc")), listed(list("abcd"))]


# All of it


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def doctor(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code, and the findings by check."""
    code = main(["doctor", "--config", str(config), "--json"])
    shown = capsys.readouterr()
    assert shown.err == ""
    return code, by_check(shown.out)


def by_check(shown: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(shown)["findings"]:
        assert list(each) == ["check", "level", "found", "remedy"]
        assert (each["remedy"] is None) is (each["level"] in ("ok", "skipped"))
        found.setdefault(each["check"], []).append(each)
    return found


@pytest.mark.parametrize("answer", ["none", "silence"])
def test_with_everything_down_it_still_says_what_to_do_in_eight_seconds(
    answer: str, silent: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = silent if answer == "silence" else 9
    config = tmp_path / "x.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "127.0.0.1:{port}"\n'
        f'[gpus]\nsource = "dcgm"\ndcgm_url = "http://127.0.0.1:{port}/metrics"\n'
        f'[[backends]]\nname = "a"\nurl = "http://127.0.0.1:{port}"\n'
    )
    began_s = time.monotonic()
    code, found = doctor(config, capsys)
    assert time.monotonic() - began_s < 8
    assert code == 3
    assert [[row["level"] for row in found[check]] for check in ("kafka", "gpus", "backend a")] == [["error"]] * 3
    assert "`triage dev`" in found["kafka"][0]["remedy"]
    skipped_checks = {check for check, rows in found.items() if rows[0]["level"] == "skipped"}
    assert skipped_checks == {"topics", "clock", "workers", "samples"}
    assert [found[check][0]["level"] for check in ("settings", "libraries", "codecs")] == ["ok"] * 3


def test_settings_that_cannot_be_read_are_named_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "x.toml"
    config.write_text("[kafka]\npartitons = 6\n")
    code, found = doctor(config, capsys)
    assert code == 2
    assert "x.toml:2: kafka.partitons is not a setting" in found["settings"][0]["found"]
    assert found["libraries"][0]["level"] == "ok"


def test_a_password_file_that_is_missing_is_an_error_and_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "x.toml"
    config.write_text('[kafka]\nsecurity = "SASL_SSL"\nusername = "me"\npassword_file = "/nowhere"\n')
    code, found = doctor(config, capsys)
    assert code == 3
    assert "kafka.password_file /nowhere" in found["kafka"][0]["found"]
    assert found["secrets"][0]["level"] == "error"


@pytest.mark.kafka
async def test_topics_that_are_missing_are_an_error_with_its_command(kafka: str, tmp_path: Path) -> None:
    async with Stack(kafka, tmp_path, [("openai", "http://127.0.0.1:9")], creates_topics=False) as stack:
        done = await asyncio.to_thread(stack.run, "doctor", "--json")
    found = by_check(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert found["topics"][0]["remedy"] == f"`triage topics apply --config {stack.config}`"
    assert [found[check][0]["level"] for check in ("kafka", "clock", "workers", "samples")] == ["ok", *["skipped"] * 3]


@pytest.mark.kafka
async def test_a_worker_that_serves_is_seen_and_so_is_its_absence(kafka: str, tmp_path: Path) -> None:
    async with ScriptedServer() as running, Stack(kafka, tmp_path, [("llamacpp", running.url)]) as stack:
        worker = await stack.start_worker()
        async with stack.producer() as producer:
            reading = GPUMetrics(GpuId("GPU-1", 0, "NVIDIA L4", "h"), GpuSource.NVML, wall_ms())
            await producer.send_and_wait(stack.names.gpu_metrics, encode(reading), key=b"GPU-1")
            served = await asyncio.to_thread(stack.run, "doctor", "--json")
            stack.end(worker)
            await producer.send_and_wait(f"{stack.prefix}.requests.high", request())
        left = await asyncio.to_thread(stack.run, "doctor", "--json")
        async with stack.reader(stack.names.workers, partitions=1) as reader:
            snapshots = {record.key: record.value for record in await reader.to_end()}
    found = by_check(served.stdout)
    assert (served.returncode, served.stderr) == (0, "")
    told = {check: (found[check][0]["level"], found[check][0]["found"]) for check in ("topics", "workers", "samples")}
    high = f"{stack.prefix}-high"
    assert told["topics"] == ("ok", f"{len(catalogue(stack.names, partitions=1))} topics match the catalogue")
    assert told["workers"] == ("ok", told["workers"][1])
    assert "1 worker in the groups" in told["workers"][1]
    assert told["samples"][0] == "ok"
    assert [found[check][0]["level"] for check in ("kafka", "clock", "backend b1")] == ["ok"] * 3
    (nobody,) = by_check(left.stdout)["workers"]
    assert left.returncode == 1
    assert (nobody["level"], f"{high} (1 waiting)" in nobody["found"]) == ("error", True)
    # What was written to measure the clock counts as nobody's worker, and is taken back.
    ours = {key: value for key, value in snapshots.items() if b"doctor-" in key}
    assert len(ours) == 2
    assert {(key.partition(b"/")[0], value) for key, value in ours.items()} == {(b"gateway", None)}


@pytest.mark.kafka
def test_partitions_that_nobody_set_are_taken_from_a_cluster_on_this_machine(
    kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def prepared() -> str:
        async with Stack(kafka, tmp_path, []) as stack:
            return stack.prefix

    config = tmp_path / "short.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "{kafka}"\nprefix = "{asyncio.run(prepared())}"\n[gpus]\nsource = "none"\n'
    )
    code, found = doctor(config, capsys)
    assert (0, "ok", "ok") == (code, found["topics"][0]["level"], found["kafka"][0]["level"])
    assert found["workers"][0]["level"] == "warning"
