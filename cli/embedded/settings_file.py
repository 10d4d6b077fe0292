"""The settings of a `triage dev` stack: the user's own, with what the stack fixes on top, written for its processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.configuration import DEFAULT_FILE, load
from cli.errors import SettingsError
from schemas.topics import TopicNames
from streams.settings import Settings

PARTITIONS = 6
NO_FILE = Path(os.devnull)
"""As `config`: read no settings file, not even the usual one of the working directory."""
_MARK = "# Written by `triage dev`, anew at every start."


@dataclass(frozen=True)
class Given:
    """What the user set, checked. `backends` empty: the stack brings its own model server."""

    settings: Settings
    gpus: str

    @property
    def names(self) -> TopicNames:
        return self.settings.kafka.names

    @property
    def backends(self) -> list[dict[str, Any]]:
        return [_values(row) for row in self.settings.backends]

    def document(
        self, bootstrap: str, backends: Sequence[dict[str, Any]], gateway: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the settings of the stack's processes, as TOML has them; `gateway` is what the stack fixes of the gateway's."""
        values = _values(self.settings)
        kept = {name: value for name, value in values.get("kafka", {}).items() if name in ("prefix", "gpu_topic")}
        # One node on loopback, ports of the system's choice, and logs that programs read.
        fixed = {
            "allow_insecure_dev": True,
            "kafka": {**kept, "bootstrap": bootstrap, "partitions": PARTITIONS, "replication": 1},
            "gateway": {**values.get("gateway", {}), **(gateway or {})},
            "auth": {"modes": ["none"]},
            "metrics": {**values.get("metrics", {}), "port": 0},
            "gpus": {**values.get("gpus", {}), "source": self.gpus},
            "logging": {**values.get("logging", {}), "format": "json"},
        }
        return {**values, **fixed, "backends": list(backends)}


def given(config: Path | None, backends: Sequence[tuple[str, str]] = (), gpus: str | None = None) -> Given:
    """Return the user's settings: flags (`backends` are kind and url) over variables over the file.

    Raises: SettingsError.
    """
    rows = [{"name": f"backend-{i}", "kind": kind, "url": url} for i, (kind, url) in enumerate(backends, 1)]
    if config is None and is_ours(DEFAULT_FILE):  # what an earlier stack wrote is not what the user wants
        config = NO_FILE
    loaded = load(config, {"backends": rows or None, "gpus.source": gpus}, refuse_unsafe=False)
    is_default = loaded.origins["gpus.source"] == "default"
    return Given(loaded.settings, _checked_source(None if is_default else loaded.settings.gpus.source))


def place(folder: Path) -> Path:
    """Return where `write` may write in `folder`: over what it wrote before, not over a file of the user's own."""
    usual = folder / DEFAULT_FILE.name
    return usual if is_ours(usual) or not usual.exists() else folder / "dev.toml"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a settings file."""
    path.write_text(f"{_MARK}\n{toml(document)}")


def is_ours(path: Path) -> bool:
    """Whether `write` wrote the file; False for one that is not there."""
    try:
        with path.open(errors="replace") as file:
            return file.readline().rstrip("\n") == _MARK
    except OSError:
        return False


def toml(document: dict[str, Any]) -> str:
    """Return a settings document as TOML: JSON's strings, numbers, booleans and flat lists are TOML's too."""
    lines = [f"{key} = {_json(value)}" for key, value in document.items() if not _is_table(value)]
    for key, value in document.items():
        if isinstance(value, dict):
            lines += _table(key, value)
        elif _is_table(value):
            for row in value:
                lines += ["", f"[[{key}]]", *(f"{name} = {_json(item)}" for name, item in row.items())]
    return "\n".join(lines) + "\n"


def _table(name: str, table: dict[str, Any]) -> list[str]:
    lines = ["", f"[{name}]", *(f"{key} = {_json(item)}" for key, item in table.items() if not _is_table(item))]
    for key, item in table.items():
        if isinstance(item, dict):
            lines += _table(f"{name}.{key}", item)
    return lines


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML knows no surrogate pairs


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _values(model: Any) -> dict[str, Any]:
    """Return what was set, without the defaults: TOML has no null, and people read the file."""
    found: dict[str, Any] = model.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return found


def _checked_source(source: str | None) -> str:
    """Return where GPU readings come from; by default the cards where a driver shows some, else two simulated ones."""
    from agents.gpu_sources import UnknownSource, reader
    from agents.gpu_sources.bounded import Bounded

    try:
        gpus = Bounded(reader(source or "nvml"))
    except UnknownSource as error:
        raise SettingsError(str(error)) from error
    try:
        return source or ("nvml" if gpus.read(now_ms=0) else "simulated:2")
    finally:
        gpus.close()
