"""The configured model servers: up, serving what the settings say, and telling their load."""

from __future__ import annotations

from pathlib import Path

from cli.checks import servers
from cli.checks.finding import Finding, error, listed, ok, warning
from cli.checks.servers import Server
from streams.settings import BackendSettings, ModelSettings, Settings

CHECK = "backends"
METRICS_FLAG = "start llama.cpp's server with --metrics"


def missing(settings: Settings) -> list[Finding]:
    """Return a warning when there is no backend at all: tasks wait until there is one."""
    if settings.backends:
        return []
    remedy = "name a server under [[backends]]; `triage config init --backend-url URL` writes it for you"
    return [warning(CHECK, "no model server is set up: tasks wait", remedy)]


async def look(row: BackendSettings) -> tuple[Server, list[Finding]]:
    """Look at one backend as the worker would, with its key."""
    key = _key(row.api_key_file)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    server = await servers.look(row.root, row.kind, headers)
    return server, findings(row, server)


def findings(row: BackendSettings, server: Server) -> list[Finding]:
    """Return what is to be said of one backend."""
    check, probe = f"backend {row.name}", server.probe
    if server.needs_key and not probe.up:
        remedy = f"put its key into a file of mode 600 and set api_key_file of backend {row.name}"
        return [error(check, f"the server refuses the key ({probe.reason})", remedy)]
    if not probe.up:
        remedy = f"start the server, or correct the url of backend {row.name}; `curl -i` on it shows what answers"
        return [error(check, f"not usable: {probe.reason}", remedy)]
    found = [
        *_kind(check, row, server),
        *_models(check, row, probe.models),
        *_slots(check, row, probe.slots),
        *_metrics(check, server),
    ]
    models = listed(list(probe.models)) or "models not told"
    slots = f"{probe.slots} slots" if probe.slots else f"slots not told, {row.max_concurrency or 8} taken"
    return [ok(check, f"{row.kind}, {models}, {slots}"), *found]


def unserved(models: list[ModelSettings], backends: list[BackendSettings], seen: dict[str, Server]) -> list[Finding]:
    """Return which models of the settings no backend has. Says nothing while a backend's models are unknown."""
    if any(row.any_model for row in backends):
        return []
    known = {row.name: row.models or list(seen[row.name].probe.models) for row in backends if row.name in seen}
    if len(known) < len(backends) or not all(known.values()):
        return []
    served = {name for names in known.values() for name in names}
    remedy = "serve it, name it in a backend's models, or remove its [[models]]"
    return [
        warning(CHECK, f"no backend serves the model {each.name}", remedy)
        for each in models
        if served.isdisjoint([each.name, *each.aliases])
    ]


def _kind(check: str, row: BackendSettings, server: Server) -> list[Finding]:
    if server.looks_like in ("openai", row.kind):
        return []
    return [
        warning(check, f"set up as {row.kind}, looks like {server.looks_like}", f'set kind = "{server.looks_like}"')
    ]


def _models(check: str, row: BackendSettings, served: tuple[str, ...]) -> list[Finding]:
    absent = [name for name in row.models if name not in served]
    if not absent or not served or row.any_model:
        return []
    remedy = f"serve it, or set models = {_toml(served)} for backend {row.name}"
    return [error(check, f"the server does not have {listed(absent)}", remedy)]


def _slots(check: str, row: BackendSettings, slots: int | None) -> list[Finding]:
    if slots is None or row.max_concurrency is None or row.max_concurrency <= slots:
        return []
    found = f"max_concurrency = {row.max_concurrency}, the server runs {slots} at once: the rest waits inside it, where no lane counts"
    return [warning(check, found, f"set max_concurrency = {slots}, or leave it out")]


def _metrics(check: str, server: Server) -> list[Finding]:
    if server.has_metrics is not False:
        return []
    if server.kind == "llamacpp":
        return [warning(check, "llama.cpp runs without --metrics: its queue is not seen", METRICS_FLAG)]
    remedy = "let this machine reach the server's /metrics"
    return [warning(check, f"no {server.kind} metrics at /metrics: its queue and KV use are not seen", remedy)]


def _toml(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _key(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None  # named by the check of secrets
