"""`triage topics`: the catalogue against a cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from cli.configuration import Loaded
    from streams.catalogue import Difference
    from streams.settings import KafkaSettings

app = typer.Typer(no_args_is_help=True, help="Compare the topics of a cluster with the catalogue, or make them so.")

Config: TypeAlias = Annotated[Path | None, typer.Option(help="Settings file; default triage.toml where there is one.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Timeout: TypeAlias = Annotated[float, typer.Option(min=0.1, help="Seconds for all of it.")]


@app.command()
def verify(config: Config = None, as_json: Json = False, timeout: Timeout = 10.0) -> None:
    """Name every difference between the cluster and the catalogue; exit code 1 when there is one.

    \b
    Example:
      triage topics verify --config triage.toml
    """
    from cli.checks.topics import as_on_this_machine

    kafka = asyncio.run(as_on_this_machine(_loaded(config), timeout))
    found = _look(kafka, timeout)
    if as_json:
        _print_json(kafka, differences=found)
    elif found:
        _print_lines(found)
    else:
        typer.echo(f"{_count(kafka)} topics match")
    raise typer.Exit(1 if found else 0)


@app.command()
def plan(config: Config = None, as_json: Json = False, timeout: Timeout = 10.0) -> None:
    """Say what `apply` would do; changes nothing.

    \b
    Example:
      triage topics plan --json
    """
    from cli.checks.topics import as_on_this_machine

    kafka = asyncio.run(as_on_this_machine(_loaded(config), timeout))
    found = _look(kafka, timeout)
    if as_json:
        _print_json(kafka, differences=found)
    elif not found:
        typer.echo(f"nothing to do: {_count(kafka)} topics match")
    for each in () if as_json else found:
        typer.echo(_step(each))


@app.command()
def apply(config: Config = None, as_json: Json = False, timeout: Timeout = 10.0) -> None:
    """Create missing topics and change settings that differ; exit code 1 when something cannot be changed in place.

    \b
    Example:
      triage topics apply && triage topics verify
    """
    from wire.topics import apply as apply_topics

    kafka = _loaded(config).settings.kafka
    applied = asyncio.run(apply_topics(kafka, timeout_s=timeout))
    if as_json:
        _print_json(kafka, done=applied.done, differences=applied.left)
    else:
        created = sum(each.found == "missing" for each in applied.done)
        typer.echo(f"{created} topics created, {len(applied.done) - created} settings changed")
        _print_lines(applied.left)
    raise typer.Exit(1 if applied.left else 0)


def _loaded(config: Path | None) -> Loaded:
    from cli.configuration import load
    from wire.logs import configure

    loaded = load(config)
    configure("console", "error")
    return loaded


def _look(kafka: KafkaSettings, timeout_s: float) -> list[Difference]:
    from wire.topics import verify as verify_topics

    return asyncio.run(verify_topics(kafka, timeout_s=timeout_s))


def _count(kafka: KafkaSettings) -> int:
    from schemas.topics import catalogue

    return len(catalogue(kafka.names, partitions=kafka.partitions))


def _step(difference: Difference) -> str:
    match difference.action.value:
        case "create":
            return f"create {difference.topic}: {difference.wanted}"
        case "alter":
            return f"change {difference.topic}: {difference.what} {difference.found} -> {difference.wanted}"
        case _:
            return f"cannot change {difference}"


def _print_lines(found: Sequence[Difference]) -> None:
    for each in found:
        typer.echo(str(each))


def _print_json(kafka: KafkaSettings, **lists: Sequence[Difference]) -> None:
    from dataclasses import asdict

    shown: dict[str, Any] = {name: [asdict(each) for each in rows] for name, rows in lists.items()}
    typer.echo(json.dumps({"topics": _count(kafka), **shown}))
