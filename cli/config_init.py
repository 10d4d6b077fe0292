"""A first `triage.toml`, from what the servers and this machine's driver say."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast, get_args
from urllib.parse import urlsplit

from agents.backends.kinds import KindName
from agents.gpu_sources import reader
from agents.gpu_sources.bounded import Bounded
from cli.checks import servers
from cli.checks.backends import METRICS_FLAG
from cli.checks.servers import Server
from cli.configuration import is_loopback
from cli.errors import SettingsError
from schemas.gpu import GpuId
from streams.settings import BackendSettings

KINDS: tuple[KindName, ...] = get_args(KindName)


@dataclass(frozen=True, slots=True)
class Found:
    """A server that was named, what was seen of it, and the name it gets."""

    name: str
    root: str
    is_kind_given: bool
    server: Server


def pairs(urls: Sequence[str], kinds: Sequence[str]) -> list[tuple[str, KindName | None]]:
    """Return each server's root and kind, which pair by order; None: to be guessed.

    Raises: SettingsError.
    """
    if len(kinds) > len(urls):
        raise SettingsError("More --backend-kind than --backend-url: each kind belongs to a url, in the same order.")
    for kind in kinds:
        if kind not in KINDS:
            raise SettingsError(f"--backend-kind {kind} is not one of {', '.join(KINDS)}.")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"--backend-url {url} must begin with http:// or https://.")
    roots = [BackendSettings(name="x", url=url).root for url in urls]
    return [(root, cast("KindName", kind) if kind else None) for root, kind in zip_longest(roots, kinds)]


async def look(rows: Sequence[tuple[str, KindName | None]]) -> list[Found]:
    """Look at every server at once and name them: the kind, and a number within it."""
    seen = await asyncio.gather(*(servers.look(root, kind) for root, kind in rows))
    counted: Counter[str] = Counter()
    found = []
    for (root, kind), server in zip(rows, seen, strict=True):
        counted[server.kind] += 1
        found.append(Found(f"{server.kind}-{counted[server.kind]}", root, kind is not None, server))
    return found


def cards(source: str = "nvml") -> tuple[list[GpuId], str | None]:
    """Return this machine's cards, or why there is none."""
    gpus = Bounded(reader(source))
    try:
        return [sample.gpu for sample in gpus.read(now_ms=0)], gpus.unavailable_reason
    finally:
        gpus.close()


def described(found: Found) -> str:
    """Return one sentence about a server, for a person."""
    server, probe = found.server, found.server.probe
    if not probe.up:
        why = "it wants a key: set api_key_file" if server.needs_key else "it is in the file all the same"
        return f"{found.root}: {probe.reason}; {why}"
    parts = [
        server.kind if found.is_kind_given else f"looks like {server.kind}",
        f"models {', '.join(probe.models)}" if probe.models else "models not told",
        *([f"{probe.slots} slots"] if probe.slots else []),
        *([f"{probe.context_tokens} tokens of context"] if probe.context_tokens else []),
    ]
    return f"{found.root}: {', '.join(parts)}{_about_metrics(server)}"


def as_json(found: Found) -> dict[str, Any]:
    """Return what was seen of a server, for machines."""
    server, probe = found.server, found.server.probe
    return {
        "name": found.name,
        "url": found.root,
        "kind": server.kind,
        "guessed": not found.is_kind_given,
        "up": probe.up,
        "models": list(probe.models),
        "slots": probe.slots,
        "context_tokens": probe.context_tokens,
        "metrics": server.has_metrics if probe.up else None,
        "needs_key": server.needs_key,
        "reason": probe.reason,
    }


def document(bootstrap: str, found: Sequence[Found], gpus: Sequence[GpuId], no_gpus: str | None) -> str:
    """Return the text of a settings file. `no_gpus` says why there is no card."""
    return "\n".join(
        [
            "# Settings of Triage, written by `triage config init`.",
            "# `triage config show` prints every setting with its value, `triage config schema` what each means,",
            "# `triage doctor` whether all of this works here.",
            "",
            "# The one switch that permits unsafe settings: replication 1, no TLS or no authentication off loopback.",
            "# allow_insecure_dev = true",
            "",
            *_kafka(bootstrap),
            "",
            *_gateway(),
            "",
            *_gpus(gpus, no_gpus),
            *(line for each in found for line in ("", *_backend(each, gpus))),
            *([] if found else ["", *_NO_BACKEND]),
            "",
            *_models(found),
            "",
        ]
    )


def _kafka(bootstrap: str) -> Iterator[str]:
    yield "[kafka]"
    yield f"bootstrap = {_toml(bootstrap)}"
    if not all(map(is_loopback, bootstrap.split(","))):
        yield "# These brokers are on other machines: without TLS prompts cross the network as they are."
    yield '# security = "SASL_SSL"        # or "SSL"; with username and password_file, ca_file, cert_file, key_file'
    yield '# prefix = "triage"            # first part of every topic and group'
    yield "# partitions = 12              # of every task topic; never changed in place"
    yield "# replication = 3              # copies of each record; 1 needs allow_insecure_dev"


def _gateway() -> Iterator[str]:
    yield "[gateway]"
    yield 'host = "127.0.0.1"'
    yield "port = 8400"
    yield "# data_dir = \"/var/lib/triage\" # the view's file, which can be thrown away; default the user's cache"
    yield '# tls_cert_file = "/etc/triage/tls.crt"'
    yield '# tls_key_file = "/etc/triage/tls.key"'
    yield ""
    yield "# [auth]                       # off loopback somebody must say who may call"
    yield '# modes = ["jwt", "keys"]'


def _gpus(gpus: Sequence[GpuId], no_gpus: str | None) -> Iterator[str]:
    yield "[gpus]"
    for gpu in gpus:
        yield f"# {gpu.index}: {gpu.name}, {gpu.uuid}"
    if not gpus:
        yield f"# {no_gpus or 'There is no card here.'}"
        yield '# Where the cards are, set "nvml"; "simulated:2" makes up two of them.'
    yield f'source = "{"nvml" if gpus else "none"}"'


def _backend(found: Found, gpus: Sequence[GpuId]) -> Iterator[str]:
    server, probe = found.server, found.server.probe
    if not probe.up:
        yield f"# This server was not usable when the file was written: {probe.reason}."
    elif server.has_metrics is False:
        yield f"#{_about_metrics(server).removeprefix(';')}."
    yield "[[backends]]"
    yield f'name = "{found.name}"'
    yield f'kind = "{server.kind}"' + ("" if found.is_kind_given else "  # as it looked; openai, llamacpp or vllm")
    yield f"url = {_toml(found.root)}"
    if probe.models:
        yield f"models = {_toml(list(probe.models))}"
    else:
        yield "# models = []                  # absent: what its /v1/models answers"
    if probe.slots:
        yield f"# max_concurrency = {probe.slots}          # its slots, which are taken when this is absent"
    else:
        yield "# max_concurrency = 8          # it does not say how much it runs at once; 8 is taken"
    if gpus and is_loopback(_host(found.root)):
        yield f"# gpus = {_toml([gpu.uuid for gpu in gpus])}  # a guess: which of these it runs on"
    else:
        yield '# gpus = ["HOST:0"]            # the cards it runs on, by uuid or host:index; absent: none watched'
    if server.needs_key:
        yield "# It wants a key: a file of mode 600 that holds nothing else."
    yield '# api_key_file = "/etc/triage/backend.key"'


_NO_BACKEND = (
    "# No model server is set up, so tasks wait. Name one here, or let `triage config init --backend-url URL` find out.",
    "# [[backends]]",
    '# name = "llamacpp-1"',
    '# kind = "llamacpp"            # openai, llamacpp or vllm',
    '# url = "http://127.0.0.1:8080"',
)


def _models(found: Sequence[Found]) -> Iterator[str]:
    names = list(dict.fromkeys(name for each in found for name in each.server.probe.models)) or ["tiny"]
    yield "# What routing cannot see by itself: a model's size class (absent: small), and what it is for."
    for name in names[:3]:
        yield "# [[models]]"
        yield f"# name = {_toml(name)}"
        yield '# size = "small"               # tiny, small, medium or large'
        yield "# agent_types = []"


def _about_metrics(server: Server) -> str:
    if server.has_metrics is not False:
        return ""
    if server.kind == "llamacpp":
        return f"; it runs without --metrics, so its queue is not seen: {METRICS_FLAG}"
    return "; its /metrics does not answer, so its queue is not seen"


def _host(root: str) -> str:
    return f"{urlsplit(root).hostname}:0"


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # which JSON takes as it is, and TOML does not
