"""`triage config`: what the settings are, and what they may be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Show the settings and where each comes from.")

_SECRET = re.compile(r"(password|secret|token|api_key)$")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@app.command()
def show(
    config: Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: name -> value and origin.")] = False,
) -> None:
    """Print every setting, its value and where it came from. Secrets are masked.

    \b
    Example:
      TRIAGE_KAFKA__BOOTSTRAP=broker:9092 triage config show
    """
    from cli.configuration import leaves, load, unsafe

    loaded = load(config, refuse_unsafe=False)
    dumped = loaded.settings.model_dump(mode="json")
    rows = {".".join(path): masked(path[-1], _at(dumped, path)) for path, _ in leaves(loaded.settings)}
    if as_json:
        typer.echo(json.dumps({key: {"value": rows[key], "origin": loaded.origins[key]} for key in rows}, indent=2))
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:{width}}  {json.dumps(value):24} {loaded.origins[name]}")
    for risk in unsafe(loaded.settings):
        typer.echo(f"unsafe: {risk}", err=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of triage.toml.

    \b
    Example:
      triage config schema > triage.schema.json
    """
    from streams.settings import Settings

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))


def masked(name: str, value: object) -> object:
    """Return `value` without what must not be shown: secrets by name, and user:password within addresses."""
    if value is not None and _SECRET.search(name):
        return "********"
    if isinstance(value, str):
        return _USER_INFO.sub("********", value)
    if isinstance(value, list):
        return [masked("", each) for each in value]
    if isinstance(value, dict):
        return {key: masked(key, each) for key, each in value.items()}
    return value


def _at(values: object, path: tuple[str, ...]) -> object:
    for key in path:
        assert isinstance(values, dict)
        values = values[key]
    return values
