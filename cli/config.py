"""`triage config`: what the settings are, what they may be, and a first file of them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import NOT_REACHABLE, Failed

app = typer.Typer(no_args_is_help=True, help="Show the settings and where each comes from, or write a first file.")

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


@app.command()
def init(
    backend_url: Annotated[list[str] | None, typer.Option(metavar="URL", help="A model server; repeatable.")] = None,
    backend_kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="openai, llamacpp or vllm, by order; absent: found out.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE|-", help="- is stdout.")] = "triage.toml",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    bootstrap: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Brokers to ask first, comma-separated.")
    ] = "127.0.0.1:9092",
    as_json: Annotated[bool, typer.Option("--json", help="What was found, as one JSON object.")] = False,
) -> None:
    """Look at model servers and at this machine's GPUs, and write a commented settings file.

    Exit code 3 when a server does not answer; the file is written all the same, with a comment at that server.

    \b
    Example:
      triage config init --backend-url http://127.0.0.1:8080 --backend-url http://gpu-2:8000
    """
    import asyncio
    from dataclasses import asdict

    from cli import config_init

    rows = config_init.pairs(backend_url or [], backend_kind or [])
    target = None if output == "-" else Path(output)
    if target is not None and target.exists() and not force:
        raise Failed(f"{target} is there already: --force replaces it, -o names another.")
    found = asyncio.run(config_init.look(rows))
    gpus, no_gpus = config_init.cards()
    text = config_init.document(bootstrap, found, gpus, no_gpus)
    if target is not None:
        _write(target, text)
    if as_json:
        seen = {"backends": [config_init.as_json(each) for each in found], "gpus": [asdict(gpu) for gpu in gpus]}
        typer.echo(json.dumps({"file": output, **seen} if target else {"toml": text, **seen}, ensure_ascii=False))
    elif target is None:
        typer.echo(text, nl=False)
    for each in found:
        if not as_json or not each.server.probe.up:
            typer.echo(_USER_INFO.sub("********", config_init.described(each)), err=True)
    if not as_json:
        cards = ", ".join(gpu.name for gpu in gpus)
        typer.echo(f"GPUs: {cards or no_gpus}", err=True)
        if target is not None:
            typer.echo(
                f"Wrote {target}. `triage doctor --config {shlex.quote(output)}` says what is left to do.", err=True
            )
    if not all(each.server.probe.up for each in found):
        raise typer.Exit(NOT_REACHABLE)


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text)
    except OSError as error:
        raise Failed(f"{target} cannot be written: {error.strerror}.") from error


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
