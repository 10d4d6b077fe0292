"""`triage config init`: what kind of server it is, what is said of it, and the file that is written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agents.backends.kinds import KindName
from cli import config_init
from cli.checks import servers
from cli.checks.servers import Reply, Server
from cli.config_init import Found
from cli.embedded.random_model import random_model
from cli.errors import SettingsError
from cli.main import main
from schemas.gpu import GpuId
from streams.ports import Probe
from streams.settings import Settings
from tests.support.llama import llama_server

LLAMA_METRICS = b"# HELP llamacpp:requests_processing x\nllamacpp:requests_processing 0\n"
VLLM_METRICS = b'vllm:num_requests_running{model_name="big"} 0\n'
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def serving(answers: Mapping[str, tuple[int, object]]) -> AsyncIterator[str]:
    """Answer each path with its status and JSON, or bytes as they are; any other path with 404."""

    async def answer(request: web.Request) -> web.Response:
        status, body = answers.get(request.path, (404, {}))
        if isinstance(body, bytes):
            return web.Response(body=body, status=status)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def models(*names: str, owner: str = "someone") -> tuple[int, object]:
    return 200, {"object": "list", "data": [{"id": name, "owned_by": owner} for name in names]}


LLAMA = {
    "/health": (200, {}),
    "/props": (200, {"total_slots": 3}),
    "/slots": (200, [{}] * 3),
    "/v1/models": models("tiny"),
}
VLLM = {"/health": (200, b""), "/v1/models": models("big", owner="vllm"), "/metrics": (200, VLLM_METRICS)}
OPENAI = {"/v1/models": models("gpt-a", "gpt-b")}


@pytest.mark.parametrize(
    ("answers", "kind", "names", "slots", "metrics"),
    [
        (LLAMA | {"/metrics": (200, LLAMA_METRICS)}, "llamacpp", ("tiny",), 3, True),
        (LLAMA | {"/metrics": (501, {"error": {}})}, "llamacpp", ("tiny",), 3, False),
        (LLAMA | {"/props": (404, {})}, "llamacpp", ("tiny",), 3, False),
        (VLLM, "vllm", ("big",), None, True),
        (VLLM | {"/metrics": (404, {})}, "vllm", ("big",), None, False),
        (OPENAI, "openai", ("gpt-a", "gpt-b"), None, None),
    ],
)
async def test_a_server_is_known_by_what_it_answers(
    answers: Mapping[str, tuple[int, object]],
    kind: str,
    names: tuple[str, ...],
    slots: int | None,
    metrics: bool | None,
) -> None:
    async with serving(answers) as url:
        seen = await servers.look(url, None)
    assert (kind, True, names, slots, metrics) == (
        seen.kind,
        seen.probe.up,
        seen.probe.models,
        seen.probe.slots,
        seen.has_metrics,
    )


async def test_a_kind_that_is_given_is_taken_and_what_it_looks_like_is_said() -> None:
    async with serving(LLAMA) as url:
        seen = await servers.look(url, "openai")
    assert ("openai", "llamacpp", None) == (seen.kind, seen.looks_like, seen.has_metrics)


async def test_a_server_that_wants_a_key_is_told_from_one_that_is_away() -> None:
    async with serving({"/v1/models": (401, {})}) as url:
        seen = await servers.look(url, None)
    assert (False, True) == (seen.probe.up, seen.needs_key)
    away = await servers.look(CLOSED, None)
    assert (False, False, "openai") == (away.probe.up, away.needs_key, away.kind)


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'{"data": 3}', b'{"data": [3]}', b"\xff"])
def test_an_answer_that_is_no_model_list_says_nothing(body: bytes) -> None:
    assert servers.kind_of({"/v1/models": Reply(200, "", body), "/props": Reply(200, "", body)}) == "openai"


def test_kinds_pair_with_urls_by_order() -> None:
    urls = ["http://a/v1/", "http://b:8000", "http://c"]
    expected = [("http://a", "vllm"), ("http://b:8000", "llamacpp"), ("http://c", None)]
    assert expected == config_init.pairs(urls, ["vllm", "llamacpp"])


@pytest.mark.parametrize(
    ("urls", "kinds", "told"),
    [
        (["http://a"], ["vllm", "vllm"], "More --backend-kind than --backend-url"),
        (["http://a"], ["ollama"], "ollama is not one of openai, llamacpp, vllm"),
        (["a:8080"], [], "must begin with http"),
    ],
)
def test_flags_that_do_not_fit_are_refused(urls: list[str], kinds: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        config_init.pairs(urls, kinds)


def found(kind: KindName = "llamacpp", probe: Probe | None = None, **seen: bool) -> Found:
    probe = probe or Probe(True, ("tiny", 'odd "name"\x7f\n'), slots=4)
    server = Server(kind, kind, probe, seen.get("has_metrics"), seen.get("needs_key", False))
    return Found(f"{kind}-1", "http://127.0.0.1:8080", False, server)


GPU = GpuId("GPU-1", 0, "NVIDIA L4", "here")


def test_the_file_has_what_was_found() -> None:
    text = config_init.document("127.0.0.1:9092", [found()], [GPU], None)
    values = tomllib.loads(text)
    row = {"name": "llamacpp-1", "kind": "llamacpp", "url": "http://127.0.0.1:8080"}
    assert {**row, "models": ["tiny", 'odd "name"\x7f\n']} == values["backends"][0]
    assert values["gpus"] == {"source": "nvml"}
    assert "# max_concurrency = 4 " in text
    assert '# gpus = ["GPU-1"]' in text


def test_a_file_without_anything_found_says_what_to_do() -> None:
    text = config_init.document("127.0.0.1:9092", [], [], "No driver.")
    values = tomllib.loads(text)
    assert ({"source": "none"}, None) == (values["gpus"], values.get("backends"))
    assert "# No driver." in text
    assert "triage config init --backend-url URL" in text


def test_what_is_commented_out_would_be_right_if_it_were_not() -> None:
    """A reader takes the sign away, and what is left must be a setting."""
    text = config_init.document("127.0.0.1:9092", [], [], None)
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and _is_toml(line) else line for line in text.splitlines()
    ]
    values = tomllib.loads("\n".join(lines))
    assert {"allow_insecure_dev", "auth", "backends", "models"} <= set(values)
    assert Settings.model_validate(values).backends[0].kind == "llamacpp"


def _is_toml(line: str) -> bool:
    start = line.removeprefix("# ")
    return start.startswith("[") or start.partition(" = ")[0].isidentifier()


def test_brokers_elsewhere_are_told_to_be_unencrypted() -> None:
    assert "cross the network as they are" in config_init.document("broker:9092", [], [], None)
    assert "cross the network as they are" not in config_init.document("127.0.0.1:9092", [], [], None)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (
            found(has_metrics=False),
            "it runs without --metrics, so its queue is not seen: start llama.cpp's server with --metrics",
        ),
        (found("vllm", has_metrics=False), "its /metrics does not answer"),
        (
            found(probe=Probe(False, reason="HTTP 503 from /health")),
            "HTTP 503 from /health; it is in the file all the same",
        ),
        (
            found(probe=Probe(False, reason="HTTP 401 from /v1/models"), needs_key=True),
            "it wants a key: set api_key_file",
        ),
    ],
)
def test_what_a_server_lacks_is_said_on_the_screen_and_in_the_file(seen: Found, told: str) -> None:
    assert told in config_init.described(seen)
    text = config_init.document("127.0.0.1:9092", [seen], [], None)
    assert ("not usable" in text) is not seen.server.probe.up
    assert ("--metrics" in text) is ("--metrics" in told)
    assert ("It wants a key" in text) is seen.server.needs_key


def test_show_reads_the_file_without_a_complaint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "--bootstrap", "localhost:19092"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Wrote triage.toml" in shown.err
    assert main(["config", "show", "--config", "triage.toml", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    values = json.loads(shown.out)
    assert values["kafka.bootstrap"]["value"] == "localhost:19092"
    assert values["gateway.port"] == {"value": 8400, "origin": values["gateway.port"]["origin"]}
    assert values["gateway.port"]["origin"].startswith("triage.toml:")


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("# mine\n")
    assert main(["config", "init", "-o", "mine.toml"]) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert (tmp_path / "mine.toml").read_text() == "# mine\n"
    assert main(["config", "init", "-o", "mine.toml", "--force"]) == 0
    assert "[kafka]" in (tmp_path / "mine.toml").read_text()


def test_a_folder_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "-o", "nowhere/triage.toml"]) == 1
    assert "triage: nowhere/triage.toml cannot be written: No such file or directory.\n" == capsys.readouterr().err


def test_a_server_that_is_away_is_written_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "--backend-url", "http://me:secret@127.0.0.1:9", "--backend-kind", "vllm"]) == 3
    shown = capsys.readouterr()
    assert "http://********@127.0.0.1:9: no connection" in shown.err
    assert "secret" not in shown.err
    row = tomllib.loads((tmp_path / "triage.toml").read_text())["backends"][0]
    assert {"name": "vllm-1", "kind": "vllm", "url": "http://me:secret@127.0.0.1:9"} == row


def test_stdout_takes_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "-o", "-"]) == 0
    shown = capsys.readouterr().out
    assert "127.0.0.1:9092" == tomllib.loads(shown)["kafka"]["bootstrap"]
    assert [] == list(tmp_path.iterdir())
    assert main(["config", "init", "-o", "-", "--json"]) == 0
    assert shown == json.loads(capsys.readouterr().out)["toml"]


@pytest.mark.llama
def test_a_real_llama_server_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(tmp_path / "random.gguf")
    with llama_server(model, slots=2, context=256, alias="tiny") as server:
        assert main(["config", "init", "--backend-url", f"{server.url}/v1", "--json"]) == 0
        row = json.loads(capsys.readouterr().out)["backends"][0]
    expected = {"kind": "llamacpp", "guessed": True, "up": True, "slots": 2, "context_tokens": 256, "metrics": True}
    assert expected == {name: row[name] for name in expected}
    assert "tiny" in row["models"]
    assert main(["config", "show", "--config", "triage.toml"]) == 0
    assert capsys.readouterr().err == ""
